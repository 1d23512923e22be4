"""Untrusted zip files and numpy's `.npy` members: sizes are checked before anything is inflated.

In: a path. Out: a `zipfile.ZipFile` with a plausible table of contents, members of at most their
declared size, and arrays of plain numbers. Headers of arrays are matched against one pattern: no
part of a file is ever evaluated, not even as a Python literal. (`numpy.load` does that, and in
CPython 3.11 two threads that do so at once can fail with "SystemError: AST constructor recursion
depth".)
"""

import contextlib
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from medjax.errors import DataError, MedjaxError

MEMBERS = 1 << 17
DIRECTORY = 1 << 24  # bytes of a table of contents
GROWTH, SPARE = 16, 1 << 26  # a file may inflate to GROWTH times its size plus SPARE bytes
HEADER = 1 << 16  # bytes of an array's header
NUMBERS = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248])")
_END = struct.Struct("<4s4H2LH")
_END_MAGIC, _LOCAL_MAGIC = b"PK\x05\x06", b"PK\x03\x04"
_HEADER = re.compile(
    r"\{'descr': '(?P<descr>[^']{2,16})', 'fortran_order': (?P<order>True|False), "
    r"'shape': \((?P<shape>[0-9, L]*)\),? ?\}\s*"
)
DAMAGES = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    OverflowError,
    UnicodeError,
    IndexError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
)


@contextlib.contextmanager
def opened(
    path: str | os.PathLike,
    *,
    error: Callable[..., MedjaxError] = DataError,
    fix: str = "obtain the file again",
) -> Iterator[zipfile.ZipFile]:
    """A zip file during a block; any damage becomes `error` naming the file.

    Refused before anything is inflated: a table of contents that is too large, members that are
    encrypted, repeated or links, and declared sizes that together exceed 16 times the file plus 64
    MiB.
    """
    path = Path(path)
    try:
        check_directory(path, error=error)
        with zipfile.ZipFile(path) as archive:
            _check_members(archive.infolist(), path, error)
            yield archive
    except MedjaxError:
        raise
    except DAMAGES as reason:
        raise error(f"not a readable zip file ({_said(reason)})", path=path, fix=fix) from reason


