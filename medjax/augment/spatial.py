"""Spatial augmentation of one sample: one linear resampling that rotates and scales, or a crop.

In: image (*vol_in, m) float32, label (*vol_in) or (*vol_in, k) ids. Out: the same at `out_shape`.
Two or three axes; pure and jittable. Semantics of nnU-Net v2: coordinates are voxels from the
centre, 0 (image) and -1 (label) outside, labels by the largest summed weight.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from medjax.sample.patches import PADDING

TIE = 1e-4  # label scores (weights that sum to one) closer than this count as equal


def crop_start(in_shape: Sequence[int], out_shape: Sequence[int]) -> tuple[int, ...]:
    """First voxel of the central crop: half the sides, each rounded down, subtracted."""
    return tuple(n // 2 - k // 2 for n, k in zip(in_shape, out_shape, strict=True))


def exchanged(label: Int[Array, "*vol"], table: Int[Array, "ids"]) -> Int[Array, "*vol"]:
    """Label ids through a table; ids outside it, such as the outside label, stay."""
    inside = (label >= 0) & (label < len(table))
    return jnp.where(inside, jnp.take(table, label, mode="clip"), label).astype(label.dtype)


def centre_crop(
    array: Shaped[Array | np.ndarray, "..."], out_shape: tuple[int, ...], first: int = 0
) -> Shaped[Array | np.ndarray, "..."]:
    """The central `out_shape` voxels of axes `first`, ...; other axes are unchanged."""
    inner = array.shape[first : first + len(out_shape)]
    slices = tuple(
        slice(s, s + n) for s, n in zip(crop_start(inner, out_shape), out_shape, strict=True)
    )
    return array[(slice(None),) * first + slices]


def affine(angles: Float[Array, "3"], scale: Float[Array, ""], axes: int) -> Float[Array, "n n"]:
    """Output offset -> input offset, both in voxels from the centre: Rz Ry Rx S.

    Args:
      angles: rad; the first turns axes 1 and 2, the second 0 and 2, the third 0 and 1. With two
        axes only the last is used.
      scale: one factor for all axes; above 1 the output covers more of the input, so objects become
        smaller.
      axes: 2 or 3.
    """
    (cx, cy, cz), (sx, sy, sz) = jnp.cos(angles), jnp.sin(angles)
    if axes == 2:
        return scale * jnp.array([[cz, -sz], [sz, cz]])
    turn_x = jnp.array([[1.0, 0, 0], [0, cx, -sx], [0, sx, cx]])
    turn_y = jnp.array([[cy, 0.0, sy], [0, 1, 0], [-sy, 0, cy]])
    turn_z = jnp.array([[cz, -sz, 0.0], [sz, cz, 0], [0, 0, 1]])
    return scale * jnp.matmul(
        jnp.matmul(turn_z, turn_y, precision="highest"), turn_x, precision="highest"
    )


def resample(
    image: Float[Array, "*vol_in m"],
    label: Int[Array, "*vol_in k"],
    matrix: Float[Array, "n n"],
    out_shape: tuple[int, ...],
) -> tuple[Float[Array, "*vol_out m"], Int[Array, "*vol_out k"]]:
    """Samples image and label at matrix @ (voxel - centre of the output) + centre of the input.

    Image: linear, 0 outside. Label: the id with the largest summed weight among the corners; if
    several ids share it, the nearest corner's id if it is one of them, else the lowest. The outside
    takes part as -1. Both are padded by one voxel and coordinates are clipped to the padding, so
    every corner exists and everything farther out is padding.
    """
    shape = image.shape[:-1]
    axes = len(shape)
    border = [(1, 1)] * axes + [(0, 0)]
    values = jnp.pad(image, border).reshape(-1, image.shape[-1])
    ids = jnp.pad(label, border, constant_values=PADDING).reshape(-1, label.shape[-1])

    low, above, nearest = _corners(matrix, shape, out_shape)
    strides = [1] * axes
    for d in reversed(range(axes - 1)):
        strides[d] = strides[d + 1] * (shape[d + 1] + 2)
    base = sum((i + 1) * stride for i, stride in zip(low, strides, strict=True))

    weights, corners, total = [], [], 0.0
    for bits in itertools.product((0, 1), repeat=axes):
        weight = 1.0
        for bit, part in zip(bits, above, strict=True):
            weight = weight * (part if bit else 1 - part)
        index = base + sum(bit * stride for bit, stride in zip(bits, strides, strict=True))
        total = total + weight[..., None] * jnp.take(values, index, axis=0, mode="clip")
        weights.append(weight[..., None])
        corners.append(jnp.take(ids, index, axis=0, mode="clip"))
    closest = jnp.take(
        ids,
        base + sum(bit * stride for bit, stride in zip(nearest, strides, strict=True)),
        axis=0,
        mode="clip",
    )
    return total, _vote(weights, corners, closest)


def _corners(
    matrix: Float[Array, "n n"], shape: tuple[int, ...], out_shape: tuple[int, ...]
) -> tuple[
    list[Int[Array, "*vol_out"]], list[Float[Array, "*vol_out"]], list[Bool[Array, "*vol_out"]]
]:
    """Corner index, distance and choice of the nearest corner, per axis.

    Index of the corner below each sampled point, the distance to it, and whether the corner above
    is nearer.
    """
    grids = jnp.meshgrid(
        *[jnp.arange(n, dtype=jnp.float32) - (n - 1) / 2 for n in out_shape],
        indexing="ij",
        sparse=True,
    )
    low, above, nearest = [], [], []
    for d, n in enumerate(shape):
        point = sum(matrix[d, e] * grid for e, grid in enumerate(grids)) + (n - 1) / 2
        point = jnp.clip(point, -1.0, n)
        floor = jnp.minimum(jnp.floor(point), n - 1)
        low.append(floor.astype(jnp.int32))
        above.append(point - floor)
        nearest.append(jnp.round(point) > floor)
    return low, above, nearest


def _vote(weights: list, corners: list, closest: Int[Array, "*vol k"]) -> Int[Array, "*vol k"]:
    """Label with the largest summed weight among the corners, without a channel per label."""

    def score(ids):
        return sum(
            jnp.where(ids == other, weight, 0.0)
            for other, weight in zip(corners, weights, strict=True)
        )

    scores = [score(ids) for ids in corners]
    best = scores[0]
    for other in scores[1:]:
        best = jnp.maximum(best, other)
    highest = jnp.iinfo(closest.dtype).max
    lowest = jnp.full_like(closest, highest)
    for ids, own in zip(corners, scores, strict=True):
        lowest = jnp.minimum(lowest, jnp.where(own >= best - TIE, ids, highest))
    return jnp.where(score(closest) >= best - TIE, closest, lowest)


def quarter_turns(
    array: Shaped[Array, "..."], turns: Int[Array, ""], axes: int
) -> Shaped[Array, "..."]:
    """`jnp.rot90` in the plane of axes `axes` - 2 and `axes` - 1, `turns` times (0 to 3)."""
    plane = (axes - 2, axes - 1)
    return jax.lax.switch(turns, [lambda a, k=k: jnp.rot90(a, k, plane) for k in range(4)], array)


def mirror(array: Shaped[Array, "..."], flips: Bool[Array, "n"]) -> Shaped[Array, "..."]:
    """Reverses each of the first n axes whose flag is set."""
    for axis in range(flips.shape[0]):
        array = jnp.where(flips[axis], jnp.flip(array, axis), array)
    return array
