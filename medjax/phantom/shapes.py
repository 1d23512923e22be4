"""Drawing tools of the phantom: signed distances, smooth noise, and the canvas.

In: point arrays in millimetres (x to the patient's right, y to anterior, z to superior) and a numpy
Generator. Out: float32 signed distances (negative inside) and a canvas with one tissue code per
fine voxel. All values are float32; distances are exact for capsules and first-order for ellipsoids
(the usual k0 (k0 - 1) / k1 estimate), which suffices for painting and partial volume.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

Number = float | int
Numbers = Sequence[float | int | np.number] | np.ndarray
Point = Numbers  # x, y, z in mm
Segment = tuple[Point, Point, Number, Number]  # start, end, start radius, end radius
Box = tuple[slice, slice, slice]
Points = tuple[np.ndarray, np.ndarray, np.ndarray]
FAR = 1e3


def smooth_min(a: np.ndarray, b: np.ndarray | Number, blend: Number) -> np.ndarray:
    """Union of two signed distances with an edge rounded over `blend` mm."""
    h = np.maximum(blend - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h * (0.25 / blend)


def smooth_max(a: np.ndarray, b: np.ndarray | Number, blend: Number) -> np.ndarray:
    """Intersection of two signed distances, rounded edge; `smooth_max(a, -b)` is a minus b."""
    h = np.maximum(blend - np.abs(a - b), 0)
    return np.maximum(a, b) + h * h * (0.25 / blend)


def step(t: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def bump(t: np.ndarray) -> np.ndarray:
    """A bell of height 1 and standard deviation about 0.7."""
    return np.exp(-(t * t))


def ellipsoid(p: Points, centre: Point, radii: Point) -> np.ndarray:
    """Signed distance (mm, first order) to an axis-aligned ellipsoid."""
    k0 = k1 = np.float32(0)
    for q, c, r in zip(p, centre, radii, strict=True):
        scaled = (q - float(c)) * (1 / float(r))
        k0 = k0 + scaled * scaled
        scaled = scaled * (1 / float(r))
        k1 = k1 + scaled * scaled
    nothing = 1e-8  # avoids 0 / 0 at the centre
    k0, k1 = np.sqrt(k0 + nothing), np.sqrt(k1 + nothing / float(min(radii)) ** 2)
    return k0 * (k0 - 1) / k1


def turned(
    p: Points, centre: Point, about_x: Number = 0.0, about_y: Number = 0.0, about_z: Number = 0.0
) -> Points:
    """Coordinates in a frame at `centre`, rotated by angles (degrees) about z, then y, then x."""
    x, y, z = (q - float(c) for q, c in zip(p, centre, strict=True))
    for angle, axis in ((about_z, 2), (about_y, 1), (about_x, 0)):
        if angle:
            c, s = float(np.cos(np.deg2rad(angle))), float(np.sin(np.deg2rad(angle)))
            if axis == 2:
                x, y = c * x + s * y, c * y - s * x
            elif axis == 1:
                z, x = c * z + s * x, c * x - s * z
            else:
                y, z = c * y + s * z, c * z - s * y
    return x, y, z


def curve(t: np.ndarray, knots: Sequence[tuple[Number, Number]]) -> np.ndarray:
    """A smooth function of one coordinate through (position, value) knots, constant beyond them.

    It is tabulated every 0.5 mm.
    """
    at, value = zip(*knots, strict=True)
    fine = np.arange(at[0], at[-1] + 0.5, 0.5)
    table = np.interp(fine, at, value)
    width = max(
        3, int(0.5 * (at[-1] - at[0]) / len(at))
    )  # a box as wide as a quarter of the knot distance rounds the corners
    table = np.convolve(
        np.pad(table, width, mode="edge"), np.full(2 * width + 1, 1 / (2 * width + 1)), "valid"
    ).astype(np.float32)
    return np.take(table, np.clip((t - at[0]) * 2, 0, len(table) - 1).astype(np.int32))


@dataclasses.dataclass(frozen=True)
class Path:
    """A tube: `points` (n, 3) mm, `radii` (n,) mm; piecewise linear unless from `Path.smooth`."""

    points: np.ndarray
    radii: np.ndarray

    @classmethod
    def smooth(cls, rows: Iterable[Numbers], per_span: int = 4) -> "Path":
        """A Catmull-Rom curve through rows of (x, y, z, radius)."""
        rows = np.asarray(list(rows), np.float64)
        padded = np.concatenate([2 * rows[:1] - rows[1:2], rows, 2 * rows[-1:] - rows[-2:-1]])
        t = np.linspace(0, 1, per_span, endpoint=False)[:, None]
        spans = []
        for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
            spans.append(
                0.5
                * (
                    2 * b
                    + (c - a) * t
                    + (2 * a - 5 * b + 4 * c - d) * t**2
                    + (3 * b - a - 3 * c + d) * t**3
                )
            )
        drawn = np.concatenate([*spans, rows[-1:]])
        return cls(drawn[:, :3], np.maximum(drawn[:, 3], 0.3))

    def segments(self) -> list[Segment]:
        """(start, end, start radius, end radius) of each piece, as Python floats."""
        points, radii = self.points.tolist(), self.radii.tolist()
        return list(zip(points, points[1:], radii, radii[1:], strict=False))


def jitter(
    rng: np.random.Generator, rows: Sequence[Numbers], shift: Number, radius: Number = 0.08
) -> np.ndarray:
    """Rows of (x, y, z, radius): knots moved by about `shift` mm, radii scaled together."""
    rows = np.asarray(rows, float)
    return rows * [1, 1, 1, 1 + radius * float(np.clip(rng.normal(), -2, 2))] + rng.normal(
        size=rows.shape
    ) * [shift, shift, shift, 0]


def capsule(p: Points, a: Point, b: Point, ra: Number, rb: Number) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance (mm) to a tapered capsule, and the position along its axis in [0, 1]."""
    ab = [float(q - o) for o, q in zip(a, b, strict=True)]
    inverse = 1 / max(sum(v * v for v in ab), 1e-6)
    rel = [q - float(o) for q, o in zip(p, a, strict=True)]
    t = np.clip((rel[0] * ab[0] + rel[1] * ab[1] + rel[2] * ab[2]) * inverse, 0, 1)
    rel = [r - v * t for r, v in zip(rel, ab, strict=True)]
    return np.sqrt(rel[0] * rel[0] + rel[1] * rel[1] + rel[2] * rel[2]) - (ra + (rb - ra) * t), t


