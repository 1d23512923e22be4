"""Evaluation of label files: nested classes, ignore voxels, geometry, isolated failures, and the
result files.
"""

import csv
import json

import nibabel as nib
import numpy as np
import pytest

from medjax.corpora.inputs import Case
from medjax.errors import LabelError, MetricError, UsageError
from medjax.labels import Corpus
from medjax.metrics.evaluate import Pair, evaluate, find_pairs, join

NESTED = Corpus("Liver", ((1, ("liver",)), (2, ("liver", "tumour"))), ignore=3)
AFFINE = np.diag([0.8, 0.8, 2.5, 1.0])


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0).astype(np.uint8), affine), path)
    return str(path)


@pytest.fixture
def folders(tmp_path):
    """Case a: tumour missed; b: perfect, no tumour; c: another grid; d: value 9 predicted; e: no
    prediction.
    """
    liver = np.zeros((6, 10, 10))
    liver[1:5, 2:8, 2:8] = 1
    tumour = liver.copy()
    tumour[2:4, 3:6, 3:6] = 2
    tumour[0] = 3
    for case, array in {"a": tumour, "b": liver, "c": liver, "d": liver, "e": liver}.items():
        save(tmp_path / "labels" / f"{case}.nii.gz", array)
    missed = liver.copy()
    missed[0] = 1  # over voxels that nobody annotated: must not count
    strange = liver.copy()
    strange[0, 0, 0] = 9
    save(tmp_path / "out" / "a.nii.gz", missed)
    save(tmp_path / "out" / "b.nii.gz", liver)
    save(tmp_path / "out" / "c.nii.gz", liver, np.diag([-0.8, 0.8, 2.5, 1.0]))
    save(tmp_path / "out" / "d.nii.gz", strange)
    save(tmp_path / "out" / "z.nii.gz", liver)
    return tmp_path / "labels", tmp_path / "out"


def test_nested_classes_ignore_voxels_and_failures(folders, tmp_path):
    pairs, extra = find_pairs(*folders)
    assert (
        [p.case for p in pairs] == list("abcde")
        and pairs[-1].prediction is None
        and [e[-8:] for e in extra] == ["z.nii.gz"]
    )
    result = evaluate(pairs, NESTED, surface=True, resamples=200, unmatched=extra)
    assert [f["case"] for f in result.failed] == ["c", "d", "e"]
    reasons = [f["message"] for f in result.failed]
    assert (
        "different geometry" in reasons[0]
        and "undeclared label values" in reasons[1]
        and "no prediction" in reasons[2]
    )
    liver, tumour = (result.tables["cells"]["Liver"][n] for n in ("liver", "tumour"))
    assert liver["Dice"]["mean"] == 1.0 and liver["HD95"]["mean"] == 0.0 and liver["Dice"]["n"] == 2
    assert tumour["Dice"] | {"interval": None} == {
        "mean": 0.0,
        "sd": None,
        "median": 0.0,
        "q1": 0.0,
        "q3": 0.0,
        "n": 1,
        "interval": None,
        "mean_absent_as_one": 0.5,
    }
    assert tumour["n_missed"] == 1 and tumour["n_absent"] == 1
    assert tumour["HD95"]["mean"] == pytest.approx(np.linalg.norm([6 * 2.5, 8, 8]))
    counts = result.rows[0].counts
    assert (
        counts.tp == 4 * 36 and counts.fp == 0 and sum(counts) == 500
    )  # one slice of 100 voxels is left out


