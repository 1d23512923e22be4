"""Every kernel of every network listens to adapters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.models.context import initialise
from medjax.models.parts import adapters as listener
from medjax.weights import adapters
from medjax.weights.adapters import Adapters
from tests.support import golden
from tests.support.fast import FAST

SETTINGS = Adapters(((r"(^|/)kernel$", 1), (".*", 0)), alpha=1.0)


def _network(name):
    """(apply with variables, parameters, image, context) of a golden network."""
    case = golden.CASES[name]
    module = golden.build("models", case.model, **case.arguments)
    image, context = golden.inputs(case)
    abstract = jax.eval_shape(lambda key: initialise(module, key, image), jax.random.key(0))
    params = jax.tree.map(jnp.asarray, golden.parameters(abstract))

    def apply(variables):
        found = jax.tree_util.tree_leaves_with_path(module.apply(variables, image, context, False))
        return {
            golden.path_of(keys): jnp.where(jnp.isfinite(y), y, 0.0)
            for keys, y in found
            if y.dtype != bool
        }

    return apply, params, image, context


@pytest.mark.slow
@pytest.mark.parametrize("name", (*golden.ONE_OF_A_KIND, "swin_unet_3d", "segvol_priors"))
def test_every_kernel_listens(name):
    """Beside the kernels or added to them, adapters are the same function; none is left out.

    The scalar is a product with a fixed random array: a sum of squares behind a last norm would be
    constant.
    """
    apply, params, image, context = _network(name)
    graft = jax.jit(lambda p: adapters.graft(p, SETTINGS, jax.random.key(1)))
    tree = jax.tree_util.tree_map_with_path(
        lambda keys, leaf: (
            jnp.asarray(0.1 * golden.random(golden.path_of(keys), leaf.shape), jnp.float32)
            if "lora_b" in golden.path_of(keys)
            else leaf
        ),
        graft(params),
    )
    sites = [path for path in adapters._flat(tree) if path.endswith("lora_a")]
    kernels = [path for path in adapters._flat(params) if path.split("/")[-1] == "kernel"]
    assert len(sites) == len(kernels) > 0

    base = jax.jit(apply, compiler_options=FAST)({"params": params})
    fixed = {path: golden.random(path, y.shape) for path, y in base.items()}

    def beside(tree):
        found = apply(adapters.variables(tree, SETTINGS, image, context or {}))
        return sum((y * fixed[path]).sum() / y.size**0.5 for path, y in found.items()), found

    both = jax.value_and_grad(beside, has_aux=True)
    mine, gradient = jax.jit(both, compiler_options=FAST)(tree)
    merged = jax.jit(lambda tree: adapters.merge(tree, SETTINGS))(tree)
    theirs = jax.jit(apply, compiler_options=FAST)({"params": merged})
    for path, y in theirs.items():
        scale = max(float(jnp.std(y)), 1e-3)
        np.testing.assert_allclose(mine[1][path], y, atol=1e-3 * scale, err_msg=path)
    assert any(float(jnp.abs(y - base[path]).max()) > 1e-2 for path, y in theirs.items())
    flat = adapters._flat(gradient)
    assert [p for p in flat if "lora" in p and not np.any(np.asarray(flat[p]))] == []


@pytest.mark.slow
def test_a_fresh_adapter_is_the_base_in_half_precision_too():
    case = golden.CASES["unet"]
    module = golden.build("models", case.model, **case.arguments, dtype="bfloat16")
    image, context = golden.inputs(case)
    params = initialise(module, jax.random.key(0), image)
    tree = adapters.graft(params, SETTINGS, jax.random.key(1))
    variables = adapters.variables(tree, SETTINGS, image, context or {})
    assert listener.COLLECTION in variables
    np.testing.assert_array_equal(
        module.apply(variables, image, context, False)["logits"],
        module.apply({"params": params}, image, context, False)["logits"],
    )
