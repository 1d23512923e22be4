"""nnU-Net's plain U-Net (PlainConvUNet) in two or three dimensions, with deep supervision.

Encoder stage: `convs_per_stage` times convolution, instance norm, leaky ReLU; the first convolution
carries the stage's stride. Decoder stage: transposed convolution with kernel = stride,
concatenation (up, skip), convolutions with the kernels of the skip's stage, and a 1x1x1 head at
every resolution. MultiTalent's U-Net is this network without bias in transposed convolutions and
heads.

Parameters: `encoder_<s>` and `decoder_<s>` / `conv_<k>` / `conv`, `norm`; `up_<s>`; `head_<s>`; s
counts stages from the finest, 0.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from jaxtyping import Array, Float

from medjax.models.context import Spec
from medjax.models.parts import sockets
from medjax.models.parts.attention import Context
from medjax.models.parts.blocks import (
    ConvStack,
    check_precision,
    check_sides,
    decode,
    head,
    rematerialised,
)
from medjax.models.parts.heads import Prior, checked_prior
from medjax.models.parts.sockets import Socket, Words
from medjax.models.topology import stages


class UNet(nn.Module):
    """See `make` for the attributes."""

    classes: int
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    convs_per_stage: int
    convs_per_stage_decoder: int
    deep_supervision: bool
    up_bias: bool
    head_bias: bool
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
        check_sides(image, self.strides, "the U-Net")
        block = rematerialised(ConvStack, self.remat)
        x, skips = image.astype(self.dtype), []
        for s, (width, stride, kernel) in enumerate(
            zip(self.features, self.strides, self.kernels, strict=True)
        ):
            x = block(width, kernel, stride, self.convs_per_stage, self.dtype, name=f"encoder_{s}")(
                x
            )
            skips.append(x)
        ones = (1,) * len(self.strides[0])
        x, offered = sockets.deepest(
            x, self.conditioning, self.bottleneck, context, train, dtype=self.dtype
        )
        seen = sockets.seen(context, offered)
        outputs = decode(
            [*skips[:-1], x],
            self.strides,
            lambda s, name: block(
                self.features[s],
                self.kernels[s],
                ones,
                self.convs_per_stage_decoder,
                self.dtype,
                name=name,
            ),
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
    patch: Sequence[int] | None = None,
    spacing_mm: Sequence[float | int] | None = None,
    base_features: int = 32,
    max_features: int | None = None,
    max_stages: int | None = None,
    features: Sequence[int] | None = None,
    strides: Sequence[Sequence[int]] | None = None,
    kernels: Sequence[Sequence[int]] | None = None,
    convs_per_stage: int = 2,
    convs_per_stage_decoder: int = 2,
    deep_supervision: bool = True,
    up_bias: bool = True,
    head_bias: bool = True,
    head: Socket | Words = "sigmoid",
    corpus_channels: Sequence[Sequence[int]] | None = None,
    share_heads: str | Sequence[int] = "corpus",
    mlp: Socket | Words | None = None,
    bottleneck: Socket | Words | None = None,
    context: Socket | Words | None = None,
    prior: float | int | Sequence[float | int] = 0.0,
    dtype: str = "float32",
    remat: str = "none",
) -> UNet:
    """Builds the network.

    Args:
      classes: output channels.
      patch, spacing_mm: give these for nnU-Net's topology rule (see `topology`), or `strides` and
        `kernels` for an explicit one.
      base_features, max_features, max_stages, features: widths of the stages: doubled per stage up
        to the maximum (None: nnU-Net's, 320 in three axes, 512 in two); or all of them, `features`.
      strides, kernels: per stage, finest first; the first stride is all 1.
      convs_per_stage, convs_per_stage_decoder: convolutions of each encoder and decoder stage.
      deep_supervision: logits at every resolution but the coarsest (`deep`, finest first);
        otherwise `deep` is empty.
      up_bias, head_bias: bias in transposed convolutions and heads.
      head: "sigmoid", one linear map for all classes, or "corpus_softmax", one softmax per corpus;
        see `parts.heads`.
      corpus_channels, share_heads: of "corpus_softmax": the classes of each corpus, and which
        corpora share a head.
      mlp, bottleneck, context: sockets (`parts.sockets`): the MLPs of a transformer in the
        bottleneck; a module on the deepest map; what is added to that map before.
      prior: initial bias of the heads: of all outputs, e.g. -2 for rare sigmoid classes, or one per
        output (`parts.heads.bias_init`).
      dtype: of the computation, "float32" or "bfloat16"; parameters and logits are float32.
      remat: what is recomputed in the backward pass: "none", "convs" (norms and activations),
        "units" (convolutions too), "block" (every stage whole); see `parts.remat`.

    Call: image (b, *patch, m) -> {"logits": (b, *patch, classes), "deep": [(b, *patch / stride,
    classes), ...]}.
    Raises: `ModelError` for arguments that do not describe a network, or (at call time) a patch
      that cannot be halved evenly.
    """
    check_precision(dtype, remat)
    features, strides, kernels = stages(
        patch=patch,
        spacing_mm=spacing_mm,
        strides=strides,
        kernels=kernels,
        features=features,
        base_features=base_features,
        max_features=max_features,
        max_stages=max_stages,
    )
    mlp = sockets.filled(mlp, "mlp")
    bottleneck = sockets.filled(bottleneck, "bottleneck")
    context = sockets.filled(context, "context")
    head = sockets.head(head, corpus_channels, share_heads)
    bottleneck = sockets.in_transformer(bottleneck, mlp, "the U-Net")
    return UNet(
        classes,
        features,
        strides,
        kernels,
        convs_per_stage,
        convs_per_stage_decoder,
        deep_supervision,
        up_bias,
        head_bias,
        checked_prior(prior, head_bias),
        jnp.dtype(dtype),
        remat,
        head=sockets.own_head(head),
        bottleneck=bottleneck,
        conditioning=context,
        reads=sockets.reads(head, bottleneck, context),
    )
