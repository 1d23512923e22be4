"""Window positions, importance and blending: the numbers of nnU-Net (multitalent.md 6.1), one
compile, exact flat fields.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.errors import UsageError
from medjax.infer import windows


@pytest.mark.parametrize(
    "size, window, expected",
    [
        (188, 96, (0, 46, 92)),
        (411, 192, (0, 73, 146, 219)),
        (128, 40, (0, 18, 35, 53, 70, 88)),
        (128, 56, (0, 24, 48, 72)),
        (110, 64, (0, 23, 46)),
        (193, 192, (0, 1)),
        (96, 96, (0,)),
        (5, 1, (0, 1, 2, 3, 4)),
    ],
)
def test_starts_equal_nnunet(size, window, expected):
    assert windows.starts(size, window) == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 120), st.sampled_from([0.0, 0.25, 0.5, 0.75]))
def test_windows_cover_the_axis_and_overlap_enough(window, more, overlap):
    found = windows.starts(window + more, window, overlap)
    assert found[0] == 0 and found[-1] == more
    assert all(
        0 < b - a <= max(window * (1 - overlap) + 1, 1) for a, b in itertools.pairwise(found)
    )


def test_starts_refuse_what_does_not_fit():
    with pytest.raises(UsageError):
        windows.starts(10, 11)
    with pytest.raises(UsageError):
        windows.starts(10, 5, 1.0)


@pytest.mark.parametrize(
    "window, total",
    [((96, 192, 192), 108840.51757), ((128, 128, 128), 64498.07699), ((40, 56, 40), 2755.63353)],
)
def test_gaussian_numbers(window, total):
    weight = windows.gaussian(window)
    assert weight.sum() == pytest.approx(total, abs=1e-5)
    assert weight.max() == 1.0 == weight[tuple(n // 2 for n in window)]
    assert weight.min() == weight[0, 0, 0] == pytest.approx(3.775134544e-11, rel=1e-9)
    assert weight[0, window[1] // 2, window[2] // 2] == pytest.approx(3.354626279e-4, rel=1e-9)


def test_gaussian_equals_a_filtered_impulse():
    from scipy import ndimage

    impulse = np.zeros((8, 11, 6))
    impulse[4, 5, 3] = 1
    filtered = ndimage.gaussian_filter(impulse, [1.0, 11 / 8, 0.75], mode="constant")
    assert np.allclose(
        windows.gaussian((8, 11, 6)), filtered / filtered.max(), rtol=1e-9, atol=1e-300
    )


def test_padding_puts_the_odd_voxel_high():
    assert windows.padding((5, 8, 9), (8, 8, 8)) == [(1, 2), (0, 0), (0, 0)]


def constant(values):
    return lambda batch: np.broadcast_to(np.float32(values), (*batch.shape[:-1], len(values)))


@pytest.mark.parametrize("weighted", [True, False])
def test_flat_field_is_exact(weighted):
    values = (0.1, 1 / 3, -7.7)
    out = windows.sliding_window(
        constant(values),
        np.zeros((9, 14, 5, 1), np.float32),
        (4, 6, 6),
        3,
        batch_windows=4,
        weighted=weighted,
    )
    assert out.shape == (9, 14, 5, 3) and (out == np.float32(values)).all()


def test_blending_equals_the_weighted_mean():
    """The window's own number as score: the result must be sum(w i) / sum(w) over the windows that
    cover a voxel.
    """
    shape, window = (9, 13, 10), (4, 6, 8)
    calls = iter(range(1000))
    out = windows.sliding_window(
        lambda batch: np.stack([np.full((*window, 1), next(calls), np.float32) for _ in batch]),
        np.zeros((*shape, 1), np.float32),
        window,
        1,
        batch_windows=3,
    )
    total, weight = np.zeros(shape), np.zeros(shape)
    importance = windows.gaussian(window)
    number = 0
    for z in windows.starts(9, 4):
        for y in windows.starts(13, 6):
            for x in windows.starts(10, 8):
                region = slice(z, z + 4), slice(y, y + 6), slice(x, x + 8)
                total[region] += importance * number
                weight[region] += importance
                number += 1
    assert np.allclose(out[..., 0], total / weight, rtol=1e-5)


def test_identity_network_returns_the_volume_whatever_its_size():
    """Also smaller than the window in every axis: padded with 0, cropped back."""
    rng = np.random.default_rng(0)
    for shape in ((3, 2, 5), (8, 9, 8), (17, 6, 21)):
        image = rng.normal(size=(*shape, 2)).astype(np.float32)
        out = windows.sliding_window(lambda batch: batch, image, (8, 8, 8), 2)
        assert np.allclose(out, image, atol=1e-6)


def test_padding_value_and_place():
    seen = []
    windows.sliding_window(
        lambda batch: seen.append(batch.copy()) or batch,
        np.ones((1, 2, 3, 1), np.float32),
        (4, 4, 4),
        1,
        batch_windows=1,
    )
    expected = np.zeros((4, 4, 4))
    expected[1, 1:3, :3] = 1
    assert len(seen) == 1 and np.array_equal(seen[0][0, ..., 0], expected)


def test_one_program_serves_every_volume_size():
    network = jax.jit(lambda batch: jnp.tanh(batch) * 2)
    for shape in ((20, 10, 9), (8, 8, 8), (5, 30, 12), (16, 17, 18)):
        image = np.random.default_rng(1).normal(size=(*shape, 1)).astype(np.float32)
        out = windows.sliding_window(network, image, (8, 8, 8), 1, batch_windows=3)
        assert np.allclose(out, np.tanh(image) * 2, atol=1e-5)
    assert network._cache_size() == 1


def test_slices_use_the_same_machinery():
    image = np.random.default_rng(2).normal(size=(7, 12, 9, 1)).astype(np.float32)
    shapes = []
    out = windows.sliding_window(
        lambda batch: shapes.append(batch.shape) or batch, image, (8, 8), 1, batch_windows=5
    )
    assert set(shapes) == {(5, 8, 8, 1)} and len(shapes) == 6  # 7 slices x 2 x 2 windows in fives
    assert np.allclose(out, image, atol=1e-6)


def test_rows_are_computed_on_demand_and_forgotten():
    image = np.random.default_rng(3).normal(size=(40, 8, 8, 1)).astype(np.float32)
    calls = []
    scores = windows.WindowScores(
        lambda batch: calls.append(1) or batch, image, (8, 8, 8), 1, batch_windows=1
    )
    first = scores[0:4]
    assert len(calls) <= 4  # two windows, and what is under way
    assert np.allclose(first, image[0:4], atol=1e-6) and np.allclose(
        scores[3:20], image[3:20], atol=1e-6
    )
    assert min(scores._rows) == 3 and len(scores._rows) <= 26
    with pytest.raises(UsageError, match="gone"):
        scores[0:1]


def test_threads_do_not_change_the_result(monkeypatch):
    image = np.random.default_rng(4).normal(size=(12, 9, 9, 1)).astype(np.float32)
    plain = windows.sliding_window(lambda batch: batch * 3, image, (6, 6, 6), 1)
    monkeypatch.setattr(windows, "THREADED", 1)
    assert np.array_equal(
        plain, windows.sliding_window(lambda batch: batch * 3, image, (6, 6, 6), 1)
    )
