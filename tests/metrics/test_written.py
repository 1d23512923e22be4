"""What an evaluation, a report or a table may write, and names in what it writes."""

import csv
import json
import shutil

import numpy as np
import pytest

from medjax import cli
from medjax.errors import UsageError
from medjax.labels import Corpus
from medjax.metrics import tables, written
from medjax.metrics.evaluate import Pair, evaluate
from medjax.metrics.result import Result, read_cases
from medjax.report import prediction
from medjax.report.montage import montage
from medjax.report.present import present
from medjax.runs import test
from medjax_verbs import gate_weights as gates
from tests.report.test_pages import save
from tests.support.configs import typed
from tests.support.old_run import extract

EVIL = "<script>alert(1)</script>|x\x1b[2J\n[a](http://b) `c`"


@pytest.fixture
def folders(tmp_path):
    """labels/ with dataset.json, and masks/: two cases."""
    for k, case in enumerate(("p1", "p2")):
        label = np.zeros((4, 8, 8), np.uint8)
        label[1:3, 2:6, 2:6] = 1
        save(tmp_path / "labels" / f"{case}.nii.gz", label)
        save(tmp_path / "masks" / f"{case}.nii.gz", np.roll(label, k, 1))
    spec = {
        "labels": {"background": 0, "liver": 1},
        "channel_names": {"0": "CT"},
        "file_ending": ".nii.gz",
        "numTraining": 0,
    }
    (tmp_path / "dataset.json").write_text(json.dumps(spec))
    return tmp_path


def command(folders, out, *more):
    given = [
        "evaluate",
        "--reference",
        str(folders / "labels"),
        "--prediction",
        str(folders / "masks"),
        "--montages",
        "2",
        "--quiet",
    ]
    return cli.main([*given, "--resamples", "20", "-o", str(out), *more])


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


