"""SwinUNETR: a Swin transformer as encoder, residual convolution blocks as decoder.

Hatamizadeh et al., arXiv 2201.01266; MONAI's network.

In: image (b, *vol, m) float32, three axes or two, sides divisible by 32. Out: {"logits": (b, *vol,
classes) float32}, what the sockets offer and, on request, the named intermediate maps. It computes
MONAI's function with MONAI's weights: `merging` and `weight_axes` describe how imported weights
were trained.
`SwinEncoder`, `encode` and `decode` can be used by networks that insert other parts.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float

from medjax.errors import ModelError
from medjax.models.context import Spec
from medjax.models.parts import sockets
from medjax.models.parts.adapters import Dense
from medjax.models.parts.attention import (
    Context,
    SwinBlock,
    SwinStage,
    call,
    check_initial,
    drop_path_rates,
    linear_init,
    rematerialised,
)
from medjax.models.parts.conv import Conv, Up
from medjax.models.parts.heads import Prior, bias_init, checked_prior
from medjax.models.parts.norm import InstanceNorm, leaky_relu
from medjax.models.parts.patch import PatchEmbed, PatchMerging, merging_order
from medjax.models.parts.sockets import Socket, Words

STRIDE = 32  # patch embedding by 2, four mergings by 2
REMAT = ("none", "block", "all")

# PyTorch's initial values of convolutions: uniform within 1 / sqrt(fan in), the fan in of
# transposed ones being counted on their outputs.
uniform_conv = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-2, out_axis=-1)
uniform_up = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform", in_axis=-2, out_axis=-1)
plain_norm = functools.partial(InstanceNorm, affine=False)


def whiten(x: Float[Array, "*b c"], epsilon: float = 1e-5) -> Float[Array, "*b c"]:
    """LayerNorm over the channels without parameters; statistics in float32."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, -1, keepdims=True)
    return (y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + epsilon)).astype(x.dtype)


class ResBlock(nn.Module):
    """conv3 - norm - act - conv3 - norm, plus the input (conv1 - norm if the width changes), act.

    Convolutions without bias.
    """

    features: int
    norm: Callable = plain_norm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol c"]) -> Float[Array, "b *vol d"]:
        def conv(y: Array, side: int, name: str) -> Array:
            kernel = (side,) * (x.ndim - 2)
            return Conv(
                self.features,
                kernel,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=uniform_conv,
                name=name,
            )(y)

        y = leaky_relu(self.norm(name="norm1")(conv(x, 3, "conv1")))
        y = self.norm(name="norm2")(conv(y, 3, "conv2"))
        if x.shape[-1] != self.features:
            x = self.norm(name="norm3")(conv(x, 1, "conv3"))
        return leaky_relu(x + y)


class UpBlock(nn.Module):
    """Transposed convolution (x 2, without bias), concatenation (up, skip), residual block."""

    features: int
    block: Callable = ResBlock
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *half c"], skip: Float[Array, "b *vol d"]
    ) -> Float[Array, "b *vol d"]:
        size = (2,) * (x.ndim - 2)
        up = Up(
            self.features, size, use_bias=False, dtype=self.dtype, kernel_init=uniform_up, name="up"
        )(x)
        return self.block(self.features, name="block")(jnp.concatenate([up, skip], -1))


class SwinEncoder(nn.Module):
    """Patch embedding by 2, then Swin stages at widths f, 2f, 4f, ..., each followed by a merging.

    Parameters: `patch_embed`, and for every stage from 1 `stage{s}/block{i}`, `merge{s}` and, with
    `use_v2`, `conv{s}`.

    Attributes:
      features: f; stages: one `SwinStage` constructor per stage.
      conv_block: constructor of the residual convolution blocks that `use_v2` applies to the tokens
        before every stage.
      normalise: the returned maps are whitened over the channels; the chain itself is not.
      initial: of the mergings, see `make`.
    """

    features: int
    stages: tuple[Callable, ...]
    merging: str = "fixed"
    use_v2: bool = False
    normalise: bool = True
    conv_block: Callable = ResBlock
    dtype: Any = jnp.float32
    initial: str = "torch"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *vol m"], context: Context = None, train: bool = False
    ) -> tuple[tuple[Float[Array, "b ..."], ...], dict[str, dict]]:
        """(maps, offers).

        Maps are the embedded patches (f channels, half the sides) and the result of every stage,
        which doubles the channels and halves the sides. Offers are {"stage{s}": {"block{i}":
        what its mlp offers}}.
        """
        size = (2,) * (x.ndim - 2)
        init = linear_init("torch", 2 ** len(size) * x.shape[-1])
        x = PatchEmbed(self.features, size, dtype=self.dtype, name="patch_embed", **init)(x)
        maps, offered = [x], {}
        for number, stage in enumerate(self.stages, 1):
            if self.use_v2:
                x = self.conv_block(x.shape[-1], name=f"conv{number}")(x)
            name = f"stage{number}"
            x, offered[name] = stage(name=name, offers=True)(x, context, train)
            init = linear_init(self.initial, 2 ** len(size) * x.shape[-1])["kernel_init"]
            x = PatchMerging(
                self.merging, kernel_init=init, dtype=self.dtype, name=f"merge{number}"
            )(x)
            maps.append(x)
        found = tuple(whiten(x) for x in maps) if self.normalise else tuple(maps)
        return found, offered


