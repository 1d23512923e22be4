"""The thin command: quick help, exit codes, machine-readable output."""

import json
import subprocess
import sys
import time

import pytest

from medjax import cli, commands
from tests.make_raw import write_corpus


def _run(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "medjax.cli", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_help_is_quick_and_imports_nothing_heavy(repository):
    code = (
        "import sys, medjax.cli\n"
        "try: medjax.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'flax', 'numpy', 'scipy', 'nibabel', 'grain', 'matplotlib', 'tensorflow_datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=60)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert "predict" in done.stdout and min(seconds) < 0.5


def test_usage_errors_exit_2_with_a_suggestion(tmp_path, capsys):
    assert cli.main(["predict", "-m", "x", "-i", "y", "-o", "z", "--overlp", "0.5"]) == 2
    assert "--overlap" in capsys.readouterr().err
    assert cli.main(["predict", "-m", str(tmp_path), "-i", str(tmp_path / "none*.nii.gz"), "-o", str(tmp_path / "out")]) == 2
    assert cli.main(["info", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path)]) == 2


def test_verify_finds_a_planted_fault_and_exits_4(tmp_path, capsys):
    folder = write_corpus(tmp_path / "Task01_Ok", n=3)
    assert cli.main(["verify", str(folder)]) == 0
    capsys.readouterr()
    victim = sorted((folder / "imagesTr").glob("*.nii.gz"))[0]
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    assert cli.main(["verify", str(folder), "--json"]) == 4
    report = json.loads(capsys.readouterr().out)[0]
    assert any(victim.name in problem["file"] and "truncated" in problem["what"] for problem in report["problems"])


def test_prepare_isolates_the_bad_case_and_finishes_the_rest(tmp_path, capsys):
    folder = write_corpus(tmp_path / "Task01_Bad", n=3)
    victim = sorted((folder / "imagesTr").glob("*.nii.gz"))[1]
    victim.write_bytes(b"<html>not a scan</html>")
    assert cli.main(["prepare", str(folder), "-o", str(tmp_path / "store"), "--quiet"]) == 3
    out = capsys.readouterr()
    assert "2 prepared" in out.out and "1 failed" in out.out and victim.name in out.err
    assert cli.main(["prepare", str(folder), "-o", str(tmp_path / "store"), "--quiet"]) == 3
    assert "2 already there" in capsys.readouterr().out


def test_info_answers_programs(capsys):
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert "unet" in facts["available"]["models"] and facts["versions"]["jax"] and facts["devices"]


@pytest.mark.parametrize("verb", [module.__name__.rsplit(".", 1)[-1].strip("_") for module in commands.modules()])
def test_every_verb_is_there(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
