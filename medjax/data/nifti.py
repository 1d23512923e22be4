"""NIfTI files in and out: the only place that knows nibabel's (x, y, z) order.

A path goes in; a `Volume` with a (z, y, x[, m]) array, its affine and its exact header comes out, or a `DataError` that names file, finding
and fix. A mask goes in with the volume it belongs to; a file with the same grid and header comes out, complete or not at all.
"""

import dataclasses
import gzip
import math
import os
import uuid
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from medjax.data import header as headers
from medjax.data.header import DataWarning
from medjax.errors import DataError, UsageError, did_you_mean

__all__ = ["DataWarning", "Volume", "check_same_geometry", "label_names", "read", "read_case", "read_geometry", "write"]

GZIP_MAGIC = b"\x1f\x8b"
GZIP_LEVEL = 1
SAME_VOXELS, OTHER_VOXELS = 1e-3, 0.5
_PIECE = 1 << 23  # voxels per piece of a conversion: bounds the temporaries


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """A scan or label map as stored, with its geometry.

    Attributes:
      array: (z, y, x) or (z, y, x, m) values with slope and intercept applied; may be read-only. None after `read_geometry`.
      affine: (4, 4) float64, nibabel's (x, y, z) voxel -> RAS+ mm.
      header: nibabel header exactly as in the file, for `write`.
      path: where it came from.
    """

    array: np.ndarray | None
    affine: np.ndarray
    header: nib.Nifti1Header
    path: str

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along (z, y, x) in mm, from the affine."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x) sizes of the grid, known without pixels."""
        return headers.grid_shape(self.header)[::-1]


def read(path: str | os.PathLike, *, frame: int | None = None, allow_nonfinite: bool = False, want: str = "image") -> Volume:
    """Reads a `.nii` or `.nii.gz` file (told apart by content, not by name) to its last byte.

    Args:
      frame: picks one frame or channel of a 4D file; None keeps all of them as the last axis.
      allow_nonfinite: keep NaN and infinite voxels (with a DataWarning that counts them) instead of raising.
      want: "image" returns float32, or the stored integer type if slope is 1 and intercept 0; "label" returns integers and refuses
        fractions, negative values and several channels.

    Returns: `Volume` with (z, y, x), or (z, y, x, m) for a 4D file.

    Raises: DataError for a file that is missing, unreadable, a broken link, empty, not NIfTI, truncated, fails its CRC, has RGB or complex
      voxels, non-finite values, or a geometry that `header.affine_of` refuses. Doubtful geometry warns (DataWarning).
    """
    if want not in ("image", "label"):
        raise UsageError(f"unknown kind {want!r}", fix=did_you_mean(want, ("image", "label")))
    path = os.fspath(path)
    raw = _content(path)
    header = headers.parse(raw, path)
    affine = headers.affine_of(header, path)
    stored, slope, inter = _stored_voxels(raw, header, path)
    stored = _channels_last(stored, frame, path)
    if want == "label" and stored.ndim == 4:
        raise DataError(
            "a label map with several channels", path=path, found=f"{stored.shape[-1]} in 4D", expected="one 3D label map",
            fix="give one file, or say which frame is meant",
        )  # fmt: skip
    array = finished(_values(stored, slope, inter), want, path, allow_nonfinite)
    return Volume(array, affine, header, path)


def replaced(volume: Volume, array: np.ndarray | None) -> Volume:
    """The volume with other voxels on the same grid."""
    return dataclasses.replace(volume, array=array)


def finished(array: np.ndarray, want: str, path: str, allow_nonfinite: bool = False) -> np.ndarray:
    """What every format's voxels go through: finite (or counted in a warning), and for "label" whole and not negative."""
    _check_finite(array, path, allow_nonfinite)
    return _as_labels(array, path) if want == "label" else array


def read_geometry(path: str | os.PathLike) -> Volume:
    """Like `read`, but only the header: `array` is None and damage behind the header goes unnoticed."""
    path = os.fspath(path)
    with _open(path) as file:
        start = file.read(2)
        file.seek(0)
        try:
            raw = gzip.GzipFile(fileobj=file).read(540) if start == GZIP_MAGIC else file.read(540)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError("truncated gzip", path=path, found=str(error), fix="obtain the file again") from error
    header = headers.parse(raw, path)
    return Volume(None, headers.affine_of(header, path), header, path)


