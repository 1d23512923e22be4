"""A vision transformer on the tokens of a grid, also as bottleneck of a convolutional network.

In and out: (b, *grid, c), two or three axes; every voxel of the grid is one token. Layers are
pre-norm, by default with exact GELU and separate queries, keys and values, and a LayerNorm after
the last one (ViT-B/16's layout, so that its weights fit at width 768). Sources: Dosovitskiy et al.
(arXiv 2010.11929); TransBTS and 3D-TransUNet for its place at the lowest level of a U-Net. The
layers' MLPs are a socket (`parts.attention`); what they offer is handed on, as {name: {layer:
array}}. `PatchedEncoder` is the encoder of volumes: voxels to tokens, then the same layers.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from medjax.errors import ModelError
from medjax.models.parts.adapters import Dense
from medjax.models.parts.attention import (
    Context,
    Offered,
    attend,
    call,
    check_initial,
    linear_init,
    split_heads,
    split_offer,
)
from medjax.models.parts.blocks import check_word
from medjax.models.parts.conv import Conv
from medjax.models.parts.patch import PatchEmbed
from medjax.models.parts.position import POSITIONS, sincos_table
from medjax.models.parts.repeat import repeat

EPSILON = 1e-6
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # CLIP's
}

# how the layers of MONAI's ViT differ from the paper's
MONAI: Mapping[str, Any] = {
    "fused": True,
    "qkv_bias": False,
    "epsilon": 1e-5,
    "prefix": "block",
    "position_init": nn.initializers.truncated_normal(0.02),
}


class Layer(nn.Module):
    """x + attention(LayerNorm x), then x + mlp(LayerNorm x).

    Parameters: `ln1`, `q`, `k`, `v` or `qkv`, `out`, `ln2`, and `fc1`, `fc2` or `mlp/...`.

    Attributes:
      heads: must divide the width. hidden: width inside the MLP. dropout: after both linear maps of
        the MLP, in training; after the whole of another `mlp`.
      initial: how the linear maps start, see `attention.linear_init`; with "xavier" their biases
        have a standard deviation of 1e-6, as in ViT's code.
      mlp: constructor of another MLP, see `parts.attention`.
      offers: return (x, what the mlp offers) instead of x.
      fused: one linear map `qkv` for queries, keys and values; its channels run over (3, heads, d).
      qkv_bias: queries, keys and values have biases.
      epsilon: of both LayerNorms.
      activation: of the MLP without socket, a key of `ACTIVATIONS`.
      causal: a token attends to itself and the tokens before it.
    """

    heads: int
    hidden: int
    dropout: float = 0.1
    dtype: Any = jnp.float32
    mlp: Callable | None = None
    offers: bool = False
    initial: str = "xavier"
    fused: bool = False
    qkv_bias: bool = True
    epsilon: float = EPSILON
    activation: str = "gelu"
    causal: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], context: Context = None, train: bool = False
    ) -> Offered:
        width = x.shape[-1]

        def dense(features: int, name: str, inputs: int = width, bias: bool = True) -> nn.Module:
            init = linear_init(self.initial, inputs)
            if self.initial == "xavier":
                init["bias_init"] = nn.initializers.normal(1e-6)
            return Dense(features, bias, dtype=self.dtype, name=name, **init)

        drop = nn.Dropout(self.dropout, deterministic=not train)
        norm = functools.partial(
            nn.LayerNorm, self.epsilon, dtype=self.dtype, use_fast_variance=False
        )
        y = norm(name="ln1")(x)
        if self.fused:
            joined = dense(3 * width, name="qkv", bias=self.qkv_bias)(y)
            q, k, v = split_heads(joined, self.heads)
        else:
            q, k, v = (self._split(dense(width, name=n, bias=self.qkv_bias)(y)) for n in "qkv")
        x = x + dense(width, name="out")(attend(q, k, v, self._later(x.shape[-2])))
        y, offered = norm(name="ln2")(x), {}
        if self.mlp is None:
            y = ACTIVATIONS[self.activation](dense(self.hidden, name="fc1")(y))
            y = dense(width, "fc2", self.hidden)(drop(y))
        else:
            mlp = self.mlp(self.hidden, initial=self.initial, dtype=self.dtype, name="mlp")
            y, offered = split_offer(mlp, call(mlp, y, context, train))
        x = x + drop(y)
        return (x, offered) if self.offers else x

    def _split(self, x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:-1], self.heads, -1), -2, -3)

    def _later(self, count: int) -> Array | None:
        """The bias that hides later tokens, (count, count)."""
        if not self.causal:
            return None
        return jnp.where(jnp.tri(count, dtype=bool), 0.0, jnp.finfo(jnp.float32).min)


class Encoder(nn.Module):
    """Position table, dropout, layers and last norm on a grid of tokens.

    Parameters: `pos` (*grid, c), `layer<i>`, `ln_f`.

    Called with x, the context, `train`, and for masked images with (where (b, *grid) bool, token
    (c,)): the token then stands in the place of the hidden ones, before positions are added.

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
        self,
        x: Float[Array, "b *grid c"],
        context: Context = None,
        train: bool = False,
        masked: tuple[Bool[Array, "b *grid"], Float[Array, " c"]] | None = None,
    ) -> Offered:
        sizes = int(self.mlp_ratio * x.shape[-1]), self.position
        x, offered = _encode(self, x, context, train, *sizes, masked)
        return (x, offered) if self.offers else x


