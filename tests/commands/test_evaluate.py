"""`medjax evaluate` and `medjax report` as a user meets them: files, exit codes, pages."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest

from medjax import cli
from medjax.corpora.scoring import read_protocol
from medjax.errors import UsageError
from medjax.metrics.result import Result
from tests.report.test_pages import parsed

SPEC = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": [1, 2], "tumour": 2},
    "regions_class_order": [1, 2],
    "numTraining": 4,
    "file_ending": ".nii.gz",
    "medjax": {"tolerance_mm": {"liver": 3.0}, "patients": {"regex": "^(p[0-9]+)"}},
}


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 1, 2, 1]) if affine is None else affine
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0).astype(np.int16), affine), path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Dataset001_Liver with five cases of four patients, and two models: one shifts by a slice, one
    by three voxels of a slice.
    """
    root = tmp_path_factory.mktemp("raw") / "Dataset001_Liver"
    for k, case in enumerate(("p1_a", "p1_b", "p2_a", "p3_a", "p4_a")):
        label = np.zeros((8, 20, 20))
        label[2:6, 4:14, 4:14] = 1
        label[3:5, 6 : 8 + k, 6:9] = 2
        image = np.random.default_rng(k).normal(40, 20, label.shape) + 60 * label
        save(root / "imagesTr" / f"{case}_0000.nii.gz", image)
        save(root / "labelsTr" / f"{case}.nii.gz", label)
        save(root.parent / "slice" / f"{case}.nii.gz", np.roll(label, 1, 0))
        save(
            root.parent / "three" / f"{case}.nii.gz",
            np.where(np.roll(label, 3, 1) == 2, 1, np.roll(label, 3, 1)),
        )
    (root / "dataset.json").write_text(json.dumps(SPEC))
    return root


def test_evaluate_compares_two_models_and_writes_everything(dataset, tmp_path, capsys):
    out = tmp_path / "out"
    models = [
        "--prediction",
        str(dataset.parent / "slice"),
        "--compare",
        str(dataset.parent / "three"),
        "--resamples",
        "200",
    ]
    code = cli.main(
        [
            "evaluate",
            "--reference",
            str(dataset / "labelsTr"),
            *models,
            "--group",
            "all=liver,tumour",
            "--montages",
            "1",
            "-o",
            str(out),
        ]
    )
    printed = capsys.readouterr().out
    assert code == 0 and "## three against slice" in printed and str(out / "report.html") in printed
    tables = (
        "summary.json",
        "cases.csv",
        "table.md",
        "comparison.json",
        "comparison.md",
        "compared/summary.json",
    )
    for name in (*tables, "plots/Liver_Dice.svg"):
        assert (out / name).stat().st_size > 100
    assert len(list((out / "montages").glob("*.png"))) == 1
    summary = json.loads((out / "summary.json").read_text())
    assert summary["settings"]["tolerance_mm"] == {"liver": 3.0, "tumour": 1.0}
    cell = summary["cells"]["Liver"]["liver"]
    assert (
        cell["Dice"]["mean"] == pytest.approx(3 / 4)
        and cell["HD95"]["mean"] == 2.0
        and cell["NSD"]["mean"] == 1.0
    )  # one slice of 2 mm
    assert (
        summary["mean"]["2"]["n"] == 5
        and summary["mean"]["2"]["n_missing"] == 0
        and summary["mean"]["2"]["intervals"]["NSD"] is None
    )  # of fewer than five patients
    assert {case["patient"] for case in summary["metric_per_case"]} == {
        "p1",
        "p2",
        "p3",
        "p4",
    } and summary["versions"]["medjax"]
    comparison = json.loads((out / "comparison.json").read_text())["cells"]["Liver"]
    assert (
        comparison["tumour"]["Dice"]["second"] == 0.0
        and comparison["tumour"]["Dice"]["n_patients"] == 4
    )
    with open(out / "cases.csv", newline="") as file:
        assert list(next(csv.DictReader(file))) == ["case", "dataset", "class", "metric", "value"]
    page = parsed(out / "report.html")
    assert len(json.loads(page.scripts["scans"])) == 5
    assert list(json.loads(page.scripts["scan-0"])["layers"]) == [
        "reference",
        "prediction",
        "differences",
    ]
    sections = [attributes["id"] for tag, attributes in page.found if tag == "section"]
    assert sections == ["scores", "comparison", "viewer", "plots", "cases", "worst"]


