"""A linear function with a transpose of its own: forward, reverse, twice, batched, recomputed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.linear import instantiated, is_zero, linear
from medjax.models.parts.conv import convolve
from medjax.models.parts.norm import norm_act
from medjax.models.parts.products import wide_einsum

SEEN = []


@jax.custom_jvp
def times(x, y):
    """x y^2, whose derivative notes when its transpose runs."""
    return x * y**2


@functools.partial(times.defjvp, symbolic_zeros=True)
def _tangent(given, moved):
    def back(kept, ct):
        SEEN.append(1)
        x, y = kept
        return ct * y**2, 2 * ct * x * y

    def ahead(kept, moved):
        x, y = kept
        return moved[0] * y**2 + 2 * x * y * moved[1]

    return times(*given), linear(ahead, back, given, tuple(map(instantiated, moved)))


def _plain(x, y):
    return x * y**2


X, Y = jnp.arange(1.0, 4), jnp.array([0.5, -2.0, 3.0])


@pytest.mark.parametrize(
    "derivative",
    [
        lambda f: jax.jacfwd(f, (0, 1)),
        lambda f: jax.jacrev(f, (0, 1)),
        lambda f: jax.jacrev(f, 1),
        lambda f: jax.jacfwd(jax.jacrev(f, (0, 1)), (0, 1)),
        lambda f: jax.jacrev(jax.jacrev(f, 1), (0, 1)),
        lambda f: jax.jacrev(jax.jacfwd(f, (0, 1)), 0),
        lambda f: jax.grad(lambda x, y: jax.checkpoint(f)(x, y).sum(), (0, 1)),
        lambda f: jax.vmap(jax.grad(f, (0, 1))),
        lambda f: jax.vmap(lambda x, y: jax.vjp(lambda y: f(2.0, y), y)[1](x)[0]),
        lambda f: jax.grad(lambda x, y: jax.lax.scan(lambda c, y: (f(c, y), c), x[0], y)[0]),
    ],
)
def test_every_derivative_is_that_of_the_formula(derivative):
    expected = jax.tree.leaves(derivative(_plain)(X, Y))
    for how in (lambda f: f, jax.jit):
        found = jax.tree.leaves(how(derivative(times))(X, Y))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_reverse_mode_runs_the_given_transpose_and_keeps_the_residuals_only():
    SEEN.clear()
    jax.jvp(times, (X, Y), (X, Y))
    assert not SEEN
    jax.grad(lambda x: times(x, Y).sum())(X)
    assert SEEN
    kept = jax.tree.leaves(jax.vjp(times, X, Y)[1])
    assert sum(leaf.size for leaf in kept) <= X.size + Y.size
    assert not is_zero(X)


def _norm(x, scale, bias):
    mean = x.mean((1, 2), keepdims=True)
    z = (x - mean) / jnp.sqrt(x.var((1, 2), keepdims=True) + 1e-5) * scale + bias
    return jnp.where(z > 0, z, 0.01 * z)


@pytest.mark.parametrize("which", ["convolution", "norm"])
def test_forward_mode_of_convolution_and_norm(which):
    keys = jax.random.split(jax.random.key(0), 6)
    x, k = jax.random.normal(keys[0], (2, 4, 5, 3)), jax.random.normal(keys[1], (3, 3, 3, 2))
    if which == "convolution":
        given, f = (x, k), lambda x, k: convolve(x, k, (1, 2))
        numbers = ("NHWC", "HWIO", "NHWC")

        def plain(x, k):
            return jax.lax.conv_general_dilated(
                x, k, (1, 2), [(1, 1)] * 2, dimension_numbers=numbers
            )
    else:
        given, plain = (x, k[0, 0, :, 0], k[0, 1, :, 1]), _norm

        def f(*arrays):
            return norm_act(*arrays, 1e-5, 0.01)

    moved = tuple(jax.random.normal(keys[2 + i], g.shape) for i, g in enumerate(given))
    found, expected = (jax.jit(lambda g=g: jax.jvp(g, given, moved))() for g in (f, plain))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


def test_a_wide_product_has_its_gradients_in_the_type_of_its_factors():
    a, b = (jax.random.normal(jax.random.key(k), (2, 4, 3)).astype(jnp.bfloat16) for k in (0, 1))
    spec = "bnd,bmd->bnm"

    def plain(a, b):
        return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)

    def product_types(f):
        back = jax.vjp(f, a, b)[1]
        text = str(jax.make_jaxpr(back)(jnp.ones((2, 4, 4), jnp.float32)))
        return {line.split(":")[1].split("[")[0] for line in text.splitlines() if "dot_gen" in line}

    assert product_types(plain) == {"f32"}
    assert product_types(lambda a, b: wide_einsum(spec, a, b)) == {"bf16"}
    found, back = jax.vjp(lambda a, b: wide_einsum(spec, a, b), a, b)
    assert found.dtype == jnp.float32
    ct = jax.random.normal(jax.random.key(2), found.shape)
    for x, y in zip(back(ct), jax.vjp(plain, a, b)[1](ct), strict=True):
        assert x.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(x), np.float32(y), atol=0.05)
    moved = jax.jvp(lambda a, b: wide_einsum(spec, a, b), (a, b), (b, a))[1]
    np.testing.assert_allclose(moved, jax.jvp(plain, (a, b), (b, a))[1], rtol=1e-2, atol=1e-2)
    wide = [v.astype(jnp.float32) for v in (a, b)]  # as it was
    assert str(jax.make_jaxpr(plain)(*wide)) == str(
        jax.make_jaxpr(lambda a, b: wide_einsum(spec, a, b))(*wide)
    )
