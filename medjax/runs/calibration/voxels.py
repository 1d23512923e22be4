"""Some voxels of a predicted case: their probabilities, and their ids in the reference.

In: blocks of probabilities as `Segmenter.segment` hands them over, and dense ids on the scan's
grid. Out: at most so many voxels, each with the number of voxels that it stands for. Which voxels
does not depend on the blocks: those whose position has the smallest hash. Half of them come from
near an object (a class that the reference has there, or a probability above 0.01), half from the
remainder, so that small classes are seen at all.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Integer

from medjax.infer.packed import Region
from medjax.prepare.geometry import Transform

CLOSE = 0.01  # probability from which a voxel counts as near an object


class Sample:
    """Gathers voxels; an `on_scores` of `Segmenter.segment`.

    Args:
      ids: (z, y, x) dense ids of the reference on the scan's grid. ignore: id of voxels that do not
        count. table: (id, class) classes of an id, for all classes of the label space. known:
        (class,) which of them the reference annotates.
      most: voxels to keep.

    Attributes:
      values: (n, c) float32 probabilities. ids: (n,). weight: (n,) voxels that each stands for.
    """

    def __init__(
        self,
        ids: Integer[np.ndarray, "z y x"],
        ignore: int,
        table: Bool[np.ndarray, "ids c"],
        known: Bool[np.ndarray, " c"],
        most: int,
    ):
        self._reference, self._ignore, self._near = ids, ignore, (table & known).any(-1)
        self._known = known
        self._most = most
        self._parts: list = [None, None]  # far, near: (hash, ids, values)
        self._seen = [0, 0]

    def __call__(
        self, transform: Transform, region: Region, names: Sequence[str], values: np.ndarray
    ) -> None:
        """A region of the cropped canonical grid, (rows, y, x, c), of all classes."""
        ids = transform.image(self._reference)[region]
        near = self._near[ids] | (values[..., self._known] > CLOSE).any(-1)
        for part, chosen in enumerate((~near, near)):
            places = np.flatnonzero(chosen & (ids != self._ignore))
            self._seen[part] += len(places)
            if not len(places):
                continue
            key = hashes(positions(places, ids.shape, region, transform.box_shape))
            first = smallest(key, self._most)
            kept = places[first]
            rows = values.reshape(-1, values.shape[-1])[kept]
            found = key[first], ids.reshape(-1)[kept], np.clip(rows, 0, 1).astype(np.float32)
            if self._parts[part] is not None:
                before = zip(self._parts[part], found, strict=True)
                found = tuple(np.concatenate(pair) for pair in before)
                first = smallest(found[0], self._most)
                found = tuple(one[first] for one in found)
            self._parts[part] = found

    @property
    def ids(self) -> np.ndarray:
        """(n,) dense ids."""
        return np.concatenate([ids for _, ids, _ in self._kept()] or [np.zeros(0, int)])

    @property
    def values(self) -> np.ndarray:
        """(n, c) probabilities."""
        empty = np.zeros((0, len(self._known)), np.float32)
        return np.concatenate([values for _, _, values in self._kept()] or [empty])

    @property
    def weight(self) -> np.ndarray:
        """(n,) float64; their sum is the number of voxels that count."""
        found = [np.full(len(ids), seen / len(ids)) for seen, ids, _ in self._kept()]
        return np.concatenate(found or [np.zeros(0)])

    def _kept(self) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Voxels seen, ids and values of what is far and near; one takes the other's room if there
        is any.
        """
        far, near = (0 if part is None else len(part[0]) for part in self._parts)
        nearby = min(near, max(self._most - self._most // 2, self._most - far))
        sizes = (min(far, self._most - nearby), nearby)
        return [
            (seen, part[1][:size], part[2][:size])
            for seen, part, size in zip(self._seen, self._parts, sizes, strict=True)
            if size
        ]


def positions(
    places: np.ndarray, shape: Sequence[int], region: Region, box: Sequence[int]
) -> np.ndarray:
    """Places in a flat region -> places in the flat cropped canonical grid of that box."""
    row, column, along = np.unravel_index(places, tuple(shape))
    rows, columns = region
    return ((row + rows.start) * box[1] + column + columns.start) * box[2] + along


def hashes(places: np.ndarray) -> np.ndarray:
    """Distinct numbers that look random, uint64 (Steele et al., SplitMix, 2014)."""
    with np.errstate(over="ignore"):
        x = (places.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def smallest(key: np.ndarray, most: int) -> np.ndarray:
    """Positions of the `most` smallest keys, in order of the keys."""
    if len(key) > most:
        few = np.argpartition(key, most - 1)[:most] if most else np.zeros(0, int)
        return few[np.argsort(key[few])]
    return np.argsort(key)
