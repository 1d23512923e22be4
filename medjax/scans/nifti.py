"""NIfTI files in and out, in nibabel's (x, y, z) order.

Reading: a path -> a `Volume` with a (z, y, x[, m]) array, its affine and its exact header, or a
`DataError` that names file, finding and fix. Writing: a mask and the volume it belongs to -> a file
with the same grid and header, written atomically.
"""

import dataclasses
import gzip
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medjax import files
from medjax.errors import DataError, UsageError, did_you_mean
from medjax.scans import content, label_table, voxels
from medjax.scans import header as headers
from medjax.scans.content import GZIP_MAGIC
from medjax.scans.header import DataWarning
from medjax.scans.voxels import finished

__all__ = [
    "GZIP_MAGIC",
    "DataWarning",
    "Volume",
    "check_same_geometry",
    "finished",
    "label_names",
    "read",
    "read_case",
    "read_geometry",
    "write",
]

GZIP_LEVEL = 1
SAME_VOXELS, OTHER_VOXELS = 1e-3, 0.5
REST = 1 << 26  # bytes behind the last voxel that are read, or as many as there should be in all
PADDING = 4096  # bytes behind the last voxel that are no sign of wrong sizes
EXTENSIONS = 1 << 24  # bytes of header extensions in which names are searched


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """A scan or label map as stored, with its geometry.

    Attributes:
      array: (z, y, x) or (z, y, x, m) values with slope and intercept applied; may be read-only.
        None after `read_geometry`.
      affine: (4, 4) float64, nibabel's (x, y, z) voxel -> RAS+ mm.
      header: nibabel header exactly as in the file, for `write`.
      path: where it came from.
      hashes: path -> sha256 of the files it was read from, where that was asked for and the format
        is read byte by byte (NIfTI).
    """

    array: np.ndarray | None
    affine: np.ndarray
    header: nib.Nifti1Header
    path: str
    hashes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along (z, y, x) in mm, from the affine."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x) sizes of the grid, known without pixels."""
        return headers.grid_shape(self.header)[::-1]


def read(
    path: str | os.PathLike,
    *,
    frame: int | None = None,
    allow_nonfinite: bool = False,
    want: str = "image",
    replace_nan: voxels.Replacement = None,
    hashed: bool = False,
) -> Volume:
    """Reads a `.nii` or `.nii.gz` file (detected by content, not by name) to its last byte.

    Args:
      frame: one frame or channel of a 4D file, counted from 0; None keeps all of them as the last
        axis.
      allow_nonfinite: keep NaN and infinite voxels (with a DataWarning that counts them) instead of
        raising.
      want: "image" returns float32, or the stored integer type if slope is 1 and intercept 0;
        "label" returns integers and refuses fractions, negative values and several channels.
      replace_nan: of an image: see `voxels.finished`.
      hashed: also hash the file, without reading it again.

    Returns: `Volume` with (z, y, x), or (z, y, x, m) for a 4D file.

    Raises: DataError for a file that is missing, unreadable, no regular file, a broken link, empty,
      not NIfTI, truncated, much longer than its header says, larger than the memory, fails its CRC,
      has voxels that are no real numbers, non-finite values, or a geometry that `header.affine_of`
      refuses. Doubtful geometry, surplus bytes and voxels far from all others warn (DataWarning).
    """
    if want not in ("image", "label"):
        raise UsageError(f"unknown kind {want!r}", fix=did_you_mean(want, ("image", "label")))
    path = os.fspath(path)
    with content.stream(path, hashed=hashed) as source, content.memory(path):
        start = source.read(540)
        header = headers.parse(start, path)
        source.check_promise(_needed(header, path), path)
        affine = headers.affine_of(header, path)
        slope, inter = headers.scaling(header, path)
        stored = _stored_voxels(source, start, header, frame, path)
        array = voxels.scaled(stored, slope, inter)
        if want == "label" and array.ndim == 4:
            raise DataError(
                "a label map with several channels",
                path=path,
                found=f"{array.shape[-1]} in 4D",
                expected="one 3D label map",
                fix="give one file, or say which frame is meant",
            )
        array = voxels.finished(array, want, path, allow_nonfinite, replace_nan)
        hashes = {path: source.digest()} if hashed else {}
        return Volume(array, affine, header, path, hashes)


def replaced(volume: Volume, array: np.ndarray | None) -> Volume:
    """The volume with other voxels on the same grid."""
    return dataclasses.replace(volume, array=array)


def read_geometry(path: str | os.PathLike) -> Volume:
    """Like `read`, but only the header: `array` is None.

    Damage behind the header is not detected, unless the file is far too short.
    """
    path = os.fspath(path)
    with content.stream(path) as source:
        header = headers.parse(source.read(540), path)
        source.check_promise(_needed(header, path), path)
        affine = headers.affine_of(header, path)
    return Volume(None, affine, header, path)


