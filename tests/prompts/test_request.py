"""What a caller wants: classes in the order of the label space, and what a finished case must agree
with.
"""

import dataclasses
import json

import numpy as np
import pytest

from medjax.errors import LabelError
from medjax.labels import Corpus, merge
from medjax.prompts.request import Request

SPACE = merge(
    [
        Corpus("Liver", ((1, ("liver",)), (2, ("liver", "tumour"))), channels=("CT",)),
        Corpus("Spleen", ((1, ("spleen",)),), channels=("CT",)),
    ]
)


def test_classes_are_those_of_the_corpus_or_those_named_in_channel_order():
    assert Request("Liver").wanted(SPACE) == ("liver", "tumour")
    assert Request("Spleen").wanted(SPACE) == ("spleen",)
    assert Request("Spleen", ("spleen", "liver")).wanted(SPACE) == ("liver", "spleen")
    assert Request("Spleen", ()).wanted(SPACE) == ()
    for wrong in (Request("Livr"), Request("Liver", ("livr",))):
        with pytest.raises(LabelError, match="did you mean"):
            wrong.wanted(SPACE)


def test_a_request_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Request("Liver").corpus = "Spleen"


def test_settings_name_what_was_given_and_nothing_else():
    """Classes are recorded with the files; predictions of version 0.1 recorded the corpus alone."""
    assert Request("Liver", ("liver",)).settings() == {"corpus": "Liver"}
    found = Request("Liver", task="t", text={"liver": "words"}, adapter="a").settings()
    assert found == {"corpus": "Liver", "task": "t", "text": {"liver": "words"}, "adapter": "a"}
    point = np.array([[1.0, 2.0, 3.0]], np.float32)

    def prompted(value):
        found = Request("Liver", prompts={"points": value}).settings()["prompts"]
        return json.dumps(found)

    assert prompted(point) == prompted(point.copy()) != prompted(point + 1)
    assert prompted(point) != prompted(point[0])
