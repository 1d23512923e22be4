"""NRRD and MetaImage files through SimpleITK, with the checks that ITK leaves out.

A path goes in, a `nifti.Volume` comes out. ITK's world is LPS, ours RAS: the first two rows of the affine change sign. ITK does not look at
a gzip stream's checksum, so compressed data is read to its end here as well.
"""

import os
import zlib
from pathlib import Path

import numpy as np

from medjax.data import header as headers
from medjax.data.formats import needs
from medjax.data.nifti import Volume
from medjax.errors import DataError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_CHUNK = 1 << 20
_HEADER = 1 << 16


def read(path: str, *, pixels: bool = True) -> Volume:
    """Reads .nrrd, .nhdr, .mha or .mhd; (z, y, x) or (z, y, x, m).

    Raises: `DataError` for a missing, damaged or truncated file, RGB or complex voxels, or an unusable geometry.
    """
    sitk = needs("SimpleITK")
    if not os.path.isfile(path):
        broken = os.path.islink(path)
        raise DataError("broken symbolic link" if broken else "file not found", path=path, fix="check the path")
    if os.path.getsize(path) == 0:
        raise DataError("zero length", path=path, fix="obtain the file again")
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.SetImageIO("MetaImageIO" if path.lower().endswith((".mha", ".mhd")) else "NrrdImageIO")
    try:
        reader.ReadImageInformation()
        image = reader.Execute() if pixels else None
    except RuntimeError as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        raise DataError("cannot be read (damaged or truncated)", path=path, found=reason[:200], fix="obtain the file again") from error
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue()).lower()
    channels, dimension = reader.GetNumberOfComponents(), reader.GetDimension()
    if "complex" in kind or (channels == 3 and "8-bit" in kind):
        what = "complex" if "complex" in kind else "RGB"
        raise DataError(
            f"{what} voxels", path=path, found=kind, expected="integers or real numbers", fix="convert to one grey value per voxel"
        )
    size = reader.GetSize()
    if dimension > 4 or (dimension == 4 and channels > 1):
        raise DataError(
            "more than four dimensions", path=path, found=f"{size} (x, y, z, ...)", expected="3D, or 4D with channels", fix="split it"
        )
    affine = affine_of(reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection(), path)
    shape = (*(*size, 1)[2::-1], *((channels,) if channels > 1 else size[3:]))
    array = None
    if pixels:
        check_stream(path)
        array = sitk.GetArrayFromImage(image)
        array = np.moveaxis(array, 0, -1) if dimension == 4 else array[None] if dimension == 2 else array
        array = array.astype(np.float32) if array.dtype.kind == "f" and array.dtype != np.float32 else array
    return Volume(array, affine, headers.new(shape, affine, np.float32 if array is None else array.dtype), path)


def affine_of(spacing: tuple, origin: tuple, direction: tuple, path: str) -> np.ndarray:
    """ITK's spacing, origin (mm, LPS) and row-major direction of 2 to 4 axes -> checked RAS+ affine, nibabel's (x, y, z) order."""
    n, used = len(spacing), min(len(spacing), 3)
    affine = np.eye(4)
    affine[:used, :used] = np.reshape(direction, (n, n))[:used, :used] * np.array(spacing[:used])
    affine[:used, 3] = origin[:used]
    affine = headers.check_regular(LPS_TO_RAS @ affine, path)
    headers.check_shear(affine, path)
    return affine


def check_stream(path: str) -> None:
    """`DataError` if the compressed voxels of a NRRD or MetaImage file do not end with a valid checksum; others pass."""
    with open(path, "rb") as file:
        start = file.read(_HEADER)
    meta = path.lower().endswith((".mha", ".mhd"))
    text, end = _header_text(start, meta)
    fields = dict(_fields(text, meta))
    compressed = fields.get("compresseddata", "").lower() == "true" if meta else fields.get("encoding", "") in ("gzip", "gz")
    if not compressed:
        return
    named = fields.get("elementdatafile", "LOCAL") if meta else fields.get("data file", fields.get("datafile", "LOCAL"))
    if named.upper() != "LOCAL":
        path, end = str(Path(path).parent / named), 0
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)  # zlib or gzip, told apart by the first bytes
    try:
        with open(path, "rb") as file:
            file.seek(end)
            while not stream.eof and (piece := file.read(_CHUNK)):
                stream.decompress(piece)
    except (OSError, zlib.error) as error:
        raise DataError(f"corrupt compressed voxels ({error})", path=path, fix="obtain the file again") from error
    if not stream.eof:
        raise DataError("truncated compressed voxels", path=path, found="no end of stream", fix="obtain the file again")


def _header_text(start: bytes, meta: bool) -> tuple[str, int]:
    """The text header and the byte behind it."""
    if meta:
        at = start.find(b"ElementDataFile")
        end = start.find(b"\n", at) + 1 if at >= 0 else len(start)
    else:
        blank = [(i, len(mark)) for mark in (b"\n\n", b"\r\n\r\n") if (i := start.find(mark)) >= 0]
        end = sum(min(blank)) if blank else len(start)
    return start[:end].decode("latin-1"), end


def _fields(text: str, meta: bool):
    for line in text.splitlines():
        key, mark, value = line.partition("=" if meta else ":")
        if mark and not line.startswith("#"):
            yield key.strip().lower(), value.strip().lstrip("=").strip()
