"""Reads the tensors of PyTorch checkpoint files without PyTorch and without executing their code.

In: a file written by `torch.save` (zip archive, or the older stream of PyTorch before 1.6), or a
plan of nnU-Net v1 (`plans.pkl`). Out: the plain Python structure with a `Tensor` for every tensor,
whose numbers are read on request (optimizer states never are).

These files are pickle programs. `weights/formats/opcodes.py` runs the part of the pickle language
that builds values; only the names in the table below are allowed, and each is replaced by a
function of medjax: tensors and their storages, ordered dictionaries, and numpy's numbers and arrays
of numbers. Any other name is an error. Sizes are checked before anything is inflated or allocated.
"""

import dataclasses
import functools
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from medjax.errors import ModelError
from medjax.scans import zipped
from medjax.weights.formats import opcodes, values

STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
DTYPES = {
    "Float16DType": "f2",
    "Float32DType": "f4",
    "Float64DType": "f8",
    "Int32DType": "i4",
    "Int64DType": "i8",
    "BoolDType": "b1",
}
MAGIC = 0x1950A86A20F9469CFC6C  # first object of the older stream
STRUCTURE = 1 << 28  # bytes of the member that holds the structure
VIEWS, SPARE = (
    4,
    1 << 26,
)  # tensors may together be VIEWS times what the file stores, plus SPARE bytes
FIX = "check the download; or save the state dict as safetensors"


@dataclasses.dataclass(eq=False)
class _Storage:
    """A sequence of numbers in the file."""

    dtype: np.dtype
    read: Callable[[], bytes]
    path: Path
    budget: "_Budget"
    numbers: np.ndarray | None = None

    def array(self) -> np.ndarray:
        if self.numbers is None:
            data = self.read()
            data = data[: len(data) - len(data) % self.dtype.itemsize]
            self.numbers = (
                np.frombuffer(data, np.uint8) != 0
                if self.dtype == np.bool_
                else np.frombuffer(data, self.dtype)
            )
        return self.numbers


@dataclasses.dataclass(eq=False)
class _Budget:
    """Remaining bytes that the tensors of a file may occupy."""

    left: int

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ModelError("the tensors are much larger than the file", fix="do not use it")


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the file; `array()` reads its numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """The numbers as a new array; bfloat16 becomes float32.

        `ModelError` for damaged files and missing numbers.
        """
        try:
            flat = self.storage.array()
            last = self.offset + sum(
                (n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)
            )
            if 0 not in self.shape and last >= flat.size:
                raise ModelError(
                    "a tensor points outside of its storage",
                    path=self.storage.path,
                    found=f"shape {self.shape}, strides {self.strides}",
                )
            if 0 in self.shape:
                return np.zeros(
                    self.shape, np.float32 if flat.dtype == ml_dtypes.bfloat16 else flat.dtype
                )
            steps = [s * flat.itemsize for s in self.strides]
            view = np.lib.stride_tricks.as_strided(
                flat[self.offset :], self.shape, steps, writeable=False
            )
            return view.astype(np.float32) if flat.dtype == ml_dtypes.bfloat16 else view.copy()
        except zipped.DAMAGES as error:
            raise ModelError(
                f"a tensor cannot be read ({_said(error)})", path=self.storage.path, fix=FIX
            ) from error


def _tensor(storage: Any, offset: Any, size: Any, strides: Any, *_: Any) -> Tensor:
    if type(storage) is not _Storage:
        raise ModelError("a tensor without storage")
    numbers = (
        offset,
        *(size if type(size) is tuple else (None,)),
        *(strides if type(strides) is tuple else (None,)),
    )
    if (
        any(type(n) is not int or not 0 <= n < 1 << 56 for n in numbers)
        or len(size) != len(strides)
        or len(size) > values.DIMENSIONS
    ):
        raise ModelError(
            "a tensor points outside of its storage",
            found=values.described((offset, size, strides)),
        )
    storage.budget.take(math.prod(size) * storage.dtype.itemsize)
    return Tensor(storage, offset, size, strides)


def _parameter(data: Any = None, *_: Any) -> Any:
    return data


