"""Verification finds every planted fault, each with file, finding and fix, and never stops at the
first.
"""

import json
import os

import nibabel as nib
import numpy as np
import pytest

from medjax.corpora.verify import verify
from medjax.errors import UsageError
from tests.support.raw import save, write_corpus

SHAPE = (8, 10, 9)


def change(path, function=lambda a: a, affine=None, dtype=None):
    """Rewrites a NIfTI file with its (x, y, z) array, affine or type changed."""
    image = nib.load(path)
    array = function(np.asanyarray(image.dataobj).copy())
    new = nib.Nifti1Image(
        array if dtype is None else array.astype(dtype),
        image.affine if affine is None else affine(image.affine.copy()),
    )
    new.set_qform(new.affine, 1)
    new.set_sform(new.affine, 1)
    nib.save(new, path)


def put(value, dtype=None):
    def function(array):
        array = array if dtype is None else array.astype(dtype)
        array[3, 2, 1] = value
        return array

    return function


def shift(mm):
    def move(affine):
        affine[0, 3] += mm
        return affine

    return move


@pytest.fixture
def corpus(tmp_path):
    folder = write_corpus(tmp_path / "Task01_A", 3, SHAPE, vary=False)
    return folder, folder / "imagesTr" / "case_001.nii.gz", folder / "labelsTr" / "case_001.nii.gz"


def only(report, severity="error"):
    (problem,) = report.problems
    assert problem["severity"] == severity and report.ok == (severity == "warning")
    return problem


def test_a_sound_data_set(corpus):
    report = verify(corpus[0], workers=2)
    assert report.ok and report.problems == () and report.cases == 3 and report.empty == ()
    labels = [
        np.asanyarray(nib.load(corpus[0] / "labelsTr" / f"case_{i:03d}.nii.gz").dataobj)
        for i in range(3)
    ]
    assert [row["voxels"][2] for row in report.rows] == [int((a == 2).sum()) for a in labels]
    assert (
        report.classes["organ"]["voxels"] == sum(int((a == 1).sum()) for a in labels)
        and report.classes["organ"]["cases"] == 3
    )
    assert report.rows[0]["shape"] == SHAPE and report.rows[0]["spacing_mm"] == (1, 1, 1)
    text = report.text()
    assert (
        "3 cases, MR, channels MRI" in text
        and "8 x 10 x 9" in text
        and "verified, 0 errors, 0 warnings" in text
    )
    assert json.loads(json.dumps(report.to_json()))["ok"] is True


def test_one_line_per_problem(corpus):
    folder, _, label = corpus
    change(label, put(7))
    problem = only(verify(folder))
    assert problem["file"] == str(label) and problem["what"] == "undeclared label value 7"
    assert (
        problem["found"] == "1 voxels, first at (1, 2, 3) (z, y, x)"
        and problem["expected"] == "one of [0, 1, 2]"
    )
    text = verify(folder).text()
    assert (
        f"ERROR {label}: undeclared label value 7; found 1 voxels, first at (1, 2, 3) (z, y, x); "
        "expected one of [0, 1, 2]; fix: " in text
    )


@pytest.mark.parametrize(
    ("which", "how", "words"),
    [
        ("label", {"function": put(1.5, np.float32)}, "not whole numbers"),
        ("label", {"function": put(-1, np.int16)}, "negative label values"),
        ("label", {"function": lambda a: a[:, :, 1:]}, "different shapes"),
        ("label", {"affine": shift(1.0)}, "different geometry"),
        ("image", {"function": put(np.nan)}, "non-finite"),
        ("image", {"function": put(np.inf)}, "non-finite"),
        (
            "image",
            {"function": lambda a: np.stack([a, a], -1)},
            "a 4D image where one 3D scan is declared",
        ),
    ],
)
def test_bad_values_and_geometry(corpus, which, how, words):
    folder, image, label = corpus
    change(label if which == "label" else image, **how)
    problem = only(verify(folder))
    assert words in problem["what"] and "case_001" in problem["file"] and problem["found"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:-8] + bytes(8), "CRC"),
        (lambda data: b"", "not NIfTI"),
        (lambda data: b"<html>no scan here</html>", "not NIfTI"),
    ],
)
def test_damaged_files(corpus, damage, words):
    folder, image, _ = corpus
    image.write_bytes(damage(image.read_bytes()))
    problem = only(verify(folder))
    assert words.lower() in problem["what"].lower() and problem["file"] == str(image)


