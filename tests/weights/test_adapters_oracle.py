"""Low-rank adapters beside an independent implementation: qwix, which intercepts the matrix
products of a Linen module.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import traverse_util

from medjax.models.context import initialise
from medjax.weights import adapters
from medjax.weights.adapters import Adapters
from tests.support import golden

RANK = 3
NAMES = {"kernel_lora_a": adapters.A, "kernel_lora_b": adapters.B}


class Perceptron(nn.Module):
    """Flax's own linear maps, which know nothing of adapters."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(5, name="fc2")(nn.gelu(nn.Dense(8, name="fc1")(x)))


def _theirs(ours):
    """A tree with qwix' names from one with ours."""
    back = {mine: name for name, mine in NAMES.items()}
    flat = traverse_util.flatten_dict(ours, sep="/")
    named = {}
    for path, leaf in flat.items():
        owner, _, last = path.rpartition("/")
        lora = last in back
        named[f"{owner}/{back.get(last, last)}"] = leaf[0] if lora else leaf
    return traverse_util.unflatten_dict(named, sep="/")


def _random(tree, seed):
    """The tree with random second factors, so that adapters count."""
    flat = traverse_util.flatten_dict(tree, sep="/")
    for k, path in enumerate(sorted(p for p in flat if p.endswith(adapters.B))):
        flat[path] = jax.random.normal(jax.random.key(seed + k), flat[path].shape)
    return traverse_util.unflatten_dict(flat, sep="/")


def _compare(mine, theirs, tree, layers):
    """Outputs and gradients of two functions of (our tree, qwix' tree)."""
    ours, other = mine(tree), theirs(_theirs(tree))
    assert ours.shape == other.shape
    scale = float(jnp.abs(other).max())
    np.testing.assert_allclose(ours, other, atol=1e-5 * scale)
    fixed = jax.random.normal(jax.random.key(9), ours.shape)
    own = _theirs(jax.grad(lambda t: jnp.vdot(mine(t), fixed))(tree))
    given = jax.grad(lambda t: jnp.vdot(theirs(t), fixed))(_theirs(tree))
    own, given = (traverse_util.flatten_dict(t, sep="/") for t in (own, given))
    sites = [path for path in given if "lora" in path]
    assert set(own) == set(given) and len(sites) == 2 * layers
    for path in sites:
        top = float(jnp.abs(given[path]).max())
        assert top > 0, path
        np.testing.assert_allclose(own[path], given[path], atol=1e-4 * top, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.0, 16.0])
def test_a_dense_layer_equals_qwix_beside_flax_own(alpha):
    from medjax.models.parts.adapters import Dense

    class Ours(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Dense(5, name="fc2")(nn.gelu(Dense(8, name="fc1")(x)))

    x = jax.random.normal(jax.random.key(0), (2, 7, 4))
    settings = Adapters(((r"kernel$", RANK), (".*", 0)), scaling="classic", alpha=alpha)
    params = Perceptron().init(jax.random.key(1), x)["params"]
    tree = _random(adapters.graft(params, settings, jax.random.key(2)), 3)
    provider = qwix.LoraProvider(module_path="fc.*", rank=RANK, alpha=alpha)
    model = qwix.apply_lora_to_model(Perceptron(), provider)
    _compare(
        lambda t: Ours().apply(adapters.variables(t, settings, x, {}), x),
        lambda t: model.apply({"params": t}, x),
        tree,
        2,
    )


@pytest.mark.parametrize(
    "name, layer",
    [
        pytest.param("tsfm", r"vit/layer\d/(q|v|fc\d)", marks=pytest.mark.slow),
        pytest.param("swin_unet_gate", r".*/attn/(qkv|proj)", marks=pytest.mark.slow),
    ],
)
def test_the_linear_maps_of_a_network_equal_qwix(name, layer):
    case = golden.CASES[name]
    module = golden.build("models", case.model, **case.arguments)
    image, context = golden.inputs(case)
    params = jax.eval_shape(lambda k: initialise(module, k, image), jax.random.key(0))
    params = jax.tree.map(jnp.asarray, golden.parameters(params))
    rules = ((rf"^{layer}/kernel$", RANK), (".*", 0))
    settings = Adapters(rules, scaling="classic", alpha=1.0)
    tree = _random(adapters.graft(params, settings, jax.random.key(2)), 3)
    paths = traverse_util.flatten_dict(params, sep="/")
    layers = sum(bool(re.fullmatch(f"{layer}/kernel", path)) for path in paths)
    assert layers > 2
    # blocks that repeat are applied as functions: within them, paths begin at the block
    inner = layer.split("/")[-1]
    provider = qwix.LoraProvider(module_path=rf"(.*/)?{inner}", rank=RANK, alpha=1.0)
    model = qwix.apply_lora_to_model(module, provider)

    def logits(variables, of):
        return of.apply(variables, image, context, False)["logits"]

    _compare(
        lambda t: logits(adapters.variables(t, settings, image, context or {}), module),
        lambda t: logits({"params": t}, model),
        tree,
        layers,
    )
