"""Reads the tensors of PyTorch checkpoint files without PyTorch and without running what is in them.

In: a file written by `torch.save` (zip archive, or the older stream of PyTorch before 1.6), or a plan of nnU-Net v1 (`plans.pkl`). Out:
the plain Python structure with a `Tensor` for every tensor, whose numbers are read when asked for (optimizer states never are).

These files are pickles, which can call any function. Here a name may stand for nothing but what the tables below list: tensors and their
storage types, ordered dictionaries, and numpy's own scalars and arrays. Any other name is an error, whatever the file's author meant.
It is the only file of medjax that reads this format; nothing of medjax writes it.
"""

import collections
import dataclasses
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from medjax.errors import ModelError

STORAGES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16, "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip
DTYPES = ("Float16DType", "Float32DType", "Float64DType", "Int32DType", "Int64DType", "BoolDType")
MAGIC = 0x1950A86A20F9469CFC6C  # first object of the older stream
OLD_NUMPY, NEW_NUMPY = "numpy.core.multiarray", "numpy._core.multiarray"  # one module under two names


@dataclasses.dataclass
class _Storage:
    """A run of numbers somewhere in the file."""

    dtype: Any
    read: Callable[[], bytes]
    numbers: np.ndarray | None = None

    def array(self) -> np.ndarray:
        if self.numbers is None:
            self.numbers = np.frombuffer(self.read(), self.dtype)
        return self.numbers


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the file; `array()` reads its numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """The numbers as an array of its own; bfloat16 becomes float32."""
        flat = self.storage.array()
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if min((self.offset, *self.strides, *self.shape), default=0) < 0 or (0 not in self.shape and last >= flat.size):
            raise ModelError("a tensor points outside of its storage", found=f"shape {self.shape}, strides {self.strides}")
        steps = [s * flat.itemsize for s in self.strides]
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, steps, writeable=False)
        return view.astype(np.float32) if flat.dtype == ml_dtypes.bfloat16 else view.copy()


def _tensor(storage: Any, offset: int, size: Any, strides: Any, *_: Any) -> Tensor:
    if not isinstance(storage, _Storage):
        raise ModelError("a tensor without storage")
    return Tensor(storage, int(offset), tuple(int(n) for n in size), tuple(int(n) for n in strides))


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _scalar(dtype: Any, value: Any = None) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise ModelError("a numpy scalar that is no number", found=dtype)
    return np.frombuffer(value, dtype)[0]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How pickles of protocol 2 write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ModelError("bytes in an unknown encoding", found=encoding)
    return text.encode("latin1")


def _word(*given: Any) -> tuple:
    return given


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): lambda *_: collections.OrderedDict(),
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "device"): _word,
    ("torch", "Size"): tuple,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("_codecs", "encode"): _encode,
    ("builtins", "set"): set,
    ("builtins", "slice"): slice,
    **{("torch", name): np.dtype(kind) for name, kind in STORAGES.items()},
    **{(module, "scalar"): _scalar for module in (OLD_NUMPY, NEW_NUMPY)},
    **{(module, "_reconstruct"): np._core.multiarray._reconstruct for module in (OLD_NUMPY, NEW_NUMPY)},
    **{("numpy.dtypes", name): getattr(np.dtypes, name) for name in DTYPES},
}


class _Reader(pickle.Unpickler):
    """Allows the names of `ALLOWED`; gives storages through `find_storage(kind, key, length)`."""

    def __init__(self, file: Any, path: Path, find_storage: Callable[..., _Storage] | None = None):
        super().__init__(file, encoding="latin1")
        self.path, self.find_storage = path, find_storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise ModelError(
                "the file asks for something no weights need; it was not read further", path=self.path, found=f"{module}.{name}",
                fix="save the bare state dict (torch.save(network.state_dict(), file)) or safetensors",
            )  # fmt: skip
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        if self.find_storage is None or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise ModelError("an unknown reference", path=self.path, found=pid)
        return self.find_storage(*pid[1:])


def read(path: Path) -> Any:
    """The structure a checkpoint file holds, with a `Tensor` for every tensor.

    Raises: `ModelError` for damaged files and for anything but tensors, numbers, text and their containers.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_archive(path)
        with path.open("rb") as file:
            return _read_stream(file, path)
    except ModelError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        message = f"not a readable PyTorch file ({type(error).__name__}: {error})"
        raise ModelError(message, path=path, fix="check the download; or save the state dict as safetensors") from error


def read_plain(path: Path) -> Any:
    """The structure of a pickle without tensors (a plan of nnU-Net v1), under the same allow-list. Raises as `read`."""
    try:
        with path.open("rb") as file:
            return _Reader(file, path).load()
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"not a readable file ({type(error).__name__}: {error})", path=path) from error


def _read_archive(path: Path) -> Any:
    archive = zipfile.ZipFile(path)
    root = next((n for n in archive.namelist() if n.endswith("data.pkl")), None)
    if root is None:
        raise ModelError("an archive without PyTorch's data.pkl", path=path, found=archive.namelist()[:4])
    base = root[: -len("data.pkl")]
    if base + "byteorder" in archive.namelist() and archive.read(base + "byteorder") != b"little":
        raise ModelError("a file written on a big-endian machine", path=path)
    storages: dict[str, _Storage] = {}

    def find(kind: Any, key: Any, *_: Any) -> _Storage:
        if key not in storages:
            storages[key] = _Storage(kind, lambda: archive.read(f"{base}data/{key}"))
        return storages[key]

    with archive.open(root) as file:
        return _Reader(file, path, find).load()


def _read_stream(file: Any, path: Path) -> Any:
    """The older format: magic number, version, facts of the machine, structure, storage keys, then the storages one after the other."""
    if _Reader(file, path).load() != MAGIC:
        raise ModelError("neither an archive nor a stream of PyTorch", path=path)
    for _ in range(2):
        _Reader(file, path).load()
    storages: dict[str, _Storage] = {}

    def find(kind: Any, key: Any, *_: Any) -> _Storage:
        return storages.setdefault(key, _Storage(kind, lambda: b""))

    structure = _Reader(file, path, find).load()
    for key in _Reader(file, path).load():
        length = int(np.frombuffer(file.read(8), np.int64)[0])
        size = length * storages[key].dtype.itemsize
        data = file.read(size)
        if length < 0 or len(data) != size:
            raise ModelError("the file ends within a tensor", path=path)
        storages[key].numbers = np.frombuffer(data, storages[key].dtype)
    return structure
