"""Corrected copies of a raw data set: safe corrections are made, other faulty cases are left out.

In: a data set in any layout. Out: a new folder in the nnU-Net raw layout (imagesTr, labelsTr,
dataset.json), a list of changes with reasons, the cases that were left out, and the verification of
the result. The data set itself is never changed.

    label on another grid   resampled onto the image's grid by nearest neighbour, if that
                            preserves its foreground volume
    shear below 0.02        axes made orthogonal about the centre; the largest shift of a corner
                            is reported
    sform and qform         disagreeing or unset: both written from the affine that was used
    labels as fractions     within 0.001 of whole numbers: rounded; whole numbers stored as
                            floats: stored as integers
    other formats, masks    NRRD, MetaImage, DICOM, arrays become NIfTI; masks per class become
                            one label map of class sets
    4D images with channels one file per channel

Cases that could only be repaired by guessing are left out: damaged files, non-finite voxels,
undeclared values, channels on different grids.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medjax import files
from medjax.corpora import labels_of_case
from medjax.corpora.cases import Progress, each
from medjax.corpora.check import routed_warnings
from medjax.corpora.inputs import Case
from medjax.corpora.sources import scan_corpus
from medjax.corpora.verify import Report, verify
from medjax.errors import DataError, UsageError, sentence, shown
from medjax.labels import BACKGROUND, Corpus
from medjax.scans import formats, grid, nifti, records
from medjax.scans import header as headers
from medjax.scans.paths import NIFTI_ENDINGS

TINY_SHEAR = 0.02
ROUNDING = 1e-3
VOLUME_KEPT = 0.1  # largest relative change of the foreground volume by resampling
FEW_VOXELS = 8


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Result of `fix`.

    Attributes:
      folder: the new data set. changes: {"case", "file", "what"} per change. left_out: {"case",
        "why"} per case that could not be fixed.
      report: verification of the new data set; None if no case is left.
    """

    folder: str
    changes: tuple[dict[str, str], ...]
    left_out: tuple[dict[str, str], ...]
    report: Report | None

    @property
    def ok(self) -> bool:
        """Every case is in the new data set, and it verifies."""
        return self.report is not None and self.report.ok and not self.left_out

    def text(self) -> str:
        """One line per change and per case left out, then the report of the result."""
        lines = [f"FIXED {c['file']}: {c['what']}" for c in self.changes] + [
            f"LEFT OUT {c['case']}: {c['why']}" for c in self.left_out
        ]
        cases = self.report.cases if self.report else 0
        lines.append(
            f"{cases} cases written to {self.folder}, {len(self.changes)} changes, "
            f"{len(self.left_out)} cases left out"
        )
        lines = [shown(text) for text in lines]
        return "\n".join(lines + ([self.report.text()] if self.report else []))

    def to_json(self) -> dict:
        """All fields, and `ok`."""
        return {"ok": self.ok} | dataclasses.asdict(self)


