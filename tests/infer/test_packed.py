"""Masks packed block by block: what comes out is what was put in, on the stored grid."""

import numpy as np
import pytest

from medjax.infer.packed import Masks
from medjax.prepare.geometry import Transform

# stored (x, z, y) -> canonical (z, y, x) = axes (1, 2, 0), y runs against the stored axis
TRANSFORM = Transform(
    stored_shape=(7, 5, 6),
    axes=(1, 2, 0),
    flips=(False, True, False),
    box=((1, 5), (0, 6), (2, 7)),
    spacing_mm=(1.0, 1.0, 1.0),
    target_spacing_mm=(1.0, 1.0, 1.0),
    shape=(4, 6, 5),
)
REGIONS = [(slice(a, a + 2), slice(b, b + 3)) for a in (0, 2) for b in (0, 3)]


def truth():
    found = np.random.default_rng(0).random((4, 6, 5, 2)) < 0.3
    found[:2, :3, :, 1] = False  # the second class is empty in the first region
    return found


@pytest.fixture
def masks():
    made = Masks(("liver", "gtv", "none"), TRANSFORM)
    for region in REGIONS:
        made.put(region, ("gtv", "liver"), truth()[region][..., ::-1])
    return made


def test_every_class_comes_back(masks):
    assert list(masks) == ["liver", "gtv", "none"] and len(masks) == 3
    assert masks.regions == REGIONS
    for channel, name in enumerate(("liver", "gtv")):
        assert np.array_equal(masks.cropped(name), truth()[..., channel])
        assert masks.voxels[name] == truth()[..., channel].sum() > 0
    assert masks.voxels["none"] == 0 and not masks["none"].any()
    with pytest.raises(KeyError, match="spleen"):
        masks["spleen"]


def test_the_stored_grid(masks):
    expected = np.zeros(TRANSFORM.stored_shape, bool)
    for z, y, x in np.argwhere(truth()[..., 0]):
        expected[x + 2, z + 1, 5 - y] = True
    assert np.array_equal(masks["liver"], expected)


def test_regions_by_number(masks):
    assert np.array_equal(masks.block(3, ("gtv", "liver")), truth()[2:, 3:][..., ::-1])
    assert masks.block(0).shape == (2, 3, 5, 3) and not masks.block(0)[..., 2].any()
    assert masks.part("gtv", 0) is None
    assert np.array_equal(masks.part("gtv", 1), truth()[:2, 3:, :, 1])


def test_a_class_is_replaced_and_the_others_stay(masks):
    other = np.zeros(TRANSFORM.box_shape, bool)
    other[3, 5, 4] = True
    masks.replace("liver", other)
    assert masks.voxels == {"liver": 1, "gtv": int(truth()[..., 1].sum()), "none": 0}
    assert np.array_equal(masks.cropped("liver"), other)
    assert np.array_equal(masks.cropped("gtv"), truth()[..., 1])
    masks.replace("liver", ~other)
    assert masks.voxels["liver"] == other.size - 1


def test_regions_without_any_class_are_counted_too():
    made = Masks(("liver",), TRANSFORM)
    made.put(REGIONS[0], (), np.zeros((2, 3, 5, 0), bool))
    made.put(REGIONS[1], ("liver",), np.ones((2, 3, 5, 1), bool))
    assert made.cropped("liver")[:2, 3:].all() and made.voxels == {"liver": 30}
