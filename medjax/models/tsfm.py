"""TSFM: a residual convolution trunk with a vision transformer at its lowest level.

Xie et al., arXiv 2403.06396; without the transformer it is STU-Net.

In: image (b, *vol, m), two or three axes. Out: {"logits": (b, *vol, classes), "deep": [coarser
ones, finest first]}, float32. The paper fixes the kinds of block and the size of 1.6 billion
parameters but not the widths; `VARIANTS` holds the chosen reading (`h`: the trunk of STU-Net-H,
ViT-B/12, 3x3x3 projections), smaller members of its family from 3.9 million parameters, the other
candidates, and STU-Net's four sizes.

Parameters: `stem/{conv,norm}`, `enc<s>` and `dec<l>` / `block<b>` /
{norm1,conv1,norm2,conv2,short}, `up<l>`, `bott_norm`, `vit/{in_proj,pos,layer<i>,ln_f,out_proj}`,
`head_norm<l>`, `head<l>`; levels count from the finest, 0.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from jaxtyping import Array, Float

from medjax.errors import ModelError
from medjax.models.context import Spec
from medjax.models.parts import sockets
from medjax.models.parts.attention import Context, check_initial
from medjax.models.parts.blocks import (
    check_precision,
    check_sides,
    check_word,
    head,
    rematerialised,
)
from medjax.models.parts.conv import Conv
from medjax.models.parts.heads import Prior, checked_prior
from medjax.models.parts.norm import LEAK, InstanceNorm, leaky_relu
from medjax.models.parts.remat import UNIT, mark
from medjax.models.parts.repeat import repeat
from medjax.models.parts.sockets import Socket, Words
from medjax.models.topology import topology

DEFAULTS: dict[str, Any] = {
    "blocks": 1,
    "vit": True,
    "vit_layers": 12,
    "proj_kernel": (1, 1),
    "order": "pre",
    "shortcut_from": "raw",
    "remat": "none",
}
_HUGE = {"vit_width": 768, "vit_heads": 12, "remat": "convs"}
_STUNET: dict[str, Any] = {"vit": False, "order": "post"}
VARIANTS: dict[str, dict[str, Any]] = {
    "t": {"channels": (8, 16, 32, 64, 128, 128), "vit_width": 96, "vit_layers": 2, "vit_heads": 3},
    "s": {"channels": (16, 32, 64, 128, 256, 256), "vit_width": 192, "vit_heads": 3},
    "b": {"channels": (32, 64, 128, 256, 512, 512), "vit_width": 384, "vit_heads": 6},
    "l": {"channels": (64, 128, 256, 512, 1024, 1024), "blocks": 2, **_HUGE},
    "h": {"channels": (96, 192, 384, 768, 1536, 1536), "blocks": 3, "proj_kernel": (3, 3), **_HUGE},
    "h2": {"channels": (64, 128, 256, 512, 1024, 2048), "blocks": 4, **_HUGE},
    "a1": {"channels": (96, 192, 384, 768, 1536, 1536), "blocks": 3, **_HUGE},
    "a2": {
        "channels": (96, 192, 384, 768, 1536, 1536),
        "blocks": 3,
        "proj_kernel": (1, 3),
        **_HUGE,
    },
    "c": {"channels": (128, 256, 512, 1024, 2048), "blocks": 4, **_HUGE},
    "d": {"channels": (96, 192, 384, 768, 1536), "blocks": 7, **_HUGE},
    "f": {"channels": (48, 96, 192, 384, 768, 1536), "blocks": 7, **_HUGE},
    "stunet_s": {"channels": (16, 32, 64, 128, 256, 256), **_STUNET},
    "stunet_b": {"channels": (32, 64, 128, 256, 512, 512), **_STUNET},
    "stunet_l": {
        "channels": (64, 128, 256, 512, 1024, 1024),
        "blocks": 2,
        **_STUNET,
        "remat": "convs",
    },
    "stunet_h": {
        "channels": (96, 192, 384, 768, 1536, 1536),
        "blocks": 3,
        **_STUNET,
        "remat": "convs",
    },
}
ORDERS, STEMS, SHORTCUTS, SCANS = (
    ("pre", "post"),
    ("conv", "conv_bare", "residual"),
    ("raw", "activated"),
    ("none", "vit", "all"),
)


class Block(nn.Module):
    """A residual block of two convolutions; the first one carries the stride.

    "pre": norm1 - act - conv1 - norm2 - act - conv2, plus the shortcut. "post": conv1 - norm1 - act
    - conv2 - norm2, plus the shortcut, act. With `project` the shortcut is a 1x1x1 convolution
    `short` without norm: of the input, or ("activated") of what conv1 sees, then without bias.

    With a `skip`, the input is first repeated to the skip's grid and concatenated with it, as (up,
    skip): inside the block, so that recomputing the block spares the memory of both.
    """

    features: int
    stride: tuple[int, ...]
    project: bool
    order: str = "pre"
    shortcut_from: str = "raw"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *vol i"], skip: Float[Array, "b *fine j"] | None = None
    ) -> Float[Array, "b *out o"]:
        if skip is not None:
            x = jnp.concatenate(
                [
                    nearest(
                        x, [a // b for a, b in zip(skip.shape[1:-1], x.shape[1:-1], strict=True)]
                    ),
                    skip,
                ],
                -1,
            )
        pre, ones = self.order == "pre", (1,) * len(self.stride)
        conv = functools.partial(Conv, self.features, (3,) * len(ones), dtype=self.dtype)
        norm_act = functools.partial(InstanceNorm, dtype=self.dtype, leak=LEAK)
        if pre:
            seen = norm_act(name="norm1")(x)
            y = mark(conv(strides=self.stride, bias_matters=False, name="conv1")(seen), UNIT)
            y = conv(name="conv2")(norm_act(name="norm2")(y))
        else:
            seen = x
            y = mark(
                norm_act(name="norm1")(
                    conv(strides=self.stride, bias_matters=False, name="conv1")(x)
                ),
                UNIT,
            )
            y = InstanceNorm(dtype=self.dtype, name="norm2")(
                conv(bias_matters=False, name="conv2")(y)
            )
        if self.project:
            raw = self.shortcut_from == "raw"
            x = Conv(self.features, ones, self.stride, raw, self.dtype, name="short")(
                x if raw else seen
            )
        return x + y if pre else leaky_relu(x + y)


def nearest(x: Float[Array, "b *vol c"], stride: Sequence[int]) -> Float[Array, "b *out c"]:
    """Every voxel repeated into a block of `stride` voxels."""
    sides, axes = x.shape[1:-1], len(stride)
    x = x.reshape(x.shape[0], *(n for side in sides for n in (side, 1)), x.shape[-1])
    x = jnp.broadcast_to(
        x, (x.shape[0], *(n for pair in zip(sides, stride, strict=True) for n in pair), x.shape[-1])
    )
    return x.reshape(x.shape[0], *(sides[a] * stride[a] for a in range(axes)), x.shape[-1])


class Stage(nn.Module):
    """Blocks `block0`, ...; the first has stride, skip and, with `project`, the shortcut."""

    features: int
    stride: tuple[int, ...]
    blocks: int
    project: bool
    order: str
    shortcut_from: str
    remat: str
    scan: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *vol i"], skip: Float[Array, "b *fine j"] | None = None
    ) -> Float[Array, "b *out o"]:
        block, shared = (
            rematerialised(Block, self.remat),
            (self.order, self.shortcut_from, self.dtype),
        )
        x = block(self.features, self.stride, self.project, *shared, name="block0")(x, skip)
        ones, names = (1,) * len(self.stride), [f"block{b}" for b in range(1, self.blocks)]
        if self.scan:
            x, _ = repeat(
                self,
                Block(self.features, ones, False, *shared, parent=None),
                names,
                x,
                scan=True,
                remat=self.remat,
            )
            return x
        for name in names:
            x = block(self.features, ones, False, *shared, name=name)(x)
        return x


class TSFM(nn.Module):
    """See `make` for the attributes; `conditioning` is the socket `context`."""

    classes: int
    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    blocks: int
    blocks_decoder: int
    bottleneck: Socket | None
    order: str
    stem: str
    shortcut_from: str
    final_norm: bool
    deep_supervision: bool
    prior: Prior
    scan: bool
    remat: str
    dtype: Any
    head: Callable[..., nn.Module] | None = None
    conditioning: Socket | None = None
    reads: Spec = FrozenDict()

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b *vol m"],
        context: Context = None,
        train: bool = False,
    ) -> dict[str, Any]:
        self._check(image)
        ones, last = (1,) * len(self.strides[0]), len(self.channels) - 1
        norm_act = functools.partial(InstanceNorm, dtype=self.dtype, leak=LEAK)

        def finish(self: nn.Module, x: Array, level: int) -> Array:
            y = norm_act(name=f"head_norm{level}")(x) if self.final_norm else x
            return head(
                y,
                self.classes,
                True,
                self.prior,
                self.dtype,
                f"head{level}",
                self.head,
                seen,
                train,
            )

        if self.remat != "none":
            finish = nn.remat(finish, static_argnums=(2,))

        def stage(
            level: int, blocks: int, stride: tuple[int, ...], project: bool, name: str
        ) -> nn.Module:
            shared = (self.order, self.shortcut_from, self.remat, self.scan, self.dtype)
            return Stage(self.channels[level], stride, blocks, project, *shared, name=name)

        x, skips = image.astype(self.dtype), []
        if self.stem != "residual":
            x = Stem(self.channels[0], self.stem == "conv", self.dtype, name="stem")(x)
        for s in range(last + 1):
            stride = ones if s == 0 else self.strides[s - 1]
            x = stage(s, self.blocks, stride, s > 0 or self.stem == "residual", f"enc{s}")(x)
            skips.append(x)
        if self.final_norm and self.bottleneck is not None and self.bottleneck.make is not None:
            x = norm_act(name="bott_norm")(x)
        x, offered = sockets.deepest(
            x, self.conditioning, self.bottleneck, context, train, dtype=self.dtype, name="vit"
        )
        seen = sockets.seen(context, offered)
        outputs = []
        for level in reversed(range(last)):
            x = Conv(self.channels[level], ones, dtype=self.dtype, name=f"up{level}")(
                x
            )  # before repeating: the two commute
            x = stage(level, self.blocks_decoder, ones, True, f"dec{level}")(x, skips[level])
            if self.deep_supervision or level == 0:
                outputs.insert(0, finish(self, x, level))
        return {"logits": outputs[0], "deep": outputs[1:]} | offered

    def _check(self, image: Array) -> None:
        check_sides(image, self.strides, "TSFM")
        lowest = list(image.shape[1:-1])
        for stride in self.strides:
            lowest = [n // s for n, s in zip(lowest, stride, strict=True)]
        if max(lowest) == 1:
            raise ModelError(
                "the lowest level would be one voxel, which instance norm turns into its bias",
                found=image.shape[1:-1],
                fix="take a larger patch or fewer strides",
            )


class Stem(nn.Module):
    """One convolution from the raw image; with `norm` also instance norm and leaky ReLU."""

    features: int
    norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol m"]) -> Float[Array, "b *vol c"]:
        x = Conv(
            self.features,
            (3,) * (x.ndim - 2),
            dtype=self.dtype,
            bias_matters=not self.norm,
            name="conv",
        )(x)
        return InstanceNorm(dtype=self.dtype, leak=LEAK, name="norm")(x) if self.norm else x


def strides_of(
    patch: Sequence[int], spacing_mm: Sequence[float | int], levels: int
) -> tuple[tuple[int, ...], ...]:
    """nnU-Net's strides for a patch, cut or padded with ones to `levels` - 1; kernels stay 3."""
    found = topology(spacing_mm, patch).strides[1:levels]
    return found + ((1,) * len(patch),) * (levels - 1 - len(found))


