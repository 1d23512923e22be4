"""Small copies of scans for the viewer: what they keep, where they lie, and how small they are."""

import gzip
import math

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medjax.report import embed

AFFINE = np.array([[-0.7, 0, 0, 30], [0, 0.8, 0, -20], [0, 0, 2.5, 5], [0, 0, 0, 1.0]])


def test_images_are_block_means_and_labels_the_middle_of_a_block():
    array = np.arange(2 * 4 * 5, dtype=np.int16).reshape(2, 4, 5)
    made = embed.Reduction(((0, 2), (1, 4), (0, 5)), (1, 2, 2))
    found = made.image(array)
    assert found.dtype == np.float32 and found.shape == (2, 2, 3)
    assert found[0, 0, 0] == np.mean([5, 6, 10, 11])
    assert found[0, 1, 2] == 19  # a block of one voxel, the border repeated
    assert np.array_equal(made.label(array)[0], [[11, 13, 14], [16, 18, 19]])


def test_the_coarse_grid_lies_where_the_fine_one_does():
    made = embed.Reduction(((2, 8), (0, 9), (4, 12)), (2, 3, 4))
    z, y, x = np.meshgrid(*map(np.arange, (10, 9, 12)), indexing="ij")
    coarse = [made.image(q) for q in (x, y, z)]
    expected = AFFINE[:3, :3] @ [q[1, 2, 1] for q in coarse] + AFFINE[:3, 3]
    assert np.allclose((made.affine(AFFINE) @ [1, 2, 1, 1])[:3], expected)


def test_the_gentlest_reduction_wins():
    shape, spacing, focus = (20, 40, 40), (2.0, 1.0, 1.0), ((8, 12), (10, 20), (10, 20))
    assert embed.reduce_to(32_000, shape, spacing, focus) == embed.Reduction(
        ((0, 20), (0, 40), (0, 40)), (1, 1, 1)
    )
    cropped = embed.reduce_to(20_000, shape, spacing, focus, margin_mm=10)
    assert cropped == embed.Reduction(((3, 17), (0, 30), (0, 30)), (1, 1, 1))
    coarser = embed.reduce_to(4_000, shape, spacing, focus, margin_mm=10)
    assert coarser.box == cropped.box and coarser.factors == (1, 2, 2)  # the finest axes first


@given(
    st.integers(1, 5000),
    st.tuples(*[st.integers(1, 40)] * 3),
    st.tuples(*[st.floats(0.3, 5)] * 3),
)
def test_no_copy_is_larger_than_allowed(voxels, shape, spacing):
    made = embed.reduce_to(voxels, shape, spacing)
    assert made.box == tuple((0, n) for n in shape)
    copy = made.label(np.ones(shape, np.uint8))
    assert copy.size <= voxels and copy.shape == made.image(np.ones(shape)).shape
    assert copy.shape == tuple(map(math.ceil, np.divide(shape, made.factors)))


def test_grey_values_fit_into_a_byte():
    array = np.array([-2000.0, -160, 40, 240, 3000])
    found, slope, low = embed.to_bytes(array, -160, 240)
    assert found.tolist() == [0, 0, 128, 255, 255] and found.dtype == np.uint8
    assert np.allclose(found * slope + low, np.clip(array, -160, 240), atol=slope / 2 + 1e-9)
    flat, slope, low = embed.to_bytes(np.full(3, 7.0), 7, 7)
    assert flat.tolist() == [0, 0, 0] and slope > 0 and low == 7


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_a_file_in_memory_is_a_nifti_that_lies_where_the_array_does(dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    content = embed.encode(array, AFFINE, slope=2.0, intercept=-100.0)
    image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    assert np.array_equal(image.affine, AFFINE.astype(np.float32))
    assert np.array_equal(np.asarray(image.dataobj).T, array * 2.0 - 100)
    assert image.header.get_data_dtype() == dtype and image.header.get_xyzt_units()[0] == "mm"
    assert content == embed.encode(array, AFFINE, 2.0, -100.0)  # no time in it
