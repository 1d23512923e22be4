"""Resampling in pieces gives the numbers of resampling at once, and reads no more than it needs."""

import numpy as np
import pytest

from medjax.prepare import resample, resample_rows


def source(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


CASES = {  # shape, new shape, spacing, new spacing
    "the same grid": ((9, 6, 5), (9, 6, 5), (2, 1, 1), (2, 1, 1)),
    "only in the plane": ((9, 6, 5), (9, 9, 4), (2, 1, 1), (2, 0.67, 1.25)),
    "all axes": ((9, 6, 5), (30, 8, 7), (1, 1, 1), (0.3, 0.75, 0.72)),
    "fewer rows": ((40, 6, 5), (7, 6, 5), (1, 1, 1), (5.7, 1, 1)),
    "coarse rows": ((5, 8, 8), (11, 6, 9), (5, 1, 1), (2.3, 1.33, 0.89)),
    "coarse columns": ((8, 8, 5), (6, 9, 11), (1, 1, 5), (1.33, 0.89, 2.3)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("piece", [20, 10**6])
def test_pieces_are_the_whole(name, piece, monkeypatch):
    shape, new_shape, spacing, new_spacing = CASES[name]
    whole = source(shape)
    small = resample_rows.pieces
    monkeypatch.setattr(resample_rows, "pieces", lambda of: small(of, piece))
    monkeypatch.setattr(resample_rows, "_ROWS", 3)
    expected = resample.resample_image(whole, new_shape, spacing, new_spacing)
    found, stop = np.full(new_shape, np.nan, np.float32), 0
    limits = (float(whole.min()), float(whole.max()))
    for rows, part in resample_rows.image_rows(
        lambda rows: whole[rows], shape, new_shape, spacing, new_spacing, limits
    ):
        assert rows.start == stop and part.dtype == np.float32
        found[rows], stop = part, rows.stop
    assert stop == new_shape[0]
    assert np.allclose(found, expected, atol=1e-5)


def test_the_cases_are_those_of_the_module():
    assert resample.separate_axis(*CASES["coarse rows"][2:]) == 0
    assert resample.separate_axis(*CASES["coarse columns"][2:]) == 2
    assert resample.separate_axis(*CASES["all axes"][2:]) is None


def test_pieces_cover_the_first_axis_within_their_size():
    found = list(resample_rows.pieces((10, 3, 4), 40))
    assert found == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]
    assert list(resample_rows.pieces((2, 300, 400), 10)) == [slice(0, 1), slice(1, 2)]


def test_the_result_stays_within_the_limits():
    step = np.zeros((8, 6, 6), np.float32)
    step[4:] = 100
    parts = [
        part
        for _, part in resample_rows.image_rows(
            lambda rows: step[rows], step.shape, (19, 6, 6), (1, 1, 1), (0.42, 1, 1), (0.0, 100.0)
        )
    ]
    found = np.concatenate(parts)
    assert found.min() == 0 and found.max() == 100 and 10 < found[9].mean() < 90
