"""Layers of equal shape, as a loop or as one scanned program, with the same parameters.

Scanning compiles one layer instead of all. The parameters stay one entry per layer (so that
imported weights, rules and transfer are unaffected) and are stacked at call time.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from medjax.errors import ModelError
from medjax.models.parts.adapters import COLLECTION
from medjax.models.parts.attention import split_offer
from medjax.models.parts.remat import policy


def repeat(
    parent: nn.Module,
    layer: nn.Module,
    names: Sequence[str],
    x: Float[Array, "b ..."],
    *arguments: Any,
    scan: bool,
    remat: str = "none",
    dropout: bool = False,
) -> tuple[Float[Array, "b ..."], dict[str, dict[str, Any]]]:
    """Applies `len(names)` layers to x: (x, {name: what the layer offers}).

    Call it within a compact method of `parent`, which then owns the parameters `names`.

    Args:
      layer: a module without parent, called with (x, *arguments); its result has the type and
        shape of x. With a true attribute `offers` it returns (x, {what it offers: array}).
      scan: one program for all layers.
      remat: "none", or what every layer keeps for the backward pass, as in `remat.policy`.
      dropout: the layers use the rng "dropout".
    """

    if parent.is_initializing():
        # traced once for all layers
        fresh = jax.jit(lambda key, x: layer.init(key, x, *arguments)["params"])
        weights = [{"params": parent.param(name, fresh, x)} for name in names]
    else:
        weights = [{"params": parent.get_variable("params", name)} for name in names]
    own = [name for name in names if parent.has_variable(COLLECTION, name)]
    for variables, name in zip(weights, names, strict=True):
        if name in own:
            variables[COLLECTION] = parent.get_variable(COLLECTION, name)
    keys = jax.random.split(parent.make_rng("dropout"), len(names)) if dropout else None

    def step(x: Array, given: tuple[Any, Array | None]) -> tuple[Array, dict[str, Any]]:
        variables, key = given
        rngs = None if key is None else {"dropout": key}
        return split_offer(layer, layer.apply(variables, x, *arguments, rngs=rngs))

    if remat != "none":
        step = jax.checkpoint(step, policy=policy(remat), prevent_cse=not scan)
    if scan and len(names) > 1:
        if len({_shapes(variables.get(COLLECTION)) for variables in weights}) > 1:
            raise ModelError(
                "the adapters of scanned layers differ",
                found=f"adapters in {', '.join(own)} of {', '.join(names)}",
                fix="let the rules give all layers the same ranks, or set scan=False",
            )
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)
        x, found = lax.scan(step, x, (stacked, keys))
        return x, {
            name: jax.tree.map(lambda leaf, i=i: leaf[i], found) for i, name in enumerate(names)
        }
    offered = {}
    for i, variables in enumerate(weights):
        x, offered[names[i]] = step(x, (variables, None if keys is None else keys[i]))
    return x, offered


def _shapes(tree: Any) -> tuple:
    """Paths and shapes of a tree, to compare layers."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return tuple((jax.tree_util.keystr(path), leaf.shape) for path, leaf in leaves)
