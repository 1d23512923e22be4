"""Prompts from masks: random points, tight boxes, boxes that are not tight, corrective clicks.

In: masks and random numbers. Out: points and boxes as `prompts/types.py` describes them. Functions
that take `uniform` numbers are pure, work on arrays of numpy and of jax alike and keep static
shapes, so a task can map them over a batch on the device.

Sources: SegVol's released code (points, boxes, jitter "release"), its authors' challenge version
(jitter "outward"); the others keep a box valid: sorted, at least one voxel, inside.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from medjax.errors import UsageError, did_you_mean
from medjax.prompts.types import NEGATIVE, PADDING, POSITIVE, SLOTS

JITTERS = (
    "none",
    "fraction",
    "voxels",
    "mm",
    "translate",
    "shift",
    "scale",
    "outward",
    "release",
)
PLANE = 256  # in-plane voxels that the amounts of "outward" refer to


def points(
    uniform: Any, mask: Any, positive: Any, negative: Any, pad: int = PADDING
) -> tuple[Any, Any]:
    """Random voxels inside and outside a mask, uniform and with replacement.

    Args:
      uniform: (slots,) numbers in [0, 1), one per point. mask: (z, y, x) bool. positive, negative:
        how many points of either kind; together at most as many as slots.
      pad: kind of the slots without a point, see `types.PADDING` and `types.ABSENT`.

    Returns: (slots, 3) float32 voxel indices, -1 where there is no point; (slots,) int32 kinds:
      first the positive points, then the negative ones. A mask without a voxel has no positive
      points, one without background no negative ones.
    """
    numpy = mask.__array_namespace__()
    inside = numpy.cumsum(mask.reshape(-1).astype(np.int32))
    voxels, total = inside.shape[0], inside[-1]
    outside = numpy.arange(1, voxels + 1, dtype=np.int32) - inside
    slot = numpy.arange(uniform.shape[0])
    is_positive, is_negative = slot < positive, (slot >= positive) & (slot < positive + negative)

    def nth(running: Any, count: Any) -> Any:
        rank = numpy.minimum((uniform * count).astype(np.int32), count - 1)
        return numpy.searchsorted(running, rank + 1)

    flat = numpy.where(is_positive, nth(inside, total), nth(outside, voxels - total))
    flat = numpy.clip(flat, 0, voxels - 1)
    found = (is_positive & (total > 0)) | (is_negative & (total < voxels))
    places = numpy.stack(numpy.unravel_index(flat, mask.shape), -1)
    places = numpy.where(found[:, None], places, -1).astype(np.float32)
    kind = numpy.where(is_positive, POSITIVE, NEGATIVE)
    return places, numpy.where(found, kind, pad).astype(np.int32)


def training_counts(
    uniform: Any, positives: Sequence[int], negatives: Sequence[int]
) -> tuple[Any, Any]:
    """Numbers of points of a training query: one positive and k more, and m negatives.

    Args:
      uniform: (2,) numbers in [0, 1). positives, negatives: inclusive ranges of k and m; SegVol
        (0, 10) each.

    Raises: `UsageError` for ranges that do not fit into the slots.
    """
    if positives[1] + negatives[1] + 1 > SLOTS or min(positives[0], negatives[0]) < 0:
        raise UsageError(
            "more points than a query has slots",
            found=f"1 + {tuple(positives)} positives, {tuple(negatives)} negatives",
            expected=f"at most {SLOTS} together",
        )
    numpy = uniform.__array_namespace__()

    def of_range(u: Any, low: int, high: int) -> Any:
        return low + numpy.minimum((u * (high - low + 1)).astype(np.int32), high - low)

    return 1 + of_range(uniform[0], *positives), of_range(uniform[1], *negatives)


def box(mask: Any) -> Any:
    """(6,) float32 tight box z0 y0 x0 z1 y1 x1 of a (z, y, x) mask, inclusive; all -1 if empty."""
    numpy = mask.__array_namespace__()
    low, high = [], []
    for axis in range(mask.ndim):
        line = mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))
        low.append(numpy.argmax(line))
        high.append(mask.shape[axis] - 1 - numpy.argmax(line[::-1]))
    found = numpy.stack(low + high).astype(np.float32)
    return numpy.where(mask.any(), found, np.float32(-1))


def jitter(
    uniform: Any,
    tight: Any,
    size: Sequence[int],
    kind: str,
    amount: float = 0.0,
    spacing_mm: Any = (1.0, 1.0, 1.0),
) -> Any:
    """A box that a user might have drawn instead of a tight one.

    Args:
      uniform: (6,) numbers in [0, 1). tight: (6,) inclusive box; an empty one (-1) stays as it is.
      size: (z, y, x) voxels of the frame. spacing_mm: (z, y, x) of a voxel, only for "mm".
      kind: with e the extent of the box along an axis and a the amount,
        "none": the box.
        "fraction": each face moves by a number of [-a e, a e]. "mm": of [-a, a] mm.
        "voxels": each face moves by a whole number of [-a, a].
        "translate": the box moves by a number of [-a e, a e] along each axis. "shift": by a whole
        number of voxels of [-a, a].
        "scale": all faces move outwards by u a e, with one u of [0, 1).
        "outward": in-plane faces move outwards by a whole number of [0, a] side / 256.
        "release": as "voxels", but as in the published code: corners are not sorted, the first is
          only bounded by 0 and the second by the size, which is one too many.

    Returns: (6,) float32 whole numbers; but for "release" sorted, of at least one voxel, and
      inside.
    Raises: `UsageError` for an unknown kind.
    """
    if kind not in JITTERS:
        raise UsageError(f"unknown jitter of boxes {kind!r}", fix=did_you_mean(kind, JITTERS))
    numpy = tight.__array_namespace__()
    low, high = tight[:3], tight[3:]
    size, extent = np.asarray(size, np.float32), high - low + 1
    between = 2 * uniform - 1
    whole = numpy.minimum(numpy.floor(uniform * (2 * amount + 1)), 2 * amount) - amount
    if kind == "fraction":
        low, high = low + between[:3] * amount * extent, high + between[3:] * amount * extent
    elif kind == "mm":
        voxels = amount / numpy.asarray(spacing_mm)
        low, high = low + between[:3] * voxels, high + between[3:] * voxels
    elif kind in ("voxels", "release"):
        low, high = low + whole[:3], high + whole[3:]
    elif kind == "translate":
        shift = between[:3] * amount * extent
        low, high = low + shift, high + shift
    elif kind == "shift":
        low, high = low + whole[:3], high + whole[:3]
    elif kind == "scale":
        low, high = low - uniform[0] * amount * extent, high + uniform[0] * amount * extent
    elif kind == "outward":
        most = np.floor(amount * size / PLANE) * np.asarray([0, 1, 1], np.float32)
        step = numpy.minimum(numpy.floor(uniform.reshape(2, 3) * (most + 1)), most)
        low, high = low - step[0], high + step[1]
    if kind == "release":
        found = numpy.concatenate([numpy.maximum(low, 0), numpy.minimum(high, size)])
    else:
        low, high = numpy.round(low), numpy.round(high)
        first, last = numpy.minimum(low, high), numpy.maximum(low, high)
        found = numpy.clip(
            numpy.concatenate([first, last]), 0, np.concatenate([size, size]).astype(np.float32) - 1
        )
    return numpy.where(tight[0] < 0, tight, found.astype(np.float32))


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two inclusive boxes (6,); an inverted box holds no voxel."""

    def volume(low: np.ndarray, high: np.ndarray) -> float:
        return float(np.prod(np.maximum(high - low + 1, 0)))

    shared = volume(np.maximum(one[:3], other[:3]), np.minimum(one[3:], other[3:]))
    return shared / max(volume(one[:3], one[3:]) + volume(other[:3], other[3:]) - shared, 1e-9)


