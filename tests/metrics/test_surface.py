"""Surface distances against closed forms and the numbers of the reference implementation
(specification of evaluation, section 8.1).
"""

import itertools
import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from medjax.errors import MetricError
from medjax.metrics import surface


def ball(shape, centre, radius_mm, spacing_mm):
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    return (
        sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre, spacing_mm, strict=True))
        < radius_mm**2
    )


def test_spheres_equal_the_reference_implementation():
    spacing = (5.0, 0.8, 0.8)
    reference, prediction = (
        ball((16, 80, 80), (8, 40, 40), 25, spacing),
        ball((16, 80, 80), (9, 42, 40), 24, spacing),
    )
    found = surface.surface_distances(reference, prediction, spacing)
    assert 2 * (reference & prediction).sum() / (
        reference.sum() + prediction.sum()
    ) == pytest.approx(0.8327, abs=5e-5)
    assert surface.hausdorff(found, 100.0) == pytest.approx(5.98999, abs=1e-5)
    assert surface.hausdorff(found) == pytest.approx(
        5.063595560, abs=1e-8
    )  # published with three decimals: 5.064
    assert surface.surface_dice(found, 1.0) == pytest.approx(0.430359418, abs=1e-8)  # 0.430
    assert surface.directed_means(found) == pytest.approx(
        (2.047587504, 1.925933646), abs=1e-8
    )  # (2.05, 1.93)


def test_facet_areas_of_simple_neighbourhoods():
    areas = surface.surfel_areas((5.0, 0.8, 0.8))
    assert areas[0] == areas[255] == 0.0
    assert areas[0b00001111] == pytest.approx(0.8 * 0.8)  # a plane across z
    assert areas[0b00110011] == pytest.approx(5.0 * 0.8)  # a plane across y
    # One corner: the triangle through the midpoints of its three edges.
    corner = 0.5 * math.sqrt(
        sum(((a / 2) * (b / 2)) ** 2 for a, b in itertools.combinations((5.0, 0.8, 0.8), 2))
    )
    assert areas[1] == pytest.approx(corner)
    # An edge: a rectangle across the diagonal; here along x, so 0.8 long and half the (z, y)
    # diagonal wide.
    assert areas[0b00000011] == pytest.approx(0.8 * math.hypot(2.5, 0.4))


def test_facet_areas_do_not_depend_on_orientation_or_side():
    cubic = surface.surfel_areas((1.0, 1.0, 1.0))
    stretched, turned = surface.surfel_areas((1.0, 2.0, 3.0)), surface.surfel_areas((3.0, 1.0, 2.0))
    for code in range(256):
        assert cubic[code] == pytest.approx(cubic[255 - code])
        bits = np.array([code >> i & 1 for i in range(8)]).reshape(2, 2, 2)
        assert turned[
            sum(int(b) << i for i, b in enumerate(bits.transpose(2, 0, 1).ravel()))
        ] == pytest.approx(stretched[code], rel=0.2)


def test_area_of_a_ball_is_near_the_closed_form():
    mask = ball((44, 44, 44), (21.5, 21.5, 21.5), 20, (1, 1, 1))
    found = surface.surface_distances(mask, mask, (1.0, 1.0, 1.0))
    assert found.reference_area_mm2.sum() == pytest.approx(
        4 * math.pi * 20**2, rel=0.1
    )  # facets of a voxel ball overestimate by some per cent
    assert (
        found.from_reference_mm.max() == 0.0
        and surface.surface_dice(found, 0.0) == 1.0
        and surface.assd(found) == 0.0
    )


def test_concentric_spheres_are_apart_by_the_difference_of_radii():
    spacing = (1.0, 0.5, 0.5)
    outer, inner = (
        ball((40, 80, 80), (20, 40, 40), 18, spacing),
        ball((40, 80, 80), (20, 40, 40), 14, spacing),
    )
    found = surface.surface_distances(outer, inner, spacing)
    assert surface.assd(found) == pytest.approx(
        4.0, abs=0.45
    )  # surfels fill a shell of about a voxel and the nearest one counts
    assert surface.hausdorff(found) == pytest.approx(4.0, abs=0.75)
    assert surface.surface_dice(found, 3.0) < 0.02 and surface.surface_dice(found, 5.0) == 1.0


