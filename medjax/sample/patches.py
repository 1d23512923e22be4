"""Position of a training patch: nnU-Net's enlarged patch, the bounds of its start, padded reads.

In: patch sizes, a case's shape and foreground voxels, a random generator. Out: integer starts and
numpy patches. No jax, no files opened. The patch that is *cut* is larger than the network's, so
that rotation and scaling find real voxels; the *final* patch determines how far it may leave the
image.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from medjax.errors import UsageError

# longest / first axis beyond which a patch is augmented slice by slice (nnU-Net's "dummy 2D")
ANISOTROPIC = 3
SCALE_MIN = (
    0.85  # nnU-Net enlarges by 1 / 0.85, less than the augmentation's largest scaling of 1.4
)
Sides = Sequence[int] | np.ndarray
PADDING = -1  # label of voxels outside the image


def is_anisotropic(patch: Sequence[int]) -> bool:
    """True if a (z, y, x) patch is so thin along z that space is augmented within slices only."""
    return len(patch) == 3 and max(patch) / patch[0] > ANISOTROPIC


def rotation_limit(patch: Sequence[int]) -> float:
    """nnU-Net's largest rotation in rad.

    30 degrees in 3D, 180 within slices; in 2D 15 if one side is over 1.5 times the other, or 180.
    """
    if len(patch) == 3:
        return math.pi if is_anisotropic(patch) else math.pi / 6
    return math.pi / 12 if max(patch) / min(patch) > 1.5 else math.pi


def enlarged_patch(
    patch: Sequence[int], rotation_rad: float | None = None, scale_min: float = SCALE_MIN
) -> tuple[int, ...]:
    """The patch to cut so that augmentation to `patch` rarely meets the border (nnU-Net's rule).

    The vector of patch sides (not its bounding box) is turned by the limit, 90 degrees at most,
    about each axis in turn; the largest absolute components are divided by `scale_min` and
    truncated. A thin first axis (`is_anisotropic`) is kept as it is.

    Args:
      patch: final patch, (z, y, x) or (y, x) voxels.
      rotation_rad: largest rotation; None takes `rotation_limit(patch)`.
      scale_min: the smaller, the larger the cut.

    >>> enlarged_patch((96, 192, 192))
    (210, 308, 252)
    """
    if len(patch) not in (2, 3) or min(patch) < 1:
        raise UsageError("a patch has two or three positive sides", found=tuple(patch))
    angle = min(math.pi / 2, abs(rotation_limit(patch) if rotation_rad is None else rotation_rad))
    cos, sin = math.cos(angle), math.sin(angle)
    sides = np.array(patch, float)
    largest = sides.copy()
    turns = (
        [(1, 2, 1), (0, 2, -1), (0, 1, 1)] if len(patch) == 3 else [(0, 1, 1)]
    )  # plane of each turn and its sense
    for a, b, sense in turns:
        turned = sides.copy()
        turned[a] = sides[a] * cos + sense * sides[b] * sin
        turned[b] = sides[b] * cos - sense * sides[a] * sin
        largest = np.maximum(largest, np.abs(turned))
    cut = tuple(int(side) for side in largest / scale_min)
    return (int(patch[0]), *cut[1:]) if is_anisotropic(patch) else cut


def start_bounds(shape: Sides, patch: Sides, final: Sides) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest start (inclusive) of a patch, by nnU-Net's rule.

    Starts may be negative.
    """
    shape, patch, final = (np.asarray(v, np.int64) for v in (shape, patch, final))
    need = np.maximum(patch - final, patch - shape)
    return -((need + 1) // 2), shape + need // 2 + need % 2 - patch


def random_start(rng: np.random.Generator, shape: Sides, patch: Sides, final: Sides) -> np.ndarray:
    """A start uniform within `start_bounds`, (n,) int64."""
    low, high = start_bounds(shape, patch, final)
    return rng.integers(low, high + 1)


def centred_start(voxel: Sides, shape: Sides, patch: Sides, final: Sides) -> np.ndarray:
    """The start that puts `voxel` at the centre of the patch, but not below the lowest start.

    nnU-Net bounds it on that side only.
    """
    return np.maximum(
        start_bounds(shape, patch, final)[0], np.asarray(voxel, np.int64) - np.asarray(patch) // 2
    )


def read_centre(
    read: Callable[[tuple[slice, ...]], np.ndarray],
    shape: Sides,
    start: Sides,
    patch: Sides,
    final: Sides,
    fill: Any,
) -> np.ndarray:
    """What `read_patch` returns at the central `final` voxels of the patch, and `fill` elsewhere.

    Only the central voxels are read; `final` and its place are those of a central crop.
    """
    first = [p // 2 - f // 2 for p, f in zip(patch, final, strict=True)]
    if not any(first):
        return read_patch(read, shape, start, patch, fill)
    inner = [int(s) + a for s, a in zip(start, first, strict=True)]
    values = read_patch(read, shape, inner, final, fill)
    out = np.empty((*patch, *values.shape[3:]), values.dtype)
    out[...] = fill
    out[tuple(slice(a, a + f) for a, f in zip(first, final, strict=True))] = values
    return out


def read_patch(
    read: Callable[[tuple[slice, ...]], np.ndarray],
    shape: Sides,
    start: Sides,
    patch: Sides,
    fill: Any,
) -> np.ndarray:
    """A (z, y, x, ...) patch; `fill` (scalar or per channel) outside the image.

    Only the voxels inside are read.

    Args:
      read: slices of (z, y, x) -> array; called once, with the overlap of patch and image.
      shape: (z, y, x) of the image.
      start, patch: corner (may be negative) and size in voxels.
      fill: value outside; the result has the type of the result of `read`, or of `fill` if that is
        a numpy value.
    """
    inside = [
        (min(n, max(0, s)), max(0, min(n, s + p)))
        for s, p, n in zip(map(int, start), patch, shape, strict=True)
    ]
    values = read(tuple(slice(a, b) for a, b in inside))
    dtype = fill.dtype if isinstance(fill, np.ndarray | np.generic) else values.dtype
    if all(b - a == p for (a, b), p in zip(inside, patch, strict=True)):
        return np.asarray(values, dtype)
    out = np.empty((*patch, *values.shape[3:]), dtype)
    out[...] = fill
    out[tuple(slice(a - int(s), b - int(s)) for (a, b), s in zip(inside, start, strict=True))] = (
        values
    )
    return out
