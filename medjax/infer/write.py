"""The files of a prediction: label map, class masks, probabilities, sidecar and run manifest.

In: a `Segmentation` and the volume it belongs to. Out: files in the output folder, each complete or
not at all.

    <case>.nii.gz        the corpus' own label values; header and grid of the input; a label table
    <case>/<class>.nii.gz    one mask per class, overlapping as predicted    (one_file_per_class)
    <case>_prob.npz      class name -> (z, y, x) float16 probabilities       (probabilities)
    <case>_<map>.nii.gz  entropy, disagreement                               (uncertainty)
    <case>.json          what the files above hold, with their checksums and those of the inputs;
                         written first with "complete": false, so that the files of a call that was
                         killed are known to be ours, and again at the end
    statistics.csv       volume and mean intensity of every class in every case    (statistics)
    run.json             versions, settings; of every case inputs (sha256), outputs and seconds

Class names become file names and members of the archive by `names.file_stems`; the sidecar's
`class_files` says which is which.
"""

import contextlib
import csv
import gzip
import io
import os
import platform
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from medjax import files as disk
from medjax.errors import PredictError
from medjax.infer import outputs, owned
from medjax.infer.model import UNCERTAINTIES, Segmentation
from medjax.infer.names import file_stems, from_spreadsheet, spreadsheet
from medjax.infer.packed import Masks
from medjax.infer.probabilities import Probabilities
from medjax.labels import Corpus
from medjax.scans import nifti

PACKAGES = ("medjax", "jax", "jaxlib", "flax", "numpy", "scipy", "nibabel")
STATISTICS = ("case", "class", "voxels", "volume_ml", "mean_intensity")


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
    step: Callable[[], None] = lambda: None,
) -> list[str]:
    """Writes all files of one case.

    Args:
      volume: with pixels if `files.statistics` asks for intensities.
      corpus: whose label values the map carries.
      files: a `cases.Files`.
      notes: further fields of the sidecar.
      extra: writes further files and returns their names.
      step: called before every file; may raise to stop.

    A mask of an earlier call that somebody has edited since is kept beside the new one, as
    `<name>.edited`.

    Returns: paths of the files, relative to `folder`.
    Raises: `DataError` or `PredictError` naming a file that cannot be written.
    """
    sidecar = folder / f"{case}.json"
    planned = outputs.of_case(case, files, segmentation.masks.names, tuple(segmentation.maps))[:-1]
    before = owned.sidecar(folder, case)
    _keep_edited(folder, before)
    earlier = sorted({*before["files"], *before["earlier"]}) if before else []
    promise = owned.mark("prediction") | {
        "case": case,
        "corpus": corpus.name,
        "complete": False,
        "files": dict.fromkeys(planned),
    }
    step()
    write_json(sidecar, promise | {"earlier": earlier})
    try:
        written, described = _write_files(
            folder, case, segmentation, volume, corpus, files, probabilities, extra, step
        )
    except BaseException:
        _forget(folder, case, planned, before)
        raise
    left = [name for name in earlier if name not in written and os.path.lexists(folder / name)]
    write_json(
        sidecar,
        owned.mark("prediction")
        | described
        | {"earlier": left}
        | dict(notes or {})
        | {"complete": True},
    )
    return [*written, sidecar.name]


