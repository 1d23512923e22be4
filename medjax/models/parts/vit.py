"""A vision transformer on the tokens of a grid, also as bottleneck of a convolutional network.

In and out: (b, *grid, c), two or three axes; every voxel of the grid is one token. Layers are
pre-norm, with exact GELU, separate queries, keys and values, and a LayerNorm after the last one
(ViT-B/16's layout, so that its weights fit at width 768). Sources: Dosovitskiy et al. (arXiv
2010.11929); TransBTS and 3D-TransUNet for its place at the lowest level of a U-Net.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from medjax.errors import ModelError
from medjax.models.parts.attention import attend
from medjax.models.parts.blocks import check_word
from medjax.models.parts.conv import Conv
from medjax.models.parts.position import POSITIONS, sincos_table
from medjax.models.parts.repeat import repeat

EPSILON = 1e-6


class Layer(nn.Module):
    """x + attention(LayerNorm x), then x + mlp(LayerNorm x).

    Parameters: `ln1`, `q`, `k`, `v`, `out`, `ln2`, `fc1`, `fc2`.

    Attributes:
      heads: must divide the width. hidden: width inside the MLP. dropout: after both linear maps of
        the MLP, in training.
    """

    heads: int
    hidden: int
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], train: bool = False) -> Float[Array, "b n c"]:
        width = x.shape[-1]
        init = {
            "kernel_init": nn.initializers.xavier_uniform(),
            "bias_init": nn.initializers.normal(1e-6),
        }
        dense = functools.partial(nn.Dense, dtype=self.dtype, **init)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        norm = functools.partial(nn.LayerNorm, EPSILON, dtype=self.dtype, use_fast_variance=False)
        y = norm(name="ln1")(x)
        q, k, v = (self._split(dense(width, name=name)(y)) for name in "qkv")
        x = x + dense(width, name="out")(attend(q, k, v))
        y = nn.gelu(dense(self.hidden, name="fc1")(norm(name="ln2")(x)), approximate=False)
        return x + drop(dense(width, name="fc2")(drop(y)))

    def _split(self, x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:-1], self.heads, -1), -2, -3)


class Encoder(nn.Module):
    """Position table, dropout, layers and last norm on a grid of tokens.

    Parameters: `pos` (*grid, c), `layer<i>`, `ln_f`.

    Attributes:
      layers, heads, mlp_ratio, dropout: see `Layer`.
      position: "learned" (starts at zero) or "sincos" (no parameters).
      scan: one program for all layers.
      remat: "none", or the layers are recomputed in the backward pass.
    """

    layers: int
    heads: int
    mlp_ratio: float | int = 4
    dropout: float | int = 0.1
    position: str = "learned"
    scan: bool = True
    remat: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *grid c"], train: bool = False
    ) -> Float[Array, "b *grid c"]:
        return _encode(self, x, train)


def _encode(self: nn.Module, x: Array, train: bool) -> Array:
    """Implements `Encoder` with the attributes and parameters of the calling module."""
    grid, width = x.shape[1:-1], x.shape[-1]
    check_word("position", self.position, POSITIONS)
    if width % self.heads:
        raise ModelError(
            "heads do not divide the width",
            found=f"{self.heads} heads, width {width}",
            fix="change heads or width",
        )
    if self.position == "learned":
        table = self.param("pos", nn.initializers.zeros, (*grid, width), jnp.float32)
    else:
        table = jnp.asarray(sincos_table(grid, width))
    dropping = train and self.dropout > 0
    x = nn.Dropout(self.dropout, deterministic=not dropping)(x + table.astype(x.dtype))
    layer = Layer(self.heads, int(self.mlp_ratio * width), self.dropout, self.dtype, parent=None)
    names = [f"layer{i}" for i in range(self.layers)]
    whole = "none" if self.remat == "none" else "block"
    tokens = x.reshape(x.shape[0], -1, width)
    tokens = repeat(
        self, layer, names, tokens, train, scan=self.scan, remat=whole, dropout=dropping
    )
    x = tokens.reshape(x.shape)
    return nn.LayerNorm(EPSILON, dtype=self.dtype, use_fast_variance=False, name="ln_f")(x)


class Bottleneck(nn.Module):
    """Convolution to `width` channels, `Encoder`, convolution back.

    Parameters: `in_proj`, the encoder's parameters, `out_proj`.

    Attributes:
      width: width of the tokens. kernels: sides of the convolutions in and out, 1 or 3.
      residual: add the input to the output.
      kernel_init: initialiser of the convolutions. Others: see `Encoder`.
    """

    width: int
    layers: int
    heads: int
    mlp_ratio: float | int = 4
    kernels: tuple[int, int] = (1, 1)
    residual: bool = False
    dropout: float | int = 0.1
    position: str = "learned"
    scan: bool = True
    remat: str = "none"
    dtype: Any = jnp.float32
    kernel_init: Callable | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *grid c"], train: bool = False
    ) -> Float[Array, "b *grid c"]:
        axes, init = (
            x.ndim - 2,
            {} if self.kernel_init is None else {"kernel_init": self.kernel_init},
        )
        y = Conv(self.width, (self.kernels[0],) * axes, dtype=self.dtype, name="in_proj", **init)(x)
        y = _encode(self, y, train)
        y = Conv(x.shape[-1], (self.kernels[1],) * axes, dtype=self.dtype, name="out_proj", **init)(
            y
        )
        return x + y if self.residual else y
