"""The grid that a plan puts volumes on: a target spacing, each case's own spacing, or a fixed size.

In: a volume. Out: its `Transform` (`prepare/geometry.py`), which leads to the grid and back. One
`Grid` holds for one corpus of a plan.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from medjax.prepare import geometry
from medjax.prepare.geometry import Transform
from medjax.prepare.resample import Shape, Sizes, Spacing, new_shape
from medjax.scans.nifti import Volume

KINDS = ("spacing", "native", "size")


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where the volumes of a corpus lie after preparation.

    Attributes:
      kind: "spacing" (all at `spacing_mm`), "native" (each case keeps its own spacing), or "size"
        (each cropped volume is resampled to `size` voxels, for networks with a fixed frame).
      spacing_mm: (z, y, x) in the network's axes: the target of "spacing". Of "native" and "size"
        the typical one (`typical_spacing`), which decides about no volume.
      size: (z, y, x) voxels in the network's axes, only of "size"; -1 keeps the volume's own
        number: (-1, 224, 224) are whole slices of one frame.
    """

    kind: str
    spacing_mm: tuple[float, float, float]
    size: Shape | None = None

    def fit(
        self,
        volume: Volume,
        *,
        orientation: str = "RAS",
        crop: str = "nonzero",
        transpose: Sequence[int] = (0, 1, 2),
        above: Sequence[float | None] | None = None,
    ) -> Transform:
        """The transform of a volume to this grid; for the arguments see `geometry.fit`."""
        return geometry.fit(
            volume,
            self.spacing_mm if self.kind == "spacing" else None,
            orientation=orientation,
            crop=crop,
            transpose=transpose,
            size=self.size,
            above=above,
        )

    def shape_of(self, shape: Sizes, spacing_mm: Spacing) -> Shape:
        """(z, y, x) voxels on this grid of a cropped volume, all in the network's axes."""
        if self.kind == "spacing":
            return new_shape(shape, spacing_mm, self.spacing_mm)
        kept = tuple(int(n) for n in shape)
        return kept if not self.size else _filled(self.size, kept)

    def identity(self) -> list | dict:
        """JSON-ready; equal for grids that give every volume the same voxels."""
        if self.kind == "spacing":
            return list(self.spacing_mm)
        return {"grid": self.kind} | ({"size": list(self.size)} if self.size else {})

    def __str__(self) -> str:
        if self.kind == "native":
            return "the spacing of each case"
        if self.size:
            return f"{written(self.size)} voxels"
        return f"{'x'.join(f'{s:g}' for s in self.spacing_mm)} mm"


def written(size: Sizes) -> str:
    """A frame in words: "its own x224x224"."""
    return "x".join(str(n) if n > 0 else "its own " for n in map(int, size)).strip()


def _filled(size: Shape, own: Shape) -> Shape:
    return tuple(n if n > 0 else m for n, m in zip(size, own, strict=True))


def typical_spacing(
    spacings_mm: np.ndarray, shapes: np.ndarray, size: Sizes | None = None
) -> tuple[float, float, float]:
    """The spacing for which a network is built that sees cases of different spacings.

    The median over the cases of each axis: of the cases' own spacing, or, with a `size`, of the
    extent of the cropped volume divided by the size.

    Args:
      spacings_mm, shapes: (n, 3), in the same axes as `size`.
    """
    shown = np.asarray(spacings_mm, float)
    if size is not None:
        wanted = np.where(np.asarray(size) > 0, size, shapes).astype(float)
        shown = shown * np.asarray(shapes, float) / wanted
    return tuple(float(s) for s in np.median(shown, 0))
