"""Multiply-accumulates of a network, counted from its jaxpr: matrix products and convolutions only.

In: any jax function and abstract arguments. Out: a number that is exact and independent of compiler
and device (XLA's own estimate adds element-wise work). Nothing is computed or allocated.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from medjax.errors import ModelError


def macs(function: Callable, *arguments: Any) -> int:
    """Multiply-accumulates of one call.

    Loops are multiplied by their length; of the branches of a conditional, the most expensive is
    counted.

    Args:
      arguments: arrays or `jax.ShapeDtypeStruct`.

    Raises: `ModelError` for products inside a loop of unknown length.
    """
    return macs_and_shapes(function, *arguments)[0]


def macs_and_shapes(function: Callable, *arguments: Any) -> tuple[int, Any]:
    """`macs`, and the shapes of the function's result.

    For a network's `init`: its work and its parameters in one trace.
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    return _count(program.jaxpr), shapes


def _count(program: Any) -> int:
    return sum(_equation(equation) for equation in program.eqns)


def _equation(equation: Any) -> int:
    name, given = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = given["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(
            left[axis] for axis in contracted
        )
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval.shape, given["dimension_numbers"]
        taps = math.prod(
            kernel[axis] for axis in numbers.rhs_spec[1:]
        )  # input channels of a group x space
        dilated = math.prod(given["lhs_dilation"])
        return math.prod(equation.outvars[0].aval.shape) * taps // dilated
    inner = [_count(program) for program in _programs(given)]
    if name == "scan":
        return sum(inner) * given["length"]
    if name == "cond":
        return max(inner, default=0)
    if name == "while" and any(inner):
        raise ModelError(
            "a loop of unknown length multiplies matrices", fix="count one iteration of it"
        )
    return sum(inner)


def _programs(given: dict) -> list[Any]:
    """The jaxprs in an equation's parameters; without custom derivative rules."""
    if "call_jaxpr" in given:
        given = {"call_jaxpr": given["call_jaxpr"]}
    values = [
        v
        for value in given.values()
        for v in (value if isinstance(value, list | tuple) else (value,))
    ]
    return [
        v.jaxpr if isinstance(v, core.ClosedJaxpr) else v
        for v in values
        if isinstance(v, core.ClosedJaxpr | core.Jaxpr)
    ]
