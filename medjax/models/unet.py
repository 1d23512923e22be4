"""nnU-Net's plain U-Net (PlainConvUNet) in two or three dimensions, with deep supervision.

Encoder stage: `convs_per_stage` times convolution, instance norm, leaky ReLU; the first convolution carries the stage's stride. Decoder
stage: transposed convolution with kernel = stride, concatenation (up, skip), convolutions with the kernels of the skip's stage, and a
1x1x1 head at every resolution. MultiTalent's U-Net is this network without bias in transposed convolutions and heads.

Parameters: `encoder_<s>` and `decoder_<s>` / `conv_<k>` / `conv`, `norm`; `up_<s>`; `head_<s>`; s counts stages from the finest, 0.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from medjax.errors import ModelError, did_you_mean
from medjax.models.parts.conv import Conv, Up
from medjax.models.parts.norm import LEAK, InstanceNorm
from medjax.models.topology import features_per_stage, topology

REMAT = ("none", "convs", "block")


class Block(nn.Module):
    """`convs` times convolution, instance norm, leaky ReLU; the first convolution carries the stride."""

    features: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    convs: int
    dtype: jnp.dtype
    remat: str

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol i"]) -> Float[Array, "b *out o"]:
        step = nn.remat(ConvNormAct) if self.remat == "convs" else ConvNormAct
        for k in range(self.convs):
            stride = self.stride if k == 0 else (1,) * len(self.stride)
            x = step(self.features, self.kernel, stride, self.dtype, name=f"conv_{k}")(x)
        return x


class ConvNormAct(nn.Module):
    """Convolution, instance norm, leaky ReLU."""

    features: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol i"]) -> Float[Array, "b *out o"]:
        x = Conv(self.features, self.kernel, self.stride, dtype=self.dtype, bias_matters=False, name="conv")(x)
        return InstanceNorm(dtype=self.dtype, leak=LEAK, name="norm")(x)


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
    prior: float | int
    dtype: jnp.dtype
    remat: str

    @nn.compact
    def __call__(
        self, image: Float[Array, "b *vol m"], context: Mapping[str, Array] | None = None, train: bool = False
    ) -> dict[str, Array | list[Array]]:
        self._check(image)
        block = nn.remat(Block) if self.remat == "block" else Block
        inner = "convs" if self.remat == "convs" else "none"
        x, skips = image.astype(self.dtype), []
        for s, (width, stride, kernel) in enumerate(zip(self.features, self.strides, self.kernels, strict=True)):
            x = block(width, kernel, stride, self.convs_per_stage, self.dtype, inner, name=f"encoder_{s}")(x)
            skips.append(x)
        outputs = []
        for s in reversed(range(len(self.features) - 1)):
            up = Up(self.features[s], self.strides[s + 1], self.up_bias, self.dtype, name=f"up_{s}")(x)
            x = jnp.concatenate([up, skips[s]], -1)
            ones = (1,) * len(self.strides[s])
            x = block(self.features[s], self.kernels[s], ones, self.convs_per_stage_decoder, self.dtype, inner, name=f"decoder_{s}")(x)
            if self.deep_supervision or s == 0:
                outputs.insert(0, self._head(x, s))
        return {"logits": outputs[0], "deep": outputs[1:]}

    def _head(self, x: Array, stage: int) -> Array:
        """1x1x1 convolution as a dense layer over channels; logits in float32."""
        bias = nn.initializers.constant(self.prior)
        head = nn.Dense(self.classes, self.head_bias, self.dtype, bias_init=bias, name=f"head_{stage}")
        return head(x).astype(jnp.float32)

    def _check(self, image: Array) -> None:
        total = [1] * len(self.strides[0])
        for stride in self.strides:
            total = [t * s for t, s in zip(total, stride, strict=True)]
        sides = image.shape[1:-1]
        if len(sides) != len(total) or any(n % t for n, t in zip(sides, total, strict=True)):
            raise ModelError("the U-Net cannot halve this patch evenly", found=sides, expected=f"multiples of {tuple(total)}")


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
    prior: float | int = 0.0,
    dtype: str = "float32",
    remat: str = "none",
) -> UNet:
    """Builds the network.

    Args:
      classes: output channels.
      patch, spacing_mm: give these for nnU-Net's topology rule (see `topology`), or `strides` and `kernels` for an explicit one.
      base_features, max_features, max_stages: widths of the stages: doubled per stage up to the maximum (None: nnU-Net's, 320
        in three axes, 512 in two); or give `features`.
      strides, kernels: per stage, finest first; the first stride is all 1.
      convs_per_stage, convs_per_stage_decoder: convolutions of each encoder and decoder stage.
      deep_supervision: logits at every resolution but the coarsest (`deep`, finest first); otherwise `deep` is empty.
      up_bias, head_bias: bias in transposed convolutions and heads.
      prior: initial bias of the heads, e.g. -2 for rare sigmoid classes.
      dtype: of the computation, "float32" or "bfloat16"; parameters and logits are float32.
      remat: what is recomputed in the backward pass: "none", "convs" (every convolution with norm and activation), "block" (stages).

    Call: image (b, *patch, m) -> {"logits": (b, *patch, classes), "deep": [(b, *patch / stride, classes), ...]}.
    Raises: `ModelError` for arguments that do not describe a network, or (at call time) a patch that cannot be halved evenly.
    """
    if remat not in REMAT:
        raise ModelError(f"unknown remat {remat!r}", fix=did_you_mean(remat, REMAT))
    if dtype not in ("float32", "bfloat16"):
        raise ModelError(f"unknown dtype {dtype!r}", expected="float32 or bfloat16")
    if strides is None or kernels is None:
        if patch is None or spacing_mm is None:
            raise ModelError("the topology is open", fix="give patch and spacing_mm, or strides and kernels")
        found = topology(spacing_mm, patch, max_stages=max_stages)
        strides, kernels = strides or found.strides, kernels or found.kernels
    largest = max_features or (320 if len(strides[0]) == 3 else 512)
    features = tuple(features or features_per_stage(len(strides), base_features, largest))
    strides, kernels = tuple(map(tuple, strides)), tuple(map(tuple, kernels))
    if not len(features) == len(strides) == len(kernels) or len(features) < 2 or any(s != 1 for s in strides[0]):
        raise ModelError(
            "features, strides and kernels must agree, with at least 2 stages and a first stride of 1", found=f"{features}, {strides}"
        )
    return UNet(
        classes, features, strides, kernels, convs_per_stage, convs_per_stage_decoder, deep_supervision, up_bias, head_bias, prior,
        jnp.dtype(dtype), remat,
    )  # fmt: skip
