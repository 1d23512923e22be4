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
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medjax.errors import UsageError
from medjax.models import context

Function = Callable[[Float[Array, "k ..."]], Any]


def mirrored(
    function: Function,
    axes: Sequence[int],
    spec: context.Spec = MappingProxyType({}),
    entries: Mapping[str, Array] = MappingProxyType({}),
) -> Function:
    """Mean of `function` over all 2^n flips along n spatial axes; each result is flipped back
    first.

    Args:
      function: (k, *vol, m) -> (k, *vol, c); with `entries`, it is given them as a second argument.
      axes: spatial axes, 0 being the first of *vol.
      spec: declares the entries.
      entries: inputs of the same windows that move, see `models.context.moving`; (k, ...) each.
        They are flipped as the image is: arrays of voxels along the axes, and a voxel's coordinate
        i along an axis of n voxels becomes n - 1 - i. So the two corners of a box change places.
    """
    axes = tuple(axes)
    if len(set(axes)) != len(axes) or any(a < 0 for a in axes):
        raise UsageError(
            "unusable mirror axes", found=axes, expected="distinct spatial axes, counted from 0"
        )
    if not axes:
        return (lambda image: function(image, dict(entries))) if entries else function
    copies = jnp.array(list(itertools.product((False, True), repeat=len(axes))))

    def flip(x: Array, which: Array) -> Array:
        for i, axis in enumerate(axes):
            x = jnp.where(which[i], jnp.flip(x, axis + 1), x)
        return x

    def flip_entry(name: str, x: Array, which: Array, sizes: Sequence[int]) -> Array:
        if spec[name].moves == "voxel":
            return flip(x, which)
        for i, axis in enumerate(axes):
            place = x[..., axis]
            x = x.at[..., axis].set(jnp.where(which[i], sizes[axis] - 1 - place, place))
        return x

    def averaged(image: Array) -> Any:
        def copy(which: Array) -> Any:
            turned = {n: flip_entry(n, x, which, image.shape[1:-1]) for n, x in entries.items()}
            given = (turned,) if entries else ()
            return jax.tree.map(lambda x: flip(x, which), function(flip(image, which), *given))

        return _mean_over(copy, copies)

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
