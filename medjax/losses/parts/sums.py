"""The four sums behind cross-entropy and soft Dice on sigmoid channels, in one pass over logits.

Per sample b and class c, over voxels with logit x, target g, weight w and p = sigmoid(x):

    entropy = sum w (softplus(x) - x g)    overlap = sum w p g
    predicted = sum w p                    target = sum w g

The derivative is written by hand in both modes (`medjax.linear`): the backward pass keeps the
logits as the network gave them, in its compute type, and computes p again. Written plainly, a
compiler keeps three float32 copies of the logits, the largest array of a training.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from medjax.linear import is_zero, linear
from medjax.losses.parts import targets


class Sums(NamedTuple):
    """See the module; each (b, c), float32 or wider. Where a class is unknown x counts as 0."""

    entropy: Float[Array, "b c"]
    overlap: Float[Array, "b c"]
    predicted: Float[Array, "b c"]
    target: Float[Array, "b c"]


def shared(outputs: Mapping, batch: Mapping) -> Sums:
    """The sums of a batch, computed once for all losses of a resolution (see `together`)."""
    found = outputs.get("sums")
    return found() if found is not None else of(outputs, batch)


def together(outputs: Mapping, batch: Mapping) -> dict[str, Any]:
    """The outputs with an entry through which several losses share one computation."""
    return {**outputs, "sums": functools.cache(lambda: of(outputs, batch))}


def of(outputs: Mapping, batch: Mapping) -> Sums:
    """The sums of a batch.

    Args:
      outputs, batch: as for `targets.unpack`.
    """
    return Sums(
        *_sums(
            outputs["logits"], batch["label"], batch["table"], batch["known"], batch.get("weight")
        )
    )


def of_slices(outputs: Mapping, batch: Mapping) -> Sums:
    """The sums of each z slice, (b z, c), as of a batch of slices."""
    depth = outputs["logits"].shape[1]
    given = {k: jnp.repeat(batch[k], depth, axis=0) for k in ("table", "known")}
    for name in ("label", "weight"):
        if batch.get(name) is not None:
            given[name] = batch[name].reshape(-1, *batch[name].shape[2:])
    logits = outputs["logits"]
    return of({"logits": logits.reshape(-1, *logits.shape[2:])}, given)


@jax.custom_jvp
def _sums(
    logits: Float[Array, "b *vol c"],
    label: Int[Array, "b *vol"],
    table: Bool[Array, "b ids c"],
    known: Bool[Array, "b c"],
    weight: Float[Array, "b *vol"] | None,
) -> tuple[Array, ...]:
    x, g, w = _parts((logits, label, table, known, weight))
    p = jax.nn.sigmoid(x)
    entropy = jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))) - x * g
    return tuple(_sum(v, w) for v in (entropy, p * g, p, g))


@functools.partial(_sums.defjvp, symbolic_zeros=True)
def _tangent(given: tuple, moved: tuple) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    found = _sums(*given)
    still = jnp.zeros_like(found[3])
    if is_zero(moved[0]):
        return found, (still, still, still, still)
    return found, (*linear(_pushed, _pulled, given, moved[0]), still)


def _pushed(given: tuple, moved: Array) -> tuple[Array, Array, Array]:
    """Changes of entropy, overlap and predicted along a change of the logits."""
    x, g, w = _parts(given)
    p = jax.nn.sigmoid(x)
    dx = jnp.where(given[3][:, None], moved.reshape(x.shape).astype(x.dtype), 0)
    dp = p * (1 - p) * dx
    return _sum((p - g) * dx, w), _sum(dp * g, w), _sum(dp, w)


def _pulled(given: tuple, cotangents: tuple[Array, Array, Array]) -> Array:
    """The gradient of the logits."""
    given = lax.optimization_barrier(given)  # else what the forward pass computed is kept
    x, g, w = _parts(given)
    p = jax.nn.sigmoid(x)
    entropy, overlap, predicted = (v[:, None] for v in cotangents)
    dx = entropy * (p - g) + p * (1 - p) * (overlap * g + predicted)
    dx = jnp.where(given[3][:, None], dx if w is None else dx * w, 0)
    return dx.reshape(given[0].shape).astype(given[0].dtype)


def _parts(given: tuple) -> tuple[Array, Array, Array | None]:
    """Logits (b, voxels, c), targets, weights (b, voxels, 1)."""
    logits, label, table, known, weight = given
    b, c = known.shape
    x = logits.reshape(b, -1, c).astype(jnp.promote_types(logits.dtype, jnp.float32))
    g = targets.multi_hot(label.reshape(b, -1), table)
    return jnp.where(known[:, None], x, 0), g, None if weight is None else weight.reshape(b, -1, 1)


def _sum(values: Array, weight: Array | None) -> Array:
    return (values if weight is None else values * weight).sum(1)
