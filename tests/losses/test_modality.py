"""The loss of guessed modalities."""

import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.losses import modality
from medjax.losses.parts import separable


def test_the_mean_over_samples_of_known_modality():
    scores = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    loss = modality.make()
    share = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    found = loss({"modality": jnp.asarray(scores)}, {"modality": jnp.array([2, -1, 0, 5])})
    assert float(found) == pytest.approx(-np.log([share[0, 2], share[2, 0]]).mean(), rel=1e-5)
    nothing = loss({"modality": jnp.asarray(scores)}, {"modality": jnp.full(4, -1)})
    assert float(nothing) == 0.0
    assert separable.over_samples(loss, complete=True, weighted=False) == separable.BATCH
    with pytest.raises(UsageError, match=r"guesses modalities.*losses\.modality"):
        loss({"logits": jnp.zeros(2)}, {"modality": jnp.zeros(2, int)})
