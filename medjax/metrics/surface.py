"""Distances between two surfaces in millimetres: HD95, NSD and ASSD, weighted by surface area.

In: two bool masks on one grid and its spacing. Out: numbers in mm or shares of surface.
Definition (Nikolov et al., arXiv 1809.04430): the surface lives on the half-voxel grid, one
*surfel* for every 2 x 2 x 2 neighbourhood that holds both inside and outside voxels; its area is
that of the marching-cubes facets with vertices at edge midpoints. Distances run between surfels,
and every quantile, share and mean counts a surfel by its area, so anisotropic voxels do not distort
the result.

The 256 facet areas are derived here, not listed: on each face of the cube the crossed edges are
joined (an ambiguous face cuts off the corners in the minority), the segments close to loops, and
each loop is triangulated as the fan of largest area on the unit cube.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage
from scipy.spatial import cKDTree

from medjax.errors import MetricError

DEFINITION = (
    "surfels with areas on the half-voxel grid; HD95 is the larger of the two directed "
    "area-weighted 95 % quantiles"
)
TREE_COST = 5  # voxels of a distance map that cost about as much as one look-up in the search tree
CORNERS = np.array(
    list(itertools.product((0, 1), repeat=3))
)  # bit i of a neighbourhood code is corner i = 4 z + 2 y + x


@dataclasses.dataclass(frozen=True)
class SurfaceDistances:
    """Directed distances of two surfaces, each list in ascending order.

    Attributes:
      from_reference_mm / from_prediction_mm: distance of every surfel to the other surface.
      reference_area_mm2 / prediction_area_mm2: area of the same surfels.
    """

    from_reference_mm: np.ndarray
    reference_area_mm2: np.ndarray
    from_prediction_mm: np.ndarray
    prediction_area_mm2: np.ndarray


def surface_distances(
    reference: Bool[np.ndarray, "z y x"],
    prediction: Bool[np.ndarray, "_ _ _"],
    spacing_mm: Sequence[float],
    image_shape: Sequence[int] | None = None,
) -> SurfaceDistances:
    """All surfel distances between two non-empty masks.

    Args:
      reference, prediction: masks on the same grid, or the same crop of it that holds all of both.
      spacing_mm: voxel size in array order.
      image_shape: of the whole image, for masks that are crops. An axis of extent 1 in the image is
        taken as a slice: its contour counts, its faces do not.

    Raises: `MetricError` if a mask is empty (see `aggregate` for what that is worth) or the shapes
      differ.
    """
    if reference.shape != prediction.shape:
        raise MetricError(
            "masks of different shape", found=prediction.shape, expected=reference.shape
        )
    if not reference.any() or not prediction.any():
        raise MetricError(
            "a surface distance needs two non-empty masks",
            fix="apply the rules for empty cases first",
        )
    spacing = tuple(float(s) for s in spacing_mm)
    box = _joint_box(reference, prediction)
    codes = [
        _codes(mask[box], tuple(image_shape or reference.shape)) for mask in (reference, prediction)
    ]
    borders = [np.flatnonzero((code != 0) & (code != 255)) for code in codes]
    areas = [
        surfel_areas(spacing)[code.ravel()[border]]
        for code, border in zip(codes, borders, strict=True)
    ]
    distances = [_distances(borders[i], borders[1 - i], codes[0].shape, spacing) for i in (0, 1)]
    order = [np.argsort(d, kind="stable") for d in distances]
    return SurfaceDistances(
        distances[0][order[0]], areas[0][order[0]], distances[1][order[1]], areas[1][order[1]]
    )


def _distances(
    source: np.ndarray, target: np.ndarray, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> np.ndarray:
    """Distance in mm from every grid point in `source` to the nearest one in `target`.

    Both are flat indices into `shape`. A search tree visits surfels only and is about ten times
    faster than a distance map of the whole box if the surfaces are near each other; the map is
    faster if they are far apart. A sample of the distances decides; the result is the same.
    """
    result = np.zeros(len(source))
    apart = np.flatnonzero(
        ~np.isin(source, target, assume_unique=True)
    )  # surfels on both surfaces are 0 mm apart
    if not len(apart):
        return result
    here, there = (
        np.stack(np.unravel_index(flat, shape), 1).astype(np.float64)
        for flat in (source[apart], target)
    )
    tree = cKDTree(there * spacing, balanced_tree=False, compact_nodes=False)
    sample, _ = tree.query(here[:: max(1, len(here) // 200)] * spacing)
    steps = float(sample.mean()) / min(spacing)
    if len(apart) * (1 + steps / 8) * TREE_COST > math.prod(shape):
        outside = np.ones(shape, bool)
        outside.ravel()[target] = False
        result[apart] = ndimage.distance_transform_edt(outside, sampling=spacing).ravel()[
            source[apart]
        ]
        return result
    _, nearest = tree.query(here * spacing)
    result[apart] = np.sqrt(
        (((here - there[nearest]) * spacing) ** 2).sum(1)
    )  # from whole voxels, as the distance map computes it
    return result


def hausdorff(distances: SurfaceDistances, percent: float = 95.0) -> float:
    """Robust Hausdorff distance in mm: the larger of the two directed area-weighted quantiles.

    100 gives the plain maximum.
    """
    return max(
        _quantile(distances.from_reference_mm, distances.reference_area_mm2, percent / 100),
        _quantile(distances.from_prediction_mm, distances.prediction_area_mm2, percent / 100),
    )


def surface_dice(distances: SurfaceDistances, tolerance_mm: float = 1.0) -> float:
    """NSD: the share of both surfaces' area within `tolerance_mm` of the other surface."""
    near = (
        distances.reference_area_mm2[distances.from_reference_mm <= tolerance_mm].sum()
        + distances.prediction_area_mm2[distances.from_prediction_mm <= tolerance_mm].sum()
    )
    return float(near / (distances.reference_area_mm2.sum() + distances.prediction_area_mm2.sum()))


