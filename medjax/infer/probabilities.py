"""The probabilities of all classes on the stored grid, kept in a hidden file while a case is
predicted, then packed into one archive.

In: regions of the cropped canonical grid as `Segmenter.segment` hands them over. Out:
`<case>_prob.npz`. Values are written, never memory-mapped: on a full disk a write is an error that
can be caught, a memory map ends the process.
"""

import contextlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from medjax import files
from medjax.errors import PredictError
from medjax.infer.names import file_stems
from medjax.infer.packed import Region
from medjax.prepare.geometry import Transform

PIECE = 1 << 24  # bytes


class Probabilities:
    """Gathers blocks of probabilities (an `on_scores` of `Segmenter.segment`) in half precision, in
    one hidden file.

    Args:
      folder: where the hidden file lies. case: whose it is, for messages.
    """

    def __init__(self, folder: Path, case: str):
        self._target = folder / f"{case}_prob.npz"
        self._path: Path | None = None
        self._names: tuple[str, ...] = ()
        self._shape: tuple[int, ...] = ()

    def __call__(
        self, transform: Transform, region: Region, names: Sequence[str], values: np.ndarray
    ) -> None:
        """A region of the cropped canonical grid, (rows, y, x, c), always of the same classes.

        `PredictError` where the disk is full.
        """
        box = stored_box(transform, region)
        try:
            if self._path is None:
                self._path, self._names, self._shape = (
                    files.temporary(self._target),
                    tuple(names),
                    tuple(transform.stored_shape),
                )
                open(self._path, "xb").close()
            with open(
                self._path, "r+b", buffering=0
            ) as file:  # opened for each block: no limit of open files is met
                for channel in range(len(names)):
                    block = stored_order(transform, values[..., channel]).astype(np.float16)
                    put(file, channel * self._bytes, self._shape, box, block)
        except OSError as error:
            raise files.refused(self._target, error, error=PredictError) from error

    @property
    def _bytes(self) -> int:
        return 2 * int(np.prod(self._shape))

    def pack(self, path: Path) -> None:
        """Writes them as an .npz: class name, made safe as for file names, -> (z, y, x) float16."""
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)),
            "fortran_order": False,
            "shape": self._shape,
        }
        with (
            files.replacing(path, error=PredictError) as target,
            zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as all_,
        ):
            for channel, stem in enumerate(file_stems(self._names)):
                with (
                    all_.open(f"{stem}.npy", "w", force_zip64=True) as member,
                    open(self._path, "rb", buffering=0) as source,
                ):
                    np.lib.format.write_array_header_1_0(member, header)
                    first, last = channel * self._bytes, (channel + 1) * self._bytes
                    for start in range(first, last, PIECE):
                        size = min(PIECE, last - start)
                        member.write(
                            os.pread(source.fileno(), size, start).ljust(size, b"\0")
                        )  # nothing was written there: 0

    def discard(self) -> None:
        """Removes the hidden file."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._path = None


def stored_box(transform: Transform, region: Region) -> tuple[tuple[int, int], ...]:
    """The half-open range along each stored axis that a region (rows, columns) of the cropped
    canonical grid covers.
    """
    inside = [(part.start, part.stop) for part in region] + [(0, transform.box_shape[2])]
    found = [(0, 0)] * 3
    for axis, (first, last) in enumerate(inside):
        start, stored = transform.box[axis][0], transform.axes[axis]
        low, high = start + first, start + last
        size = transform.stored_shape[stored]
        found[stored] = (size - high, size - low) if transform.flips[axis] else (low, high)
    return tuple(found)


def stored_order(transform: Transform, block: np.ndarray) -> np.ndarray:
    """A (z, y, x) block of the canonical grid with its axes as stored; a view."""
    turned = block[tuple(slice(None, None, -1 if flip else 1) for flip in transform.flips)]
    return turned.transpose(np.argsort(transform.axes))


def put(
    file: BinaryIO,
    offset: int,
    shape: Sequence[int],
    box: Sequence[tuple[int, int]],
    values: np.ndarray,
) -> None:
    """Writes a box of a (z, y, x) float16 array in a file that begins at `offset`, by planes."""
    _, rows, columns = shape
    (top, _), (front, back), (left, right) = box
    for z, plane in enumerate(values, top):
        start = offset + 2 * ((z * rows + front) * columns)
        if (left, right) != (
            0,
            columns,
        ):  # only a part of each row: the rows are read, changed and written back
            whole = np.zeros((back - front, columns), np.float16)
            held = os.pread(file.fileno(), whole.nbytes, start)
            whole.reshape(-1).view(np.uint8)[: len(held)] = np.frombuffer(held, np.uint8)
            whole[:, left:right] = plane
            plane = whole
        content = memoryview(np.ascontiguousarray(plane)).cast("B")
        while content:
            written = os.pwrite(file.fileno(), content, start)
            content, start = content[written:], start + written
