"""Which voxels of a case are kept, and what they stand for."""

import nibabel as nib
import numpy as np
import pytest

from medjax.prepare.geometry import fit
from medjax.runs.calibration.voxels import Sample, hashes, smallest
from medjax.scans import nifti

TABLE = np.array([[False, False], [True, False], [False, True]])
KNOWN = np.array([True, False])  # the reference annotates the first class only


@pytest.fixture
def scan(tmp_path):
    rng = np.random.default_rng(0)
    ids = np.zeros((12, 10, 9), np.uint8)
    ids[3:5, 2:6, 4:7], ids[0, 0, :4] = 1, 3  # 24 voxels of the class, 4 that do not count
    image = nib.Nifti1Image(np.ones(ids.T.shape, np.float32), np.diag([-1.0, 1.0, 2.0, 1.0]))
    nib.save(image, tmp_path / "a.nii")
    transform = fit(nifti.read(tmp_path / "a.nii"), None, crop="none")
    values = rng.uniform(0, 0.009, (*transform.box_shape, 2)).astype(np.float32)
    values[8, 8, :5, 0] = 0.7  # a false positive of 5 voxels
    values[..., 1] = 0.9  # of a class that nobody annotated
    return ids, transform, values


def gathered(scan, most, rows=12):
    ids, transform, values = scan
    table = np.concatenate([TABLE, np.zeros((1, 2), bool)])
    sample = Sample(ids, 3, table, KNOWN, most)
    depth, height, _ = transform.box_shape
    for start in range(0, depth, rows):
        for columns in (slice(0, 4), slice(4, height)):
            region = slice(start, min(start + rows, depth)), columns
            sample(transform, region, ("a", "b"), values[region])
    return sample


def test_all_voxels_where_there_is_room(scan):
    sample = gathered(scan, 10_000)
    assert len(sample.ids) == 12 * 10 * 9 - 4 and set(sample.weight) == {1.0}
    assert (sample.ids == 1).sum() == 24 and 3 not in sample.ids
    np.testing.assert_array_equal(sample.values[:, 1], np.float32(0.9))


@pytest.mark.parametrize("rows", [12, 5, 1])
def test_half_of_them_near_an_object_whatever_the_blocks(scan, rows):
    sample, whole = gathered(scan, 40, rows), gathered(scan, 40)
    near = (sample.ids == 1) | (sample.values[:, 0] > 0.01)
    assert near.sum() == 20 and len(near) == 40
    assert sample.weight[near].sum() == pytest.approx(24 + 5)
    assert sample.weight.sum() == pytest.approx(12 * 10 * 9 - 4)
    np.testing.assert_array_equal(sample.values, whole.values)
    np.testing.assert_array_equal(sample.ids, whole.ids)


def test_probability_and_reference_are_of_the_same_voxel(scan):
    """The scan is stored mirrored: ids on its grid, values on the canonical one."""
    ids, transform, values = scan
    values = np.where(transform.image(ids) == 1, 0.8, 0.0)[..., None] * np.ones(2, np.float32)
    sample = gathered((ids, transform, values.astype(np.float32)), 200)
    np.testing.assert_array_equal(sample.ids == 1, sample.values[:, 0] > 0.5)


def test_nothing_that_counts(scan):
    ids, transform, values = scan
    sample = gathered((np.full_like(ids, 3), transform, values), 40)
    assert sample.values.shape == (0, 2) and len(sample.ids) == len(sample.weight) == 0


def test_hashes_are_distinct_and_even():
    found = hashes(np.arange(20_000))
    assert len(np.unique(found)) == 20_000
    assert abs(np.mean(found < np.uint64(1 << 63)) - 0.5) < 0.02
    assert smallest(np.array([5, 1, 4, 2], np.uint64), 2).tolist() == [1, 3]
    assert smallest(np.array([5, 1], np.uint64), 0).tolist() == []
