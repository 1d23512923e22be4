"""NumPy arrays and M3D-Seg masks as volumes; their geometry is read from a sidecar.

    scan.npy      (z, y, x), or the order in the sidecar's "axes"; `scan.json` beside it:
                  {"axes": "zyx", "spacing_mm": [z, y, x]} or
                  {"axes": "cxyz", "affine": 4x4 of the (x, y, z) voxels -> RAS+ mm}
    image.npy     M3D-Seg: (1, x, y, z)
    mask_(k, x, y, z).npz   M3D-Seg: SciPy sparse rows, one class each; the name has the shape

Without a sidecar the array takes the grid of the image it belongs to, or 1 mm voxels with a
warning.
"""

import math
import os
import re
import warnings
from pathlib import Path

import numpy as np

from medjax.errors import DataError
from medjax.files import read_json
from medjax.scans import header as headers
from medjax.scans import zipped
from medjax.scans.content import check_file
from medjax.scans.nifti import DataWarning, Volume

MASK_VOXELS = 1 << 33
M3D_MASK = re.compile(r"^mask_\((\d+), ?(\d+), ?(\d+), ?(\d+)\)\.npz$")


def read(path: str, *, pixels: bool = True, like: Volume | None = None) -> Volume:
    """Reads an array and its geometry; (z, y, x) or (z, y, x, m).

    Raises: `DataError` for a missing or damaged file, object arrays (they could execute code), or
      axes that do not fit.
    """
    check_file(path)
    try:
        stored = _sparse(path) if M3D_MASK.match(os.path.basename(path)) else _dense(path)
    except MemoryError as error:
        raise DataError(
            "larger than the memory", path=path, found=str(error)[:200], fix="obtain the file again"
        ) from error
    except zipped.DAMAGES as error:
        raise DataError(
            f"not a readable array ({error})",
            path=path,
            fix="obtain the file again; object arrays are refused",
        ) from error
    if stored.dtype.kind not in "iufb":
        raise DataError(
            "unusable voxels",
            path=path,
            found=str(stored.dtype),
            expected="integers or real numbers",
        )
    sidecar = _sidecar(path)
    array = _axes(stored, sidecar.get("axes") or _usual_axes(path, stored.ndim), path)
    affine = _affine(sidecar, path, like, array.shape[:3])
    array = (
        array.astype(np.uint8)
        if array.dtype.kind == "b"
        else array.astype(np.float32)
        if array.dtype.kind == "f"
        else array
    )
    header = headers.new(
        array.shape, affine, np.float32 if array.dtype.itemsize > 4 else array.dtype
    )
    return Volume(array if pixels else None, affine, header, path)


def _dense(path: str) -> np.ndarray:
    if path.endswith(".npy"):
        return _mapped(path)
    found = zipped.read_npz(path)
    if len(found) != 1:
        raise ValueError(f"holds the arrays {', '.join(found)[:200]}, expected one")
    return next(iter(found.values()))


def _mapped(path: str) -> np.ndarray:
    """The array of an `.npy` file, memory-mapped.

    Its header is compared with the size of the file first.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        begin, kind, shape, order = zipped.layout(file.read(zipped.HEADER + 12), size)
    if 0 in shape:
        return np.zeros(shape, kind)
    return np.memmap(path, kind, "r", begin, shape, order)


def _sparse(path: str) -> np.ndarray:
    """SciPy's compressed rows as a dense array; every index is checked, which SciPy does not do."""
    shape = tuple(int(n) for n in M3D_MASK.match(os.path.basename(path)).groups())
    rows, columns = shape[0], math.prod(shape[1:])
    if rows * columns > MASK_VOXELS:
        raise ValueError(f"the name promises {rows * columns:,} voxels, more than {MASK_VOXELS:,}")
    found = zipped.read_npz(path, strings=True)
    kind = str(np.asarray(found["format"]).astype(str).item())
    if tuple(found["shape"].ravel().tolist()) != (rows, columns):
        raise ValueError(f"holds {tuple(found['shape'].ravel().tolist())}, the name says {shape}")
    if kind == "coo":
        where = found["row"], found["col"]
    elif kind == "csr":
        where = _unrolled(found["indptr"], rows), found["indices"]
    elif kind == "csc":
        where = found["indices"], _unrolled(found["indptr"], columns)
    else:
        raise ValueError(f"a sparse array of format {kind!r}, expected csr, csc or coo")
    data = found["data"]
    for index, most in zip(where, (rows, columns), strict=True):
        if (
            data.ndim != 1
            or index.shape != data.shape
            or index.dtype.kind not in "iu"
            or data.dtype.kind not in "iufb"
        ):
            raise ValueError("data and indices do not fit together")
        if data.size and not 0 <= int(index.min()) <= int(index.max()) < most:
            raise ValueError("an index outside of the array")
    dense = np.zeros((rows, columns), np.uint8)
    dense[where] = data.astype(np.uint8)
    return dense.reshape(shape)


