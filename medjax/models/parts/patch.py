"""Patch embedding, patch merging and patch expanding, in any number of axes.

In and out: channels-last grids (b, *grid, c). Everything is a reshape and one matrix product, never
a strided or transposed convolution. Sources: Swin (arXiv 2103.14030) section 3.1; Swin-Unet (arXiv
2105.05537) for the expanding; MONAI's three merging orders.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from medjax.errors import ModelError, did_you_mean
from medjax.models.parts.adapters import Dense, beside

# Offsets of the neighbours that one merged token concatenates. The order belongs to the weights.
# `fixed`: MONAI 1.5 and later; `legacy`: earlier MONAI, (0,1,0) and (0,0,1) twice and two offsets
# missing, in which all public SwinUNETR weights were trained; `v2order`: MONAI's `mergingv2`.
MERGING = {
    "fixed": (
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 1, 0),
        (1, 0, 1),
        (0, 1, 1),
        (1, 1, 1),
    ),
    "legacy": (
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 0, 1),
        (0, 1, 0),
        (0, 0, 1),
        (1, 1, 1),
    ),
    "v2order": (
        (0, 0, 0),
        (0, 0, 1),
        (0, 1, 0),
        (0, 1, 1),
        (1, 0, 0),
        (1, 0, 1),
        (1, 1, 0),
        (1, 1, 1),
    ),
}
PLANE = (
    (0, 0),
    (1, 0),
    (0, 1),
    (1, 1),
)  # in two axes there is one order, in Swin, Swin-Unet and MONAI alike


def merging_order(name: str, axes: int) -> tuple[tuple[int, ...], ...]:
    """The offsets of a named order for two or three axes; `ModelError` for unknown names."""
    if name not in MERGING:
        raise ModelError(f"unknown merging order {name!r}", fix=did_you_mean(name, MERGING))
    return MERGING[name] if axes == 3 else PLANE


def space_to_depth(x: Shaped[Array, "b *vol c"], size: Sequence[int]) -> Shaped[Array, "b *grid d"]:
    """Blocks of `size` voxels become one token.

    The channels of a token run over (offset of the first axis, ..., offset of the last, c).

    Raises: `ModelError` if a side is no multiple of the block's.
    """
    sides, axes = x.shape[1:-1], len(size)
    if any(s % p for s, p in zip(sides, size, strict=True)):
        raise ModelError(
            "sides do not hold whole patches",
            found=sides,
            expected=f"multiples of {tuple(size)}",
            fix="choose another patch",
        )
    split = [n for s, p in zip(sides, size, strict=True) for n in (s // p, p)]
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1]
    grid = [s // p for s, p in zip(sides, size, strict=True)]
    return (
        x.reshape(x.shape[0], *split, x.shape[-1]).transpose(order).reshape(x.shape[0], *grid, -1)
    )


def depth_to_space(x: Shaped[Array, "b *grid d"], size: Sequence[int]) -> Shaped[Array, "b *vol c"]:
    """Inverse of `space_to_depth`: channels (offset of the first axis, ..., c) -> block."""
    grid, axes = x.shape[1:-1], len(size)
    order = [0, *(a for i in range(axes) for a in (1 + i, 1 + axes + i)), 2 * axes + 1]
    sides = [g * p for g, p in zip(grid, size, strict=True)]
    return (
        x.reshape(x.shape[0], *grid, *size, x.shape[-1] // math.prod(size))
        .transpose(order)
        .reshape(x.shape[0], *sides, -1)
    )


def merge(
    x: Shaped[Array, "b *grid c"], order: Sequence[Sequence[int]]
) -> Shaped[Array, "b *half d"]:
    """Concatenates the tokens at the given offsets of every 2 x 2 (x 2) block.

    d = c times the number of offsets.

    Raises: `ModelError` for odd sides.
    """
    if any(side % 2 for side in x.shape[1:-1]):
        raise ModelError(
            "an odd grid cannot be merged",
            found=x.shape[1:-1],
            expected="even sides",
            fix="choose another input size",
        )
    return jnp.concatenate(
        [x[(slice(None), *(slice(o, None, 2) for o in offset))] for offset in order], -1
    )


class PatchEmbed(nn.Module):
    """Voxels -> tokens: a convolution whose stride is its kernel, as one matrix product.

    Attributes:
      features: width of a token.
      size: voxels per token and axis.
      kernel_init, bias_init: the kernel is (*size, channels, features).
      dtype: compute type; parameters are float32.
    """

    features: int
    size: tuple[int, ...]
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol m"]) -> Float[Array, "b *grid c"]:
        kernel = self.param("kernel", self.kernel_init, (*self.size, x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        x = x.astype(self.dtype)
        y = self._project(x, kernel.astype(self.dtype)) + bias.astype(self.dtype)
        return beside(self, x, y, self._project)

    def _project(self, x: Array, kernel: Array) -> Array:
        return space_to_depth(x, self.size) @ kernel.reshape(-1, kernel.shape[-1])


class PatchMerging(nn.Module):
    """Half the grid, twice the channels: joined neighbours, LayerNorm, linear without bias.

    Attributes:
      order: "fixed", "legacy" or "v2order", see `MERGING`; without effect in two axes.
      epsilon: epsilon of the LayerNorm.
      kernel_init: initialiser of `reduction`; parameters are `norm/{scale,bias}` and
        `reduction/kernel`.
    """

    order: str = "fixed"
    epsilon: float = 1e-5
    kernel_init: Callable = nn.initializers.normal(0.02)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *grid c"]) -> Float[Array, "b *half d"]:
        features = 2 * x.shape[-1]
        x = merge(x, merging_order(self.order, x.ndim - 2))
        x = nn.LayerNorm(self.epsilon, dtype=self.dtype, use_fast_variance=False, name="norm")(x)
        return Dense(
            features,
            use_bias=False,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="reduction",
        )(x)


class PatchExpanding(nn.Module):
    """A finer grid: linear map without bias, channels laid out in space, LayerNorm.

    The map gives `features` per new token. Swin-Unet expands by 2 to half the width, and by 4 to
    the same width at the end. Parameters are `expand/kernel` and `norm/{scale,bias}`.
    """

    features: int
    size: tuple[int, ...]
    epsilon: float = 1e-5
    kernel_init: Callable = nn.initializers.normal(0.02)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *grid c"]) -> Float[Array, "b *vol d"]:
        width = math.prod(self.size) * self.features
        x = Dense(
            width, use_bias=False, kernel_init=self.kernel_init, dtype=self.dtype, name="expand"
        )(x)
        return nn.LayerNorm(self.epsilon, dtype=self.dtype, use_fast_variance=False, name="norm")(
            depth_to_space(x, self.size)
        )