def test_boxes_shifted_along_one_axis():
    reference, prediction = np.zeros((12, 34, 34), bool), np.zeros((12, 34, 34), bool)
    reference[2:6, 2:32, 2:32] = True
    prediction[4:8, 2:32, 2:32] = True
    found = surface.surface_distances(reference, prediction, (3.0, 1.0, 1.0))
    assert surface.hausdorff(found, 100.0) == surface.hausdorff(found) == 6.0  # two slices of 3 mm
    assert surface.surface_dice(found, 5.9) < 0.6 and surface.surface_dice(found, 6.0) == 1.0
    crop = surface.surface_distances(reference[1:9], prediction[1:9], (3.0, 1.0, 1.0))
    assert np.array_equal(
        crop.from_reference_mm, found.from_reference_mm
    )  # the frame around the masks does not matter


def test_a_slice_is_measured_by_its_contour():
    reference, prediction = np.zeros((1, 40, 40), bool), np.zeros((1, 40, 40), bool)
    reference[0, 5:35, 5:35] = True
    prediction[0, 5:35, 8:38] = True
    found = surface.surface_distances(reference, prediction, (7.0, 1.0, 2.0))
    assert surface.hausdorff(found, 100.0) == 6.0
    corners = 4 * math.hypot(0.5, 1.0)
    assert found.reference_area_mm2.sum() / 7.0 == pytest.approx(
        2 * 29 * 1.0 + 2 * 29 * 2.0 + corners
    )  # contour length
    # The same contours, drawn through a stack of slices, say the same wherever caps do not matter.
    assert surface.surface_dice(found, 1.0) == pytest.approx(
        (2 * 27 * 2 + 2 * 2) / (58 + 116 + corners), abs=0.03
    )


def test_empty_or_unequal_masks_are_refused():
    mask = np.ones((3, 3, 3), bool)
    with pytest.raises(MetricError, match="non-empty"):
        surface.surface_distances(mask, np.zeros_like(mask), (1.0, 1.0, 1.0))
    with pytest.raises(MetricError, match="different shape"):
        surface.surface_distances(mask, np.ones((3, 3, 4), bool), (1.0, 1.0, 1.0))


def test_image_diagonal():
    assert surface.image_diagonal_mm((10, 20, 20), (3.0, 2.0, 0.0)) == 50.0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tree_cost=st.sampled_from((0, 10**9)))
def test_both_ways_of_measuring_equal_brute_force(seed, tree_cost):
    rng = np.random.default_rng(seed)
    spacing = tuple(rng.uniform(0.4, 4.0, 3))
    reference, prediction = (
        ndimage.binary_dilation(rng.random((7, 9, 8)) < 0.03, iterations=2) for _ in range(2)
    )
    reference[3, 4, 4] = prediction[2, 6, 1] = True
    with mock.patch.object(
        surface, "TREE_COST", tree_cost
    ):  # 0: always the search tree; huge: always the distance map
        found = surface.surface_distances(reference, prediction, spacing)
    points = []
    for mask in (
        reference,
        prediction,
    ):  # surfels sit between 2 x 2 x 2 voxels that are not all alike
        padded = np.pad(mask, 1).astype(int)
        total = sum(
            padded[z : z + 8, y : y + 10, x : x + 9]
            for z, y, x in itertools.product((0, 1), repeat=3)
        )
        points.append(np.argwhere((total > 0) & (total < 8)) * spacing)
    apart = cdist(*points)
    assert found.from_reference_mm == pytest.approx(np.sort(apart.min(1)), abs=1e-9)
    assert found.from_prediction_mm == pytest.approx(np.sort(apart.min(0)), abs=1e-9)


def test_a_crop_of_a_volume_is_not_taken_for_a_slice():
    mask = np.zeros((1, 12, 12), bool)
    mask[0, 3:9, 3:9] = True
    contour = surface.surface_distances(mask, mask, (2.0, 1.0, 1.0))
    plate = surface.surface_distances(mask, mask, (2.0, 1.0, 1.0), image_shape=(20, 12, 12))
    assert (
        contour.reference_area_mm2.sum() < 60 < plate.reference_area_mm2.sum()
    )  # 2 mm of rim, or also two faces of about 30 mm2
