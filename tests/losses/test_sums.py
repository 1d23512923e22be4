"""The four sums of cross-entropy and Dice equal the formulas written plainly, in both modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.losses import cross_entropy, dice
from medjax.losses.parts import deep, sums, targets

SHAPE = (2, 3, 4, 5)


def _batch(weighted, classes=3, ids=5):
    rng = np.random.default_rng(0)
    batch = {
        "label": jnp.asarray(rng.integers(0, ids, SHAPE), jnp.int32),
        "table": jnp.asarray(rng.random((2, ids, classes)) < 0.4),
        "known": jnp.asarray([[True, True, False], [True, False, True]]),
    }
    if weighted:
        batch["weight"] = jnp.asarray(rng.random(SHAPE) < 0.7, jnp.float32)
    return batch, jnp.asarray(3 * rng.standard_normal((*SHAPE, classes)), jnp.float32)


def _plain(logits, batch):
    x, g, known, weight = targets.unpack({"logits": logits}, batch)
    p = jax.nn.sigmoid(x)
    values = (jnp.logaddexp(x, 0) - x * g, p * g, p, g)
    return jnp.stack([targets.spatial_sum(v, weight) for v in values]) * known


def _found(logits, batch):
    found = jnp.stack(sums.of({"logits": logits}, batch))
    return found * batch["known"].astype(found.dtype)


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_and_their_derivatives_equal_the_formulas(weighted):
    batch, logits = _batch(weighted)
    factors = jax.random.normal(jax.random.key(1), (4, 2, 3))
    moved = jax.random.normal(jax.random.key(2), logits.shape)

    def everything(f):
        def scalar(x):
            return (f(x, batch) * factors).sum()

        def twice(x):
            return (jax.grad(scalar)(x) * moved).sum()

        value, change = jax.jvp(lambda x: f(x, batch), (logits,), (moved,))
        along = jax.jvp(jax.grad(scalar), (logits,), (moved,))[1]
        return value, change, jax.grad(scalar)(logits), jax.grad(twice)(logits), along

    ours, theirs = (jax.jit(lambda f=f: everything(f))() for f in (_found, _plain))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * float(jnp.abs(b).max()))
    unknown = ours[2][0, ..., 2]
    assert np.all(np.asarray(unknown) == 0)


def test_the_backward_pass_keeps_the_logits_in_their_own_type():
    batch, logits = _batch(False)
    logits = logits.astype(jnp.bfloat16)
    given = [("ce", 1.0, cross_entropy.make()), ("dice", 1.0, dice.make())]

    def loss(logits):
        return deep.total(given, {"logits": logits}, batch)[0]

    kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(loss, x)[1], logits))
    large = [leaf for leaf in kept if leaf.size >= logits.size]
    assert large and {leaf.dtype for leaf in large} == {jnp.dtype(jnp.bfloat16)}
    assert jax.eval_shape(jax.grad(loss), logits).dtype == jnp.bfloat16


def test_losses_of_one_resolution_share_one_computation():
    batch, logits = _batch(False)
    given = [("ce", 1.0, cross_entropy.make()), ("dice", 2.0, dice.make())]
    outputs = {"logits": logits}
    calls = str(jax.make_jaxpr(lambda: deep.total(given, outputs, batch)[0])()).count("logistic")
    assert calls == 1
    whole = deep.total(given, outputs, batch)[0]
    apart = given[0][2](outputs, batch) + 2 * given[1][2](outputs, batch)
    np.testing.assert_allclose(whole, apart, rtol=1e-6)


def test_slices_are_samples():
    batch, logits = _batch(True)
    found = sums.of_slices({"logits": logits}, batch)
    assert found.overlap.shape == (6, 3)
    one = {k: v[1:2] for k, v in batch.items()}
    one |= {k: v[1:2, 2:3] for k, v in batch.items() if k in ("label", "weight")}
    expected = sums.of({"logits": logits[1:2, 2:3]}, one)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a[5], b[0], rtol=1e-6)
