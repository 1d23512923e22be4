"""All tasks asked at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.infer import tasks


def _apply(params, image, context):
    """Logits that depend on the task, and its recognition."""
    task = context["task"]
    logits = image * jnp.array([1.0, -1.0, 0.5])[task][:, None, None]
    category = jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0]])[task]
    return {"logits": logits} | ({"category": category} if params else {})


@pytest.mark.parametrize("recognises", [True, False])
def test_the_largest_weighted_probability_stays(recognises):
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 1)), jnp.float32)
    given = {"task": jnp.array([7, 7]), "corpus": jnp.array([0, 1])}
    found = jax.jit(tasks.over_all(_apply, 3), static_argnums=0)(recognises, image, given)
    x, best = np.asarray(image, np.float64), np.zeros((2, 6, 1))
    scores = np.array([[2.0, 0, 0], [0, 1.0, 0], [0, 0, 5.0]])
    for t, factor in enumerate((1.0, -1.0, 0.5)):
        share = np.exp(scores[t]) / np.exp(scores[t]).sum()
        weight = share[t] if recognises else 1.0
        best = np.maximum(best, weight / (1 + np.exp(-factor * x)))
    np.testing.assert_allclose(jax.nn.sigmoid(found["logits"]), best, rtol=1e-5)


def test_sure_answers_stay_finite():
    image = jnp.full((1, 1, 1), 1e4)
    found = tasks.over_all(_apply, 3)(False, image, {})["logits"]
    assert np.isfinite(np.asarray(found)).all() and float(found[0, 0, 0]) > 10
