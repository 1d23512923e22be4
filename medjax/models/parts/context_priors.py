"""Tokens and features that attend to each other in turn: the layer of Hermes.

In: features (b, n, c) and tokens (b, t, c). First the tokens attend to the features, then the
features to the tokens; each with a residual and an MLP. Norms stand before. Source: Gao et al.
(arXiv 2306.02416), section 3.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from medjax.models.parts.adapters import Dense
from medjax.models.parts.attention import attend

HEAD = 32  # channels of a head
XAVIER = nn.initializers.xavier_uniform()


def heads_of(width: int) -> int:
    """Number of heads of a width."""
    return max(width // HEAD, 1)


class Perceptron(nn.Module):
    """Linear to `hidden`, exact GELU, linear to `features`: `fc1`, `fc2`."""

    hidden: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*any c"]) -> Float[Array, "*any d"]:
        x = Dense(self.hidden, dtype=self.dtype, kernel_init=XAVIER, name="fc1")(x)
        x = nn.gelu(x, approximate=False)
        return Dense(self.features, dtype=self.dtype, kernel_init=XAVIER, name="fc2")(x)


class Cross(nn.Module):
    """x + attention of x to y, and then an MLP with a residual.

    Parameters: `norm1` (of x), `norm2` (of y), `q`, `kv`, `out`, `norm3`, `ffn`.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        y: Float[Array, "b m c"],
        exists: Bool[Array, "b m"] | None = None,
    ) -> Float[Array, "b n c"]:
        """`exists`: which tokens of y are keys; None: all."""
        width = x.shape[-1]

        def norm(epsilon: float, name: str) -> nn.Module:
            return nn.LayerNorm(epsilon, dtype=self.dtype, use_fast_variance=False, name=name)

        def dense(features: int, name: str, bias: bool = False) -> nn.Module:
            return Dense(features, bias, dtype=self.dtype, kernel_init=XAVIER, name=name)

        seen = norm(1e-5, "norm2")(y)
        q = self._split(dense(width, "q")(norm(1e-5, "norm1")(x)))
        k, v = (self._split(part) for part in jnp.split(dense(2 * width, "kv")(seen), 2, -1))
        bias = None
        if exists is not None:
            bias = jnp.where(exists, 0.0, jnp.finfo(jnp.float32).min)[:, None, None]
        x = x + dense(width, "out", True)(attend(q, k, v, bias))
        return x + Perceptron(4 * width, width, self.dtype, name="ffn")(norm(1e-4, "norm3")(x))

    def _split(self, x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:-1], self.heads, -1), -2, -3)


class Exchange(nn.Module):
    """One layer: `to_prior`, then `to_feature`."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "b n c"],
        priors: Float[Array, "b t c"],
        exists: Bool[Array, "b t"],
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b t c"]]:
        """(features, tokens); `exists`: which tokens are keys of the features."""
        priors = Cross(self.heads, self.dtype, name="to_prior")(priors, features)
        return Cross(self.heads, self.dtype, name="to_feature")(features, priors, exists), priors
