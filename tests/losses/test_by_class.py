"""The loss of every class alone: that of its annotating samples, as if no other class were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.losses import cross_entropy, dice, focal, softmax_cross_entropy, softmax_dice
from medjax.losses.parts import separable

SAMPLES, IDS, CLASSES, VOLUME = 4, 4, 3, (3, 4, 5)
KNOWN = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], bool)  # nobody annotates the third


def given(known=KNOWN):
    rng = np.random.default_rng(3)
    table = np.zeros((SAMPLES, IDS, CLASSES), bool)
    table[:, 1, 0] = table[:, 2, 1] = table[:, 3, 2] = True
    batch = {
        "label": rng.integers(0, IDS, (SAMPLES, *VOLUME)).astype(np.int32),
        "table": table,
        "known": known,
        "weight": (rng.random((SAMPLES, *VOLUME)) < 0.8).astype(np.float32),
    }
    logits = rng.normal(0, 2, (SAMPLES, *VOLUME, CLASSES)).astype(np.float32)
    return {"logits": jnp.asarray(logits)}, jax.tree.map(jnp.asarray, batch)


@pytest.mark.parametrize(
    "loss, annotating",
    [
        (cross_entropy.make(), False),
        (cross_entropy.make(normalise="per_annotating", reduction="mean"), False),
        (focal.make(), False),
        (dice.make(), False),
        (dice.make(smooth=1e-5, reduction="mean"), False),
        (dice.make(pool="sample"), True),
        (dice.make(pool="slice", smooth=1.0), True),
    ],
)
def test_a_class_alone(loss, annotating):
    """The scalar loss of a batch with its annotating samples and this class only."""
    outputs, batch = given()
    found, loss = np.asarray(jax.jit(loss.by_class)(outputs, batch)), jax.jit(loss)
    assert found.shape == (CLASSES,) and found[2] == 0
    for c in range(2):
        own = np.flatnonzero(KNOWN[:, c])
        alone = {name: value[own] for name, value in batch.items()}
        alone["known"] = jnp.asarray(np.eye(CLASSES, dtype=bool)[c][None].repeat(len(own), 0))
        expected = float(loss({"logits": outputs["logits"][own]}, alone))
        expected /= len(own) if annotating else 1  # the scalar is a sum over samples
        assert found[c] == pytest.approx(expected, rel=1e-5)
    assert found[0] != pytest.approx(found[1], rel=1e-3)


def test_the_classes_of_a_complete_annotation_add_up_to_the_loss():
    outputs, batch = given(np.ones_like(KNOWN))
    for loss in (cross_entropy.make(), focal.make(), dice.make()):
        total = float(jax.jit(loss)(outputs, batch))
        assert float(jax.jit(loss.by_class)(outputs, batch).sum()) == pytest.approx(total, rel=1e-5)


def test_softmax_dice_of_a_class():
    """1 - D of the channel, by hand: probabilities of the background and the annotated classes."""
    outputs, batch = given()
    found = np.asarray(jax.jit(softmax_dice.make().by_class)(outputs, batch))
    x, w = np.asarray(outputs["logits"], np.float64), np.asarray(batch["weight"], np.float64)
    label, losses = np.asarray(batch["label"]), {0: [], 1: []}
    for b, known in enumerate(KNOWN):
        e = np.exp(x[b]) * known
        p = e / (1 + e.sum(-1, keepdims=True))
        for c in np.flatnonzero(known):
            g = (label[b] == c + 1) * w[b]
            volume = (p[..., c] ** 2 * w[b]).sum() + g.sum()
            losses[c].append(1 - (2 * (p[..., c] * g).sum() + 1e-5) / (volume + 1e-5))
    np.testing.assert_allclose(found, [np.mean(losses[0]), np.mean(losses[1]), 0], rtol=1e-5)


def test_weights_add_up_and_losses_without_classes_are_left_out():
    outputs, batch = given()
    entropy, overlap, other = cross_entropy.make(), dice.make(), softmax_cross_entropy.make()
    named = [("a", 2.0, entropy), ("b", 0.5, overlap), ("c", 9.0, other)]
    total, samples = jax.jit(lambda *given: separable.by_class(named, *given))(outputs, batch)
    assert samples.tolist() == [3, 3, 0]
    first, second = (jax.jit(loss.by_class)(outputs, batch) for loss in (entropy, overlap))
    each = 2.0 * first + 0.5 * second
    np.testing.assert_allclose(total, each * samples, rtol=1e-6)
    assert separable.by_class(named[2:], outputs, batch) is None
