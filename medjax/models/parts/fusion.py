"""Cross-attention from prompts to the features of an image.

In: features (b, *grid, c), and prompts: tokens of an organ encoder on the same grid (b, *grid, a),
a text vector (b, w), or one of them. Out: what is added to the features, (b, *grid, c), and its
mean over all queries, (b, c).

    F = softmax(Q K' / sqrt(d)) V W + bias,  Q of the prompts, K and V of the features

Source: MAST-Pro (MICCAI 2025), equations 6 to 8. The text is repeated for every organ token and
joined along the features, so that F has the grid of the features and can be added to them.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from medjax.models.parts.adapters import Dense
from medjax.models.parts.attention import attend, linear_init

QUERIES = ("feature_concat", "token_concat")
OUT_INITS = ("torch", "zero")


class PromptFusion(nn.Module):
    """See the module docstring.

    Parameters: `q`, `k`, `v`, `out` with kernels and biases; `q_text` for "token_concat"; `query`
    (*grid, c) in place of an organ encoder's tokens where there are none.

    Attributes:
      width: d. heads: must divide it.
      query: "feature_concat": every query is an organ token joined with the text; "token_concat":
        the text is a query of its own before those of the organ, whose results alone are added to
        the features.
      out_init: "torch", or "zero": the features start unchanged.
    """

    width: int = 768
    heads: int = 1
    query: str = "feature_concat"
    out_init: str = "torch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "b *grid c"],
        organ: Float[Array, "b *grid a"] | None = None,
        text: Float[Array, "b w"] | None = None,
    ) -> tuple[Float[Array, "b *grid c"], Float[Array, "b c"]]:
        """(what is added, its mean)."""
        batch, grid, channels = features.shape[0], features.shape[1:-1], features.shape[-1]
        if organ is None:
            table = self.param("query", nn.initializers.normal(0.02), (*grid, channels))
            organ = jnp.broadcast_to(table, (batch, *table.shape))
        image = features.reshape(batch, -1, channels).astype(self.dtype)
        asked = organ.reshape(batch, -1, organ.shape[-1]).astype(self.dtype)
        tokens = asked.shape[1]
        text = None if text is None else text.astype(self.dtype)[:, None]
        if text is not None and self.query == "feature_concat":
            asked = jnp.concatenate([jnp.repeat(text, tokens, 1), asked], -1)
        q = self._dense(self.width, "q")(asked)
        if text is not None and self.query == "token_concat":
            q = jnp.concatenate([self._dense(self.width, "q_text")(text), q], 1)
        k, v = (self._dense(self.width, name)(image) for name in "kv")
        found = attend(*(self._split(x) for x in (q, k, v)))
        found = self._dense(channels, "out", self.out_init)(found)
        return found[:, -tokens:].reshape(features.shape), found.mean(1)

    def _split(self, x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:-1], self.heads, -1), -2, -3)

    def _dense(self, features: int, name: str, init: str = "torch") -> Callable:
        def applied(x: Array) -> Array:
            given = linear_init("torch", x.shape[-1])
            if init == "zero":
                given = dict.fromkeys(given, nn.initializers.zeros)
            return Dense(features, dtype=self.dtype, name=name, **given)(x)

        return applied
