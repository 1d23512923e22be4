"""What the deepest map of a network is told: modules of the socket `context`.

In: the map (b, *grid, c) and the call's context. Out: the map plus a vector per sample. Fresh
modules add nothing.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from medjax.models.context import needed
from medjax.models.parts import adapters
from medjax.models.parts.attention import Context


class Embedding(nn.Module):
    """x plus one learned vector per value of an entry of the context.

    Parameter `table` (values, c), which starts at zero: a fresh network equals one without it.

    Attributes:
      of: the entry. values: how many it has.
    """

    of: str
    values: int
    dtype: Any = jnp.float32
    contextual = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *grid c"], context: Context = None
    ) -> Float[Array, "b *grid c"]:
        table = self.param("table", nn.initializers.zeros, (self.values, x.shape[-1]))
        own = table[needed(context, self.of, "embeddings")].astype(x.dtype)
        return x + jnp.expand_dims(own, tuple(range(1, x.ndim - 1)))


class Linear(nn.Module):
    """x plus a linear map of log(1 + an entry of the context), e.g. of the spacing in mm.

    Parameter `map/kernel` (entries, c) starts at zero: a fresh network equals one without it.

    Attributes:
      of: the entry, (b, entries) of numbers that are not negative.
    """

    of: str
    dtype: Any = jnp.float32
    contextual = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *grid c"], context: Context = None
    ) -> Float[Array, "b *grid c"]:
        given = jnp.log1p(needed(context, self.of, "linear maps"))
        zero = nn.initializers.zeros
        own = adapters.Dense(x.shape[-1], use_bias=False, kernel_init=zero, name="map")(given)
        return x + jnp.expand_dims(own.astype(x.dtype), tuple(range(1, x.ndim - 1)))
