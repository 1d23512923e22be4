"""Scores from the network's grid back to the scan's, block by block, so that no array of all rows
and classes ever exists.

In: scores that become final in ascending order along z. Out: the same on the cropped canonical grid
at the scan's own spacing, linearly, or by nearest neighbour along a coarse axis. Each value is made
of the same two samples per axis in the same order whatever the blocks, so that blocks and strips of
any size give the same bits.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float32

from medjax.infer.windows import WindowScores
from medjax.prepare import resample
from medjax.prepare.geometry import Transform

BLOCK = 1 << 23  # values per block; a few arrays of that size exist at a time


@dataclasses.dataclass(frozen=True)
class Taps:
    """Linear resampling along an axis: out[i] = low[i] * in[first[i]] + high[i] * in[second[i]]; if
    `high` is all 0, out = in[first].
    """

    first: np.ndarray
    second: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def source(self, wanted: slice) -> slice:
        """The input samples that the `wanted` output samples need."""
        return slice(int(self.first[wanted].min()), int(self.second[wanted].max()) + 1)

    def apply(self, array: np.ndarray, axis: int, wanted: slice, start: int) -> np.ndarray:
        """The `wanted` outputs along an axis of an array whose first sample there is the input's
        number `start`.
        """
        first, second, high = (
            self.first[wanted] - start,
            self.second[wanted] - start,
            self.high[wanted],
        )
        if not high.any():
            whole = len(first) == array.shape[axis] and np.array_equal(first, np.arange(len(first)))
            return array if whole else np.take(array, first, axis)
        shape = (-1,) + (1,) * (array.ndim - axis - 1)
        out = np.take(array, first, axis)
        out *= self.low[wanted].reshape(shape)
        other = np.take(array, second, axis)
        other *= high.reshape(shape)
        out += other
        return out


def taps(transform: Transform) -> tuple[Taps, Taps, Taps]:
    """How each axis of the cropped canonical grid is made of the network's grid; the rules of
    `Transform.invert_scores`.
    """
    coarse = resample.separate_axis(transform.target_spacing_mm, transform.spacing_mm)
    return tuple(
        _taps(n_in, n_out, axis == coarse)
        for axis, (n_in, n_out) in enumerate(zip(transform.shape, transform.box_shape, strict=True))
    )


def _taps(n_in: int, n_out: int, by_nearest: bool) -> Taps:
    if n_in == n_out or by_nearest or n_in == 1:
        index = resample.nearest(n_in, n_out)
        return Taps(index, index, np.ones(n_out, np.float32), np.zeros(n_out, np.float32))
    matrix, at = resample.operator(n_in, n_out, 1), np.arange(n_out)
    first = (matrix != 0).argmax(1)
    second = n_in - 1 - (matrix[:, ::-1] != 0).argmax(1)
    low, high = matrix[at, first], np.where(first == second, 0.0, matrix[at, second])
    return Taps(first, second, low.astype(np.float32), high.astype(np.float32))


def row_blocks(shape: Sequence[int], classes: int, values: int = BLOCK) -> list[slice]:
    """Row ranges of a (rows, y, x) grid that hold about `values` numbers each, for all classes."""
    step = max(1, values // max(1, shape[1] * shape[2] * classes))
    return [slice(row, min(row + step, shape[0])) for row in range(0, shape[0], step)]


def on_scan_grid(
    scores: WindowScores,
    transform: Transform,
    blocks: Sequence[slice],
    columns: slice | None = None,
    narrow: Callable[[WindowScores, slice], np.ndarray] | None = None,
) -> Iterator[Float32[np.ndarray, "rows y x c"]]:
    """Row blocks of the cropped canonical grid at the scan's spacing.

    Args:
      scores: on the network's grid, or the strip of it that `source_columns` names; read in
        ascending order.
      blocks: row ranges in ascending order.
      columns: the strip of the crop's y axis that is wanted; default all.
      narrow: takes the rows of each block on the network's grid, where it is small, and returns
        what of it is to be resampled.
    """
    z, y, x = taps(transform)
    columns = columns or slice(0, transform.box_shape[1])
    left = y.source(columns).start
    for rows in blocks:
        source = z.source(rows)
        block = scores[source] if narrow is None else narrow(scores, source)
        steps = [
            (z, 0, rows, source.start),
            (y, 1, columns, left),
            (x, 2, slice(0, transform.box_shape[2]), 0),
        ]
        for axis, number, wanted, start in steps:
            block = axis.apply(block, number, wanted, start)
        yield block


def most_rows(transform: Transform, blocks: Sequence[slice]) -> int:
    """How many rows of the network's grid a block of the crop is made of at most."""
    z = taps(transform)[0]
    sources = [z.source(rows) for rows in blocks]
    return max(source.stop - source.start for source in sources)


def source_columns(transform: Transform, columns: slice) -> slice:
    """The strip of the network's y axis that a strip of the crop's y axis is made of."""
    return taps(transform)[1].source(columns)