def directed_means(distances: SurfaceDistances) -> tuple[float, float]:
    """Area-weighted mean distance (reference to prediction, prediction to reference) in mm."""
    return (
        float(np.average(distances.from_reference_mm, weights=distances.reference_area_mm2)),
        float(np.average(distances.from_prediction_mm, weights=distances.prediction_area_mm2)),
    )


def assd(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance in mm: both surfaces pooled, each surfel by its area."""
    pooled = np.concatenate([distances.from_reference_mm, distances.from_prediction_mm])
    return float(
        np.average(
            pooled,
            weights=np.concatenate([distances.reference_area_mm2, distances.prediction_area_mm2]),
        )
    )


def image_diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Length of the image diagonal in mm: the distance of a missed or invented structure."""
    return float(np.linalg.norm(np.asarray(shape, float) * np.asarray(spacing_mm, float)))


@lru_cache(maxsize=64)
def surfel_areas(spacing_mm: tuple[float, float, float]) -> Float[np.ndarray, "256"]:
    """Area in mm² of each neighbourhood code's facets for voxels of the given size (z, y, x)."""
    z, y, x = spacing_mm
    # Scaling two edge vectors by diag(z, y, x) scales their cross product by the cofactors.
    return np.linalg.norm(_facet_normals() * np.array([y * x, z * x, z * y]), axis=-1).sum(-1)


@lru_cache(maxsize=1)
def _facet_normals() -> Float[np.ndarray, "256 t 3"]:
    """Half cross products (area vectors) of each code's triangles on the unit cube, zero-padded."""
    normals = [[n for loop in _loops(code) for n in _largest_fan(loop)] for code in range(256)]
    table = np.zeros((256, max(map(len, normals)), 3))
    for code, triangles in enumerate(normals):
        table[code, : len(triangles)] = np.reshape(triangles, (-1, 3))
    return table


def _loops(code: int) -> list[np.ndarray]:
    """Closed polygons ((vertices, 3) edge midpoints) between a code's in- and outside."""
    inside = [bool(code >> i & 1) for i in range(8)]
    minority = (
        sum(inside) <= 4
    )  # the corners an ambiguous face isolates: the inside ones, or the outside ones
    neighbours: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for axis, side in itertools.product(range(3), (0, 1)):
        face = [i for i in range(8) if CORNERS[i, axis] == side]
        ring = [face[i] for i in (0, 1, 3, 2)]
        crossed = [
            tuple(sorted(e))
            for e in zip(ring, ring[1:] + ring[:1], strict=True)
            if inside[e[0]] != inside[e[1]]
        ]
        cut = (
            [[e for e in crossed if corner in e] for corner in ring if inside[corner] == minority]
            if len(crossed) == 4
            else [crossed]
        )
        for a, b in (segment for segment in cut if segment):
            neighbours.setdefault(a, []).append(b)
            neighbours.setdefault(b, []).append(a)
    loops = []
    while neighbours:
        edge = min(neighbours)
        loop = []
        while edge is not None:
            loop.append(CORNERS[list(edge)].mean(0))
            edge = next((e for e in neighbours.pop(edge) if e in neighbours), None)
        loops.append(np.array(loop))
    return loops


def _largest_fan(loop: np.ndarray) -> np.ndarray:
    """Area vectors (triangles, 3) of the fan triangulation of largest area."""
    fans = [np.roll(loop, -start, axis=0) for start in range(len(loop))]
    vectors = [0.5 * np.cross(fan[1:-1] - fan[0], fan[2:] - fan[0]) for fan in fans]
    return max(vectors, key=lambda v: round(float(np.linalg.norm(v, axis=-1).sum()), 9))


def _joint_box(a: np.ndarray, b: np.ndarray) -> tuple[slice, slice, slice]:
    """Bounding box of the union of two masks."""
    box = []
    for axis in range(3):
        others = tuple(k for k in range(3) if k != axis)
        used = np.flatnonzero(a.any(others) | b.any(others))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)


def _codes(mask: np.ndarray, image_shape: tuple[int, ...]) -> UInt8[np.ndarray, "z y x"]:
    """Neighbourhood code at every voxel corner of a cropped mask.

    Along an axis of extent 1 in the *image*, the mask is continued, not closed.
    """
    for axis, extent in enumerate(image_shape):
        width = [(0, 0)] * 3
        width[axis] = (0, 1) if extent == 1 else (1, 1)
        mask = np.pad(mask, width, mode="edge" if extent == 1 else "constant")
    codes = mask.view(np.uint8)
    for axis in (
        2,
        1,
        0,
    ):  # neighbours along x, then y, then z: bits 1, 2 and 4 of the corner number
        near, far = (
            codes[(slice(None),) * axis + (part,)] for part in (slice(None, -1), slice(1, None))
        )
        codes = near | (far << np.uint8(1 << (2 - axis)))
    return codes


def _quantile(sorted_distances: np.ndarray, areas: np.ndarray, share: float) -> float:
    """First distance at which the accumulated area reaches `share` of the total."""
    accumulated = np.cumsum(areas)
    index = np.searchsorted(accumulated, share * accumulated[-1])
    return float(sorted_distances[min(int(index), len(areas) - 1)])