def _write_files(
    folder: Path,
    case: str,
    segmentation: Segmentation,
    volume: nifti.Volume,
    corpus: Corpus,
    files: Any,
    probabilities: Probabilities | None,
    extra: Callable[[], list[str]],
    step: Callable[[], None],
) -> tuple[list[str], dict]:
    """The files beside the sidecar, and what the sidecar says about them."""
    written, names = [f"{case}.nii.gz"], label_names(corpus)
    stems = dict(zip(segmentation.masks.names, file_stems(segmentation.masks.names), strict=True))
    nifti.write(folder / written[0], segmentation.label_map, volume, labels=names)
    if files.one_file_per_class:
        try:
            (folder / case).mkdir(exist_ok=True)
        except OSError as error:
            raise disk.refused(folder / case, error, error=PredictError) from error
        for name, stem in stems.items():
            step()
            nifti.write(
                folder / case / f"{stem}.nii.gz", segmentation.masks[name], volume, labels={1: name}
            )
            written.append(f"{case}/{stem}.nii.gz")
    for name, array in segmentation.maps.items():
        step()
        written.append(f"{case}_{name}.nii.gz")
        nifti.write(folder / written[-1], array, volume)
    if probabilities is not None:
        step()
        written.append(f"{case}_prob.npz")
        probabilities.pack(folder / written[-1])
    step()
    written += extra()
    described = {
        "case": case,
        "corpus": corpus.name,
        "labels": {str(value): name for value, name in names.items()},
        "classes": _classes(segmentation.masks, volume, files.statistics),
        "conflicts": {
            "voxels": segmentation.masks.conflicting,
            "foreground": segmentation.masks.foreground,
        },
        "maps": {name: UNCERTAINTIES[name] for name in segmentation.maps},
        "postprocessing": {name: dict(steps) for name, steps in segmentation.changes.items()},
        "files": {name: (folder / name).stat().st_size for name in written},
        "checksums": {name: disk.checksum_of(folder / name) for name in written},
    }
    if files.one_file_per_class or probabilities is not None:
        described["class_files"] = stems
    return written, described


def _classes(masks: Masks, volume: nifti.Volume, statistics: bool) -> dict[str, dict]:
    """Class -> voxels, volume and, if asked for, mean intensities."""
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000
    classes: dict[str, dict] = {
        name: {"voxels": n, "volume_ml": n * voxel_ml} for name, n in masks.voxels.items()
    }
    for name, means in mean_intensities(masks, volume.array).items() if statistics else ():
        classes[name]["mean_intensity"] = means[0] if means else None
        if means and len(means) > 1:
            classes[name]["mean_intensities"] = means  # of all channels
    return classes


def _forget(folder: Path, case: str, planned: Sequence[str], before: Mapping | None) -> None:
    """After a failure: without any file that it could tell of, the sidecar goes as well."""
    with contextlib.suppress(OSError):
        (folder / case).rmdir()  # only if it is empty
    if before is None and not any(os.path.lexists(folder / name) for name in planned):
        with contextlib.suppress(OSError):
            (folder / f"{case}.json").unlink(missing_ok=True)


def _keep_edited(folder: Path, before: Mapping | None) -> None:
    """Moves masks aside that are whole but other than when they were written: somebody's work, not
    damage.
    """
    for name, size in (before or {"files": {}})["files"].items():
        path, known = folder / name, before.get("checksums", {}).get(name)
        if (
            before.get("complete") is False
            or not name.endswith(".nii.gz")
            or not path.is_file()
            or path.is_symlink()
        ):
            continue
        same = path.stat().st_size == size and (known is None or disk.checksum_of(path) == known)
        if same or not _is_whole(path):
            continue
        number = 0
        while os.path.lexists(free := path.with_name(f"{path.name}.edited{number or ''}")):
            number += 1
        try:
            os.rename(path, free)
        except OSError as error:
            raise disk.refused(free, error, error=PredictError) from error


def _is_whole(path: Path) -> bool:
    """Whether a gzip file decompresses to its end, with the right check sum."""
    try:
        with gzip.open(path) as file:
            while file.read(1 << 22):
                pass
    except (OSError, EOFError, zlib.error):
        return False
    return True


