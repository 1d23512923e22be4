#!/usr/bin/env bash
# One script for a fresh machine: ./launch.sh demo | test | parity | train CONFIG [flags] | run COMMAND...
# Makes its own environment in .venv (needs Python >= 3.11 and a package registry). MEDJAX_EXTRA=cuda or tpu adds that accelerator.
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

environment() { # environment EXTRA[,EXTRA...]: created once; pyproject.toml or extras not seen before are installed
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
./launch.sh test [PYTEST ARGS]     run the tests
./launch.sh parity [PYTEST ARGS]   run the comparisons with PyTorch references (installs torch, nnU-Net, MONAI)
./launch.sh train CONFIG [FLAGS]   python -m medjax.main --config=CONFIG FLAGS
./launch.sh run COMMAND ...        any command inside the environment
TEXT
}

command="${1:-help}"
[ $# -gt 0 ] && shift
case "$command" in
  demo)
    environment ""
    python -m medjax.main --config=configs/multitalent.py:demo --workdir="${MEDJAX_WORKDIR:-runs/demo}" "$@"
    ;;
  test)
    environment "test"
    python -m pytest --numprocesses "${MEDJAX_TEST_PROCESSES:-2}" --dist loadfile --jaxtyping-packages=medjax,beartype.beartype "$@"
    ;;
  parity)
    environment "test,parity"
    python -m pytest --jaxtyping-packages=medjax,beartype.beartype -m parity "$@"
    ;;
  train)
    [ $# -gt 0 ] || { usage >&2; exit 2; }
    environment ""
    config="$1"; shift
    python -m medjax.main --config="$config" "$@"
    ;;
  run)
    environment ""
    [ $# -gt 0 ] || { usage >&2; exit 2; }
    exec "$@"
    ;;
  help | -h | --help) usage ;;
  *) echo "launch.sh: unknown command '$command'" >&2; usage >&2; exit 2 ;;
esac
