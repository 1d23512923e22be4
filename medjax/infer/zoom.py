"""Zooming in: where to look at full resolution, and what each window is asked there.

In: what was found in the overview, on the network's grid, and the prompts. Out: the region around
it, windows over the region, and the prompts as one window sees them. Pure numpy; knows no network.

Rules of the published SegVol: the region is the bounding box of what was found, enlarged to the
window; windows overlap by half; a box that was given is used if one window covers the region, else
the box of what was found in the window. What is repaired is a word of `Settings`.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from medjax.errors import UsageError, did_you_mean
from medjax.infer.windows import padding, starts
from medjax.prepare.frame import IMAGES, SCORES
from medjax.prompts import draw
from medjax.prompts.types import NEGATIVE, NO_TEXT, POSITIVE, SLOTS

REDRAWN = 5  # points of a window, in the published code
WORDS = {
    "zoom": ("in", "out"),
    "roi": ("prediction", "box", "union"),
    "blend": ("constant", "gaussian"),
    "scores": SCORES,
    "overview": IMAGES,
    "points": ("redraw", "own"),
    "empty": ("mask", "encode"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an object is found.

    Attributes:
      zoom: "in": windows at full resolution around what the overview shows; "out": the overview
        only.
      roi: what the windows cover: the "prediction" of the overview, the "box" of the prompt, or
        the "union".
      overlap: share of a window that the next one covers. blend: "constant" or "gaussian" weights.
      scores: how the scores of the overview reach the grid: "trilinear", or "nearest" as published.
      overview: how the image is shrunk: "area" as in training, or "nearest" as published.
      pad: the overview of a volume that is smaller than the frame gets margins.
      map_pad: prompts move with an image that is padded to the window; published: they do not.
      points: of a window: "redraw", five positive ones drawn from the frame voxels of those given,
        as published, or the given ones ("own").
      empty: a window without a positive point or a box: "mask" leaves the prompt out, "encode"
        gives the coordinates -1, as published.
      both: a box and points of one object may be used together; published: they may not.
      max_windows: per object; more are refused.
      seed: of points that are drawn again.

    Raises: `UsageError` for unknown words.
    """

    zoom: str = "in"
    roi: str = "prediction"
    overlap: float = 0.5
    blend: str = "constant"
    scores: str = "trilinear"
    overview: str = "area"
    pad: bool = True
    map_pad: bool = True
    points: str = "redraw"
    empty: str = "mask"
    both: bool = True
    max_windows: int = 128
    seed: int = 0

    def __post_init__(self):
        for name, known in WORDS.items():
            value = getattr(self, name)
            if value not in known:
                raise UsageError(f"unknown {name} {value!r}", fix=did_you_mean(str(value), known))


@dataclasses.dataclass(frozen=True)
class Asked:
    """One object, as prompts on some grid.

    Attributes:
      points: (n, 3) voxel indices (z, y, x). kinds: (n,), positive or negative.
      box: (6,) inclusive, or None. text: row of the table of texts. vector: of a free text.
      low: logits of the round before at the decoder's resolution, or None.
      own: windows use the points where they are, whatever the settings say.
    """

    points: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3)))
    kinds: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    box: np.ndarray | None = None
    text: int = NO_TEXT
    vector: np.ndarray | None = None
    low: np.ndarray | None = None
    own: bool = False

    @property
    def empty(self) -> bool:
        """Whether it asks for nothing."""
        return not len(self.points) and self.box is None and self.text == NO_TEXT