FOREIGN = {
    "summary.json": b'{"metric_per_case": [], "mean": {}, "foreground_mean": {}}',  # nnU-Net's own
    "cases.csv": b"case,dataset,class,metric,value\n",
    "table.md": b"my notes",
    "report.html": b"<html>mine</html>",
    "plots/dataset_Dice.svg": b"<svg/>",
    "montages/dataset_p1.png": b"\x89PNG",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_an_evaluation_refuses_files_of_somebody_else_before_it_scores(
    folders, tmp_path, capsys, monkeypatch, name
):
    from medjax.corpora.scoring import read_protocol

    corpus = read_protocol(folders / "dataset.json", "").corpus.name
    name = name.replace("dataset_", f"{corpus}_")
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(FOREIGN.get(name, b"<svg/>"))
    before = contents(out)
    with monkeypatch.context() as patch:
        patch.setattr("medjax.metrics.evaluate._score", lambda *given: pytest.fail("scored"))
        assert command(folders, out) == 2
    said = capsys.readouterr().err
    assert (
        f"{out / name}: the evaluation would overwrite a file that medjax did not write" in said
        and "--overwrite" in said
    )
    assert contents(out) == before
    assert command(folders, out, "--overwrite") == 0 and Result.load(out).pairs
    assert command(folders, out) == 0  # all of it is ours now


def test_every_file_of_an_evaluation_is_known_as_ours(folders, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(folders / "masks", folders / "other")
    assert command(folders, out, "--compare", str(folders / "other")) == 0
    found = sorted(contents(out))
    assert {
        "summary.json",
        "cases.csv",
        "comparison.json",
        "comparison.md",
        "compared/cases.csv",
        "report.html",
    } < set(found)
    assert [name for name in found if not written.is_ours(out, name)] == []
    assert cli.main(["report", str(out)]) == 0
    (out / "report.html").write_text("<html>mine</html>")
    assert (
        cli.main(["report", str(out)]) == 2
        and (out / "report.html").read_text() == "<html>mine</html>"
    )
    assert cli.main(["report", str(out), "--overwrite"]) == 0


def test_evaluations_of_an_earlier_version_are_ours(repository, tmp_path):
    extract(tmp_path)
    folder = tmp_path / "run" / "evaluation"
    names = sorted(contents(folder))
    assert (
        "plots/Blobs_Dice.svg" in names
        and [name for name in names if not written.is_ours(folder, name)] == []
    )
    Result.load(folder).write(folder)
    assert written.is_ours(folder, "plots/Blobs_Dice.svg")
    (folder / "plots" / "mine.svg").write_text("<svg/>")
    assert not written.is_ours(folder, "plots/mine.svg")


def test_a_run_refuses_before_it_predicts(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "table.md").write_text("mine")
    with pytest.raises(UsageError, match="did not write"):
        test.predict_and_score(None, {}, tmp_path, typed().evaluate, lambda what: None)


def test_tables_choices_and_gates_refuse_files_of_somebody_else(folders, tmp_path, capsys):
    assert command(folders, tmp_path / "out", "--no-report") == 0
    mine = tmp_path / "mine.json"
    mine.write_text("{}")
    same = ["--reference", str(folders / "labels"), "--prediction", str(folders / "masks")]
    for verb in (["combine", str(tmp_path / "out")], ["postprocess", *same]):
        assert cli.main([*verb, "-o", str(mine)]) == 2 and mine.read_text() == "{}"
        assert "--overwrite" in capsys.readouterr().err
        for _ in range(2):
            assert cli.main([*verb, "-o", str(tmp_path / f"{verb[0]}.json")]) == 0
        assert cli.main([*verb, "-o", str(tmp_path / f"{verb[0]}.json"), "--overwrite"]) == 0
    found = gates.Gates(("encoder/0",), ("a",), {"X": "CT"}, np.ones((1, 1, 1)), 1)
    (tmp_path / "gates").mkdir()
    (tmp_path / "gates" / "gates.md").write_text("mine")
    with pytest.raises(UsageError, match=r"gates\.md"):
        gates.write(found, tmp_path / "gates")
    gates.write(found, tmp_path / "fresh")
    gates.write(found, tmp_path / "fresh")


@pytest.mark.parametrize(
    "write",
    [
        prediction.write,
        lambda path, text: montage(*[np.zeros((2, 4, 4))] * 3, path, (1.0, 1.0, 1.0)),
    ],
)
def test_a_link_planted_under_a_temporary_or_final_name_is_not_followed(tmp_path, write):
    import os

    victim = tmp_path / "thesis.txt"
    victim.write_text("chapter 1")
    path = tmp_path / "out" / "report.html"
    path.parent.mkdir()
    path.with_name(f".report.html.{os.getpid()}.tmp").symlink_to(victim)
    path.symlink_to(victim)
    write(path, "text")
    assert victim.read_text() == "chapter 1" and not path.is_symlink()


def test_names_cannot_leave_their_place_in_any_file(tmp_path):
    corpus = Corpus("C", ((1, (EVIL,)), (2, ("=cmd|' /C calc'!A1",)), (3, ("'quoted",))))
    label = np.zeros((4, 8, 8), np.uint8)
    label[1:3, 2:6, 2:6], label[1:3, 2, 2], label[1:3, 3, 2] = 1, 2, 3
    path = save(tmp_path / "labels" / "x.nii.gz", label)
    result = evaluate(
        [Pair("=2+5", path, path), Pair("../../y", path, path), Pair(f"bad{EVIL}", path, None)],
        corpus,
        resamples=20,
    )
    out = tmp_path / "deep" / "er" / "out"
    result.write(out)
    present(result, out, montages=2, viewer_cases=0)
    inside = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} - {
        "labels/x.nii.gz"
    }
    assert (
        all(name.startswith("deep/er/out/") for name in inside)
        and len(list((out / "montages").iterdir())) == 2
    )
    markdown = (out / "table.md").read_text()
    assert (
        "<script>" not in markdown
        and "\x1b" not in markdown
        and "](http" not in markdown.replace("\\](", "")
    )
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\|x" in markdown
    blocks = [
        [line.replace("\\|", "").count("|") for line in part.splitlines()]
        for part in markdown.split("\n\n")
        if part.startswith("|")
    ]
    assert [len(counts) for counts in blocks] == [6, 5] and all(
        set(counts) == {counts[0]} for counts in blocks
    )
    with open(out / "cases.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert all(not cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row[:3])
    found = read_cases(out / "cases.csv")
    assert {row["case"] for row in found} == {"=2+5", "../../y"} and {
        row["class"] for row in found
    } == set(corpus.classes)
    for svg in (out / "plots").glob("*.svg"):
        assert "\x1b" not in svg.read_text() and "<script" not in svg.read_text()


def test_markdown_cells_hold_their_row():
    head, _, row, _ = tables.table(["class", "n"], [[tables.escaped("a|b\nc"), 3]])
    assert head.count("|") == 3 and row == "| a\\|b\\\\nc | 3 |"
