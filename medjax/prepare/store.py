"""Prepared cases on disk: zarr3 arrays from which patches are read, and their metadata.

Arrays are written in one of two layouts, both plain zarr3: *flat*, one uncompressed chunk that is
memory-mapped, so that reading a patch costs only its own bytes and all workers share the system's
page cache; or *packed*, 64-voxel chunks compressed with lz4, for slow or remote disks.

    <root>/<corpus>/<case>/image.zarr      (z, y, x, m) int16;
                                           normalised value = stored * gain + bias
                           label.zarr      (z, y, x) uint8 or uint16 dense ids of the full corpus
                           locations.npz   str(dense id) -> (n, 3) int32 voxels (z, y, x)
                           case.json       shape, spacing, geometry and its inverse, gain, bias,
                                           voxel counts, sources, key, hashes

`prepare/prepare.py` writes, samplers read. A `StoredCase` is its path: cheap to create, picklable,
handles are opened on first use. Data that are read are compared with the hashes in case.json, each
part once per process (see `prepare/hashes.py`).
"""

import contextlib
import errno
import functools
import json
import logging
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medjax import files
from medjax.errors import DataError, UsageError
from medjax.prepare import hashes
from medjax.scans import zipped

VERSION = 2  # of the stored contents: raised when the same sources would give other arrays
CHUNK = 64
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
REMEDY = "prepare it: `medjax prepare <data set folder> -o <store>`"
FILES = ("image.zarr", "label.zarr", "locations.npz", "case.json")  # all that a case's folder holds
HANDLES = 1 << 10  # most memory-mapped arrays held open; fewer if a process may open few files
Slices = tuple[slice, ...]

log = logging.getLogger("medjax.store")