@dataclasses.dataclass(frozen=True)
class Region:
    """A part of the grid that windows cover.

    Attributes:
      low: first voxel. shape: its size. window: size of a window.
      places: first voxels of the windows in the padded region.
      margins: (before, after) voxels of padding along each axis.
    """

    low: tuple[int, int, int]
    shape: tuple[int, int, int]
    window: tuple[int, int, int]
    places: tuple[tuple[int, int, int], ...]
    margins: tuple[tuple[int, int], ...]

    def start(self, place: Sequence[int]) -> tuple[int, int, int]:
        """First voxel of a window on the grid; negative in the padding."""
        return tuple(a + p - b for a, p, (b, _) in zip(self.low, place, self.margins, strict=True))

    def covers(self, found: Bool[np.ndarray, "z y x"]) -> bool:
        """Whether a mask on the grid has a voxel, and none outside the region."""
        box = draw.box(found)
        if box[0] < 0:
            return False
        ends = zip(self.low, self.shape, box[:3], box[3:], strict=True)
        return all(a <= first and last < a + n for a, n, first, last in ends)

    def inside(self, place: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """(of the region, of the window) the voxels that both have."""
        pairs = []
        for p, (before, _), n, w in zip(place, self.margins, self.shape, self.window, strict=True):
            first, last = max(0, p - before), min(n, p - before + w)
            pairs.append((slice(first, last), slice(first - p + before, last - p + before)))
        return tuple(a for a, _ in pairs), tuple(b for _, b in pairs)


def bounds(
    found: Bool[np.ndarray, "z y x"], window: Sequence[int]
) -> tuple[tuple[int, int, int], tuple[int, int, int]] | None:
    """The box of a mask, enlarged to a window along each axis where it is smaller.

    (window - extent) // 2 voxels on both sides, cut off at the first voxel and at the size (which
    is one too many, as published; slices do not mind).

    Returns: (low, high), both inclusive; None for an empty mask.
    """
    tight = draw.box(found)
    if tight[0] < 0:
        return None
    return enlarged(tight.astype(int), found.shape, window)


def enlarged(
    box: np.ndarray, shape: Sequence[int], window: Sequence[int]
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """`bounds` of an inclusive box (6,)."""
    low, high = [], []
    for first, last, n, w in zip(box[:3], box[3:], shape, window, strict=True):
        extent = int(last) - int(first) + 1
        more = (w - extent) // 2 if extent < w else 0
        low.append(max(0, int(first) - more))
        high.append(min(int(n), int(last) + more))
    return tuple(low), tuple(high)


def region(
    found: Bool[np.ndarray, "z y x"],
    box: np.ndarray | None,
    window: Sequence[int],
    settings: Settings,
) -> Region | None:
    """Where to look at full resolution; None where there is nothing to look at.

    Args:
      found: of the overview, on the grid. box: of the prompt on the grid, inclusive.
    """
    tight = draw.box(found)
    boxes = [] if tight[0] < 0 else [tight]
    if box is not None and settings.roi != "prediction":
        given = np.clip(np.round(box), 0, np.tile(np.array(found.shape) - 1, 2))
        boxes = [given] if settings.roi == "box" else [*boxes, given]
    if not boxes:
        return None
    whole = np.concatenate(
        [np.min([b[:3] for b in boxes], 0), np.max([b[3:] for b in boxes], 0)]
    ).astype(int)
    low, high = enlarged(whole, found.shape, window)
    shape = tuple(min(h + 1, n) - a for a, h, n in zip(low, high, found.shape, strict=True))
    margins = tuple(padding(shape, window))
    padded = [n + sum(m) for n, m in zip(shape, margins, strict=True)]
    axes = [starts(n, w, settings.overlap) for n, w in zip(padded, window, strict=True)]
    return Region(low, shape, tuple(window), tuple(itertools.product(*axes)), margins)


def in_window(
    asked: Asked,
    found: Bool[np.ndarray, "z y x"],
    area: Region,
    place: Sequence[int],
    settings: Settings,
    voxel: np.ndarray,
) -> Asked:
    """The prompts of an object as one window sees them.

    Args:
      asked: on the grid. found: of the overview, on the grid. place: of the window.
      voxel: (3,) voxels of the grid per voxel of the overview, for points that are drawn again.

    Returns: `Asked` in voxels of the window; without a box or points where there are none.
    """
    start = np.array(area.start(place), float)
    before = np.array([b for b, _ in area.margins], float)
    shift = start if settings.map_pad else start + before
    size = np.array(area.window, float)
    predicted = _predicted(found, area, place)
    points, kinds, box = asked.points[:0], asked.kinds[:0], None
    if len(asked.points):
        points, kinds = _points(asked, shift, size, settings, voxel, tuple(start))
        box = predicted
    if asked.box is not None:
        box = predicted
        if len(area.places) == 1:
            low = np.maximum(np.round(asked.box[:3]) - shift, 0)
            high = np.minimum(np.round(asked.box[3:]) - shift, size - 1)
            box = np.concatenate([low, high]) if np.all(low <= high) else None
    return dataclasses.replace(asked, points=points, kinds=kinds, box=box, low=None)


def _predicted(
    found: Bool[np.ndarray, "z y x"], area: Region, place: Sequence[int]
) -> np.ndarray | None:
    """The box of what was found in a window, in its voxels."""
    of_region, of_window = area.inside(place)
    cut = tuple(slice(a + s.start, a + s.stop) for a, s in zip(area.low, of_region, strict=True))
    box = draw.box(found[cut])
    if box[0] < 0:
        return None
    return box + np.tile([s.start for s in of_window], 2)


def _points(
    asked: Asked,
    shift: np.ndarray,
    size: np.ndarray,
    settings: Settings,
    voxel: np.ndarray,
    start: tuple,
) -> tuple[np.ndarray, np.ndarray]:
    """Points in a window, and their kinds; none without a positive one."""
    own = np.round(asked.points) - shift
    inside = np.all((own >= 0) & (own < size), 1)
    positive = asked.kinds == POSITIVE
    negatives = own[inside & ~positive]
    positives = own[inside & positive]
    if settings.points == "redraw" and not asked.own:
        cells = np.floor((asked.points[positive] + 0.5) / voxel)
        low = np.maximum(np.ceil(cells * voxel - 0.5) - shift, 0)
        high = np.minimum(np.ceil((cells + 1) * voxel - 0.5) - 1 - shift, size - 1)
        usable = np.all(low <= high, 1)
        rng = np.random.default_rng([settings.seed, *(int(s) % (1 << 32) for s in start)])
        if usable.any():
            low, high = low[usable], high[usable]
            weight = np.prod(high - low + 1, 1)
            which = rng.choice(len(low), REDRAWN, p=weight / weight.sum())
            positives = rng.integers(low[which].astype(int), high[which].astype(int) + 1)
        else:
            positives = own[:0]
    if not len(positives):
        return own[:0], asked.kinds[:0]
    points = np.concatenate([positives, negatives])[:SLOTS]
    kinds = np.array([POSITIVE] * len(positives) + [NEGATIVE] * len(negatives))[:SLOTS]
    return points, kinds
