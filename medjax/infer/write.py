"""The files of a prediction: label map, class masks, probabilities, sidecar and run manifest.

In: a `Segmentation` and the volume it belongs to. Out: files in the output folder, each complete or not at all.

    <case>.nii.gz              the corpus' own label values; header and grid of the input, with a label table
    <case>/<class>.nii.gz      one mask per class, overlapping as predicted           (one_file_per_class)
    <case>_prob.npz            class name -> (z, y, x) float16 probabilities          (probabilities)
    <case>.json                what is in the files above; written last, so a case with it is complete
    run.json                   versions, settings, and of every case inputs (sha256), outputs and seconds
"""

import hashlib
import json
import os
import platform
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from medjax.data import nifti
from medjax.data.geometry import Transform
from medjax.errors import PredictError
from medjax.infer.predictor import Segmentation
from medjax.labels import Corpus

PACKAGES = ("medjax", "jax", "jaxlib", "flax", "numpy", "scipy", "nibabel")


class Probabilities:
    """Gathers the probabilities of all classes on the stored grid, as `Predictor.segment` hands them over (its `on_scores`).

    Half precision: 2 bytes per voxel and class are held in memory until they are written.
    """

    def __init__(self):
        self.arrays: dict[str, np.ndarray] = {}

    def __call__(self, transform: Transform, rows: slice, names: Sequence[str], values: np.ndarray) -> None:
        """Rows of the cropped canonical grid, (rows, y, x, c)."""
        for channel, name in enumerate(names):
            if name not in self.arrays:
                self.arrays[name] = np.zeros(transform.stored_shape, np.float16)
            transform.image(self.arrays[name])[rows] = values[..., channel]


def write_case(
    folder: Path,
    case: str,
    segmentation: Segmentation,
    volume: nifti.Volume,
    corpus: Corpus,
    *,
    one_file_per_class: bool = False,
    probabilities: Probabilities | None = None,
    notes: Mapping[str, Any] | None = None,
) -> list[str]:
    """Writes all files of one case; the sidecar goes first out and last in.

    Args:
      corpus: whose label values the map carries.
      notes: further fields of the sidecar.

    Returns: paths of the files, relative to `folder`.
    Raises: `DataError` or `PredictError` naming a file that cannot be written.
    """
    sidecar = folder / f"{case}.json"
    sidecar.unlink(missing_ok=True)
    outputs = [f"{case}.nii.gz"]
    nifti.write(folder / outputs[0], segmentation.label_map, volume, labels=label_names(corpus))
    if one_file_per_class:
        (folder / case).mkdir(exist_ok=True)
        for name, file in zip(segmentation.masks, file_names(segmentation.masks.names), strict=True):
            nifti.write(folder / case / file, segmentation.masks[name], volume, labels={1: name})
            outputs.append(f"{case}/{file}")
    if probabilities is not None:
        outputs.append(f"{case}_prob.npz")
        _atomically(folder / outputs[-1], lambda file: np.savez_compressed(file, **probabilities.arrays))
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000
    described = {
        "case": case,
        "corpus": corpus.name,
        "labels": {str(value): name for value, name in label_names(corpus).items()},
        "classes": {name: {"voxels": n, "volume_ml": n * voxel_ml} for name, n in segmentation.masks.voxels.items()},
        "files": outputs,
    }
    write_json(sidecar, described | dict(notes or {}))
    return [*outputs, sidecar.name]


def is_complete(folder: Path, case: str, wanted: Mapping[str, Any]) -> bool:
    """Whether a finished prediction of the case is there: a readable sidecar with the `wanted` fields, and all files it lists."""
    try:
        found = json.loads((folder / f"{case}.json").read_text())
        files = [folder / name for name in found["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all(found.get(key) == value for key, value in wanted.items()) and all(path.is_file() for path in files)


def label_names(corpus: Corpus) -> dict[int, str]:
    """Label value -> its most specific class name (classes that span equally few values are joined by a plus)."""
    breadth = {name: len(corpus.ids_of(name)) for name in corpus.classes}
    names = {}
    for value, owners in corpus.labels:
        if owners:
            narrowest = min(breadth[name] for name in owners)
            names[value] = "+".join(name for name in owners if breadth[name] == narrowest)
    return names


def file_names(classes: Sequence[str]) -> list[str]:
    """Distinct file names for class names, which may hold slashes or blanks."""
    names: list[str] = []
    for name in classes:
        plain = re.sub(r"[^\w.+-]+", "_", name).strip("._") or "class"
        names.append(plain if plain not in names else f"{plain}_{len(names)}")
    return [f"{name}.nii.gz" for name in names]


def versions() -> dict[str, str]:
    """Of Python and the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes JSON under a temporary name, then renames it."""
    _atomically(path, lambda file: file.write((json.dumps(fields, indent=1, allow_nan=False) + "\n").encode()))


def _atomically(path: Path, fill: Callable[[BinaryIO], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "xb") as file:
            fill(file)
        os.replace(temporary, path)
    except OSError as error:
        raise PredictError(f"cannot write ({error.strerror})", path=path, fix="check folder, permissions and free space") from error
    finally:
        temporary.unlink(missing_ok=True)