class StoredCase:
    """One prepared case.

    `meta` is case.json, `image` and `label` read the requested part, `locations` maps str(id) to
    voxels.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = os.fspath(folder)
        self._stamp = _stamp(self.folder)

    @property
    def meta(self) -> dict[str, Any]:
        """The fields of case.json; shared, not to be changed."""
        return _meta(self.folder, self._stamp)

    def image(self, slices: Slices = ()) -> np.ndarray:
        """int16 (*slices, m), the whole image without slices; ranges must lie inside the volume."""
        return self._read("image.zarr", slices)

    def label(self, slices: Slices = (), *, outside: int = 0) -> np.ndarray:
        """uint8 or uint16 (*slices) dense ids of the corpus.

        Args:
          outside: the value of voxels outside a normalisation mask (skull-stripped MR), which
            nobody annotated; if it is negative and there are such voxels the result is int16.
        """
        label, hidden = self._read("label.zarr", slices), self.meta.get("outside_id")
        if hidden is None or not (where := label == hidden).any():
            return label
        label = label.astype(np.int16) if outside < 0 else label
        label[where] = outside
        return label

    @property
    def locations(self) -> Mapping:
        """str(dense id) -> (n, 3) int32 voxels (z, y, x), read one id at a time on request."""
        return Locations(self.folder, self._stamp)

    def _read(self, name: str, slices: Slices) -> np.ndarray:
        slices = tuple(slices)
        try:
            try:
                return _handle(self.folder, name, self._stamp)(slices)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                # most open files of this process are these maps: close them and try again
                _handle.cache_clear()
                return _handle(self.folder, name, self._stamp)(slices)
        except OSError as error:
            many = error.errno in (errno.EMFILE, errno.ENFILE)
            fix = "allow more open files: ulimit -n 4096" if many else again(self.folder)
            raise DataError(f"{name} cannot be read: {error}", path=self.folder, fix=fix) from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{name} cannot be read: {error}", path=self.folder, fix=again(self.folder)
            ) from error

    def __reduce__(self):
        return StoredCase, (self.folder,)

    def __repr__(self) -> str:
        return f"StoredCase({self.folder!r})"


class Locations(Mapping):
    """The foreground voxels of a case as a mapping that loads one id at a time.

    See `StoredCase.locations`.
    """

    def __init__(self, folder: str, stamp: tuple[int, int]):
        self._folder, self._stamp = folder, stamp

    def __getitem__(self, key: str) -> np.ndarray:
        if str(key) not in self:
            raise KeyError(key)
        return _voxels(self._folder, str(key), self._stamp)

    def __iter__(self) -> Iterator[str]:
        return iter(_location_keys(self._folder, self._stamp))

    def __len__(self) -> int:
        return len(_location_keys(self._folder, self._stamp))

    def __contains__(self, key: object) -> bool:
        return str(key) in _location_keys(self._folder, self._stamp)


def open_case(folder: str | os.PathLike) -> StoredCase:
    """The prepared case in a folder; `DataError` with the command to prepare it, if missing."""
    return StoredCase(folder)


def list_cases(root: str | os.PathLike, corpus: str) -> list[str]:
    """Names of the prepared cases of a corpus (by its store name), sorted.

    `UsageError` without such a store.
    """
    folder = Path(root) / corpus
    if not folder.is_dir():
        raise UsageError("no prepared cases", path=folder, fix=REMEDY)
    return sorted(
        p.name
        for p in folder.iterdir()
        if not p.name.startswith(".") and (p / "case.json").is_file()
    )


def write_case(
    folder: str | os.PathLike,
    image: np.ndarray,
    label: np.ndarray,
    locations: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
    *,
    packed: bool = False,
) -> None:
    """Fills an existing empty folder.

    case.json, with the hashes of the rest, is written last, so a folder with it is complete.

    Args:
      image: (z, y, x, m) int16. label: (z, y, x) uint8 or uint16. locations: str(dense id) -> (n,
        3) int32. meta: JSON-ready.
      packed: compressed chunks instead of one flat, memory-mapped one.
    """
    folder = Path(folder)
    found = {}
    for name, array in (("image.zarr", image), ("label.zarr", label)):
        write_array(folder / name, array, packed)
        found[name] = (
            hashes.of_packed(folder / name) if packed else hashes.of_flat(folder / name, array)
        )
    np.savez_compressed(folder / "locations.npz", **locations)
    found["locations.npz"] = hashes.of_file(folder / "locations.npz")
    fields = {**meta, "hashes": found}
    write_meta(folder, sealed(fields) if "key" in fields else fields)


def write_meta(folder: str | os.PathLike, meta: Mapping[str, Any]) -> None:
    """Writes case.json atomically; `WriteError` if the disk does not allow it."""
    files.write_text(Path(folder) / "case.json", json.dumps(meta, indent=1))


def sealed(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a case.json with a hash over all of them, which is compared on reading."""
    rest = {k: v for k, v in meta.items() if k != "checksum"}
    return rest | {"checksum": files.checksum(json.dumps(rest, sort_keys=True).encode())}


def hashes_of(folder: str | os.PathLike) -> dict:
    """The hashes of a case on disk that was prepared without hashes.

    Raises: `DataError` if the voxel counts of the label differ from those in case.json, or a file
      cannot be read.
    """
    case, root = StoredCase(folder), Path(folder)
    expected, counts = case.meta["voxels"], {}
    for z in range(case.meta["shape"][0]):
        ids, numbers = np.unique(case.label((slice(z, z + 1),)), return_counts=True)
        for i, n in zip(ids.tolist(), numbers.tolist(), strict=True):
            counts[str(i)] = counts.get(str(i), 0) + n
    if counts != {str(i): n for i, n in expected.items() if n}:
        raise DataError(
            "label.zarr holds other voxels than were prepared",
            path=root,
            found=counts,
            expected=expected,
            fix=again(root),
        )
    flat = _is_flat(json.loads((root / "image.zarr" / "zarr.json").read_bytes()))
    return {
        "image.zarr": hashes.of_flat(root / "image.zarr", case.image())
        if flat
        else hashes.of_packed(root / "image.zarr"),
        "label.zarr": hashes.of_flat(root / "label.zarr", case._read("label.zarr", ()))
        if flat
        else hashes.of_packed(root / "label.zarr"),
        "locations.npz": hashes.of_file(root / "locations.npz"),
    }


