"""What patches are centred on: ratios of background, organ and tumour; corpora that keep still."""

import dataclasses

import numpy as np
import pytest

from medjax.augment.movement import Movement
from medjax.errors import UsageError
from medjax.labels import Corpus
from medjax.sample import pool
from medjax.sample.draw import Recipe, Samples
from tests.sample.test_draw import digest, pools  # noqa: F401
from tests.sample.test_stream import take

LIVER = Corpus("MSD_Liver", ((1, ("liver",)), (2, ("liver", "liver tumour"))), channels=("CT",))
GIVEN = {"background": 1, "liver": 1, "liver tumour": 5}


def _shares(one, held, count=70_000):
    """Group of dense ids -> share of the draws."""
    chances = np.random.default_rng(0).random(count)
    drawn = [one.centre(chance, held) for chance in chances]
    return {group: drawn.count(group) / count for group in set(drawn)}


def test_a_class_counts_without_the_classes_that_it_contains():
    assert pool.ratios(LIVER, GIVEN) == (((), 1.0), ((1,), 1.0), ((2,), 5.0))
    assert pool.ratios(LIVER, {"liver": 2}) == (((1, 2), 2.0),)
    whole = Corpus("A", ((1, ("organ", "left")), (2, ("organ", "right"))), channels=("CT",))
    parts = pool.ratios(whole, {"organ": 1, "left": 1, "right": 1})
    assert parts == (((1,), 1.0), ((2,), 1.0))  # of the organ nothing is left


def test_draws_have_the_ratios_among_what_a_case_has():
    one = pool.Pool(0, "", ("a",), (1, 2), 0, ratios=pool.ratios(LIVER, GIVEN))
    found = _shares(one, {"1", "2"})
    assert found == pytest.approx({(): 1 / 7, (1,): 1 / 7, (2,): 5 / 7}, abs=0.01)
    assert _shares(one, {"1"}) == pytest.approx({(): 1 / 2, (1,): 1 / 2}, abs=0.01)
    assert _shares(one, set()) == {(): 1.0}
    never = dataclasses.replace(one, ratios=pool.ratios(LIVER, GIVEN | {"background": 0}))
    assert set(_shares(never, {"1", "2"})) == {(1,), (2,)} and _shares(never, ()) == {(): 1.0}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tumor": 1}, "does not annotate"),
        ({"liver": -1}, "must not be negative"),
        ({"liver": float("nan")}, "must not be negative"),
        ({"liver": 0, "background": 0}, "are all 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(given, words):
    with pytest.raises(UsageError, match=words) as found:
        pool.ratios(LIVER, given)
    assert "MSD_Liver" in str(found.value)


def test_a_stream_follows_the_ratios_of_its_pool(pools):  # noqa: F811
    """Cubes of ids 1 and 2 fill a small part of a case: a patch of one voxel shows its centre."""
    many, one = pools
    only = dataclasses.replace(many, ratios=(((2,), 1.0), ((1,), 3.0)))
    recipe = Recipe((1, 1, 1), 4, seed=3, foreground=0.0, oversample="probabilistic")
    labels = [
        int(Samples((only,), recipe, moves=None)(i, (0, i % 4))["label"].item()) for i in range(200)
    ]
    assert set(labels) == {1, 2} and labels.count(1) / 200 == pytest.approx(3 / 4, abs=0.1)
    forced = dataclasses.replace(recipe, balance="class", foreground=1.0)
    assert {int(Samples((only,), forced)(i, (0, 0))["label"].item()) for i in range(30)} == {1, 2}
    same = take(4, (many, one), recipe, threads=0), take(4, (only, one), recipe, threads=0)
    assert digest(same[0]) != digest(same[1])
    others = [[b["image"][b["corpus"] == 1] for b in batches] for batches in same]
    for mine, theirs in zip(*others, strict=True):
        np.testing.assert_array_equal(mine, theirs)  # the other corpus is drawn as before


def test_corpora_that_keep_still(pools):  # noqa: F811
    many, one = pools
    still = (dataclasses.replace(many, still=True), one)
    recipe = Recipe((10, 11, 9), 4, final=(6, 6, 6), seed=3)
    moves = Movement(0.0, 0.5, 1.0, (1 / 1.5, 1 / 1.3))
    for batch in take(6, still, recipe, threads=0, moves=moves):
        own = batch["corpus"] == 0
        assert (batch["scale"][own] == 1).all() and not batch["angles"].any()
        assert ((batch["scale"][~own] >= 1 / 1.5) & (batch["scale"][~own] <= 1 / 1.3)).all()