class SwinUNETR(nn.Module):
    """The network.

    Parameters: `swin`, `encoder1/2/3/4/10`, `decoder5/4/3/2/1`, `out`; optional `bottleneck`.

    Attributes:
      swin: the encoder.
      bottleneck, conditioning: sockets on the deepest map; `conditioning` is the socket `context`.
      weight_axes, intermediates, prior: see `make`.
      head: a socket (`parts.heads`); None: one linear map.
      reads: what the sockets read.
    """

    classes: int
    swin: SwinEncoder
    dims: int
    in_channels: int
    conv_block: Callable = ResBlock
    up_block: Callable = UpBlock
    bottleneck: Socket | None = None
    weight_axes: str = "zyx"
    intermediates: bool = False
    prior: Prior | None = None
    dtype: Any = jnp.float32
    head: Callable[..., nn.Module] | None = None
    conditioning: Socket | None = None
    reads: Spec = FrozenDict()

    def setup(self) -> None:
        f = self.swin.features
        for level, width in ((1, f), (2, f), (3, 2 * f), (4, 4 * f), (10, 16 * f)):
            setattr(self, f"encoder{level}", self.conv_block(width))
        for level, width in ((5, 8 * f), (4, 4 * f), (3, 2 * f), (2, f), (1, f)):
            setattr(self, f"decoder{level}", self.up_block(width))
        init = linear_init("torch", f)
        if self.prior is not None:
            init["bias_init"] = bias_init(self.prior)
        self.out = (self.head or Dense)(self.classes, use_bias=True, dtype=self.dtype, **init)

    def encode(
        self, image: Float[Array, "b *vol m"], context: Context = None, train: bool = False
    ) -> dict[str, Array]:
        """Maps: `x0` .. `x4` of the Swin encoder, skips `enc0` .. `enc3`, and `deepest`.

        `deepest` has sides / 32 and 16 f channels.
        """
        return self.encode_offering(image, context, train)[0]

    def encode_offering(
        self, image: Float[Array, "b *vol m"], context: Context = None, train: bool = False
    ) -> tuple[dict[str, Array], dict[str, dict]]:
        """The maps of `encode`, and what the mlps offer (see `SwinEncoder`)."""
        image = image.astype(self.dtype)
        x, offered = self.swin(image, context, train)
        skips = [
            self.encoder1(image),
            self.encoder2(x[0]),
            self.encoder3(x[1]),
            self.encoder4(x[2]),
        ]
        named = {f"x{i}": y for i, y in enumerate(x)} | {f"enc{i}": y for i, y in enumerate(skips)}
        return named | {"deepest": self.encoder10(x[4])}, offered

    def decode(self, maps: dict[str, Array]) -> Float[Array, "b *vol f"]:
        """The map before the head, from the result of `encode`; `x3` is a skip without a block."""
        y = self.decoder5(maps["deepest"], maps["x3"])
        for level in (3, 2, 1, 0):
            y = getattr(self, f"decoder{level + 1}")(y, maps[f"enc{level}"])
        return y

    @nn.compact
    def _deepest(self, x: Array, context: Context, train: bool) -> tuple[Array, dict[str, Any]]:
        return sockets.deepest(
            x, self.conditioning, self.bottleneck, context, train, dtype=self.dtype
        )

    def __call__(
        self, image: Float[Array, "b *vol m"], context: Context = None, train: bool = False
    ) -> dict[str, Any]:
        """See the module docstring; with `intermediates` also {"features": {name: map}}.

        `decoded` is the map before the head.
        """
        self._check_image(image.shape)
        flip = (lambda a: a) if self.weight_axes == "zyx" else reverse_axes
        maps, inside = self.encode_offering(flip(image), context, train)
        maps["deepest"], below = self._deepest(maps["deepest"], context, train)
        offered = sockets.together(sockets.of_blocks("swin", inside), below)
        maps["decoded"] = self.decode(maps)
        logits = call(self.out, maps["decoded"], sockets.seen(context, offered), train)
        turned = jax.tree.map(lambda a: flip(a) if a.ndim == image.ndim else a, offered)
        logits = logits if train else logits.astype(jnp.float32)
        outputs = {"logits": flip(logits)} | turned
        return (
            outputs | {"features": {name: flip(a) for name, a in maps.items()}}
            if self.intermediates
            else outputs
        )

    def _check_image(self, shape: tuple[int, ...]) -> None:
        if len(shape) != self.dims + 2 or shape[-1] != self.in_channels:
            expected = f"(batch, {self.dims} sides, {self.in_channels} channels)"
            raise ModelError(
                "the image does not fit the network",
                found=shape,
                expected=expected,
                fix="set dims and in_channels",
            )
        check_sides(shape[1:-1])


