"""Exclusive classes for a softmax, from classes that may overlap; per sample, on the device.

A softmax has one class per voxel. A voxel that belongs to several classes (tumour, hence liver)
counts as the most specific one: the class that the fewest label ids of its corpus contain. So the
channel of a region means that region without the classes nested in it, and the nested channels
imply the region again (`implied`). If two classes overlap and neither contains the other, the
voxels of the overlap count as the later class in channel order, because a softmax cannot express
both.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from medjax.errors import UsageError
from medjax.losses.parts import targets


def own_class(table: Bool[Array, "b ids c"]) -> Int[Array, "b ids"]:
    """For every label id of every sample 1 + its exclusive class, 0 for background.

    Args:
      table: whether a voxel with that id belongs to class c (rows of `LabelSpace.table`).
    """
    classes = table.shape[-1]
    breadth = table.sum(1, keepdims=True)  # ids per class
    rank = jnp.where(
        table,
        breadth * classes + classes - 1 - jnp.arange(classes),
        table.shape[1] * classes + classes,
    )
    return jnp.where(table.any(-1), 1 + jnp.argmin(rank, -1), 0)


def implied(table: Bool[Array, "b ids c"]) -> Bool[Array, "b c c"]:
    """[k, j]: True if a voxel exclusively of class k is of class j too.

    That is, every id whose exclusive class is k belongs to j.
    """
    own = own_class(table)[..., None] == 1 + jnp.arange(table.shape[-1])  # (b, ids, k)
    breaks = jnp.einsum("bik,bij->bkj", own.astype(jnp.int32), (~table).astype(jnp.int32))
    return (breaks == 0) & own.any(1)[..., None]


def unpack(
    outputs: Mapping, batch: Mapping
) -> tuple[
    Float[Array, "b *vol k"],
    Int[Array, "b *vol"],
    Bool[Array, "b k"],
    Float[Array, "b *vol"] | None,
]:
    """Inputs of the softmax losses; channel 0 is the background.

    Args:
      outputs: `logits` (b, *vol, c) relative to the background's, or (b, *vol, 1 + c) with it.
      batch: `label` (b, *vol), `table` (b, ids, c), `known` (b, c), optional `weight` (b, *vol).

    Returns: logits, float32 or wider, finite (logits of classes that a sample's corpus does not
      annotate are replaced by a number whose exponential is 0, without gradient); the exclusive
      class of every voxel; which channels are in the softmax; the voxel weights.

    Raises: `UsageError` for another number of channels.
    """
    logits, known, table = outputs["logits"], batch["known"], batch["table"]
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    classes = known.shape[-1]
    if logits.shape[-1] == classes:
        logits = jnp.concatenate([jnp.zeros_like(logits[..., :1]), logits], -1)
    elif logits.shape[-1] != classes + 1:
        raise UsageError(
            "the network's channels are not those of the label space",
            found=logits.shape[-1],
            expected=classes,
        )
    present = jnp.concatenate([jnp.ones_like(known[:, :1]), known], 1)
    logits = jnp.where(jnp.expand_dims(present, tuple(range(1, logits.ndim - 1))), logits, -1e30)
    own = own_class(table & known[:, None])
    target = jax.vmap(lambda row, ids: jnp.take(row, ids, mode="clip"))(own, batch["label"])
    return logits, target, present, batch.get("weight")


def mean_over_voxels(
    values: Float[Array, "b *vol"], weight: Float[Array, "b *vol"] | None
) -> tuple[Array, Array]:
    """Per sample the (weighted) sum over voxels and the number (weight) of voxels, each (b,)."""
    axes = tuple(range(1, values.ndim))
    if weight is None:
        count = targets.voxel_count((*values.shape, 1), None)[:, 0]
        return values.sum(axes), count
    return (values * weight).sum(axes), weight.sum(axes)
