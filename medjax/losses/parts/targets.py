"""Targets on the device: integer labels -> multi-hot classes, also at lower resolutions.

A label volume holds one dense id per voxel; `table` maps an id to the set of classes it belongs to
(`medjax.labels`). Nothing of size voxels x classes is stored or transferred: the class sets are bit
words, which XLA fuses into the loss that reads them.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

BITS = 32


def multi_hot(
    label: Int[Array, "b *vol"], table: Bool[Array, "b ids c"]
) -> Float[Array, "b *vol c"]:
    """Classes of every voxel.

    Args:
      label: dense ids, each sample in the id space of its own corpus; ids outside [0, ids) are
        clipped.
      table: for each sample, whether a voxel with that id belongs to class c (rows of
        `LabelSpace.table`).

    Returns: 1.0 where the voxel belongs to the class, else 0.0 (float32).

    The ids are looked up as 32-bit words (one per 32 classes) and unpacked by shifting: on a CPU 2
    to 3 times faster than looking up rows of floats, and without a buffer of size voxels x classes.
    """
    classes = table.shape[-1]
    index = np.arange(classes)
    words = [
        jax.vmap(_look_up)(_pack(table[..., k : k + BITS]), label)[..., None]
        for k in range(0, classes, BITS)
    ]
    bits = words[0]
    for k, word in enumerate(words[1:], start=1):
        bits = jnp.where(index // BITS == k, word, bits)
    return ((bits >> (index % BITS).astype(np.uint32)) & 1).astype(jnp.float32)


def downsample(volume: Shaped[Array, "b *vol"], shape: tuple[int, ...]) -> Shaped[Array, "b *low"]:
    """Nearest neighbour at a lower resolution (half-pixel centres, nnU-Net v2's `nearest-exact`).

    Args:
      volume: labels or voxel weights.
      shape: the target spatial shape; output voxel i reads input voxel floor((i + 1/2) n_in /
        n_out).
    """
    for axis, (n_in, n_out) in enumerate(zip(volume.shape[1:], shape, strict=True), start=1):
        stride = n_in // n_out
        if n_in == n_out:
            continue
        if n_in % n_out == 0:
            volume = jax.lax.slice_in_dim(volume, stride // 2, n_in, stride, axis)
        else:
            volume = jnp.take(volume, (2 * np.arange(n_out) + 1) * n_in // (2 * n_out), axis=axis)
    return volume


def unpack(
    outputs: Mapping, batch: Mapping
) -> tuple[Float[Array, "b *vol c"], Float[Array, "b *vol c"], Float[Array, "b c"], Array | None]:
    """Inputs of the masked losses: logits, target, known classes and voxel weight.

    Logits are float32 or wider, and 0 where the class is unknown. They are replaced before any
    arithmetic, so their gradient is exactly 0 even if a head marks them with -inf.

    Args:
      outputs: `logits` (b, *vol, c).
      batch: `label` (b, *vol) int, `table` (b, ids, c) bool, `known` (b, c) bool, optional `weight`
        (b, *vol).

    Returns: (logits, target, known as float (b, c), weight (b, *vol, 1) or None).
    """
    logits, known = outputs["logits"], batch["known"]
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    per_voxel = known.reshape(known.shape[0], *(1,) * (logits.ndim - 2), known.shape[1])
    weight = batch.get("weight")
    return (
        jnp.where(per_voxel, logits, 0),
        multi_hot(batch["label"], batch["table"]),
        known.astype(logits.dtype),
        None if weight is None else weight[..., None],
    )


def spatial_sum(
    values: Float[Array, "b *vol c"], weight: Float[Array, "b *vol 1"] | None
) -> Float[Array, "b c"]:
    """Sum over the voxels of each sample and class; `weight` (b, *vol, 1) is optional."""
    axes = tuple(range(1, values.ndim - 1))
    return (values if weight is None else values * weight).sum(axes)


def voxel_count(
    shape: tuple[int, ...], weight: Float[Array, "b *vol 1"] | None
) -> Float[Array, "b 1"]:
    """Voxels of each sample, (b, 1): their number, or the sum of their weights.

    `shape` is (b, *vol, c).
    """
    if weight is None:
        return jnp.full((shape[0], 1), math.prod(shape[1:-1]), jnp.float32)
    return weight.sum(tuple(range(1, weight.ndim - 1)))


def _pack(table: Bool[Array, "b ids n"]) -> UInt32[Array, "b ids"]:
    """Up to 32 classes -> one word whose bit k is class k."""
    return (table.astype(jnp.uint32) << np.arange(table.shape[-1], dtype=np.uint32)).sum(
        -1, dtype=jnp.uint32
    )


def _look_up(words: UInt32[Array, " ids"], label: Int[Array, "*vol"]) -> UInt32[Array, "*vol"]:
    return jnp.take(words, label, axis=0, mode="clip")