def reverse_axes(x: Float[Array, "b *vol c"]) -> Float[Array, "b *lov c"]:
    """(b, z, y, x, c) <-> (b, x, y, z, c)."""
    return jnp.transpose(x, (0, *range(x.ndim - 2, 0, -1), x.ndim - 1))


def check_sides(sides: Sequence[int]) -> None:
    """Raises `ModelError` unless sides are multiples of 32 and the deepest map has > 1 voxel.

    A single voxel would be normalised over itself, to zero: the deepest features would carry no
    information.
    """
    if any(side % STRIDE or side < STRIDE for side in sides):
        near = tuple(max(STRIDE, round(side / STRIDE) * STRIDE) for side in sides)
        expected, fix = f"multiples of {STRIDE}", f"set the patch to {near}"
        raise ModelError(
            "SwinUNETR needs other sides", found=tuple(sides), expected=expected, fix=fix
        )
    if all(side == STRIDE for side in sides):
        raise ModelError(
            "the deepest map would be one voxel",
            found=tuple(sides),
            fix=f"use at least {2 * STRIDE} along one axis",
        )


def make(
    classes: int,
    in_channels: int = 1,
    feature_size: int = 48,
    depths: Sequence[int] = (2, 2, 2, 2),
    heads: Sequence[int] = (3, 6, 12, 24),
    window: int | Sequence[int] = 7,
    merging: str = "fixed",
    use_v2: bool = False,
    dims: int = 3,
    *,
    normalise: bool = True,
    norm: str = "instance",
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
    bias_index: str = "corner",
    weight_axes: str = "zyx",
    intermediates: bool = False,
    prior: float | int | Sequence[float | int] | None = None,
    mlp: Socket | Words | None = None,
    bottleneck: Socket | Words | None = None,
    context: Socket | Words | None = None,
    head: Socket | Words = "sigmoid",
    corpus_channels: Sequence[Sequence[int]] | None = None,
    share_heads: str | Sequence[int] = "corpus",
    initial: str = "torch",
    dtype: str = "float32",
    remat: str = "none",
) -> SwinUNETR:
    """Builds the network with the defaults of the paper and of MONAI (except `feature_size`).

    Args:
      classes: channels of the logits.
      in_channels: of the image.
      feature_size: f, width of the tokens and of the last decoder map; a multiple of 12 in MONAI,
        here of the heads.
      depths, heads: Swin blocks and heads of each of the four stages.
      window: tokens per axis.
      merging: order of the merged neighbours (`parts.patch.MERGING`): "fixed", "legacy" (all public
        weights), "v2order".
      use_v2: SwinUNETR-V2, a residual convolution block before every stage.
      dims: 2 or 3 axes.
      normalise: the encoder's maps are whitened before the decoder uses them.
      norm: of the convolution blocks: "instance" without parameters, "instance_affine" with.
      mlp_ratio: hidden width of the MLPs over that of the tokens.
      drop_path: highest rate; it grows linearly over the blocks. Training then needs the rng
        "dropout".
      bias_index: "corner" or "geometric" for shrunken windows (`parts.window.bias_index`).
      weight_axes: axis order of the arrays that the weights were trained on; "xyz" (MONAI) turns
        the image before and the maps after.
      intermediates: also return {"features": {name: map}}.
      prior: initial bias of the head: of all outputs, e.g. -2 for rare sigmoid classes, or one per
        output (`parts.heads.bias_init`); otherwise PyTorch's.
      mlp, bottleneck, context: sockets (`parts.sockets`): the MLPs of the Swin blocks; a module on
        the deepest map; what is added to that map before.
      head: "sigmoid", one linear map for all classes, or "corpus_softmax", one softmax per corpus;
        see `parts.heads`.
      corpus_channels, share_heads: of "corpus_softmax": the classes of each corpus, and which
        corpora share a head.
      initial: how the linear maps of Swin blocks and mergings start, a word of
        `parts.attention.INITIAL`: "torch" (MONAI's), "xavier" or "swin". Token embedding, head and
        convolutions start as in PyTorch.
      dtype: compute type, "float32" or "bfloat16".
      remat: what is recomputed in the backward pass: "none", "block" (every Swin block), "all" (the
        convolution blocks as well).

    Raises: `ModelError` for arguments that describe no network.
    """
    fitting = len(heads) == 4 and all(feature_size * 2**i % h == 0 for i, h in enumerate(heads))
    _check(
        [
            ("dims", dims, dims in (2, 3), "2 or 3"),
            ("depths", depths, len(depths) == 4 and min(depths) > 0, "four positive numbers"),
            ("heads", heads, fitting, f"divisors of {feature_size} x (1, 2, 4, 8)"),
            (
                "window",
                window,
                isinstance(window, int) or len(window) == dims,
                f"one number or {dims}",
            ),
            ("norm", norm, norm in ("instance", "instance_affine"), "instance or instance_affine"),
            (
                "bias_index",
                bias_index,
                bias_index in ("corner", "geometric"),
                "corner or geometric",
            ),
            ("weight_axes", weight_axes, weight_axes in ("zyx", "xyz"), "zyx or xyz"),
            ("dtype", dtype, dtype in ("float32", "bfloat16"), "float32 or bfloat16"),
            ("remat", remat, remat in REMAT, " or ".join(REMAT)),
        ]
    )
    merging_order(merging, dims)
    precision = jnp.dtype(dtype)
    mlp = sockets.filled(mlp, "mlp")
    bottleneck = sockets.filled(bottleneck, "bottleneck")
    context = sockets.filled(context, "context")
    mlp = sockets.only_encoder(mlp, "SwinUNETR")
    head = sockets.head(head, corpus_channels, share_heads)
    sizes = (window,) * dims if isinstance(window, int) else tuple(window)
    shared = {
        "mlp_ratio": mlp_ratio,
        "bias_index": bias_index,
        "mlp": sockets.mlp_at(mlp, "encoder"),
        "initial": check_initial(initial),
        "dtype": precision,
    }
    block = SwinBlock if remat == "none" else rematerialised()
    stages = tuple(
        functools.partial(SwinStage, h, sizes, rates, block, **shared)
        for h, rates in zip(heads, drop_path_rates(drop_path, depths), strict=True)
    )
    instance_norm = functools.partial(
        InstanceNorm, affine=norm == "instance_affine", dtype=precision
    )
    conv_block = functools.partial(
        nn.remat(ResBlock) if remat == "all" else ResBlock, norm=instance_norm, dtype=precision
    )
    up_block = functools.partial(UpBlock, block=conv_block, dtype=precision)
    encoder = (merging, use_v2, normalise, conv_block, precision, initial)
    swin = SwinEncoder(feature_size, stages, *encoder)
    return SwinUNETR(
        classes,
        swin,
        dims,
        in_channels,
        conv_block,
        up_block,
        bottleneck,
        weight_axes,
        intermediates,
        None if prior is None else checked_prior(prior, True),
        precision,
        head=sockets.own_head(head),
        conditioning=context,
        reads=sockets.reads(mlp, head, bottleneck, context),
    )


def _check(table: Sequence[tuple[str, Any, bool, str]]) -> None:
    for name, found, good, expected in table:
        if not good:
            raise ModelError(
                f"SwinUNETR cannot be built with this {name}",
                found=found,
                expected=expected,
                fix=f"change {name}",
            )
