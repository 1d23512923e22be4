"""Voxel grids: canonical axes, the non-zero box, and masks moved from one grid to another.

Arrays are (z, y, x[, m]); affines are nibabel's, (x, y, z) voxel -> RAS+ mm. Nothing here
interpolates.
"""

from collections.abc import Sequence

import nibabel as nib
import numpy as np

from medjax.errors import DataError
from medjax.scans.nifti import Volume

Box = tuple[
    tuple[int, int], tuple[int, int], tuple[int, int]
]  # half-open range of each (z, y, x) axis


def nonzero_box(array: np.ndarray) -> Box | None:
    """Half-open box around the voxels of (z, y, x[, m]) that are not 0 in some channel.

    None if there are none. Holes do not matter.
    """
    mask = array != 0
    if mask.ndim == 4:
        mask = mask.any(-1)
    plane = mask.any(0)
    box = []
    for line in (mask.any((1, 2)), plane.any(1), plane.any(0)):
        inside = np.flatnonzero(line)
        if len(inside) == 0:
            return None
        box.append((int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)


def canonical_axes(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Axes and flips that turn a stored (z, y, x) array into the closest canonical order.

    Canonical axes grow to Superior, Anterior, Right.
    """
    orientation = nib.io_orientation(
        affine
    )  # row i: world axis and direction of nibabel's voxel axis i
    axes, flips = [0, 0, 0], [False, False, False]
    for voxel_axis, (world_axis, direction) in enumerate(orientation):
        axes[2 - int(world_axis)] = 2 - voxel_axis
        flips[2 - int(world_axis)] = bool(direction < 0)
    return tuple(axes), tuple(flips)


def canonical_affine(
    affine: np.ndarray, shape: Sequence[int], axes: Sequence[int], flips: Sequence[bool]
) -> np.ndarray:
    """Affine ((x, y, z) voxel -> RAS+ mm) of the canonical array.

    Computed from the affine of the stored array with (z, y, x) `shape`.
    """
    step = np.zeros((4, 4))
    step[3, 3] = 1
    for axis, (source, flip) in enumerate(zip(axes, flips, strict=True)):
        step[2 - source, 2 - axis] = -1 if flip else 1
        step[2 - source, 3] = shape[source] - 1 if flip else 0
    return np.asarray(affine, np.float64) @ step


def canonical(array: np.ndarray, axes: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    """Stored -> canonical axes, a view; a channel axis stays last."""
    turned = array.transpose(*axes, *range(3, array.ndim))
    return turned[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def stored(array: np.ndarray, axes: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    """Canonical -> stored axes, a view; the inverse of `canonical`."""
    turned = array[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    return turned.transpose(*np.argsort(axes), *range(3, array.ndim))


def place(volume: Volume, like: Volume, tolerance: float = 0.05) -> np.ndarray:
    """A mask whose voxels belong to another grid -> (z, y, x) on that grid, 0 elsewhere.

    Axes may be swapped, flipped and shifted.

    Args:
      volume: with (z, y, x) pixels.
      tolerance: voxels by which the two grids may differ.

    Raises: `DataError` if the voxels are not those of `like`, or some non-zero ones lie outside it.
    """
    relative = np.linalg.inv(like.affine) @ volume.affine  # (x, y, z) voxel of volume -> of like
    turn = np.rint(relative[:3, :3])
    reach = max(volume.shape)
    off = (
        np.abs(relative[:3, :3] - turn).max() * reach
        + np.abs(relative[:3, 3] - np.rint(relative[:3, 3])).max()
    )
    if (
        off > tolerance
        or not np.array_equal(np.abs(turn).sum(0), [1, 1, 1])
        or not np.array_equal(np.abs(turn).sum(1), [1, 1, 1])
    ):
        raise DataError(
            "mask and image are on different grids",
            path=f"{like.path} and {volume.path}",
            found=f"{off:.3g} voxels off",
            expected=f"at most {tolerance}",
            fix="resample the mask onto the image",
        )
    source = [
        int(np.argmax(np.abs(turn[2 - axis]))) for axis in range(3)
    ]  # for each (z, y, x) axis of like: voxel axis of volume
    array = volume.array.transpose([2 - s for s in source])
    flips = [turn[2 - axis, s] < 0 for axis, s in enumerate(source)]
    array = array[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    first = np.rint(relative[:3, 3]).astype(int)[::-1] - [
        n - 1 if flip else 0 for n, flip in zip(array.shape, flips, strict=True)
    ]
    inside = [
        (max(0, f), min(n, f + m)) for f, n, m in zip(first, like.shape, array.shape, strict=True)
    ]
    out = np.zeros(like.shape, array.dtype)
    if all(a < b for a, b in inside):
        part = array[tuple(slice(a - f, b - f) for (a, b), f in zip(inside, first, strict=True))]
        out[tuple(slice(a, b) for a, b in inside)] = part
    if np.count_nonzero(out) != np.count_nonzero(array):
        raise DataError(
            "mask reaches outside the image",
            path=f"{like.path} and {volume.path}",
            found=f"{np.count_nonzero(array) - np.count_nonzero(out)} voxels outside",
        )
    return out


def onto(label: Volume, like: Volume) -> np.ndarray:
    """A label map on another grid, by nearest neighbour in world space.

    Each voxel of `like` takes the value at its centre.

    Args:
      label: with (z, y, x) integers.

    Returns: (*like.shape) of the same type, 0 outside the label's own grid.
    """
    relative = np.linalg.inv(label.affine) @ like.affine  # (x, y, z) voxel of like -> of label
    swap = np.eye(3)[::-1]  # the same in (z, y, x)
    matrix, shift = swap @ relative[:3, :3] @ swap, swap @ relative[:3, 3]
    if (
        np.abs(matrix - np.rint(matrix)).max() * max(label.shape) < 1e-3
    ):  # same axes: whole shifts must stay whole
        matrix, shift = np.rint(matrix), np.rint(shift)
    out = np.zeros(like.shape, label.array.dtype)
    rows, columns = (np.arange(n, dtype=np.float64) for n in like.shape[1:])
    plane = (
        matrix[:, 1, None, None] * rows[:, None]
        + matrix[:, 2, None, None] * columns
        + shift[:, None, None]
    )
    limits = np.array(label.shape)[:, None, None]
    for k in range(like.shape[0]):
        at = np.floor(plane + matrix[:, 0, None, None] * k + 0.5).astype(np.intp)
        inside = ((at >= 0) & (at < limits)).all(0)
        out[k][inside] = label.array[tuple(axis[inside] for axis in at)]
    return out
