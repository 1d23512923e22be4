"""Left and right: names with a side, what "auto" decides, and that mirrored bodies are labelled as
bodies are.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.augment import kinds, lateral, nnunet
from medjax.augment.lateral import Sides, find_pairs, has_side
from medjax.errors import LabelError, UsageError
from medjax.labels import Corpus

PAIRS = [
    ("kidney_left", "Kidney_Right"),
    ("left lung", "right lung"),
    ("lung upper lobe left", "lung upper lobe right"),
    ("FemurL", "FemurR"),
    ("KidneyLeft", "KidneyRight"),
    ("adrenal gland (L)", "adrenal gland (R)"),
    ("4L", "4R"),
    ("ctx-lh-insula", "ctx-rh-insula"),
    ("Niere links", "Niere rechts"),
    ("linke Niere", "rechte Niere"),
    ("rein gauche", "rein droit"),
    ("surrénale gauche", "surrénale droite"),
    ("riñón izquierdo", "riñón derecho"),
    ("rene sinistro", "rene destro"),
    ("Left-Lateral-Ventricle", "Right-Lateral-Ventricle"),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
def test_names_that_differ_in_their_side_are_a_pair(pair):
    assert find_pairs(["liver", *pair]) == (pair,)
    assert find_pairs([*pair[::-1], "spleen"]) == (pair[::-1],)
    assert has_side(pair[0]) and has_side(pair[1])


@pytest.mark.parametrize(
    "name",
    [
        "liver",
        "bright spot",
        "Larynx",
        "vertebra L5",
        "vertebrae_L1",
        "rib 12",
        "cleft",
        "LV",
        "RV",
    ],
)
def test_other_names_have_no_side(name):
    assert not has_side(name)


@pytest.mark.parametrize(
    "organ",
    ["ventricle", "heart_atrium", "atrial appendage", "hepatic vein", "lobe of the liver", "colon"],
)
def test_structures_that_keep_their_name_in_a_mirrored_body_are_no_pair(organ):
    assert find_pairs([f"left {organ}", f"right {organ}"]) == ()


def corpus(name, *classes, **fields):
    return Corpus(name, tuple((i, (c,)) for i, c in enumerate(classes, 1)), **fields)


BOTH = corpus("Both", "kidney left", "liver", "kidney right")
AUTO = [  # corpora, exchanged ids, part of the reason
    ((BOTH,), (((1, 3),),), ""),
    ((BOTH, corpus("Heart", "left ventricle", "right ventricle")), (((1, 3),), ()), ""),
    ((corpus("Liver", "liver", "tumour"),), (), ""),
    ((BOTH, corpus("One", "kidney left")), (), "kidney left of One has no annotated partner"),
    # the hidden kidney must not become the annotated one of a mirrored scan
    (
        (corpus("View", "kidney left", "kidney right", annotated=("kidney left",)),),
        (),
        "kidney left of View has no annotated partner",
    ),
    (
        (
            Corpus(
                "Cyst",
                ((1, ("kidney left",)), (2, ("kidney right",)), (3, ("kidney left", "cyst"))),
            ),
        ),
        (),
        "cyst, kidney left of Cyst has no counterpart",
    ),
]


@pytest.mark.parametrize(("corpora", "swap", "reason"), AUTO, ids=range(len(AUTO)))
def test_auto_exchanges_or_says_why_not(corpora, swap, reason):
    found = lateral.sides(corpora, "auto")
    assert found.swap == swap and bool(found.reason) == bool(reason) and reason in found.reason
    said = lateral.sentence(corpora, "auto")
    if reason:
        assert said == f"left and right: not mirrored, because {found.reason}"
    elif any(swap):
        assert said == (
            "left and right: exchanged in mirrored images: kidney left and kidney right"
        )
    else:
        assert said == "" and not found


def test_pairs_by_hand_stay_strict():
    pairs = (("kidney left", "kidney right"),)
    assert lateral.sides([BOTH], pairs) == Sides((((1, 3),),), pairs)
    assert lateral.sides([BOTH], ()) == Sides() and "stay as they are" in lateral.sentence(
        [BOTH], ()
    )
    with pytest.raises(LabelError, match="without its partner"):
        lateral.sides([corpus("One", "kidney left"), BOTH], pairs)
    with pytest.raises(UsageError, match=r"unknown augment.lateral 'aut'.*did you mean auto"):
        lateral.sides([BOTH], "aut")
    with pytest.raises(UsageError, match="RAS orientation only"):
        lateral.sides([BOTH], pairs, False)
    assert "axis is unknown" in lateral.sides([BOTH], "auto", False).reason


# A body that is its own mirror image across the last axis, and has a front and a back, a top and a
# bottom: whatever turns and mirrors do, equal images must have equal labels.


def _body(shape):
    rng = np.random.default_rng(0)
    half = rng.integers(1, 200, (*shape[:-1], shape[-1] // 2)).astype(np.float32)
    sides = rng.integers(0, 2, half.shape)  # some voxels of the left half are left kidney
    image = np.concatenate([half, half[..., ::-1]], -1)
    label = np.concatenate([sides * 1, sides[..., ::-1] * 3], -1)
    return image[None, ..., None], label[None]


def _outcomes(given, shape, draws=96):
    """image -> its labels, over many draws."""
    image, label = map(jnp.asarray, _body(shape))
    made = kinds.make({"on": True} | given, kinds.Facts(shape, (BOTH,)))
    step = jax.jit(lambda key: made(key, image, label, jnp.zeros(1, jnp.int32)))
    found = {}
    for k in range(draws):
        one, ids = (np.asarray(a) for a in step(jax.random.key(k)))
        found.setdefault(one.tobytes(), set()).add(ids.tobytes())
    return found


STILL = {
    field.name: 0.0
    for field in dataclasses.fields(nnunet.Augmentation)
    if field.type is float and field.name != "mirror"
}
MOVES = [  # settings, shape, different images
    (STILL, (4, 5, 6), 4),
    (STILL | {"quarter": 0.7}, (6, 6), 4),
    (STILL | {"quarter": 0.7}, (3, 6, 6), 8),
    ({"kind": "turns", "turn": 0.7, "rotation": 0.0}, (6, 6), 4),
    ({"kind": "flips", "flip_axes": (0, 1)}, (6, 6), 2),
]


@pytest.mark.parametrize(("given", "shape", "images"), MOVES, ids=range(len(MOVES)))
def test_equal_images_have_equal_labels(given, shape, images):
    found = _outcomes(given | {"lateral": "auto"}, shape)
    assert len(found) == images and all(len(labels) == 1 for labels in found.values())
    unswapped = _outcomes(given, shape)  # without it the same image comes with both labels
    assert any(len(labels) == 2 for labels in unswapped.values())


ONE = (corpus("One", "kidney left", "liver"),)


@pytest.mark.parametrize(
    ("given", "shape", "moved"),
    [
        (STILL, (4, 5, 6), {(0,), (1,), (0, 1), ()}),
        (STILL | {"rotation": 1e-9}, (5, 6), {()}),  # slices turn by up to 180 degrees
        (STILL | {"mirror_axes": (0, 2)}, (4, 5, 6), {(0,), ()}),
        ({"kind": "flips", "flip_axes": (0, 1)}, (5, 6), {(0,), ()}),
        ({"kind": "turns", "turn": 1.0, "rotation": 0.0}, (6, 6), {()}),
    ],
)
def test_without_a_partner_nothing_is_mirrored_that_exchanges_sides(given, shape, moved):
    image = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(1, *shape, 1)
    label = jnp.ones((1, *shape), jnp.int32)
    made = kinds.make({"on": True, "lateral": "auto"} | given, kinds.Facts(shape, ONE))
    assert not made.by_corpus
    flips = {
        np.flip(np.asarray(image), [axis + 1 for axis in axes]).tobytes(): axes
        for axes in [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
        if all(axis < len(shape) for axis in axes)
    }
    step = jax.jit(made)
    images = (np.asarray(step(jax.random.key(k), image, label)[0]) for k in range(48))
    found = {flips[one.tobytes()] for one in images}
    assert found == moved


def test_the_axes_that_exchange_sides_follow_the_turns():
    axes = nnunet.exchanging_axes
    plain = nnunet.Augmentation()
    assert axes(plain, (64, 64, 64)) == (2,)  # turned by 30 degrees at most
    assert axes(plain, (20, 128, 128)) == (1, 2)  # slices turn by up to 180
    assert axes(plain, (64, 64)) == (0, 1)
    assert axes(dataclasses.replace(plain, rotation=0.0), (64, 64)) == (1,)
    assert axes(dataclasses.replace(plain, swap_axis=0), (20, 128, 128)) == (0,)
    assert axes(dataclasses.replace(plain, rotation_rad=3.0), (64, 64, 64)) == (0, 1, 2)
    assert axes(dataclasses.replace(plain, quarter=0.5), (64, 64, 64)) == (1, 2)


@pytest.mark.parametrize(
    ("given", "shape", "expected"),
    [
        ({"lateral": "auto"}, (64, 64, 64), (2,)),
        ({"lateral": "auto", "swap_axis": 0}, (64, 64, 64), (0,)),
        ({"lateral": "auto", "kind": "flips"}, (64, 64), (1,)),
        ({"lateral": "auto", "kind": "turns"}, (64, 64), (0, 1)),
        ({}, (64, 64, 64), ()),
        ({"lateral": "auto", "on": False}, (64, 64, 64), ()),
    ],
)
def test_prediction_leaves_out_the_mirrors_that_would_mix_sides(given, shape, expected):
    assert kinds.exchanging_axes({"on": True} | given, kinds.Facts(shape, (BOTH,))) == expected


def test_an_unknown_axis_stops_all_mirroring():
    facts = kinds.Facts((4, 4, 4), (BOTH,), "stored")
    given = {"on": True, "lateral": "auto"} | STILL | {"mirror": 1.0}
    image = jnp.arange(64, dtype=jnp.float32).reshape(1, 4, 4, 4, 1)
    label = jnp.zeros((1, 4, 4, 4), jnp.int32)
    got, _ = kinds.make(given, facts)(jax.random.key(0), image, label)
    np.testing.assert_array_equal(got, image)
    assert "augment.swap_axis names it" in kinds.sentence(given, facts)
    assert kinds.sentence(given | {"on": False}, facts) == ""
    named = kinds.sentence(given | {"swap_axis": 0}, facts)
    assert named.endswith("kidney left and kidney right")
