"""nnU-Net's residual-encoder U-Net in two or three dimensions.

Version 2 (ResidualEncoderUNet) and, by flags, the v1 fork in MultiTalent.

Stem: one convolution, instance norm, leaky ReLU. Encoder stage: residual blocks, the first with the
stage's stride. Decoder stage: transposed convolution with kernel = stride, concatenation (up,
skip), convolutions with the kernels of the skip's stage, and a 1x1x1 head at every resolution.

Parameters: `stem/{conv,norm}`;
`encoder_<s>/block_<b>/{conv1,norm1,conv2,norm2,skip_conv,skip_norm}`;
`decoder_<s>/conv_<k>/{conv,norm}`; `up_<s>`; `head_<s>`; s counts stages from the finest, 0.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from jaxtyping import Array, Float

from medjax.errors import ModelError
from medjax.models.context import Spec
from medjax.models.parts import sockets
from medjax.models.parts.attention import Context
from medjax.models.parts.blocks import (
    ConvNormAct,
    ConvStack,
    ResidualBlock,
    check_precision,
    check_sides,
    check_word,
    decode,
    head,
    rematerialised,
)
from medjax.models.parts.heads import Prior, checked_prior
from medjax.models.parts.sockets import Socket, Words
from medjax.models.topology import stages

SKIPS = ("avgpool", "strided_conv")
BLOCKS = (
    1,
    3,
    4,
    6,
)  # per encoder stage, the last number repeated: nnU-Net v2's ResEnc M, L and XL
DEFAULTS = {
    "blocks": BLOCKS,
    "base_features": 32,
    "stem_kernel": None,
    "conv_bias": True,
    "up_bias": True,
    "head_bias": True,
    "skip": "avgpool",
}

# `resenc` is the body of all three v2 presets, which differ in patch and batch alone (`PATCHES`).
# `multitalent` is the paper's network: an older planner pools in y and x first, which the current
# planner never does.
PRESETS: dict[str, dict[str, Any]] = {
    "resenc": {},
    "multitalent": {
        "features": (30, 60, 120, 240, 320, 320),
        "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
        "blocks": (1, 2, 3, 4),
        "stem_kernel": (3, 3, 3),
        "conv_bias": False,
        "up_bias": False,
        "skip": "strided_conv",
    },
}

# What nnU-Net v2's planners choose for MultiTalent's 13 corpora at 1.5x1x1 mm: name -> patch (z, y,
# x), batch.
PATCHES = {"m": ((80, 160, 160), 2), "l": ((112, 256, 224), 2), "xl": ((128, 320, 256), 2)}


class Stage(nn.Module):
    """`blocks` residual blocks `block_<b>`; the first one carries the stride."""

    features: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    blocks: int
    use_bias: bool
    skip: str
    dtype: jnp.dtype
    remat: str

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol i"]) -> Float[Array, "b *out o"]:
        block = rematerialised(ResidualBlock, self.remat)
        for b in range(self.blocks):
            stride = self.stride if b == 0 else (1,) * len(self.stride)
            x = block(
                self.features,
                self.kernel,
                stride,
                self.use_bias,
                self.skip,
                self.dtype,
                name=f"block_{b}",
            )(x)
        return x


class ResEncUNet(nn.Module):
    """See `make` for the attributes."""

    classes: int
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    blocks: tuple[int, ...]
    convs_per_stage_decoder: int
    deep_supervision: bool
    stem_kernel: tuple[int, ...]
    conv_bias: bool
    up_bias: bool
    head_bias: bool
    skip: str
    prior: Prior
    dtype: jnp.dtype
    remat: str
    head: Callable[..., nn.Module] | None = None
    bottleneck: Socket | None = None
    conditioning: Socket | None = None
    reads: Spec = FrozenDict()

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b *vol m"],
        context: Context = None,
        train: bool = False,
    ) -> dict[str, Any]:
        check_sides(image, self.strides, "the residual U-Net")
        ones = (1,) * len(self.strides[0])
        stem, stack = rematerialised(ConvNormAct, self.remat), rematerialised(ConvStack, self.remat)
        x, skips = image.astype(self.dtype), []
        x = stem(self.features[0], self.stem_kernel, ones, self.dtype, self.conv_bias, name="stem")(
            x
        )
        for s, (width, stride, kernel, n) in enumerate(
            zip(self.features, self.strides, self.kernels, self.blocks, strict=True)
        ):
            x = Stage(
                width,
                kernel,
                stride,
                n,
                self.conv_bias,
                self.skip,
                self.dtype,
                self.remat,
                name=f"encoder_{s}",
            )(x)
            skips.append(x)

        def block(s: int, name: str) -> nn.Module:
            return stack(
                self.features[s],
                self.kernels[s],
                ones,
                self.convs_per_stage_decoder,
                self.dtype,
                self.conv_bias,
                name=name,
            )

        x, offered = sockets.deepest(
            x, self.conditioning, self.bottleneck, context, train, dtype=self.dtype
        )
        seen = sockets.seen(context, offered)
        outputs = decode(
            [*skips[:-1], x],
            self.strides,
            block,
            lambda x, s: head(
                x,
                self.classes,
                self.head_bias,
                self.prior,
                self.dtype,
                f"head_{s}",
                self.head,
                seen,
                train,
            ),
            deep=self.deep_supervision,
            up_bias=self.up_bias,
            dtype=self.dtype,
        )
        return outputs | offered


def make(
    classes: int,
    *,
    preset: str = "resenc",
    patch: Sequence[int] | None = None,
    spacing_mm: Sequence[float | int] | None = None,
    base_features: int | None = None,
    max_features: int | None = None,
    max_stages: int | None = None,
    features: Sequence[int] | None = None,
    strides: Sequence[Sequence[int]] | None = None,
    kernels: Sequence[Sequence[int]] | None = None,
    blocks: Sequence[int] | None = None,
    convs_per_stage_decoder: int = 1,
    deep_supervision: bool = True,
    stem_kernel: Sequence[int] | None = None,
    conv_bias: bool | None = None,
    up_bias: bool | None = None,
    head_bias: bool | None = None,
    skip: str | None = None,
    head: Socket | Words = "sigmoid",
    corpus_channels: Sequence[Sequence[int]] | None = None,
    share_heads: str | Sequence[int] = "corpus",
    mlp: Socket | Words | None = None,
    bottleneck: Socket | Words | None = None,
    context: Socket | Words | None = None,
    prior: float | int | Sequence[float | int] = 0.0,
    dtype: str = "float32",
    remat: str = "none",
) -> ResEncUNet:
    """Builds the network. None values come from the preset, else from `DEFAULTS`.

    Args:
      classes: output channels.
      preset: "resenc" (the body of nnU-Net v2's M, L and XL), "multitalent" (topology and flags of
        the paper's network).
      patch, spacing_mm: give these for nnU-Net's topology rule (see `topology`), or `strides` and
        `kernels` for an explicit one.
      base_features, max_features, max_stages, features: widths of the stages, as in `unet.make`.
      strides, kernels: per stage, finest first; the first stride is all 1.
      blocks: residual blocks per encoder stage; the last number is repeated for deeper stages.
      convs_per_stage_decoder: convolutions of each decoder stage.
      deep_supervision: logits at every resolution but the coarsest (`deep`, finest first);
        otherwise `deep` is empty.
      stem_kernel: kernel of the stem; None is that of the first stage.
      conv_bias, up_bias, head_bias: bias in convolutions, transposed convolutions and heads;
        shortcuts have none.
      skip: shortcut to another grid, "avgpool" or "strided_conv" (see
        `parts.blocks.ResidualBlock`).
      head: "sigmoid", one linear map for all classes, or "corpus_softmax", one softmax per corpus;
        see `parts.heads`.
      corpus_channels, share_heads: of "corpus_softmax": the classes of each corpus, and which
        corpora share a head.
      mlp, bottleneck, context: sockets, as in `unet.make`.
      prior: initial bias of the heads: of all outputs, e.g. -2 for rare sigmoid classes, or one per
        output (`parts.heads.bias_init`).
      dtype: of the computation, "float32" or "bfloat16"; parameters and logits are float32.
      remat: what is recomputed in the backward pass: "none", "convs" (norms and activations),
        "units" (convolutions too), "block" (every block whole); see `parts.remat`.

    Call: image (b, *patch, m) -> {"logits": (b, *patch, classes), "deep": [(b, *patch / stride,
    classes), ...]}.
    Raises: `ModelError` for arguments that do not describe a network, or (at call time) a patch
      that cannot be halved evenly.
    """
    check_precision(dtype, remat)
    check_word("preset", preset, tuple(PRESETS))
    given = {
        "base_features": base_features,
        "features": features,
        "strides": strides,
        "kernels": kernels,
        "blocks": blocks,
        "stem_kernel": stem_kernel,
        "conv_bias": conv_bias,
        "up_bias": up_bias,
        "head_bias": head_bias,
        "skip": skip,
    }
    chosen = DEFAULTS | PRESETS[preset] | {k: v for k, v in given.items() if v is not None}
    check_word("skip", chosen["skip"], SKIPS)
    features, strides, kernels = stages(
        patch=patch,
        spacing_mm=spacing_mm,
        strides=chosen.get("strides"),
        kernels=chosen.get("kernels"),
        features=chosen.get("features"),
        base_features=chosen["base_features"],
        max_features=max_features,
        max_stages=max_stages,
    )
    blocks, n = tuple(chosen["blocks"]), len(strides)
    blocks = blocks[:n] + blocks[-1:] * (n - len(blocks))
    if min(blocks) < 1:
        raise ModelError("every stage needs a block", found=f"blocks {blocks}")
    stem_kernel = tuple(chosen["stem_kernel"] or kernels[0])
    mlp = sockets.filled(mlp, "mlp")
    bottleneck = sockets.filled(bottleneck, "bottleneck")
    context = sockets.filled(context, "context")
    head = sockets.head(head, corpus_channels, share_heads)
    bottleneck = sockets.in_transformer(bottleneck, mlp, "the residual U-Net")
    return ResEncUNet(
        classes,
        features,
        strides,
        kernels,
        blocks,
        convs_per_stage_decoder,
        deep_supervision,
        stem_kernel,
        chosen["conv_bias"],
        chosen["up_bias"],
        chosen["head_bias"],
        chosen["skip"],
        checked_prior(prior, chosen["head_bias"]),
        jnp.dtype(dtype),
        remat,
        head=sockets.own_head(head),
        bottleneck=bottleneck,
        conditioning=context,
        reads=sockets.reads(head, bottleneck, context),
    )