def centre_of_error(
    mask: Bool[np.ndarray, "z y x"],
    found: Bool[np.ndarray, "z y x"],
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
) -> tuple[tuple[int, int, int], int] | None:
    """The corrective click of a careful user: the middle of the largest region that is wrong.

    The voxel of the largest connected error that is farthest from its surface. On the host.

    Args:
      mask: the truth. found: what was predicted. spacing_mm: (z, y, x), in which distances are
        measured.

    Returns: (voxel, kind), positive in a miss and negative in a false positive; None without error.
    """
    wrong = mask ^ found
    misses, false = wrong & mask, wrong & found
    best: tuple[int, np.ndarray, int] | None = None
    for error, kind in ((misses, POSITIVE), (false, NEGATIVE)):
        regions, count = ndimage.label(error)
        if count:
            sizes = np.bincount(regions.ravel())[1:]
            if best is None or sizes.max() > best[0]:
                best = int(sizes.max()), regions == 1 + int(sizes.argmax()), kind
    if best is None:
        return None
    region, cut = best[1], ndimage.find_objects(best[1].astype(np.int8))[0]
    depth = ndimage.distance_transform_edt(np.pad(region[cut], 1), sampling=spacing_mm)
    place = np.unravel_index(int(depth.argmax()), depth.shape)
    voxel = tuple(int(p) - 1 + s.start for p, s in zip(place, cut, strict=True))
    return voxel, best[2]
