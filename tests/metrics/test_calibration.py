"""Calibration in closed form: what is known of a coin, of a constant and of a stretched logit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.decision import LEAST
from medjax.errors import MetricError
from medjax.metrics import calibration


def coin(p: float, n: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """n voxels of probability p, of which exactly the share p is foreground."""
    return np.full(n, p), np.arange(n) < round(p * n)


def test_a_coin_that_lands_as_said_has_no_error():
    p, y = coin(0.3)
    table = calibration.reliability(p, y)
    assert calibration.ece(table) == pytest.approx(0, abs=1e-12)
    assert calibration.brier(p, y) == pytest.approx(0.3 * 0.7)
    assert calibration.nll(p, y) == pytest.approx(-0.3 * np.log(0.3) - 0.7 * np.log(0.7))
    assert [row["voxels"] for row in table if row["voxels"]] == [1000]
    assert table[4] == {
        "low": 4 / 15,
        "high": 5 / 15,
        "voxels": 1000,
        "confidence": pytest.approx(0.3),
        "frequency": pytest.approx(0.3),
    }


def test_certain_and_wrong_is_the_worst():
    p, y = np.ones(50), np.zeros(50, bool)
    table = calibration.reliability(p, y)
    assert (calibration.ece(table), calibration.brier(p, y)) == (1, 1)
    assert calibration.nll(p, y) == pytest.approx(-np.log(LEAST))
    assert table[-1]["voxels"] == 50  # a probability of 1 lies in the last bin


def test_a_constant_is_off_by_its_distance_from_the_frequency():
    p, y = np.full(200, 0.9), np.arange(200) < 120
    assert calibration.ece(calibration.reliability(p, y)) == pytest.approx(0.3)
    assert calibration.brier(p, y) == pytest.approx(0.6 * 0.01 + 0.4 * 0.81)


def test_two_bins_are_weighed_by_their_voxels():
    p = np.r_[np.full(30, 0.1), np.full(10, 0.8)]
    y = np.r_[np.zeros(30, bool), np.ones(10, bool)]
    expected = (30 * 0.1 + 10 * 0.2) / 40
    assert calibration.ece(calibration.reliability(p, y, bins=2)) == pytest.approx(expected)
    assert len(calibration.reliability(p, y)) == calibration.BINS


def test_weights_stand_for_repeated_voxels():
    rng = np.random.default_rng(0)
    p, y, n = rng.random(40), rng.random(40) < 0.5, rng.integers(0, 4, 40)
    weighed, repeated = (p, y, n.astype(float)), (np.repeat(p, n), np.repeat(y, n))
    for score in (calibration.brier, calibration.nll):
        assert score(*weighed) == pytest.approx(score(*repeated))
    one, other = (calibration.ece(calibration.reliability(*g)) for g in (weighed, repeated))
    assert one == pytest.approx(other)


def test_nothing_to_measure():
    empty = np.zeros(0), np.zeros(0, bool)
    assert calibration.ece(calibration.reliability(*empty)) is None
    assert calibration.brier(*empty) is calibration.nll(*empty) is None


@pytest.mark.parametrize(
    ("p", "y", "said"),
    [
        ([1.5], [True], "between 0 and 1"),
        ([np.nan], [True], "between 0 and 1"),
    ],
)
def test_unusable_voxels_are_refused(p, y, said):
    with pytest.raises(MetricError, match=said):
        calibration.brier(np.array(p), np.array(y, bool))


def test_no_bin_is_refused():
    with pytest.raises(MetricError, match="needs a bin"):
        calibration.reliability(np.array([0.5]), np.array([True]), bins=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 60), st.integers(1, 30))
def test_scores_stay_within_their_limits(seed, n, bins):
    rng = np.random.default_rng(seed)
    p, y = rng.random(n), rng.random(n) < rng.random()
    table = calibration.reliability(p, y, bins=bins)
    assert 0 <= calibration.ece(table) <= 1
    assert 0 <= calibration.brier(p, y) <= 1
    assert sum(row["voxels"] for row in table) == n
    # the gap of all voxels together is no larger than the mean of the gaps of bins
    assert abs(p.mean() - y.mean()) <= calibration.ece(table) + 1e-9
    for row in table:
        if row["voxels"]:
            assert row["low"] - 1e-9 <= row["confidence"] <= row["high"] + 1e-9


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 5), st.integers(0, 100))
def test_a_temperature_changes_no_decision_and_no_order(t, seed):
    p = np.random.default_rng(seed).uniform(0.01, 0.99, 50)
    found = calibration.scaled(p, t)
    np.testing.assert_array_equal(found > 0.5, p > 0.5)
    np.testing.assert_array_equal(np.argsort(found), np.argsort(p))
    np.testing.assert_allclose(calibration.scaled(found, 1 / t), p, atol=1e-9)


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_the_temperature_of_stretched_logits_is_found(true):
    """Voxels drawn by sigmoid(x), of which the network says sigmoid(x * T)."""
    rng = np.random.default_rng(1)
    x = rng.normal(0, 2, 60_000)
    y = rng.random(len(x)) < 1 / (1 + np.exp(-x))
    said = 1 / (1 + np.exp(-x * true))
    found, told = calibration.temperature(said, y)
    assert told and found == pytest.approx(true, rel=0.05)
    after = calibration.scaled(said, found)
    assert calibration.nll(after, y) <= calibration.nll(said, y)
    assert calibration.ece(calibration.reliability(after, y)) < 0.01


def test_a_class_without_foreground_keeps_its_probabilities():
    p = np.array([0.1, 0.2])
    assert calibration.temperature(p, np.zeros(2, bool)) == (1.0, False)
    assert calibration.temperature(p, np.array([True, False]), np.array([0.0, 1])) == (1.0, False)


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("partial", [False, True])
def test_the_temperature_of_a_softmax_is_found(partial):
    """Also where half of the voxels annotate only the first of two classes."""
    rng = np.random.default_rng(2)
    x = rng.normal(0, 2, (40_000, 3))
    p = softmax(x)
    truth = (rng.random(len(x))[:, None] > np.cumsum(p, -1)).sum(-1)
    known = np.ones((len(x), 2), bool)
    if partial:
        known[::2, 1] = False
        truth = np.where((truth == 2) & ~known[:, 1], 0, truth)
    said = softmax(2.5 * x)[:, 1:]
    found, told = calibration.temperature_together(said, truth, known)
    assert told and found == pytest.approx(2.5, rel=0.05)
    np.testing.assert_allclose(calibration.scaled_together(said, 2.5)[:100], p[:100, 1:], atol=5e-3)


def test_a_softmax_of_one_class_is_a_sigmoid():
    p = np.linspace(0.01, 0.99, 30)
    together = calibration.scaled_together(p[:, None], 1.7)[:, 0]
    np.testing.assert_allclose(together, calibration.scaled(p, 1.7), atol=1e-9)
    y = p > 0.6
    one = calibration.temperature(p, y)
    other = calibration.temperature_together(p[:, None], y.astype(int), np.ones((30, 1), bool))
    assert one[0] == pytest.approx(other[0], rel=1e-3)
    assert (
        calibration.temperature_together(p[:, None], np.zeros(30, int), np.ones((30, 1), bool))[1]
        is False
    )
