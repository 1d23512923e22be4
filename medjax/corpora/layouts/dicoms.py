"""DICOM: folders with one image series each, and DICOM-SEG or RTSTRUCT objects anywhere below.

Needs the extra `formats`. An object belongs to the series it refers to (or, if that series is
missing, to the only series of its patient). Segments and ROIs become overlapping masks by their
names; "classes" in medjax.json chooses and renames them. A case is named after its patient, or
after its folder if the patient has several scans.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from medjax.corpora.inputs import Case
from medjax.corpora.layouts.common import UNNAMED, Found, Scan, finish
from medjax.errors import MedjaxError, UsageError
from medjax.scans.paths import Mask, is_dicom

if TYPE_CHECKING:
    from medjax.scans.dicom import Series


def detect(path: Path) -> bool:
    """A DICOM file in the folder or up to four levels below."""
    if not path.is_dir():
        return False
    for folder, below, files in os.walk(path):
        below[:] = (
            sorted(n for n in below if not n.startswith("."))
            if len(Path(folder).relative_to(path).parts) < 4
            else []
        )
        for name in sorted(n for n in files if not n.startswith("."))[:5]:
            if is_dicom(Path(folder) / name):
                return True
    return False


def scan(path: Path) -> Scan:
    """Corpus, usable cases, and the problems of the others."""
    from medjax.scans.dicom import OBJECTS
    from medjax.scans.dicom import scan as scan_series

    images: list[tuple[Path, Series]] = []
    objects: list[tuple[str, Series]] = []
    problems: list[MedjaxError] = []
    for folder, below, _ in os.walk(path):
        below[:] = sorted(n for n in below if not n.startswith("."))
        try:
            found = scan_series(folder)
        except MedjaxError as error:
            problems.append(error)
            continue
        scans = [s for s in found if s.modality not in OBJECTS]
        if len(scans) > 1:
            names = ", ".join(s.description or s.uid for s in scans)
            problems.append(
                UsageError(
                    "several image series in one folder",
                    path=folder,
                    found=names,
                    fix="one folder per series",
                )
            )
        images += [(Path(folder), s) for s in scans[:1] if len(scans) == 1]
        objects += [
            (file, s) for s in found if s.modality in ("SEG", "RTSTRUCT") for file in s.files
        ]
    masks, wrong = _assigned(images, objects)
    names = _names(path, images)
    cases, patients = [], {}
    for (folder, series), name in zip(images, names, strict=True):
        if objects and not masks[series.uid]:
            what = f"no DICOM-SEG or RTSTRUCT belongs to case {name!r}"
            problems.append(UsageError(what, path=folder, fix="add it, or remove the series"))
            continue
        cases.append(
            Case(name, (str(folder),), modality=_word(series), masks=tuple(masks[series.uid]))
        )
        patients[name] = series.patient or name
    kinds = {_word(series) for _, series in images}
    channel = kinds.pop() if len(kinds) == 1 else UNNAMED
    return finish(
        Found(path, cases, problems + wrong, (channel,), None if objects else {}, patients=patients)
    )


def _assigned(
    images: list[tuple[Path, "Series"]], objects: list[tuple[str, "Series"]]
) -> tuple[dict[str, list[Mask]], list[MedjaxError]]:
    """Series uid -> masks of the objects that belong to it."""
    masks: dict[str, list[Mask]] = {series.uid: [] for _, series in images}
    problems: list[MedjaxError] = []
    for file, series in objects:
        header = series.headers[series.files.index(file)]
        uids = [uid for uid in _references(header) if uid in masks]
        of_patient = [s.uid for _, s in images if s.patient == series.patient]
        if len(uids) != 1 and len(of_patient) != 1:
            what = f"cannot determine the series that this {series.modality} belongs to"
            problems.append(
                UsageError(
                    what,
                    path=file,
                    found=f"{len(of_patient)} series of the patient",
                    fix="keep one series per patient",
                )
            )
            continue
        items = (
            header.SegmentSequence if series.modality == "SEG" else header.StructureSetROISequence
        )
        rule, word = ("segment", "SegmentLabel") if series.modality == "SEG" else ("roi", "ROIName")
        for label in dict.fromkeys(str(item.get(word, "")) for item in items):
            masks[(uids or of_patient)[0]].append(Mask(label.strip(), file, f"{rule}:{label}"))
    return masks, problems


def _references(header) -> list[str]:
    """Series uids a SEG or RTSTRUCT refers to."""
    found = [
        str(item.get("SeriesInstanceUID", ""))
        for item in header.get("ReferencedSeriesSequence", [])
    ]
    for frame in header.get("ReferencedFrameOfReferenceSequence", []):
        for study in frame.get("RTReferencedStudySequence", []):
            found += [
                str(item.get("SeriesInstanceUID", ""))
                for item in study.get("RTReferencedSeriesSequence", [])
            ]
    return found


def _word(series: "Series") -> str:
    return {"MR": "MR", "CT": "CT", "PT": "PET"}.get(series.modality, series.modality or UNNAMED)


def _names(path: Path, images: list[tuple[Path, "Series"]]) -> list[str]:
    def plain(text: str) -> str:
        return re.sub(r"[^\w.-]+", "_", text).strip("._") or "case"

    patients = [plain(series.patient) for _, series in images]
    if len(set(patients)) == len(patients) and all(series.patient for _, series in images):
        return patients
    return [
        plain(
            "_".join(folder.relative_to(path).parts) or os.path.basename(os.path.realpath(folder))
        )
        for folder, _ in images
    ]
