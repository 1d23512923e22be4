"""Masks of all classes of a case, from a label map or from one file per class: nested, overlapping,
ignored and missing ones.
"""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.corpora.inputs import Case
from medjax.errors import DataError, MetricError
from medjax.labels import Corpus
from medjax.metrics import counts, side
from medjax.metrics.evaluate import Pair, evaluate, find_pairs
from medjax.scans.paths import Mask

NESTED = Corpus("Liver", ((2, ("liver",)), (5, ("liver", "tumour")), (9, ("vessel",))), ignore=7)


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 1, 2, 1]) if affine is None else affine
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0).astype(np.uint8), affine), path)
    return str(path)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_counts_of_nested_classes_are_those_of_brute_force(tmp_path_factory, seed):
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("maps")
    values = np.array([0, 2, 5, 9, 7])
    reference, prediction = values[
        rng.integers(0, 5, (2, 3, 6, 5)) * (rng.random((2, 3, 6, 5)) < 0.5)
    ]
    prediction[prediction == 7] = 0
    pair = Pair("a", save(folder / "r.nii.gz", reference), save(folder / "p.nii.gz", prediction))
    for row in evaluate([pair], NESTED, resamples=2).rows:
        ids = {"liver": [2, 5], "tumour": [5], "vessel": [9]}[row.name]
        assert row.counts == counts.count(
            np.isin(reference, ids), np.isin(prediction, ids), valid=reference != 7
        )


@pytest.fixture
def overlapping(tmp_path):
    """Liver and vessel that overlap, which no label map of one value per voxel can hold: reference
    and prediction as files per class.
    """
    liver, vessel = np.zeros((6, 12, 12)), np.zeros((6, 12, 12))
    liver[1:5, 2:9, 2:9], vessel[2:4, 6:11, 6:8] = 1, 1
    for name, array in {"liver": liver, "tumour": liver * 0, "vessel": vessel}.items():
        save(tmp_path / "truth" / "a" / f"{name}.nii.gz", array)
    for name, array in {
        "liver": np.roll(liver, 1, 0),
        "tumour": liver * 0,
        "vessel": vessel,
    }.items():
        save(tmp_path / "out" / "a" / f"{name}.nii.gz", array)
    return tmp_path


def test_overlapping_classes_as_files_per_class(overlapping):
    pairs, _ = find_pairs(overlapping / "truth", overlapping / "out")
    cells = evaluate(pairs, NESTED, surface=True, resamples=2).tables["cells"]["Liver"]
    assert (
        cells["vessel"]["Dice"]["mean"] == 1.0
        and cells["vessel"]["HD95"]["mean"] == 0.0
        and cells["tumour"]["n_absent"] == 1
    )
    save(overlapping / "out" / "a.nii.gz", np.zeros((6, 12, 12)))  # a label map beside the folder
    assert find_pairs(overlapping / "truth", overlapping / "out", per_class=True)[0] == pairs
    assert find_pairs(overlapping / "truth", overlapping / "out")[0][0].prediction.endswith(
        "out/a.nii.gz"
    )
    assert (
        cells["liver"]["Dice"]["mean"] == pytest.approx(3 / 4)
        and cells["liver"]["HD95"]["mean"] == 2.0
    )  # one slice of 2 mm


def test_a_label_map_against_files_per_class(overlapping):
    merged = np.zeros((6, 12, 12))
    merged[1:5, 2:9, 2:9] = 2
    reference = save(overlapping / "maps" / "a.nii.gz", merged)
    result = evaluate(
        [Pair("a", reference, str(overlapping / "out" / "a"))],
        NESTED,
        classes=["liver"],
        resamples=2,
    )
    assert result.rows[0].scores["Dice"] == pytest.approx(3 / 4)


def test_overlapping_reference_masks_of_a_case_are_read_as_for_training(overlapping):
    corpus = Corpus("Both", ((1, ("liver",)), (2, ("vessel",)), (3, ("liver", "vessel"))))
    files = tuple(
        Mask(name, str(overlapping / "truth" / "a" / f"{name}.nii.gz"))
        for name in ("liver", "vessel")
    )
    case = Case("a", (files[0].path,), masks=files)
    result = evaluate(
        [Pair("a", files[0].path, str(overlapping / "out" / "a"), "", case)], corpus, resamples=2
    )
    assert [row.scores["Dice"] for row in result.rows] == pytest.approx([3 / 4, 1.0])


def test_a_missing_or_shifted_class_file_fails_its_case_by_name(overlapping):
    victim = overlapping / "out" / "a" / "vessel.nii.gz"
    array = np.asarray(nib.load(victim).dataobj).transpose(2, 1, 0)
    save(victim, array, np.diag([1.0, 1, 3, 1]))
    with pytest.raises(DataError, match="different geometry"):
        side.open_masks(victim.parent, NESTED).box("vessel")
    victim.unlink()
    result = evaluate(
        find_pairs(overlapping / "truth", overlapping / "out")[0], NESTED, resamples=2
    )
    assert "no mask of class 'vessel'" in result.failed[0]["message"]
    (overlapping / "empty").mkdir()
    with pytest.raises(MetricError, match="no masks in this folder"):
        side.ClassFiles(overlapping / "empty", NESTED)
