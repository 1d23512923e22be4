"""Validates and scales stored voxels: finite, whole numbers for labels, no extreme outliers.

In: arrays of any format. Out: float32 or the stored integers. Everything runs in pieces, so that
the temporaries stay small.
"""

import math
import warnings

import numpy as np

from medjax.errors import DataError
from medjax.scans.header import DataWarning

MINIMUM = "min"  # replaces non-finite voxels by the smallest finite one
# spreads, times the square root of the number of voxels, by which an extreme flattens the rest (see
# `check_extremes`)
FAR = 30.0
LARGEST_LABEL = 1 << 31
_PIECE = 1 << 23  # voxels
_SAMPLE = 1 << 18  # voxels that percentiles are taken from

Replacement = float | str | None


def finished(
    array: np.ndarray,
    want: str,
    path: str,
    allow_nonfinite: bool = False,
    replace_nan: Replacement = None,
) -> np.ndarray:
    """Validates the voxels of every format: finite, and by kind.

    "label": whole and not negative. "image": a warning for voxels far from all others.

    Args:
      allow_nonfinite: keep NaN and infinite voxels, counted in a warning.
      replace_nan: replace them by this number, or by the smallest finite one of the channel
        ("min"), counted in a warning.
    """
    narrow = (
        array.dtype.kind in "iub" and array.dtype.itemsize <= 2
    )  # finite, and of too small a range for an extreme
    low, high = (0.0, 0.0) if narrow else ends(array)
    if not (math.isfinite(low) and math.isfinite(high)):
        if replace_nan is not None and want == "image":
            array = _replaced(array, replace_nan, path)
            low, high = ends(array)
        else:
            _refuse_nonfinite(array, path, allow_nonfinite)
            return _as_labels(array, path) if want == "label" else array
    if want == "label":
        return _as_labels(array, path)
    if not narrow:
        check_extremes(array, low, high, path)
    return array