def check_directory(
    path: Path,
    *,
    error: Callable[..., MedjaxError] = DataError,
    limit: int = DIRECTORY,
    exact: bool = False,
) -> None:
    """Checks whether the end record of a zip file gives a table of contents that can be read.

    Args:
      limit: bytes of the table. exact: the first member starts the file and the end record ends it,
        so that the file contains nothing else.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(4)
        file.seek(max(0, size - _END.size - (1 << 16)))
        tail = file.read()
    at = tail.rfind(_END_MAGIC)
    if at < 0 or len(tail) - at < _END.size:
        raise error("no zip file (its end is missing)", path=path, fix="obtain the file again")
    *_, entries, table, start, comment = _END.unpack_from(tail, at)
    if table > limit and table != 0xFFFFFFFF:
        raise error(
            "a zip file with too large a table of contents",
            path=path,
            found=f"{table:,} bytes",
            expected=f"at most {limit:,}",
        )
    if table == 0xFFFFFFFF or entries == 0xFFFF or start == 0xFFFFFFFF:
        table, start = _large(tail, at, path, error, limit)
    if exact:
        end = size - len(tail) + at
        if first != _LOCAL_MAGIC:
            raise error(
                "bytes before the zip file",
                path=path,
                found=repr(first),
                expected="a file that begins with its first member",
            )
        if end + _END.size != size or comment:
            raise error(
                "bytes after the zip file",
                path=path,
                found=f"{size - end - _END.size:,} bytes",
                expected="none",
            )
        if start + table != end:
            raise error(
                "bytes between the parts of the zip file",
                path=path,
                found=f"table at {start:,}",
                expected=f"{end - table:,}",
            )


def _large(
    tail: bytes, at: int, path: Path, error: Callable[..., MedjaxError], limit: int
) -> tuple[int, int]:
    """Size and place of the table of contents of a zip file beyond 4 GiB or 65,535 members."""
    if at < 76 or tail[at - 76 : at - 72] != b"PK\x06\x06":
        raise error("a zip file with a damaged end", path=path, fix="obtain the file again")
    entries, table, start = struct.unpack_from("<3Q", tail, at - 76 + 32)
    if table > limit or entries > MEMBERS:
        raise error(
            "a zip file with too large a table of contents",
            path=path,
            found=f"{entries:,} members",
            expected=f"at most {MEMBERS:,}",
        )
    return table, start


def _check_members(
    entries: list[zipfile.ZipInfo], path: Path, error: Callable[..., MedjaxError]
) -> None:
    if len(entries) > MEMBERS:
        raise error(
            "too many members",
            path=path,
            found=f"{len(entries):,}",
            expected=f"at most {MEMBERS:,}",
        )
    if len({entry.filename for entry in entries}) != len(entries):
        raise error("a zip file with one name twice", path=path)
    total, limit = sum(entry.file_size for entry in entries), GROWTH * path.stat().st_size + SPARE
    if total > limit:
        raise error(
            "a zip file that inflates to much more than it is",
            path=path,
            found=f"{total:,} bytes",
            expected=f"at most {limit:,}",
            fix="do not use it; a file of yours: write it without compression",
        )
    if any(entry.flag_bits & 1 for entry in entries):
        raise error("an encrypted member", path=path)


def content(archive: zipfile.ZipFile, name: str, limit: int | None = None) -> bytes:
    """A whole member: at most its declared size, and at most `limit` bytes.

    `ValueError` for more, `KeyError` for a missing member.
    """
    entry = archive.getinfo(name)
    most = entry.file_size if limit is None else min(limit, entry.file_size)
    if entry.file_size > most:
        raise ValueError(
            f"member {name[:80]!r} has {entry.file_size:,} bytes, more than the {most:,} that are "
            "plausible"
        )
    with archive.open(entry) as member:
        found = member.read(most + 1)
    if len(found) != entry.file_size:
        raise ValueError(f"member {name[:80]!r} is not as long as the table of contents says")
    return found


def arrays(archive: zipfile.ZipFile) -> tuple[str, ...]:
    """Names of the arrays in an npz file."""
    return tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))


def read_npz(
    path: str | os.PathLike, *, error: Callable[..., MedjaxError] = DataError, strings: bool = False
) -> dict[str, np.ndarray]:
    """Every array of an npz file, by name.

    Args:
      strings: byte strings are allowed beside numbers.

    Raises: `error` for a damaged file, for objects, structures and text, and for headers that
      promise more than the file holds.
    """
    with opened(path, error=error) as archive:
        found = {}
        for name in archive.namelist():
            if not name.endswith(".npy"):
                raise error(
                    "a member that is no array",
                    path=path,
                    found=repr(name)[:80],
                    expected="NAME.npy",
                )
            try:
                found[name[:-4]] = array(content(archive, name), strings=strings)
            except ValueError as reason:
                raise error(
                    f"an array that cannot be read ({_said(reason)})",
                    path=path,
                    found=repr(name)[:80],
                ) from reason
        return found


def array(data: bytes, *, strings: bool = False) -> np.ndarray:
    """The array in the bytes of an `.npy` file, read-only.

    `ValueError` for anything but plain numbers in their full length.
    """
    begin, kind, shape, order = layout(data, len(data), strings=strings)
    return np.frombuffer(data, kind, offset=begin).reshape(shape, order=order)


def layout(
    start: bytes, size: int, *, strings: bool = False
) -> tuple[int, np.dtype, tuple[int, ...], str]:
    """(first byte of the numbers, dtype, shape, "C" or "F") of an `.npy` file.

    The file has `size` bytes and begins with `start`. Raises as `array`.
    """
    if start[:6] != b"\x93NUMPY" or len(start) < 12 or start[6] not in (1, 2, 3):
        raise ValueError("no array in numpy's format")
    begin, length = (
        (10, int.from_bytes(start[8:10], "little"))
        if start[6] == 1
        else (12, int.from_bytes(start[8:12], "little"))
    )
    if length > HEADER or begin + length > len(start):
        raise ValueError("a header beyond its file")
    kind, shape, order = header(start[begin : begin + length], strings=strings)
    if math.prod(shape) * kind.itemsize != size - begin - length:
        raise ValueError(
            f"the header promises {shape} of {kind}, but {size - begin - length:,} bytes are there"
        )
    return begin + length, kind, shape, order


def header(text: bytes, *, strings: bool = False) -> tuple[np.dtype, tuple[int, ...], str]:
    """(dtype, shape, "C" or "F") of the text of an `.npy` header.

    `ValueError` unless it describes an array of plain numbers.
    """
    found = _HEADER.fullmatch(text.decode("latin1"))
    if not found:
        raise ValueError("objects, structures or a damaged header")
    descr = found["descr"]
    if not NUMBERS.fullmatch(descr) and not (strings and re.fullmatch(r"\|S\d{1,4}", descr)):
        raise ValueError(f"elements of type {descr!r} where numbers are expected")
    parts = [part.strip().rstrip("L") for part in found["shape"].split(",")]
    if not all(part.isdigit() and len(part) < 19 for part in parts if part) or len(parts) > 32:
        raise ValueError("an unusable shape")
    return (
        np.dtype(descr),
        tuple(int(part) for part in parts if part),
        "F" if found["order"] == "True" else "C",
    )


def _said(reason: BaseException) -> str:
    text = str(reason)[:200]
    return f"{type(reason).__name__}: {text}" if text else type(reason).__name__