def read_case(
    image_paths: Sequence[str | os.PathLike],
    *,
    allow_nonfinite: bool = False,
    reader: Callable[..., Volume] | None = None,
    native: bool = False,
) -> Volume:
    """Reads the channels of one case, one file each (or one 4D file), stacked to (z, y, x, m) float32; `reader` reads one file.

    `native` keeps what `read` gives for a single file: unscaled integers stay integers.

    Geometry and header are the first file's; a channel on another grid is a DataError that names both files.
    """
    if not image_paths:
        raise UsageError("a case without images", fix="give at least one image path")
    volumes = [(reader or read)(path, allow_nonfinite=allow_nonfinite) for path in image_paths]
    for volume in volumes[1:]:
        check_same_geometry(volumes[0], volume)
    for volume in volumes:
        if len(volumes) > 1 and volume.array.ndim == 4:
            raise DataError(
                "a 4D file among several channel files", path=volume.path, found=f"{volume.array.shape[-1]} frames",
                expected="one 3D file per channel", fix="pick one with --frame, or give the 4D file alone to use its frames as channels",
            )  # fmt: skip
    first = volumes[0]
    if len(volumes) == 1:
        array = first.array if native else np.asarray(first.array, np.float32)
        return dataclasses.replace(first, array=array if array.ndim == 4 else array[..., None])
    array = np.empty((*first.shape, len(volumes)), np.float32)
    for channel, volume in enumerate(volumes):
        array[..., channel] = volume.array
    return dataclasses.replace(first, array=array)


def check_same_geometry(a: Volume, b: Volume) -> None:
    """Passes if two volumes share one grid: same shape, corners within 1e-3 voxel; beyond it warns, beyond 0.5 voxel raises DataError."""
    if a.shape != b.shape:
        raise DataError(
            "different shapes", path=f"{a.path} and {b.path}", found=f"{b.shape} (z, y, x)", expected=f"{a.shape}",
            fix="resample one of them to the grid of the other",
        )  # fmt: skip
    points = headers.corners(a.shape[::-1])
    apart_mm = ((b.affine - a.affine) @ points)[:3]
    voxels = float(np.abs(np.linalg.inv(a.affine[:3, :3]) @ apart_mm).max())
    millimetres = float(np.linalg.norm(apart_mm, axis=0).max())
    if voxels > OTHER_VOXELS:
        raise DataError(
            "different geometry", path=f"{a.path} and {b.path}", found=f"corners {millimetres:.4g} mm ({voxels:.3g} voxels) apart",
            expected=f"at most {OTHER_VOXELS} voxel", fix="check origin and direction; resample one of them to the grid of the other",
        )  # fmt: skip
    if voxels > SAME_VOXELS:
        warnings.warn(
            f"{a.path} and {b.path}: grids {millimetres:.3g} mm ({voxels:.2g} voxels) apart at a corner", DataWarning, stacklevel=2
        )


def write(path: str | os.PathLike, array: np.ndarray, like: Volume, *, labels: Mapping[int, str] | None = None) -> None:
    """Writes a mask or probability map on the grid of `like`, atomically.

    Shape, affine, qform/sform with codes, pixdim and xyzt_units are the input's, bit by bit; slope 1, intercept 0; bool and integers become
    uint8 (uint16 from value 256), floats float32; gzip level 1. The file appears under its name complete or not at all.

    Args:
      array: (z, y, x), or (z, y, x, c) for several maps in one file.
      like: the volume whose grid this is (`read` or `read_geometry`).
      labels: value -> name, stored as a Caret label table in a NIfTI extension.

    Raises: DataError for another shape, values that do not fit, or a file system that refuses.
    """
    path = _checked_name(path)
    array = np.asarray(array)
    if array.shape[:3] != like.shape or array.ndim > 4:
        raise DataError("array and reference differ in shape", path=path, found=array.shape, expected=f"{like.shape} of {like.path}")
    header = headers.for_array(array, like.header, path)
    extension = headers.label_table(labels, header) if labels else b""
    _put(path, header, array, extension)


