"""A whole volume in a frame of fixed size, and back: for networks that see a scan at once.

In: volumes on the plan's grid. Out: images and labels of the frame's size; points, boxes and scores
led from the grid to the frame and back. Two ways each: area averages (SegVol's training, MONAI's
default) or nearest voxels (its published prediction). Arrays are (z, y, x[, channel]).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from medjax.errors import UsageError, did_you_mean
from medjax.prepare import resample
from medjax.prepare.resample import Shape

IMAGES = ("area", "nearest")
LABELS = ("nearest", "area")
SCORES = ("trilinear", "nearest")


@dataclasses.dataclass(frozen=True)
class Frame:
    """How a volume lies in a frame.

    Attributes:
      shape: (z, y, x) voxels of the volume. size: of the frame.
      pad: a volume that is shorter than the frame along an axis is surrounded there with equal
        margins (an odd voxel behind) instead of being stretched.
    """

    shape: Shape
    size: Shape
    pad: bool = True

    @property
    def margins(self) -> tuple[tuple[int, int], ...]:
        """(before, after) voxels around the volume."""
        missing = [
            max(0, m - n) if self.pad else 0 for n, m in zip(self.shape, self.size, strict=True)
        ]
        return tuple((m // 2, m - m // 2) for m in missing)

    @property
    def padded(self) -> Shape:
        """(z, y, x) voxels with the margins."""
        return tuple(n + sum(m) for n, m in zip(self.shape, self.margins, strict=True))

    @property
    def scale(self) -> np.ndarray:
        """(3,) frame voxels per voxel."""
        return np.array(self.size, np.float64) / np.array(self.padded, np.float64)

    def image(self, array: np.ndarray, how: str = "area", fill: Any = 0) -> np.ndarray:
        """(*shape[, m]) -> float32 (*size[, m]); `fill`: value of the margins, or per channel."""
        return shrink(self._surrounded(array, fill), self.size, how)

    def label(self, ids: np.ndarray, how: str = "nearest", fill: int = 0) -> np.ndarray:
        """(*shape) ids -> (*size) ids of that type; `fill`: of the margins."""
        return shrink_ids(self._surrounded(ids, fill), self.size, how)

    def points(self, grid: np.ndarray) -> np.ndarray:
        """(n, 3) voxel indices of the volume -> of the frame: the voxel that holds the point."""
        before = np.array([b for b, _ in self.margins], np.float64)
        found = np.floor((np.asarray(grid, np.float64) + 0.5 + before) * self.scale)
        return np.clip(found, 0, np.array(self.size) - 1)

    def box(self, grid: np.ndarray) -> np.ndarray:
        """(6,) inclusive box of the volume -> of the frame, rounded outwards."""
        before = np.array([b for b, _ in self.margins], np.float64)
        first, last = np.asarray(grid[:3], np.float64), np.asarray(grid[3:], np.float64)
        low = np.floor((np.round(first) + before) * self.scale + 1e-9)
        high = np.ceil((np.round(last) + 1 + before) * self.scale - 1e-9) - 1
        end = np.array(self.size) - 1
        low = np.clip(low, 0, end)
        return np.concatenate([low, np.clip(np.maximum(high, low), 0, end)])

    def scores(self, array: np.ndarray, how: str = "trilinear") -> np.ndarray:
        """(*size) scores of the frame -> float32 (*shape) on the volume's grid."""
        if how not in SCORES:
            raise UsageError(f"unknown resampling of scores {how!r}", fix=did_you_mean(how, SCORES))
        pairs = list(zip(self.size, self.padded, strict=True))
        if how == "nearest":
            found = array[np.ix_(*[np.arange(b) * a // b for a, b in pairs])].astype(np.float32)
        else:
            found = resample.apply(array, [resample.matrix_of(a, b, 1) for a, b in pairs])
        inner = zip(self.margins, self.shape, strict=True)
        return found[tuple(slice(b, b + n) for (b, _), n in inner)]

    def _surrounded(self, array: np.ndarray, fill: Any) -> np.ndarray:
        if not any(map(any, self.margins)):
            return array
        out = np.empty((*self.padded, *array.shape[3:]), array.dtype)
        out[...] = fill
        inner = zip(self.margins, self.shape, strict=True)
        out[tuple(slice(b, b + n) for (b, _), n in inner)] = array
        return out


def shrink(image: np.ndarray, size: Sequence[int], how: str = "area") -> np.ndarray:
    """float32 image of another size.

    Args:
      image: (z, y, x[, m]).
      how: "area": each voxel is the mean of those it touches (adaptive average pooling, MONAI's
        "area"); "nearest": the voxel at its centre (torch's "nearest-exact").
    """
    if how not in IMAGES:
        raise UsageError(f"unknown resampling of images {how!r}", fix=did_you_mean(how, IMAGES))
    pairs = list(zip(image.shape[:3], size, strict=True))
    if how == "nearest":
        return image[np.ix_(*[_centres(a, b) for a, b in pairs])].astype(np.float32)
    return resample.apply(image, [None if a == b else _area(a, b) for a, b in pairs])


def shrink_ids(ids: np.ndarray, size: Sequence[int], how: str = "nearest") -> np.ndarray:
    """Labels of another size.

    Args:
      ids: (z, y, x) integers.
      how: "nearest": the voxel at the centre; "area": the published training, which averages masks
        and truncates the mean: an id stays only where all voxels that are touched have it, else 0.
    """
    if how not in LABELS:
        raise UsageError(f"unknown resampling of labels {how!r}", fix=did_you_mean(how, LABELS))
    pairs = list(zip(ids.shape, size, strict=True))
    if how == "nearest":
        return np.ascontiguousarray(ids[np.ix_(*[_centres(a, b) for a, b in pairs])])
    low = high = ids
    for axis, (a, b) in enumerate(pairs):
        low, high = _extreme(low, axis, a, b, np.min), _extreme(high, axis, a, b, np.max)
    return np.where(low == high, low, 0).astype(ids.dtype)


def _extreme(array: np.ndarray, axis: int, n_in: int, n_out: int, function: Any) -> np.ndarray:
    if n_in == n_out:
        return array
    parts = [slice(*cell) for cell in _cells(n_in, n_out)]
    index = (slice(None),) * axis
    return np.stack([function(array[(*index, part)], axis=axis) for part in parts], axis)


def _cells(n_in: int, n_out: int) -> list[tuple[int, int]]:
    """Half-open range of the samples that each sample of adaptive pooling averages."""
    return [(i * n_in // n_out, -(-(i + 1) * n_in // n_out)) for i in range(n_out)]


@functools.lru_cache(maxsize=64)
def _area(n_in: int, n_out: int) -> np.ndarray:
    matrix = np.zeros((n_out, n_in))
    for i, (first, last) in enumerate(_cells(n_in, n_out)):
        matrix[i, first:last] = 1 / (last - first)
    matrix.setflags(write=False)
    return matrix


def _centres(n_in: int, n_out: int) -> np.ndarray:
    """Source of each sample: floor((i + 1/2) n_in / n_out), torch's "nearest-exact"."""
    return (2 * np.arange(n_out) + 1) * n_in // (2 * n_out)
