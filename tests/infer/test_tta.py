"""Mirroring and ensembles: laws, hand-made numbers, and that the network is traced once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.infer.device import tta

IMAGE = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5, 6, 1)), jnp.float32)


def test_a_symmetric_function_is_left_alone():
    assert np.allclose(
        jnp.tanh(IMAGE), jax.jit(tta.mirrored(jnp.tanh, (0, 1, 2)))(IMAGE), rtol=1e-6, atol=0
    )
    assert tta.mirrored(jnp.tanh, ()) is jnp.tanh


def test_mean_over_all_flips():
    kernel = jnp.arange(120, dtype=jnp.float32).reshape(
        4, 5, 6, 1
    )  # position-dependent: not symmetric
    found = tta.mirrored(lambda x: x * kernel, (0, 2))(IMAGE)
    mean = np.mean([np.flip(kernel, axes) for axes in ((), (0,), (2,), (0, 2))], axis=0)
    assert np.allclose(found, IMAGE * mean, rtol=1e-5)


def test_mirrored_output_is_equivariant():
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(4, 5, 6, 1)), jnp.float32)
    function = tta.mirrored(lambda x: jax.nn.sigmoid(x * kernel), (0, 1, 2))
    assert np.allclose(function(IMAGE)[:, :, ::-1], function(IMAGE[:, :, ::-1]), atol=1e-6)


def test_the_network_is_traced_the_same_number_of_times_for_any_number_of_flips():
    def traces(axes):
        count = []
        jax.jit(tta.mirrored(lambda x: count.append(1) or x, axes))(IMAGE)
        return len(count)

    assert traces((0,)) == traces((0, 1, 2))


def test_probabilities_and_logits_average_differently():
    members = tta.stack([{"w": jnp.float32(4.0)}, {"w": jnp.float32(-2.0)}])
    logits = tta.ensemble(lambda p, x: p["w"] * jnp.ones_like(x), members)(IMAGE)
    probabilities = tta.ensemble(lambda p, x: jax.nn.sigmoid(p["w"] * jnp.ones_like(x)), members)(
        IMAGE
    )
    assert float(logits.max()) == 1.0
    assert float(probabilities.max()) == pytest.approx(
        (1 / (1 + np.exp(-4)) + 1 / (1 + np.exp(2))) / 2, abs=1e-6
    )


def test_unusable_arguments():
    with pytest.raises(UsageError, match="mirror axes"):
        tta.mirrored(jnp.tanh, (0, 0))
    with pytest.raises(UsageError, match="differ in architecture"):
        tta.stack([{"w": jnp.zeros(3)}, {"w": jnp.zeros(4)}])