def test_missing_file_and_broken_link(corpus):
    folder, _, label = corpus
    label.unlink()
    other = folder / "imagesTr" / "case_000.nii.gz"
    other.unlink()
    os.symlink(folder / "nowhere", other)
    report = verify(folder)
    assert sorted(p["what"] for p in report.problems) == [
        "image of case 'case_000' is a broken symbolic link",
        "label of case 'case_001' is missing",
    ]
    assert report.cases == 3 and len(report.rows) == 1


def test_small_shift_is_accepted(corpus):
    folder, _, label = corpus
    change(label, affine=shift(1e-5))
    assert verify(folder).problems == ()
    change(label, affine=shift(0.1))
    assert "apart at a corner" in only(verify(folder), "warning")["what"]


def test_constant_image_and_empty_label(corpus):
    folder, image, label = corpus
    change(image, np.ones_like)
    assert only(verify(folder), "warning")["what"] == "constant image"
    change(label, np.zeros_like)
    report = verify(folder)
    assert report.empty == ("case_001",) and report.classes["organ"]["cases"] == 2
    assert "1 empty label maps: case_001" in report.text()


def test_annotated_class_that_never_occurs(corpus):
    folder = corpus[0]
    spec = json.loads((folder / "dataset.json").read_text())
    spec["labels"]["5"] = "ghost"
    (folder / "dataset.json").write_text(json.dumps(spec))
    problem = only(verify(folder), "warning")
    assert problem["what"] == "class 'ghost' is annotated but occurs in no case" and problem[
        "file"
    ].endswith("dataset.json")
    spec["medjax"] = {"annotated": ["organ", "tumour"]}
    (folder / "dataset.json").write_text(json.dumps(spec))
    assert verify(folder).problems == () and "hidden" in verify(folder).text()


def test_channels_on_different_grids(tmp_path):
    folder = write_corpus(
        tmp_path / "Dataset001_A", 2, SHAPE, "nnunet", channels=("T1", "T2"), vary=False
    )
    change(folder / "imagesTr" / "case_001_0001.nii.gz", affine=shift(2.0))
    problem = only(verify(folder))
    assert "different geometry" in problem["what"] and "2 mm" in problem["found"]
    assert "case_001_0000" in problem["file"] and "case_001_0001" in problem["file"]


def test_all_problems_of_all_cases(corpus):
    folder, image, label = corpus
    change(label, put(9))
    image.write_bytes(b"nothing")
    change(folder / "labelsTr" / "case_002.nii.gz", put(8), affine=shift(3))
    seen = []
    report = verify(folder, workers=2, progress=lambda *a: seen.append(a))
    whats = sorted(p["what"] for p in report.problems)
    assert len(whats) == 4 and whats[2:] == ["undeclared label value 8", "undeclared label value 9"]
    assert [a[0] for a in seen] == [1, 2, 3] and {(a[2], a[3]) for a in seen} >= {
        ("case_000", "ok"),
        ("case_002", "failed"),
    }
    assert not report.ok and "NOT usable as it is, 4 errors" in report.text()


def test_wrong_description(corpus, tmp_path):
    folder = corpus[0]
    (folder / "dataset.json").write_text(
        json.dumps({"modality": {"0": "MRI"}, "labels": {"background": 0, "a": -2}})
    )
    assert (
        "no integer value" in only(verify(folder))["what"]
        and "no integer value" in verify(folder).text()
    )
    with pytest.raises(UsageError, match="no such data set folder"):
        verify(tmp_path / "absent")


def test_sparse_values_and_ignore(tmp_path):
    folder = write_corpus(
        tmp_path / "B", 1, (12, 12, 12), "nnunet", {"a": 5, "b": 200, "ignore": 255}
    )
    label = folder / "labelsTr" / "case_000.nii.gz"
    change(label, put(255))
    report = verify(folder)
    assert report.problems == () and set(report.rows[0]["voxels"]) == {0, 5, 200, 255}


def test_wide_label_values(tmp_path):
    folder = write_corpus(tmp_path / "C", 1, (12, 12, 12), labels={"a": 1000})
    save(folder / "labelsTr" / "case_000.nii.gz", np.full((12, 12, 12), 70000, np.int32))
    assert "undeclared label value 70000" in {p["what"] for p in verify(folder).problems}


@pytest.mark.data
def test_real_corpora_verify(real_data):
    report = verify(real_data / "Task04_Hippocampus")
    assert report.ok and report.cases == 213 and report.classes["Anterior"]["cases"] == 213