def write_scan(path: str | os.PathLike, volume: Volume) -> None:
    """Writes an image or label with its values as they are (float64 and bool become float32 and uint8), on its own grid, atomically.

    The header is the volume's with its geometry from `volume.affine`: sform and qform with code 1 unless the volume has others.
    """
    path, array = _checked_name(path), volume.array
    array = array.astype(np.uint8) if array.dtype.kind == "b" else array.astype(np.float32) if array.dtype.kind == "f" else array
    header = headers.new(array.shape, volume.affine, array.dtype)
    for name in ("qform_code", "sform_code"):
        header[name] = max(int(header[name]) and 1, int(volume.header[name])) if int(header[name]) else 0
    _put(path, header, array, b"")


def _checked_name(path: str | os.PathLike) -> Path:
    path = Path(path)
    if not path.name.endswith((".nii.gz", ".nii")):
        raise UsageError("unknown file type", path=path, expected="a name that ends in .nii.gz or .nii")
    return path


def _put(path: Path, header: nib.Nifti1Header, array: np.ndarray, extension: bytes) -> None:
    """The bytes of a file, under a temporary name until they are complete."""
    compress = path.name.endswith(".nii.gz")
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4 + len(extension)
    data = np.ascontiguousarray(np.moveaxis(array, -1, 0) if array.ndim == 4 else array, header.get_data_dtype())
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(temporary, "xb") as file:
            sink = gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) if compress else file
            sink.write(header.binaryblock + (b"\1\0\0\0" if extension else b"\0\0\0\0") + extension)
            sink.write(data.reshape(-1).view(np.uint8))
            if compress:
                sink.close()
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"cannot write ({error.strerror or error})", path=path, fix="check folder, permissions and free space") from error
    finally:
        temporary.unlink(missing_ok=True)


def label_names(path: str | os.PathLike) -> dict[int, str]:
    """Label value -> name from the Caret label table in a file's header (ours or TotalSegmentator's); {} without one."""
    raw = _content(os.fspath(path))
    header = headers.parse(raw, os.fspath(path))
    return headers.parse_label_table(raw[int(header["sizeof_hdr"]) : int(header.get_data_offset())].decode("utf-8", "replace"))


def _open(path: str):
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise DataError("broken symbolic link", path=path, found=f"-> {os.readlink(path)}", fix="restore the target") from error
        raise DataError("file not found", path=path, fix="check the path") from error
    except IsADirectoryError as error:
        raise DataError("a folder, not a file", path=path, fix="give a .nii.gz file") from error
    except OSError as error:
        raise DataError(f"cannot read ({error.strerror})", path=path, fix="check the permissions") from error


def _content(path: str) -> bytes:
    """All bytes of the file, decompressed; a gzip stream is read to its end so that its CRC and length are checked."""
    with _open(path) as file:
        try:
            raw = file.read()
        except OSError as error:
            raise DataError(f"cannot read ({error.strerror})", path=path, fix="check the disk") from error
    if not raw:
        raise DataError("not NIfTI: zero length", path=path, fix="obtain the file again")
    if raw[:2] != GZIP_MAGIC:
        return raw
    try:
        return gzip.decompress(raw)
    except EOFError as error:
        raise DataError("truncated gzip", path=path, found=f"{len(raw)} bytes, no end of stream", fix="obtain the file again") from error
    except (OSError, zlib.error) as error:
        what = "CRC check failed" if "crc" in str(error).lower() or "length" in str(error).lower() else "corrupt gzip"
        raise DataError(f"{what} ({error})", path=path, fix="obtain the file again") from error


