"""Regions of a scan that nobody annotated, from its intensities alone.

In: an image (z, y, x). Out: ids of regions on its grid. Source: the pseudo labels of SegVol's
released code, after Felzenszwalb and Huttenlocher's graph-based segmentation: neighbours whose
smoothed intensities are alike belong together, small regions join the most alike neighbour. There
the edges are walked in Python (hours per scan); here both steps are compiled graph algorithms:
merging below a threshold leaves connected components, and of all edges between them only those of
the minimum spanning tree can join small ones.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Integer
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from medjax.errors import UsageError
from medjax.prepare import frame

NEIGHBOURS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (0, 1, -1))  # (z, y, x), one way each


@dataclasses.dataclass(frozen=True)
class Settings:
    """How regions are found; the defaults are the published ones, but for `most` and `largest`.

    Attributes:
      size: (z, y, x) voxels in which they are found; smaller scans keep their own.
      sigma: of the smoothing, in these voxels. percentile: of the differences between neighbours
        that are not 0; smaller differences join.
      joined: voxels, of the whole size, below which a region joins another one.
      share: of the scan, below which a region is left out. largest: share above which it is: air
        and the rest of the body are no objects. most: number of regions, the largest ones.

    Raises: `UsageError` for numbers that cannot be used.
    """

    size: tuple[int, int, int] = (32, 256, 256)
    sigma: float = 0.8
    percentile: float = 25.0
    joined: int = 1000
    share: float = 0.001
    largest: float = 0.5
    most: int = 32

    def __post_init__(self):
        fine = 0 <= self.share < self.largest <= 1 and 0 < self.percentile < 100
        if not fine or min(self.size) < 1 or self.most < 1 or self.sigma < 0:
            raise UsageError(
                "unusable settings of regions",
                found=dataclasses.asdict(self),
                expected="0 <= share < largest <= 1, a percentile, and at least one region",
            )


def regions(
    image: Float[np.ndarray, "z y x"], settings: Settings = Settings()
) -> Int[np.ndarray, "z y x"]:
    """Ids of regions, 1 for the largest; 0 where there is none."""
    size = tuple(min(n, m) for n, m in zip(image.shape, settings.size, strict=True))
    small = ndimage.gaussian_filter(frame.shrink(image, size), settings.sigma)
    joined = settings.joined * np.prod(size) / np.prod(settings.size)
    found = joined_up(small, settings.percentile, joined)
    return kept(frame.shrink_ids(found, image.shape), settings)


def edges(
    image: Float[np.ndarray, "z y x"],
) -> tuple[Int[np.ndarray, " e"], Int[np.ndarray, " e"], Float[np.ndarray, " e"]]:
    """(first voxel, second voxel, difference) of all neighbours, as flat indices."""
    index = np.arange(image.size, dtype=np.int32).reshape(image.shape)
    first, second = [], []
    for step in NEIGHBOURS:
        pairs = [_cut(n, s) for n, s in zip(image.shape, step, strict=True)]
        first.append(index[tuple(a for a, _ in pairs)].ravel())
        second.append(index[tuple(b for _, b in pairs)].ravel())
    a, b = np.concatenate(first), np.concatenate(second)
    flat = image.ravel()
    return a, b, np.abs(flat[a] - flat[b])


def _cut(n: int, step: int) -> tuple[slice, slice]:
    if step < 0:
        return slice(-step, n), slice(0, n + step)
    return slice(0, n - step), slice(step, n)


def joined_up(
    image: Float[np.ndarray, "z y x"], percentile: float, joined: float
) -> Int[np.ndarray, "z y x"]:
    """Ids from 0 of regions, every voxel in one.

    Args:
      percentile: of the differences that are not 0, below which neighbours belong together.
      joined: regions with fewer voxels join their neighbour over the smallest difference.
    """
    a, b, cost = edges(image)
    if not cost.any():
        return np.zeros(image.shape, np.int32)
    close = cost < np.percentile(cost[cost > 0], percentile)
    graph = sparse.coo_matrix(
        (np.ones(close.sum(), np.int8), (a[close], b[close])), (image.size,) * 2
    )
    count, label = csgraph.connected_components(graph, directed=False)
    one, other = label[a[~close]], label[b[~close]]
    between = one != other
    one, other, cost = one[between], other[between], cost[~close][between]
    one, other = np.minimum(one, other), np.maximum(one, other)
    order = np.lexsort((cost, other, one))  # of each pair the smallest difference
    one, other, cost = one[order], other[order], cost[order]
    new = np.ones(len(one), bool)
    new[1:] = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    graph = sparse.coo_matrix((cost[new], (one[new], other[new])), (count, count))
    tree = csgraph.minimum_spanning_tree(graph.tocsr()).tocoo()
    order = np.argsort(tree.data, kind="stable")
    owner = _unite(tree.row[order], tree.col[order], np.bincount(label, minlength=count), joined)
    _, dense = np.unique(owner[label], return_inverse=True)
    return dense.reshape(image.shape).astype(np.int32)


def _unite(
    one: Sequence[int] | np.ndarray,
    other: Sequence[int] | np.ndarray,
    sizes: np.ndarray,
    smallest: float,
) -> np.ndarray:
    """Component -> the one it belongs to, after joining pairs, in order, of which one is small."""
    parent, size = list(range(len(sizes))), sizes.tolist()

    def top(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    for a, b in zip(one, other, strict=True):
        a, b = top(int(a)), top(int(b))
        if a != b and min(size[a], size[b]) < smallest:
            parent[b] = a
            size[a] += size[b]
    return np.array([top(k) for k in range(len(parent))])


def kept(ids: Int[np.ndarray, "z y x"], settings: Settings) -> Int[np.ndarray, "z y x"]:
    """The regions that are objects, smooth and in one piece, 1 for the largest."""
    counts = np.bincount(ids.ravel())
    low, high = settings.share * ids.size, settings.largest * ids.size
    order = np.argsort(-counts, kind="stable").tolist()
    fitting = [k for k in order if low <= counts[k] <= high]
    boxes = ndimage.find_objects(ids + 1)
    found = np.zeros(ids.shape, np.int32)
    number = 0
    for k, cut, mask in _smooth(ids, fitting, boxes):
        if np.count_nonzero(mask) < max(1, low) or number == settings.most:
            continue
        number += 1
        inside = found[cut]
        inside[mask & (ids[cut] == k)] = number
    return found


def _smooth(
    ids: np.ndarray, chosen: Sequence[int], boxes: Sequence[tuple[slice, ...]]
) -> Iterator[tuple[int, tuple[slice, ...], Bool[np.ndarray, "z y x"]]]:
    """(id, box, mask) after opening and closing, the largest piece of each."""
    for k in chosen:
        cut = boxes[k]
        mask = np.pad(ids[cut] == k, 1)
        thin = tuple(n <= 3 for n in mask.shape)  # one slice with its margins: opened in the plane
        shape = ndimage.generate_binary_structure(3, 1)
        for axis in range(3):
            if thin[axis]:
                shape = shape & (np.abs(np.indices((3, 3, 3))[axis] - 1) == 0)
        mask = ndimage.binary_closing(ndimage.binary_opening(mask, shape), shape)
        pieces, count = ndimage.label(mask)
        if count:
            sizes = np.bincount(pieces.ravel())[1:]
            mask = pieces == 1 + int(sizes.argmax())
        yield k, cut, mask[1:-1, 1:-1, 1:-1]


def pasted(
    found: Int[np.ndarray, "z y x"], label: Integer[np.ndarray, "z y x"] | None
) -> Int[np.ndarray, "z y x"]:
    """Regions with those of a reference on top, as further regions without a name."""
    if label is None:
        return found
    out, number = found.astype(np.int32), int(found.max())
    for value in np.unique(label[label > 0]):
        number += 1
        out[label == value] = number
    return out
