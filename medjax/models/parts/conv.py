"""Convolutions for two and three axes, channels last: `Conv`, `Up` and `Down`.

`Up` and `Down` (kernel = stride) are one matrix product each. Layouts: `Conv` and `Down` kernel
(*kernel, in, out), PyTorch's (out, in, *kernel) with moved axes; `Up` kernel (*stride, in, out),
PyTorch's ConvTranspose weight (in, out, *kernel) with moved axes, not flipped. On a CPU a
convolution and both its gradients use the algorithms of `conv_cpu`; other platforms run XLA's own
convolution and gradient. No forward pass has a dilated input.
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

from medjax.errors import ModelError
from medjax.linear import is_zero, linear
from medjax.models.parts import conv_cpu
from medjax.models.parts.adapters import beside
from medjax.models.parts.patch import depth_to_space, space_to_depth
from medjax.models.parts.remat import CONV, mark

GAIN = 2.0 / (1 + 0.01**2)  # He's, for a leaky ReLU with slope 0.01
he_normal = nn.initializers.variance_scaling(GAIN, "fan_in", "normal", in_axis=-2, out_axis=-1)


def he_normal_up(
    key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> Float[Array, "..."]:
    """`he_normal` of a transposed convolution as in PyTorch.

    The fan is the number of output channels times the kernel's voxels.
    """
    fan = shape[-1] * math.prod(shape[:-2])
    return jax.random.normal(key, shape, dtype) * (GAIN / fan) ** 0.5


def convolve(
    x: Float[Array, "b *vol i"], kernel: Float[Array, "*k i o"], strides: tuple[int, ...]
) -> Float[Array, "b *out o"]:
    """Convolution with padding (k - 1) / 2 on both sides; each side becomes ceil(side / stride).

    Args:
      x: (b, *vol, i) of two or three axes; kernel: (*k, i, o) with odd sides, of the same type.

    Raises: `ModelError` for even kernels or axes that disagree.
    """
    sizes = kernel.shape[:-2]
    if (
        not len(sizes) == len(strides) == x.ndim - 2
        or len(sizes) not in (2, 3)
        or any(k % 2 == 0 for k in sizes)
    ):
        raise ModelError(
            "kernel and strides do not fit the image",
            found=f"kernel {sizes}, strides {strides}, image {x.shape}",
            expected="odd kernels, and two or three axes for all",
            fix="change kernels or strides",
        )
    if set(sizes) == {1}:
        return x[(slice(None), *(slice(None, None, s) for s in strides))] @ kernel.reshape(
            kernel.shape[-2:]
        )
    return _convolve(x, kernel, tuple(strides))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, strides: tuple[int, ...]) -> Array:
    return _forward(x, kernel, strides)


@functools.partial(_convolve.defjvp, symbolic_zeros=True)
def _tangent(
    strides: tuple[int, ...], given: tuple[Array, Array], moved: tuple[Any, Any]
) -> tuple[Array, Array]:
    """Both derivatives; their transposes are the gradients of `conv_cpu`, or XLA's own."""
    (x, kernel), (dx, dk) = given, moved
    sides, sizes = x.shape[1:-1], kernel.shape[:-2]
    y, parts = _convolve(x, kernel, strides), []
    if not is_zero(dx):
        parts.append(
            linear(
                lambda kernel, dx: _forward(dx, kernel, strides),
                lambda kernel, dy: _input_gradient(dy, kernel, strides, sides),
                kernel,
                dx,
            )
        )
    if not is_zero(dk):
        parts.append(
            linear(
                lambda x, dk: _forward(x, dk, strides),
                lambda x, dy: _kernel_gradient(x, dy, sizes, strides),
                x,
                dk,
            )
        )
    return y, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(y)


# Traced once for every shape: networks repeat their convolutions.
@functools.partial(jax.jit, static_argnums=2, inline=True)
def _forward(x: Array, kernel: Array, strides: tuple[int, ...]) -> Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=_wide(lambda x, k: conv_cpu.forward(x, k, strides)),
        default=lambda x, k: _xla(x, k, strides),
    )