def mean_intensities(masks: Masks, image: np.ndarray) -> dict[str, list[float] | None]:
    """Class -> mean of each channel of the (z, y, x[, m]) stored image in its mask; None for an
    empty one. Block by block.
    """
    image = image[..., None] if image.ndim == 3 else image
    cropped = masks.transform.image(image)
    sums = {name: np.zeros(image.shape[-1]) for name in masks.names}
    for number, region in enumerate(masks.regions):
        values = cropped[region]
        for name in masks.names:
            if (part := masks.part(name, number)) is not None:
                sums[name] += values[part].sum(0, dtype=np.float64)
    return {
        name: (total / masks.voxels[name]).tolist() if masks.voxels[name] else None
        for name, total in sums.items()
    }


def write_statistics(path: Path, cases: Sequence[str]) -> None:
    """A table from the sidecars of the finished cases: case, class, voxels, volume_ml,
    mean_intensity (of the first channel).

    Names that a spreadsheet would take for formulas begin with an apostrophe; `read_statistics`
    takes it off.
    """
    rows = [STATISTICS]
    for case in cases:
        found = owned.sidecar(path.parent, case)
        for name, entry in (found or {}).get("classes", {}).items():
            mean = entry.get("mean_intensity")
            numbers = (
                entry["voxels"],
                f"{entry['volume_ml']:.6g}",
                "" if mean is None else f"{mean:.6g}",
            )
            rows.append((spreadsheet(case), spreadsheet(name), *numbers))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    disk.write_text(path, text.getvalue(), error=PredictError)


def read_statistics(path: Path) -> list[dict[str, str]]:
    """The rows of statistics.csv, names as they were."""
    with open(path, newline="", encoding="utf-8") as file:
        return [
            row | {k: from_spreadsheet(row[k]) for k in ("case", "class")}
            for row in csv.DictReader(file)
        ]


def is_complete(
    folder: Path,
    case: str,
    wanted: Mapping[str, Any],
    inputs: Callable[[], Sequence[str]],
    listed: Mapping[str, Any] | None = None,
) -> str:
    """Whether a finished prediction of the case is there.

    Args:
      wanted: fields of the sidecar. inputs: sha256 of the case's input files as they are now;
        called if all else agrees.
      listed: the case's entry in an earlier manifest, for sidecars of medjax 0.1, which hold no
        hashes of the inputs.

    Returns: "" if not: a sidecar of ours is missing, unfinished or made otherwise, a file it lists
      is missing or changed, or the inputs have other hashes; "unhashed" if only the sizes of the
      files can be compared; else "complete".
    """
    found = owned.sidecar(folder, case)
    if (
        found is None
        or found.get("complete") is False
        or any(found.get(key) != value for key, value in wanted.items())
    ):
        return ""
    hashes, recorded = found.get("checksums"), found.get("inputs") or (listed or {}).get("inputs")
    try:
        whole = all((folder / name).stat().st_size == size for name, size in found["files"].items())
        whole = whole and f"{case}.nii.gz" in found["files"]
        if not whole or not isinstance(recorded, dict) or list(recorded.values()) != list(inputs()):
            return ""
        if not isinstance(hashes, dict):
            return "unhashed"
        return (
            "complete"
            if all(disk.checksum_of(folder / name) == hashes.get(name) for name in found["files"])
            else ""
        )
    except (OSError, TypeError, AttributeError):
        return ""


def label_names(corpus: Corpus) -> dict[int, str]:
    """Label value -> its most specific class name (classes that span equally few values are joined
    by a plus).
    """
    breadth = {name: len(corpus.ids_of(name)) for name in corpus.classes}
    names = {}
    for value, owners in corpus.labels:
        if owners:
            narrowest = min(breadth[name] for name in owners)
            names[value] = "+".join(name for name in owners if breadth[name] == narrowest)
    return names


def file_names(classes: Sequence[str]) -> list[str]:
    """Distinct file names for class names, which may hold slashes or blanks."""
    return [f"{stem}.nii.gz" for stem in file_stems(classes)]


def versions() -> dict[str, str]:
    """Of Python and the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes JSON whole or not at all; `PredictError` where that is impossible."""
    disk.write_json(path, fields, error=PredictError)