def _stored_voxels(raw: bytes, header: nib.Nifti1Header, path: str) -> tuple[np.ndarray, float, float]:
    """Voxels as stored, (..., z, y, x) in native byte order, with slope and intercept."""
    try:
        dtype = header.get_data_dtype()
        slope, inter = header.get_slope_inter()
    except Exception as error:
        raise DataError(f"unusable header ({error})", path=path, fix="mend or convert the file") from error
    if dtype.kind not in "iuf":
        kind = "RGB" if dtype.fields or dtype.kind == "V" else "complex" if dtype.kind == "c" else str(dtype)
        raise DataError(
            f"{kind} voxels", path=path, found=str(dtype), expected="integers or real numbers", fix="convert to one grey value per voxel"
        )
    shape = tuple(int(n) for n in header.get_data_shape())
    offset = int(header.get_data_offset())
    needed = offset + math.prod(shape) * dtype.itemsize
    if len(raw) < needed or offset < int(header["sizeof_hdr"]):
        raise DataError(
            "truncated: shorter than its header says",
            path=path,
            found=f"{len(raw)} bytes",
            expected=f"{needed} bytes",
            fix="obtain the file again",
        )
    stored = np.ndarray(shape[::-1], dtype, buffer=raw, offset=offset)
    if not stored.flags.aligned or not dtype.isnative:
        stored = stored.astype(dtype.newbyteorder("="))
    return stored, 1.0 if slope is None else float(slope), 0.0 if inter is None else float(inter)


def _channels_last(stored: np.ndarray, frame: int | None, path: str) -> np.ndarray:
    """(..., z, y, x) -> (z, y, x) or (z, y, x, m); the missing axes of 1D and 2D files have size 1."""
    if stored.ndim < 3:
        stored = stored.reshape((1,) * (3 - stored.ndim) + stored.shape)
    spatial, frames = stored.shape[-3:], [n for n in stored.shape[:-3] if n > 1]
    if len(frames) > 1:
        raise DataError(
            "more than four dimensions",
            path=path,
            found=f"{stored.shape[::-1]} (x, y, z, ...)",
            expected="3D, or 4D with channels",
            fix="split it",
        )
    stored = stored.reshape(*frames, *spatial)
    if frame is not None:
        count = frames[0] if frames else 1
        if not 0 <= frame < count:
            raise DataError("no such frame", path=path, found=frame, expected=f"0 to {count - 1}")
        stored = stored[frame] if frames else stored
    return stored if stored.ndim == 3 else np.moveaxis(stored, 0, -1)


def _pieces(array: np.ndarray):
    """Slices along the first axis with a bounded number of voxels each."""
    rows = max(1, _PIECE // max(1, math.prod(array.shape[1:])))
    return [slice(i, i + rows) for i in range(0, array.shape[0], rows)]


def _values(stored: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """slope * stored + inter, computed in float64 as nibabel does, kept as float32; integers without scaling stay as they are."""
    if slope == 1.0 and inter == 0.0:
        return stored if stored.dtype.kind in "iu" else np.ascontiguousarray(stored, np.float32)
    out = np.empty(stored.shape, np.float32)
    for piece in _pieces(stored):
        out[piece] = stored[piece].astype(np.float64) * slope + inter
    return out


def _first(mask: np.ndarray, array: np.ndarray) -> str:
    position = tuple(int(i) for i in np.unravel_index(int(np.argmax(mask)), mask.shape))
    return f"{int(mask.sum())} voxels, first {float(array[position]):g} at {position} (z, y, x{', channel' if array.ndim == 4 else ''})"


def _check_finite(array: np.ndarray, path: str, allowed: bool) -> None:
    if array.dtype.kind != "f" or all(np.isfinite(array[piece]).all() for piece in _pieces(array)):
        return
    found = _first(~np.isfinite(array), array)
    if not allowed:
        raise DataError(
            "non-finite voxels", path=path, found=found, expected="finite numbers", fix="mend the file, or allow them to be replaced"
        )
    warnings.warn(f"{path}: non-finite voxels kept: {found}", DataWarning, stacklevel=3)


def _as_labels(array: np.ndarray, path: str) -> np.ndarray:
    """Integers of a label map; fractions and negative values are errors with count and position."""
    if array.dtype.kind == "f":
        broken = array != np.rint(array)
        if broken.any():
            raise DataError(
                "label values that are not whole numbers",
                path=path,
                found=_first(broken, array),
                expected="integers",
                fix="round or redraw",
            )
    if array.dtype.kind != "u" and array.min(initial=0) < 0:
        raise DataError("negative label values", path=path, found=_first(array < 0, array), expected="0 or more", fix="renumber the labels")
    return array.astype(np.min_scalar_type(int(array.max(initial=0)))) if array.dtype.kind == "f" else array
