"""What a network is given about the corpus whose protocol is asked for."""

import pytest

from medjax.errors import UsageError
from medjax.infer.model import Model, Segmentation
from medjax.labels import Corpus, merge
from medjax.prepare.plan import Plan

PLAN = Plan({}, {})
SPACE = merge(
    [
        Corpus("A", ((1, ("liver",)),), modality="MR", channels=("T1w",)),
        Corpus("B", ((1, ("spleen",)),), modality="CT", channels=("CT",)),
        Corpus("C", ((1, ("liver",)),), modality="MR", channels=("T2w",)),
    ]
)


def model(**fields):
    return Model(apply=dict, params={}, plan=PLAN, space=SPACE, window=(8, 8, 8), **fields)


def test_corpus_and_modality_are_positions_in_the_label_space():
    order = SPACE.modalities
    expected = [(i, order.index(m)) for i, m in enumerate(("MR", "CT", "MR"))]
    assert [model().condition(name) for name in "ABC"] == expected
    assert len({modality for _, modality in expected}) == 2


def test_a_network_that_was_trained_with_others_keeps_its_own():
    found = model(conditions={"B": (7, 3)})
    assert found.condition("B") == (7, 3)
    assert found.condition("C") == model().condition("C")


def test_an_unknown_corpus_is_named():
    with pytest.raises(UsageError, match=r"'D'.*Known: A, B, C"):
        model(conditions={"D": (0, 0)}).condition("D")


def test_a_segmentation_has_no_maps_unless_asked_for():
    assert Segmentation(None, None)[2:] == ({}, {})
