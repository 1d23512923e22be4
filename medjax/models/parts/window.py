"""Window geometry of Swin transformers: pure functions on channels-last grids of any dimension.

In: a grid of tokens (b, *grid, c). Out: windows (b, w, n, c) with w windows of n tokens each, and
the static tables that attention needs: which tokens of a shifted window are neighbours in the image
(`regions`, `shift_mask`) and the index of the relative position bias of each pair (`bias_index`).
All tables follow from static shapes and are computed with numpy. Source: Liu et al., Swin
Transformer (arXiv 2103.14030), sections 3.2 and 3.3.
"""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from medjax.errors import ModelError

BLOCKED = -100.0  # added to the score of two tokens that are not neighbours in the image


def fit(
    grid: Sequence[int], window: Sequence[int], shift: Sequence[int], keep_shift: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Window and shift on a grid: an axis no longer than the window becomes one window, unshifted.

    Args:
      keep_shift: shift such an axis nevertheless, by half of it at most (Swin-MAE).
    """
    used = tuple(min(g, w) for g, w in zip(grid, window, strict=True))
    if keep_shift:
        return used, tuple(min(s, w // 2) for s, w in zip(shift, used, strict=True))
    return used, tuple(s if g > w else 0 for g, w, s in zip(grid, window, shift, strict=True))


def pad_to_windows(
    x: Shaped[Array, "b *grid c"], window: Sequence[int]
) -> Shaped[Array, "b *padded c"]:
    """Zeros at the high end of every axis until it holds whole windows."""
    extra = [-g % w for g, w in zip(x.shape[1:-1], window, strict=True)]
    return jnp.pad(x, [(0, 0), *((0, e) for e in extra), (0, 0)]) if any(extra) else x


def roll(x: Shaped[Array, "b *grid c"], shift: Sequence[int]) -> Shaped[Array, "b *grid c"]:
    """Moves token i + shift to place i along every axis of the grid, cyclically.

    A negative shift moves back.
    """
    return jnp.roll(x, [-s for s in shift], tuple(range(1, x.ndim - 1))) if any(shift) else x


def partition(
    x: Shaped[Array | np.ndarray, "b *grid c"], window: Sequence[int]
) -> Shaped[Array | np.ndarray, "b w n c"]:
    """Cuts a grid into windows; windows, and tokens within each, run with the first axis slowest.

    Raises: `ModelError` if a side is no multiple of the window's.
    """
    grid = x.shape[1:-1]
    if any(g % w for g, w in zip(grid, window, strict=True)):
        raise ModelError(
            "the grid does not hold whole windows",
            found=grid,
            expected=f"multiples of {tuple(window)}",
            fix="pad_to_windows",
        )
    axes = len(grid)
    split = [side for g, w in zip(grid, window, strict=True) for side in (g // w, w)]
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1]
    return (
        x.reshape(x.shape[0], *split, x.shape[-1])
        .transpose(order)
        .reshape(x.shape[0], -1, math.prod(window), x.shape[-1])
    )


def reverse(
    windows: Shaped[Array | np.ndarray, "b w n c"], window: Sequence[int], grid: Sequence[int]
) -> Shaped[Array | np.ndarray, "b *grid c"]:
    """The inverse of `partition` for a grid of whole windows."""
    axes, batch, channels = len(grid), windows.shape[0], windows.shape[-1]
    counts = [g // w for g, w in zip(grid, window, strict=True)]
    order = [0, *(a for i in range(axes) for a in (1 + i, 1 + axes + i)), 2 * axes + 1]
    return (
        windows.reshape(batch, *counts, *window, channels)
        .transpose(order)
        .reshape(batch, *grid, channels)
    )


@functools.lru_cache(maxsize=64)
def regions(
    padded: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]
) -> Int[np.ndarray, "w n"]:
    """Region number of every token of every window after the shift.

    Tokens of one window are neighbours if their numbers are equal. Along an axis of P tokens,
    window w and shift s > 0 the regions are [0, P-w), [P-w, P-s), [P-s, P) in rolled coordinates;
    an axis without shift is one region.
    """
    number = np.zeros((1, *padded, 1), np.int8)
    for axis, (p, w, s) in enumerate(zip(padded, window, shift, strict=True)):
        line = np.zeros(p, np.int8)
        if s:
            line[p - w : p - s], line[p - s :] = 1, 2
        number = 3 * number + np.expand_dims(
            line, [a for a in range(len(padded) + 2) if a != axis + 1]
        )
    return partition(number, window)[0, :, :, 0]


def shift_mask(region: Int[Array | np.ndarray, "w n"]) -> Float[Array, "w n n"]:
    """Mask added to attention scores of a shifted window: 0 within a region, else -100."""
    return jnp.where(region[:, :, None] == region[:, None, :], 0.0, BLOCKED).astype(jnp.float32)


@functools.lru_cache(maxsize=64)
def relative_index(window: tuple[int, ...]) -> Int[np.ndarray, "n n"]:
    """Row of the bias table for (query, key).

    The difference of their coordinates, counted from -(w-1), in mixed radix 2w-1. In three axes
    with window 7: (dz+6)*169 + (dy+6)*13 + (dx+6), d = query - key.
    """
    coordinates = np.stack(np.meshgrid(*(np.arange(w) for w in window), indexing="ij"), -1).reshape(
        -1, len(window)
    )
    difference = coordinates[:, None] - coordinates[None] + np.array(window) - 1
    spans = [2 * w - 1 for w in window]
    return np.ravel_multi_index(tuple(np.moveaxis(difference, -1, 0)), spans).astype(np.int32)


@functools.lru_cache(maxsize=64)
def bias_index(
    window: tuple[int, ...], used: tuple[int, ...], how: str = "corner"
) -> Int[np.ndarray, "n n"]:
    """`relative_index` of a table for `window` if only `used` tokens per axis exist.

    Args:
      how: "corner" takes the top left n x n of the full index (MONAI; all published weights;
        geometrically correct only if no axis but the first shrinks), "geometric" takes the pairs
        with the correct differences.

    Raises: `ModelError` for another word.
    """
    if how not in ("corner", "geometric"):
        raise ModelError(
            "unknown bias index",
            found=how,
            expected="corner or geometric",
            fix="use one of these words",
        )
    if how == "corner":
        tokens = np.arange(math.prod(used))
    else:
        tokens = np.ravel_multi_index(np.indices(used).reshape(len(used), -1), window)
    return relative_index(window)[np.ix_(tokens, tokens)]
