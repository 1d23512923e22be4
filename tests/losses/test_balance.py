"""The balance of learned gates against its closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.losses import balance
from medjax.losses.parts import separable

LOSS = balance.make()


def test_even_shares_cost_nothing_and_one_expert_for_all_costs_most():
    even, one = jnp.full((6, 4), 0.25), jnp.eye(4)[jnp.zeros(6, int)]
    assert float(LOSS({"balance": {"gate": even}}, {})) == pytest.approx(0, abs=1e-7)
    assert float(LOSS({"balance": {"gate": one}}, {})) == pytest.approx(3.0)
    assert float(LOSS({"balance": {"a": even, "b": one}}, {})) == pytest.approx(1.5)


def test_it_is_the_squared_coefficient_of_variation_of_importance():
    share = jax.nn.softmax(jax.random.normal(jax.random.key(0), (9, 3)))
    importance = np.asarray(share, np.float64).sum(0)
    expected = importance.var() / importance.mean() ** 2
    assert float(LOSS({"balance": {"gate": share}}, {})) == pytest.approx(expected, rel=1e-5)
    assert separable.over_samples(LOSS, complete=True, weighted=False) == separable.BATCH


def test_its_gradient_moves_the_gate_towards_the_unused_expert():
    def cost(logits):
        return LOSS({"balance": {"gate": jax.nn.softmax(logits)}}, {})

    gradient = jax.grad(cost)(jnp.tile(jnp.array([2.0, 0.0, -1.0]), (5, 1)))
    assert (gradient[:, 0] > 0).all() and (gradient[:, 2] < 0).all()


def test_a_network_without_a_gate_is_refused():
    with pytest.raises(UsageError, match="needs a learned gate"):
        LOSS({"logits": jnp.zeros((1, 2))}, {})
