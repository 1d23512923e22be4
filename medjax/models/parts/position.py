"""Position tables of transformers on grids of two or three axes, and their resampling.

A table is (*grid, width): one row per token, the last axis of the grid fastest, as tokens are
flattened.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from medjax.errors import ModelError

POSITIONS = ("learned", "sincos")


def resize_table(
    table: Shaped[Array | np.ndarray, "*grid c"], grid: Sequence[int]
) -> Float[Array, "*new c"]:
    """A table on another grid: (tri)linear with half-pixel centres, edges continued, no smoothing.

    The same grid returns the same numbers, a constant table stays constant. Raises: `ModelError`
    for another number of axes.
    """
    if len(grid) != table.ndim - 1:
        raise ModelError(
            "a position table keeps its number of axes",
            found=table.shape,
            expected=f"{len(grid)} axes and a width",
        )
    if tuple(grid) == table.shape[:-1]:
        return jnp.asarray(table)
    return jax.image.resize(jnp.asarray(table), (*grid, table.shape[-1]), "linear", antialias=False)


def sincos_table(grid: Sequence[int], width: int) -> Float[np.ndarray, "*grid c"]:
    """Fixed sines and cosines.

    The axes share the width, each with periods from 2 pi to 2 pi 10000; the remainder is zero.
    """
    pairs = width // (2 * len(grid))
    frequency = 10_000.0 ** -(np.arange(pairs) / max(pairs, 1))
    parts = []
    for axis, side in enumerate(grid):
        angle = np.arange(side)[:, None] * frequency
        line = np.concatenate([np.sin(angle), np.cos(angle)], -1)
        shape = [side if a == axis else 1 for a in range(len(grid))]
        parts.append(np.broadcast_to(line.reshape(*shape, 2 * pairs), (*grid, 2 * pairs)))
    table = np.concatenate(parts, -1).astype(np.float32)
    return np.pad(table, [(0, 0)] * len(grid) + [(0, width - table.shape[-1])])