def noise(rng: np.random.Generator, shape: Sequence[int], cells: Numbers) -> np.ndarray:
    """Gaussian noise of unit variance, correlated over `cells` voxels per axis; float32 (shape).

    Cubic B-splines on a random lattice.
    """
    taps = [_spline(n, c) for n, c in zip(shape, cells, strict=True)]
    lattice = rng.standard_normal([first[-1] + 4 for first, _ in taps], dtype=np.float32)
    for axis in (2, 1, 0):
        first, weights = taps[axis]
        lattice = np.moveaxis(lattice, axis, 0)
        drawn = np.empty((len(first), *lattice.shape[1:]), np.float32)
        for k, (start, w) in enumerate(
            zip(first, weights, strict=True)
        ):  # no matrix product: BLAS threads would compete with ours
            np.multiply(lattice[start], w[0], out=drawn[k])
            for tap in (1, 2, 3):
                drawn[k] += lattice[start + tap] * w[tap]
        lattice = np.moveaxis(drawn, 0, axis)
    return lattice


def _spline(n: int, cell: Number) -> tuple[list[int], np.ndarray]:
    """First lattice point and (n, 4) cubic B-spline weights of each of n voxels.

    The weights are scaled to keep unit variance on average.
    """
    at = (np.arange(n) + 0.5) / max(cell, 1.0)
    first = at.astype(int)
    t = (at - first)[:, None]
    w = np.concatenate(
        [(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3], 1
    )
    return first.tolist(), (w / np.sqrt(np.mean(np.sum(w**2, 1)))).astype(np.float32)


class Canvas:
    """Fine voxels with a tissue code each; a shape is evaluated only in the box that it can touch.

    Attributes:
      x, y, z: (k, j, i) float32 patient coordinates in mm of each fine voxel, already tilted,
        scaled and warped.
      tissue: (k, j, i) uint8.
      occupied: (k, j, i) float32, signed distance to the nearest solid organ painted so far (far
        away: 1000).
      rough, fine: (k, j, i) float32 unit noise of about 25 mm and 9 mm, shared by all surfaces.
    """

    def __init__(self, points: Points, rough: np.ndarray, fine: np.ndarray):
        self.x, self.y, self.z = points
        self.rough, self.fine = rough, fine
        self.tissue = np.zeros(self.x.shape, np.uint8)
        self.occupied = np.full(self.x.shape, FAR, np.float32)
        others = ((1, 2), (0, 2), (0, 1))
        self._least = np.concatenate(
            [[q.min(o) for q in points] for o in others], 1
        )  # (x y z, slices + rows + columns)
        self._most = np.concatenate([[q.max(o) for q in points] for o in others], 1)
        self._ends = np.cumsum((0, *self.x.shape)).tolist()

    def box(self, low: Point, high: Point) -> Box | None:
        """Slices that hold all voxels with coordinates between two corners; None if there are none.

        An oblique grid may add other voxels.
        """
        low, high = np.array(low, np.float32)[:, None], np.array(high, np.float32)[:, None]
        touched = ((self._least <= high) & (self._most >= low)).all(0)
        out = []
        for start, stop in itertools.pairwise(self._ends):
            hit = touched[start:stop].nonzero()[0]
            if not len(hit):
                return None
            out.append(slice(int(hit[0]), int(hit[-1]) + 1))
        return tuple(out)

    def points(self, box: Box) -> Points:
        """The coordinates inside a box (views)."""
        return self.x[box], self.y[box], self.z[box]

    def paint(self, box: Box, inside: np.ndarray, tissue: int, over: Sequence[int] | None = None):
        """Sets the tissue where `inside` (bool, the box' shape) and the tissue is in `over`."""
        target = self.tissue[box]
        if over is not None:
            allowed = np.zeros(256, bool)
            allowed[list(over)] = True
            inside = inside & allowed[target]
        target[inside] = tissue

    def solid(self, box: Box, distance: np.ndarray, tissue: int, over: Sequence[int] | None = None):
        """Paints where the distance is negative and keeps bowel out of it."""
        np.minimum(self.occupied[box], distance, out=self.occupied[box])
        self.paint(box, distance < 0, tissue, over)

    def make_way(
        self, box: Box, distance: np.ndarray, gap: Number, blend: Number = 3
    ) -> np.ndarray:
        """Subtracts the solid organs painted so far, plus `gap` mm of fat, from a shape."""
        return smooth_max(distance, gap - self.occupied[box], blend)

    def organ(
        self,
        path: Path,
        tissue: int,
        over: Sequence[int] | None = None,
        bumps: np.ndarray | None = None,
    ):
        """Paints a tube-shaped organ; `bumps` (the canvas' shape, mm) roughens its surface."""
        drawn = self.tube(path)
        if drawn is not None:
            box, d, _, _ = drawn
            self.solid(box, d if bumps is None else d + bumps[box], tissue, over)

    def tubes(
        self,
        segments: Iterable[Segment],
        tissue: int,
        over: Sequence[int] | None = None,
        reserve: bool = False,
    ):
        """Paints capsules (start, end, radii); `reserve` keeps bowel out of them."""
        for a, b, ra, rb in segments:
            r = max(ra, rb) + (4 if reserve else 0)
            box = self.box(
                [min(u, v) - r for u, v in zip(a, b, strict=True)],
                [max(u, v) + r for u, v in zip(a, b, strict=True)],
            )
            if box is None:
                continue
            d, _ = capsule(self.points(box), a, b, ra, rb)
            if reserve:
                np.minimum(self.occupied[box], d, out=self.occupied[box])
            self.paint(box, d < 0, tissue, over)

    def tube(
        self, path: Path, margin: Number = 12
    ) -> tuple[Box, np.ndarray, np.ndarray, np.ndarray] | None:
        """Signed distance to a whole tube in its box, and the position of the nearest axis point.

        The position is the arc length (mm) and the height (y) above the axis.
        """
        reach = float(path.radii.max()) + margin
        box = self.box((path.points.min(0) - reach).tolist(), (path.points.max(0) + reach).tolist())
        if box is None:
            return None
        shape = self.x[box].shape
        distance = np.full(shape, FAR, np.float32)
        arc, height = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        travelled = 0.0
        for a, b, ra, rb in path.segments():
            length = float(np.linalg.norm(np.subtract(b, a)))
            r = max(ra, rb) + margin
            part = self.box(
                [min(u, v) - r for u, v in zip(a, b, strict=True)],
                [max(u, v) + r for u, v in zip(a, b, strict=True)],
            )
            if part is not None:
                here = tuple(
                    slice(max(p.start, o.start) - o.start, min(p.stop, o.stop) - o.start)
                    for p, o in zip(part, box, strict=True)
                )
                q = tuple(v[box][here] for v in (self.x, self.y, self.z))
                d, t = capsule(q, a, b, ra, rb)
                closer = d < distance[here]
                arc[here][closer] = (travelled + length * t)[closer]
                height[here][closer] = (q[1] - (a[1] + (b[1] - a[1]) * t))[closer]
                distance[here] = np.minimum(distance[here], d)
            travelled += length
        return box, distance, arc, height


def branching(
    rng: np.random.Generator,
    start: Point,
    direction: Point,
    radius: Number,
    length: Number,
    levels: int,
    inside: Callable[[np.ndarray], bool],
) -> list[Segment]:
    """A random vessel tree: each stem bends, then splits into two thinner ones.

    Murray's law: r^3 is preserved. Stems that leave the organ are dropped.
    """
    out, queue = (
        [],
        [(np.asarray(start, float), np.asarray(direction, float), radius, length, levels)],
    )
    while queue:
        at, way, r, reach, left = queue.pop()
        way = way / np.linalg.norm(way)
        for _ in range(3):
            way = way + 0.22 * rng.standard_normal(3)
            way = way / np.linalg.norm(way)
            end = at + way * reach / 3
            if not inside(end):
                break
            out.append((at.tolist(), end.tolist(), r, 0.93 * r))
            at, r = end, 0.93 * r
        else:
            if left > 0:
                side = np.cross(way, rng.standard_normal(3))
                side = side / np.linalg.norm(side)
                share = rng.uniform(0.35, 0.65)
                for sign in (1, -1):
                    share = 1 - share
                    queue.append(
                        (
                            at,
                            way + sign * rng.uniform(0.45, 0.9) * side,
                            r * share ** (1 / 3),
                            reach * rng.uniform(0.65, 0.85),
                            left - 1,
                        )
                    )
    return out
