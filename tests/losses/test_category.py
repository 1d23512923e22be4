"""The loss of the recognised task."""

import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.losses import category
from medjax.losses.parts import separable


def test_it_is_the_mean_cross_entropy():
    scores = np.array([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]], np.float32)
    task = np.array([1, 2])
    found = category.make()({"category": jnp.asarray(scores)}, {"task": jnp.asarray(task)})
    by_hand = [np.log(np.exp(row).sum()) - row[t] for row, t in zip(scores, task, strict=True)]
    assert float(found) == pytest.approx(np.mean(by_hand), rel=1e-6)
    half = category.make()({"category": jnp.asarray(scores[:1])}, {"task": jnp.asarray(task[:1])})
    assert float(half) == pytest.approx(by_hand[0], rel=1e-6)
    assert separable.over_samples(category.make(), complete=False, weighted=True) == "mean"


def test_a_network_without_scores_is_refused():
    with pytest.raises(UsageError, match="scores tasks"):
        category.make()({"logits": jnp.zeros((1, 2))}, {"task": jnp.zeros(1, jnp.int32)})