def check_files(folder: str | os.PathLike) -> None:
    """`DataError` if a file of a prepared case is missing or has another size than recorded.

    Contents are not read.
    """
    case = StoredCase(folder)
    for name in ("image.zarr", "label.zarr"):
        case._read(name, (slice(0, 0),))
    len(case.locations)


def again(folder: str | os.PathLike) -> str:
    """The command that prepares one damaged case again."""
    folder = Path(folder)
    return (
        f"make this case again: `medjax prepare <data set folder> -o {folder.parent.parent} "
        f"--force --cases {folder.name}`"
    )


def chunk_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Even pieces of at most 64 along z, y, x; one channel each."""
    return tuple(-(-n // -(-n // CHUNK)) for n in shape[:3]) + (1,) * (len(shape) - 3)


def write_array(path: Path, array: np.ndarray, packed: bool = False) -> None:
    """Writes a zarr3 array, flat or packed (see the module)."""
    if not packed:
        _write_flat(path, array)
        return
    import tensorstore as ts

    blosc = {
        "cname": "lz4",
        "clevel": 5,
        "shuffle": "shuffle",
        "typesize": array.dtype.itemsize,
        "blocksize": 0,
    }
    metadata = {
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": list(chunk_shape(array.shape))},
        },
        "codecs": [BYTES, {"name": "blosc", "configuration": blosc}],
    }
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": os.fspath(path)},
        "metadata": metadata,
    }
    try:
        ts.open(spec, create=True).result().write(array).result()
    except (ValueError, RuntimeError) as error:  # tensorstore has no OSError
        for name in ("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EROFS", "EIO"):
            if f"errno='{name}'" in str(error) or os.strerror(getattr(errno, name)) in str(error):
                number = getattr(errno, name)
                raise OSError(number, os.strerror(number), os.fspath(path)) from error
        raise


def _write_flat(path: Path, array: np.ndarray) -> None:
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(array.shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [BYTES],
        "attributes": {},
    }
    chunk = flat_file(path, array.ndim)
    chunk.parent.mkdir(parents=True)
    with open(chunk, "wb") as file:
        for piece in array:  # slice by slice: no second copy of the volume
            file.write(np.ascontiguousarray(piece, piece.dtype.newbyteorder("<")).data)
    (path / "zarr.json").write_text(json.dumps(metadata))


def flat_file(path: Path, axes: int) -> Path:
    """Where the only chunk of a flat array lies."""
    return path.joinpath("c", *["0"] * axes)


def _stamp(folder: str) -> tuple[int, int]:
    """Changes if a case is prepared again, so that handles of the old one are not reused."""
    try:
        status = os.stat(os.path.join(folder, "case.json"))
    except OSError as error:
        raise DataError("no prepared case", path=folder, fix=REMEDY) from error
    return status.st_ino, status.st_mtime_ns


@functools.lru_cache(maxsize=1 << 14)
def _meta(folder: str, stamp: tuple[int, int]) -> dict[str, Any]:
    try:
        meta = files.read_json(Path(folder, "case.json"), error=DataError)
    except DataError as error:
        raise DataError(
            f"case.json is damaged: {error.message}", path=folder, fix=REMEDY
        ) from error
    if not isinstance(meta, dict):
        raise DataError("case.json is damaged: no object", path=folder, fix=REMEDY)
    if meta.get("version", VERSION) != VERSION:
        raise DataError(
            "prepared by another version of medjax",
            path=folder,
            found=meta["version"],
            expected=VERSION,
            fix=REMEDY,
        )
    if "checksum" in meta and (sum_ := sealed(meta)["checksum"]) != meta["checksum"]:
        raise DataError(
            "case.json is damaged: other content than was written",
            path=folder,
            found=sum_,
            expected=meta["checksum"],
            fix=again(folder),
        )
    shape = meta.get("shape")
    if not (
        isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)
    ) or not isinstance(meta.get("voxels"), dict):
        raise DataError(
            "case.json is damaged: no shape or no numbers of voxels",
            path=folder,
            found=shape,
            fix=again(folder),
        )
    if "hashes" not in meta:
        _tell_unhashed(os.path.dirname(folder))
    return meta


@functools.lru_cache(maxsize=1 << 10)
def _tell_unhashed(corpus_folder: str) -> None:
    """Logs once per corpus of a store (and process)."""
    log.warning(
        "%s: prepared without hashes by an earlier version of medjax, so damage to its arrays "
        "cannot be noticed; "
        "`medjax prepare` or a training adds them",
        corpus_folder,
    )


def _most_handles() -> int:
    """A quarter of the files that this process may open."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            return max(8, min(HANDLES, soft // 4))
    return HANDLES


