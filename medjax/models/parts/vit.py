"""A vision transformer on the tokens of a grid, also as bottleneck of a convolutional network.

In and out: (b, *grid, c), two or three axes; every voxel of the grid is one token. Layers are
pre-norm, with exact GELU, separate queries, keys and values, and a LayerNorm after the last one
(ViT-B/16's layout, so that its weights fit at width 768). Sources: Dosovitskiy et al. (arXiv
2010.11929); TransBTS and 3D-TransUNet for its place at the lowest level of a U-Net. The layers'
MLPs are a socket (`parts.attention`); what they offer is handed on, as {name: {layer: array}}.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from medjax.errors import ModelError
from medjax.models.parts.adapters import Dense
from medjax.models.parts.attention import (
    Context,
    Offered,
    attend,
    call,
    check_initial,
    linear_init,
    split_offer,
)
from medjax.models.parts.blocks import check_word
from medjax.models.parts.conv import Conv
from medjax.models.parts.position import POSITIONS, sincos_table
from medjax.models.parts.repeat import repeat

EPSILON = 1e-6


class Layer(nn.Module):
    """x + attention(LayerNorm x), then x + mlp(LayerNorm x).

    Parameters: `ln1`, `q`, `k`, `v`, `out`, `ln2`, and `fc1`, `fc2` or `mlp/...`.

    Attributes:
      heads: must divide the width. hidden: width inside the MLP. dropout: after both linear maps of
        the MLP, in training; after the whole of another `mlp`.
      initial: how the linear maps start, see `attention.linear_init`; with "xavier" their biases
        have a standard deviation of 1e-6, as in ViT's code.
      mlp: constructor of another MLP, see `parts.attention`.
      offers: return (x, what the mlp offers) instead of x.
    """

    heads: int
    hidden: int
    dropout: float = 0.1
    dtype: Any = jnp.float32
    mlp: Callable | None = None
    offers: bool = False
    initial: str = "xavier"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], context: Context = None, train: bool = False
    ) -> Offered:
        width = x.shape[-1]

        def dense(features: int, name: str, inputs: int = width) -> nn.Module:
            init = linear_init(self.initial, inputs)
            if self.initial == "xavier":
                init["bias_init"] = nn.initializers.normal(1e-6)
            return Dense(features, dtype=self.dtype, name=name, **init)

        drop = nn.Dropout(self.dropout, deterministic=not train)
        norm = functools.partial(nn.LayerNorm, EPSILON, dtype=self.dtype, use_fast_variance=False)
        y = norm(name="ln1")(x)
        q, k, v = (self._split(dense(width, name=name)(y)) for name in "qkv")
        x = x + dense(width, name="out")(attend(q, k, v))
        y, offered = norm(name="ln2")(x), {}
        if self.mlp is None:
            y = nn.gelu(dense(self.hidden, name="fc1")(y), approximate=False)
            y = dense(width, "fc2", self.hidden)(drop(y))
        else:
            mlp = self.mlp(self.hidden, initial=self.initial, dtype=self.dtype, name="mlp")
            y, offered = split_offer(mlp, call(mlp, y, context, train))
        x = x + drop(y)
        return (x, offered) if self.offers else x

    def _split(self, x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:-1], self.heads, -1), -2, -3)


class Encoder(nn.Module):
    """Position table, dropout, layers and last norm on a grid of tokens.

    Parameters: `pos` (*grid, c), `layer<i>`, `ln_f`.

    Attributes:
      layers, heads, mlp_ratio, dropout, mlp, initial: see `Layer`.
      position: "learned" (starts at zero) or "sincos" (no parameters).
      scan: one program for all layers.
      remat: "none", or the layers are recomputed in the backward pass.
      offers: return (x, what the mlps offer) instead of x.
    """

    layers: int
    heads: int
    mlp_ratio: float | int = 4
    dropout: float | int = 0.1
    position: str = "learned"
    scan: bool = True
    remat: str = "none"
    dtype: Any = jnp.float32
    mlp: Callable | None = None
    offers: bool = False
    initial: str = "xavier"
    contextual = True
    stochastic = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *grid c"], context: Context = None, train: bool = False
    ) -> Offered:
        x, offered = _encode(self, x, context, train)
        return (x, offered) if self.offers else x


def _encode(
    self: nn.Module, x: Array, context: Context, train: bool
) -> tuple[Array, dict[str, dict[str, Array]]]:
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
    layer = Layer(
        self.heads,
        int(self.mlp_ratio * width),
        self.dropout,
        self.dtype,
        self.mlp,
        self.mlp is not None,
        check_initial(self.initial),
        parent=None,
    )
    names = [f"layer{i}" for i in range(self.layers)]
    whole = "none" if self.remat == "none" else "block"
    tokens = x.reshape(x.shape[0], -1, width)
    tokens, found = repeat(
        self, layer, names, tokens, context, train, scan=self.scan, remat=whole, dropout=dropping
    )
    x = tokens.reshape(x.shape)
    offered: dict[str, dict[str, Array]] = {}
    for name, offers in found.items():
        for what, value in offers.items():
            if value.ndim > 1 and value.shape[1] == tokens.shape[1]:  # of every token
                value = value.reshape(*x.shape[:-1], *value.shape[2:])
            offered.setdefault(what, {})[name] = value
    x = nn.LayerNorm(EPSILON, dtype=self.dtype, use_fast_variance=False, name="ln_f")(x)
    return x, offered


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
    mlp: Callable | None = None
    offers: bool = False
    initial: str = "xavier"
    contextual = True
    stochastic = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *grid c"], context: Context = None, train: bool = False
    ) -> Offered:
        axes, init = (
            x.ndim - 2,
            {} if self.kernel_init is None else {"kernel_init": self.kernel_init},
        )
        y = Conv(self.width, (self.kernels[0],) * axes, dtype=self.dtype, name="in_proj", **init)(x)
        y, offered = _encode(self, y, context, train)
        y = Conv(x.shape[-1], (self.kernels[1],) * axes, dtype=self.dtype, name="out_proj", **init)(
            y
        )
        y = x + y if self.residual else y
        return (y, offered) if self.offers else y
