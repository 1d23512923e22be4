"""Voxels as stored become values that can be believed: scaled, finite, labels whole."""

import numpy as np
import pytest

from medjax.errors import DataError
from medjax.scans import voxels
from medjax.scans.header import DataWarning


def test_scaling_is_computed_in_float64_and_kept_as_float32():
    stored = np.array([[[-3, 0, 7]]], np.int16)
    assert voxels.scaled(stored, 1.0, 0.0) is stored
    made = voxels.scaled(stored, 0.1, -1024.0)
    assert made.dtype == np.float32
    assert np.array_equal(made, np.float32([[[-1024.3, -1024.0, -1023.3]]]))
    whole = voxels.scaled(np.float64([[[0.5]]]), 1.0, 0.0)
    assert whole.dtype == np.float32 and whole.item() == 0.5
    assert np.isinf(voxels.scaled(np.float64([[[1e300]]]), 2.0, 0.0)).all()


def test_ends_are_those_of_all_pieces(monkeypatch):
    monkeypatch.setattr(voxels, "_PIECE", 4)
    array = np.arange(-6.0, 6.0).reshape(6, 2, 1)
    assert voxels.pieces(array) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert voxels.ends(array) == (-6.0, 5.0)
    array[4, 0] = np.nan
    assert all(map(np.isnan, voxels.ends(array)))
    assert voxels.ends(np.zeros((0, 3, 3))) == (0.0, 0.0)


def test_the_first_of_some_voxels_is_counted_and_placed():
    array = np.arange(24.0).reshape(2, 3, 4)
    assert voxels.first_of(array > 21, array) == "2 voxels, first 22 at (1, 2, 2) (z, y, x)"
    wide = array[..., None]
    assert voxels.first_of(wide > 22, wide).endswith("(1, 2, 3, 0) (z, y, x, channel)")


def broken():
    array = np.arange(16.0, dtype=np.float32).reshape(2, 2, 4)
    array[1, 0, 2] = np.nan
    array[1, 1, 3] = np.inf
    return array


def test_non_finite_voxels_are_refused_kept_or_replaced():
    with pytest.raises(DataError, match=r"a: non-finite voxels; found 2 voxels, first nan at \(1"):
        voxels.finished(broken(), "image", "a")
    with pytest.warns(DataWarning, match="non-finite voxels kept: 2 voxels"):
        kept = voxels.finished(broken(), "image", "a", allow_nonfinite=True)
    assert np.isnan(kept[1, 0, 2]) and np.isinf(kept[1, 1, 3])
    given = broken()
    with pytest.warns(DataWarning):
        replaced = voxels.finished(given, "image", "a", replace_nan=-5.0)
    assert replaced[1, 0, 2] == replaced[1, 1, 3] == -5 and np.isnan(given[1, 0, 2])
    channels = np.stack([broken(), broken() - 100], -1)
    with pytest.warns(DataWarning):
        smallest = voxels.finished(channels, "image", "a", replace_nan=voxels.MINIMUM)
    assert smallest[1, 0, 2].tolist() == [0, -100]  # of each channel, its own
    with pytest.raises(DataError, match="non-finite"):  # labels are never repaired
        voxels.finished(broken(), "label", "a", replace_nan=0.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 1.5], "first 1.5 at (0, 0, 1)"),
        ([0, -1], "negative label values"),
        ([0, 2.0**32], "too large"),
    ],
)
def test_labels_that_are_none(values, words):
    with pytest.raises(DataError) as caught:
        voxels.finished(np.float64(values).reshape(1, 1, 2), "label", "a.nii")
    assert words in str(caught.value)


def test_labels_stored_as_numbers_become_the_smallest_whole_type():
    found = voxels.finished(np.float32([[[0, 300]]]), "label", "a")
    assert found.dtype == np.uint16 and found.tolist() == [[[0, 300]]]
    stored = np.int32([[[0, 7]]])
    assert voxels.finished(stored, "label", "a") is stored


def test_one_voxel_far_from_the_others_warns_and_a_bright_one_does_not(recwarn):
    array = np.random.default_rng(0).normal(0, 1, (8, 8, 8)).astype(np.float32)
    array[2, 3, 4] = 300.0  # below 30 spreads (3.3) times sqrt(512)
    voxels.check_extremes(array, *voxels.ends(array), "a")
    assert not recwarn.list
    array[2, 3, 4] = 3e6
    with pytest.warns(DataWarning, match=r"1 voxels lie far .*3e\+06 at \(2, 3, 4\)"):
        voxels.finished(array, "image", "a")
    both = np.stack([np.zeros_like(array), array], -1)
    with pytest.warns(DataWarning, match="in channel 1"):
        voxels.finished(both, "image", "a")
    small = np.int16([[[3] * 63 + [32767]]])  # too small a range for such a voxel
    assert voxels.finished(small, "image", "a") is small
