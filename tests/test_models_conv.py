"""Convolutions: the CPU's ways and both gradients equal XLA's own, layouts equal PyTorch's, no dilated input in a forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.models.parts.conv import Down, Up, convolve
from medjax.models.parts.norm import InstanceNorm, leaky_relu

CASES = [
    ((8, 10, 6), (3, 3, 3), (1, 1, 1), 4, 8),
    ((7, 9, 5), (3, 3, 3), (1, 1, 1), 16, 4),
    ((8, 10, 6), (3, 3, 3), (2, 2, 2), 4, 8),
    ((6, 8, 10), (3, 3, 3), (1, 2, 2), 24, 8),
    ((5, 6, 7), (3, 3, 3), (2, 2, 2), 1, 4),
    ((5, 8, 6), (1, 3, 3), (1, 1, 1), 4, 4),
    ((5, 8, 6), (1, 3, 3), (1, 2, 2), 4, 4),
    ((5, 4, 6), (1, 1, 1), (1, 1, 1), 4, 4),
    ((9, 7), (3, 3), (1, 1), 4, 8),
    ((8, 10), (3, 3), (2, 2), 1, 4),
]


@pytest.mark.parametrize(("sides", "kernel", "strides", "i", "o"), CASES)
def test_value_and_gradients_equal_xlas(sides, kernel, strides, i, o):
    keys = jax.random.split(jax.random.key(0), 3)
    x, w = jax.random.normal(keys[0], (2, *sides, i)), jax.random.normal(keys[1], (*kernel, i, o))
    spatial = "DHW"[3 - len(sides) :]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    padding = [(k // 2, k // 2) for k in kernel]

    def reference(x, w):
        return jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=numbers)

    ours, back = jax.vjp(lambda x, w: convolve(x, w, strides), x, w)
    theirs, back_reference = jax.vjp(reference, x, w)
    assert ours.shape == theirs.shape
    dy = jax.random.normal(keys[2], ours.shape)
    for a, b in zip((ours, *back(dy)), (theirs, *back_reference(dy)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def test_up_is_the_transposed_convolution_with_an_asymmetric_kernel():
    x, w = jax.random.normal(jax.random.key(0), (1, 2, 3, 2, 4)), jax.random.normal(jax.random.key(1), (2, 2, 1, 4, 5))
    y = Up(5, (2, 2, 1), use_bias=False).apply({"params": {"kernel": w}}, x)
    assert y.shape == (1, 4, 6, 2, 5)
    for p in np.ndindex(2, 2, 1):  # y[2d + p] = sum_i x[d, i] w[p, i, o]
        np.testing.assert_allclose(y[:, p[0] :: 2, p[1] :: 2], jnp.einsum("bzyxi,io->bzyxo", x, w[p]), atol=1e-5)


def test_down_equals_a_patchify_convolution():
    x, w = jax.random.normal(jax.random.key(0), (1, 4, 6, 2, 3)), jax.random.normal(jax.random.key(1), (2, 2, 1, 3, 5))
    y = Down(5, (2, 2, 1), use_bias=False).apply({"params": {"kernel": w}}, x)
    expected = jax.lax.conv_general_dilated(x, w, (2, 2, 1), "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_wrong_kernels_are_refused():
    with pytest.raises(ModelError, match="odd kernels"):
        convolve(jnp.zeros((1, 4, 4, 4, 2)), jnp.zeros((2, 3, 3, 2, 2)), (1, 1, 1))


def test_instance_norm_is_stable_far_from_zero():
    x = 31_000 + jax.random.normal(jax.random.key(0), (2, 6, 6, 6, 3))
    norm = InstanceNorm()
    y = norm.apply(norm.init(jax.random.key(1), x), x)
    wide = np.asarray(x, np.float64)
    mean, var = wide.mean((1, 2, 3), keepdims=True), wide.var((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(y, (wide - mean) / np.sqrt(var + 1e-5), atol=5e-3)
    np.testing.assert_allclose(leaky_relu(jnp.array([-2.0, 3.0])), [-0.02, 3.0], rtol=1e-6)
