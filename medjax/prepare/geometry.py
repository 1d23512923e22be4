"""Transforms between the stored grid and the network's grid, in both directions.

`fit` computes the `Transform` of a volume: axes to canonical order, crop to the non-zero box,
target spacing. The transform takes images and labels to the network's grid and scores and masks
back; it is stored as JSON with the prepared case. Arrays are (z, y, x[, channel]), spacings (z, y,
x) mm.
"""

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from medjax.errors import DataError, UsageError, did_you_mean
from medjax.prepare import resample
from medjax.scans import grid
from medjax.scans.nifti import DataWarning, Volume

ORIENTATIONS = ("RAS", "stored")
CROPS = ("nonzero", "foreground", "none")


@dataclasses.dataclass(frozen=True)
class Transform:
    """Stored grid -> canonical axes -> crop -> target spacing, and its inverse.

    Attributes:
      stored_shape: (z, y, x) of the file.
      axes: for each canonical axis (z, y, x) the stored axis it comes from.
      flips: for each canonical axis whether it runs against the stored one.
      box: half-open range of the crop along each canonical axis.
      spacing_mm: (z, y, x) of the file in canonical order.
      target_spacing_mm: (z, y, x) requested, or of a fixed size extent / shape; the exact one is
        always extent / shape.
      shape: (z, y, x) after resampling.
    """

    stored_shape: tuple[int, int, int]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    box: grid.Box
    spacing_mm: tuple[float, float, float]
    target_spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]

    @property
    def box_shape(self) -> tuple[int, int, int]:
        """(z, y, x) sizes of the crop before resampling."""
        return tuple(stop - start for start, stop in self.box)

    def image(self, array: np.ndarray) -> np.ndarray:
        """(z, y, x[, m]) in stored order -> a canonical, cropped view on the original spacing."""
        self._check(array, self.stored_shape, "stored")
        return grid.canonical(array, self.axes, self.flips)[
            tuple(slice(*ends) for ends in self.box)
        ]

    def resample_image(self, cropped: np.ndarray) -> np.ndarray:
        """What `image` returned -> float32 (*shape[, m]) at the target spacing; order 3."""
        self._check(cropped, self.box_shape, "cropped")
        return resample.resample_image(cropped, self.shape, self.spacing_mm, self.target_spacing_mm)

    def label(self, ids: np.ndarray) -> np.ndarray:
        """(z, y, x) ids in stored order -> (*shape) ids of that type at the target spacing."""
        return np.ascontiguousarray(
            resample.resample_label(
                self.image(ids), self.shape, self.spacing_mm, self.target_spacing_mm
            )
        )

    def invert_scores(self, scores: np.ndarray) -> np.ndarray:
        """(*shape, c) scores -> float32 (*stored_shape, c), stored grid; 0 outside the crop."""
        out = np.empty((*self.stored_shape, *scores.shape[3:]), np.float32)
        for rows, piece in self.iterate_scores(scores):
            out[rows] = piece
        return out

    def iterate_scores(
        self, scores: np.ndarray, slab: int | None = None
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """`invert_scores` in slabs of the first stored axis, to bound the memory of many classes.

        Args:
          scores: (*shape, c); anything that can be sliced, e.g. a memory map or half precision.
          slab: rows of the first stored axis per piece; by default a piece holds about 16 million
            values.

        Yields: (slice of the first stored axis, float32 (rows, y, x, c) piece), in ascending order,
        covering the whole grid.
        """
        self._check(scores, self.shape, "resampled")
        lead = self.axes.index(0)  # the canonical axis that the first stored axis became
        start, stop = self.box[lead]
        rest = (*self.stored_shape[1:], *scores.shape[3:])
        step = slab or max(1, resample.SLAB // max(1, math.prod(rest)))
        flipped, length = self.flips[lead], self.stored_shape[0]
        inside = [slice(*self.box[axis]) for axis in range(3)]
        for begin in range(0, length, step):
            end = min(begin + step, length)
            first, last = (
                (length - end, length - begin) if flipped else (begin, end)
            )  # the same rows, counted canonically
            low, high = max(first, start), min(last, stop)
            shape = [self.stored_shape[axis] for axis in self.axes]
            shape[lead] = end - begin
            piece = np.zeros((*shape, *scores.shape[3:]), np.float32)
            if low < high:
                inside[lead] = slice(low - first, high - first)
                piece[tuple(inside)] = resample.score_rows(
                    scores,
                    self.box_shape,
                    self.target_spacing_mm,
                    self.spacing_mm,
                    lead,
                    slice(low - start, high - start),
                )
            yield slice(begin, end), grid.stored(piece, self.axes, self.flips)

    def invert_mask(self, ids: np.ndarray) -> np.ndarray:
        """(*shape) decided ids -> (*stored_shape) ids of the same type by nearest neighbour.

        0 outside the crop.
        """
        self._check(ids, self.shape, "resampled")
        if tuple(ids.shape[:3]) != self.box_shape:
            ids = ids[
                np.ix_(
                    *[
                        resample.nearest(a, b)
                        for a, b in zip(self.shape, self.box_shape, strict=True)
                    ]
                )
            ]
        out = np.zeros([self.stored_shape[axis] for axis in self.axes], ids.dtype)
        out[tuple(slice(*ends) for ends in self.box)] = ids
        return np.ascontiguousarray(grid.stored(out, self.axes, self.flips))

    def to_grid(self, stored: np.ndarray) -> np.ndarray:
        """(n, 3) voxel indices (z, y, x) of the stored grid -> of the resampled one.

        Not rounded, and not limited to the grid.
        """
        return self.to_resampled(self.to_box(stored))

    def to_box(self, stored: np.ndarray) -> np.ndarray:
        """(n, 3) voxel indices (z, y, x) of the stored grid -> of the cropped canonical one."""
        found = np.asarray(stored, np.float64)[:, list(self.axes)]
        last = np.array([self.stored_shape[axis] - 1 for axis in self.axes], np.float64)
        found = np.where(self.flips, last - found, found)
        return found - [start for start, _ in self.box]

    def to_resampled(self, cropped: np.ndarray) -> np.ndarray:
        """(n, 3) voxel indices of the cropped canonical grid -> of the resampled one."""
        scale = np.array(self.shape, np.float64) / np.array(self.box_shape, np.float64)
        return (np.asarray(cropped, np.float64) + 0.5) * scale - 0.5

    def affine(self, stored: np.ndarray) -> np.ndarray:
        """Affine of the resampled grid, from the affine of the stored one.

        Affines are nibabel's: (x, y, z) voxel -> RAS+ mm.
        """
        affine = grid.canonical_affine(stored, self.stored_shape, self.axes, self.flips)
        start = np.array([ends[0] for ends in self.box][::-1], np.float64)
        scale = np.array(self.box_shape[::-1]) / np.array(self.shape[::-1])
        step = np.eye(4)
        step[:3, :3] = np.diag(scale)
        step[:3, 3] = start + scale * 0.5 - 0.5
        return affine @ step

    def to_json(self) -> dict:
        """JSON-ready fields; `from_json` inverts it exactly."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping) -> "Transform":
        """Inverse of `to_json`."""
        return cls(
            tuple(int(n) for n in fields["stored_shape"]),
            tuple(int(n) for n in fields["axes"]),
            tuple(bool(f) for f in fields["flips"]),
            tuple((int(a), int(b)) for a, b in fields["box"]),
            tuple(float(s) for s in fields["spacing_mm"]),
            tuple(float(s) for s in fields["target_spacing_mm"]),
            tuple(int(n) for n in fields["shape"]),
        )

    def _check(self, array: np.ndarray, shape: Sequence[int], stage: str) -> None:
        if tuple(array.shape[:3]) != tuple(shape) or array.ndim > 4:
            raise DataError(
                f"array does not belong to this transform ({stage} grid)",
                found=tuple(array.shape),
                expected=f"{tuple(shape)} (z, y, x)",
            )


def fit(
    volume: Volume,
    target_spacing_mm: resample.Spacing | None,
    *,
    orientation: str = "RAS",
    crop: str = "nonzero",
    transpose: Sequence[int] = (0, 1, 2),
    size: Sequence[float] | None = None,
    above: Sequence[float | None] | None = None,
) -> Transform:
    """The transform of a volume to a network's grid.

    Args:
      volume: with pixels, unless crop is "none".
      target_spacing_mm: (z, y, x) in the axis order of `orientation`; None keeps the volume's own.
      orientation: "RAS" (array axes z, y, x grow to Superior, Anterior, Right) or "stored" (axes
        stay as they are).
      crop: "nonzero" is nnU-Net's box around the voxels that differ from 0 in any channel;
        "foreground" is the box around the voxels above the channel's value in `above` in any
        channel (an image without such voxels warns and stays whole); "none" keeps everything.
      transpose: for each axis of the result the (z, y, x) axis of the orientation; the target
        spacing is in the order of the result.
      size: (z, y, x) voxels of the result, which the crop is resampled to whatever its extent, -1
        where its own number stays; then there is no target spacing.
      above: per channel the value above which a voxel is foreground, or None for a channel that
        takes no part in a crop (a mask). Default 0 for all.

    Raises: UsageError for unknown words, a spacing or size that is not positive, or both of them.
    """
    if orientation not in ORIENTATIONS:
        raise UsageError(
            f"unknown orientation {orientation!r}", fix=did_you_mean(orientation, ORIENTATIONS)
        )
    if crop not in CROPS:
        raise UsageError(f"unknown crop {crop!r}", fix=did_you_mean(crop, CROPS))
    axes, flips = (
        grid.canonical_axes(volume.affine)
        if orientation == "RAS"
        else ((0, 1, 2), (False, False, False))
    )
    if sorted(transpose) != [0, 1, 2]:
        raise UsageError(
            "not an order of three axes",
            found=tuple(transpose),
            expected="0, 1 and 2 in some order",
        )
    axes, flips = tuple(axes[a] for a in transpose), tuple(flips[a] for a in transpose)
    spacing = tuple(volume.spacing_mm[axis] for axis in axes)
    target = spacing if target_spacing_mm is None else tuple(float(s) for s in target_spacing_mm)
    if len(target) != 3 or not all(math.isfinite(s) and s > 0 for s in target):
        raise UsageError(
            "unusable target spacing",
            found=target_spacing_mm,
            expected="three positive sizes in mm, (z, y, x)",
        )
    if size is not None and (
        target_spacing_mm is not None
        or len(size) != 3
        or not all(int(n) >= 1 or int(n) == -1 for n in size)
    ):
        raise UsageError(
            "unusable target size",
            found=tuple(size),
            expected="three positive numbers of voxels (z, y, x), and no target spacing",
        )
    shape = tuple(volume.shape[axis] for axis in axes)
    box = tuple((0, n) for n in shape)
    if crop != "none":
        box = _box(volume, crop, axes, flips, above) or box
    extent = [stop - start for start, stop in box]
    if size is None:
        new = resample.new_shape(extent, spacing, target)
    else:
        new = tuple(int(n) if int(n) > 0 else m for n, m in zip(size, extent, strict=True))
        target = tuple(s * n / m for s, n, m in zip(spacing, extent, new, strict=True))
    return Transform(tuple(volume.shape), axes, flips, box, spacing, target, new)


def _box(
    volume: Volume,
    crop: str,
    axes: Sequence[int],
    flips: Sequence[bool],
    above: Sequence[float | None] | None,
) -> grid.Box | None:
    """The box of a crop along the canonical axes; None, with a warning, if no voxel is inside."""
    array = volume.array if volume.array.ndim == 4 else volume.array[..., None]
    limits = [0.0] * array.shape[3] if above is None else list(above)
    used = [c for c, limit in enumerate(limits) if limit is not None]
    if not used:
        return None
    if crop == "foreground":
        array = np.stack([array[..., c] > limits[c] for c in used], -1)
    elif len(used) < array.shape[3]:
        array = array[..., used]
    found = grid.nonzero_box(grid.canonical(array, axes, flips))
    if found is None:
        what = "all voxels are 0" if crop == "nonzero" else "no voxel is above the lower limit"
        warnings.warn(f"{volume.path}: {what}; not cropped", DataWarning, stacklevel=3)
    return found