def read_case(
    image_paths: Sequence[str | os.PathLike],
    *,
    reader: Callable[..., Volume] | None = None,
    native: bool = False,
    **options: Any,
) -> Volume:
    """Reads the channels of one case, one file each (or one 4D file), stacked to (z, y, x, m).

    float32; `native` keeps the result of `read` for a single file: unscaled integers stay integers.
    `reader` reads one file, with `options` (default: `read`).

    Geometry and header are the first file's; a channel on another grid is a DataError that names
    both files.
    """
    if not image_paths:
        raise UsageError("a case without images", fix="give at least one image path")
    volumes = [(reader or read)(path, **options) for path in image_paths]
    for volume in volumes[1:]:
        check_same_geometry(volumes[0], volume)
    for volume in volumes:
        if len(volumes) > 1 and volume.array.ndim == 4:
            raise DataError(
                "a 4D file among several channel files",
                path=volume.path,
                found=f"{volume.array.shape[-1]} frames",
                expected="one 3D file per channel",
                fix="pick one with --frame, or give the 4D file alone to use its frames as "
                "channels",
            )
    hashes = {path: digest for volume in volumes for path, digest in volume.hashes.items()}
    first = dataclasses.replace(volumes[0], hashes=hashes)
    if len(volumes) == 1:
        array = first.array if native else np.asarray(first.array, np.float32)
        return dataclasses.replace(first, array=array if array.ndim == 4 else array[..., None])
    array = np.empty((*first.shape, len(volumes)), np.float32)
    for channel, volume in enumerate(volumes):
        array[..., channel] = volume.array
    return dataclasses.replace(first, array=array)


def check_same_geometry(a: Volume, b: Volume) -> None:
    """Passes if two volumes share one grid: same shape, corners within 1e-3 voxel.

    Warns up to 0.5 voxel, raises DataError beyond.
    """
    if a.shape != b.shape:
        raise DataError(
            "different shapes",
            path=f"{a.path} and {b.path}",
            found=f"{b.shape} (z, y, x)",
            expected=f"{a.shape}",
            fix="resample one of them to the grid of the other",
        )
    points = headers.corners(a.shape[::-1])
    apart_mm = ((b.affine - a.affine) @ points)[:3]
    voxels = float(np.abs(np.linalg.inv(a.affine[:3, :3]) @ apart_mm).max())
    millimetres = float(np.linalg.norm(apart_mm, axis=0).max())
    if voxels > OTHER_VOXELS:
        raise DataError(
            "different geometry",
            path=f"{a.path} and {b.path}",
            found=f"corners {millimetres:.4g} mm ({voxels:.3g} voxels) apart",
            expected=f"at most {OTHER_VOXELS} voxel",
            fix="check origin and direction; resample one of them to the grid of the other",
        )
    if voxels > SAME_VOXELS:
        warnings.warn(
            f"{a.path} and {b.path}: grids {millimetres:.3g} mm ({voxels:.2g} voxels) apart at a "
            "corner",
            DataWarning,
            stacklevel=2,
        )


def write(
    path: str | os.PathLike,
    array: np.ndarray,
    like: Volume,
    *,
    labels: Mapping[int, str] | None = None,
) -> None:
    """Writes a mask or probability map on the grid of `like`, atomically.

    Shape, affine, qform/sform with codes, pixdim and xyzt_units are the input's, bit by bit; slope
    1, intercept 0; bool and integers become uint8 (uint16 from value 256), floats float32; gzip
    level 1. The file appears under its name complete or not at all.

    Args:
      array: (z, y, x), or (z, y, x, c) for several maps in one file.
      like: the volume whose grid this is (`read` or `read_geometry`).
      labels: value -> name, stored as a Caret label table in a NIfTI extension.

    Raises: DataError for another shape, values that do not fit, or a file system that refuses.
    """
    path = _checked_name(path)
    array = np.asarray(array)
    if array.shape[:3] != like.shape or array.ndim > 4:
        raise DataError(
            "array and reference differ in shape",
            path=path,
            found=array.shape,
            expected=f"{like.shape} of {like.path}",
        )
    header = headers.for_array(array, like.header, path)
    extension = label_table.table_bytes(labels, header) if labels else b""
    _put(path, header, array, extension)


def write_scan(path: str | os.PathLike, volume: Volume) -> None:
    """Writes an image or label with unchanged values on its own grid, atomically.

    float64 and bool become float32 and uint8. The header is the volume's with its geometry from
    `volume.affine`: sform and qform with code 1 unless the volume has others.
    """
    path, array = _checked_name(path), volume.array
    array = (
        array.astype(np.uint8)
        if array.dtype.kind == "b"
        else array.astype(np.float32)
        if array.dtype.kind == "f"
        else array
    )
    header = headers.new(array.shape, volume.affine, array.dtype)
    for name in ("qform_code", "sform_code"):
        header[name] = (
            max(int(header[name]) and 1, int(volume.header[name])) if int(header[name]) else 0
        )
    _put(path, header, array, b"")


def _checked_name(path: str | os.PathLike) -> Path:
    path = Path(path)
    if not path.name.endswith((".nii.gz", ".nii")):
        raise UsageError(
            "unknown file type", path=path, expected="a name that ends in .nii.gz or .nii"
        )
    return path


