"""Products whose result is float32 although the factors are narrower.

Differentiated as they stand, their gradients are products in float32 too: the cotangent is
float32, and the other factor is widened to it. Here the cotangent is narrowed instead, so that all
three products run at the speed of the compute type.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medjax.linear import is_zero, linear


def wide_einsum(spec: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """`jnp.einsum(spec, a, b)` of arrays of one type, in float32 or wider."""
    if jnp.result_type(a, b).itemsize >= 4:
        return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)
    return _wide(spec, a, b)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _wide(spec: str, a: Array, b: Array) -> Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


@functools.partial(_wide.defjvp, symbolic_zeros=True)
def _tangent(spec: str, given: tuple[Array, Array], moved: tuple[Any, Any]) -> tuple[Array, Array]:
    a, b = given
    y, parts = _wide(spec, a, b), []
    if not is_zero(moved[0]):
        parts.append(_one(lambda b, a: (a, b), spec, b, moved[0]))
    if not is_zero(moved[1]):
        parts.append(_one(lambda a, b: (a, b), spec, a, moved[1]))
    return y, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(y)


def _one(order: Any, spec: str, fixed: Array, moved: Array) -> Array:
    """The product with the change of one factor; `order` puts (fixed, changed) in their places."""
    shape = jax.ShapeDtypeStruct(moved.shape, moved.dtype)

    def back(fixed: Array, dy: Array) -> Array:
        product = jax.linear_transpose(lambda v: jnp.einsum(spec, *order(fixed, v)), shape)
        return product(dy.astype(fixed.dtype))[0]

    return linear(lambda fixed, v: _wide(spec, *order(fixed, v)), back, fixed, moved)