def _encode(text: Any = None, encoding: Any = "latin1") -> bytes:
    """The function by which files of protocol 2 store bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ModelError("bytes in an unknown encoding", found=values.described(encoding))
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """The function by which files of protocol 2 store empty bytes."""
    return b""


def _word(*given: Any) -> tuple:
    return given


def _fixed(code: str) -> Callable[..., values.Kind]:
    return lambda *_: values.kind(code)


NUMPY = ("numpy.core", "numpy._core")  # one package under two names
ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): values.ordered,
    ("collections", "defaultdict"): lambda *_: values.ordered(),
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "device"): _word,
    ("torch", "Size"): values.sequence,
    ("numpy", "dtype"): values.kind,
    ("numpy", "ndarray"): "array",  # named, never called
    ("_codecs", "encode"): _encode,
    **{(module, "set"): values.members for module in ("builtins", "__builtin__")},
    **{
        (module, "frozenset"): lambda items=(): frozenset(values.members(items))
        for module in ("builtins", "__builtin__")
    },
    **{(module, "bytes"): _no_bytes for module in ("builtins", "__builtin__")},
    **{(module, "slice"): values.extent for module in ("builtins", "__builtin__")},
    **{("torch", name): np.dtype(kind) for name, kind in STORAGES.items()},
    **{(f"{package}.multiarray", "scalar"): values.scalar for package in NUMPY},
    **{(f"{package}.multiarray", "_reconstruct"): values.unfilled for package in NUMPY},
    **{(f"{package}.numeric", "_frombuffer"): values.filled for package in NUMPY},
    **{("numpy.dtypes", name): _fixed(code) for name, code in DTYPES.items()},
}


def read(path: Path) -> Any:
    """The structure a checkpoint file holds, with a `Tensor` for every tensor.

    Raises: `ModelError` for damaged files and for anything but tensors, numbers, text and their
      containers.
    """
    return _guarded(
        lambda: _read_archive(path) if zipfile.is_zipfile(path) else _read_stream(path),
        path,
        "PyTorch file",
    )


def read_plain(path: Path) -> Any:
    """The structure of a file without tensors (a plan of nnU-Net v1), with the same table of names.

    Raises as `read`.
    """

    def load() -> Any:
        with path.open("rb") as file:
            return opcodes.Machine(opcodes.Source(file, path.stat().st_size), ALLOWED).load()

    return _guarded(load, path, "file")


def _guarded(load: Callable[[], Any], path: Path, what: str) -> Any:
    """Converts every failure to one error that names the file."""
    try:
        return load()
    except ModelError as error:
        if error.path is not None:
            raise
        raise ModelError(
            error.message,
            path=path,
            found=error.found,
            expected=error.expected,
            fix=error.fix or FIX,
        ) from error
    except Exception as error:  # damaged code can raise any type
        raise ModelError(f"not a readable {what} ({_said(error)})", path=path, fix=FIX) from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def _read_archive(path: Path) -> Any:
    with zipped.opened(path, error=ModelError, fix=FIX) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        root = next((n for n in sizes if n.endswith("data.pkl")), None)
        if root is None:
            raise ModelError(
                "an archive without PyTorch's data.pkl",
                path=path,
                found=[n[:40] for n in list(sizes)[:4]],
            )
        base = root[: -len("data.pkl")]
        if (
            base + "byteorder" in sizes
            and zipped.content(archive, base + "byteorder", 16) != b"little"
        ):
            raise ModelError("a file written on a big-endian machine", path=path)
        storages: dict[tuple, _Storage] = {}
        budget = _Budget(VIEWS * sum(sizes.values()) + SPARE)

        def find(reference: Any) -> _Storage:
            dtype, key, count = _storage_facts(reference)
            name = f"{base}data/{key}"
            if sizes.get(name, -1) < count * dtype.itemsize:
                raise ModelError(
                    "a storage that the file does not hold",
                    path=path,
                    found=name[:80],
                    expected=f"{count} x {dtype}",
                )
            if (key, dtype) not in storages:
                storages[key, dtype] = _Storage(dtype, lambda: _member(path, name), path, budget)
            return storages[key, dtype]

        with archive.open(root) as file:
            if sizes[root] > STRUCTURE:
                raise ModelError(
                    "the file's structure is too long",
                    path=path,
                    found=f"{sizes[root]:,} bytes",
                    expected=f"at most {STRUCTURE:,}",
                )
            return opcodes.Machine(opcodes.Source(file, sizes[root]), ALLOWED, find).load()


def _member(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return zipped.content(archive, name)


def _storage_facts(reference: Any) -> tuple[np.dtype, str, int]:
    """(dtype, key, numbers) of ("storage", type, key, device, numbers[, view])."""
    if type(reference) is not tuple or len(reference) not in (5, 6) or reference[0] != "storage":
        raise ModelError("an unknown reference", found=values.described(reference))
    _, kind, key, _, count, *view = reference
    dtype = kind.make if type(kind) is values.Name else None
    if (
        not isinstance(dtype, np.dtype)
        or type(key) is not str
        or type(count) is not int
        or not 0 <= count < 1 << 56
        or view not in ([], [None])
    ):
        raise ModelError("an unknown kind of storage", found=values.described(reference))
    return dtype, key, count


def _read_stream(path: Path) -> Any:
    """The older format: one pickle after another, then the storages.

    Magic number, version, facts of the machine, structure, storage keys.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        source = opcodes.Source(file, size)
        if opcodes.Machine(source, ALLOWED).load() != MAGIC:
            raise ModelError("neither an archive nor a stream of PyTorch", path=path)
        for _ in range(2):
            opcodes.Machine(source, ALLOWED).load()
        storages: dict[str, _Storage] = {}
        budget, counts = _Budget(VIEWS * size + SPARE), {}

        def find(reference: Any) -> _Storage:
            dtype, key, count = _storage_facts(reference)
            found = storages.setdefault(key, _Storage(dtype, lambda: b"", path, budget))
            if found.dtype != dtype or counts.setdefault(key, count) != count:
                raise ModelError("one storage of two kinds", path=path, found=key[:80])
            return found

        structure = opcodes.Machine(source, ALLOWED, find).load()
        keys = opcodes.Machine(source, ALLOWED).load()
        if (
            type(keys) is not list
            or any(type(k) is not str for k in keys)
            or sorted(keys) != sorted(storages)
        ):
            raise ModelError(
                "the storages and their list do not agree", path=path, found=values.described(keys)
            )
        for key in keys:
            count, storage = int.from_bytes(source.read(8), "little", signed=True), storages[key]
            length = count * storage.dtype.itemsize
            if count != counts[key] or not 0 <= length <= size - file.tell():
                raise ModelError(
                    "the file ends within a tensor",
                    path=path,
                    found=f"{count:,} numbers",
                    expected=f"{counts[key]:,}",
                )
            storage.read = functools.partial(_part, path, file.tell(), length)
            file.seek(length, 1)
    return structure


def _part(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)
