"""launch.sh: what each of its ways of starting several processes runs, seen by stand-ins for
python, srun and gcloud.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from medjax import main
from medjax.errors import UsageError
from medjax.runs import hosts

STANDIN = """#!/usr/bin/env bash
case "$*" in *socket*) echo 4711; exit ;; esac
settings="$MEDJAX_COORDINATOR $MEDJAX_PROCESSES $MEDJAX_PROCESS"
settings="$settings $MEDJAX_DISTRIBUTED $MEDJAX_EXTRA"
echo "$(basename "$0") $* | $settings" >>"$CALLS"
[ "${FAILING:-none}" != "${MEDJAX_PROCESS:-}" ] || exit 3
[ "${FAILING:-none}" = none ] || exec sleep 60
"""


@pytest.fixture
def launch(tmp_path, repository):
    """(arguments, environment changes) -> (exit code, lines of what was called, error text); no
    package is installed.
    """
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("python", "srun", "gcloud"):
        (tools / name).write_text(STANDIN)
        (tools / name).chmod(0o755)
    checksum = subprocess.run(
        ["cksum"],
        stdin=(repository / "pyproject.toml").open(),
        capture_output=True,
        text=True,
        check=True,
    )
    (tmp_path / ".medjax").write_text(
        "".join(f"{checksum.stdout.strip()} [{extra}]\n" for extra in ("", "tpu"))
    )

    def call(*arguments, **changes):
        calls = tmp_path / "calls"
        calls.write_text("")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "MEDJAX"))}
        environment = (
            clean
            | {
                "MEDJAX_VENV": str(tmp_path),
                "CALLS": str(calls),
                "PATH": f"{tools}:{os.environ['PATH']}",
            }
            | changes
        )
        script = Path(repository) / "launch.sh"
        done = subprocess.run(
            ["bash", str(script), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, sorted(calls.read_text().splitlines()), done.stderr

    return call


def test_local_processes_know_each_other(launch):
    code, calls, _ = launch("local", "2", "configs/x.py:t", "--workdir=runs/a b")
    assert code == 0
    command = "python -m medjax.main --config=configs/x.py:t --workdir=runs/a b"
    assert [line.strip() for line in calls] == [
        f"{command} | 127.0.0.1:4711 2 {i}" for i in range(2)
    ]


def test_a_local_process_that_fails_ends_the_others(launch):
    code, calls, _ = launch("local", "3", "configs/x.py", FAILING="1")
    assert code != 0 and len(calls) == 3


def test_slurm_starts_one_task_per_node_that_asks_slurm_who_it_is(launch):
    code, calls, _ = launch(
        "slurm", "configs/x.py", "--workdir=/s/r", SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="4"
    )
    assert code == 0
    assert [line.strip() for line in calls] == [
        "srun --ntasks=4 --kill-on-bad-exit=1 python -m medjax.main --config=configs/x.py "
        "--workdir=/s/r |    auto"
    ]
    code, calls, error = launch("slurm", "configs/x.py")
    assert code == 2 and not calls and "allocation" in error


def test_tpu_runs_the_same_command_on_every_worker(launch, repository):
    code, calls, _ = launch(
        "tpu",
        "slice",
        "europe-west4-a",
        "configs/x.py:h",
        "--workdir=/mnt/run",
        "--config.name=two words",
    )
    assert code == 0 and len(calls) == 1
    assert calls[0].startswith(
        "gcloud compute tpus tpu-vm ssh slice --zone=europe-west4-a --worker=all --command=cd "
    )
    assert (
        r"MEDJAX_DISTRIBUTED=auto ./launch.sh train configs/x.py:h --workdir=/mnt/run "
        r"--config.name=two\ words" in calls[0]
    )


@pytest.mark.parametrize(
    ("failing", "code", "last"),
    [
        ("", 0, "parity"),
        ("parity install", 0, "parity install"),
        ("parity", 1, "parity"),
        ("test slow", 1, "test slow"),
    ],
)
def test_ci_skips_comparisons_that_cannot_be_installed_and_fails_with_any_test(
    tmp_path, repository, failing, code, last
):
    (tmp_path / ".ci").mkdir()
    shutil.copy(Path(repository) / ".ci" / "run", tmp_path / ".ci" / "run")
    script = f'#!/bin/bash\necho "$*" >>calls\n[ "$*" != "{failing}" ]\n'
    (tmp_path / "launch.sh").write_text(script)
    (tmp_path / "launch.sh").chmod(0o755)
    done = subprocess.run(
        ["bash", str(tmp_path / ".ci" / "run")], capture_output=True, text=True, check=False
    )
    calls = (tmp_path / "calls").read_text().splitlines()
    assert done.returncode == code and calls[-1] == last and calls[0] == "test"
    assert ("SKIPPED" in done.stdout) == (failing == "parity install")


def test_parity_installs_and_runs_apart(launch, tmp_path):
    path = tmp_path / ".medjax"
    path.write_text(path.read_text().replace("[tpu]", "[test,formats,parity]"))
    assert launch("parity", "install")[:2] == (0, [])
    code, (call,), _ = launch("parity", "-x")
    assert (
        code == 0 and "python -m pytest -m parity" in call and call.split(" | ")[0].endswith("-x")
    )


def test_processes_are_described_completely_or_not_at_all():
    assert hosts.settings({}) is None and hosts.settings({"MEDJAX_DISTRIBUTED": "auto"}) == {}
    full = {"MEDJAX_COORDINATOR": "a:1", "MEDJAX_PROCESSES": "2", "MEDJAX_PROCESS": "1"}
    assert hosts.settings(full) == {
        "coordinator_address": "a:1",
        "num_processes": 2,
        "process_id": 1,
    }
    with pytest.raises(UsageError, match="not fully described"):
        hosts.settings({"MEDJAX_COORDINATOR": "a:1"})
    with pytest.raises(UsageError, match="process 2 of 2"):
        hosts.settings(full | {"MEDJAX_PROCESS": "2"})


def test_the_first_process_goes_on_alone_after_training(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    monkeypatch.setenv("MEDJAX_COORDINATOR", "a:1")
    monkeypatch.setenv("MEDJAX_DISTRIBUTED", "auto")
    flags = ["--config=configs/multitalent.py:demo", "--workdir=x", "--mode=train"]
    assert hosts.part(flags) and started == [], "a process that was alone evaluates as it is"
    hosts.restart([*flags, "--mode=evaluate"])
    ((_, command, environment),) = started
    assert (
        command[1:3] == ["-m", "medjax.main"]
        and main.parse(["medjax", *command[3:]]).mode == "evaluate"
    )
    assert (
        not {"MEDJAX_COORDINATOR", "MEDJAX_DISTRIBUTED"} & set(environment)
        and environment["PATH"] == os.environ["PATH"]
    )