def _put(path: Path, header: nib.Nifti1Header, array: np.ndarray, extension: bytes) -> None:
    """The bytes of a file, which gets its name when they are complete."""
    compress = path.name.endswith(".nii.gz")
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4 + len(extension)
    data = np.ascontiguousarray(
        np.moveaxis(array, -1, 0) if array.ndim == 4 else array, header.get_data_dtype()
    )
    with files.replacing(path, error=DataError) as file:
        sink = gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) if compress else file
        sink.write(header.binaryblock + (b"\1\0\0\0" if extension else b"\0\0\0\0") + extension)
        sink.write(data.reshape(-1).view(np.uint8))
        if compress:
            sink.close()
        file.flush()
        os.fsync(file.fileno())


def label_names(path: str | os.PathLike) -> dict[int, str]:
    """Label value -> name from the Caret label table in a file's header; {} without one."""
    path = os.fspath(path)
    with content.stream(path) as source:
        start = source.read(540)
        header = headers.parse(start, path)
        end = min(int(header["vox_offset"]), EXTENSIONS)
        raw = start + source.read(end - len(start))
    return label_table.parse(raw[int(header["sizeof_hdr"]) : end].decode("utf-8", "replace"))


def _needed(header: nib.Nifti1Header, path: str) -> int:
    """Bytes up to and with the last voxel."""
    return (
        int(header["vox_offset"])
        + math.prod(map(int, header.get_data_shape())) * headers.voxel_type(header, path).itemsize
    )


def _stored_voxels(
    source: content.Stream, start: bytes, header: nib.Nifti1Header, frame: int | None, path: str
) -> np.ndarray:
    """Voxels as stored, (z, y, x) or (z, y, x, m) in native byte order.

    The file is read to its end.

    Args:
      start: the bytes that were read already, header and what follows. frame: the only frame of a
        4D file that is kept in memory.
    """
    dtype, needed = headers.voxel_type(header, path), _needed(header, path)
    *spatial, frames = _sizes(header, path)
    offset, first, kept = int(header["vox_offset"]), 0, frames
    if frame is not None:
        if not 0 <= frame < frames:
            fix = (
                "frames are counted from 0"
                if frames > 1
                else "the file holds one 3D scan: leave --frame out"
            )
            raise DataError(
                "no such frame", path=path, found=frame, expected=f"0 to {frames - 1}", fix=fix
            )
        first, kept = frame, 1
    each = math.prod(spatial) * dtype.itemsize
    raw = content.reserve(kept * each, path)
    skipped = offset + first * each  # of the file, the part in `start` included
    here = np.frombuffer(start[skipped : skipped + len(raw)], np.uint8)
    raw[: len(here)] = here
    source.skip(skipped - source.position)
    source.fill(raw[len(here) :])
    source.skip(needed - source.position)
    if source.position < needed:
        raise DataError(
            "truncated: shorter than its header says",
            path=path,
            found=f"{source.position} bytes",
            expected=f"{needed} bytes",
            fix="obtain the file again",
        )
    _check_rest(source, start[needed:], needed, each // max(1, spatial[0]), path)
    stored = raw.view(dtype).reshape(kept, *spatial)
    stored = stored if dtype.isnative else stored.astype(dtype.newbyteorder("="))
    return stored[0] if kept == 1 else np.moveaxis(stored, 0, -1)


def _sizes(header: nib.Nifti1Header, path: str) -> tuple[int, int, int, int]:
    """(z, y, x, frames); the missing axes of 1D and 2D files have size 1."""
    shape = (*map(int, header.get_data_shape()), 1, 1)
    further = [n for n in shape[3:] if n > 1]
    if len(further) > 1:
        raise DataError(
            "more than four dimensions",
            path=path,
            found=f"{tuple(map(int, header.get_data_shape()))} (x, y, z, ...)",
            expected="3D, or 4D with channels",
            fix="split it",
        )
    return (*shape[2::-1], further[0] if further else 1)


def _check_rest(
    source: content.Stream, passed: bytes, needed: int, slice_bytes: int, path: str
) -> None:
    """Reads to the end of the file and checks the bytes behind the last voxel.

    Some bytes warn; as many as a slice mean that the header is wrong.

    Args:
      passed: number of bytes read already. slice_bytes: bytes of one slice, by the header.
    """
    rest = source.rest(max(needed, REST))
    size, start = len(passed) + rest.size, (passed + rest.start)[:540]
    if not size:
        return
    zero, most = rest.zero and not any(passed), max(slice_bytes, PADDING)
    found, expected = (
        f"{'' if rest.complete else 'over '}{size} bytes behind the last voxel",
        f"{needed} bytes in all, by the header",
    )
    fix = "the sizes in the header are too small, or something was appended: obtain the file again"
    another = start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] == b"n+2\0"
    if (not rest.complete and source.compressed) or (size >= most and not zero and not another):
        raise DataError(
            "the file holds more than its header says",
            path=path,
            found=found,
            expected=expected,
            fix=fix,
        )
    if another or not zero or size >= most:
        what = (
            "another NIfTI file, which is not read" if another else "zeros" if zero else "left over"
        )
        warnings.warn(
            f"{path}: {found} ({what}); expected {expected}. Fix: {fix}", DataWarning, stacklevel=4
        )