def make(
    classes: int,
    *,
    variant: str = "h",
    patch: Sequence[int] | None = None,
    spacing_mm: Sequence[float | int] | None = None,
    strides: Sequence[Sequence[int]] | None = None,
    channels: Sequence[int] | None = None,
    blocks: int | None = None,
    blocks_decoder: int | None = None,
    order: str | None = None,
    stem: str | None = None,
    shortcut_from: str | None = None,
    final_norm: bool | None = None,
    vit: bool | None = None,
    vit_width: int | None = None,
    vit_layers: int | None = None,
    vit_heads: int | None = None,
    vit_mlp_ratio: float | int = 4,
    vit_dropout: float | int = 0.1,
    position: str = "learned",
    proj_kernel: Sequence[int] | None = None,
    bottleneck_residual: bool = False,
    initial: str = "xavier",
    deep_supervision: bool = True,
    head: Socket | Words = "sigmoid",
    corpus_channels: Sequence[Sequence[int]] | None = None,
    share_heads: str | Sequence[int] = "corpus",
    mlp: Socket | Words | None = None,
    bottleneck: Socket | Words | None = None,
    context: Socket | Words | None = None,
    prior: float | int | Sequence[float | int] = 0.0,
    scan: str = "vit",
    remat: str | None = None,
    dtype: str = "float32",
) -> TSFM:
    """Builds the network. None values come from the variant, else from `DEFAULTS`.

    Args:
      classes: output channels.
      variant: a key of `VARIANTS`.
      patch, spacing_mm: give these for nnU-Net's strides, or `strides`.
      strides: one per level below the finest.
      channels: per level, finest first. blocks, blocks_decoder: per stage; the decoder's default is
        the encoder's.
      order: "pre" (norm, act, conv) or "post" (conv, norm, act: STU-Net and its weights). See
        `Block`.
      stem: "conv" (convolution, norm, activation), "conv_bare" (convolution), "residual" (the first
        block sees the image); default "conv" in order "pre", "residual" in order "post".
      shortcut_from: "raw" or "activated" (nnU-Net's own pre-activation block; order "pre" only).
      final_norm: instance norm and activation before every head and the transformer; default: in
        order "pre". vit, vit_width, vit_layers, vit_heads, vit_mlp_ratio, vit_dropout: the
        transformer at the lowest level.
      position: its table, "learned" or "sincos"; `parts.position.resize_table` moves a learned one
        to another grid.
      proj_kernel: sides of its convolutions (in, out), 1 or 3.
      bottleneck_residual: add the transformer's input to its output.
      initial: how the transformer's linear maps start, a word of `parts.attention.INITIAL`.
      deep_supervision: logits at every level but the lowest (`deep`, finest first); otherwise
        `deep` is empty.
      head: "sigmoid", one linear map for all classes, or "corpus_softmax", one softmax per corpus;
        see `parts.heads`.
      corpus_channels, share_heads: of "corpus_softmax": the classes of each corpus, and which
        corpora share a head.
      mlp, context: sockets (`parts.sockets`): the MLPs of the transformer; what is added to the
        deepest map before it.
      bottleneck: another socket in place of the transformer that `vit...`, `position`,
        `proj_kernel`, `bottleneck_residual` and `initial` describe.
      prior: initial bias of the heads: of all outputs, e.g. -2 for rare sigmoid classes, or one per
        output (`parts.heads.bias_init`).
      scan: which layers of equal shape are one scanned program: "none", "vit", "all" (blocks of a
        stage as well, which stacks their kernels). Names and shapes of the parameters do not depend
        on it.
      remat: what is recomputed in the backward pass: "none", "convs" (norms and activations),
        "units" (convolutions too), "block" (every block whole); see `parts.remat`. With any of them
        the transformer's layers are recomputed whole.
      dtype: of the computation, "float32" or "bfloat16"; parameters and logits are float32.

    In training with `vit_dropout` the call needs the rng "dropout".
    Raises: `ModelError` for arguments that describe no network, or (at call time) a patch that
      cannot be halved evenly.
    """
    check_word("variant", variant, tuple(VARIANTS))
    given = {
        "channels": channels,
        "blocks": blocks,
        "blocks_decoder": blocks_decoder,
        "order": order,
        "stem": stem,
        "shortcut_from": shortcut_from,
        "final_norm": final_norm,
        "vit": vit,
        "vit_width": vit_width,
        "vit_layers": vit_layers,
        "vit_heads": vit_heads,
        "proj_kernel": proj_kernel,
        "remat": remat,
    }
    chosen = DEFAULTS | VARIANTS[variant] | {k: v for k, v in given.items() if v is not None}
    pre = chosen["order"] == "pre"
    chosen = {
        "stem": "conv" if pre else "residual",
        "final_norm": pre,
        "blocks_decoder": chosen["blocks"],
    } | chosen
    check_precision(dtype, chosen["remat"])
    for name, known in (("order", ORDERS), ("stem", STEMS), ("shortcut_from", SHORTCUTS)):
        check_word(name, chosen[name], known)
    check_word("scan", scan, SCANS)
    channels = tuple(chosen["channels"])
    if strides is None:
        if patch is None or spacing_mm is None:
            raise ModelError("the strides are open", fix="give patch and spacing_mm, or strides")
        strides = strides_of(patch, spacing_mm, len(channels))
    strides = tuple(map(tuple, strides))
    good = (
        len(strides) == len(channels) - 1 > 0
        and min(chosen["blocks"], chosen["blocks_decoder"]) > 0
    )
    if not good or (chosen["shortcut_from"] == "activated" and not pre):
        raise ModelError(
            "these arguments describe no network",
            found=f"channels {channels}, strides {strides}, {chosen}",
            expected="one stride per level below the finest, blocks in every stage, "
            "shortcut_from=activated with order=pre only",
        )
    check_initial(initial)
    mlp = sockets.filled(mlp, "mlp")
    bottleneck = sockets.filled(bottleneck, "bottleneck")
    context = sockets.filled(context, "context")
    precision = jnp.dtype(dtype)
    if bottleneck is None and chosen["vit"]:
        bottleneck = sockets.vit(
            width=chosen["vit_width"],
            layers=chosen["vit_layers"],
            heads=chosen["vit_heads"],
            mlp_ratio=vit_mlp_ratio,
            kernels=chosen["proj_kernel"],
            residual=bottleneck_residual,
            dropout=vit_dropout,
            position=position,
            scan=scan != "none",
            remat=chosen["remat"],
            initial=initial,
        )
    bottleneck = sockets.in_transformer(bottleneck, mlp, "TSFM")
    head = sockets.head(head, corpus_channels, share_heads)
    return TSFM(
        classes,
        channels,
        strides,
        chosen["blocks"],
        chosen["blocks_decoder"],
        bottleneck,
        chosen["order"],
        chosen["stem"],
        chosen["shortcut_from"],
        chosen["final_norm"],
        deep_supervision,
        checked_prior(prior, True),
        scan == "all",
        chosen["remat"],
        precision,
        head=sockets.own_head(head),
        conditioning=context,
        reads=sockets.reads(head, bottleneck, context),
    )
