"""The values that the byte code of a weight file may build: numbers, arrays, text, containers.

Every function here replaces a name that such files mention (see the table of
`weights/formats/torch_file.py`). It takes the file's arguments and returns a plain value or raises
`ModelError`; it calls no method of its arguments and hashes nothing except text and numbers.
"""

import dataclasses
import math
from collections import OrderedDict
from typing import Any

import numpy as np

from medjax.errors import ModelError
from medjax.scans.zipped import NUMBERS

WRITTEN_OUT = 10_000_000  # values, if everything shared was repeated
DEPTH = 64
KEY_LIMIT = 1 << 60  # bound of integer keys, so that a file cannot provoke hash collisions
DIMENSIONS = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Name:
    """A name of the table as the file mentions it; `make` is medjax' replacement.

    `make` is called with the file's arguments.
    """

    module: str
    name: str
    make: Any


class Kind:
    """A numeric dtype under construction: the file sets its byte order after naming it."""

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype

    def build(self, state: Any) -> "Kind":
        """Accepts exactly the state that a numeric dtype is saved with.

        (version, byte order, None, None, None, -1, -1, flags[, None]).
        """
        fits = (
            type(state) is tuple
            and 8 <= len(state) <= 9
            and all(type(v) in (str, int, type(None)) for v in state)
        )
        if (
            not fits
            or state[1] not in ("<", ">", "|", "=")
            or state[2:8] != (None, None, None, -1, -1, 0)
            or state[8:] not in ((), (None,))
        ):
            raise ModelError(
                "a number type with fields or objects in it",
                found=described(state),
                expected="a plain number type",
            )
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])
        return self


class Unfilled:
    """An array whose shape, type and bytes the file gives later."""

    def __init__(self) -> None:
        self.slots: list[int] = []

    def build(self, state: Any) -> np.ndarray:
        """The array of ([version,] shape, Kind, Fortran order, bytes)."""
        if type(state) is not tuple or len(state) not in (4, 5):
            raise ModelError("an array without shape and type", found=described(state))
        shape, kind, fortran, data = state[-4:]
        return filled(data, kind, shape, "F" if fortran is True else "C")


def filled(data: Any, kind: Any, shape: Any, order: Any = "C", *_: Any) -> np.ndarray:
    """Bytes as an array, if their number matches shape and type."""
    if type(kind) is not Kind:
        raise ModelError("an array that is not made of numbers", found=described(kind))
    data = data.encode("latin1") if type(data) is str else data
    if type(data) not in (bytes, bytearray) or type(shape) is not tuple or len(shape) > DIMENSIONS:
        raise ModelError("an array that is not made of numbers", found=described((data, shape)))
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in shape) or math.prod(
        shape
    ) * kind.dtype.itemsize != len(data):
        raise ModelError(
            "an array of another size than its bytes",
            found=described(shape),
            expected=f"{len(data)} bytes of {kind.dtype}",
        )
    return np.frombuffer(data, kind.dtype).reshape(shape, order="F" if order == "F" else "C")


def scalar(kind: Any, data: Any = None) -> Any:
    """One number from its bytes."""
    data = data.encode("latin1") if type(data) is str else data
    if type(kind) is not Kind or type(data) is not bytes or len(data) != kind.dtype.itemsize:
        raise ModelError("a numpy scalar that is no number", found=described((kind, data)))
    return np.frombuffer(data, kind.dtype)[0]


def kind(name: Any = None, *_: Any) -> Kind:
    """The dtype of a code such as "f8"; only numbers."""
    if type(name) is not str or not NUMBERS.fullmatch(name):
        raise ModelError(
            "an array that is not made of numbers",
            found=described(name),
            expected="integers, real numbers or booleans",
        )
    return Kind(np.dtype(name))


def unfilled(*_: Any) -> Unfilled:
    """An array before its state."""
    return Unfilled()


