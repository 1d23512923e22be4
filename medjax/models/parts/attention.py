"""Window attention, the Swin block and stages of blocks, with sockets for replaceable parts.

In: tokens (b, *grid, c), two or three axes, and the call's context. Out: tokens of the same shape.

The socket `mlp` is a constructor argument: `mlp(features, initial=, dtype=, name="mlp")` gives a
module called with x (b, *grid, c), already normalised; `Mlp` by default. Mixtures of experts go
here, see `parts.sockets`.

A socket's module is called by `call`: with (x, context) if it has a true attribute `contextual`,
e.g. for routing by corpus, modality or task; with `train=` as well if it has a true attribute
`stochastic`. One with a true attribute `offers` returns (y, {name: array}): gate weights, router
loads. Blocks and stages built with `offers=True` pass these on, as (x, {...}); otherwise they are
dropped. Axis 0 is always the sample. A `mlp` of a Swin block may also have true attributes
`in_attention` (its `beside_qkv(x, context, train)` is added to queries, keys and values) and
`wants_residual` (context["residual"] is the block's tokens before the norm); see `parts.dmoe`.

Sources: Swin (arXiv 2103.14030), sections 3.1 and 3.2; initial values as PyTorch's layers
("torch"), Swin's ("swin"), MAE's ("xavier").
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from medjax.errors import ModelError, did_you_mean
from medjax.models.parts import window as geometry
from medjax.models.parts.adapters import Dense
from medjax.models.parts.products import wide_einsum

INITIAL = ("swin", "xavier", "torch")  # how linear maps start, see `linear_init`
# entries of the call; for a head also what other parts of the network offer, by name
Context = Mapping[str, Any] | None
Offered = Float[Array, "b *grid c"] | tuple[Float[Array, "b *grid c"], dict[str, Any]]


def call(module: Callable, x: Float[Array, "..."], context: Context, train: bool = False) -> Any:
    """Applies a socket's module to x, with the context and `train` if it asks for them.

    Returns an array, or also what a module `offers` (see `split_offer`).
    """
    given = (x, context) if getattr(module, "contextual", False) else (x,)
    return module(*given, train=train) if getattr(module, "stochastic", False) else module(*given)


def split_offer(module: Any, result: Any) -> tuple[Array, dict[str, Any]]:
    """(y, what the module offers): of a module without `offers`, nothing."""
    return result if getattr(module, "offers", False) else (result, {})


def check_initial(word: str) -> str:
    """The word, if it is one of `INITIAL`; otherwise `ModelError`."""
    if word not in INITIAL:
        raise ModelError(
            f"unknown initial values {word!r}",
            expected=" or ".join(INITIAL),
            fix=did_you_mean(word, INITIAL),
        )
    return word


def linear_init(kind: str, inputs: int) -> dict[str, Callable]:
    """`kernel_init` and `bias_init` of a linear map by a word of `INITIAL`, for `inputs` channels.

    Standard deviation of a kernel (inputs, outputs):

      swin    0.02, whatever the width: made for widths of 96 and more
      xavier  sqrt(2 / (inputs + outputs))
      torch   sqrt(1 / (3 inputs)), uniform within 1 / sqrt(inputs)

    Biases are 0, with "torch" as its kernels. Swin's code truncates at +-2, which is 100 standard
    deviations: a plain normal. Raises: `ModelError` for another word.
    """
    if check_initial(kind) != "torch":
        kernel_init = (
            nn.initializers.normal(0.02) if kind == "swin" else nn.initializers.xavier_uniform()
        )
        return {"kernel_init": kernel_init, "bias_init": nn.initializers.zeros}
    bound = inputs**-0.5

    def uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return {"kernel_init": uniform, "bias_init": uniform}


def split_heads(qkv: Shaped[Array, "*b n c3"], heads: int) -> tuple[Shaped[Array, "*b h n d"], ...]:
    """A fused projection -> queries, keys, values; its channels run over (3, heads, d)."""
    split = qkv.reshape(*qkv.shape[:-1], 3, heads, -1)
    return tuple(jnp.moveaxis(split[..., i, :, :], -2, -3) for i in range(3))


def attend(
    q: Float[Array, "*b h n d"],
    k: Float[Array, "*k h m d"],
    v: Float[Array, "*k h m d"],
    bias: Float[Array, "..."] | None = None,
) -> Float[Array, "... n c"]:
    """softmax(q k' / sqrt(d) + bias) v, heads joined to c = h d channels; softmax in float32.

    The leading axes of queries and keys are broadcast to each other.

    Args:
      bias: broadcast to (..., h, n, m).
    """
    scores = wide_einsum("...qd,...kd->...qk", q * q.shape[-1] ** -0.5, k)
    weights = jax.nn.softmax(scores if bias is None else scores + bias, -1).astype(v.dtype)
    out = jnp.moveaxis(jnp.einsum("...qk,...kd->...qd", weights, v), -3, -2)
    return out.reshape(*out.shape[:-2], -1)


def position_bias(
    table: Float[Array, "rows h"], index: Int[np.ndarray, "n n"]
) -> Float[Array, "h n n"]:
    """The learned bias of every pair of tokens, by their relative position."""
    return jnp.moveaxis(table[index], -1, 0)


def drop_path(x: Float[Array, "b ..."], rate: float, key: Array) -> Float[Array, "b ..."]:
    """Drops the branch of a sample with probability `rate`, scales the others by 1 / (1 - rate).

    Stochastic depth.
    """
    keep = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


class WindowAttention(nn.Module):
    """Multi-head attention within (shifted) windows of a grid.

    Parameters: `qkv/{kernel,bias}` (c, 3c), `proj/{kernel,bias}` (c, c), `rel_bias` (prod(2w-1),
    heads). The grid is filled up to whole windows with tokens that are zero before `qkv` and take
    part in the attention, as in MONAI.

    Attributes:
      heads: number of heads; must divide c.
      window, shift: tokens per axis; smaller grids shrink the window and drop the shift
        (`window.fit`).
      bias_index: "corner" or "geometric" for shrunken windows (`window.bias_index`).
      keep_shift: see `window.fit`.
      initial: see `linear_init`.
    """

    heads: int
    window: tuple[int, ...]
    shift: tuple[int, ...]
    bias_index: str = "corner"
    keep_shift: bool = False
    initial: str = "torch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *grid c"], beside: Float[Array, "b *grid d"] | None = None
    ) -> Float[Array, "b *grid c"]:
        """Tokens after attention; `beside` (d = 3 c) is added to queries, keys and values."""
        grid, width = x.shape[1:-1], x.shape[-1]
        if width % self.heads:
            raise ModelError(
                "heads do not divide the width",
                found=f"{self.heads} heads, width {width}",
                fix="change heads or feature_size",
            )
        used, shift = geometry.fit(grid, self.window, self.shift, self.keep_shift)

        def windows(y: Array) -> Array:
            y = geometry.roll(geometry.pad_to_windows(y, used), shift)
            return geometry.partition(y, used)

        padded = tuple(side + -side % w for side, w in zip(grid, used, strict=True))
        given = {"dtype": self.dtype, **linear_init(self.initial, width)}
        rows = int(np.prod([2 * w - 1 for w in self.window]))
        table = self.param("rel_bias", nn.initializers.normal(0.02), (rows, self.heads))
        bias = position_bias(table, geometry.bias_index(self.window, used, self.bias_index))
        if any(shift):
            # The barrier keeps the compiler from folding the (windows, n, n) mask, 645 MB for large
            # patches, into the program.
            region = jax.lax.optimization_barrier(
                jnp.asarray(geometry.regions(padded, used, shift))
            )
            bias = bias + geometry.shift_mask(region)[:, None]
        qkv = Dense(3 * width, name="qkv", **given)(windows(x))
        if beside is not None:
            qkv = qkv + windows(beside)
        tokens = attend(*split_heads(qkv, self.heads), bias)
        tokens = Dense(width, name="proj", **given)(tokens)
        x = geometry.roll(geometry.reverse(tokens, used, padded), [-s for s in shift])
        return x[(slice(None), *(slice(side) for side in grid))]


class Mlp(nn.Module):
    """Linear to `features`, exact GELU, linear back: `fc1` and `fc2`."""

    features: int
    initial: str = "torch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b ... c"]) -> Float[Array, "b ... c"]:
        return two_layers(x, self.features, self.initial, self.dtype)


def two_layers(
    x: Float[Array, "b ... c"], features: int, initial: str, dtype: Any
) -> Float[Array, "b ... c"]:
    """The layers of `Mlp` within a compact method of another module, which gets their parameters.

    See `Mlp` for the arguments.
    """
    width = x.shape[-1]
    first, second = (linear_init(initial, n) for n in (width, features))
    x = Dense(features, name="fc1", dtype=dtype, **first)(x)
    return Dense(width, name="fc2", dtype=dtype, **second)(nn.gelu(x, approximate=False))


class SwinBlock(nn.Module):
    """x + attention(LayerNorm x), then x + mlp(LayerNorm x).

    Each branch is dropped per sample with `drop_path` in training (rng "dropout").

    Attributes:
      mlp_ratio: hidden width of the MLP over c.
      epsilon: of both LayerNorms.
      offers: return (x, what the mlp offers) instead of x.
      Others: see `WindowAttention` and the module docstring.
    """

    heads: int
    window: tuple[int, ...]
    shift: tuple[int, ...]
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    bias_index: str = "corner"
    keep_shift: bool = False
    mlp: Callable = Mlp
    initial: str = "torch"
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    offers: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *grid c"], context: Context = None, train: bool = False
    ) -> Offered:
        def norm(name: str) -> nn.Module:
            return nn.LayerNorm(self.epsilon, dtype=self.dtype, use_fast_variance=False, name=name)

        def branch(y: Array) -> Array:
            return (
                drop_path(y, self.drop_path, self.make_rng("dropout"))
                if train and self.drop_path
                else y
            )

        shared = {"initial": self.initial, "dtype": self.dtype}
        attention = WindowAttention(
            self.heads,
            self.window,
            self.shift,
            self.bias_index,
            self.keep_shift,
            name="attn",
            **shared,
        )
        mlp = self.mlp(int(self.mlp_ratio * x.shape[-1]), name="mlp", **shared)
        y, before = norm("norm1")(x), {}
        if getattr(mlp, "in_attention", False):
            beside, before = mlp.beside_qkv(y, context, train)
            attended = attention(y, beside)
        else:
            attended = attention(y)
        x = x + branch(attended)
        if getattr(mlp, "wants_residual", False):
            context = {**(context or {}), "residual": x}
        y, offered = split_offer(mlp, call(mlp, norm("norm2")(x), context, train))
        x = x + branch(y)
        return (x, before | offered) if self.offers else x


class SwinStage(nn.Module):
    """Blocks `block0`, `block1`, ... on one grid; every second one shifts its windows by half.

    Attributes:
      rates: drop-path rate of every block; their number is the depth.
      block: `SwinBlock`, or a rematerialised one.
      offers: return (x, {"block0": what its mlp offers, ...}) instead of x.
      Others: see `SwinBlock`.
    """

    heads: int
    window: tuple[int, ...]
    rates: tuple[float, ...] = (0.0, 0.0)
    block: Callable = SwinBlock
    mlp_ratio: float = 4.0
    bias_index: str = "corner"
    keep_shift: bool = False
    mlp: Callable = Mlp
    initial: str = "torch"
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    offers: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *grid c"], context: Context = None, train: bool = False
    ) -> Offered:
        names = (
            "mlp_ratio",
            "bias_index",
            "keep_shift",
            "mlp",
            "initial",
            "epsilon",
            "dtype",
            "offers",
        )
        shared, offered = {n: getattr(self, n) for n in names}, {}
        for i, rate in enumerate(self.rates):
            shift = tuple(w // 2 if i % 2 else 0 for w in self.window)
            block = self.block(
                self.heads, self.window, shift, drop_path=rate, name=f"block{i}", **shared
            )
            x, offered[f"block{i}"] = split_offer(self, block(x, context, train))
        return (x, offered) if self.offers else x


def drop_path_rates(highest: float, depths: Sequence[int]) -> tuple[tuple[float, ...], ...]:
    """Rates growing linearly from 0 over all blocks of all stages, as one tuple per stage."""
    rates = iter(np.linspace(0.0, highest, sum(depths)).tolist())
    return tuple(tuple(next(rates) for _ in range(depth)) for depth in depths)


def rematerialised(block: type[nn.Module] = SwinBlock) -> Callable:
    """`block` with its activations recomputed in the backward pass; same parameters."""
    return nn.remat(block, static_argnums=(3,))
