"""What a network is given about a request, and what it refuses."""

import pytest

from medjax.errors import UsageError
from medjax.infer.model import Model, Segmentation
from medjax.labels import Corpus, merge
from medjax.models import context
from medjax.prepare.plan import Plan
from medjax.prompts.request import Request

PLAN = Plan({name: (1.0, 2.0, k) for k, name in enumerate("ABC", 3)}, {})
SPACE = merge(
    [
        Corpus("A", ((1, ("liver",)),), modality="MR", channels=("T1w",)),
        Corpus("B", ((1, ("spleen",)),), modality="CT", channels=("CT",)),
        Corpus("C", ((1, ("liver",)),), modality="MR", channels=("T2w",)),
    ]
)


def model(**fields):
    return Model(apply=dict, params={}, plan=PLAN, space=SPACE, window=(8, 8, 8), **fields)


def condition(made, corpus):
    found = made.facts(Request(corpus))
    return found["corpus"], found["modality"]


def test_corpus_and_modality_are_positions_in_the_label_space():
    order = SPACE.modalities
    expected = [(i, order.index(m)) for i, m in enumerate(("MR", "CT", "MR"))]
    assert [condition(model(), name) for name in "ABC"] == expected
    assert len({modality for _, modality in expected}) == 2


def test_a_network_that_was_trained_with_others_keeps_its_own():
    found = model(conditions={"B": (7, 3)})
    assert condition(found, "B") == (7, 3)
    assert condition(found, "C") == condition(model(), "C")


def test_facts_have_the_types_of_a_batch_of_training():
    found = model().facts(Request("C"))
    assert {name: value.dtype.name for name, value in found.items()} == {
        "corpus": "int32",
        "modality": "int32",
        "task": "int32",
        "spacing_mm": "float32",
    }
    assert found["spacing_mm"].tolist() == [1, 2, 5] and found["task"] == 2
    assert set(context.of_request(model().reads, found)) == set(context.DEFAULT)


def test_corpora_may_share_a_task():
    found = model(tasks={"A": 0, "C": 0, "B": 1, "abdomen": 0})
    assert [found.facts(Request(name))["task"] for name in "ABC"] == [0, 1, 0]
    assert found.facts(Request("B", task="abdomen"))["task"] == 0
    with pytest.raises(UsageError, match=r"no task 'abdomn'.*did you mean abdomen"):
        found.facts(Request("B", task="abdomn"))
    with pytest.raises(UsageError, match="no task 'abdomen'"):
        model().facts(Request("B", task="abdomen"))


def test_what_the_network_cannot_read_is_refused():
    reads = {"age": context.Entry((), "float32")}
    assert model(reads=reads).facts(Request("A", prompts={"age": 60}))["age"] == 60
    with pytest.raises(UsageError, match="does not read this input; found sex"):
        model(reads=reads).facts(Request("A", prompts={"age": 60, "sex": 1}))
    derived = reads | {"old": context.Entry((), "float32", derive=lambda f: f["birth"] < 1960)}
    given = Request("A", prompts={"age": 60, "birth": 1950})
    assert context.of_request(derived, model(reads=derived).facts(given))["old"] == 1
    with pytest.raises(UsageError, match="reads no text; found liver"):
        model().facts(Request("A", text={"liver": "a large organ"}))
    with pytest.raises(UsageError, match="has no adapter; found clinic"):
        model().facts(Request("A", adapter="clinic"))


def test_an_unknown_corpus_is_named():
    with pytest.raises(UsageError, match=r"'D'.*Known: A, B, C"):
        model(conditions={"D": (0, 0)}).facts(Request("D"))


def test_a_segmentation_has_no_maps_unless_asked_for():
    assert Segmentation(None, None)[2:] == ({}, {}, None, ())