@functools.lru_cache(maxsize=_most_handles())
def _handle(folder: str, name: str, stamp: tuple[int, int]) -> Callable[[Slices], np.ndarray]:
    """Slices -> array, for either layout; bounded because a memory map holds a file descriptor."""
    path, check = Path(folder, name), _check(folder, name, stamp)
    text = (path / "zarr.json").read_bytes()
    if expected := _meta(folder, stamp).get("hashes"):
        hashes.compare(
            path / "zarr.json", files.checksum(text), expected[name]["zarr.json"], again(folder)
        )
    metadata = json.loads(text)
    shape = tuple(metadata["shape"])
    if _is_flat(metadata):
        dtype, file = np.dtype(metadata["data_type"]), flat_file(path, len(shape))
        found, expected = os.path.getsize(file), dtype.itemsize * math.prod(shape)
        if found != expected:
            raise ValueError(f"{found} bytes, expected {expected}")
        mapped = np.memmap(file, dtype.newbyteorder("<"), "r", shape=shape)

        def read(slices: Slices) -> np.ndarray:
            if check is not None:
                check(mapped, slices)
            return np.array(mapped[slices], dtype)

        return read
    import tensorstore as ts

    opened = ts.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": os.fspath(path)}},
        open=True,
        read=True,
    ).result()

    def read_packed(slices: Slices) -> np.ndarray:
        if check is not None:
            check(shape, slices)
        return opened[slices].read().result()

    return read_packed


@functools.lru_cache(maxsize=1 << 15)
def _check(folder: str, name: str, stamp: tuple[int, int]) -> hashes.Check | None:
    """The object that compares an array with its hashes; None for a case without hashes.

    It remembers which parts were compared.
    """
    expected = _meta(folder, stamp).get("hashes", {}).get(name)
    if expected is None:
        return None
    path = Path(folder, name)
    if "slabs" in expected:
        return hashes.Slabs(
            flat_file(path, 4 if name == "image.zarr" else 3), expected, again(folder)
        )
    chunk = json.loads((path / "zarr.json").read_bytes())["chunk_grid"]["configuration"][
        "chunk_shape"
    ]
    return hashes.Chunks(path, tuple(chunk), expected, again(folder))


def _is_flat(metadata: Mapping) -> bool:
    return metadata["codecs"] == [BYTES] and list(
        metadata["chunk_grid"]["configuration"]["chunk_shape"]
    ) == list(metadata["shape"])


@functools.lru_cache(maxsize=1 << 14)
def _location_keys(folder: str, stamp: tuple[int, int]) -> tuple[str, ...]:
    file = os.path.join(folder, "locations.npz")
    expected = _meta(folder, stamp).get("hashes", {}).get("locations.npz")
    with _locations_of(folder):
        if expected is not None:
            hashes.compare(file, hashes.of_file(file), expected, again(folder))
        with zipfile.ZipFile(file) as archive:
            return zipped.arrays(archive)


@functools.lru_cache(maxsize=1 << 10)
def _voxels(folder: str, key: str, stamp: tuple[int, int]) -> np.ndarray:
    most = (
        12 * math.prod(_meta(folder, stamp)["shape"]) + 1024
    )  # every voxel, three int32 each, and a header
    with _locations_of(folder), zipfile.ZipFile(os.path.join(folder, "locations.npz")) as archive:
        return zipped.array(zipped.content(archive, f"{key}.npy", most))


@contextlib.contextmanager
def _locations_of(folder: str) -> Iterator[None]:
    """Converts errors of locations.npz to a `DataError`."""
    try:
        yield
    except zipped.DAMAGES as error:
        raise DataError(
            f"locations.npz cannot be read: {error}", path=folder, fix=again(folder)
        ) from error