def test_result_files(folders, tmp_path):
    pairs, extra = find_pairs(*folders, {n: Case(n, (), patient="p1") for n in "ab"})
    evaluate(pairs, NESTED, resamples=100, unmatched=extra).write(tmp_path / "report")
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert list(summary)[:3] == ["metric_per_case", "mean", "foreground_mean"]
    first = summary["metric_per_case"][0]
    assert first["reference_file"].endswith("labels/a.nii.gz") and first[
        "prediction_file"
    ].endswith("out/a.nii.gz")
    assert set(first["metrics"]) == {"(1, 2)", "2"}
    expected = {
        "Dice": 1.0,
        "IoU": 1.0,
        "volume_error_ml": 0.0,
        "TP": 144,
        "FP": 0,
        "FN": 0,
        "TN": 356,
        "n_ref": 144,
        "n_pred": 144,
    }
    assert first["metrics"]["(1, 2)"] == expected
    assert (
        summary["metric_per_case"][1]["metrics"]["2"]["Dice"] is None
        and summary["mean"]["2"]["Dice"] == 0.0
    )
    assert (
        summary["foreground_mean"]["Dice"] == 0.5
        and summary["n_failed"] == 3
        and summary["labels"]["Liver"]["2"] == "tumour"
    )
    with open(tmp_path / "report" / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["case", "dataset", "class", "metric", "value"]
    found = {(r["case"], r["class"], r["metric"]): r["value"] for r in rows}
    assert (
        found["a", "tumour", "status"] == "missed"
        and found["b", "tumour", "Dice"] == ""
        and found["a", "liver", "n_ref"] == "144"
    )
    text = (tmp_path / "report" / "table.md").read_text()
    assert "| liver | 1" in text and "- Liver/e: no prediction" in text and "nan" not in text


def test_hidden_classes_are_scored_with_the_full_corpus(folders):
    view = NESTED.view(["liver"], "OnlyLiver")
    pairs = find_pairs(*folders)[0][:2]
    assert set(evaluate(pairs, view, resamples=10).tables["cells"]["OnlyLiver"]) == {"liver"}
    hidden = evaluate(pairs, view, classes=["tumour"], resamples=10)
    assert hidden.tables["cells"]["OnlyLiver"]["tumour"]["n_missed"] == 1
    with pytest.raises(LabelError, match="unknown class"):
        evaluate(pairs, view, classes=["tumor"])


def test_results_of_several_corpora_join(folders):
    pairs = find_pairs(*folders)[0][:2]
    other = Corpus("Other", ((1, ("liver",)), (2, ("vessel",)), (3, ("gland",))))
    both = join([evaluate(pairs, NESTED, resamples=50), evaluate(pairs, other, resamples=50)])
    assert (
        set(both.tables["cells"]) == {"Liver", "Other"}
        and both.tables["classes"]["liver"]["Dice"]["n_cells"] == 2
    )
    assert "Other/1" in both.summary()["mean"] and "## All" in both.markdown()
    with pytest.raises(MetricError, match="different settings"):
        join(
            [
                evaluate(pairs, NESTED, resamples=50),
                evaluate(pairs, other, surface=True, resamples=50),
            ]
        )
    with pytest.raises(MetricError, match="two results"):
        join([evaluate(pairs, NESTED, resamples=50)] * 2)


def test_nothing_to_evaluate_is_a_usage_error(folders, tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        find_pairs(folders[0], tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no prediction has the name"):
        find_pairs(folders[0], tmp_path / "empty")
    with pytest.raises(UsageError, match="nothing to evaluate"):
        evaluate([], NESTED)


def test_a_damaged_file_fails_alone(folders):
    pairs = find_pairs(*folders)[0]
    with open(pairs[0].prediction, "r+b") as file:
        file.truncate(60)
    result = evaluate(pairs[:2], NESTED, resamples=10)
    assert [f["case"] for f in result.failed] == ["a"] and "truncated" in result.failed[0][
        "message"
    ]
    assert result.tables["cells"]["Liver"]["liver"]["Dice"]["n"] == 1
    assert isinstance(result.pairs[0][1], Pair)


@pytest.mark.parity
def test_scores_equal_nnunet(folders):
    evaluation = pytest.importorskip("nnunetv2.evaluation.evaluate_predictions")
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO

    pair = find_pairs(*folders)[0][0]
    expected = evaluation.compute_metrics(
        pair.reference, pair.prediction, NibabelIO(), [(1, 2), 2], ignore_label=3
    )["metrics"]
    found = evaluate([pair], NESTED, resamples=10).summary()["metric_per_case"][0]["metrics"]
    for label, key in (((1, 2), "(1, 2)"), (2, "2")):
        assert {k: found[key][k] for k in expected[label]} == pytest.approx(expected[label])
