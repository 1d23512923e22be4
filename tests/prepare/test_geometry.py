"""The way to the network's grid and back: exact for all 48 orientations, oblique, anisotropic and
single-slice scans.
"""

import itertools
import json
import warnings

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medjax.errors import DataError, UsageError
from medjax.prepare import geometry, resample
from medjax.scans import grid, nifti

ORIENTATIONS = [
    (order, flips)
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]  # all 48: world axis of each voxel axis, and its direction


def affine_of(order, flips, spacing, oblique_deg=0.0, origin=(11.5, -7.25, 100.0)):
    """nibabel affine whose voxel axis i runs along world axis order[i] in direction flips[i], then
    turned about (1, 1, 1).
    """
    axes = np.zeros((3, 3))
    for voxel, (world, sign) in enumerate(zip(order, flips, strict=True)):
        axes[world, voxel] = sign
    axis, angle = np.ones(3) / np.sqrt(3), np.radians(oblique_deg)
    cross = np.cross(np.eye(3), axis)
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def volume_of(array_zyx, affine):
    image = nib.Nifti1Image(np.asarray(array_zyx).T, affine)
    image.set_sform(affine, 1)
    return nifti.Volume(
        np.asarray(array_zyx),
        np.asarray(image.header.get_sform(), np.float64),
        image.header,
        "case.nii.gz",
    )