def fix(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    *,
    layout: str = "",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Fixed:
    """Writes the corrected copy and verifies it.

    Args:
      folder: the data set, in any layout; it is only read. out: a new or empty folder outside of
        it.

    Raises: `UsageError` if the output folder is not empty, is a link, or lies in the data set or in
      the folder of a case.
    """
    check_target(folder, out)
    with routed_warnings():
        corpus, cases, missing = scan_corpus(folder, layout)
        _check_apart(cases, out)
        target = _made(Path(out))
        outcomes = each(
            lambda case: _fix_case(case, corpus, target), cases, workers=workers, progress=progress
        )
    changes = [change for o in outcomes if o.failure is None for change in o.value]
    left_out = [
        {"case": o.case.name, "why": sentence(o.failure)} for o in outcomes if o.failure is not None
    ]
    left_out += [{"case": str(error.path), "why": str(error)} for error in missing]
    good = [o.case for o in outcomes if o.failure is None]
    content = json.dumps(description(corpus, good), indent=1).encode()
    with files.replacing(target / "dataset.json", exclusive=True) as file:
        file.write(content)
    return Fixed(
        str(out), tuple(changes), tuple(left_out), verify(out, workers=workers) if good else None
    )


def check_target(folder: str | os.PathLike, out: str | os.PathLike) -> None:
    """`UsageError` unless a corrected copy of the data set `folder` may go to `out`."""
    if os.path.islink(out):
        raise UsageError(
            "the folder for the corrected copy is a symbolic link",
            path=out,
            fix="name the folder itself",
        )
    if not str(folder).startswith(records.SCHEME) and files.is_within(out, folder):
        raise UsageError(
            "the corrected copy must lie outside of the data set",
            path=out,
            fix="name another folder",
        )
    if os.path.lexists(out) and not os.path.isdir(out):
        raise UsageError(
            "the folder for the corrected copy is a file", path=out, fix="name a new folder"
        )
    if os.path.isdir(out) and os.listdir(out):
        raise UsageError(
            "the folder for the corrected copy is not empty", path=out, fix="name a new folder"
        )


def _check_apart(cases: Sequence[Case], out: str | os.PathLike) -> None:
    """`UsageError` if `out` lies in the folder of one case.

    Such a folder holds a DICOM series, or the files of one of several cases. A list may name files
    outside of its own folder.
    """
    owners: dict[str, set[str]] = {}
    for case in cases:
        for path in (*case.images, *case.label_files):
            owners.setdefault(os.path.realpath(os.path.dirname(path)), set()).add(case.name)
    own = {place for place, names in owners.items() if len(names) == 1 and len(cases) > 1}
    own |= {os.path.realpath(path) for case in cases for path in case.images if os.path.isdir(path)}
    target = Path(os.path.realpath(out))
    if place := next((str(p) for p in (target, *target.parents) if str(p) in own), None):
        raise UsageError(
            "the corrected copy must lie outside of the data set",
            path=out,
            found=f"in a case's folder, {place}",
            fix="name another folder",
        )


def _made(target: Path) -> Path:
    """The output folder with two new empty subfolders, so that no link is followed."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in ("imagesTr", "labelsTr"):
            (target / name).mkdir()
    except OSError as error:
        raise files.refused(error.filename or target, error) from error
    return target


def description(corpus: Corpus, cases: Sequence[Case]) -> dict:
    """dataset.json of the nnU-Net raw layout for a corpus, whatever its own layout was."""
    labels: dict[str, int | list[int]] = {BACKGROUND: 0}
    for name in corpus.classes:
        values = [corpus.values[i] for i in corpus.ids_of(name)]
        alone = len(values) == 1 and len(corpus.labels[corpus.ids_of(name)[0]][1]) == 1
        labels[name] = values[0] if alone else values
    if corpus.ignore is not None:
        labels["ignore"] = corpus.ignore
    block = {
        "name": corpus.name,
        "modality": corpus.modality,
        "annotated": list(corpus.annotated),
        "meanings": dict(corpus.meanings),
    }
    patients = {case.name: case.patient for case in cases if case.patient not in ("", case.name)}
    return {
        "channel_names": {str(i): name for i, name in enumerate(corpus.channels)},
        "labels": labels if corpus.classes else {},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        "medjax": {key: value for key, value in (block | {"patients": patients}).items() if value},
    }


def _fix_case(case: Case, corpus: Corpus, out: Path) -> list[dict[str, str]]:
    """Writes one case and returns the changes; raises for a case that cannot be fixed."""
    files.check_name(case.name, "case name", suffix="_0000.nii.gz")
    changes: list[dict[str, str]] = []

    def changed(file: str, what: str) -> None:
        changes.append({"case": case.name, "file": file, "what": what})

    volumes = [formats.read(path) for path in case.images]
    for other in volumes[1:]:
        nifti.check_same_geometry(volumes[0], other)
    channels = sum(v.array.shape[3] if v.array.ndim == 4 else 1 for v in volumes)
    if channels != len(corpus.channels):
        expected = f"{len(corpus.channels)} ({', '.join(corpus.channels)})"
        raise DataError(
            "wrong number of channels",
            path=case.images[0],
            found=channels,
            expected=expected,
            fix="split the file",
        )
    label = _label(case, corpus, volumes[0], changed)
    upright = _upright(volumes[0], changed)
    planes = [
        plane
        for v in volumes
        for plane in (np.moveaxis(v.array, -1, 0) if v.array.ndim == 4 else [v.array])
    ]
    affine = volumes[0].affine if upright is None else upright
    whole = len(planes) == len(volumes) and upright is None
    written: list[Path] = []
    try:
        for c, plane in enumerate(planes):
            path = _free(out / "imagesTr" / f"{case.name}_{c:04d}.nii.gz")
            source = case.images[min(c, len(case.images) - 1)]
            if not (whole and _copied(source, path)):
                if upright is None:
                    changed(
                        source,
                        "a 4D file split into one file per channel"
                        if len(planes) > len(volumes)
                        else "written as .nii.gz",
                    )
                nifti.write_scan(path, dataclasses.replace(volumes[0], array=plane, affine=affine))
            written.append(path)
        if label is not None:
            path = _free(out / "labelsTr" / f"{case.name}.nii.gz")
            array, same = label
            if not (same and upright is None and _copied(case.label, path)):
                if same and upright is None:
                    changed(str(case.label), "written as .nii.gz")
                nifti.write_scan(path, dataclasses.replace(volumes[0], array=array, affine=affine))
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return changes


def _copied(source: str, target: Path) -> bool:
    """Copies a valid .nii.gz byte by byte; False if the file has to be rewritten."""
    if not source.endswith(NIFTI_ENDINGS):
        return False
    with open(source, "rb") as file:
        if file.read(2) != nifti.GZIP_MAGIC:
            return False
    with open(source, "rb") as content, files.replacing(target, exclusive=True) as copy:
        shutil.copyfileobj(content, copy, 1 << 20)
    return True


def _free(path: Path) -> Path:
    """The path, if no file has this name and its folder is the one created for it.

    Also detects names that differ only in case on case-insensitive file systems.
    """
    if os.path.lexists(path) or os.path.islink(path.parent):
        raise UsageError(
            "a file of this name is there already",
            path=path,
            fix="name a new folder, or rename the case",
        )
    return path


def _upright(volume: nifti.Volume, changed) -> np.ndarray | None:
    """The corrected affine of a header, or None if the header needs no correction."""
    header, affine, what = volume.header, volume.affine, []
    shear = headers.shear_of(affine)
    if headers.SHEAR_SILENT < shear <= TINY_SHEAR:
        shape = volume.shape[::-1]
        affine = headers.nearest_rectangular(affine, shape)
        apart = np.linalg.norm(
            ((affine - volume.affine) @ headers.corners(shape))[:3], axis=0
        ).max()
        what.append(
            f"shear of {np.degrees(np.arctan(shear)):.2g} degrees removed, corners move by at "
            f"most {apart:.2g} mm"
        )
    if volume.path.endswith(NIFTI_ENDINGS):
        if headers.forms_disagree(header, volume.affine):
            what.append("sform and qform disagreed: both written from the sform")
        if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
            what.append("neither sform nor qform was set: both written from the voxel sizes")
    for text in what:
        changed(volume.path, text)
    return affine if what else None


def _label(
    case: Case, corpus: Corpus, image: nifti.Volume, changed
) -> tuple[np.ndarray, bool] | None:
    """Raw label values on the image's grid, and whether they are the file's own."""
    if case.masks:
        volume = labels_of_case.read_label_volume(case, corpus, image)
        changed(
            case.masks[0].path,
            f"{len(case.masks)} masks of this case became one label map of class sets",
        )
        return corpus.to_raw(volume.array), False
    if case.label is None:
        return None
    raw = formats.read(case.label, "image", like=image)
    values, same = raw.array, True
    if values.ndim != 3:
        raise DataError(
            "a label map with several channels",
            path=case.label,
            found=values.shape,
            expected="(z, y, x)",
        )
    if values.dtype.kind == "f":
        whole = np.rint(values)
        worst = float(np.abs(values - whole).max())
        if worst > ROUNDING:
            nifti.finished(values, "label", case.label)  # raises, with count and position
        count = int(np.count_nonzero(values != whole))
        rounded = f"{count} voxels rounded to whole numbers (off by at most {worst:.2g})"
        changed(case.label, rounded if count else "whole numbers stored as integers")
        values, same = whole.astype(np.int32), False
    values = nifti.finished(values, "label", case.label)
    values = values.astype(np.uint16 if values.max(initial=0) > 255 else np.uint8)
    labels_of_case.to_ids(values, corpus, case.label)
    raw = dataclasses.replace(raw, array=values)
    if _elsewhere(raw, image):
        moved = grid.onto(raw, image)
        changed(case.label, _kept(raw, moved, image, case.label))
        return moved, False
    return values, same


def _elsewhere(label: nifti.Volume, image: nifti.Volume) -> bool:
    """Whether two volumes lie on different or slightly shifted grids."""
    if label.shape != image.shape:
        return True
    apart = (
        np.linalg.inv(image.affine[:3, :3])
        @ ((label.affine - image.affine) @ headers.corners(image.shape[::-1]))[:3]
    )
    return float(np.abs(apart).max()) > nifti.SAME_VOXELS


def _kept(label: nifti.Volume, moved: np.ndarray, image: nifti.Volume, path: str) -> str:
    """The sentence that reports the resampling; `DataError` if the volume changed too much."""
    voxel = [float(np.prod(v.spacing_mm)) for v in (label, image)]
    before, after = np.count_nonzero(label.array) * voxel[0], np.count_nonzero(moved) * voxel[1]
    said = f"{before / 1000:.4g} ml of foreground, {after / 1000:.4g} ml on the image's grid"
    if abs(after - before) > max(VOLUME_KEPT * before, FEW_VOXELS * max(voxel)):
        fix = "the headers contradict each other: find out which is right"
        raise DataError(
            "label and image do not cover the same space", path=path, found=said, fix=fix
        )
    return f"resampled onto the image's grid {label.shape} -> {image.shape} (z, y, x), {said}"
