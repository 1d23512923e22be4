"""Counts, Dice, IoU and volumes: by hand, against a brute-force count, and the laws they obey."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.errors import MetricError
from medjax.metrics import overlap


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


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_one_confusion_table_serves_nested_classes(seed):
    rng = np.random.default_rng(seed)
    reference, prediction = rng.integers(0, 4, (2, 3, 4, 5)).astype(np.uint8)
    members = np.array([[0, 0], [1, 0], [1, 1], [0, 0]], bool)  # class 0 = ids 1 and 2, class 1 = id 2; id 3 is ignored
    table = overlap.confusion(reference, prediction, 4)
    assert table.sum() == 60 and table[1, 2] == ((reference == 1) & (prediction == 2)).sum()
    for counts, ids in zip(overlap.count_classes(table, members, ignore_id=3), ([1, 2], [2]), strict=True):
        assert counts == overlap.count(np.isin(reference, ids), np.isin(prediction, ids), valid=reference != 3)


def test_volume_in_millilitres():
    assert overlap.volume_ml(2000, (5.0, 0.5, 0.5)) == 2.5


def test_masks_of_different_shape_are_refused():
    with pytest.raises(MetricError, match="different shape"):
        overlap.count(np.zeros(3, bool), np.zeros(4, bool))
