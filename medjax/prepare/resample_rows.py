"""Cubic resampling of a volume in pieces along its first axis, to bound the memory.

In: a function that reads rows of the source. Out: float32 rows of the result, in order. The numbers
are those of `resample.resample_image` (in-plane axes first, then the first axis); between the two
steps one float32 volume of the source's slices in the new plane is held, and nothing if the first
axis does not change.
"""

from collections.abc import Callable, Iterator

import numpy as np

from medjax.prepare import resample
from medjax.prepare.resample import Sizes, Spacing

Read = Callable[[slice], np.ndarray]
_ROWS = 32  # rows per product along the first axis


def pieces(shape: Sizes, piece: int = resample.PIECE * 4) -> Iterator[slice]:
    """Slices along the first axis of about `piece` values each."""
    step = max(1, piece // max(1, int(np.prod([int(n) for n in shape[1:]]))))
    return (slice(i, min(i + step, int(shape[0]))) for i in range(0, int(shape[0]), step))


def image_rows(
    read: Read,
    shape: Sizes,
    new_shape: Sizes,
    spacing_mm: Spacing,
    new_spacing_mm: Spacing,
    limits: tuple[float, float],
) -> Iterator[tuple[slice, np.ndarray]]:
    """Order-3 resampling with nnU-Net's rules, see `resample.resample_image`.

    Args:
      read: rows of the first axis -> float32 (rows, y, x).
      shape, new_shape: (z, y, x) of source and result.
      limits: smallest and largest value of the source; the result is clipped to them (to each
        slice's own along a coarse first axis).

    Yields: (rows of the result, float32 piece), in ascending order, covering all of it.
    """
    shape, new_shape = tuple(map(int, shape)), tuple(map(int, new_shape))
    if shape == new_shape:
        yield from ((rows, read(rows)) for rows in pieces(shape))
        return
    coarse = resample.separate_axis(spacing_mm, new_spacing_mm)
    if coarse in (1, 2):  # slices across the rows: rare, so they use the general path
        whole = resample.resample_image(
            read(slice(0, shape[0])), new_shape, spacing_mm, new_spacing_mm
        )
        yield from ((rows, whole[rows]) for rows in pieces(new_shape))
        return
    plane = [
        None,
        *(resample.matrix_of(a, b, 3) for a, b in zip(shape[1:], new_shape[1:], strict=True)),
    ]
    if shape[0] == new_shape[0]:
        yield from ((rows, _in_plane(read(rows), plane, coarse, limits)) for rows in pieces(shape))
        return
    middle = np.empty((shape[0], *new_shape[1:]), np.float32)
    for rows in pieces(shape):
        middle[rows] = _in_plane(read(rows), plane, coarse, None)
    if coarse == 0:
        index = resample.nearest(shape[0], new_shape[0])
        yield from ((rows, middle[index[rows]]) for rows in pieces(new_shape))
        return
    matrix = resample.operator(shape[0], new_shape[0], 3)
    for start in range(0, new_shape[0], _ROWS):
        rows = slice(start, min(start + _ROWS, new_shape[0]))
        first, last = resample.support(matrix[rows])
        piece = resample.along(middle[first:last], matrix[rows, first:last], 0)
        yield rows, np.clip(piece, *np.float32(limits), out=piece)


def _in_plane(
    piece: np.ndarray, plane: list, coarse: int | None, limits: tuple[float, float] | None
) -> np.ndarray:
    """Rows resampled within their slices.

    Clipped slice by slice if the first axis is coarse, else to the limits if there are any.
    """
    if plane[1] is None and plane[2] is None:
        return piece
    out = resample.apply(piece, plane)
    if coarse == 0:
        return np.clip(
            out, piece.min((1, 2), keepdims=True), piece.max((1, 2), keepdims=True), out=out
        )
    return out if limits is None else np.clip(out, *np.float32(limits), out=out)