class PatchedEncoder(nn.Module):
    """Voxels to tokens, then position table, layers and last norm: MONAI's and SegVol's ViT.

    Queries, keys and values come from one map without bias. In: (b, *vol, m); out: (b, *grid, c).

    Parameters: `patch_embed/{kernel, bias}`, `pos` (*grid, c), `block<i>`, `ln_f`.

    Attributes:
      patch: voxels per token and axis. width: c. hidden: width inside the MLPs.
      Others: see `Encoder`.
    """

    patch: tuple[int, ...]
    width: int
    layers: int
    heads: int
    hidden: int
    dropout: float | int = 0.0
    scan: bool = True
    remat: str = "none"
    dtype: Any = jnp.float32
    mlp: Callable | None = None
    initial: str = "torch"

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b *vol m"],
        context: Context = None,
        train: bool = False,
        masked: tuple[Bool[Array, "b *grid"], Float[Array, " c"]] | None = None,
    ) -> Float[Array, "b *grid c"]:
        start = {"kernel_init": nn.initializers.truncated_normal(0.02)}
        x = PatchEmbed(self.width, self.patch, dtype=self.dtype, name="patch_embed", **start)(image)
        return _encode(self, x, context, train, self.hidden, "learned", masked, **MONAI)[0]


def _encode(
    self: nn.Module,
    x: Array,
    context: Context,
    train: bool,
    hidden: int,
    position: str,
    masked: tuple[Array, Array] | None = None,
    *,
    fused: bool = False,
    qkv_bias: bool = True,
    epsilon: float = EPSILON,
    prefix: str = "layer",
    position_init: Callable = nn.initializers.zeros,
) -> tuple[Array, dict[str, dict[str, Array]]]:
    """Implements `Encoder` with the attributes and parameters of the calling module."""
    grid, width = x.shape[1:-1], x.shape[-1]
    check_word("position", position, POSITIONS)
    if width % self.heads:
        raise ModelError(
            "heads do not divide the width",
            found=f"{self.heads} heads, width {width}",
            fix="change heads or width",
        )
    if masked is not None:
        x = jnp.where(masked[0][..., None], masked[1].astype(x.dtype), x)
    if position == "learned":
        table = self.param("pos", position_init, (*grid, width), jnp.float32)
    else:
        table = jnp.asarray(sincos_table(grid, width))
    dropping = train and self.dropout > 0
    x = nn.Dropout(self.dropout, deterministic=not dropping)(x + table.astype(x.dtype))
    layer = Layer(
        self.heads,
        hidden,
        self.dropout,
        self.dtype,
        self.mlp,
        self.mlp is not None,
        check_initial(self.initial),
        fused,
        qkv_bias,
        epsilon,
        parent=None,
    )
    names = [f"{prefix}{i}" for i in range(self.layers)]
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
    x = nn.LayerNorm(epsilon, dtype=self.dtype, use_fast_variance=False, name="ln_f")(x)
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
        sizes = int(self.mlp_ratio * self.width), self.position
        y, offered = _encode(self, y, context, train, *sizes)
        y = Conv(x.shape[-1], (self.kernels[1],) * axes, dtype=self.dtype, name="out_proj", **init)(
            y
        )
        y = x + y if self.residual else y
        return (y, offered) if self.offers else y
