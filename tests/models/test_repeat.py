"""Layers one after the other: loop and scan compute one function with one tree of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from medjax.models.parts.repeat import repeat


class Layer(nn.Module):
    """x W + shift, or dropout of it."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, x, shift=0.0):
        x = nn.Dense(3, use_bias=False, name="dense")(x) + shift
        return nn.Dropout(self.rate, deterministic=False)(x) if self.rate else x


class Stack(nn.Module):
    """`repeat` within a module, as networks use it."""

    scan: bool
    remat: str = "none"
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, shift=0.0):
        layer = Layer(self.rate, parent=None)
        how = {"scan": self.scan, "remat": self.remat, "dropout": self.rate > 0}
        return repeat(self, layer, ("first", "second"), x, shift, **how)[0]


X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)


@pytest.fixture(scope="module")
def params():
    return Stack(scan=True).init(jax.random.key(1), X)["params"]


def test_layers_have_parameters_of_their_own_names(params):
    assert jax.tree.map(jnp.shape, params) == {
        name: {"dense": {"kernel": (3, 3)}} for name in ("first", "second")
    }
    first, second = (params[name]["dense"]["kernel"] for name in ("first", "second"))
    assert not np.allclose(first, second)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", ["none", "block"])
def test_the_function_is_the_layers_in_order(params, scan, remat):
    first, second = (
        np.asarray(params[name]["dense"]["kernel"], np.float64) for name in ("first", "second")
    )
    expected = (np.asarray(X) @ first + 0.5) @ second + 0.5
    module = Stack(scan, remat)

    def run(p, x):
        return module.apply({"params": p}, x, 0.5)

    assert np.allclose(run(params, X), expected, atol=1e-5)
    gradient = jax.grad(lambda p: run(p, X).sum())(params)["second"]["dense"]["kernel"]
    inner = (np.asarray(X) @ first + 0.5).sum(0)
    assert np.allclose(gradient, np.repeat(inner[:, None], 3, 1), atol=1e-4)


@pytest.mark.parametrize("scan", [False, True])
def test_every_layer_drops_by_itself(params, scan):
    eye = {name: {"dense": {"kernel": jnp.eye(3)}} for name in ("first", "second")}
    ones = jnp.ones((64, 3))
    run = Stack(scan, rate=0.5)
    found = run.apply({"params": eye}, ones, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(found)) == {0.0, 4.0}  # 1 / 0.5 twice, or nothing
    assert 0.1 < (np.asarray(found) > 0).mean() < 0.4  # a quarter survives both