def test_a_whole_data_set_as_reference_and_a_report_made_later(dataset, tmp_path, capsys):
    few = tmp_path / "few"
    few.mkdir()
    for case in ("p1_a", "p3_a"):
        (few / f"{case}.nii.gz").write_bytes(
            (dataset.parent / "slice" / f"{case}.nii.gz").read_bytes()
        )
    out = tmp_path / "out"
    code = cli.main(
        [
            "evaluate",
            "--reference",
            str(dataset),
            "--prediction",
            str(few),
            "--no-report",
            "--no-surface",
            "--quiet",
            "-o",
            str(out),
        ]
    )
    assert code == 0 and not (out / "report.html").exists()
    result = Result.load(out)
    assert [pair.case for _, pair in result.pairs] == ["p1_a", "p3_a"] and result.tables[
        "metrics"
    ] == ["Dice", "IoU", "volume_error_ml"]
    assert result.rows[0].counts.n_reference == 400 and result.rows[0].scores[
        "Dice"
    ] == pytest.approx(3 / 4)
    capsys.readouterr()
    assert cli.main(["report", str(out), "--viewer-cases", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    assert len(json.loads(parsed(out / "report.html").scripts["scans"])) == 1
    assert (
        cli.main(["report", str(tmp_path)]) == 2 and "nothing to report" in capsys.readouterr().err
    )
    assert Result.load(out).markdown() == result.markdown() == (out / "table.md").read_text()


def test_one_broken_pair_fails_alone_and_exits_3(dataset, tmp_path, capsys):
    bad = tmp_path / "bad"
    for path in sorted((dataset.parent / "slice").iterdir()):
        bad.mkdir(exist_ok=True)
        (bad / path.name).write_bytes(path.read_bytes())
    shifted = np.asarray(nib.load(bad / "p2_a.nii.gz").dataobj).transpose(2, 1, 0)
    save(
        bad / "p2_a.nii.gz", shifted, np.diag([-1.0, 1, 2, 1])
    )  # nnU-Net's evaluator scores this 1.0 if voxels agree
    (bad / "p3_a.nii.gz").write_bytes((bad / "p3_a.nii.gz").read_bytes()[:90])
    (bad / "p4_a.nii.gz").unlink()
    code = cli.main(
        [
            "evaluate",
            "--reference",
            str(dataset / "labelsTr"),
            "--prediction",
            str(bad),
            "--montages",
            "0",
            "-o",
            str(tmp_path / "out"),
        ]
    )
    errors = capsys.readouterr().err
    assert (
        code == 3
        and "p2_a failed" in errors
        and "different geometry" in errors
        and "truncated" in errors
        and "no prediction" in errors
    )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2 and summary["n_failed"] == 3
    assert "Not scored" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    "extra, message",
    [
        (["--classes", "livr"], "did you mean liver"),
        (["--tolerance-mm", "tumor=2"], "did you mean tumour"),
        (["--tolerance-mm", "liver=-1"], "not a tolerance"),
        (["--group", "organs"], "not a group"),
        (["--labels", "/nowhere/dataset.json"], "no dataset.json"),
        (["--images", "/nowhere"], "no such file"),
    ],
)
def test_usage_errors_exit_2_before_any_work(dataset, tmp_path, capsys, extra, message):
    arguments = [
        "--reference",
        str(dataset / "labelsTr"),
        "--prediction",
        str(dataset.parent / "slice"),
        "-o",
        str(tmp_path / "out"),
    ]
    assert cli.main(["evaluate", *arguments, *extra]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_protocol_of_a_data_set(dataset, tmp_path):
    found = read_protocol(dataset)
    assert found.tolerance_mm == {"liver": 3.0} and found.sources["p1_b"].patient == "p1"
    assert found.sources["p1_a"].images[0].endswith("p1_a_0000.nii.gz")
    for wrong in ({"livr": 1}, {"liver": -1}, {"liver": "2"}, True):
        (tmp_path / "dataset.json").write_text(
            json.dumps(SPEC | {"medjax": {"tolerance_mm": wrong}})
        )
        with pytest.raises(UsageError, match=r"tolerance|livr"):
            read_protocol(tmp_path / "dataset.json")
    (tmp_path / "dataset.json").write_text(json.dumps(SPEC | {"medjax": {"tolerance_mm": 2}}))
    alone = read_protocol(tmp_path / "dataset.json", dataset / "imagesTr")
    assert alone.tolerance_mm == {"liver": 2.0, "tumour": 2.0} and len(alone.sources) == 5


def test_a_totalsegmentator_data_set_with_overlapping_masks_as_reference(tmp_path, capsys):
    root = tmp_path / "TS"
    liver, vessel = np.zeros((2, 8, 12, 12))
    liver[2:6, 2:9, 2:9], vessel[3:5, 6:11, 6:8] = 1, 1
    for case in ("s1", "s2"):
        save(root / case / "ct.nii.gz", liver * 50)
        for name, mask in {"liver": liver, "vessel": vessel}.items():
            save(root / case / "segmentations" / f"{name}.nii.gz", mask)
            save(tmp_path / "out" / case / f"{name}.nii.gz", np.roll(mask, int(name == "liver"), 0))
    code = cli.main(
        [
            "evaluate",
            "--reference",
            str(root),
            "--prediction",
            str(tmp_path / "out"),
            "--quiet",
            "-o",
            str(tmp_path / "scores"),
        ]
    )
    assert code == 0, capsys.readouterr().err
    result = Result.load(tmp_path / "scores")
    assert {(row.name, row.scores["Dice"]) for row in result.rows} == {
        ("liver", 0.75),
        ("vessel", 1.0),
    } and len(result.rows) == 4
    page = tmp_path / "scores" / "report.html"
    first = json.loads(parsed(page).scripts["scan-0"])
    seen = {label["name"] for label in first["layers"]["reference"]["labels"] if label["seen"]}
    assert seen == {"liver", "vessel", "liver+vessel"}
    page.unlink()
    assert cli.main(["report", str(tmp_path / "scores")]) == 0
    assert json.loads(parsed(page).scripts["scan-0"]) == first
