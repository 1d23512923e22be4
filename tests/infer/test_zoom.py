"""Regions, windows and the prompts of windows, with the numbers of the published code (T6-T10)."""

import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.infer import zoom
from medjax.infer.zoom import Asked, Settings

WINDOW = (32, 256, 256)


def mask(shape, *ranges):
    found = np.zeros(shape, bool)
    found[tuple(slice(*r) for r in ranges)] = True
    return found


@pytest.mark.parametrize(
    ("shape", "ranges", "expected"),
    [
        ((100, 400, 400), ((30, 45), (100, 180), (120, 190)), ((22, 12, 27), (52, 267, 282))),  # T7
        ((100, 400, 400), ((30, 45), (5, 60), (350, 395)), ((22, 0, 245), (52, 159, 400))),  # T8
        ((20, 320, 320), ((5, 12), (100, 180), (120, 190)), ((0, 12, 27), (20, 267, 282))),  # T9
    ],
)
def test_t7_to_t9_the_region_around_what_was_found(shape, ranges, expected):
    found = mask(shape, *ranges)
    assert zoom.bounds(found, WINDOW) == expected
    area = zoom.region(found, None, WINDOW, Settings())
    assert area.low == expected[0]
    ends = tuple(min(h + 1, n) for h, n in zip(expected[1], shape, strict=True))
    assert tuple(a + n for a, n in zip(area.low, area.shape, strict=True)) == ends


@pytest.mark.parametrize(
    ("crop", "windows"),
    [
        ((32, 256, 256), 1),
        ((40, 256, 256), 2),
        ((64, 300, 300), 12),
        ((100, 300, 300), 24),
        ((120, 400, 400), 63),
        ((200, 512, 512), 108),
    ],
)
def test_t6_windows_of_a_region(crop, windows):
    found = np.ones(crop, bool)
    area = zoom.region(found, None, WINDOW, Settings())
    assert len(area.places) == windows and area.shape == crop
    covered = np.zeros(crop, bool)
    for place in area.places:
        inside, _ = area.inside(place)
        covered[inside] = True
    assert covered.all()
    if windows == 2:
        assert [p[0] for p in area.places] == [0, 8] and {p[1:] for p in area.places} == {(0, 0)}


def test_nothing_found_is_no_region_but_for_a_box():
    empty, box = np.zeros((40, 40, 40), bool), np.array([3.0, 3, 3, 8, 8, 8])
    for roi, expected in (("prediction", False), ("box", True), ("union", True)):
        area = zoom.region(empty, box, (8, 8, 8), Settings(roi=roi))
        assert (area is not None) == expected
    found = mask((40, 40, 40), (20, 28), (20, 28), (20, 28))
    lows = {
        roi: zoom.region(found, box, (8, 8, 8), Settings(roi=roi)).low
        for roi in ("prediction", "box", "union")
    }
    assert lows == {"prediction": (20, 20, 20), "box": (2, 2, 2), "union": (3, 3, 3)}


@pytest.mark.parametrize(("map_pad", "expected"), [(True, (11, 17)), (False, (5, 11))])
def test_t10_the_box_of_a_thin_scan_moves_with_its_padding(map_pad, expected):
    found = mask((20, 256, 256), (5, 12), (100, 180), (120, 190))
    asked = Asked(box=np.array([5.0, 100, 120, 11, 179, 189]))
    settings = Settings(map_pad=map_pad)
    area = zoom.region(found, asked.box, WINDOW, settings)
    (place,) = area.places
    seen = zoom.in_window(asked, found, area, place, settings, np.ones(3))
    assert (seen.box[0], seen.box[3]) == expected
    if map_pad:
        on_grid = seen.box + np.tile(area.start(place), 2)
        np.testing.assert_array_equal(on_grid, asked.box)
    # what was found is where the image is, whatever happens to the prompt
    several = zoom.Region(area.low, area.shape, area.window, (place, place), area.margins)
    predicted = zoom.in_window(asked, found, several, place, settings, np.ones(3))
    assert (predicted.box[0], predicted.box[3]) == (11, 17)


def test_several_windows_get_the_box_of_what_was_found_in_each():
    found = mask((8, 8, 24), (0, 8), (0, 8), (2, 20))
    asked = Asked(box=np.array([0.0, 0, 0, 7, 7, 23]), text=3)
    area = zoom.region(found, asked.box, (8, 8, 8), Settings())
    assert len(area.places) > 1
    for place in area.places:
        seen = zoom.in_window(asked, found, area, place, Settings(), np.ones(3))
        start = area.start(place)[2]
        inside = np.flatnonzero(found[0, 0, start : start + 8])
        assert seen.text == 3
        assert seen.box.tolist() == [0, 0, inside[0], 7, 7, inside[-1]]


def test_a_window_without_a_positive_point_has_none():
    found = mask((8, 8, 24), (0, 8), (0, 8), (0, 24))
    points = np.array([[4.0, 4, 2], [4, 4, 22], [4, 4, 4]])
    asked = Asked(points=points, kinds=np.array([1, 0, 0]))
    settings = Settings(points="own")
    area = zoom.region(found, None, (8, 8, 8), settings)
    first, last = area.places[0], area.places[-1]
    seen = zoom.in_window(asked, found, area, first, settings, np.ones(3))
    assert seen.points.tolist() == [[4, 4, 2], [4, 4, 4]] and seen.kinds.tolist() == [1, 0]
    seen = zoom.in_window(asked, found, area, last, settings, np.ones(3))
    assert not len(seen.points) and seen.box is not None


def test_points_are_drawn_again_within_their_voxel_of_the_overview():
    found = mask((16, 16, 16), (4, 12), (4, 12), (4, 12))
    asked = Asked(points=np.array([[7.0, 9.0, 10.0], [5, 5, 5]]), kinds=np.array([1, 0]))
    area = zoom.region(found, None, (16, 16, 16), Settings())
    cell = np.array([2.0, 4.0, 4.0])
    seen = zoom.in_window(asked, found, area, area.places[0], Settings(), cell)
    assert seen.kinds.tolist() == [1] * 5 + [0] and seen.points[-1].tolist() == [5, 5, 5]
    low, high = seen.points[:5].min(0), seen.points[:5].max(0)
    assert np.all(low >= (6, 8, 8)) and np.all(high <= (7, 11, 11)) and np.any(high > low)
    again = zoom.in_window(asked, found, area, area.places[0], Settings(), cell)
    np.testing.assert_array_equal(again.points, seen.points)
    assert seen.box.tolist() == [4, 4, 4, 11, 11, 11]


def test_unknown_words_are_refused():
    with pytest.raises(UsageError, match="unknown roi"):
        Settings(roi="predicted")
