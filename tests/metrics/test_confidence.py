"""Confidence from the sidecars, and its rank correlation with Dice."""

import json

import nibabel as nib
import numpy as np
import pytest

from medjax.infer.owned import mark
from medjax.labels import Corpus
from medjax.metrics import confidence
from medjax.metrics.aggregate import Row
from medjax.metrics.evaluate import Result, evaluate, find_pairs
from medjax.report import evaluation

CORPUS = Corpus("One", ((1, ("a",)), (2, ("b",))))


def row(case, dice, told, name="a"):
    scores = {} if dice is None else {"Dice": dice}
    return Row(case, case, "One", name, "found", scores, confidence=told)


@pytest.mark.parametrize(
    ("dice", "expected"),
    [([0.1, 0.2, 0.6, 0.7, 0.9], 1.0), ([0.9, 0.8, 0.3, 0.2, 0.1], -1.0), ([0.5] * 5, None)],
)
def test_ranks_agree_disagree_or_say_nothing(dice, expected):
    told = [0.5, 0.55, 0.8, 0.9, 0.99]
    rows = [row(str(k), *pair) for k, pair in enumerate(zip(dice, told, strict=True))]
    cell = confidence.table(rows)["One"]["a"]
    assert cell["n"] == 5 and cell["mean"] == pytest.approx(np.mean(told))
    assert cell["spearman"] == (None if expected is None else pytest.approx(expected))
    assert confidence.said(cell) == ("constant" if expected is None else f"{expected:.2f}")


def test_few_cases_have_no_correlation_and_others_do_not_count():
    rows = [row(str(k), k / 10, k / 10 + 0.1) for k in range(4)]
    rows += [row("missed", 0.0, None), row("absent", None, 0.7), row("x", 0.5, None, "b")]
    found = confidence.table(rows)
    assert found["One"]["a"] == {"n": 4, "mean": pytest.approx(0.25), "spearman": None}
    assert confidence.said(found["One"]["a"]) == "n = 4: none"
    assert list(found["One"]) == ["a"]
    assert confidence.table([]) == {}


def test_the_worked_example_of_ranks():
    """1 - 6 sum(d^2) / (n (n^2 - 1)) with d = 1, 1, 0, 0, 0."""
    found = confidence.correlation(np.array([0.2, 0.1, 0.3, 0.4, 0.5]), np.arange(5.0))
    assert found == pytest.approx(1 - 6 * 2 / (5 * 24))


@pytest.fixture
def folders(tmp_path):
    """Six cases, of which more and more is found, the more confidently; b is never confident."""
    for part in ("labels", "masks"):
        (tmp_path / part).mkdir()
    for k in range(1, 7):
        label, mask = np.zeros((8, 4, 2), np.uint8), np.zeros((8, 4, 2), np.uint8)
        label[:6], mask[:k] = 1, 1
        label[7], mask[7] = 2, 2
        for part, values in (("labels", label), ("masks", mask)):
            nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / part / f"c{k}.nii.gz")
        told = {"a": 0.5 + k / 20, "b": None}
        side = mark("prediction") | {"case": f"c{k}", "complete": True, "confidence": told}
        files = {f"c{k}.nii.gz": (tmp_path / "masks" / f"c{k}.nii.gz").stat().st_size}
        (tmp_path / "masks" / f"c{k}.json").write_text(json.dumps(side | {"files": files}))
    return tmp_path


def test_an_evaluation_shows_the_correlation(folders):
    pairs, _ = find_pairs(str(folders / "labels"), str(folders / "masks"))
    result = evaluate(pairs, CORPUS, resamples=20)
    cell = result.tables["confidence"]["One"]["a"]
    assert (cell["n"], cell["spearman"]) == (6, pytest.approx(1))
    assert "b" not in result.tables["confidence"]["One"]
    result.write(folders / "out")
    summary = json.loads((folders / "out" / "summary.json").read_text())
    assert summary["confidence"]["One"]["a"] == cell
    assert summary["metric_per_case"][0]["confidence"] == {"a": 0.55}
    again = Result.load(folders / "out")
    assert again.rows == result.rows and again.tables == result.tables
    assert "| One | a | 6 | 0.675 | 1.00 |" in result.markdown()
    assert "rank correlation with Dice" in evaluation.scores(result)


@pytest.mark.parametrize("text", ["", "{", json.dumps({"confidence": {"a": 0.9}})])
def test_masks_without_a_sidecar_of_ours_have_none(folders, text):
    path = folders / "masks" / "c1.json"
    path.write_text(text) if text else path.unlink()
    assert confidence.read(folders / "masks" / "c1.nii.gz") == {}
    pairs, _ = find_pairs(str(folders / "labels"), str(folders / "masks"))
    found = evaluate(pairs, CORPUS, resamples=20)
    assert found.tables["confidence"]["One"]["a"]["n"] == 5


def test_without_any_confidence_nothing_is_shown(folders):
    for path in (folders / "masks").glob("*.json"):
        path.unlink()
    pairs, _ = find_pairs(str(folders / "labels"), str(folders / "masks"))
    result = evaluate(pairs, CORPUS, resamples=20)
    assert "confidence" not in result.tables and "onfidence" not in result.markdown()
    assert "onfidence" not in evaluation.scores(result)
    assert all("confidence" not in case for case in result.summary()["metric_per_case"])
