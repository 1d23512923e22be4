"""Resampling to another grid with nnU-Net's results, by matrix products.

Spline and linear resampling are linear and separable, so each axis is one matrix: the identity
resampled by scipy (with the boundary rule and half-pixel centres of the reference), applied by
BLAS. Arrays are (z, y, x[, channel]), spacings (z, y, x) mm. Rules: nnU-Net v2,
preprocessing/resampling (order 3 for images, 1 for labels and probabilities, separate z beyond
anisotropy 3, clipping). `image_rows` works in pieces along the first axis, to bound the memory.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import SupportsFloat, SupportsIndex

import numpy as np
from scipy import ndimage

from medjax.errors import UsageError

# beyond this ratio of the largest to the smallest spacing the coarse axis is resampled on its own,
# by nearest neighbour
ANISOTROPY = 3.0
_ROWS = 32  # output rows per matrix product
_UNTHREADED = 1 << 18  # multiplications up to which OpenBLAS keeps a product on the calling thread
_NEGLIGIBLE = 1e-8  # spline weights below this do not show in float32
SLAB = 1 << 24  # values of scores made at a time: bounds the temporaries
PIECE = 1 << 20  # voxels per slab of a pass
_VOTES = 1 << 18  # voxels per round of label votes

Spacing = Sequence[SupportsFloat] | np.ndarray
Sizes = Sequence[SupportsIndex] | np.ndarray
Shape = tuple[int, int, int]
Read = Callable[[slice], np.ndarray]  # rows of the first axis -> (rows, y, x)


def new_shape(shape: Sizes, spacing_mm: Spacing, new_spacing_mm: Spacing) -> Shape:
    """Size of the grid at another spacing: round(spacing / new * n), halves to even; at least 1."""
    return tuple(
        max(1, round(float(a) / float(b) * int(n)))
        for n, a, b in zip(shape, spacing_mm, new_spacing_mm, strict=True)
    )


def separate_axis(spacing_mm: Spacing, new_spacing_mm: Spacing) -> int | None:
    """The axis to resample on its own, or None.

    The original spacing decides if its ratio exceeds 3, else the target's; None as well if two or
    more axes share the largest spacing.
    """
    for spacing in (np.asarray(spacing_mm, float), np.asarray(new_spacing_mm, float)):
        if spacing.max() / spacing.min() > ANISOTROPY:
            coarse = np.flatnonzero(spacing.max() / spacing == 1)
            return int(coarse[0]) if len(coarse) == 1 else None
    return None


@functools.lru_cache(maxsize=64)
def operator(n_in: int, n_out: int, order: int) -> np.ndarray:
    """The 1-D resampling matrix (n_out, n_in) float64, read-only.

    Equal to scipy's zoom (grid mode, edge replication) of unit samples. Order 3 includes the spline
    prefilter over twelve replicated edge samples per side, as scipy's n-D zoom applies it axis by
    axis.
    """
    if min(n_in, n_out) < 1 or order not in (0, 1, 3):
        raise UsageError(
            "no such resampling",
            found=f"{n_in} -> {n_out} samples at order {order}",
            expected="sizes >= 1 and order 0, 1 or 3",
        )
    if n_in == n_out:
        matrix = np.eye(n_in)
    elif order == 0:
        matrix = np.eye(n_in)[nearest(n_in, n_out)]
    else:
        units = np.eye(n_in)
        matrix = np.stack(
            [
                ndimage.zoom(unit, n_out / n_in, order=order, mode="nearest", grid_mode=True)
                for unit in units
            ],
            axis=1,
        )
    matrix.setflags(write=False)
    return matrix


@functools.lru_cache(maxsize=256)
def nearest(n_in: int, n_out: int) -> np.ndarray:
    """(n_out,) source index of each sample at order 0.

    scipy's rounding of scale * (i + 0.5) - 0.5, clamped to the edges.
    """
    centres = n_in / n_out * (np.arange(n_out) + 0.5) - 0.5
    index = ndimage.map_coordinates(
        np.arange(n_in, dtype=np.float64), centres[None], order=0, mode="nearest"
    ).astype(np.intp)
    index.setflags(write=False)
    return index


def resample_image(
    array: np.ndarray, new_shape: Sizes, spacing_mm: Spacing, new_spacing_mm: Spacing
) -> np.ndarray:
    """Cubic spline resampling of intensities.

    Separate-z volumes: order 3 within slices, nearest slice along the coarse axis. Every channel is
    clipped to its input range, slice by slice in the separate-z case.

    Args:
      array: (z, y, x) or (z, y, x, m), any real type.
      new_shape: (z, y, x) of the result.

    Returns: float32 array of shape new_shape (+ (m,)); the input as float32, if the shape is
      unchanged.
    """
    new_shape = _checked(array, new_shape)
    if tuple(array.shape[:3]) == new_shape:
        return np.asarray(array, np.float32)
    if array.ndim == 4:
        out = np.empty((*new_shape, array.shape[3]), np.float32)
        for channel in range(array.shape[3]):
            out[..., channel] = resample_image(
                array[..., channel], new_shape, spacing_mm, new_spacing_mm
            )
        return out
    axis = separate_axis(spacing_mm, new_spacing_mm)
    if axis is None:
        out = apply(
            array, [matrix_of(a, b, 3) for a, b in zip(array.shape, new_shape, strict=True)]
        )
        return np.clip(out, np.float32(array.min()), np.float32(array.max()), out=out)
    return _separate(array, new_shape, axis)


def _separate(array: np.ndarray, new_shape: Shape, axis: int) -> np.ndarray:
    index = nearest(array.shape[axis], new_shape[axis])
    used, back = np.unique(index, return_inverse=True)
    slices = np.take(array, used, axis) if len(used) < array.shape[axis] else array
    low, high = (
        f(slices, axis=tuple(a for a in range(3) if a != axis), keepdims=True).astype(np.float32)
        for f in (np.min, np.max)
    )
    out = apply(
        slices,
        [None if a == axis else matrix_of(array.shape[a], new_shape[a], 3) for a in range(3)],
    )
    np.clip(out, low, high, out=out)
    return out if np.array_equal(back, np.arange(out.shape[axis])) else np.take(out, back, axis)


def resample_scores(
    array: np.ndarray,
    new_shape: Sizes,
    spacing_mm: Spacing,
    new_spacing_mm: Spacing,
    slab: int | None = None,
) -> np.ndarray:
    """Linear resampling of probabilities or logits (nearest along the coarse axis if anisotropic).

    Args:
      array: (z, y, x, c), any real type.
      slab: rows of the first axis made at a time; bounds the temporaries.

    Returns: float32 (*new_shape, c).
    """
    new_shape = _checked(array, new_shape)
    out = np.empty((*new_shape, *array.shape[3:]), np.float32)
    step = slab or max(1, SLAB // max(1, out[0].size))
    for start in range(0, new_shape[0], step):
        rows = slice(start, min(start + step, new_shape[0]))
        out[rows] = score_rows(array, new_shape, spacing_mm, new_spacing_mm, 0, rows)
    return out


def score_rows(
    array: np.ndarray,
    new_shape: Sizes,
    spacing_mm: Spacing,
    new_spacing_mm: Spacing,
    axis: int,
    rows: slice,
) -> np.ndarray:
    """The rows [start, stop) along `axis` of `resample_scores`, at the cost of those rows only."""
    new_shape = _checked(array, new_shape)
    coarse = separate_axis(spacing_mm, new_spacing_mm)
    matrices = [
        matrix_of(a, b, 0 if i == coarse else 1)
        for i, (a, b) in enumerate(zip(array.shape[:3], new_shape, strict=True))
    ]
    if matrices[axis] is not None:
        wanted = matrices[axis][rows]
        first, last = support(wanted)
        rows, matrices[axis] = slice(first, last), wanted[:, first:last]
    return apply(array[(slice(None),) * axis + (rows,)], matrices)


def resample_label(
    ids: np.ndarray, new_shape: Sizes, spacing_mm: Spacing, new_spacing_mm: Spacing
) -> np.ndarray:
    """Label resampling: every label's indicator linearly, then arg-max.

    Ties take the nearest neighbour's label if it is among them, else the lowest. The indicators of
    one voxel are non-zero only for the labels of its 2x2x2 source voxels, so only voxels where
    those differ are computed; time and memory do not depend on the number of labels.

    Args:
      ids: (z, y, x) integers.

    Returns: new_shape array of the same type; the input itself, if the shape is unchanged.
    """
    new_shape = _checked(ids, new_shape)
    if tuple(ids.shape) == new_shape:
        return ids
    coarse = separate_axis(spacing_mm, new_spacing_mm)
    taps = [
        _taps(a, b, i == coarse) for i, (a, b) in enumerate(zip(ids.shape, new_shape, strict=True))
    ]
    near = [nearest(a, b) for a, b in zip(ids.shape, new_shape, strict=True)]
    (z_first, z_second), z_weights = taps[0]
    out = np.empty(new_shape, ids.dtype)
    step = max(1, PIECE // max(new_shape[1] * new_shape[2], ids.shape[1] * ids.shape[2]))
    for start in range(0, new_shape[0], step):
        rows = slice(start, min(start + step, new_shape[0]))
        low, high = int(z_first[rows][0]), int(z_second[rows][-1]) + 1
        source = np.ascontiguousarray(ids[low:high])
        local = (
            (z_first[rows] - low, z_second[rows] - low),
            tuple(weight[rows] for weight in z_weights),
        )
        piece = source[np.ix_(near[0][rows] - low, near[1], near[2])]
        mixed = _mixed_cells(source, taps)[np.ix_(local[0][0], taps[1][0][0], taps[2][0][0])]
        where = np.nonzero(mixed)
        for begin in range(0, len(where[0]), _VOTES):
            chunk = tuple(index[begin : begin + _VOTES] for index in where)
            piece[chunk] = _vote(source, chunk, (local, *taps[1:]), piece[chunk])
        out[rows] = piece
    return out


def _taps(
    n_in: int, n_out: int, by_nearest: bool
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """((first, second source index), (their weights)) of each output sample.

    The second weight is 0 if one sample suffices.
    """
    if n_in == n_out or by_nearest or n_in == 1:
        index = nearest(n_in, n_out)
        return (index, index), (np.ones(n_out), np.zeros(n_out))
    matrix, samples = operator(n_in, n_out, 1), np.arange(n_out)
    first = (matrix != 0).argmax(1)
    second = n_in - 1 - (matrix[:, ::-1] != 0).argmax(1)
    return (first, second), (
        matrix[samples, first],
        np.where(first == second, 0.0, matrix[samples, second]),
    )


def _mixed_cells(ids: np.ndarray, taps: Sequence) -> np.ndarray:
    """(z, y, x) bool: cells of source voxels [i, i + 1] that do not all have one label.

    Along the interpolated axes.
    """
    low = high = ids
    for axis, ((first, second), _) in enumerate(taps):
        if not np.array_equal(first, second):
            low, high = _with_next(np.minimum, low, axis), _with_next(np.maximum, high, axis)
    return low != high


def _with_next(function: np.ufunc, array: np.ndarray, axis: int) -> np.ndarray:
    """function(voxel i, voxel i + 1) along an axis; the last voxel has no successor."""
    out = array.copy()
    head = (slice(None),) * axis + (slice(None, -1),)
    tail = (slice(None),) * axis + (slice(1, None),)
    function(array[head], array[tail], out=out[head])
    return out


def _vote(
    ids: np.ndarray, where: Sequence[np.ndarray], taps: Sequence, close: np.ndarray
) -> np.ndarray:
    """Arg-max over the labels of the (up to) eight source voxels of each output voxel.

    Ties take `close` if it is among them. Weights are multiplied and added in scipy's order, so
    that near-ties have the reference's result.
    """
    strides = np.cumprod((1, *ids.shape[:0:-1]))[::-1]
    axes = []  # per axis its one or two samples: (offset into the flat ids, weight)
    for (index, weight), place, stride in zip(taps, where, strides, strict=True):
        used = (0, 1) if weight[1].any() else (0,)
        axes.append([((index[i] * stride)[place], weight[i][place]) for i in used])
    flat, labels, weights = ids.reshape(-1), [], []
    for (z, z_weight), (y, y_weight) in itertools.product(*axes[:2]):
        row, row_weight = z + y, z_weight * y_weight
        for x, x_weight in axes[2]:
            labels.append(flat[row + x])
            weights.append(row_weight * x_weight)
    close_score = sum(
        weight * (label == close) for weight, label in zip(weights, labels, strict=True)
    )
    contested = np.flatnonzero(
        close_score < 0.5 + 1e-6
    )  # elsewhere the nearest label holds the majority
    labels, weights = (
        [label[contested] for label in labels],
        [weight[contested] for weight in weights],
    )
    best, best_score = close[contested], np.full(len(contested), -1.0)
    for label in labels:
        score = sum(
            weight * (other == label) for weight, other in zip(weights, labels, strict=True)
        )
        better = (score > best_score) | ((score == best_score) & (label < best))
        best, best_score = np.where(better, label, best), np.maximum(best_score, score)
    out = close.copy()
    out[contested] = np.where(close_score[contested] == best_score, close[contested], best)
    return out


def _checked(array: np.ndarray, new_shape: Sizes) -> Shape:
    shape = tuple(int(n) for n in new_shape)
    if array.ndim not in (3, 4) or len(shape) != 3 or min(shape) < 1 or array.size == 0:
        raise UsageError(
            "cannot resample",
            found=f"{array.shape} to {shape}",
            expected="(z, y, x[, c]) and three sizes >= 1",
        )
    return shape


def matrix_of(n_in: int, n_out: int, order: int) -> np.ndarray | None:
    """`operator`, or None where nothing changes."""
    return None if n_in == n_out else operator(n_in, n_out, order)


def support(matrix: np.ndarray) -> tuple[int, int]:
    """First and one past the last column that carries weight."""
    columns = np.flatnonzero((np.abs(matrix) > _NEGLIGIBLE).any(0))
    return int(columns[0]), int(columns[-1]) + 1


def apply(array: np.ndarray, matrices: Sequence[np.ndarray | None]) -> np.ndarray:
    """Applies one matrix per axis (None: unchanged), the most shrinking axis first; float32."""
    for _, axis in sorted(
        (m.shape[0] / m.shape[1], axis) for axis, m in enumerate(matrices) if m is not None
    ):
        array = along(array, matrices[axis], axis)
    return np.ascontiguousarray(array, np.float32)


def along(array: np.ndarray, matrix: np.ndarray, axis: int) -> np.ndarray:
    """float32 matrix @ array along one axis, as batches of tiles.

    A tile is a block of rows, the columns that it touches, and part of another axis. Tiles stay
    below the size from which OpenBLAS starts its threads. Threads only pay off on an idle machine;
    if cases are prepared in parallel, waiting for them at every product costs more than the
    product.
    """
    out = np.empty((*array.shape[:axis], matrix.shape[0], *array.shape[axis + 1 :]), np.float32)
    blocks = []
    for start in range(0, matrix.shape[0], _ROWS):
        rows = slice(start, min(start + _ROWS, matrix.shape[0]))
        first, last = support(matrix[rows])
        blocks.append((rows, slice(first, last), matrix[rows, first:last].astype(np.float32)))
    across = 1 if axis == 0 else 0
    step = max(1, PIECE // (array.size // array.shape[across]))
    for start in range(0, array.shape[across], step):
        slab = (slice(None),) * across + (slice(start, start + step),)
        source, target = (
            _as_rows(np.ascontiguousarray(array[slab], np.float32), axis),
            _as_rows(out[slab], axis),
        )
        for rows, columns, block in blocks:
            tile = max(1, _UNTHREADED // block.size)
            for begin in range(0, source.shape[2], tile):
                part = slice(begin, begin + tile)
                np.matmul(block, source[:, columns, part], out=target[:, rows, part])
    return out


def _as_rows(array: np.ndarray, axis: int) -> np.ndarray:
    """View with the axis in the middle: (batch, axis, rest)."""
    if axis == 0:
        return array.reshape(*array.shape[:2], -1).swapaxes(0, 1)
    if axis == array.ndim - 1:
        return array.swapaxes(1, 2)
    return array.reshape(-1, array.shape[axis], int(np.prod(array.shape[axis + 1 :])))


def pieces(shape: Sizes, piece: int = PIECE * 4) -> Iterator[slice]:
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
    """The numbers of `resample_image`, in pieces along the first axis.

    In-plane axes first, then the first axis; between the two steps one float32 volume of the
    source's slices in the new plane is held, and nothing if the first axis does not change.

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
    coarse = separate_axis(spacing_mm, new_spacing_mm)
    if coarse in (1, 2):  # slices across the rows: rare, so they use the general path
        whole = resample_image(read(slice(0, shape[0])), new_shape, spacing_mm, new_spacing_mm)
        yield from ((rows, whole[rows]) for rows in pieces(new_shape))
        return
    plane = [
        None,
        *(matrix_of(a, b, 3) for a, b in zip(shape[1:], new_shape[1:], strict=True)),
    ]
    if shape[0] == new_shape[0]:
        yield from ((rows, _in_plane(read(rows), plane, coarse, limits)) for rows in pieces(shape))
        return
    middle = np.empty((shape[0], *new_shape[1:]), np.float32)
    for rows in pieces(shape):
        middle[rows] = _in_plane(read(rows), plane, coarse, None)
    if coarse == 0:
        index = nearest(shape[0], new_shape[0])
        yield from ((rows, middle[index[rows]]) for rows in pieces(new_shape))
        return
    matrix = operator(shape[0], new_shape[0], 3)
    for start in range(0, new_shape[0], _ROWS):
        rows = slice(start, min(start + _ROWS, new_shape[0]))
        first, last = support(matrix[rows])
        piece = along(middle[first:last], matrix[rows, first:last], 0)
        yield rows, np.clip(piece, *np.float32(limits), out=piece)


def _in_plane(
    piece: np.ndarray, plane: list, coarse: int | None, limits: tuple[float, float] | None
) -> np.ndarray:
    """Rows resampled within their slices.

    Clipped slice by slice if the first axis is coarse, else to the limits if there are any.
    """
    if plane[1] is None and plane[2] is None:
        return piece
    out = apply(piece, plane)
    if coarse == 0:
        return np.clip(
            out, piece.min((1, 2), keepdims=True), piece.max((1, 2), keepdims=True), out=out
        )
    return out if limits is None else np.clip(out, *np.float32(limits), out=out)