def ordered(items: Any = (), *_: Any) -> OrderedDict:
    """An ordered dictionary of pairs."""
    found = OrderedDict()
    pairs = items.items() if isinstance(items, dict) else items
    for pair in pairs if isinstance(items, dict) or type(items) in (list, tuple) else [None]:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise ModelError("a dictionary of no pairs", found=described(items))
        found[key(pair[0])] = pair[1]
    return found


def members(items: Any = (), *_: Any) -> set:
    """A set of plain values."""
    if type(items) not in (list, tuple, set, frozenset):
        raise ModelError("a set of no list", found=described(items))
    return {key(item) for item in items}


def sequence(items: Any = (), *_: Any) -> tuple:
    """A tuple."""
    if type(items) not in (list, tuple):
        raise ModelError("a shape of no list", found=described(items))
    return tuple(items)


def extent(*bounds: Any) -> slice:
    """A slice of whole numbers."""
    if not 1 <= len(bounds) <= 3 or not all(b is None or type(b) is int for b in bounds):
        raise ModelError("a slice without whole numbers", found=described(bounds))
    return slice(*bounds)


def key(value: Any) -> Any:
    """A value that may be a key: text, bytes, numbers, or a short tuple of them.

    Its hash is Python's own and cheap.
    """
    parts = value if type(value) is tuple and len(value) <= DEPTH else (value,)
    for part in parts:
        whole = isinstance(part, int | np.integer)
        if not (
            whole
            or part is None
            or type(part) in (str, bytes, float)
            or isinstance(part, np.floating | np.bool_)
        ):
            raise ModelError("a key that is neither text nor number", found=described(value))
        if whole and not -KEY_LIMIT < int(part) < KEY_LIMIT:
            raise ModelError("a key that is too large a number", found=described(value))
    return value


def described(value: Any, depth: int = 2) -> str:
    """A short text for a value of the file, whatever it is; looks at few of its parts."""
    if type(value) in (str, bytes, bytearray):
        return repr(value[:40])
    if (
        value is None
        or type(value) in (bool, float)
        or (type(value) is int and value.bit_length() <= 512)
    ):
        return repr(value)
    if type(value) is Name:
        return f"{value.module}.{value.name}"
    if type(value) in (tuple, list) and depth:
        return (
            "("
            + ", ".join(described(v, depth - 1) for v in value[:9])
            + (", ..." if len(value) > 9 else "")
            + ")"
        )
    return type(value).__name__


def check(structure: Any) -> None:
    """`ModelError` for an invalid structure.

    That is: one that contains itself, is deeper than 64 or, written out, has more than ten million
    values, and arrays without numbers. Shared parts are visited once, so a small file cannot make
    this slow.
    """
    sizes: dict[int, tuple[int, int]] = {}  # id -> values if written out, depth
    open_ids: set[int] = set()
    work: list[tuple[Any, bool]] = [(structure, False)]
    while work:
        value, done = work.pop()
        if type(value) is Unfilled:
            raise ModelError("an array without numbers")
        if id(value) in sizes and not done:
            continue
        parts = _parts(value)
        if parts is None:
            continue
        if not done:
            if id(value) in open_ids:
                raise ModelError("a structure that contains itself")
            open_ids.add(id(value))
            work.append((value, True))
            work.extend((part, False) for part in parts if id(part) not in sizes)
            continue
        found = [sizes.get(id(part), (1, 0)) for part in parts]
        size, depth = 1 + sum(s for s, _ in found), 1 + max((d for _, d in found), default=0)
        if depth > DEPTH or size > WRITTEN_OUT:
            raise ModelError(
                "a structure that is too deep or too large",
                found=f"depth {depth}, {size:,} values",
                expected=f"at most {DEPTH} and {WRITTEN_OUT:,}",
            )
        open_ids.discard(id(value))
        sizes[id(value)] = size, depth


def _parts(value: Any) -> list | None:
    if type(value) in (list, tuple, set, frozenset):
        return list(value)
    if type(value) in (dict, OrderedDict):
        return [part for item in value.items() for part in item]
    return None
