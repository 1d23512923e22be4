"""Sections of an evaluation's page, and which cases are worth a picture."""

import dataclasses
import re

import nibabel as nib
import numpy as np
import pytest

from medjax.corpora.inputs import Case
from medjax.labels import Corpus
from medjax.metrics.aggregate import Row
from medjax.metrics.compare import compare
from medjax.metrics.counts import Counts
from medjax.metrics.result import Pair, build_result, join
from medjax.report import evaluation, figures

EVIL = "<b>gtv</b>"
SETTINGS = {"surface": False, "tolerance_mm": None, "definition": None}


def row(case, name, dice, status="found", counts=(10, 5, 5, 80)):
    scores = {} if dice is None else {"Dice": dice, "volume_error_ml": counts[1] - counts[2]}
    return Row(case, case, "A", name, status, scores, Counts(*counts), 0.1)


def result(rows, corpus="A", sources=None):
    rows = [dataclasses.replace(r, corpus=corpus) for r in rows]
    described = Corpus(corpus, ((1, ("liver",)), (2, ("liver", EVIL))))
    pairs = [
        (corpus, Pair(c, f"r/{c}.nii.gz", f"p/{c}.nii.gz", source=(sources or {}).get(c)))
        for c in dict.fromkeys(r.case for r in rows)
    ]
    classes = {corpus: ("liver", EVIL)}
    return build_result({corpus: described}, classes, rows, pairs, [], [], SETTINGS, None, 50, 0)


@pytest.fixture(scope="module")
def scored():
    """Case a is good, b is bad, c misses a class, of d nothing is there."""
    return result(
        [
            row("a", "liver", 0.9),
            row("a", EVIL, 0.8, counts=(10, 9, 1, 80)),
            row("b", "liver", 0.5),
            row("b", EVIL, None, status="absent", counts=(0, 0, 0, 100)),
            row("c", "liver", 0.7),
            row("c", EVIL, 0.0, status="missed", counts=(0, 0, 4, 96)),
            row("d", "liver", None, status="absent", counts=(0, 0, 0, 100)),
            row("d", EVIL, None, status="absent", counts=(0, 0, 0, 100)),
        ]
    )


def cells(html):
    """The rows of all tables as plain text."""
    rows = re.findall(r"<tr.*?>(.*?)</tr>", html, re.DOTALL)
    return [
        [re.sub(r"<[^>]*>", " ", c).strip() for c in re.findall(r"<t[dh].*?>(.*?)</t[dh]>", r)]
        for r in rows
    ]


def test_scores_of_every_class(scored):
    html = evaluation.scores(scored)
    assert EVIL not in html and "&lt;b&gt;gtv" in html
    head, liver, gtv, total = cells(html)
    assert head == [
        "class",
        "n",
        "missed",
        "false positive",
        "absent",
        "Dice",
        "volume error (ml)",
    ]
    assert liver[5].startswith("0.700") and liver[1:5] == ["3", "0", "0", "1"]
    assert gtv[5].startswith("0.400") and gtv[1:5] == ["2", "1", "0", "2"]
    assert total[0] == "mean over classes" and total[5].startswith("0.550")
    assert "All" not in html


def test_several_corpora_are_pooled(scored):
    both = join([scored, result([row("z", "liver", 0.3), row("z", EVIL, 0.1)], "B")])
    html = evaluation.scores(both)
    assert "<h3>Classes over corpora</h3>" in html and "<h3>All</h3>" in html
    assert cells(html)[-1][1].startswith("0.375")  # the mean of 0.7, 0.4, 0.3 and 0.1


def test_one_row_per_case_with_its_worst_class(scored):
    head, *rows = cells(evaluation.cases(scored))
    assert head[2] == "mean Dice"
    assert [(r[0], r[2]) for r in rows] == [("a", "0.85"), ("b", "0.5"), ("c", "0.35"), ("d", "-")]
    assert rows[0][3].split()[-1] == "0.8" and rows[2][4] == "&lt;b&gt;gtv&lt;/b&gt;"


def test_long_lists_are_cut_and_say_so(scored, monkeypatch):
    monkeypatch.setattr(evaluation, "CASE_ROWS", 2)
    html = evaluation.cases(scored)
    assert "The first 2 of 4 cases" in html and len(cells(html)) == 3


