#!/usr/bin/env bash
# One script for a fresh machine: ./launch.sh demo | test | parity | notebooks | docs | train | local | slurm | tpu | run (help lists them).
# Creates its own environment in .venv (needs Python >= 3.11 and a package registry). MEDJAX_EXTRA=cuda or tpu adds that accelerator.
set -euo pipefail
cd "$(dirname "$0")"
VENV="${MEDJAX_VENV:-.venv}"

python_of_choice() {
  for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$candidate"; return; }
  done
  echo "launch.sh: no Python >= 3.11 found; set PYTHON=/path/to/python" >&2
  exit 2
}

environment() { # environment EXTRA[,EXTRA...]: created once; installs again if pyproject.toml changed or an extra is new
  local extras="$1${MEDJAX_EXTRA:+,$MEDJAX_EXTRA}" stamp
  extras="${extras#,}"
  stamp="$(cksum <pyproject.toml) [$extras]"
  [ -x "$VENV/bin/python" ] || "$(python_of_choice)" -m venv "$VENV"
  if ! grep -qxF "$stamp" "$VENV/.medjax" 2>/dev/null; then
    echo "installing medjax${extras:+[$extras]} into $VENV ..."
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".${extras:+[$extras]}"
    echo "$stamp" >>"$VENV/.medjax"
  fi
  PATH="$(cd "$VENV/bin" && pwd):$PATH"
}

usage() {
  cat <<'TEXT'
./launch.sh demo [FLAGS]           make the embedded corpora, train, predict, evaluate, print a table (minutes on two cores)
./launch.sh test [PYTEST ARGS]     the quick tests: mathematics, wiring, one run of every system (about 10 minutes on two cores)
./launch.sh test all [PYTEST ARGS] every test but the comparisons with PyTorch (about 45 minutes)
./launch.sh test slow [PYTEST ARGS] what `test` leaves out of `test all`
./launch.sh parity [PYTEST ARGS]   run the comparisons with PyTorch references (installs torch, nnU-Net, MONAI)
./launch.sh parity install         only install what they need
./launch.sh notebooks              run every notebook from its first cell to its last (about five minutes)
./launch.sh docs                   build the pages of docs/ as a web site in build/docs
./launch.sh docs install           only install what that needs
./launch.sh train CONFIG [FLAGS]   python -m medjax.main --config=CONFIG FLAGS
./launch.sh local N CONFIG [FLAGS] the same training in N processes on this machine
./launch.sh slurm CONFIG [FLAGS]   inside a SLURM allocation: one task per node (or as SLURM_NTASKS says), all GPUs of the node each;
                                   with sbatch: sbatch -N 4 --gpus-per-node=8 --wrap "./launch.sh slurm CONFIG --workdir=/shared/RUN"
./launch.sh tpu NAME ZONE CONFIG [FLAGS]  on every worker of a TPU pod slice that has this checkout at the same place (needs gcloud)
./launch.sh run COMMAND ...        any command inside the environment
Several processes share one --workdir (on a file system that all of them see). The same command resumes a run. See docs/scaling.md
TEXT
}

# processes N COMMAND...: N numbered copies on this machine, connected by a free port. If one fails or is interrupted, the others are stopped.
processes() {
  local count="$1" port index code=0 status
  shift
  port="${MEDJAX_PORT:-$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}"
  pids=()
  for ((index = 0; index < count; index++)); do
    MEDJAX_COORDINATOR="127.0.0.1:$port" MEDJAX_PROCESSES="$count" MEDJAX_PROCESS="$index" "$@" &
    pids+=($!)
  done
  trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM
  while [ ${#pids[@]} -gt 0 ]; do
    sleep 0.2 || true
    local running=()
    for index in "${pids[@]}"; do
      if kill -0 "$index" 2>/dev/null; then running+=("$index"); continue; fi
      status=0
      wait "$index" || status=$?
      [ "$status" -eq 0 ] || code="$status"
    done
    pids=(${running[@]+"${running[@]}"})
    # 75: stopped by a signal, and the others with it
    if [ "$code" -ne 0 ] && [ "$code" -ne 75 ] && [ ${#pids[@]} -gt 0 ]; then kill -TERM "${pids[@]}" 2>/dev/null || true; fi
  done
  return "$code"
}

command="${1:-help}"
[ $# -gt 0 ] && shift
case "$command" in
  demo)
    environment ""
    python -m medjax.main --config=configs/multitalent.py:demo --workdir="${MEDJAX_WORKDIR:-runs/demo}" "$@"
    ;;
  test)
    environment "test,formats"
    chosen=(-m "not slow and not parity and not notebook")
    case "${1:-}" in
      all) shift; chosen=(-m "not notebook") ;;
      slow) shift; chosen=(-m "slow and not parity") ;;
    esac
    python -m pytest ${chosen[@]+"${chosen[@]}"} --numprocesses "${MEDJAX_TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder --jaxtyping-packages=medjax,medjax_verbs,tests.checked "$@"
    ;;
  parity)
    environment "test,formats,parity"
    if [ "${1:-}" = install ]; then exit 0; fi
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # PyTorch's threads of several processes hinder each other
    python -m pytest -m parity --numprocesses "${MEDJAX_TEST_PROCESSES:-2}" --dist loadfile --jaxtyping-packages=medjax,medjax_verbs,tests.checked "$@"
    ;;
  notebooks)
    environment "test,formats"
    python -m pytest -m notebook --numprocesses "${MEDJAX_TEST_PROCESSES:-2}" --dist load "$@"
    ;;
  docs)
    environment "docs"
    if [ "${1:-}" = install ]; then exit 0; fi
    python -m sphinx -q -W --keep-going -b html -c docs . build/docs "$@"
    echo "build/docs/index.html"
    ;;
  train)
    [ $# -gt 0 ] || { usage >&2; exit 2; }
    environment ""
    config="$1"; shift
    python -m medjax.main --config="$config" "$@"
    ;;
  local)
    [ $# -gt 1 ] || { usage >&2; exit 2; }
    environment ""
    count="$1" config="$2"
    shift 2
    processes "$count" python -m medjax.main --config="$config" "$@"
    ;;
  slurm)
    [ $# -gt 0 ] || { usage >&2; exit 2; }
    [ -n "${SLURM_JOB_ID:-}" ] || { echo "launch.sh: not inside a SLURM allocation; use salloc or sbatch" >&2; exit 2; }
    environment ""
    config="$1"; shift
    # jax reads address, number and rank from SLURM's variables; every task must see all GPUs of its node, hence no --gpus-per-task
    tasks="${SLURM_NTASKS:-${SLURM_JOB_NUM_NODES:-1}}"
    MEDJAX_DISTRIBUTED=auto exec srun --ntasks="$tasks" --kill-on-bad-exit=1 python -m medjax.main --config="$config" "$@"
    ;;
  tpu)
    [ $# -gt 2 ] || { usage >&2; exit 2; }
    name="$1" zone="$2" config="$3"
    shift 3
    printf -v quoted '%q ' "$config" "$@"
    exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
      --command="cd $(printf '%q' "$PWD") && MEDJAX_EXTRA=tpu MEDJAX_DISTRIBUTED=auto ./launch.sh train $quoted"
    ;;
  run)
    environment ""
    [ $# -gt 0 ] || { usage >&2; exit 2; }
    exec "$@"
    ;;
  help | -h | --help) usage ;;
  *) echo "launch.sh: unknown command '$command'" >&2; usage >&2; exit 2 ;;
esac
