"""The prompted task on a toy network: what it asks for, what it counts, what reaches the losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medjax.errors import UsageError
from medjax.losses import cross_entropy, dice
from medjax.models import context as contexts
from medjax.prompts import types
from medjax.tasks import prompted
from tests.support import toy_prompted
from tests.train import test_toy as toy

PATCH = (4, 6, 8)
LOSSES = (
    ("cross_entropy", 1.0, cross_entropy.make("per_annotating", "mean")),
    ("dice", 1.0, dice.make("sample", 1.0, "mean")),
)
FACTS = {"table": toy.TABLE, "known": toy.KNOWN, "ignore_ids": toy.IGNORE, "patch": PATCH}
MODULE = toy_prompted.make(text_rows=3, patch=PATCH)


def applied(method=None):
    def call(params, array, context=None, train=False, key=None):
        return MODULE.apply({"params": params}, array, context, train, method=method)

    return call


METHODS = {name: applied(name) for name in MODULE.programs}


@pytest.fixture(scope="module")
def params():
    make = jax.jit(lambda key: contexts.initialise(MODULE, key, jnp.zeros((1, *PATCH, 1))))
    return make(jax.random.key(0))


@pytest.fixture(scope="module")
def two():
    """Two objects under all sets, with tight boxes: the task and a prepared batch."""
    made = task(organs=2, box_jitter="none")
    return made, jax.jit(made.prepare)(batch(), jax.random.key(1))


def task(forward=None, **changes):
    given = FACTS | {"reads": MODULE.reads, "methods": METHODS} | changes
    return prompted.make(forward or applied(), LOSSES, **given)


def batch(n=4, seed=0):
    """A block of id 1 within one of id 2 (corpus 0: liver around a tumour), or ids of corpus 1."""
    found = toy.host_batch(seed, n, PATCH)
    label = np.zeros((n, *PATCH), np.int16)
    label[:, 2:4, :4, 2:8] = 1
    label[:, 2:4, 2:4, 4:6] = 2
    found["label"] = label
    found["corpus"] = (np.arange(n) % 2).astype(np.int32)
    found["image"] = (label[..., None] * 400).astype(np.int16)
    return {name: jnp.asarray(value) for name, value in found.items()}


def test_every_object_is_asked_for_under_every_set(two):
    _, prepared = two
    assert prepared["target"].shape == (4, 2, *PATCH)
    names = {**types.leaves(12, mask=MODULE.low)}
    for name, leaf in names.items():
        assert prepared[name].shape == (4, *leaf.shape) and prepared[name].dtype == leaf.dtype
    # corpus 0 has liver and tumour; corpus 1 one kidney: its second object does not count
    assert np.sort(prepared["chosen"][0]).tolist() == [0, 1]
    assert prepared["chosen"][1, 0] == 2
    valid = np.asarray(prepared["valid"])
    assert valid[0].all() and valid[1, 0].all() and not valid[1, 1].any()
    has = np.asarray(prepared[types.HAS]).reshape(4, 2, 6, 3)
    np.testing.assert_array_equal(has[2, 1], [types.kinds_of(one) for one in types.SETS])
    text = np.asarray(prepared[types.TEXT]).reshape(4, 2, 6)
    wanted = np.where(has[..., 2], np.asarray(prepared["chosen"])[..., None], types.NO_TEXT)
    np.testing.assert_array_equal(text, wanted)


def test_points_and_boxes_are_those_of_the_object(two):
    _, prepared = two
    queries = {
        name: np.asarray(prepared[name]).reshape(4, 2, 6, *prepared[name].shape[2:])[:, :, 5]
        for name in (types.KIND, types.POINTS, types.BOX)
    }  # box+points
    target, kinds = np.asarray(prepared["target"]), queries[types.KIND]
    places = queries[types.POINTS].astype(int)
    for sample, organ in ((0, 0), (0, 1), (1, 0), (2, 1)):
        mask, kind = target[sample, organ], kinds[sample, organ]
        at = tuple(places[sample, organ][kind >= 0].T)
        np.testing.assert_array_equal(mask[at], kind[kind >= 0] == types.POSITIVE)
        assert (kind == types.POSITIVE).any() and set(kind) <= {1, 0, -1}
        corners = np.argwhere(mask)
        tight = [*corners.min(0), *corners.max(0)]
        np.testing.assert_array_equal(queries[types.BOX][sample, organ], tight)
    liver = np.flatnonzero(np.asarray(prepared["chosen"])[0] == 0)[0]
    assert target[0, liver].sum() == 2 * 4 * 6  # with the tumour in it


def test_sets_without_a_kind_hold_nothing_of_it(two):
    _, prepared = two
    has = np.asarray(prepared[types.HAS])
    assert np.all(np.asarray(prepared[types.KIND])[~has[..., 0]] == types.ABSENT)
    assert np.all(np.asarray(prepared[types.BOX])[~has[..., 1]] == -1)
    assert np.all(np.asarray(prepared[types.TEXT])[~has[..., 2]] == types.NO_TEXT)


def test_the_draw_is_a_function_of_the_key(params):
    made, key = task(), jax.random.key(5)
    loss = jax.jit(made.loss)
    one, _ = loss(params, batch(), key)
    again, _ = loss(params, batch(), key)
    other, _ = loss(params, batch(), jax.random.key(6))
    assert one == again and one != other


def test_the_losses_are_averaged_over_objects_and_summed_over_sets(two):
    """Rows with constant logits: cross-entropy log 2, Dice from sigmoid 1/2."""

    def flat(params, image, context, train, key=None):
        queries = context[types.HAS].shape[1]
        return {"logits": jnp.zeros((image.shape[0], queries, *PATCH)) + 0 * params}

    made, prepared = dataclasses.replace(two[0], apply=flat), two[1]
    value, parts = jax.jit(made.prepared_loss)(jnp.ones(()), prepared, jax.random.key(1))
    voxels = np.prod(PATCH)
    sizes = np.asarray(prepared["target"]).sum((2, 3, 4))
    weight = np.asarray(prepared["weight"])  # ids that corpus 1 ignores
    scores = []
    for b in range(4):
        for o in range(2):
            if prepared["valid"][b, o, 0]:
                inside = (weight[b] * np.asarray(prepared["target"])[b, o]).sum()
                scores.append((inside + 1) / (weight[b].sum() / 2 + inside + 1))
    assert sizes[0].max() == 48 and voxels == 192
    np.testing.assert_allclose(parts["loss/cross_entropy"], np.log(2), rtol=1e-5)
    np.testing.assert_allclose(parts["loss/dice"], -np.mean(scores), rtol=1e-5)
    np.testing.assert_allclose(value, 6 * (np.log(2) - np.mean(scores)), rtol=1e-5)


def test_objects_that_are_absent_are_asked_for_by_text_only():
    made = task(organs=1, text_only_absent=1.0)
    given = batch()
    given["label"] = jnp.where(given["label"] == 2, 1, given["label"])  # no tumour
    prepared = jax.jit(made.prepare)(given, jax.random.key(2))
    np.testing.assert_array_equal(prepared["chosen"][::2, 0], [1, 1])
    assert not np.asarray(prepared["target"])[::2].any()
    np.testing.assert_array_equal(prepared["valid"][0, 0], [s == "text" for s in types.SETS])
    # corpus 1 annotates one class, which is there
    np.testing.assert_array_equal(prepared["chosen"][1::2, 0], [2, 2])
    assert np.asarray(prepared["valid"])[1::2].all()


def test_a_sample_without_an_object_gives_no_gradient(params, two):
    made, prepared = two
    valid = prepared["valid"].at[0].set(False)

    def loss(image):
        given = {**prepared, "image": image, "valid": valid}
        return made.prepared_loss(params, given, jax.random.key(0))[0]

    found = np.abs(np.asarray(jax.jit(jax.grad(loss))(prepared["image"]))).sum((1, 2, 3, 4))
    assert found[0] == 0 and found[1] > 0


def test_a_corrective_round_clicks_into_the_error(params):
    made = task(organs=1, sets=("box",), rounds=1)
    prepared = jax.jit(made.prepare)(batch(), jax.random.key(0))
    own = {name: prepared[name] for name in made.reads if name.startswith(types.PREFIX)}
    truth = np.asarray(prepared["target"])
    perfect = np.where(truth, 1.0, -1.0).astype(np.float32)
    wrong = perfect.copy()
    wrong[:, :, 3, 5, 7] = 1
    wrong[1] = perfect[1]
    wrong[1, 0, 2] = -1  # a miss
    low = np.full((4, 1, *MODULE.low), 0.5, np.float32)
    again = jax.jit(made._corrected)

    def corrected(logits, own=own):
        outputs = {"logits": logits, "low": low}
        found = again(jax.random.key(1), own, outputs, prepared)
        return {name: np.asarray(value) for name, value in found.items()}

    found = corrected(wrong)
    kinds, places = found[types.KIND][:, 0], found[types.POINTS][:, 0]
    assert kinds[0, 0] == types.NEGATIVE and places[0, 0].tolist() == [3, 5, 7]
    assert kinds[1, 0] == types.POSITIVE and truth[1, 0][tuple(places[1, 0].astype(int))]
    assert found[types.HAS][:, 0].tolist() == [[True, True, False]] * 4
    assert np.all(found[types.MASK] == 0.5) and np.all(kinds[:, 1:] == types.ABSENT)
    full = own | {types.KIND: np.ones_like(own[types.KIND])}
    assert corrected(wrong, full)[types.KIND][0, 0, -1] == types.NEGATIVE
    same = corrected(perfect)
    np.testing.assert_array_equal(same[types.KIND], own[types.KIND])
    assert not same[types.HAS][..., 0].any()


def test_rounds_train_from_one_embedding(params):
    calls = []
    counted = {
        "encode": lambda *a: (calls.append("encode"), METHODS["encode"](*a))[1],
        "decode": lambda *a: (calls.append("decode"), METHODS["decode"](*a))[1],
    }
    made = task(methods=counted, rounds=2, sets=("text", "box"))
    prepared = jax.jit(made.prepare)(batch(), jax.random.key(0))
    (value, parts), slope = jax.jit(
        jax.value_and_grad(
            lambda p: made.prepared_loss(p, prepared, jax.random.key(0)), has_aux=True
        )
    )(params)
    assert calls == ["encode", "decode", "decode", "decode"]
    assert np.isfinite(value) and set(parts) == {
        "loss/cross_entropy",
        "loss/dice",
        "loss/last_round",
    }
    assert all(np.any(leaf) for leaf in jax.tree.leaves(slope))


def test_validation_counts_the_voxels_of_the_objects(params):
    made = task(validate_set="box+text")
    given = batch()
    found = {k: np.asarray(v) for k, v in jax.jit(made.validate)(params, given).items()}
    prepared = jax.jit(lambda given: made.prepare(given, None))(given)
    logits = jax.jit(applied())(params, prepared["image"], made.context(prepared))["logits"]
    expected = np.zeros((3, 3), int)
    for b in range(4):
        for o in range(3):
            if not prepared["valid"][b, o, 0]:
                continue
            use = np.asarray(prepared["weight"])[b] > 0
            truth = np.asarray(prepared["target"])[b, o][use]
            mask = np.asarray(logits)[b, o][use] > 0
            c = int(prepared["chosen"][b, o])
            expected[:, c] += [(mask & truth).sum(), (mask & ~truth).sum(), (~mask & truth).sum()]
    np.testing.assert_array_equal(np.stack([found[k] for k in ("tp", "fp", "fn")]), expected)
    assert expected[[0, 2]].sum(0).tolist() == [96, 16, 80]


@pytest.mark.slow
def test_a_training_learns_to_follow_its_prompts(params):
    """Boxes and texts of two nested objects: after some steps either finds its own."""
    made = task(organs=2, sets=("text", "box"))
    given = batch()
    optimizer = optax.adam(0.01)

    @jax.jit
    def step(params, state, key):
        slope = jax.grad(lambda p: made.loss(p, given, key)[0])(params)
        change, state = optimizer.update(slope, state)
        return optax.apply_updates(params, change), state

    state = optimizer.init(params)
    for number in range(400):
        params, state = step(params, state, jax.random.key(number))
    for name in ("text", "box"):
        judged = dataclasses.replace(made, validate_set=name)
        found = jax.jit(judged.validate)(params, given)
        score = 2 * found["tp"] / (2 * found["tp"] + found["fp"] + found["fn"])
        assert np.all(np.asarray(score) > 0.8), (name, score)


def test_unusable_options_are_refused():
    for changes, words in (
        ({"reads": contexts.DEFAULT}, "reads prompts"),
        ({"sets": ("boks",)}, "boks"),
        ({"box_jitter": "shake"}, "jitter"),
        ({"positives": (0, 20)}, "slots"),
        ({"text_only_absent": 0.5, "sets": ("box",)}, "by text"),
        ({"rounds": 1, "methods": {}}, "corrective rounds"),
        ({"organs": -1}, "unusable options"),
    ):
        with pytest.raises(UsageError, match=words):
            task(**changes)


@pytest.mark.slow
def test_a_corpus_without_names_is_not_asked_for_by_text(params):
    """`sets_of`: queries of its objects with a text do not count, in losses and validations."""
    places = ("box", "points", "box+points")
    made = task(organs=2, sets_of={"B": places}, corpora=("A", "B"))
    whole = task(organs=2, corpora=("A", "B"))
    key = jax.random.key(1)
    valid, all_of = (np.asarray(one.prepare(batch(), key)["valid"]) for one in (made, whole))
    named = np.array(["text" in one for one in types.SETS])
    np.testing.assert_array_equal(valid[::2], all_of[::2])
    assert valid[1, 0].tolist() == (~named).tolist() and valid[0].all()
    counted = jax.eval_shape(made.validate, params, batch())
    assert set(counted) == {"tp", "fp", "fn"}
    held = np.asarray(made.prepare(batch(), None)["valid"])
    assert held[0].any() and not held[1].any()  # asked for by points and text
    for own, message in (({"C": places}, "unknown corpus 'C'"), ({"B": ("bax",)}, "not a part")):
        with pytest.raises(UsageError, match=message):
            task(sets_of=own, corpora=("A", "B"))
