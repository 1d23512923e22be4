"""Small copies of scans and masks for display, as NIfTI bytes that any viewer reads.

In: (z, y, x) arrays in canonical axes with the affine of that grid. Out: arrays on a smaller grid
(cropped and coarsened to a budget), and gzipped NIfTI-1 bytes. Like `nifti.py`, `encode` uses
nibabel's (x, y, z); the copies are not exact enough for measurements.
"""

import dataclasses
import gzip
import math
from collections.abc import Sequence

import nibabel as nib
import numpy as np


@dataclasses.dataclass(frozen=True)
class Reduction:
    """A box of a grid and the whole-number factors by which it is coarsened.

    Attributes:
      box: half-open ranges along (z, y, x). factors: voxels per voxel along (z, y, x).
    """

    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    factors: tuple[int, int, int]

    def image(self, array: np.ndarray) -> np.ndarray:
        """(z, y, x) -> float32 block means; the last block of an axis repeats the border."""
        cut = np.asarray(array[tuple(slice(*ends) for ends in self.box)], np.float32)
        for axis, factor in enumerate(self.factors):
            if factor > 1:
                width = [(0, 0)] * 3
                width[axis] = (0, -cut.shape[axis] % factor)
                cut = np.pad(cut, width, mode="edge")
                cut = cut.reshape(*cut.shape[:axis], -1, factor, *cut.shape[axis + 1 :]).mean(
                    axis + 1
                )
        return cut

    def label(self, ids: np.ndarray) -> np.ndarray:
        """(z, y, x) ids -> the id at the middle of each block."""
        cut = ids[tuple(slice(*ends) for ends in self.box)]
        for axis, factor in enumerate(self.factors):
            cut = cut.take(
                np.minimum(
                    np.arange(factor // 2, cut.shape[axis] + factor // 2, factor),
                    cut.shape[axis] - 1,
                ),
                axis,
            )
        return np.ascontiguousarray(cut)

    def affine(self, affine: np.ndarray) -> np.ndarray:
        """Affine ((x, y, z) voxel -> RAS+ mm) of the coarse grid."""
        step = np.eye(4)
        step[:3, :3] = np.diag(self.factors[::-1])
        step[:3, 3] = [
            start + (factor - 1) / 2
            for (start, _), factor in zip(self.box[::-1], self.factors[::-1], strict=True)
        ]
        return np.asarray(affine, np.float64) @ step


def reduce_to(
    voxels: int,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    focus: Sequence[tuple[int, int]] | None = None,
    margin_mm: float = 20.0,
) -> Reduction:
    """The smallest reduction to at most `voxels`: none, else a crop, else a crop and coarsening.

    Args:
      shape, spacing_mm: of the grid, (z, y, x). focus: half-open box to crop to (with a margin);
        None keeps the whole field of view.
    """
    box = tuple((0, int(n)) for n in shape)
    if math.prod(shape) > voxels and focus is not None:
        widths = [math.ceil(margin_mm / s) for s in spacing_mm]
        box = tuple(
            (max(0, a - w), min(int(n), b + w))
            for (a, b), w, n in zip(focus, widths, shape, strict=True)
        )
    factors = [1, 1, 1]
    while math.prod(-(-(b - a) // f) for (a, b), f in zip(box, factors, strict=True)) > voxels:
        axis = min(
            (i for i in range(3) if factors[i] < box[i][1] - box[i][0]),
            key=lambda i: factors[i] * spacing_mm[i],
        )
        factors[axis] += 1  # the finest axis is coarsened first, so that voxels become nearly cubic
    return Reduction(box, tuple(factors))


def to_bytes(array: np.ndarray, low: float, high: float) -> tuple[np.ndarray, float, float]:
    """Grey values -> uint8 with slope and intercept; values outside [low, high] are clipped."""
    slope = max((high - low) / 255, 1e-12)
    return np.clip(np.rint((array - low) / slope), 0, 255).astype(np.uint8), slope, low


def encode(
    array: np.ndarray, affine: np.ndarray, slope: float = 1.0, intercept: float = 0.0
) -> bytes:
    """(z, y, x) -> a gzipped NIfTI-1 file in memory, in millimetres."""
    image = nib.Nifti1Image(array.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(1.0, 0.0)
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array(
        [slope, intercept], image.header.endianness + "f4"
    ).tobytes()  # scl_slope, scl_inter: kept, not applied
    return gzip.compress(bytes(raw), 6, mtime=0)
