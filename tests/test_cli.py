"""The thin command: quick help, exit codes, machine-readable output."""

import json
import subprocess
import sys
import time

import pytest

from medjax import cli, commands
from tests.support.raw import make_case, save, write_corpus
from tests.support.run import make_run


def _run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "medjax.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_is_quick_and_imports_nothing_heavy(repository):
    code = (
        "import sys, medjax.cli\n"
        "try: medjax.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'flax', 'numpy', 'scipy', 'nibabel', 'grain', 'matplotlib', "
        "'tensorflow_datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=60
        )
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert "predict" in done.stdout and min(seconds) < 0.5


def test_usage_errors_exit_2_with_a_suggestion(tmp_path, capsys):
    assert cli.main(["predict", "-m", "x", "-i", "y", "-o", "z", "--overlp", "0.5"]) == 2
    assert "--overlap" in capsys.readouterr().err
    assert (
        cli.main(
            [
                "predict",
                "-m",
                str(tmp_path),
                "-i",
                str(tmp_path / "none*.nii.gz"),
                "-o",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
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
    assert any(
        victim.name in problem["file"] and "truncated" in problem["what"]
        for problem in report["problems"]
    )


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


@pytest.mark.parametrize(
    "verb",
    [
        module.__name__.rsplit(".", 1)[-1].strip("_").replace("_", "-")
        for module in commands.modules()
    ],
)
def test_every_verb_is_there(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of random weights and three scans, one of them broken."""
    root = tmp_path_factory.mktemp("cli")
    make_run(root / "run")
    for i in range(3):
        image, _ = make_case((12, 13, 11), [1, 2], kind="CT", seed=i)
        save(root / "in" / f"c{i}.nii.gz", image[..., 0])
    victim = root / "in" / "c1.nii.gz"
    victim.write_bytes(victim.read_bytes()[:400])
    return root


def test_predict_writes_what_was_asked_for_and_exits_3(run, tmp_path, capsys):
    out = tmp_path / "out"
    given = [
        "-m",
        str(run / "run"),
        "-i",
        str(run / "in"),
        "-o",
        str(out),
        "--classes",
        "organ",
        "--max-memory",
        "6",
    ]
    more = [
        "--statistics",
        "--preview",
        "--uncertainty",
        "--report",
        str(tmp_path / "run.json"),
        "--disable-progress-bar",
    ]
    assert cli.main(["predict", *given, *more]) == 3
    said = capsys.readouterr().err
    assert "3 cases; 1 that cannot be predicted as they are" in said or "3 cases, at most" in said
    assert (
        "GiB of 6 GiB allowed" in said
        and "c1 failed" in said
        and "truncated gzip" in said
        and "2 predicted" in said
    )
    names = {p.name for p in out.iterdir()} - {"report.html"}
    endings = (".nii.gz", ".json", "_entropy.nii.gz", "_preview.png")
    assert names == {f"c{i}{ending}" for i in (0, 2) for ending in endings} | {
        "run.json",
        "statistics.csv",
    }
    report = json.loads((tmp_path / "run.json").read_text())
    assert (
        report["failed"][0]["case"] == "c1"
        and report["peak_memory_gib"] > 0
        and set(report["cases"]) == {"c0", "c2"}
    )
    assert report["models"][0]["name"] == "base" and report["settings"]["classes"] == ["organ"]


def test_parts_share_the_cases(run, tmp_path, capsys):
    out = tmp_path / "out"
    given = [
        "predict",
        "-m",
        str(run / "run"),
        "-i",
        str(run / "in"),
        "-o",
        str(out),
        "--num-parts",
        "2",
        "--quiet",
    ]
    assert cli.main([*given, "--part-id", "0"]) == 0 and cli.main([*given, "--part-id", "1"]) == 3
    assert {p.name for p in out.glob("*.nii.gz")} == {"c0.nii.gz", "c2.nii.gz"}
    assert {p.name for p in out.glob("run*")} == {"run_part0of2.json", "run_part1of2.json"}
    assert cli.main([*given, "--part-id", "2"]) == 2 and "counts from 0" in capsys.readouterr().err


def test_what_cannot_be_predicted_exits_2_at_once(run, tmp_path, capsys):
    base = ["predict", "-m", str(run / "run"), "-o", str(tmp_path / "out")]
    scan = ["-i", str(run / "in" / "c0.nii.gz")]
    (tmp_path / "empty").mkdir()
    wrong = {
        "no scans in this folder": [*base, "-i", str(tmp_path / "empty")],
        "did you mean organ": [*base, *scan, "--classes", "orgam"],
        "did you mean Organs": [*base, *scan, "--corpus", "Organ"],
        "no fast version": [*base, *scan, "--fast"],
        "nothing was chosen": [*base, *scan, "--postprocess", "chosen"],
        "the model alone takes more": [*base, *scan, "--max-memory", "0.01"],
        "not a run folder": ["predict", "-m", str(tmp_path), *scan, "-o", str(tmp_path / "out")],
    }
    for words, given in wrong.items():
        assert cli.main(given) == 2, words
        assert words in capsys.readouterr().err
