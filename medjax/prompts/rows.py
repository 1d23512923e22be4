"""How a promptable network is asked in an evaluation: rows by name, prompts drawn from masks.

In: names of rows like "box@0.1" and the mask of an object. Out: points and a box on the mask's
grid. The same random numbers serve every row of an object, so rows differ only by what they ask.

    text  box  points3  points5+-  box+text   kinds of prompts, joined by "+"; points alone: 5
                                    points; "+-" adds as many negative ones
    box@0.2           each face of the box moves by up to 0.2 of its extent, see `draw.jitter`
    box@translate0.2  the box moves along each axis; box@scale0.2: all faces move outwards
    box@5mm           each face moves by up to 5 mm; box@5voxels, box@translate5voxels: of the scan
    clicks            a tight box, then corrective clicks; clicks@points1: a point, then clicks
    text/out          without a second look at full resolution; box/union, box/box: what windows
                      cover (`infer.zoom.roi`)
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from medjax.errors import UsageError
from medjax.prompts import draw
from medjax.prompts.types import NEGATIVE, POSITIVE, SLOTS

POINTS = 5  # of a row "points"
ZOOMS, REGIONS = ("in", "out"), ("prediction", "box", "union")
CLICKS = "clicks"
EXPECTED = 'e.g. "text", "box@0.1", "points5+-", "box+text", "clicks", "box/out"'
_POINTS = re.compile(r"points(\d*)(\+-)?")
_AMOUNT = re.compile(r"(translate|scale|)(\d*\.?\d+)(mm|voxels|)")
_KINDS = {
    ("", ""): "fraction",
    ("", "mm"): "mm",
    ("", "voxels"): "voxels",
    ("translate", ""): "translate",
    ("translate", "voxels"): "shift",
    ("scale", ""): "scale",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to ask.

    Attributes:
      name: as given. text, box: whether they are used. positives, negatives: numbers of points.
      jitter, amount: of the box, see `draw.jitter`. clicks: corrective clicks follow.
      zoom, roi: settings of the prediction in place of the usual ones; empty: the usual ones.
    """

    name: str
    text: bool = False
    box: bool = False
    positives: int = 0
    negatives: int = 0
    jitter: str = "none"
    amount: float = 0.0
    clicks: bool = False
    zoom: str = ""
    roi: str = ""

    @property
    def drawn(self) -> bool:
        """Whether it depends on random numbers."""
        return self.positives > 0 or self.jitter != "none"

    @property
    def changes(self) -> dict[str, str]:
        """Settings of the prediction that differ from the usual ones."""
        return {k: v for k, v in (("zoom", self.zoom), ("roi", self.roi)) if v}


def parse(name: str) -> Row:
    """The row of a name.

    >>> parse("box+text@0.1/out").jitter
    'fraction'

    Raises: `UsageError` for a name that is none.
    """
    base, *words = name.split("/")
    stem, *amounts = base.split("@")
    found: dict = {"name": name}
    if stem == CLICKS:
        found["clicks"] = True
        stem, amounts = (amounts or ["box"])[0], amounts[1:]
    for part in re.split(r"\+(?!-)", stem):
        match = _POINTS.fullmatch(part)
        if match:
            count = int(match[1] or POINTS)
            found |= {"positives": count, "negatives": count if match[2] else 0}
        elif part in ("text", "box"):
            found[part] = True
        else:
            raise _refused(name)
    if amounts:
        match = _AMOUNT.fullmatch(amounts[0])
        kind = match and _KINDS.get((match[1], match[3]))
        if not match or not kind or len(amounts) > 1 or not found.get("box"):
            raise _refused(name)
        found |= {"jitter": kind, "amount": float(match[2])}
    for word in words:
        kind = "zoom" if word in ZOOMS else "roi" if word in REGIONS else ""
        if not kind or kind in found:
            raise _refused(name)
        found[kind] = word
    row = Row(**found)
    if row.positives + row.negatives > SLOTS or (stem.startswith("points") and not row.positives):
        raise UsageError(
            f"unusable number of points in the row {name!r}", expected=f"1 to {SLOTS} in all"
        )
    return row


def parsed(names: Sequence[str]) -> tuple[Row, ...]:
    """The rows of names; `UsageError` also for none, and for one that comes twice."""
    if not names or len(set(names)) < len(names):
        raise UsageError("rows that are none, or come twice", found=", ".join(names) or "none")
    return tuple(map(parse, names))


def _refused(name: str) -> UsageError:
    return UsageError(f"unknown row {name!r}", expected=EXPECTED, fix="see docs/segvol.md")


class Drawn(NamedTuple):
    """Prompts on the grid of a mask: (n, 3) voxel indices, (n,) kinds, inclusive (6,) box."""

    points: np.ndarray
    kinds: np.ndarray
    box: np.ndarray | None


class Object:
    """An object to ask for.

    Args:
      mask: where it is. spacing_mm: (z, y, x) of a voxel.

    Attributes:
      tight: its box. voxels: its size.
    """

    def __init__(self, mask: Bool[np.ndarray, "z y x"], spacing_mm: Sequence[float]):
        self.mask, self.spacing_mm = mask, tuple(spacing_mm)
        self._inside = np.flatnonzero(mask)
        self.voxels = len(self._inside)
        self.tight = draw.box(mask)

    def asked(self, row: Row, rng: np.random.Generator) -> Drawn:
        """Prompts of a row. Of one generator state, every row gets the same random numbers."""
        for_box, for_points = rng.random(6), rng.random(SLOTS)
        points, kinds = self.points(for_points, row.positives, row.negatives)
        box = None
        if row.box:
            size = self.mask.shape
            box = draw.jitter(for_box, self.tight, size, row.jitter, row.amount, self.spacing_mm)
        return Drawn(points, kinds, box)

    def points(
        self, uniform: Float[np.ndarray, " slots"], positive: int, negative: int
    ) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, " n"]]:
        """Those of `draw.points`, without arrays of the mask's size; without empty slots."""
        total, size = self.voxels, self.mask.size
        negative = negative if total < size else 0
        positive = positive if total else 0

        def ranks(first: int, count: int, of: int) -> np.ndarray:
            return np.minimum((uniform[first : first + count] * of).astype(np.int64), of - 1)

        inside = self._inside[ranks(0, positive, total)]
        # the r-th voxel outside has r voxels outside before it, and as many inside as come earlier
        before = self._inside - np.arange(total)
        rank = ranks(positive, negative, size - total)
        outside = rank + np.searchsorted(before, rank, side="right")
        flat = np.concatenate([inside, outside]).astype(np.int64)
        places = np.stack(np.unravel_index(flat, self.mask.shape), -1).astype(np.float64)
        return places, np.array([POSITIVE] * positive + [NEGATIVE] * negative, np.int64)
