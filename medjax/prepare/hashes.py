"""Hashes of prepared arrays: computed when a case is written, compared on the first read.

    {"image.zarr": {"zarr.json": HASH, "rows": 20,     flat: one hash per slab of z rows,
                    "slabs": [HASH, ...]},             about 4 MiB
     "label.zarr": {"zarr.json": HASH,                 packed: one hash per file of
                    "chunks": {"c/0/0/0": HASH, ...}}, compressed voxels
     "locations.npz": HASH}

They detect damage (a disk error, an incomplete copy, an editor); they do not protect against
somebody who also changes the hashes. A process compares a slab or chunk once, when a patch first
reads it; a patch only costs the slabs it lies in.
"""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from medjax.errors import DataError
from medjax.files import checksum

SLAB_BYTES = 4 << 20
Slices = tuple[slice, ...]


def rows_of(shape: tuple[int, ...], itemsize: int) -> int:
    """z rows of a slab."""
    return max(1, SLAB_BYTES // max(1, itemsize * math.prod(shape[1:])))


def of_flat(path: Path, array: np.ndarray) -> dict:
    """Hashes of an array (z, y, x, ...) that lies in the folder `path` as one flat chunk."""
    rows = rows_of(array.shape, array.dtype.itemsize)
    little = array.dtype.newbyteorder("<")
    slabs = [
        checksum(np.ascontiguousarray(array[k : k + rows], little))
        for k in range(0, len(array), rows)
    ]
    return {"zarr.json": of_file(path / "zarr.json"), "rows": rows, "slabs": slabs}


def of_packed(path: Path) -> dict:
    """Hashes of the chunk files of a packed array; a chunk without a file is 0 everywhere."""
    chunks = sorted(p for p in (path / "c").rglob("*") if p.is_file())
    return {
        "zarr.json": of_file(path / "zarr.json"),
        "chunks": {p.relative_to(path).as_posix(): of_file(p) for p in chunks},
    }


def of_file(path: str | os.PathLike) -> str:
    """The hash of a whole file."""
    return checksum(Path(path).read_bytes())


def compare(
    path: str | os.PathLike, found: str, expected: object, fix: str, what: str = "its content"
) -> None:
    """`DataError` if a hash differs from the recorded one."""
    if found != expected:
        raise DataError(
            f"{what} is not what was prepared: the file is damaged",
            path=path,
            found=found,
            expected=expected,
            fix=fix,
        )


class Slabs:
    """Compares the slabs of a flat array that a read touches, each once."""

    def __init__(self, file: Path, expected: Mapping, fix: str):
        self.file, self.rows, self.expected, self.fix, self.seen = (
            file,
            expected["rows"],
            expected["slabs"],
            fix,
            set(),
        )

    def __call__(self, array: np.ndarray, slices: Slices) -> None:
        """`array` is the whole mapped array, `slices` the part that will be read."""
        start, stop, _ = slices[0].indices(len(array)) if slices else (0, len(array), 1)
        for k in range(start // self.rows, -(-stop // self.rows)):
            if k in self.seen:
                continue
            first, last = k * self.rows, min((k + 1) * self.rows, len(array))
            wanted = self.expected[k] if k < len(self.expected) else "no hash"
            compare(
                self.file,
                checksum(array[first:last]),
                wanted,
                self.fix,
                f"rows {first} to {last - 1}",
            )
            self.seen.add(k)


class Chunks:
    """Compares the chunk files of a packed array that a read touches, each once."""

    def __init__(self, path: Path, chunk: tuple[int, ...], expected: Mapping, fix: str):
        self.path, self.chunk, self.expected, self.fix, self.seen = (
            path,
            chunk,
            expected["chunks"],
            fix,
            set(),
        )

    def __call__(self, shape: tuple[int, ...], slices: Slices) -> None:
        """`shape` is that of the whole array, `slices` the part that will be read."""
        whole = (*slices, *[slice(None)] * (len(shape) - len(slices)))
        ranges = []
        for part, n, side in zip(whole, shape, self.chunk, strict=True):
            start, stop, _ = part.indices(n)
            ranges.append(range(start // side, -(-stop // side)) if stop > start else range(0))
        for index in np.ndindex(*[len(r) for r in ranges]):
            name = "/".join(["c", *[str(r[i]) for r, i in zip(ranges, index, strict=True)]])
            if name in self.seen:
                continue
            file = self.path / name
            found = of_file(file) if file.exists() else None
            compare(file, found, self.expected.get(name), self.fix)
            self.seen.add(name)


Check = Callable[[object, Slices], None]
