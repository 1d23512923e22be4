"""ArrayRecord volumes of tensorflow-datasets (`data_pipelines.tfds` writes them) as scans.

    tfds:/data/tfds/corpora/AMOS22_CT/1.0.0       a data set: dataset_info.json, features.json,
                                                  corpus.json, records
    tfds:gs://bucket/corpora/AMOS22_CT/1.0.0      in a bucket: its files are fetched once, to
                                                  $MEDJAX_HOME/tfds
    tfds:/data/tfds/corpora/AMOS22_CT/1.0.0#17    one case in it: image and label of `Case`,
                                                  for `formats.read`

tensorflow-datasets is imported when a record is read, TensorFlow never. `find` takes shorter names:
a name below the data folder of tensorflow-datasets, or the folder of a builder.
"""

import functools
import hashlib
import os
import re
import shutil
import threading
from pathlib import Path

import numpy as np

from medjax import files
from medjax.errors import DataError, UsageError

SCHEME = "tfds:"
DESCRIPTION, INFO = "corpus.json", "dataset_info.json"
SPLIT = "train"
BUILDERS = ("corpora", "folders")  # of data_pipelines.tfds
VOXELS = ("image", "label", "affine")


def is_record(path: str | os.PathLike) -> bool:
    """Whether a path names a data set of tensorflow-datasets, or a case in one."""
    return os.fspath(path).startswith(SCHEME)


def find(name: str) -> str:
    """The address of a data set that was built with tensorflow-datasets.

    Args:
      name: the folder of a build (.../AMOS22_CT/1.0.0) or of its versions (.../AMOS22_CT), as a
        path, an address in a bucket, or relative to the data folder ("corpora/AMOS22_CT", also
        "AMOS22_CT" and "corpora/AMOS22_CT:1.0.0"): $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Returns: "tfds:" and the folder of the newest version, unless the name says another.
    Raises: `UsageError` if there is no such build.
    """
    name = location_of(name)
    if "://" in name:
        return SCHEME + name
    kind, _, version = name.partition(":")
    home = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    places = [Path(kind).expanduser(), home / kind]
    places += [home / builder / kind for builder in BUILDERS]
    for place in places:
        for folder in (place / version,) if version else (place, *_versions(place)):
            if (folder / INFO).is_file():
                return SCHEME + str(folder.resolve())
    known = sorted(
        {str(p.parent.relative_to(home)) for p in home.glob(f"*/*/*/{INFO}")}
        if home.is_dir()
        else ()
    )
    raise UsageError(
        f"no data set {name!r} of tensorflow-datasets",
        path=home,
        expected=f"a folder with {INFO}, or one of: {', '.join(known[:12]) or 'none built yet'}",
        fix="build it with `medjax ingest tfds`, or set TFDS_DATA_DIR",
    )


def _versions(folder: Path) -> list[Path]:
    """The folders of versions below a builder's folder, the newest first."""

    def number(path: Path) -> list[int]:
        return [int(part) for part in path.name.split(".")]

    found = [p for p in folder.glob("*.*.*") if re.fullmatch(r"\d+\.\d+\.\d+", p.name)]
    return sorted(found, key=number, reverse=True)


def read(path: str | os.PathLike, want: str = "image", *, pixels: bool = True):
    """`nifti.Volume` with the image (z, y, x, m) or label (z, y, x) of one record and its affine.

    Without `pixels` the array is None.
    """
    from medjax.scans import header as headers
    from medjax.scans.nifti import Volume  # here, so that reading descriptions stays light

    location, _, number = location_of(path).rpartition("#")
    wanted = ("label" if want == "label" else "image", "affine")
    if not number.isdigit() or int(number) >= (count := len(source(location, wanted))):
        raise DataError("no such record", path=path, expected=f"#0 to #{count - 1}")
    found = example(location, int(number), wanted)
    array, affine = np.asarray(found[wanted[0]]), np.asarray(found["affine"], np.float64)
    array = array[..., 0] if array.ndim == 4 and array.shape[-1] == 1 else array
    header = headers.new(array.shape, affine, array.dtype)
    return Volume(array if pixels else None, affine, header, os.fspath(path))


def digest(path: str | os.PathLike) -> str:
    """sha256 of a record's image, label and affine."""
    location, _, number = location_of(path).rpartition("#")
    found, state = example(location, int(number), VOXELS), hashlib.sha256()
    for key in VOXELS:
        state.update(np.ascontiguousarray(found[key]).tobytes())
    return state.hexdigest()


def sha256(path: str | os.PathLike) -> str:
    """Of an input: of a record's arrays, or of a file's bytes."""
    return digest(path) if is_record(path) else files.sha256(path)


def stamp(path: str | os.PathLike) -> list[int]:
    """Changes when the data set is rebuilt: record number and time of its description."""
    location, _, number = location_of(path).rpartition("#")
    return [int(number), os.stat(local_folder(location) / DESCRIPTION).st_mtime_ns]


def location_of(path: str | os.PathLike) -> str:
    """Folder or address of a data set, without the scheme."""
    return os.fspath(path).removeprefix(SCHEME).rstrip("/")


@functools.cache
def local_folder(location: str) -> Path:
    """The folder itself, or a local copy of a bucket, which appears only when it is complete."""
    if "://" not in location:
        if not (Path(location) / INFO).is_file():
            raise UsageError(
                "no data set of tensorflow-datasets here",
                path=location,
                expected="dataset_info.json, such as .../1.0.0",
            )
        return Path(location)
    from etils import epath

    home = files.home() / "tfds"
    final, remote = home / hashlib.sha256(location.encode()).hexdigest()[:24], epath.Path(location)
    if not final.is_dir():
        if not (remote / INFO).exists():
            raise UsageError(
                "no data set of tensorflow-datasets here",
                path=location,
                expected="dataset_info.json, such as .../1.0.0",
            )
        temporary = files.temporary(final)
        try:
            temporary.mkdir(parents=True)
            files.sweep(home)
            for file in remote.iterdir():
                if not file.is_dir():
                    file.copy(temporary / files.check_name(file.name, "file name", path=location))
            if not final.is_dir():
                os.replace(temporary, final)
        except OSError as error:
            raise files.refused(final, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


_lock = threading.Lock()


@functools.cache
def source(location: str, features: tuple[str, ...]):
    """Random access to the examples of a data set, of which only some features are decoded."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UsageError(
            "this corpus needs tensorflow-datasets",
            fix="pip install tensorflow-datasets array-record",
        ) from error
    with _lock:
        builder = tfds.builder_from_directory(str(local_folder(location)))
        skipped = dict.fromkeys(
            set(builder.info.features) - set(features), tfds.decode.SkipDecoding()
        )
        return builder.as_data_source(split=SPLIT, decoders=skipped)


def example(location: str, index: int, features: tuple[str, ...]) -> dict:
    """Some features of one example; `DataError` for a record that cannot be read."""
    try:
        return source(location, features)[index]
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the record cannot be read: {error}",
            path=f"{SCHEME}{location}#{index}",
            fix="build the data set again",
        ) from error
