"""The bytes of a scan file: only regular files are opened, and inflated only as far as requested.

In: a path. Out: a `Stream` of its bytes, decompressed if they are gzip (detected by content);
checksums are verified at the end of each member. Pipes, devices and folders are refused before they
are opened, so nothing blocks; only requested bytes are held in memory.
"""

import contextlib
import dataclasses
import errno
import hashlib
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from medjax.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
INFLATION = 1032  # no deflate stream grows by more than this factor
KNOWN_SMALL = 1 << 26  # bytes that are allocated without checking the free memory
_CHUNK, _PIECE = 1 << 18, 1 << 23  # compressed bytes per read, inflated bytes per step
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder, not a scan"),
    (stat.S_ISFIFO, "a pipe (FIFO), not a scan"),
    (stat.S_ISSOCK, "a socket, not a scan"),
    (stat.S_ISCHR, "a device, not a scan"),
    (stat.S_ISBLK, "a device, not a scan"),
)
_CONTENT = (
    (b"PK\3\4", "a zip archive"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstandard data"),
    (GZIP_MAGIC, "gzip data inside gzip"),
    (b"NRRD", "a NRRD file"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8", "a JPEG picture"),
    (b"%PDF", "a PDF file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"#!", "a script"),
    (b"\x7fELF", "a program"),
)


def check_file(path: str | os.PathLike) -> os.stat_result:
    """The status of a file, without opening it.

    Raises: `DataError` for missing files, broken or circular links, folders, pipes, sockets,
      devices, and missing permission.
    """
    path = os.fspath(path)
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    for is_kind, what in _KINDS:
        if is_kind(found.st_mode):
            raise DataError(what, path=path, fix="give the file of the scan, e.g. a .nii.gz file")
    return found


def unreadable(path: str, error: OSError | ValueError) -> DataError:
    """The error for a path that cannot be opened or read."""
    if not isinstance(error, OSError):
        return DataError("unusable path", path=path, found=str(error), fix="check the path")
    target = None
    if os.path.islink(path):
        with contextlib.suppress(OSError):
            target = f"-> {os.readlink(path)}"
    if error.errno == errno.ELOOP:
        return DataError(
            "a symbolic link that leads back to itself",
            path=path,
            found=target,
            fix="point it at the scan",
        )
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        if target:
            return DataError(
                "broken symbolic link", path=path, found=target, fix="restore the target"
            )
        return DataError("file not found", path=path, fix="check the path")
    if isinstance(error, IsADirectoryError):
        return DataError(
            _KINDS[0][1], path=path, fix="give the file of the scan, e.g. a .nii.gz file"
        )
    fix = (
        "check the permissions"
        if isinstance(error, PermissionError)
        else "check the path, and the disk it lies on"
    )
    return DataError(f"cannot read ({error.strerror or error})", path=path, fix=fix)


def open_file(path: str | os.PathLike) -> BinaryIO:
    """A regular file opened for reading; see `check_file` for what is refused."""
    path = os.fspath(path)
    check_file(path)
    try:  # does not block on a pipe that replaced the file meanwhile
        file = open(
            path,
            "rb",
            opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)),
        )
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise DataError(
            "not a regular file", path=path, fix="give the file of the scan, e.g. a .nii.gz file"
        )
    return file


@contextlib.contextmanager
def stream(path: str | os.PathLike, *, hashed: bool = False) -> Iterator["Stream"]:
    """The bytes of a file, decompressed if they are gzip; `DataError` if it cannot be opened, is
    empty, or turns out damaged.

    `hashed`: the file is hashed while it is read, see `Stream.digest`.
    """
    path = os.fspath(path)
    with open_file(path) as file:
        yield Stream(file, path, hashed=hashed)


class Stream:
    """Bytes of a file from its first to its last, decompressed.

    Attributes:
      path: of the file. size: its bytes on disk. compressed: whether it is gzip. position: bytes
        given so far.
    """

    def __init__(self, file: BinaryIO, path: str, *, hashed: bool = False):
        self.path, self.size, self.position = path, os.fstat(file.fileno()).st_size, 0
        self._file, self._decoder, self._pending, self._hash = file, None, b"", None
        start = self._disk(2)
        if not start:
            raise DataError("not NIfTI: zero length", path=path, fix="obtain the file again")
        self.compressed = start == GZIP_MAGIC
        self._file.seek(0)
        self._hash = hashlib.sha256() if hashed else None
        if self.compressed:
            self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end."""
        pieces, wanted = [], count
        while wanted > 0 and (piece := self._next(min(wanted, _PIECE))):
            pieces.append(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def fill(self, buffer: np.ndarray) -> int:
        """Fills a contiguous uint8 array as far as the bytes reach; returns their number."""
        if not self.compressed:
            return self._fill_plain(memoryview(buffer))
        filled = 0
        while filled < len(buffer) and (piece := self._next(min(len(buffer) - filled, _PIECE))):
            buffer[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
        return filled

    def skip(self, count: int) -> int:
        """Passes over bytes; returns how many there were."""
        if not self.compressed and self._hash is None:
            there = max(0, min(count, self.size - self.position))
            self._file.seek(there, os.SEEK_CUR)
            self.position += there
            return there
        passed = 0
        while passed < count and (piece := self._next(min(count - passed, _PIECE))):
            passed += len(piece)
        return passed

    def rest(self, limit: int) -> "Rest":
        """The remaining bytes; at most about `limit` of them are read.

        Reading to the end verifies the checksum of a gzip stream.
        """
        start, count, zero = b"", 0, True
        while count <= limit and (piece := self._next(1 << 20)):
            start = start if len(start) >= 540 else start + piece[:540]
            count, zero = count + len(piece), zero and not piece.strip(b"\0")
        if not self.compressed:
            count += self.size - self.position
        return Rest(count, zero, count <= limit, start[:540])

    def digest(self) -> str:
        """sha256 of the whole file as it lies on the disk, hexadecimal; reads what is left of it.

        Only for a stream that was opened with `hashed`.
        """
        while self._disk(_PIECE):
            pass
        return self._hash.hexdigest()

    def check_promise(self, needed: int, path: str) -> None:
        """`DataError` if the file is too small to hold `needed` (inflated) bytes."""
        most = self.size * INFLATION if self.compressed else self.size
        if most < needed:
            found = f"{self.size} bytes" + (" compressed" if self.compressed else "")
            raise DataError(
                "truncated: shorter than its header says",
                path=path,
                found=found,
                expected=f"{needed} bytes",
                fix="obtain the file again",
            )

    def _fill_plain(self, view: memoryview) -> int:
        try:
            filled = 0
            while filled < len(view) and (n := self._file.readinto(view[filled:])):
                if self._hash is not None:
                    self._hash.update(view[filled : filled + n])
                filled += n
        except OSError as error:
            raise unreadable(self.path, error) from error
        self.position += filled
        return filled

    def _next(self, most: int) -> bytes:
        """Up to `most` further bytes; none at the end."""
        piece = self._inflated(most) if self.compressed else self._disk(most)
        self.position += len(piece)
        return piece

    def _disk(self, most: int) -> bytes:
        try:
            piece = self._file.read(most)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if self._hash is not None:
            self._hash.update(piece)
        return piece

    def _inflated(self, most: int) -> bytes:
        try:
            while True:
                if self._decoder is None:  # between members: zeros are padding
                    self._pending = (self._pending or self._disk(_CHUNK)).lstrip(b"\0")
                    if not self._pending:
                        if self._file.tell() >= self.size:
                            return b""
                        continue
                    self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)
                data = self._pending or self._disk(_CHUNK)
                piece = self._decoder.decompress(data, most)
                self._pending = self._decoder.unconsumed_tail
                if self._decoder.eof:
                    self._pending, self._decoder = self._decoder.unused_data, None
                elif not data and not piece:
                    raise DataError(
                        "truncated gzip",
                        path=self.path,
                        found=f"{self.size} bytes, no end of stream",
                        fix="obtain the file again",
                    )
                if piece:
                    return piece
        except zlib.error as error:
            what = (
                "CRC check failed"
                if "data check" in str(error) or "length check" in str(error)
                else "corrupt gzip"
            )
            raise DataError(
                f"{what} ({error})", path=self.path, fix="obtain the file again"
            ) from error


@dataclasses.dataclass(frozen=True)
class Rest:
    """The bytes behind the last requested byte.

    Attributes:
      size: number of bytes; a lower bound if not `complete`. zero: all bytes read are 0. complete:
        all of them were read.
      start: the first 540 bytes.
    """

    size: int
    zero: bool
    complete: bool
    start: bytes


def reserve(needed: int, path: str, what: str = "voxels") -> np.ndarray:
    """An uninitialised uint8 array of `needed` bytes; `DataError` if memory is too small."""
    check_memory(needed, path, what)
    with memory(path):
        return np.empty(needed, np.uint8)


def check_memory(needed: int, path: str, what: str = "voxels") -> None:
    """`DataError` naming both sizes if `needed` bytes do not fit into the free memory."""
    if needed > KNOWN_SMALL and needed > (free := free_memory()):
        raise DataError(
            "larger than the free memory",
            path=path,
            found=f"{needed / 2**30:.2f} GiB of {what}, by its header",
            expected=f"at most {free / 2**30:.2f} GiB",
            fix="check the sizes in the header; if they are right, use more memory",
        )


@contextlib.contextmanager
def memory(path: str | os.PathLike) -> Iterator[None]:
    """Converts a `MemoryError` while a file is read to a `DataError` that names the file."""
    try:
        yield
    except MemoryError as error:
        raise DataError(
            "the memory does not suffice to read it",
            path=path,
            fix="use a machine with more memory, or raise the limit (ulimit -v)",
        ) from error


def free_memory() -> int:
    """Bytes that may be used: the system's available memory, or the container's limit if lower."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        with open("/proc/meminfo") as file:
            found = [
                next(
                    int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable")
                )
            ]
    with contextlib.suppress(OSError, ValueError):
        with (
            open("/sys/fs/cgroup/memory.max") as limit,
            open("/sys/fs/cgroup/memory.current") as used,
        ):
            found.append(int(limit.read()) - int(used.read()))
    return max(min(found), 1 << 28)


def looks_like(start: bytes) -> str:
    """What the first bytes of a file that is no scan seem to be, in words.

    Never the bytes themselves, which may be private.
    """
    if not start:
        return "zero length"
    text = start.lstrip()
    if text[:1] == b"<":
        return "a web page or XML"
    if start[128:132] == b"DICM":
        return "a DICOM file"
    for magic, what in _CONTENT:
        if start.startswith(magic):
            return what
    if not any(start):
        return "zeros"
    plain = all(32 <= byte < 127 or byte in b"\t\n\r\f" or byte > 127 for byte in start)
    return "text" if plain else "other data"
