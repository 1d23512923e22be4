"""Counts, Dice, IoU and volumes: by hand, against a brute-force count, and the laws they obey."""

import math

import numpy as np
import pytest

from medjax.errors import MetricError
from medjax.metrics import counts as overlap


def test_counts_by_hand():
    reference = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool)
    prediction = np.array([1, 1, 0, 1, 0, 0, 0, 0], bool)
    counts = overlap.count(reference, prediction)
    assert counts == (2, 1, 1, 4)
    assert (counts.n_reference, counts.n_prediction) == (3, 3)
    assert counts.dice == pytest.approx(2 / 3) and counts.iou == 0.5
    assert overlap.count(reference, prediction, valid=np.arange(8) < 3) == (2, 0, 1, 0)


def test_empty_masks_have_no_score():
    nothing = overlap.count(np.zeros(5, bool), np.zeros(5, bool))
    assert nothing == (0, 0, 0, 5) and math.isnan(nothing.dice) and math.isnan(nothing.iou)
    assert overlap.count(np.ones(5, bool), np.zeros(5, bool)).dice == 0.0


def test_volume_in_millilitres():
    assert overlap.volume_ml(2000, (5.0, 0.5, 0.5)) == 2.5


def test_masks_of_different_shape_are_refused():
    with pytest.raises(MetricError, match="different shape"):
        overlap.count(np.zeros(3, bool), np.zeros(4, bool))