def blob(shape, seed=0):
    """Random ids inside, zeros around, so that there is something to crop."""
    array = np.zeros(shape, np.uint8)
    inner = tuple(slice(n // 4, n - n // 5) for n in shape)
    array[inner] = np.random.default_rng(seed).integers(1, 5, array[inner].shape)
    return array


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(ORIENTATIONS),
    st.sampled_from([0.0, 12.0, -12.0]),
    st.sampled_from([(1.0, 1.0, 1.0), (0.4, 0.4, 10.0), (3.0, 0.7, 1.1)]),
    st.sampled_from([(9, 8, 7), (1, 8, 7), (9, 1, 7), (5, 6, 1)]),
    st.sampled_from(["nonzero", "none"]),
)
def test_forward_then_inverse_is_identical(tmp_path, orientation, oblique, spacing, shape, crop):
    stored = blob(shape)
    volume = volume_of(stored, affine_of(*orientation, spacing, oblique))
    transform = geometry.fit(volume, None, crop=crop)
    ids = transform.label(stored)
    assert ids.shape == transform.shape == transform.box_shape
    np.testing.assert_array_equal(transform.invert_mask(ids), stored)
    scores = transform.invert_scores(np.stack([ids == 2, ids == 3], -1).astype(np.float32))
    np.testing.assert_array_equal(scores[..., 0], stored == 2)
    np.testing.assert_array_equal(scores[..., 1], stored == 3)
    assert geometry.Transform.from_json(json.loads(json.dumps(transform.to_json()))) == transform
    path = tmp_path / "mask.nii.gz"
    nifti.write(path, transform.invert_mask(ids), volume)
    written = nib.load(path)
    assert written.affine.tobytes() == volume.affine.tobytes()
    np.testing.assert_array_equal(np.asarray(written.dataobj).T, stored)


@pytest.mark.parametrize("oblique", [0.0, 12.0])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_canonical_is_nibabels_closest(orientation, oblique):
    stored = np.arange(4 * 3 * 5, dtype=np.int16).reshape(4, 3, 5)
    affine = affine_of(*orientation, (0.8, 1.5, 2.0), oblique)
    volume = volume_of(stored, affine)
    transform = geometry.fit(volume, None, crop="none")
    expected = nib.as_closest_canonical(nib.Nifti1Image(stored.T, volume.affine))
    canonical = transform.image(stored)
    np.testing.assert_array_equal(canonical.T, np.asarray(expected.dataobj))
    np.testing.assert_allclose(transform.affine(volume.affine), expected.affine, atol=1e-6)
    assert nib.aff2axcodes(transform.affine(volume.affine)) == ("R", "A", "S")
    np.testing.assert_allclose(transform.spacing_mm, expected.header.get_zooms()[::-1], rtol=1e-6)


def test_stored_orientation_moves_nothing():
    stored = blob((6, 7, 8))
    volume = volume_of(stored, affine_of((2, 0, 1), (-1, 1, -1), (1, 2, 3)))
    transform = geometry.fit(volume, None, orientation="stored", crop="none")
    np.testing.assert_array_equal(transform.image(stored), stored)
    np.testing.assert_allclose(transform.spacing_mm, (3, 2, 1))


def test_every_world_point_keeps_its_value():
    """Crop, turn and resample by 2 along one axis: a linear ramp of world coordinates stays that
    ramp on the new grid.
    """
    affine = affine_of((1, 2, 0), (-1, 1, -1), (2.0, 1.0, 3.0), 12.0)
    shape = (10, 12, 14)
    z, y, x = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    world = np.stack([x, y, z, np.ones_like(x)], -1) @ affine.T
    ramp = (world[..., :3] @ [1.0, 2.0, -0.5]).astype(np.float32) + 500
    volume = volume_of(ramp, affine)
    transform = geometry.fit(volume, (2.0, 1.5, 1.0), crop="none")
    assert transform.shape != transform.box_shape
    found = transform.resample_image(transform.image(ramp))
    z, y, x = np.meshgrid(*[np.arange(n) for n in transform.shape], indexing="ij")
    world = np.stack([x, y, z, np.ones_like(x)], -1) @ transform.affine(volume.affine).T
    expected = world[..., :3] @ [1.0, 2.0, -0.5] + 500
    inner = (slice(3, -3),) * 3
    np.testing.assert_allclose(found[inner], expected[inner], atol=0.02)
    back = transform.invert_scores(found[..., None])[..., 0]
    np.testing.assert_allclose(back[inner], ramp[inner], atol=0.02)


def test_crop_is_the_box_of_nonzero_voxels_in_any_channel():
    image = np.zeros((10, 11, 12, 2), np.float32)
    image[2:7, 3:9, 4, 0] = 5
    image[4, 5, 2:11, 1] = -1
    assert grid.nonzero_box(image) == ((2, 7), (3, 9), (2, 11))
    image[3:6, 4:8, 4] = 0  # a hole; the box of the filled mask is the same
    assert grid.nonzero_box(image) == ((2, 7), (3, 9), (4, 5)) or image[4, 5, 2, 1] != 0
    volume = volume_of(image[..., 0], np.eye(4))
    transform = geometry.fit(nifti.Volume(image, volume.affine, volume.header, "a"), None)
    assert transform.box == ((2, 7), (3, 9), (2, 11))
    scores = transform.invert_scores(np.ones((*transform.shape, 3), np.float32))
    assert scores.shape == (10, 11, 12, 3) and scores.sum() == 3 * 5 * 6 * 9
    assert scores[2:7, 3:9, 2:11].min() == 1


def test_all_zero_image_is_not_cropped_and_warns():
    with pytest.warns(nifti.DataWarning, match="all voxels are 0"):
        transform = geometry.fit(volume_of(np.zeros((4, 5, 6), np.int16), np.eye(4)), None)
    assert transform.box == ((0, 4), (0, 5), (0, 6))


@pytest.mark.parametrize("slab", [1, 2, 3, 7, 100, None])
@pytest.mark.parametrize(
    "orientation", [((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1)), ((1, 2, 0), (1, -1, -1))]
)
def test_slabs_are_the_whole(slab, orientation):
    stored = blob((12, 10, 9))
    transform = geometry.fit(
        volume_of(stored, affine_of(*orientation, (1.0, 1.3, 2.0))), (1.6, 1.1, 0.9)
    )
    scores = np.random.default_rng(1).random((*transform.shape, 4)).astype(np.float16)
    cropped = resample.resample_scores(
        scores, transform.box_shape, transform.target_spacing_mm, transform.spacing_mm
    )
    canonical = np.zeros([transform.stored_shape[a] for a in transform.axes] + [4], np.float32)
    canonical[tuple(slice(*ends) for ends in transform.box)] = cropped
    whole = transform.invert_scores(scores)
    np.testing.assert_allclose(transform.image(whole), cropped, atol=1e-6)
    np.testing.assert_allclose(whole.sum(), canonical.sum(), rtol=1e-5)
    covered = 0
    for rows, piece in transform.iterate_scores(scores, slab):
        assert rows.start == covered and piece.dtype == np.float32
        np.testing.assert_allclose(piece, whole[rows], atol=1e-6)
        covered = rows.stop
    assert covered == 12


def test_masks_come_back_from_another_spacing():
    stored = np.zeros((16, 18, 20), np.uint16)
    stored[4:12, 5:14, 6:16] = 300
    transform = geometry.fit(
        volume_of(stored, affine_of((1, 0, 2), (1, -1, 1), (1.0, 1.0, 1.5))),
        (0.5, 0.5, 0.5),
        crop="none",
    )
    ids = transform.label(stored)
    assert ids.dtype == np.uint16 and set(np.unique(ids)) == {0, 300} and ids.shape != stored.shape
    back = transform.invert_mask(ids)
    assert back.shape == stored.shape and back.dtype == np.uint16
    np.testing.assert_array_equal(
        back, stored
    )  # up by at least two and back by nearest neighbour loses nothing


def test_anisotropic_scan_keeps_its_slices():
    stored = blob((5, 20, 20))
    volume = volume_of(stored, affine_of((0, 1, 2), (1, 1, 1), (0.4, 0.4, 10.0)))
    transform = geometry.fit(volume, (10.0, 0.8, 0.8), crop="none")
    assert transform.shape == (5, 10, 10)
    image = transform.resample_image(transform.image(stored.astype(np.float32))[..., None])
    assert image.shape == (5, 10, 10, 1) and image[0].max() <= stored[0].max()
    assert transform.invert_scores(image).shape == (5, 20, 20, 1)


def test_wrong_words_and_shapes():
    volume = volume_of(blob((4, 5, 6)), np.eye(4))
    with pytest.raises(UsageError, match="did you mean RAS"):
        geometry.fit(volume, None, orientation="RAI")
    with pytest.raises(UsageError, match="unknown crop"):
        geometry.fit(volume, None, crop="body")
    for spacing in ((1, 1), (1, 1, 0), (1, np.nan, 1)):
        with pytest.raises(UsageError, match="unusable target spacing"):
            geometry.fit(volume, spacing)
    transform = geometry.fit(volume, None)
    with pytest.raises(DataError, match=r"stored grid.*\(6, 5, 4\)"):
        transform.image(np.zeros((6, 5, 4)))
    with pytest.raises(DataError, match="resampled grid"):
        transform.invert_scores(np.zeros((1, 1, 1, 2)))


@pytest.mark.data
@pytest.mark.parametrize(
    "corpus,spacing",
    [
        ("Task04_Hippocampus", None),
        ("Task91_SarcomaCT", (3.0, 2.0, 2.0)),
        ("Task02_Heart", (2.0, 2.0, 2.0)),
    ],
)
def test_real_labels_survive_the_round_trip(real_data, corpus, spacing):
    label_path = sorted((real_data / corpus / "labelsTr").glob("[!.]*.nii.gz"))[0]
    image = nifti.read(real_data / corpus / "imagesTr" / label_path.name)
    label = nifti.read(label_path, want="label")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nifti.check_same_geometry(image, label)
    transform = geometry.fit(image, spacing)
    back = transform.invert_mask(transform.label(label.array))
    if spacing is None:
        np.testing.assert_array_equal(back, label.array)
    overlap = (
        2 * ((back > 0) & (label.array > 0)).sum() / ((back > 0).sum() + (label.array > 0).sum())
    )
    assert overlap > 0.93
