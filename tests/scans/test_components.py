"""Components of a mask that touch an organ; the rest: tests/infer/test_postprocess.py."""

import numpy as np

from medjax.scans import components

SHAPE = (12, 12, 30)


def _box(*where):
    mask = np.zeros(SHAPE, bool)
    mask[where] = True
    return mask


def test_a_component_that_touches_the_grown_organ_stays_whole():
    organ = _box(slice(4, 8), slice(4, 8), slice(4, 10))
    long = _box(5, 5, slice(11, 20))  # one voxel between them
    far = _box(5, 5, slice(25, 28))
    kept, gone = components.touching(long | far, organ)
    assert np.array_equal(kept, long) and gone == 3
    assert components.within(long, [organ])[0].sum() == 1, "`within` cuts where the organ ends"
    reach = _box(5, 5, 12)  # one voxel more than the organ grows
    assert components.touching(reach, organ)[1] == 1
    corner = _box(10, 10, 12)
    assert components.touching(corner | _box(9, 9, 11), organ)[1] == 0, "26 neighbours"


def test_nothing_goes_without_an_organ_or_a_mask():
    mask, nothing = _box(5, 5, 5), np.zeros(SHAPE, bool)
    assert components.touching(mask, nothing) == (mask, 0)
    assert components.touching(nothing, mask)[1] == 0


def test_an_organ_at_the_border_of_the_scan_grows_inside_it():
    organ = _box(slice(0, 2), slice(0, 2), slice(0, 2))
    mask = _box(3, 3, 3) | _box(11, 11, 29)
    assert np.array_equal(components.touching(mask, organ)[0], _box(3, 3, 3))
