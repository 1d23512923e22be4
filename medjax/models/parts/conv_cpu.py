"""How a convolution is computed: XLA's own everywhere, and on a CPU products and 2D convolutions that are several times faster there."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def convolve(x: Float[Array, "b *vol i"], kernel: Float[Array, "*k i o"], strides: tuple[int, ...]) -> Float[Array, "b *out o"]:
    """Convolution with padding (k - 1) / 2 on both sides of every axis, channels last; two or three spatial axes."""
    return lax.platform_dependent(x, kernel, cpu=lambda x, k: _cpu(x, k, strides), default=lambda x, k: _xla(x, k, strides))


def _xla(x: Array, kernel: Array, strides: tuple[int, ...]) -> Array:
    spatial = "DHW"[3 - len(strides) :]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return lax.conv_general_dilated(x, kernel, strides, _padding(kernel), dimension_numbers=numbers)


def _padding(kernel: Array) -> list[tuple[int, int]]:
    return [((k - 1) // 2, (k - 1) // 2) for k in kernel.shape[:-2]]


def _cpu(x: Array, kernel: Array, strides: tuple[int, ...]) -> Array:
    if len(strides) != 3 or set(kernel.shape[:3]) == {1}:
        return _xla(x, kernel, strides)
    p = jnp.pad(x, [(0, 0), *_padding(kernel), (0, 0)])
    out = [(n + 2 * q - k) // s + 1 for n, (q, _), k, s in zip(x.shape[1:-1], _padding(kernel), kernel.shape, strides, strict=False)]
    b, i, o = x.shape[0], x.shape[-1], kernel.shape[-1]
    if max(strides) > 1 or i < 8:
        taps = [p[(slice(None), *(slice(t, t + s * (n - 1) + 1, s) for t, s, n in zip(tap, strides, out, strict=True)))] for tap in np.ndindex(*kernel.shape[:3])]
        return (jnp.concatenate(taps, -1).reshape(-1, len(taps) * i) @ kernel.reshape(-1, o)).reshape(b, *out, o)
    parts = []
    for a in range(kernel.shape[0]):
        plane = p[:, a : a + out[0]].reshape(b * out[0], *p.shape[2:])
        parts.append(lax.conv_general_dilated(plane, kernel[a], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    return sum(parts[1:], parts[0]).reshape(b, *out, o)
