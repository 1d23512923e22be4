"""Layers one after the other: loop and scan compute one function with one tree of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from medjax.errors import ModelError
from medjax.models.parts import adapters as listener
from medjax.models.parts.repeat import repeat
from medjax.weights import adapters
from medjax.weights.adapters import Adapters


class Layer(nn.Module):
    """x W + shift, or dropout of it."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, x, shift=0.0):
        x = listener.Dense(3, use_bias=False, name="dense")(x) + shift
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


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", ["none", "block"])
def test_layers_listen_to_their_adapters(params, scan, remat):
    settings = Adapters(((".*", 2),))
    tree = jax.tree.map(lambda v: v + 0.3, adapters.graft(params, settings, jax.random.key(2)))
    merged = adapters.merge(tree, settings)

    def beside(tree):
        found = adapters.variables(tree, settings, X, {})
        return jnp.square(Stack(scan, remat).apply(found, X, 0.5)).sum()

    def plain(tree):
        variables = {"params": adapters.merge(tree, settings)}
        return jnp.square(Stack(False).apply(variables, X, 0.5)).sum()

    assert not np.allclose(merged["first"]["dense"]["kernel"], tree["first"]["dense"]["kernel"])
    mine, theirs = jax.value_and_grad(beside)(tree), jax.value_and_grad(plain)(tree)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), mine, theirs)


def test_scanned_layers_need_adapters_of_equal_shapes(params):
    settings = Adapters(((r"^first/", 2), (".*", 0)))
    tree = adapters.graft(params, settings, jax.random.key(2))
    found = adapters.variables(tree, settings, X, {})
    with pytest.raises(ModelError, match="adapters of scanned layers differ"):
        Stack(True).apply(found, X)
    np.testing.assert_array_equal(
        Stack(False).apply(found, X), Stack(False).apply({"params": params}, X)
    )