def ends(array: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value; NaN if there is one among them."""
    if array.size == 0 or array.dtype.kind not in "iuf":
        return 0.0, 0.0
    low, high = math.inf, -math.inf
    for piece in pieces(array):
        a, b = float(array[piece].min()), float(array[piece].max())
        if math.isnan(a) or math.isnan(b):
            return math.nan, math.nan
        low, high = min(low, a), max(high, b)
    return low, high


def check_extremes(array: np.ndarray, low: float, high: float, path: str) -> None:
    """Warns (DataWarning) if a few extreme voxels would dominate mean and spread.

    One voxel at distance d among n voxels gives a standard deviation of at least d / sqrt(n); the
    rest becomes flat if its own spread (5th to 95th percentile) is a small part of that.
    """
    channels = [array[..., c] for c in range(array.shape[3])] if array.ndim == 4 else [array]
    for c, channel in enumerate(channels):
        _check_channel(
            channel,
            *((low, high) if len(channels) == 1 else ends(channel)),
            path,
            f" in channel {c}" if c else "",
        )


def _check_channel(array: np.ndarray, low: float, high: float, path: str, where: str) -> None:
    flat = array.reshape(-1) if array.flags.c_contiguous else array.ravel()
    sample = np.asarray(flat[:: max(1, flat.size // _SAMPLE)], np.float64)
    if not sample.size or low == high:
        return
    first, middle, last = np.percentile(sample, (5, 50, 95))
    if first == last:  # mostly one value: use the voxels that differ from it
        others = sample[sample != middle]
        if len(others) < 20:
            return
        first, last = np.percentile(others, (5, 95))
        first, last = min(first, middle), max(last, middle)
    spread, reach = float(last - first), max(high - float(middle), float(middle) - low)
    if reach <= FAR * math.sqrt(flat.size) * spread:
        return
    limit = float(middle) - reach / 2, float(middle) + reach / 2
    count, example = 0, ""
    for piece in pieces(array):
        outside = (array[piece] < limit[0]) | (array[piece] > limit[1])
        if outside.any() and not example:
            at = np.unravel_index(int(np.argmax(outside)), outside.shape)
            example = (
                f"{float(array[piece][at]):g} at "
                f"{(int(at[0]) + piece.start, *map(int, at[1:]))} (z, y, x)"
            )
        count += int(outside.sum())
    warnings.warn(
        f"{path}: {count} voxels{where} lie far from all others ({example}; most are between "
        f"{first:.4g} and {last:.4g}): normalising by "
        "mean and spread makes the others one value. Fix: correct the file",
        DataWarning,
        stacklevel=4,
    )


def scaled(stored: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """slope * stored + inter, computed in float64 as nibabel does, stored as float32.

    Integers without scaling are unchanged.
    """
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # what does not fit into float32 is reported as not finite
        if slope == 1.0 and inter == 0.0:
            return stored if stored.dtype.kind in "iu" else np.ascontiguousarray(stored, np.float32)
        out = np.empty(stored.shape, np.float32)
        for piece in pieces(stored):
            out[piece] = stored[piece].astype(np.float64) * slope + inter
    return out


def pieces(array: np.ndarray) -> list[slice]:
    """Slices along the first axis with a bounded number of voxels each."""
    rows = max(1, _PIECE // max(1, math.prod(array.shape[1:])))
    return [slice(i, i + rows) for i in range(0, array.shape[0], rows)]


def first_of(mask: np.ndarray, array: np.ndarray) -> str:
    """Number of voxels in a mask, and value and position of the first."""
    position = tuple(int(i) for i in np.unravel_index(int(np.argmax(mask)), mask.shape))
    return (
        f"{int(mask.sum())} voxels, first {float(array[position]):g} at {position} (z, y, "
        f"x{', channel' if array.ndim == 4 else ''})"
    )


def _refuse_nonfinite(array: np.ndarray, path: str, allowed: bool) -> None:
    found = first_of(~np.isfinite(array), array)
    if not allowed:
        fix = "correct the file, or predict with --replace-nan VALUE (a number, or min)"
        raise DataError(
            "non-finite voxels", path=path, found=found, expected="finite numbers", fix=fix
        )
    warnings.warn(f"{path}: non-finite voxels kept: {found}", DataWarning, stacklevel=3)


def _replaced(array: np.ndarray, value: float | str, path: str) -> np.ndarray:
    broken = ~np.isfinite(array)
    found = first_of(broken, array)
    array = np.array(array)  # the one that was read may be shared or read-only
    channels = range(array.shape[3]) if array.ndim == 4 else [Ellipsis]
    used = []
    for c in channels:
        part, wrong = (array[..., c], broken[..., c]) if array.ndim == 4 else (array, broken)
        if value == MINIMUM and wrong.all():
            raise DataError("no finite voxel", path=path, found=found, fix="obtain the file again")
        used.append(float(part[~wrong].min()) if value == MINIMUM else float(value))
        part[wrong] = used[-1]
    put = ", ".join(f"{number:g}" for number in dict.fromkeys(used))
    warnings.warn(
        f"{path}: non-finite voxels replaced by {put}: {found}", DataWarning, stacklevel=4
    )
    return array


def _as_labels(array: np.ndarray, path: str) -> np.ndarray:
    """Integers of a label map; fractions and negative values are errors with count and position."""
    if array.dtype.kind == "f":
        broken = array != np.rint(array)
        if broken.any():
            raise DataError(
                "label values that are not whole numbers",
                path=path,
                found=first_of(broken, array),
                expected="integers",
                fix="round or redraw",
            )
        if array.max(initial=0) > LARGEST_LABEL:
            raise DataError(
                "label values that are too large",
                path=path,
                found=first_of(array > LARGEST_LABEL, array),
                expected=f"at most {LARGEST_LABEL}",
                fix="renumber the labels",
            )
    if array.dtype.kind != "u" and array.min(initial=0) < 0:
        raise DataError(
            "negative label values",
            path=path,
            found=first_of(array < 0, array),
            expected="0 or more",
            fix="renumber the labels",
        )
    return (
        array.astype(np.min_scalar_type(int(array.max(initial=0))))
        if array.dtype.kind == "f"
        else array
    )
