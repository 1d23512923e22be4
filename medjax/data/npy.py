"""Numpy's file format, read without evaluating anything: what threads read at the same time, and what others may have written.

`numpy.load` evaluates the header as a Python literal. In CPython 3.11 two threads that do so at once can fail with "SystemError: AST
constructor recursion depth mismatch". Here the header must be, to the letter, what numpy writes, of numbers or booleans only.
"""

import math
import re
import zipfile
from typing import BinaryIO

import numpy as np

MAGIC = b"\x93NUMPY"
MOST_HEADER = 1 << 12
_HEADER = re.compile(
    r"\{'descr': '(?P<descr>[<>|][biufc]\d{1,2})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:\d{1,19}(?:, \d{1,19})*,?)?)\), \} *\n"
)


def read_header(file: BinaryIO) -> tuple[np.dtype, bool, tuple[int, ...]]:
    """Type, Fortran order and shape of an array; the file stands at its first voxel afterwards. `ValueError` for anything unusual."""
    start = file.read(8)
    if start[:6] != MAGIC or len(start) < 8 or start[6] not in (1, 2, 3):
        raise ValueError("not an array of numpy")
    size = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    if size > MOST_HEADER:
        raise ValueError(f"a header of {size} bytes")
    text = file.read(size)
    found = _HEADER.fullmatch(text.decode("latin-1")) if len(text) == size else None
    if found is None:
        raise ValueError("an array header that is damaged, or not of plain numbers")
    try:
        dtype = np.dtype(found["descr"])
    except TypeError as error:
        raise ValueError(f"unknown type {found['descr']}") from error
    return dtype, found["fortran"] == "True", tuple(int(n) for n in found["shape"].replace(",", " ").split())


def read_array(file: BinaryIO, size: int) -> np.ndarray:
    """The array of an open file whose length is `size` bytes, read-only; `ValueError` if the header asks for more or less than that."""
    dtype, fortran, shape = read_header(file)
    expected, left = math.prod(shape) * dtype.itemsize, size - file.tell()
    if expected != left:
        raise ValueError(f"{left} bytes, expected {expected} for {shape} {dtype}")
    content = file.read(expected)
    if len(content) != expected:
        raise ValueError(f"{len(content)} bytes, expected {expected}")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def members(archive: zipfile.ZipFile) -> tuple[str, ...]:
    """Names of the arrays in an npz file."""
    return tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))


def read_member(archive: zipfile.ZipFile, name: str, most: int) -> np.ndarray:
    """One array of an npz file; `ValueError` if it takes more than `most` bytes, `KeyError` if there is none of that name."""
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > most:
        raise ValueError(f"{name} takes {info.file_size} bytes, at most {most} are plausible")
    with archive.open(info) as file:
        return read_array(file, info.file_size)
