"""NRRD and MetaImage files through SimpleITK, with checks that ITK does not make.

In: a path. Out: a `nifti.Volume`. ITK's world is LPS, medjax' is RAS: the first two rows of the
affine change sign. ITK does not verify a gzip stream's checksum, so compressed data is also read to
its end here.
"""

import math
import os
import re
import zlib
from collections.abc import Sequence

import numpy as np

from medjax.errors import DataError
from medjax.scans import content, text_header
from medjax.scans import header as headers
from medjax.scans.extras import needs
from medjax.scans.nifti import Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_CHUNK, _PIECE = 1 << 18, 1 << 23  # compressed bytes per read, inflated bytes per step
_REST = (
    1 << 26
)  # inflated bytes behind the last voxel that are passed over, or as many as there should be
_WIDTH = re.compile(r"(\d+)-bit")


def read(path: str, *, pixels: bool = True) -> Volume:
    """Reads .nrrd, .nhdr, .mha or .mhd; (z, y, x) or (z, y, x, m).

    Raises: `DataError` for a missing, damaged or truncated file, RGB or complex voxels, or an
      unusable geometry.
    """
    content.check_file(path)
    sitk, meta = needs("SimpleITK", path), path.lower().endswith((".mha", ".mhd"))
    if os.path.getsize(path) == 0:
        raise DataError("zero length", path=path, fix="obtain the file again")
    fields, parts = text_header.read(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.SetImageIO("MetaImageIO" if meta else "NrrdImageIO")
    try:
        reader.ReadImageInformation()
        needed = _bytes(sitk, reader)
        _check_promise(needed, parts, fields, meta, path)
        if pixels:
            content.check_memory(2 * needed, path, "voxels, twice")
        image = reader.Execute() if pixels else None
    except (RuntimeError, OverflowError, ValueError) as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        raise DataError(
            "cannot be read (damaged or truncated)",
            path=path,
            found=reason[:200],
            fix="obtain the file again",
        ) from error
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue()).lower()
    channels, dimension = reader.GetNumberOfComponents(), reader.GetDimension()
    if "complex" in kind or (channels == 3 and "8-bit" in kind):
        what = "complex" if "complex" in kind else "RGB"
        raise DataError(
            f"{what} voxels",
            path=path,
            found=kind,
            expected="integers or real numbers",
            fix="convert to one grey value per voxel",
        )
    size = reader.GetSize()
    if dimension > 4 or (dimension == 4 and channels > 1):
        raise DataError(
            "more than four dimensions",
            path=path,
            found=f"{size} (x, y, z, ...)",
            expected="3D, or 4D with channels",
            fix="split it",
        )
    affine = affine_of(reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection(), path)
    shape = (*(*size, 1)[2::-1], *((channels,) if channels > 1 else size[3:]))
    array = None
    if pixels:
        array = sitk.GetArrayFromImage(image)
        found = check_stream(path, needed)
        if (
            meta
            and found is not None
            and found
            != zlib.crc32(array.byteswap() if text_header.is_big_endian(fields) else array)
        ):
            raise DataError(
                "compressed voxels that were not unpacked",
                path=path,
                found=f"CompressedDataSize {fields.get('compresseddatasize')}",
                expected="the size of what follows the header",
                fix="obtain the file again, or write it without compression",
            )
        array = (
            np.moveaxis(array, 0, -1)
            if dimension == 4
            else array[None]
            if dimension == 2
            else array
        )
        array = (
            array.astype(np.float32)
            if array.dtype.kind == "f" and array.dtype != np.float32
            else array
        )
    return Volume(
        array,
        affine,
        headers.new(shape, affine, np.float32 if array is None else array.dtype),
        path,
    )


def affine_of(spacing: Sequence, origin: Sequence, direction: Sequence, path: str) -> np.ndarray:
    """ITK's spacing, origin and direction -> checked RAS+ affine, nibabel's (x, y, z) order.

    Origin in mm, LPS; row-major direction; 2 to 4 axes.
    """
    n, used = len(spacing), min(len(spacing), 3)
    affine = np.eye(4)
    affine[:used, :used] = np.reshape(direction, (n, n))[:used, :used] * np.array(spacing[:used])
    affine[:used, 3] = origin[:used]
    affine = headers.check_regular(LPS_TO_RAS @ affine, path)
    headers.check_shear(affine, path)
    return affine


def check_stream(path: str, needed: int | None = None) -> int | None:
    """Reads the compressed voxels of a NRRD or MetaImage file to their end.

    Args:
      needed: expected bytes of voxels; far more of them are an error before all are inflated.

    Returns: the CRC-32 of those bytes, None if nothing is compressed.
    Raises: `DataError` if a stream does not end with a valid checksum, or holds far more or fewer
      bytes.
    """
    meta = path.lower().endswith((".mha", ".mhd"))
    fields, parts = text_header.read(path)
    if not text_header.is_compressed(fields, meta):
        return None
    total, crc = 0, 0
    limit = None if needed is None else needed + max(needed, _REST)
    for part, start in parts:
        stream, count = (
            zlib.decompressobj(zlib.MAX_WBITS | 32),
            0,
        )  # zlib or gzip, by the first bytes
        try:
            with content.open_file(part) as file:
                file.seek(start)
                while not stream.eof and (piece := stream.unconsumed_tail or file.read(_CHUNK)):
                    inflated = stream.decompress(piece, _PIECE)
                    crc = zlib.crc32(
                        inflated if needed is None else inflated[: max(0, needed - total - count)],
                        crc,
                    )
                    count += len(inflated)
                    if limit is not None and count > limit:
                        raise DataError(
                            "the file holds more than its header says",
                            path=part,
                            found=f"over {count} bytes of voxels",
                            expected=f"{needed} bytes",
                            fix="the sizes in the header are too small: obtain the file again",
                        )
        except (OSError, zlib.error) as error:
            raise DataError(
                f"corrupt compressed voxels ({error})", path=part, fix="obtain the file again"
            ) from error
        if not stream.eof:
            raise DataError(
                "truncated compressed voxels",
                path=part,
                found="no end of stream",
                fix="obtain the file again",
            )
        total += count
    if needed is not None and total < needed:
        raise DataError(
            "truncated compressed voxels",
            path=path,
            found=f"{total} bytes",
            expected=f"{needed} bytes",
            fix="obtain the file again",
        )
    return crc


def _bytes(sitk, reader) -> int:
    """Bytes of the voxels, by the header."""
    width = _WIDTH.search(sitk.GetPixelIDValueAsString(reader.GetPixelIDValue()))
    return (
        math.prod(reader.GetSize())
        * reader.GetNumberOfComponents()
        * (int(width[1]) // 8 if width else 1)
    )


def _check_promise(
    needed: int, parts: list[tuple[str, int]], fields: dict[str, str], meta: bool, path: str
) -> None:
    """`DataError` if the files are too small to hold `needed` bytes of voxels."""
    size = sum(max(0, os.path.getsize(part) - start) for part, start in parts)
    raw = not text_header.is_compressed(fields, meta) and (
        meta or fields.get("encoding", "") == "raw"
    )
    if (size if raw else size * content.INFLATION) < needed:
        raise DataError(
            "cannot be read (truncated: shorter than its header says)",
            path=path,
            found=f"{size} bytes",
            expected=f"{needed} bytes",
            fix="obtain the file again",
        )
