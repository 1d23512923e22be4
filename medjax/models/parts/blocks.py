"""Shared parts of the convolutional encoder-decoders: blocks, decoder, heads, recomputation.

In and out: (b, *vol, c), two or three axes. Blocks are Linen modules; `decode`, `head` and
`checked` are called within a compact method of the network, whose parameters they name. Sources:
nnU-Net (PlainConvUNet, ResidualEncoderUNet) and its v1 fork in MultiTalent.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from medjax.errors import ModelError, did_you_mean
from medjax.models.parts.adapters import Dense
from medjax.models.parts.attention import Context, call
from medjax.models.parts.conv import Conv, Up
from medjax.models.parts.heads import Prior, bias_init
from medjax.models.parts.norm import LEAK, InstanceNorm, leaky_relu
from medjax.models.parts.patch import space_to_depth
from medjax.models.parts.remat import REMAT, UNIT, mark, policy

Sides = tuple[int, ...]


def rematerialised(module: Callable, remat: str) -> Callable:
    """A block's class with its activations recomputed in the backward pass (see `remat.policy`).

    The parameters are the same.
    """
    return module if remat == "none" else nn.remat(module, policy=policy(remat))


class ConvNormAct(nn.Module):
    """Convolution, instance norm, leaky ReLU."""

    features: int
    kernel: Sides
    stride: Sides
    dtype: Any = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol i"]) -> Float[Array, "b *out o"]:
        x = Conv(
            self.features,
            self.kernel,
            self.stride,
            self.use_bias,
            self.dtype,
            bias_matters=False,
            name="conv",
        )(x)
        return InstanceNorm(dtype=self.dtype, leak=LEAK, name="norm")(x)


class ConvStack(nn.Module):
    """`convs` times `ConvNormAct`, named `conv_<k>`; the first one carries the stride."""

    features: int
    kernel: Sides
    stride: Sides
    convs: int
    dtype: Any = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol i"]) -> Float[Array, "b *out o"]:
        for k in range(self.convs):
            stride = self.stride if k == 0 else (1,) * len(self.stride)
            x = ConvNormAct(
                self.features, self.kernel, stride, self.dtype, self.use_bias, name=f"conv_{k}"
            )(mark(x, UNIT) if k else x)
        return x


class ResidualBlock(nn.Module):
    """act(conv2 - norm2 after conv1 - norm1 - act, plus the shortcut).

    `conv1` carries the stride, `norm2` starts at zero.

    Attributes:
      use_bias: bias in `conv1` and `conv2`; the shortcut's convolution has none.
      skip: how the shortcut gets to another grid: "avgpool" (nnU-Net v2: mean of every stride
        block, then 1x1x1 convolution and norm if the width changes) or "strided_conv" (its v1 fork:
        strided 1x1x1 convolution and norm if grid or width change).
    """

    features: int
    kernel: Sides
    stride: Sides
    use_bias: bool = True
    skip: str = "avgpool"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol i"]) -> Float[Array, "b *out o"]:
        def conv(y: Array, kernel: Sides, stride: Sides | None, bias: bool, name: str) -> Array:
            return Conv(
                self.features, kernel, stride, bias, self.dtype, bias_matters=False, name=name
            )(y)

        strided, wider = max(self.stride) > 1, x.shape[-1] != self.features
        y = InstanceNorm(dtype=self.dtype, leak=LEAK, name="norm1")(
            conv(x, self.kernel, self.stride, self.use_bias, "conv1")
        )
        y = conv(mark(y, UNIT), self.kernel, None, self.use_bias, "conv2")
        y = InstanceNorm(dtype=self.dtype, scale_init=nn.initializers.zeros, name="norm2")(y)
        pooled = strided and self.skip == "avgpool"
        if pooled:
            x = average_pool(x, self.stride)
        if wider or (strided and not pooled):
            x = conv(
                x, (1,) * len(self.kernel), None if pooled else self.stride, False, "skip_conv"
            )
            x = InstanceNorm(dtype=self.dtype, name="skip_norm")(x)
        return leaky_relu(x + y)


def average_pool(x: Float[Array, "b *vol c"], stride: Sequence[int]) -> Float[Array, "b *out c"]:
    """Mean of every block of `stride` voxels."""
    blocks = space_to_depth(x, stride)
    return blocks.reshape(*blocks.shape[:-1], -1, x.shape[-1]).mean(-2)


def decode(
    skips: Sequence[Float[Array, "b ..."]],
    strides: Sequence[Sides],
    block: Callable[[int, str], nn.Module],
    finish: Callable[[Float[Array, "b *vol c"], int], Array],
    *,
    deep: bool,
    up_bias: bool,
    dtype: Any,
) -> dict[str, Array | list[Array]]:
    """Decoder: transposed convolution with kernel = stride, concatenation (up, skip), block, heads.

    Heads at every level, or at the finest level only.

    Args:
      skips: results of all encoder stages, finest first; the last is the deepest.
      strides: strides of the encoder stages. block: (stage, name) -> the block after the
        concatenation. finish: (map, stage) -> logits.

    Returns: {"logits": finest, "deep": the others, finest first}. Parameters `up_<s>`,
      `decoder_<s>`, and what `finish` names.
    """
    x, outputs = skips[-1], []
    for s in reversed(range(len(skips) - 1)):
        up = Up(skips[s].shape[-1], tuple(strides[s + 1]), up_bias, dtype, name=f"up_{s}")(x)
        x = block(s, f"decoder_{s}")(jnp.concatenate([up, skips[s]], -1))
        if deep or s == 0:
            outputs.insert(0, finish(x, s))
    return {"logits": outputs[0], "deep": outputs[1:]}


def head(
    x: Float[Array, "b *vol c"],
    classes: int,
    bias: bool,
    prior: Prior,
    dtype: Any,
    name: str,
    socket: Callable[..., nn.Module] | None = None,
    context: Context = None,
    train: bool = False,
) -> Float[Array, "b *vol k"]:
    """1x1x1 convolution as a dense layer over channels; logits in float32, in training in the
    compute type: the losses widen what they read. `prior` is its initial bias
    (`parts.heads.bias_init`).

    `socket` makes another kind of head (`parts.heads.socket`), which is called with the context if
    it asks for it.
    """
    if socket is not None:
        made = socket(
            classes,
            use_bias=bias,
            bias_init=bias_init(prior),
            dtype=dtype,
            name=name,
        )
        return call(made, x, context)
    logits = Dense(classes, bias, dtype, bias_init=bias_init(prior), name=name)(x)
    return logits if train else logits.astype(jnp.float32)


def check_sides(image: Float[Array, "b *vol m"], strides: Sequence[Sides], what: str) -> None:
    """Raises `ModelError` unless every side is a multiple of the product of its strides."""
    total = [1] * len(strides[0])
    for stride in strides:
        total = [t * s for t, s in zip(total, stride, strict=True)]
    sides = image.shape[1:-1]
    if len(sides) != len(total) or any(n % t for n, t in zip(sides, total, strict=True)):
        raise ModelError(
            f"{what} cannot halve this patch evenly",
            found=sides,
            expected=f"multiples of {tuple(total)}",
        )


def check_word(name: str, found: str, known: Sequence[str]) -> None:
    """Raises `ModelError` for a word that is not among the known ones."""
    if found not in known:
        raise ModelError(
            f"unknown {name} {found!r}", expected=" or ".join(known), fix=did_you_mean(found, known)
        )


def check_precision(dtype: str, remat: str) -> None:
    """Raises `ModelError` for another dtype or remat than the ones every network knows."""
    check_word("remat", remat, REMAT)
    check_word("dtype", dtype, ("float32", "bfloat16"))
