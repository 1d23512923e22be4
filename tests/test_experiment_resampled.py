"""Scores on the network's grid: the two rules for empty classes, and nested regions of a softmax."""

import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.experiment import resampled
from medjax.labels import Corpus, merge

EMPTY, HALF, FULL = np.zeros(4, bool), np.array([1, 1, 0, 0], bool), np.ones(4, bool)


@pytest.mark.parametrize(
    ("reference", "prediction", "standard", "released"),
    [
        (EMPTY, EMPTY, None, (0.0, 0.0)),
        (EMPTY, FULL, (0.0, 0.0), (1.0, 1.0)),
        (FULL, EMPTY, (0.0, 0.0), (0.0, 0.0)),
        (FULL, HALF, (2 / 3, 0.5), (2 / 3, 0.5)),
    ],
)
def test_empty_classes_follow_the_rule(reference, prediction, standard, released):
    assert resampled.class_scores(reference, prediction) == standard
    assert resampled.class_scores(reference, prediction, "released") == released


def test_a_softmax_decides_for_one_class_and_regions_hold_what_is_nested():
    probabilities = np.array([[0.6, 0.3], [0.2, 0.5], [0.3, 0.2], [0.0, 0.0]])  # liver, tumour; the rest is background
    mask = resampled.decide(probabilities, "softmax")
    np.testing.assert_array_equal(mask, [[1, 0], [0, 1], [0, 0], [0, 0]])
    space = merge([Corpus("A", ((1, ("liver",)), (2, ("liver", "tumour"))))])
    ids = space.corpora[0].to_ids(space.export(mask, "A"))
    masks = resampled.class_masks(ids, space, "A")
    assert masks["liver"].tolist() == [True, True, False, False] and masks["tumour"].tolist() == [False, True, False, False]


def test_an_unknown_rule_is_refused():
    with pytest.raises(UsageError, match="released"):
        resampled.class_scores(FULL, FULL, "realeased")
