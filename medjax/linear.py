"""A linear function with a hand-written transpose, for derivatives that work in both modes.

`jax.custom_vjp` takes forward mode away (`jax.jvp`, `jax.linearize`). Here a derivative is a
`jax.custom_jvp` rule whose tangent is one call of `linear`: forward mode computes it, reverse mode
runs the hand-written transpose and keeps the residuals alone. Both can be differentiated again,
batched and recomputed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend import core
from jax.interpreters import ad, batching, mlir


def linear(
    forward: Callable[..., Any], transpose: Callable[..., Any], residuals: Any, arguments: Any
) -> Any:
    """forward(residuals, arguments), linear in `arguments`, with a transpose of its own.

    Args:
      forward: (residuals, arguments) -> arrays.
      transpose: (residuals, cotangents of what `forward` returns) -> cotangents of `arguments`, in
        their structure, shapes and types.
      residuals: arrays that both read; what reverse mode keeps.
    """
    kept, kept_tree = jax.tree.flatten(residuals)
    given, given_tree = jax.tree.flatten(arguments)
    made = jax.eval_shape(forward, residuals, arguments)
    made_tree = jax.tree.structure(made)

    def ahead(*arrays: Any) -> Any:
        r, a = arrays[: len(kept)], arrays[len(kept) :]
        found = forward(jax.tree.unflatten(kept_tree, r), jax.tree.unflatten(given_tree, a))
        return jax.tree.leaves(found)

    def back(*arrays: Any) -> Any:
        r, a = arrays[: len(kept)], arrays[len(kept) :]
        found = transpose(jax.tree.unflatten(kept_tree, r), jax.tree.unflatten(made_tree, a))
        return jax.tree.leaves(found)

    return jax.tree.unflatten(made_tree, _call(ahead, back, kept, given))


def instantiated(tangent: Any) -> Any:
    """A tangent as an array, also one that a rule with `symbolic_zeros` is told to be zero."""
    if isinstance(tangent, SymbolicZero):
        return jnp.zeros(tangent.aval.shape, tangent.aval.dtype)
    return tangent


def is_zero(tangent: Any) -> bool:
    """Whether a rule with `symbolic_zeros` is told that a tangent is zero."""
    return isinstance(tangent, SymbolicZero)


def _call(ahead: Callable, back: Callable, kept: Sequence, given: Sequence) -> list:
    shapes = [jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)) for a in (*kept, *given)]
    program = jax.make_jaxpr(ahead)(*shapes)
    more = {"program": program, "ahead": ahead, "back": back, "kept": len(kept)}
    return _linear.bind(*kept, *given, **more)


def _run(*arrays: Any, program: core.ClosedJaxpr, **_: Any) -> list:
    return core.jaxpr_as_fun(program)(*arrays)


def _jvp(primals: Sequence, tangents: Sequence, *, ahead: Callable, kept: int, **more: Any):
    out = _linear.bind(*primals, ahead=ahead, kept=kept, **more)
    parts = []
    if any(type(t) is not ad.Zero for t in tangents[kept:]):
        moved = [ad.instantiate_zeros(t) for t in tangents[kept:]]
        parts.append(_linear.bind(*primals[:kept], *moved, ahead=ahead, kept=kept, **more))
    moving = [i for i in range(kept) if type(tangents[i]) is not ad.Zero]
    if moving:

        def of_residuals(*some: Any) -> Any:
            arrays = list(primals)
            for i, array in zip(moving, some, strict=True):
                arrays[i] = array
            return ahead(*arrays)

        changes = [tangents[i] for i in moving]
        parts.append(jax.jvp(of_residuals, [primals[i] for i in moving], changes)[1])
    if not parts:
        return out, [ad.Zero.from_primal_value(o) for o in out]
    return out, [functools.reduce(jnp.add, some) for some in zip(*parts, strict=True)]


def _transpose(
    cotangents: Sequence, *arrays: Any, ahead: Callable, back: Callable, kept: int, program: Any
) -> list:
    given = [ad.instantiate_zeros(ct) if type(ct) is ad.Zero else ct for ct in cotangents]
    found = _call(back, ahead, arrays[:kept], given)
    wanted = [ad.is_undefined_primal(a) for a in arrays[kept:]]
    return [None] * kept + [ct if w else None for ct, w in zip(found, wanted, strict=True)]


def _batch(
    arrays: Sequence, axes: Sequence, *, ahead: Callable, back: Callable, kept: int, **_: Any
) -> tuple[list, list]:
    size = next(a.shape[axis] for a, axis in zip(arrays, axes, strict=True) if axis is not None)
    moved, where = [], []
    for i, (a, axis) in enumerate(zip(arrays, axes, strict=True)):
        mapped = axis is not None
        if mapped:
            a = jnp.moveaxis(a, axis, 0)
        elif i >= kept:  # broadcasting has the sum over the batch as its transpose
            a, mapped = jnp.broadcast_to(a, (size, *a.shape)), True
        moved.append(a)
        where.append(0 if mapped else None)
    ahead = jax.vmap(ahead, in_axes=tuple(where))
    out = _call(ahead, _mapped(back, where[:kept]), moved[:kept], moved[kept:])
    return out, [0] * len(out)


def _mapped(back: Callable, where: Sequence) -> Callable:
    def call(*arrays: Any) -> Any:
        axes = (*where, *[0] * (len(arrays) - len(where)))
        return jax.vmap(back, in_axes=axes)(*arrays)

    return call


_linear = core.Primitive("linear")
_linear.multiple_results = True
_linear.def_impl(_run)
_define_shapes = _linear.def_abstract_eval
_define_shapes(lambda *_, program, **__: program.out_avals)
ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batch
mlir.register_lowering(_linear, mlir.lower_fun(_run, multiple_results=True))
