"""The files of a prediction: label map, class masks, probabilities, sidecar and run manifest.

In: a `Segmentation` and the volume it belongs to. Out: files in the output folder, each complete or not at all.

    <case>.nii.gz              the corpus' own label values; header and grid of the input, with a label table
    <case>/<class>.nii.gz      one mask per class, overlapping as predicted           (one_file_per_class)
    <case>_prob.npz            class name -> (z, y, x) float16 probabilities          (probabilities)
    <case>_<map>.nii.gz        entropy, disagreement                                  (uncertainty)
    <case>.json                what is in the files above; written last, so a case with it is complete
    statistics.csv             volume and mean intensity of every class in every case (statistics)
    run.json                   versions, settings, and of every case inputs (sha256), outputs and seconds
"""

import csv
import hashlib
import io
import json
import os
import platform
import re
import uuid
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from medjax.data import nifti
from medjax.data.geometry import Transform
from medjax.errors import PredictError
from medjax.infer.masks import Masks, Region
from medjax.infer.model import Segmentation
from medjax.infer.segment import UNCERTAINTIES
from medjax.labels import Corpus

PACKAGES = ("medjax", "jax", "jaxlib", "flax", "numpy", "scipy", "nibabel")


class Probabilities:
    """Gathers the probabilities of all classes on the stored grid, as `Predictor.segment` hands them over (its `on_scores`).

    They are kept in half precision in hidden files of the output folder, not in memory, until `pack` turns them into one archive.
    """

    def __init__(self, folder: Path, case: str):
        self._folder, self._case = folder, f".{case}_prob.{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._files: dict[str, Path] = {}

    def __call__(self, transform: Transform, region: Region, names: Sequence[str], values: np.ndarray) -> None:
        """A region of the cropped canonical grid, (rows, y, x, c)."""
        for channel, name in enumerate(names):
            mode = "r+" if name in self._files else "w+"
            path = self._files.setdefault(name, self._folder / f"{self._case}.{len(self._files)}.tmp")
            try:  # opened for each block, so that what was written does not count as this process' memory
                shape = None if mode == "r+" else transform.stored_shape
                array = np.lib.format.open_memmap(path, mode, None if mode == "r+" else np.float16, shape)
            except OSError as error:
                raise _refused(path, error) from error
            transform.image(array)[region] = values[..., channel]

    def pack(self, path: Path) -> None:
        """Writes them as an .npz: class name -> (z, y, x) float16."""

        def fill(file: BinaryIO) -> None:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for name, source in self._files.items():
                    archive.write(source, f"{name}.npy")

        _atomically(path, fill)

    def discard(self) -> None:
        """Removes the hidden files."""
        for path in self._files.values():
            path.unlink(missing_ok=True)
        self._files.clear()


def write_case(
    folder: Path,
    case: str,
    segmentation: Segmentation,
    volume: nifti.Volume,
    corpus: Corpus,
    *,
    files: Any,
    probabilities: Probabilities | None = None,
    notes: Mapping[str, Any] | None = None,
    extra: Callable[[], list[str]] = list,
) -> list[str]:
    """Writes all files of one case; the sidecar goes first out and last in.

    Args:
      volume: with pixels if `files.statistics` asks for intensities.
      corpus: whose label values the map carries.
      files: a `predict.Files`.
      notes: further fields of the sidecar.
      extra: writes further files and returns their names.

    Returns: paths of the files, relative to `folder`.
    Raises: `DataError` or `PredictError` naming a file that cannot be written.
    """
    sidecar = folder / f"{case}.json"
    sidecar.unlink(missing_ok=True)
    outputs = [f"{case}.nii.gz"]
    names = label_names(corpus)
    nifti.write(folder / outputs[0], segmentation.label_map, volume, labels=names)
    if files.one_file_per_class:
        (folder / case).mkdir(exist_ok=True)
        for name, file in zip(segmentation.masks, file_names(segmentation.masks.names), strict=True):
            nifti.write(folder / case / file, segmentation.masks[name], volume, labels={1: name})
            outputs.append(f"{case}/{file}")
    for name, array in segmentation.maps.items():
        outputs.append(f"{case}_{name}.nii.gz")
        nifti.write(folder / outputs[-1], array, volume)
    if probabilities is not None:
        outputs.append(f"{case}_prob.npz")
        probabilities.pack(folder / outputs[-1])
    outputs += extra()
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000
    classes = {name: {"voxels": n, "volume_ml": n * voxel_ml} for name, n in segmentation.masks.voxels.items()}
    if files.statistics:
        for name, means in mean_intensities(segmentation.masks, volume.array).items():
            classes[name]["mean_intensity"] = means[0] if means else None
            if means and len(means) > 1:
                classes[name]["mean_intensities"] = means  # of all channels
    described = {
        "case": case,
        "corpus": corpus.name,
        "labels": {str(value): name for value, name in names.items()},
        "classes": classes,
        "maps": {name: UNCERTAINTIES[name] for name in segmentation.maps},
        "postprocessing": {name: dict(steps) for name, steps in segmentation.changes.items()},
        "files": {name: (folder / name).stat().st_size for name in outputs},
    }
    write_json(sidecar, described | dict(notes or {}))
    return [*outputs, sidecar.name]


def mean_intensities(masks: Masks, image: np.ndarray) -> dict[str, list[float] | None]:
    """Class -> mean of each channel of the (z, y, x[, m]) stored image in its mask; None for an empty one. Block by block."""
    image = image[..., None] if image.ndim == 3 else image
    cropped = masks.transform.image(image)
    sums = {name: np.zeros(image.shape[-1]) for name in masks.names}
    for number, region in enumerate(masks.regions):
        values = cropped[region]
        for name in masks.names:
            if (part := masks.part(name, number)) is not None:
                sums[name] += values[part].sum(0, dtype=np.float64)
    return {name: (total / masks.voxels[name]).tolist() if masks.voxels[name] else None for name, total in sums.items()}


def write_statistics(path: Path, cases: Sequence[str]) -> None:
    """A table from the sidecars of the finished cases: case, class, voxels, volume_ml, mean_intensity (of the first channel)."""
    rows = [("case", "class", "voxels", "volume_ml", "mean_intensity")]
    for case in cases:
        try:
            classes = json.loads((path.parent / f"{case}.json").read_text())["classes"]
        except (OSError, ValueError, KeyError):
            continue
        for name, found in classes.items():
            mean = found.get("mean_intensity")
            rows.append((case, name, found["voxels"], f"{found['volume_ml']:.6g}", "" if mean is None else f"{mean:.6g}"))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    _atomically(path, lambda file: file.write(text.getvalue().encode()))


def is_complete(folder: Path, case: str, wanted: Mapping[str, Any]) -> bool:
    """Whether a finished prediction of the case is there: a readable sidecar with the `wanted` fields, and all files it lists, whole."""
    try:
        found = json.loads((folder / f"{case}.json").read_text())
        whole = all((folder / name).stat().st_size == size for name, size in found["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return whole and all(found.get(key) == value for key, value in wanted.items())


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
        raise _refused(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _refused(path: Path, error: OSError) -> PredictError:
    return PredictError(f"cannot write ({error.strerror})", path=path, fix="check folder, permissions and free space")
