"""Instance norm and leaky ReLU between convolutions, as in nnU-Net, in one pass.

In and out: (b, *vol, c). Statistics are float32, per sample and channel over space. XLA:CPU reduces
over space at memory speed (mean and variance of 23 MB in 2.6 cpu-ms; as products with ones 20), so
plain reductions are used. The derivative is written by hand in both modes (`medjax.linear`): the
gradient only needs the input and its statistics, and the backward pass reads the input again
instead of a stored normalised copy.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from medjax.linear import instantiated, is_zero, linear

LEAK = 0.01


class InstanceNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias, statistics per sample and channel over space.

    Biased variance about the mean, in float32 whatever `dtype` the result has. PyTorch's
    InstanceNorm3d(affine=True).

    Attributes:
      affine: with `scale` and `bias` (c,).
      leak: slope of a leaky ReLU applied to the result; 1 is none.
    """

    epsilon: float = 1e-5
    affine: bool = True
    dtype: Any = jnp.float32
    leak: float = 1.0
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol c"]) -> Float[Array, "b *vol c"]:
        channels = (x.shape[-1],)
        scale = (
            self.param("scale", self.scale_init, channels, jnp.float32)
            if self.affine
            else jnp.ones(channels)
        )
        bias = (
            self.param("bias", nn.initializers.zeros, channels, jnp.float32)
            if self.affine
            else jnp.zeros(channels)
        )
        return norm_act(x, scale, bias, self.epsilon, self.leak).astype(self.dtype)


def leaky_relu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """max(x, 0.01 x)."""
    return jnp.maximum(x, LEAK * x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def norm_act(
    x: Float[Array, "b *vol c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    epsilon: float,
    leak: float,
) -> Float[Array, "b *vol c"]:
    """leaky(z), z = (x - mean) / sqrt(var + epsilon) * scale + bias, in x's type.

    Mean and biased variance are taken about the mean (two passes) per sample and channel; leaky(z)
    = z where z > 0, else leak * z.
    """
    return _forward(x, scale, bias, epsilon, leak)[0]


def _forward(
    x: Array, scale: Array, bias: Array, epsilon: float, leak: float
) -> tuple[Array, tuple[Array, ...]]:
    flat = _flat(x)
    mean = flat.mean(1, keepdims=True)
    inverse = lax.rsqrt(jnp.square(flat - mean).mean(1, keepdims=True) + epsilon)
    mean, inverse = (a.reshape(len(x), *(1,) * (x.ndim - 2), -1) for a in (mean, inverse))
    z = (x.astype(jnp.float32) - mean) * (inverse * scale) + bias
    return _leaky(z, z, leak).astype(x.dtype), (x, mean, inverse, scale, bias)


def _backward(leak: float, saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
    x, mean, inverse, scale, bias = saved

    def parts(x: Array, dy: Array, mean: Array, inverse: Array) -> tuple[Array, Array]:
        normal = (x.astype(jnp.float32) - mean) * inverse
        return normal, _leaky(normal * scale + bias, dy.astype(jnp.float32), leak)

    normal, g = parts(_flat(x), _flat(dy), _flat(mean), _flat(inverse))
    sums, products = g.sum(1), (g * normal).sum(1)
    normal, g = parts(x, dy, mean, inverse)
    n = math.prod(x.shape[1:-1])
    dx = (g - sums.reshape(mean.shape) / n - normal * (products.reshape(mean.shape) / n)) * (
        inverse * scale
    )
    return dx.astype(x.dtype), products.sum(0), sums.sum(0)


def _flat(x: Array) -> Array:
    """(b, voxels, c), the shape for reductions.

    Voxelwise maps use the full shape: if both used one shape, XLA would store their common input.
    """
    return x.reshape(len(x), -1, x.shape[-1]).astype(jnp.float32)


def _leaky(z: Array, value: Array, leak: float) -> Array:
    return value if leak == 1 else jnp.where(z > 0, value, leak * value)


@functools.partial(norm_act.defjvp, symbolic_zeros=True)
def _tangent(
    epsilon: float, leak: float, given: tuple[Array, ...], moved: tuple[Any, ...]
) -> tuple[Array, Array]:
    y, saved = _forward(*given, epsilon, leak)
    if all(is_zero(t) for t in moved):
        return y, jnp.zeros_like(y)
    forward = functools.partial(_pushed, leak)
    backward = functools.partial(_backward, leak)
    return y, linear(forward, backward, saved, tuple(instantiated(t) for t in moved))


def _pushed(leak: float, saved: tuple[Array, ...], moved: tuple[Array, ...]) -> Array:
    """The derivative of the result along changes of x, scale and bias."""
    x, mean, inverse, scale, bias = saved
    dx, dscale, dbias = moved
    normal = (x.astype(jnp.float32) - mean) * inverse
    axes = tuple(range(1, x.ndim - 1))
    dx = dx.astype(jnp.float32)
    along = (dx * normal).mean(axes, keepdims=True)
    dnormal = (dx - dx.mean(axes, keepdims=True) - normal * along) * inverse
    z = normal * scale + bias
    return _leaky(z, dnormal * scale + normal * dscale + dbias, leak).astype(x.dtype)
