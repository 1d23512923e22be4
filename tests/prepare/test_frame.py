"""Volumes in a frame and back, by areas and by nearest voxels (T23)."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.errors import UsageError
from medjax.prepare import frame
from medjax.prepare.frame import Frame

FRAME = (32, 256, 256)


def test_area_is_adaptive_average_pooling():
    line = np.arange(5, dtype=np.float32)[:, None, None]
    # cells of 5 -> 3: [0, 2), [1, 4), [3, 5)
    np.testing.assert_allclose(frame.shrink(line, (3, 1, 1))[:, 0, 0], (0.5, 2, 3.5))
    # cells of 2 -> 5: 0, 0, both, 1, 1
    np.testing.assert_allclose(frame.shrink(line[:2], (5, 1, 1))[:, 0, 0], (0, 0, 0.5, 1, 1))


def test_nearest_takes_the_voxel_at_the_centre():
    line = np.arange(6, dtype=np.int16)[:, None, None]
    assert frame.shrink(line, (3, 1, 1), "nearest")[:, 0, 0].tolist() == [1, 3, 5]
    assert frame.shrink_ids(line, (4, 1, 1))[:, 0, 0].tolist() == [0, 2, 3, 5]


def ellipsoid(extent, shape):
    axes = [(np.arange(n) - (n - 1) / 2) / (e / 2) for n, e in zip(shape, extent, strict=True)]
    return sum(a**2 for a in np.meshgrid(*axes, indexing="ij", sparse=True)) <= 1


def block(extent, shape, start=None):
    mask = np.zeros(shape, bool)
    start = start or [(n - e) // 2 for n, e in zip(shape, extent, strict=True)]
    mask[tuple(slice(s, s + e) for s, e in zip(start, extent, strict=True))] = True
    return mask


def kept(mask, how):
    """Share of an object's volume that its shrunk label has."""
    small = frame.shrink_ids(mask.astype(np.uint8), FRAME, how)
    return small.mean() / mask.mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mask", "area"),
    [
        (lambda: ellipsoid((24, 30, 30), (300, 512, 512)), 0.38),
        (lambda: ellipsoid((60, 80, 80), (300, 512, 512)), 0.73),
    ],
)
def test_t23_published_labels_lose_the_surface_of_ellipsoids(mask, area):
    found = mask()
    assert kept(found, "area") == pytest.approx(area, abs=0.05)
    assert kept(found, "nearest") == pytest.approx(1, abs=0.06)


@pytest.mark.slow
def test_t23_thin_boxes_vanish_and_erode():
    """A central box of 6 slices lies between the centres of two of the 32 cells of 300 slices."""
    thin = block((6, 10, 10), (300, 512, 512))
    assert kept(thin, "area") == kept(thin, "nearest") == 0


def shares(n_in, n_out, extent):
    """(area, nearest) of a segment on a line, for its positions in the middle."""
    found = set()
    for start in range(n_in // 2 - 12, n_in // 2 + 12):
        line = np.zeros((n_in, 1, 1), np.uint8)
        line[start : start + extent] = 1
        small = (frame.shrink_ids(line, (n_out, 1, 1), how) for how in ("area", "nearest"))
        found.add(tuple(one.mean() / line.mean() for one in small))
    return found


@pytest.mark.parametrize(
    ("extent", "published"), [((6, 12, 12), (0.69, 0.90)), ((20, 100, 70), (0.98, 1.0))]
)
def test_t23_of_boxes_in_80_400_400(extent, published):
    """The position of the published box is not known: it is one of these (to a voxel of a face)."""
    axes = [shares(n, m, e) for n, m, e in zip((80, 400, 400), FRAME, extent, strict=True)]
    found = [np.prod(chosen, axis=0) for chosen in itertools.product(*axes)]
    assert min(np.abs(one - published).max() for one in found) < 0.02


def test_t23_along_one_axis():
    line = np.zeros((300, 1, 1), np.uint8)
    line[147:153] = 1
    assert not frame.shrink_ids(line, (32, 1, 1)).any()
    line[142:158] = 1  # two centres, and no whole cell
    assert frame.shrink_ids(line, (32, 1, 1)).sum() == 2
    assert frame.shrink_ids(line, (32, 1, 1), "area").sum() == 0
    line[139:158] = 1
    assert frame.shrink_ids(line, (32, 1, 1), "area").sum() == 1


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.tuples(*[st.integers(1, 16)] * 3),
    st.booleans(),
    st.integers(0, 1000),
)
def test_points_and_boxes_stay_around_what_they_mark(shape, size, pad, seed):
    lies, rng = Frame(shape, size, pad), np.random.default_rng(seed)
    voxel = rng.integers(0, shape)
    at = lies.points(voxel[None])[0]
    # the frame voxel holds the centre of the volume's voxel
    low, high = at / lies.scale, (at + 1) / lies.scale
    centre = voxel + 0.5 + [before for before, _ in lies.margins]
    assert np.all(low <= centre + 1e-6) and np.all(centre <= high + 1e-6)
    other = rng.integers(voxel, shape)
    box = lies.box(np.concatenate([voxel, other]))
    assert np.all(box[:3] <= box[3:]) and np.all(box[:3] >= 0) and np.all(box[3:] < size)
    assert np.all(box[:3] <= at) and np.all(lies.points(other[None])[0] <= box[3:])


@pytest.mark.parametrize("shape", [(10, 12, 8), (20, 12, 30), (5, 6, 7)])
def test_scores_come_back_to_the_volume(shape):
    lies = Frame(shape, (10, 12, 8))
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    ramp = (grid @ [1.0, 2.0, 3.0]).astype(np.float32)
    back = lies.scores(lies.image(ramp, "area", ramp.mean()))
    inner = tuple(slice(2, -2) for _ in shape)
    np.testing.assert_allclose(back[inner], ramp[inner], atol=2.5)
    assert back.shape == shape
    blocks = lies.scores(lies.image(ramp, "nearest"), "nearest")
    assert blocks.shape == shape and set(np.unique(blocks)) <= set(np.unique(ramp))


def test_torch_nearest_is_the_floor_of_the_scaled_index():
    line = np.arange(3, dtype=np.float32)[:, None, None]
    found = Frame((7, 1, 1), (3, 1, 1)).scores(line, "nearest")
    assert found[:, 0, 0].tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_a_volume_smaller_than_the_frame_gets_margins():
    lies = Frame((3, 20, 4), (6, 10, 5))
    assert lies.margins == ((1, 2), (0, 0), (0, 1)) and lies.padded == (6, 20, 5)
    ids = np.ones((3, 20, 4), np.uint8)
    found = lies.label(ids, fill=9)
    assert found[:, 0, 0].tolist() == [9, 1, 1, 1, 9, 9] and found[1, 0].tolist() == [1] * 4 + [9]
    assert Frame((3, 20, 4), (6, 10, 5), pad=False).margins == ((0, 0),) * 3


def test_unknown_words_are_refused():
    with pytest.raises(UsageError, match="images"):
        frame.shrink(np.zeros((2, 2, 2)), (1, 1, 1), "mean")
    with pytest.raises(UsageError, match="labels"):
        frame.shrink_ids(np.zeros((2, 2, 2), int), (1, 1, 1), "mode")
    with pytest.raises(UsageError, match="scores"):
        Frame((2, 2, 2), (1, 1, 1)).scores(np.zeros((1, 1, 1)), "linear")
