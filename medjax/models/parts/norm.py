"""Normalisation and activation between convolutions: instance norm and leaky ReLU as nnU-Net uses them."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

LEAK = 0.01


class InstanceNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias, statistics per sample and channel over space.

    Biased variance about the mean, in float32 whatever `dtype` the result has. PyTorch's InstanceNorm3d(affine=True).
    """

    epsilon: float = 1e-5
    affine: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol c"]) -> Float[Array, "b *vol c"]:
        channels, axes = x.shape[-1], tuple(range(1, x.ndim - 1))
        wide = x.astype(jnp.float32)
        mean = wide.mean(axes, keepdims=True)
        centred = wide - mean
        factor = jax.lax.rsqrt(jnp.square(centred).mean(axes, keepdims=True) + self.epsilon)
        if self.affine:
            factor = factor * self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        out = centred * factor
        if self.affine:
            out = out + self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        return out.astype(self.dtype)


def leaky_relu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """max(x, 0.01 x)."""
    return jnp.maximum(x, LEAK * x)