@functools.partial(jax.jit, static_argnums=(2, 3), inline=True)
def _input_gradient(
    dy: Array, kernel: Array, strides: tuple[int, ...], sides: tuple[int, ...]
) -> Array:
    shape = (dy.shape[0], *sides, kernel.shape[-2])

    def default(dy: Array, kernel: Array) -> Array:
        x = jax.ShapeDtypeStruct(shape, dy.dtype)
        return jax.linear_transpose(lambda x: _xla(x, kernel, strides), x)(dy)[0]

    return lax.platform_dependent(
        dy,
        kernel,
        cpu=_wide(lambda dy, k: conv_cpu.input_gradient(dy, k, strides, sides)),
        default=default,
    )


@functools.partial(jax.jit, static_argnums=(2, 3), inline=True)
def _kernel_gradient(
    x: Array, dy: Array, sizes: tuple[int, ...], strides: tuple[int, ...]
) -> Array:
    def default(x: Array, dy: Array) -> Array:
        kernel = jax.ShapeDtypeStruct((*sizes, x.shape[-1], dy.shape[-1]), x.dtype)
        return jax.linear_transpose(lambda k: _xla(x, k, strides), kernel)(dy)[0]

    return lax.platform_dependent(
        x,
        dy,
        cpu=_wide(lambda x, dy: conv_cpu.kernel_gradient(x, dy, sizes, strides)),
        default=default,
    )


def _wide(f: Callable) -> Callable:
    """Computes f in float32 and casts back: a CPU has no fast half precision."""
    return lambda *arrays: f(*(a.astype(jnp.float32) for a in arrays)).astype(arrays[0].dtype)


def _xla(x: Array, kernel: Array, strides: tuple[int, ...]) -> Array:
    spatial = "DHW"[3 - len(strides) :]
    padding = [(k // 2, k // 2) for k in kernel.shape[:-2]]
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
    )


class Conv(nn.Module):
    """Convolution with explicit padding (k - 1) / 2 on both sides of every axis.

    Attributes:
      features: output channels. kernel, strides: per axis; strides None are all 1.
      bias_matters: False if an instance norm follows, which removes the bias: the parameter then
        exists (imported weights have it) but is not added, and its gradient is exactly zero.
      dtype: compute type; parameters are float32.
    """

    features: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable = he_normal
    bias_init: Callable = nn.initializers.zeros
    bias_matters: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol i"]) -> Float[Array, "b *out o"]:
        kernel = self.param(
            "kernel", self.kernel_init, (*self.kernel, x.shape[-1], self.features), jnp.float32
        )
        strides = self.strides or (1,) * len(self.kernel)
        x = x.astype(self.dtype)
        y = convolve(x, kernel.astype(self.dtype), strides)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype) if self.bias_matters else y
        return mark(beside(self, x, y, lambda x, k: convolve(x, k, strides)), CONV)


class Up(nn.Module):
    """Transposed convolution with kernel = stride, as one matrix product.

    Every voxel becomes a block of `stride` voxels.
    """

    features: int
    stride: tuple[int, ...]
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable = he_normal_up

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol i"]) -> Float[Array, "b *out o"]:
        kernel = self.param(
            "kernel", self.kernel_init, (*self.stride, x.shape[-1], self.features), jnp.float32
        ).astype(self.dtype)
        x = x.astype(self.dtype)
        y = self._expand(x, kernel)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(
                self.dtype
            )
        return beside(self, x, y, self._expand)

    def _expand(self, x: Array, kernel: Array) -> Array:
        flat = jnp.moveaxis(kernel, -2, 0).reshape(x.shape[-1], -1)
        return depth_to_space(x @ flat, self.stride)


class Down(nn.Module):
    """Convolution with kernel = stride and no padding, as one matrix product.

    Every block of `stride` voxels becomes one voxel.
    """

    features: int
    stride: tuple[int, ...]
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable = he_normal

    @nn.compact
    def __call__(self, x: Float[Array, "b *vol i"]) -> Float[Array, "b *out o"]:
        kernel = self.param(
            "kernel", self.kernel_init, (*self.stride, x.shape[-1], self.features), jnp.float32
        ).astype(self.dtype)
        x = x.astype(self.dtype)
        y = self._project(x, kernel)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(
                self.dtype
            )
        return beside(self, x, y, self._project)

    def _project(self, x: Array, kernel: Array) -> Array:
        return space_to_depth(x, self.stride) @ kernel.reshape(-1, kernel.shape[-1])
