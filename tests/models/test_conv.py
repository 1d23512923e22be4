"""Convolutions: the CPU's ways and both gradients equal XLA's own, layouts equal PyTorch's, no
dilated input in a forward pass.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medjax.errors import ModelError
from medjax.models.parts import conv_cpu
from medjax.models.parts.conv import Conv, Down, Up, convolve
from medjax.models.parts.norm import InstanceNorm, leaky_relu, norm_act
from tests.support.marks import slow

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


def _xla(x, w, strides):
    spatial = "DHW"[3 - len(strides) :]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return jax.lax.conv_general_dilated(
        x, w, strides, [(k // 2, k // 2) for k in w.shape[:-2]], dimension_numbers=numbers
    )


def _value_and_gradients(f, x, w, dy):
    y, back = jax.vjp(f, x, w)
    return (y, *back(dy))


def _equal_xlas(sides, kernel, strides, i, o):
    keys = jax.random.split(jax.random.key(0), 3)
    x, w = jax.random.normal(keys[0], (2, *sides, i)), jax.random.normal(keys[1], (*kernel, i, o))
    out = tuple(-(-n // s) for n, s in zip(sides, strides, strict=True))
    dy = jax.random.normal(keys[2], (2, *out, o))
    ours = jax.jit(
        lambda x, w, dy: _value_and_gradients(lambda x, w: convolve(x, w, strides), x, w, dy)
    )(x, w, dy)
    theirs = jax.jit(
        lambda x, w, dy: _value_and_gradients(lambda x, w: _xla(x, w, strides), x, w, dy)
    )(x, w, dy)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize(
    ("sides", "kernel", "strides", "i", "o"),
    [one if k in (0, 2) else slow(*one) for k, one in enumerate(CASES)],
)
def test_value_and_gradients_equal_xlas_slab_by_slab(sides, kernel, strides, i, o, monkeypatch):
    for budget in ("SLAB", "COLUMNS", "SPREAD"):
        monkeypatch.setattr(conv_cpu, budget, 1)  # one row a slab, where the sides divide
    walked = []
    monkeypatch.setattr(
        conv_cpu.lax,
        "fori_loop",
        lambda *a, loop=jax.lax.fori_loop: walked.append(a[1]) or loop(*a),
    )
    _equal_xlas(sides, kernel, strides, i, o)
    divides = sides[0] % strides[0] == 0 and set(kernel) != {1}
    assert bool(walked) == (divides and (len(sides) == 3 or max(strides) > 1 or kernel[0] > 1))


@pytest.mark.parametrize(("sides", "kernel", "strides", "i", "o"), [CASES[0], CASES[2], CASES[8]])
def test_value_and_gradients_equal_xlas_in_one_slab(sides, kernel, strides, i, o):
    _equal_xlas(sides, kernel, strides, i, o)


def test_a_batch_over_eight_devices_gives_the_same_numbers():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    keys = jax.random.split(jax.random.key(0), 3)
    x, w, dy = (
        jax.random.normal(k, s)
        for k, s in zip(keys, ((8, 4, 4, 4, 3), (3, 3, 3, 3, 5), (8, 4, 4, 4, 5)), strict=True)
    )
    step = jax.jit(
        lambda x, w, dy: _value_and_gradients(lambda x, w: convolve(x, w, (1, 1, 1)), x, w, dy)
    )
    shared = step(jax.device_put(x, split), jax.device_put(w, whole), jax.device_put(dy, split))
    for a, b in zip(shared, step(x, w, dy), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def test_only_the_cpu_leaves_xlas_own_convolution():
    x, w = (
        jax.ShapeDtypeStruct((1, 4, 6, 4, 2), jnp.float32),
        jax.ShapeDtypeStruct((3, 3, 3, 2, 4), jnp.float32),
    )
    traced = jax.jit(jax.grad(lambda x, w: convolve(x, w, (2, 2, 2)).sum(), (0, 1))).trace(x, w)
    cpu, cuda = (
        traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda")
    )
    assert (
        cuda.count("stablehlo.convolution") == 2 and "lhs_dilate = [2, 2, 2]" in cuda
    )  # its own two gradients, and nothing of ours
    assert cuda.count("stablehlo.dot_general") == 0
    assert cpu.count("stablehlo.convolution") == 0 and cpu.count("stablehlo.dot_general") == 2


def test_half_precision_is_computed_in_float32_on_a_cpu():
    x, w = (
        jax.random.normal(jax.random.key(0), (1, 4, 4, 4, 2)),
        jax.random.normal(jax.random.key(1), (3, 3, 3, 2, 4)),
    )
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    y = convolve(x, w, (1, 1, 1))
    assert y.dtype == jnp.bfloat16
    exact = _xla(x.astype(jnp.float32), w.astype(jnp.float32), (1, 1, 1))
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_initial_spread_is_hes_as_pytorch_counts_it():
    x = jnp.zeros((1, 2, 2, 2, 32))
    conv = Conv(64, (3, 3, 3)).init(jax.random.key(0), x)["params"]["kernel"]
    up = Up(16, (2, 2, 2)).init(jax.random.key(0), x)["params"]["kernel"]
    gain = np.sqrt(2 / (1 + 0.01**2))
    np.testing.assert_allclose(conv.std(), gain / np.sqrt(27 * 32), rtol=0.02)
    np.testing.assert_allclose(
        up.std(), gain / np.sqrt(8 * 16), rtol=0.05
    )  # the fan of a transposed convolution: its output channels


def test_up_is_the_transposed_convolution_with_an_asymmetric_kernel():
    x, w = (
        jax.random.normal(jax.random.key(0), (1, 2, 3, 2, 4)),
        jax.random.normal(jax.random.key(1), (2, 2, 1, 4, 5)),
    )
    y = Up(5, (2, 2, 1), use_bias=False).apply({"params": {"kernel": w}}, x)
    assert y.shape == (1, 4, 6, 2, 5)
    for p in np.ndindex(2, 2, 1):  # y[2d + p] = sum_i x[d, i] w[p, i, o]
        np.testing.assert_allclose(
            y[:, p[0] :: 2, p[1] :: 2], jnp.einsum("bzyxi,io->bzyxo", x, w[p]), atol=1e-5
        )


def test_down_equals_a_patchify_convolution():
    x, w = (
        jax.random.normal(jax.random.key(0), (1, 4, 6, 2, 3)),
        jax.random.normal(jax.random.key(1), (2, 2, 1, 3, 5)),
    )
    y = Down(5, (2, 2, 1), use_bias=False).apply({"params": {"kernel": w}}, x)
    expected = jax.lax.conv_general_dilated(
        x, w, (2, 2, 1), "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
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


@pytest.mark.parametrize("leak", [slow(0.01), 1.0])
def test_norm_and_activation_differentiate_like_their_formula(leak):
    keys = jax.random.split(jax.random.key(0), 4)
    x, dy = (
        3 + 2 * jax.random.normal(keys[0], (2, 3, 4, 5, 6)),
        jax.random.normal(keys[1], (2, 3, 4, 5, 6)),
    )
    scale, bias = jax.random.normal(keys[2], (6,)), jax.random.normal(keys[3], (6,))

    def formula(x, scale, bias):
        mean, var = x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)
        z = (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias
        return jnp.where(z > 0, z, leak * z)

    ours, back = jax.vjp(lambda *a: norm_act(*a, 1e-5, leak), x, scale, bias)
    theirs, formulas_back = jax.vjp(formula, x, scale, bias)
    for a, b in zip((ours, *back(dy)), (theirs, *formulas_back(dy)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_bias_before_an_instance_norm_is_kept_but_not_added():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 4, 2))
    conv = Conv(3, (3, 3, 3), bias_matters=False)
    params = conv.init(jax.random.key(1), x)
    shifted = {"params": params["params"] | {"bias": jnp.array([1.0, -2.0, 3.0])}}
    np.testing.assert_array_equal(conv.apply(params, x), conv.apply(shifted, x))
    norm = InstanceNorm()
    scale = norm.init(jax.random.key(2), jnp.zeros((1, 4, 4, 4, 3)))
    added = Conv(3, (3, 3, 3)).apply(shifted, x)
    np.testing.assert_allclose(
        norm.apply(scale, conv.apply(shifted, x)), norm.apply(scale, added), atol=1e-5
    )
