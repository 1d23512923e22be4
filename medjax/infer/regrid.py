"""Scores from the network's grid back to the scan's, row block by row block, so that no array of all rows and classes ever exists.

In: scores that become final in ascending order along z. Out: the same on the cropped canonical grid at the scan's own spacing.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32

from medjax.data import resample
from medjax.data.geometry import Transform
from medjax.infer.windows import WindowScores

BLOCK = 1 << 23  # values per row block; a few arrays of that size exist at a time


def row_blocks(shape: Sequence[int], classes: int) -> list[slice]:
    """Row ranges of a grid that hold about BLOCK values each."""
    step = max(1, BLOCK // max(1, shape[1] * shape[2] * classes))
    return [slice(row, min(row + step, shape[0])) for row in range(0, shape[0], step)]


def on_scan_grid(scores: WindowScores, transform: Transform, blocks: Sequence[slice]) -> Iterator[Float32[np.ndarray, "rows y x c"]]:
    """Row blocks of the cropped canonical grid at the scan's spacing.

    The values are those of `Transform.invert_scores`: linear, or nearest along a coarse axis. Rows are combined first, where the grid is
    small.

    Args:
      scores: on the network's grid; read in ascending order.
      blocks: from `row_blocks` of the crop.
    """
    n_in, n_out = scores.shape[0], transform.box_shape[0]
    spacings = transform.target_spacing_mm, transform.spacing_mm
    matrix = resample.operator(n_in, n_out, 0 if resample.separate_axis(*spacings) == 0 else 1)
    for rows in blocks:
        weights = matrix[rows]
        used = np.flatnonzero(weights.any(0))
        first, last = int(used[0]), int(used[-1]) + 1
        block = scores[first:last]
        if n_in != n_out:
            block = np.tensordot(weights[:, first:last].astype(np.float32), block, 1)
        yield resample.resample_scores(block, (len(block), *transform.box_shape[1:]), *spacings)
