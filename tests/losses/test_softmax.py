"""Softmax losses against formulae written out in numpy, M4oE's numbers, and the laws for absent
classes and nested regions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import decision
from medjax.errors import UsageError
from medjax.losses import softmax_cross_entropy, softmax_dice
from medjax.losses.parts import exclusive

CLASSES, VOL = 4, (5, 6)
# corpus 0: id 1 liver, 2 liver + tumour, 3 spleen; corpus 1: only the kidney (class 3)
TABLE = np.zeros((2, 4, CLASSES), bool)
TABLE[0, [1, 2], 0] = TABLE[0, 2, 1] = TABLE[0, 3, 2] = TABLE[1, 1, 3] = True
KNOWN = np.array([[1, 1, 1, 0], [0, 0, 0, 1]], bool)
OWN = {0: (0, 1, 2, 3), 1: (0, 4, 0, 0)}  # 1 + exclusive class of every id


def run(f, outputs, batch):
    """The loss, compiled: op by op it would be compiled op by op."""
    return jax.jit(f)(outputs, batch)


def _batch(corpus=(0, 1, 0), seed=0):
    rng = np.random.default_rng(seed)
    corpus = np.array(corpus)
    label = np.stack([rng.integers(0, 4 if c == 0 else 2, VOL) for c in corpus]).astype(np.int32)
    logits = rng.normal(size=(len(corpus), *VOL, CLASSES)).astype(np.float32)
    logits = np.where(KNOWN[corpus][:, None, None], logits, -np.inf)
    batch = {"label": label, "table": TABLE[corpus], "known": KNOWN[corpus], "corpus": corpus}
    return {"logits": jnp.asarray(logits)}, {k: jnp.asarray(v) for k, v in batch.items()}


def _oracle(outputs, batch):
    """Per sample: probabilities over its own channels (background first), one-hot targets, in
    float64.
    """
    for i, corpus in enumerate(np.asarray(batch["corpus"])):
        own = np.flatnonzero(KNOWN[corpus])
        x = np.concatenate(
            [np.zeros((*VOL, 1)), np.asarray(outputs["logits"][i], float)[..., own]], -1
        )
        p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
        exclusive_class = np.array(OWN[corpus])[np.asarray(batch["label"][i])]
        hot = exclusive_class[..., None] == np.concatenate([[0], 1 + own])
        yield p, hot


def test_cross_entropy_and_dice_follow_the_formulae_per_sample():
    outputs, batch = _batch()
    entropies, scores = [], []
    for p, hot in _oracle(outputs, batch):
        entropies.append(-np.log(p[hot]).mean())
        overlap, volume = (p * hot).sum((0, 1)), (p**2).sum((0, 1)) + hot.sum((0, 1))
        scores.append(1 - ((2 * overlap + 1e-5) / (volume + 1e-5)).mean())
    np.testing.assert_allclose(
        run(softmax_cross_entropy.make(), outputs, batch), np.mean(entropies), rtol=1e-5
    )
    np.testing.assert_allclose(
        run(softmax_cross_entropy.make(reduction="sum"), outputs, batch),
        np.sum(entropies),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        run(softmax_cross_entropy.make("batch"), outputs, batch), np.mean(entropies), rtol=1e-5
    )
    np.testing.assert_allclose(run(softmax_dice.make(), outputs, batch), np.mean(scores), rtol=1e-5)


def test_dice_pooled_by_corpus_without_background_is_nnunets():
    outputs, batch = _batch()
    per_sample = list(_oracle(outputs, batch))
    groups, losses = {0: [0, 2], 1: [1]}, {}
    for corpus, members in groups.items():
        overlap = sum((per_sample[i][0] * per_sample[i][1]).sum((0, 1)) for i in members)[1:]
        volume = sum((per_sample[i][0] + per_sample[i][1]).sum((0, 1)) for i in members)[1:]
        losses[corpus] = 1 - ((2 * overlap + 1e-5) / (volume + 1e-5)).mean()
    f = softmax_dice.make("corpus", squared=False, background=False)
    np.testing.assert_allclose(run(f, outputs, batch), (2 * losses[0] + losses[1]) / 3, rtol=1e-5)


@pytest.mark.parametrize(("p", "expected"), [(0.0, 0.0), (1e-3, 0.9998)])
def test_an_absent_class_costs_what_m4oes_dice_makes_it_cost(p, expected):
    """On 224 x 224: probability 0 costs 0, probability 1e-3 everywhere 0.9998; the background, the
    other class, costs next to nothing.
    """
    x = np.log(p / (1 - p)) if p else -np.inf
    outputs = {"logits": jnp.full((1, 224, 224, 1), x)}
    batch = {
        "label": jnp.zeros((1, 224, 224), jnp.int32),
        "table": jnp.zeros((1, 2, 1), bool).at[0, 1, 0].set(True),
    }
    loss = run(softmax_dice.make(), outputs, batch | {"known": jnp.ones((1, 1), bool)})
    np.testing.assert_allclose(2 * loss, expected, atol=2e-5)


@pytest.mark.parametrize(
    "make", [softmax_cross_entropy.make, softmax_dice.make, lambda: softmax_dice.make("corpus")]
)
def test_absent_classes_get_exactly_no_gradient_and_nothing_is_nan(make):
    outputs, batch = _batch()
    for logits in (
        outputs["logits"],
        jnp.where(jnp.isfinite(outputs["logits"]), outputs["logits"], 3.0),
    ):
        value, gradient = jax.jit(jax.value_and_grad(lambda x: make()({"logits": x}, batch)))(
            logits
        )
        assert np.isfinite(value) and np.isfinite(gradient).all()
        present = np.broadcast_to(KNOWN[np.asarray(batch["corpus"])][:, None, None], gradient.shape)
        assert (gradient[~present] == 0).all() and (gradient[present] != 0).all()


def test_a_sample_costs_the_same_whatever_lies_beside_it_in_the_batch():
    """M4oE pads logits to the largest class count of the batch; here the loss does not depend on
    it.
    """
    outputs, batch = _batch((0, 1))
    for f in (softmax_cross_entropy.make(), softmax_dice.make()):
        alone = [
            run(
                f,
                {"logits": outputs["logits"][i : i + 1]},
                {k: v[i : i + 1] for k, v in batch.items()},
            )
            for i in range(2)
        ]
        np.testing.assert_allclose(run(f, outputs, batch), np.mean(alone), rtol=1e-6)


def test_logits_with_an_explicit_background_give_the_same_loss():
    outputs, batch = _batch((0, 0))
    shift = jax.random.normal(jax.random.key(0), (2, *VOL, 1))
    explicit = {"logits": jnp.concatenate([shift, outputs["logits"] + shift], -1)}
    for f in (softmax_cross_entropy.make(), softmax_dice.make()):
        np.testing.assert_allclose(run(f, explicit, batch), run(f, outputs, batch), rtol=1e-5)
    with pytest.raises(UsageError, match="channels"):
        run(softmax_dice.make(), {"logits": jnp.zeros((2, *VOL, 7))}, batch)


def test_ignored_voxels_count_for_nothing_or_as_m4oe_released_it():
    outputs, batch = _batch((0, 0))
    weight = jnp.ones((2, *VOL)).at[:, :2].set(0)
    cut = ({"logits": outputs["logits"][:, 2:]}, batch | {"label": batch["label"][:, 2:]})
    for f in (
        softmax_cross_entropy.make(),
        softmax_cross_entropy.make("batch"),
        softmax_dice.make(),
    ):
        np.testing.assert_allclose(
            run(f, outputs, batch | {"weight": weight}), run(f, *cut), rtol=1e-5
        )
    released = run(softmax_dice.make(masked=False), outputs, batch | {"weight": weight})
    scores = []
    for i, (p, hot) in enumerate(_oracle(outputs, batch)):
        w = np.asarray(weight[i])[..., None]
        scores.append(
            1
            - (
                (2 * (p * hot * w).sum((0, 1)) + 1e-5)
                / ((p**2).sum((0, 1)) + (hot * w).sum((0, 1)) + 1e-5)
            ).mean()
        )
    np.testing.assert_allclose(released, np.mean(scores), rtol=1e-5)


def test_nested_regions_become_exclusive_and_come_back():
    table = jnp.asarray(TABLE[:1])
    np.testing.assert_array_equal(exclusive.own_class(table), [OWN[0]])
    closure = np.asarray(exclusive.implied(table))[0]
    expected = np.eye(CLASSES, dtype=bool) & KNOWN[0]
    expected[1, 0] = True  # tumour implies liver
    np.testing.assert_array_equal(closure, expected)
    logits = jnp.array(
        [[[1.0, 2.0, -1.0, -jnp.inf], [1.0, 0.5, -1.0, -jnp.inf], [-1.0, -2.0, -1.0, -jnp.inf]]]
    )
    softmax = decision.make("softmax", "logit")
    mask = softmax.decide(softmax.class_logits(logits, CLASSES))
    decided = np.asarray(softmax.completed(mask, exclusive.implied(table)))[0]
    np.testing.assert_array_equal(decided, [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])


def test_brats_regions_and_an_overlap_of_equals():
    """BraTS ids: 1 core in whole, 2 whole, 3 enhancing in core in whole.

    Then two organs overlapping in id 3: the later one gets it.
    """
    brats = jnp.asarray([[[0, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1]]], bool)
    np.testing.assert_array_equal(exclusive.own_class(brats), [[0, 2, 1, 3]])
    np.testing.assert_array_equal(exclusive.implied(brats)[0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    equals = jnp.asarray([[[0, 0], [1, 0], [0, 1], [1, 1]]], bool)
    np.testing.assert_array_equal(exclusive.own_class(equals), [[0, 1, 2, 2]])
    np.testing.assert_array_equal(exclusive.implied(equals)[0], [[1, 0], [0, 1]])


def test_unknown_words_are_refused():
    with pytest.raises(UsageError, match="sample"):
        softmax_cross_entropy.make("smple")
    with pytest.raises(UsageError, match="corpus"):
        softmax_dice.make("corpu")
