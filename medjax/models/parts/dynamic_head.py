"""Maps of classes whose small network is itself predicted: one per sample and class.

In: features (b, *vol, c) of a decoder, and numbers (b, n, 153) for n classes. Out: logits
(b, *vol, n). Features are normalised in 16 groups and reduced to 8 channels that all classes share;
the 153 numbers of a class are the weights (8, 8), (8, 8), (1, 8) and biases 8, 8, 1 of three linear
maps with ReLU between. Source: Universal Model (Liu et al., ICCV 2023), section 3.2; DoDNet (Zhang
et al., CVPR 2021).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medjax.models.parts.adapters import Dense
from medjax.models.parts.attention import linear_init

WIDTH = 8
NUMBERS = 2 * WIDTH * WIDTH + WIDTH + 2 * WIDTH + 1  # 153
GROUPS, EPSILON = 16, 1e-5


def split(numbers: Float[Array, "*b 153"]) -> tuple[tuple[Array, Array], ...]:
    """((weight (out, in), bias (out,)), ...) of the three maps, in the order of the 153 numbers:
    all weights first, then all biases.
    """
    shapes = ((WIDTH, WIDTH), (WIDTH, WIDTH), (1, WIDTH))
    first, found = 0, []
    for shape in shapes:
        count = shape[0] * shape[1]
        weight = numbers[..., first : first + count]
        found.append(weight.reshape(*numbers.shape[:-1], *shape))
        first += count
    biases = []
    for shape in shapes:
        biases.append(numbers[..., first : first + shape[0]])
        first += shape[0]
    return tuple(zip(found, biases, strict=True))


def dynamic(
    features: Float[Array, "b *vol 8"], numbers: Float[Array, "b n 153"]
) -> Float[Array, "b *vol n"]:
    """Logits of n classes; one class after another, recomputed in the backward pass, because
    8 channels of every class at once do not fit into memory.
    """
    flat = features.reshape(features.shape[0], -1, WIDTH)

    @jax.checkpoint
    def one(own: Array) -> Array:
        x = flat
        for number, (weight, bias) in enumerate(split(own)):
            x = x if number == 0 else nn.relu(x)
            x = jnp.einsum("bvi,boi->bvo", x, weight.astype(x.dtype)) + bias[:, None].astype(
                x.dtype
            )
        return x[..., 0]

    found = jax.lax.map(one, jnp.moveaxis(numbers, 1, 0))
    return jnp.moveaxis(found, 0, -1).reshape(*features.shape[:-1], numbers.shape[1])


class Reduced(nn.Module):
    """GroupNorm, ReLU and a linear map to 8 channels; parameters `norm/{scale,bias}`, `conv`."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol c"]) -> Float[Array, "b *vol 8"]:
        x = nn.relu(group_norm(x.shape[-1], self.dtype, "norm")(x))
        return Dense(WIDTH, dtype=self.dtype, name="conv", **linear_init("torch", x.shape[-1]))(x)


def group_norm(channels: int, dtype: Any, name: str) -> nn.Module:
    """In 16 groups of neighbouring channels, or as many as divide them, epsilon 1e-5."""
    groups = next(n for n in range(min(GROUPS, channels), 0, -1) if channels % n == 0)
    return nn.GroupNorm(groups, epsilon=EPSILON, dtype=dtype, use_fast_variance=False, name=name)
