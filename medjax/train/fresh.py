"""Fresh parameters with a handful of random programs instead of one per leaf.

In: `init(key) -> tree`, as a network gives it. Out: a function with the same values, to the bit. A
compiler spends most of its time on the generator, which every leaf calls for its own number of
elements; here leaves of similar size share a call, each with its own key. What makes that possible
is jax' counter-based generator: element i depends on the key and on i only, so that a longer draw
begins with the shorter one. What becomes of the bits (normal, uniform, scale) stays with the leaf.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

LARGE = 1 << 20  # elements above which draws are not made longer: only equal sizes share one
BITS, CALL = "random_bits", "jit"
Draw = Callable[[Any, jax.Array], jax.Array]  # the equation and its key -> bits


def together(init: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Any]:
    """key -> the tree of `init`, whose random bits are drawn in groups.

    Draws within loops (`nn.scan`) are as they were; so are all with another generator than threefry
    in its partitionable form.
    """

    def fresh(key: jax.Array) -> Any:
        if not (jax.config.jax_threefry_partitionable and _is_threefry(key)):
            return init(key)
        closed, shapes = jax.make_jaxpr(init, return_shape=True)(key)
        asked: list[tuple[Any, jax.Array]] = []

        def note(eqn: Any, key: jax.Array) -> jax.Array:
            asked.append((eqn, key))
            return jnp.zeros(eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype)

        _run(closed, [key], note)
        drawn = iter(_drawn(asked))
        leaves = _run(closed, [key], lambda eqn, key: next(drawn))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return fresh


def _drawn(asked: Sequence[tuple[Any, jax.Array]]) -> list[jax.Array]:
    """The bits of all draws, one call of the generator per width and length."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, (eqn, _) in enumerate(asked):
        size = int(np.prod(eqn.params["shape"]))
        groups.setdefault((eqn.params["bit_width"], _length(size)), []).append(number)
    found: dict[int, jax.Array] = {}
    for (width, length), members in groups.items():
        keys = jnp.stack([asked[i][1] for i in members])
        kind = jnp.dtype(f"uint{width}")
        rows = jax.vmap(lambda key, n=length, kind=kind: jax.random.bits(key, (n,), kind))(keys)
        for row, i in zip(rows, members, strict=True):
            shape = asked[i][0].params["shape"]
            found[i] = row[: int(np.prod(shape))].reshape(shape)
    return [found[i] for i in range(len(asked))]


def _length(size: int) -> int:
    """A power of four that is no smaller, so that there are few; the size itself if it is large."""
    return size if size > LARGE else 4 ** int(np.ceil(np.log2(max(size, 1)) / 2))


def _run(closed: core.ClosedJaxpr, arguments: Sequence[Any], draw: Draw) -> list[Any]:
    """Evaluates what the outputs need, with `draw` in place of the generator."""
    jaxpr = closed.jaxpr
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    known |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, core.Literal) else known[var]

    for eqn in _needed(jaxpr):
        given = [read(var) for var in eqn.invars]
        if eqn.primitive.name == BITS and eqn.invars[0].aval.shape == ():
            made = [draw(eqn, given[0])]
        elif eqn.primitive.name == CALL and _draws(eqn.params["jaxpr"].jaxpr):
            made = _run(eqn.params["jaxpr"], given, draw)
        else:
            call = jaxpr.replace(
                constvars=[],
                invars=[var for var in eqn.invars if not isinstance(var, core.Literal)],
                outvars=eqn.outvars,
                eqns=[eqn],
                debug_info=None,
            )
            inputs = [read(var) for var in call.invars]
            made = core.jaxpr_as_fun(core.ClosedJaxpr(call, []))(*inputs)
        known |= dict(zip(eqn.outvars, made, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _draws(jaxpr: core.Jaxpr) -> bool:
    """Whether the generator is called outside of loops."""
    return any(
        eqn.primitive.name == BITS
        or (eqn.primitive.name == CALL and _draws(eqn.params["jaxpr"].jaxpr))
        for eqn in jaxpr.eqns
    )


def _needed(jaxpr: core.Jaxpr) -> list[Any]:
    """The equations that the outputs are computed from, in order."""
    wanted, found = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}, []
    for eqn in reversed(jaxpr.eqns):
        if wanted & set(eqn.outvars):
            found.append(eqn)
            wanted |= {v for v in eqn.invars if not isinstance(v, core.Literal)}
    return found[::-1]


def _is_threefry(key: jax.Array) -> bool:
    return str(jax.random.key_impl(key)) == "threefry2x32"
