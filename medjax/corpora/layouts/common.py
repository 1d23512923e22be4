"""Shared by the layouts: builds a corpus from the cases a layout found.

In: a `Found` (cases with images and label map or masks, and the names that the layout knows). Out:
(corpus, cases, problems). The corpus follows the description if there is one, else the values or
masks that occur.
"""

import collections
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medjax.corpora.dataset_json import (
    annotated_classes,
    channel_names,
    corpus_name,
    hints,
    meanings_of,
    parse_labels,
    patients_of,
)
from medjax.corpora.inputs import Case
from medjax.errors import LabelError, MedjaxError, UsageError
from medjax.labels import Corpus

Scan = tuple[Corpus, tuple[Case, ...], list[MedjaxError]]

UNNAMED = "image"  # name of a channel without a description


@dataclasses.dataclass
class Found:
    """Result of a layout's search.

    Attributes:
      folder: folder of the data set.
      cases: named, with images and a label map, or masks, or neither; corpus may be empty.
      problems: errors of what could not become a case.
      channels, labels, name: as given by the layout; hints override them. labels: either direction,
        as in dataset.json.
      classes: classes of the masks, in order; by default every name that occurs, sorted.
      patients: case -> patient.
    """

    folder: Path
    cases: list[Case]
    problems: list[MedjaxError] = dataclasses.field(default_factory=list)
    channels: tuple[str, ...] = (UNNAMED,)
    labels: Mapping | None = None
    name: str = ""
    modality: str = ""
    classes: tuple[str, ...] = ()
    patients: Mapping[str, str] = dataclasses.field(default_factory=dict)


def finish(found: Found) -> Scan:
    """Names, label table and patients of the cases.

    Raises: `UsageError` without any case, `LabelError` for an invalid description.
    """
    said, path = hints(found.folder if found.folder.is_dir() else found.folder.parent)
    if not found.cases and not found.problems:
        raise UsageError(
            "no cases found", path=found.folder, fix="see docs/data.md for the layouts"
        )
    given = said.get("channel_names", said.get("channels"))
    if not isinstance(said.get("annotated", []), list):
        annotated_classes(said["annotated"], (), path)  # raises
    channels = channel_names(given, path) if given is not None else found.channels
    if str(said.get("modality", "")).upper() == "CT" and channels == (UNNAMED,):
        channels = ("CT",)
    modality = str(said.get("modality") or found.modality or _modality(channels))
    fields = {"modality": modality, "channels": channels, "meanings": meanings_of(said, path)}
    name = corpus_name(said.get("name") or found.name, Path(os.path.realpath(found.folder)), path)
    problems, cases = list(found.problems), list(found.cases)
    if any(case.masks for case in cases):
        corpus, cases, wrong = _of_masks(name, said, found, cases, path, fields)
    else:
        corpus, cases, wrong = _of_maps(name, said, found, cases, path, fields)
    problems += wrong
    if said.get("patients"):
        patients = patients_of(said["patients"], [c.name for c in cases], path)
    else:
        patients = dict(found.patients)
    cases = [
        dataclasses.replace(
            c,
            corpus=corpus.name,
            modality=c.modality or modality,
            patient=patients.get(c.name) or c.patient or c.name,
        )
        for c in sorted(cases, key=lambda c: c.name)
    ]
    _check_names(cases, found.folder)
    return corpus, tuple(cases), problems


def _of_maps(
    name: str, said: Mapping, found: Found, cases: list[Case], path: Path, fields: dict
) -> tuple[Corpus, list[Case], list]:
    from medjax.corpora import (
        survey,
    )  # reads voxels: only needed if no description names the values

    declared = said.get("labels", found.labels)
    problems: list[MedjaxError] = []
    if declared is None:
        labelled = [case for case in cases if case.label]
        values, problems = survey.label_values(labelled)
        bad = {str(p.path) for p in problems}
        kept = next((c.label for c in labelled if c.label not in bad), None)
        names = _names_inside(kept) if kept else {}
        declared = {str(v): names.get(v) or f"label_{v}" for v in values}
        problems = []  # the case is kept: its problems are reported when it is read
    labels, ignore = parse_labels(declared, said.get("regions", {}), path)
    annotated = annotated_classes(list(said.get("annotated", [])), labels, path)
    return Corpus(name, labels, annotated, ignore=ignore, **fields), cases, problems


