"""One interface for all kinds of augmentation: words, settings, and the patch that is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.augment import kinds, nnunet, turns
from medjax.errors import UsageError
from medjax.labels import Corpus
from medjax.sample.patches import enlarged_patch
from tests.augment.test_nnunet import volume

KIDNEYS = Corpus("A", ((1, ("kidney_left",)), (2, ("kidney_right",))))


def batch(shape, channels=1):
    image, label = volume(shape)
    return jnp.asarray(np.repeat(image, channels, -1))[None], jnp.asarray(label)[None]


def test_off_is_nothing_and_cuts_the_patch():
    assert kinds.make({"on": False, "kind": "none"}, kinds.Facts((8, 8))) is None
    assert kinds.cut({"on": False}, (8, 9, 10)) == (8, 9, 10)
    assert kinds.cut({"on": True}, (8, 9, 10)) == enlarged_patch((8, 9, 10))
    assert kinds.cut({"on": True, "kind": "turns"}, (8, 8)) == (8, 8)


def test_every_kind_is_its_function():
    key = jax.random.key(3)
    image, label = batch((12, 12))
    found = kinds.make({"on": True, "kind": "turns", "turn": 1.0}, kinds.Facts((8, 8)))
    wanted = turns.turns(key, image, label, (8, 8), turns.Turns(turn=1.0))
    for a, b in zip(found(key, image, label), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    for given, axes in (({}, (1,)), ({"flip_axes": (0,)}, (0,)), ({"flip_axes": ()}, ())):
        found = kinds.make({"on": True, "kind": "flips"} | given, kinds.Facts((8, 8)))
        wanted = turns.flips(key, image, label, (8, 8), axes)
        for a, b in zip(found(key, image, label), wanted, strict=True):
            np.testing.assert_array_equal(a, b)
    found = kinds.make({"on": True, "noise": 1.0}, kinds.Facts((8, 8)))
    wanted = nnunet.augment(key, image, label, (8, 8), nnunet.Augmentation(noise=1.0))
    assert not found.by_corpus
    for a, b in zip(found(key, image, label), wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_lateral_classes_want_the_corpora():
    given = {"on": True, "lateral": "auto", "mirror": 1.0}
    found = kinds.make(given, kinds.Facts((6, 6, 6), (KIDNEYS,)))
    assert found.by_corpus
    image, label = batch((6, 6, 6))
    with pytest.raises(UsageError, match="per corpus"):
        found(jax.random.key(0), image, label)
    with pytest.raises(UsageError, match="RAS orientation only"):
        pairs = (tuple(KIDNEYS.classes),)
        kinds.make(given | {"lateral": pairs}, kinds.Facts((6, 6, 6), (KIDNEYS,), "stored"))
    chosen = kinds.make(given | {"swap_axis": 0}, kinds.Facts((6, 6, 6), (KIDNEYS,), "stored"))
    assert chosen.by_corpus


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "turn"}, "unknown augmentation 'turn'.*did you mean turns"),
        ({"kind": "flips", "axes": (0,)}, "no field 'axes'.*flip_axes"),
        ({"kind": "turns", "shift": 0.1}, "no field 'shift'"),
        ({"shfit": 0.1}, "no field 'shfit'.*did you mean shift"),
    ],
)
def test_wrong_words(given, words):
    with pytest.raises(UsageError, match=words):
        kinds.make({"on": True} | given, kinds.Facts((8, 8)))
