"""Averages inside the jitted function: over mirrored copies of the input, and over the members of
an ensemble.

In: a function of a window batch. Out: the same with averaging. The network is traced once, whatever
the number of copies (`lax.scan`), so the program and its compile time do not grow with them.

Averaging probabilities (nnU-Net v1, MultiTalent) and averaging logits (nnU-Net v2) give different
numbers: which of the two happens depends on whether `function` returns probabilities or logits. It
may return several arrays of that shape (a dictionary): each is averaged, so the mean and the mean
square of all copies come out together.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medjax.errors import UsageError

Function = Callable[[Float[Array, "k ..."]], Any]


def mirrored(function: Function, axes: Sequence[int]) -> Function:
    """Mean of `function` over all 2^n flips along n spatial axes; each result is flipped back
    first.

    Args:
      function: (k, *vol, m) -> (k, *vol, c).
      axes: spatial axes, 0 being the first of *vol.
    """
    axes = tuple(axes)
    if len(set(axes)) != len(axes) or any(a < 0 for a in axes):
        raise UsageError(
            "unusable mirror axes", found=axes, expected="distinct spatial axes, counted from 0"
        )
    if not axes:
        return function
    copies = jnp.array(list(itertools.product((False, True), repeat=len(axes))))

    def flip(x: Array, which: Array) -> Array:
        for i, axis in enumerate(axes):
            x = jnp.where(which[i], jnp.flip(x, axis + 1), x)
        return x

    def averaged(image: Array) -> Any:
        return _mean_over(
            lambda which: jax.tree.map(lambda x: flip(x, which), function(flip(image, which))),
            copies,
        )

    return averaged


def ensemble(function: Callable[[Any, Array], Any], members: Any) -> Function:
    """Mean of `function(params, image)` over parameter trees stacked along a new leading axis (see
    `stack`).
    """
    return lambda image: _mean_over(lambda params: function(params, image), members)


def stack(trees: Sequence[Any]) -> Any:
    """Equal-shaped parameter trees -> one tree with a leading member axis."""
    shapes = [jax.tree.map(jnp.shape, tree) for tree in trees]
    if any(other != shapes[0] for other in shapes[1:]):
        raise UsageError(
            "the members of an ensemble differ in architecture",
            fix="average the masks of different networks instead",
        )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _mean_over(function: Callable[[Any], Any], copies: Any) -> Any:
    """Mean of function(copy) over the leading axis of `copies`."""
    first = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], copies))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
    total, _ = jax.lax.scan(
        lambda total, copy: (jax.tree.map(jnp.add, total, function(copy)), None), zero, copies
    )
    n = len(jax.tree.leaves(copies)[0])
    return jax.tree.map(lambda leaf: leaf / n, total)