def _names_inside(label: str) -> dict[int, str]:
    """Class names from a label table in the header of a NIfTI file, if it has one."""
    from medjax.scans import formats, nifti

    try:
        return nifti.label_names(label) if formats.kind_of(label) == "nifti" else {}
    except MedjaxError:
        return {}


def _of_masks(
    name: str, said: Mapping, found: Found, cases: list[Case], path: Path, fields: dict
) -> tuple[Corpus, list[Case], list]:
    from medjax.corpora import label_sets, survey

    spoken = said.get("classes") or list(found.classes)
    if isinstance(spoken, Mapping):
        if strange := next((n for n in spoken.values() if not _is_names(n)), None):
            raise LabelError(
                '"classes" names no names in the files',
                path=path,
                found=repr(strange)[:80],
                expected='{"liver": ["Liver"]}',
            )
        other = {
            alias: c
            for c, names in spoken.items()
            for alias in ([names] if isinstance(names, str) else names)
        }
    elif isinstance(spoken, Sequence) and not isinstance(spoken, str):
        other = {str(c): str(c) for c in spoken}
    else:
        raise LabelError(
            '"classes" must be a list of names, or an object with the names in the files',
            path=path,
            found=spoken,
        )
    present = {mask.name for case in cases for mask in case.masks}
    other = other or {c: c for c in sorted(present)}
    classes = tuple(dict.fromkeys(other.values()))
    if unknown := [c for c in classes if not any(other[n] == c for n in present if n in other)]:
        raise LabelError(
            f"no mask of class {unknown[0]!r} in any case",
            path=path,
            found=sorted(present)[:20],
            fix='correct "classes"',
        )
    whole, problems = [], []
    for case in cases:
        masks = tuple(
            dataclasses.replace(m, name=other[m.name]) for m in case.masks if m.name in other
        )
        missing = [c for c in classes if c not in {m.name for m in masks}]
        if case.masks and missing and said.get("absent") != "background":
            fix = (
                'add it (empty, if the class is not there), or say "absent": "background" in '
                "medjax.json"
            )
            lacking = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
            what = f"no mask of {lacking} in case {case.name!r}"
            problems.append(UsageError(what, path=case.masks[0].path, fix=fix))
        elif not case.masks:
            problems.append(
                UsageError(
                    f"case {case.name!r} has no masks",
                    path=case.images[0],
                    fix="add them, or remove the case",
                )
            )
        else:
            whole.append(dataclasses.replace(case, masks=masks))
    sets, _ = survey.mask_sets(whole)  # a mask that cannot be read is reported when the case is
    corpus = label_sets.corpus_of(name, classes, sets, **fields)
    annotated = annotated_classes(list(said.get("annotated", [])), corpus.labels, path)
    return dataclasses.replace(corpus, annotated=annotated or corpus.classes), whole, problems


def _is_names(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(name, str) for name in value)
    )


def _modality(channels: Iterable[str]) -> str:
    names = [c.lower() for c in channels]
    return "CT" if "ct" in names else "unknown" if names == [UNNAMED] else "MR"


def _check_names(cases: Sequence[Case], folder: Path) -> None:
    counts = collections.Counter(case.name for case in cases)
    if twice := next((n for n, count in counts.items() if count > 1), None):
        raise UsageError(
            f"case {twice!r} occurs twice", path=folder, fix="give every case its own name"
        )


def usual(sets: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The most frequent set of channels among the cases; of equally frequent sets the largest."""
    return max(sorted(set(sets)), key=lambda names: (sets.count(names), len(names)))
