"""Convolutions for two and three axes, channels last: `Conv`, and `Up` (transposed convolution with kernel = stride) as one product.

Layouts: `Conv` kernel (*kernel, in, out), PyTorch's (out, in, *kernel) moved; `Up` kernel (*stride, in, out), PyTorch's ConvTranspose weight
(in, out, *kernel) moved, not flipped. How a convolution is computed on a CPU is in `conv_cpu`; other platforms run XLA's own.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from medjax.models.parts.conv_cpu import convolve

he_normal = nn.initializers.variance_scaling(2.0 / (1 + 0.01**2), "fan_in", "normal", in_axis=-2, out_axis=-1)


class Conv(nn.Module):
    """Convolution with explicit padding (k - 1) / 2 on both sides of every axis."""

    features: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = he_normal
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol i"]) -> Float[Array, "b *out o"]:
        kernel = self.param("kernel", self.kernel_init, (*self.kernel, x.shape[-1], self.features), jnp.float32)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.strides or (1,) * len(self.kernel))
        if self.use_bias:
            y = y + self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(self.dtype)
        return y


class Up(nn.Module):
    """Transposed convolution with kernel = stride: every voxel becomes a block of `stride` voxels, by one matrix product."""

    features: int
    stride: tuple[int, ...]
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = he_normal

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol i"]) -> Float[Array, "b *out o"]:
        kernel = self.param("kernel", self.kernel_init, (*self.stride, x.shape[-1], self.features), jnp.float32).astype(self.dtype)
        (b, *vol, i), n = x.shape, len(self.stride)
        flat = jnp.moveaxis(kernel, -2, 0).reshape(i, -1)
        y = (x.astype(self.dtype).reshape(-1, i) @ flat).reshape(b, *vol, *self.stride, self.features)
        order = [0, *(a for k in range(n) for a in (1 + k, 1 + n + k)), 1 + 2 * n]
        y = y.transpose(order).reshape(b, *(v * s for v, s in zip(vol, self.stride, strict=True)), self.features)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)
        return y
