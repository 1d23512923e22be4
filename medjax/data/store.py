"""Prepared cases on disk: zarr3 arrays that patches are read from without unpacking, and what is known about them.

Arrays are written in one of two layouts, both plain zarr3: *flat*, one uncompressed chunk that is memory-mapped, so that a patch costs its
own bytes and all workers share the system's page cache; or *packed*, 64-voxel chunks compressed with lz4, for slow or remote disks.

    <root>/<corpus>/<case>/image.zarr      (z, y, x, m) int16; normalised value = stored * gain + bias
                           label.zarr      (z, y, x) uint8 or uint16 dense ids of the full corpus
                           locations.npz   str(dense id) -> (n, 3) int32 voxels (z, y, x)
                           case.json       shape, spacing, geometry and its inverse, gain, bias, voxel counts, sources, key

`data/prepare.py` writes, samplers read. A `StoredCase` is its path: cheap to make, picklable, handles opened when first used.
"""

import functools
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medjax.errors import DataError, UsageError

VERSION = 2  # of the stored contents: raised when the same sources would give other arrays
CHUNK = 64
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
REMEDY = "prepare it: `medjax prepare <data set folder> -o <store>`"
Slices = tuple[slice, ...]


class StoredCase:
    """One prepared case. `meta` is case.json, `image` and `label` read what they are asked for, `locations` maps str(id) to voxels."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = os.fspath(folder)
        self._stamp = _stamp(self.folder)

    @property
    def meta(self) -> dict[str, Any]:
        """The fields of case.json; shared, not to be changed."""
        return _meta(self.folder, self._stamp)

    def image(self, slices: Slices = ()) -> np.ndarray:
        """int16 (*slices, m), all of it without slices; ranges must lie inside the volume."""
        return self._read("image.zarr", slices)

    def label(self, slices: Slices = ()) -> np.ndarray:
        """uint8 or uint16 (*slices) dense ids."""
        return self._read("label.zarr", slices)

    @property
    def locations(self) -> Mapping[str, np.ndarray]:
        """str(dense id) -> (n, 3) int32 voxels (z, y, x) of it, read one id at a time when asked for."""
        return Locations(self.folder, self._stamp)

    def _read(self, name: str, slices: Slices) -> np.ndarray:
        try:
            return _handle(self.folder, name, self._stamp)(tuple(slices))
        except (ValueError, OSError) as error:
            raise DataError(f"{name} cannot be read: {error}", path=self.folder, fix=REMEDY) from error

    def __reduce__(self):
        return StoredCase, (self.folder,)

    def __repr__(self) -> str:
        return f"StoredCase({self.folder!r})"


class Locations(Mapping):
    """The foreground voxels of a case as a mapping that loads one id at a time; see `StoredCase.locations`."""

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
    """The prepared case in a folder; `DataError` naming the command that makes it, if there is none."""
    return StoredCase(folder)


def list_cases(root: str | os.PathLike, corpus: str) -> list[str]:
    """Names of the prepared cases of a corpus (by its store name), sorted; `UsageError` if there is no such store."""
    folder = Path(root) / corpus
    if not folder.is_dir():
        raise UsageError("no prepared cases", path=folder, fix=REMEDY)
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".") and (p / "case.json").is_file())


def write_case(
    folder: str | os.PathLike,
    image: np.ndarray,
    label: np.ndarray,
    locations: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
    *,
    packed: bool = False,
) -> None:
    """Fills an existing empty folder; case.json comes last, so a folder with it is complete.

    Args:
      image: (z, y, x, m) int16. label: (z, y, x) uint8 or uint16. locations: str(dense id) -> (n, 3) int32. meta: JSON-ready.
      packed: compressed chunks in place of one flat, memory-mapped one.
    """
    folder = Path(folder)
    write_array(folder / "image.zarr", image, packed)
    write_array(folder / "label.zarr", label, packed)
    np.savez_compressed(folder / "locations.npz", **locations)
    (folder / "case.json").write_text(json.dumps(meta, indent=1))


def chunk_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Even pieces of at most 64 along z, y, x; one channel each."""
    return tuple(-(-n // -(-n // CHUNK)) for n in shape[:3]) + (1,) * (len(shape) - 3)


def write_array(path: Path, array: np.ndarray, packed: bool = False) -> None:
    """Writes a zarr3 array, flat or packed (see the module)."""
    if not packed:
        _write_flat(path, array)
        return
    import tensorstore as ts

    blosc = {"cname": "lz4", "clevel": 5, "shuffle": "shuffle", "typesize": array.dtype.itemsize, "blocksize": 0}
    metadata = {
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk_shape(array.shape))}},
        "codecs": [BYTES, {"name": "blosc", "configuration": blosc}],
    }
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": os.fspath(path)}, "metadata": metadata}
    ts.open(spec, create=True).result().write(array).result()


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
    """Changes when a case is prepared again, so that handles of the old one are not used for the new."""
    try:
        status = os.stat(os.path.join(folder, "case.json"))
    except OSError as error:
        raise DataError("no prepared case", path=folder, fix=REMEDY) from error
    return status.st_ino, status.st_mtime_ns


@functools.lru_cache(maxsize=1 << 14)
def _meta(folder: str, stamp: tuple[int, int]) -> dict[str, Any]:
    try:
        meta = json.loads(Path(folder, "case.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"case.json is damaged: {error}", path=folder, fix=REMEDY) from error
    if meta.get("version", VERSION) != VERSION:
        raise DataError("prepared by another version of medjax", path=folder, found=meta["version"], expected=VERSION, fix=REMEDY)
    return meta


@functools.lru_cache(maxsize=1 << 10)
def _handle(folder: str, name: str, stamp: tuple[int, int]) -> Callable[[Slices], np.ndarray]:
    """Slices -> array of their own, for either layout."""
    path = Path(folder, name)
    metadata = json.loads((path / "zarr.json").read_text())
    shape = tuple(metadata["shape"])
    if metadata["codecs"] == [BYTES] and tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"]) == shape:
        dtype, file = np.dtype(metadata["data_type"]), flat_file(path, len(shape))
        found, expected = os.path.getsize(file), dtype.itemsize * math.prod(shape)
        if found != expected:
            raise ValueError(f"{found} bytes, expected {expected}")
        mapped = np.memmap(file, dtype.newbyteorder("<"), "r", shape=shape)
        return lambda slices: np.array(mapped[slices], dtype)
    import tensorstore as ts

    opened = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": os.fspath(path)}}, open=True, read=True).result()
    return lambda slices: opened[slices].read().result()


@functools.lru_cache(maxsize=1 << 14)
def _location_keys(folder: str, stamp: tuple[int, int]) -> tuple[str, ...]:
    with _npz(folder) as archive:
        return tuple(archive.files)


@functools.lru_cache(maxsize=1 << 10)
def _voxels(folder: str, key: str, stamp: tuple[int, int]) -> np.ndarray:
    with _npz(folder) as archive:
        return archive[key]


def _npz(folder: str):
    try:
        return np.load(os.path.join(folder, "locations.npz"), allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"locations.npz cannot be read: {error}", path=folder, fix=REMEDY) from error