def test_plots_are_those_that_have_numbers(scored):
    drawn = evaluation.figures(scored)
    assert list(drawn) == ["A_Dice", "A_liver_volume", f"A_{EVIL}_volume"]
    assert drawn["A_Dice"].count("<circle") == 5
    # (TP + FN + TP + FP) / 2 voxels of 0.1 ml
    assert "a: +8 ml at 1.5 ml" in drawn[f"A_{EVIL}_volume"]


def test_paired_differences(scored):
    better = result(
        [row(c, "liver", d) for c, d in zip("abc", (0.95, 0.9, 0.8), strict=True)]
        + [row(c, EVIL, None, status="absent") for c in "abc"]
    )
    html = evaluation.comparison(compare(scored, better, names=("old", "<new>"), resamples=50))
    assert "&lt;new&gt; minus old" in html and "<new>" not in html
    head, liver, *_ = cells(html)
    assert head[:5] == ["class", "corpus", "old", "&lt;new&gt;", "difference"]
    assert liver[2:4] == ["0.700", "0.883"] and liver[4].startswith("0.183") and liver[-1] == "3"


def test_only_pictures_that_are_there_are_shown(tmp_path):
    (tmp_path / "a.png").write_bytes(b"PNG")
    html = evaluation.pictures([("A & b", tmp_path / "a.png"), ("c", tmp_path / "none.png")])
    assert html.count("<figure>") == 1 and "A &amp; b" in html and "UE5H" in html


def test_the_worst_come_first_and_unscored_cases_last(scored):
    assert [(p.case, d) for _, p, d in figures.ranked(scored)] == [
        ("c", pytest.approx(0.35)),
        ("b", 0.5),
        ("a", pytest.approx(0.85)),
        ("d", None),
    ]


def test_the_viewer_shows_the_worst_the_middle_and_the_best_of_every_corpus():
    first = result([row(f"a{k}", "liver", k / 10) for k in range(8)])
    second = result([row(f"b{k}", "liver", k / 10) for k in range(2)], "B")
    both = join([first, second])
    chosen = [p.case for _, p, _ in figures.chosen(both, 6)]
    assert chosen == ["a0", "b0", "a4", "b1", "a7"]  # one worst of each, then middle and best
    assert [p.case for _, p, _ in figures.chosen(both, 2)] == ["a0", "b0"]
    assert figures.chosen(both, 0) == []


def test_what_the_viewer_is_told(scored):
    source = Case("c", ("c_0000.nii.gz", "c_0001.nii.gz"))
    one = result([row("c", "liver", 0.25), row("c", EVIL, None)], sources={"c": source})
    [shown] = figures.shown(one, 1)
    assert shown.title == "c  (mean Dice 0.250)" and shown.key == "A/c"
    assert "c_0000.nii.gz" in repr(shown) and "c_0001.nii.gz" not in repr(shown.images)
    both = join([scored, result([row("z", "liver", None)], "B")])
    titles = [entry.title for entry in figures.shown(both, 10)]
    assert titles[0].startswith("A/c") and "B/z" in titles


def test_a_picture_that_cannot_be_drawn_is_recorded(tmp_path):
    array = np.zeros((3, 8, 9), np.uint8)
    array[1, 2:6, 3:7] = 1
    for folder in "rp":
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(array.T, np.eye(4)), tmp_path / folder / "a.nii.gz")
    found = result([row("a", "liver", 0.9), row("b", "liver", 0.2)])
    pairs = tuple(
        (corpus, Pair(p.case, str(tmp_path / p.reference), str(tmp_path / p.prediction)))
        for corpus, p in found.pairs
    )
    found = type(found)(**(vars(found) | {"pairs": pairs}))
    drawn, failed = figures.montages(found, tmp_path, 5)
    assert [title for title, _ in drawn] == ["A/a, mean Dice 0.900"]
    assert drawn[0][1] == tmp_path / "montages" / "A_a.png" and drawn[0][1].is_file()
    assert [(f["corpus"], f["case"]) for f in failed] == [("A", "b")]
    assert "b.nii.gz" in failed[0]["path"]
