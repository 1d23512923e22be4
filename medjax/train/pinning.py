"""Activations that stay where the batch lies.

The state of an fsdp group is split over its devices. Without more, the compiler follows the
parameters and splits the features of a transformer instead of its samples, with communication
before every product. A network that runs under `pinned` has the output of every module split over
the axes of the batch, so that weights are gathered and samples stay.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from medjax.train import sharding


def pinned(apply: Callable, mesh: Any, axes: Sequence[str] = sharding.AXES) -> Callable[..., Any]:
    """`apply`(params, array (b, ...), ...) with its modules' outputs split as the batch.

    Arrays whose first axis is not the batch, or does not divide, are left to the compiler; on one
    device `apply` is returned.

    Args:
      mesh, axes: where the batch lies, see `sharding.Layout`.
    """
    if mesh is None or mesh.size == 1:
        return apply
    where, parts = sharding.split(mesh, axes), sharding.shards(mesh, axes)

    def placed(params: Any, array: Any, *more: Any, **named: Any) -> Any:
        samples = len(array)

        def pin(value: Any) -> Any:
            floats = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.inexact)
            if not floats or value.ndim < 2 or value.shape[0] != samples or samples % parts:
                return value
            return jax.lax.with_sharding_constraint(value, where)

        def intercept(call: Callable, arguments: tuple, keywords: dict, context: Any) -> Any:
            found = call(*arguments, **keywords)
            return jax.tree.map(pin, found) if context.method_name == "__call__" else found

        with nn.intercept_methods(intercept):
            return apply(params, pin(array), *more, **named)

    return placed