def _unrolled(pointers: np.ndarray, count: int) -> np.ndarray:
    """The row (or column) of every value, from where each one begins."""
    if pointers.shape != (count + 1,) or pointers.dtype.kind not in "iu":
        raise ValueError("rows that do not follow each other")
    steps = np.diff(pointers.astype(np.int64))
    if pointers[0] != 0 or (steps < 0).any() or int(pointers[-1]) > MASK_VOXELS:
        raise ValueError("rows that do not follow each other")
    return np.repeat(np.arange(count), steps)


def _sidecar(path: str) -> dict:
    stem = Path(path).with_suffix(".json")
    found = read_json(stem) if stem.is_file() else {}
    if not isinstance(found, dict):
        raise DataError(
            "the sidecar must be an object",
            path=stem,
            expected='{"axes": "zyx", "spacing_mm": [5, 0.8, 0.8]}',
        )
    return found


def _usual_axes(path: str, dimensions: int) -> str:
    m3d = M3D_MASK.match(os.path.basename(path)) or (
        os.path.basename(path) == "image.npy" and dimensions == 4
    )
    return "cxyz" if m3d else "zyx" if dimensions == 3 else "zyxc"


def _axes(array: np.ndarray, axes: str, path: str) -> np.ndarray:
    """Any order of axes -> (z, y, x[, c]); a single channel loses its axis."""
    if (
        not isinstance(axes, str)
        or sorted(axes) not in (sorted("zyx"), sorted("zyxc"))
        or len(axes) != array.ndim
    ):
        raise DataError(
            "axes and array do not fit",
            path=path,
            found=f"axes {axes!r}, shape {array.shape}",
            expected='e.g. "zyx" or "cxyz"',
        )
    array = array.transpose([axes.index(a) for a in "zyxc"[: array.ndim]])
    return array[..., 0] if array.ndim == 4 and array.shape[-1] == 1 else array


def _affine(sidecar: dict, path: str, like: Volume | None, shape: tuple[int, ...]) -> np.ndarray:
    if "affine" in sidecar:
        affine = headers.check_affine(sidecar["affine"], Path(path).with_suffix(".json"))
    elif "spacing_mm" in sidecar:
        spacing = sidecar["spacing_mm"]
        if (
            not isinstance(spacing, list)
            or len(spacing) != 3
            or not all(type(s) in (int, float) and 0 < s < 1e9 for s in spacing)
        ):
            raise DataError(
                "unusable spacing_mm in the sidecar",
                path=Path(path).with_suffix(".json"),
                found=repr(spacing)[:120],
                expected="three positive numbers (z, y, x)",
                fix="correct the sidecar",
            )
        affine = np.diag([*np.asarray(spacing, np.float64)[::-1], 1.0])
    elif like is not None and like.shape == tuple(shape):
        affine = like.affine
    else:
        warnings.warn(
            f"{path}: an array without a sidecar; 1 mm voxels assumed, position unknown",
            DataWarning,
            stacklevel=3,
        )
        affine = np.eye(4)
    affine = headers.check_regular(affine, path)
    headers.check_shear(affine, path)
    return affine
