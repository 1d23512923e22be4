"""Checks one case: reads every file to its end, compares values and grids.

In: a `Case` and its `Corpus`. Out: problems (dictionaries with severity, file, what, found,
expected, fix) and a row that summarises the case. All checks that are still possible run after a
problem, so a problem does not hide others.
"""

import os
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from medjax.corpora import label_sets, labels_of_case
from medjax.corpora.inputs import Case, read_json
from medjax.corpora.words import some
from medjax.errors import MedjaxError, shown
from medjax.labels import Corpus
from medjax.scans import formats, nifti
from medjax.scans.grid import Box, nonzero_box
from medjax.scans.paths import NIFTI_ENDINGS, Mask

ERROR, WARNING = "error", "warning"
MANY_VALUES = 8  # with more undeclared values, a file is no label map of this corpus
MOST_CLASSES = 512
FIELDS = ("severity", "file", "what", "found", "expected", "fix")
Problem = dict[str, str]


def check_case(
    case: Case, corpus: Corpus, heard: "dict[int, list[str]]"
) -> tuple[list[Problem], dict | None, str]:
    """Problems, summary row (None if no image can be read) and "ok" or "failed" of one case.

    `heard` is the result of `routed_warnings`.
    """
    warned = heard[threading.get_ident()] = []
    problems, grids, channels, extent = [], [], 0, None
    for path in case.images:
        try:
            image = formats.read(path)
        except MedjaxError as error:
            problems.append(problem_of(error, path))
            continue
        problems += _constant(image) + _container(path)
        channels += image.array.shape[3] if image.array.ndim == 4 else 1
        extent = _joined(extent, image.array)
        grids.append(nifti.replaced(image, None))
    for other in grids[1:]:
        problems += _pair(grids[0], other)
    if len(grids) == len(case.images) and channels != len(corpus.channels):
        problems.append(_wrong_channels(case, corpus, channels))
    grid = grids[0] if grids else None
    if twin := _same_file(case):
        found, counts = (
            [
                entry(
                    ERROR,
                    twin,
                    "image and label are the same file",
                    fix="name the label map, or leave the label out",
                )
            ],
            {},
        )
    else:
        found, counts = (_masks if case.masks else _label_map)(case, corpus, grid, extent)
    problems += found
    problems += [entry(WARNING, *_split(text, case)) for text in dict.fromkeys(warned)]
    row = None
    if grid is not None:
        row = {
            "name": case.name,
            "shape": grid.shape,
            "spacing_mm": grid.spacing_mm,
            "modality": case.modality,
            "voxels": counts,
        }
        row["labelled"] = case.labelled
    return problems, row, "failed" if any(p["severity"] == ERROR for p in problems) else "ok"


def _same_file(case: Case) -> str:
    """The label file of a case that is one of its images as well; empty if there is none."""
    if any(formats.kind_of(path) == "record" for path in case.images):
        return ""
    images = {os.path.realpath(path) for path in case.images}
    return next((path for path in case.label_files if os.path.realpath(path) in images), "")


def _joined(extent: Box | None, array: np.ndarray) -> Box | None:
    """The box around `extent` and the voxels of another image that are not 0."""
    box = nonzero_box(array)
    if extent is None or box is None:
        return extent or box
    return tuple((min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(extent, box, strict=True))


def _cut_off(
    path: str, label: np.ndarray, extent: Box | None, skip: Sequence[int] = ()
) -> list[Problem]:
    """A warning if label voxels lie outside the box of non-zero image voxels.

    Preparation crops to that box, so these voxels would be lost.
    """
    if extent is None or any(stop > n for (_, stop), n in zip(extent, label.shape, strict=True)):
        return []
    marked = label != 0
    for value in skip:
        marked &= label != value
    lost = int(np.count_nonzero(marked)) - int(
        np.count_nonzero(marked[tuple(slice(*ends) for ends in extent)])
    )
    what = "label voxels outside of all that is not 0 in the image"
    fix = 'preparation cuts them off: correct the label, or prepare with crop "none"'
    return [entry(WARNING, path, what, f"{lost} voxels", "0", fix)] if lost else []


def _constant(image: nifti.Volume) -> list[Problem]:
    flat = image.array.reshape(-1, image.array.shape[3] if image.array.ndim == 4 else 1)
    problems = []
    for c in np.flatnonzero(flat.min(0) == flat.max(0)):
        what = "constant image" + (f" in channel {c}" if flat.shape[1] > 1 else "")
        problems.append(
            entry(
                WARNING,
                image.path,
                what,
                f"{float(flat[0, c]):g} everywhere",
                "varying values",
                "leave the case out",
            )
        )
    return problems


def _container(path: str) -> list[Problem]:
    """A warning for a NIfTI file whose name does not match its compression.

    medjax reads such files; other programs may not.
    """
    if not path.endswith(NIFTI_ENDINGS):
        return []
    with open(path, "rb") as file:
        compressed = file.read(2) == nifti.GZIP_MAGIC
    if compressed == path.endswith(".gz"):
        return []
    what = "a compressed file without .gz" if compressed else "named .gz but not compressed"
    return [entry(WARNING, path, what, fix="rename it, for programs that go by the name")]


def _wrong_channels(case: Case, corpus: Corpus, channels: int) -> Problem:
    expected = f"{len(corpus.channels)} ({', '.join(corpus.channels)})"
    if len(case.images) == 1 and len(corpus.channels) == 1:
        fix = (
            "a time series? Keep one frame (predict with --frame N, from 0), or declare every "
            'frame as a channel in "channel_names"'
        )
        return entry(
            ERROR,
            case.images[0],
            "a 4D image where one 3D scan is declared",
            f"{channels} frames",
            expected,
            fix,
        )
    fix = "correct the channel names in the description, or split the file"
    return entry(ERROR, case.images[0], "wrong number of channels", channels, expected, fix)


def _label_map(
    case: Case, corpus: Corpus, grid: nifti.Volume | None, extent: Box | None
) -> tuple[list[Problem], dict[int, int]]:
    if case.label is None:
        return [], {}
    try:
        label = formats.read(case.label, "label", like=grid)
    except MedjaxError as error:
        return [problem_of(error, case.label)], {}
    problems = (_pair(grid, label) if grid else []) + _container(case.label)
    counts = labels_of_case.value_counts(label.array)
    strange = sorted(set(counts) - set(corpus.values))
    if len(strange) > MANY_VALUES:
        found = (
            f"{', '.join(map(str, strange[:MANY_VALUES]))} and {len(strange) - MANY_VALUES} more"
        )
        what, fix = (
            f"{len(strange)} undeclared label values",
            "is it an image? Check that image and label are not swapped",
        )
        return [
            *problems,
            entry(ERROR, case.label, what, found, f"one of {list(corpus.values)[:20]}", fix),
        ], counts
    if not problems and grid is not None:
        problems += _cut_off(
            case.label, label.array, extent, () if corpus.ignore is None else (corpus.ignore,)
        )
    for value, count, place in labels_of_case.undeclared(label.array, counts, corpus):
        found = f"{count} voxels, first at {place} (z, y, x)"
        fix = f'declare it in dataset.json, e.g. "labels": {{"name": {value}}}, or correct the file'
        problems.append(
            entry(
                ERROR,
                case.label,
                f"undeclared label value {value}",
                found,
                f"one of {list(corpus.values)}",
                fix,
            )
        )
    return problems, counts


def _masks(
    case: Case, corpus: Corpus, grid: nifti.Volume | None, extent: Box | None
) -> tuple[list[Problem], dict[int, int]]:
    """Checks every mask separately; voxels are counted by the raw value of their set of classes."""
    if grid is None:
        return [], {}
    problems: list[Problem] = []

    def good() -> Iterator[tuple[str, np.ndarray]]:
        by_file: dict[str, list[Mask]] = {}
        for mask in case.masks:
            by_file.setdefault(mask.path, []).append(mask)
        for path, members in by_file.items():
            try:
                mask_of = formats.open_masks(path, grid)
            except MedjaxError as error:
                problems.append(problem_of(error, path))
                continue
            for mask in members:
                try:
                    yield mask.name, mask_of(mask)
                except MedjaxError as error:
                    problems.append(problem_of(error, path))
            problems.extend(_container(path))

    ids, sets = label_sets.combine(good(), grid.shape)
    if problems:
        return problems, {}
    try:
        dense = label_sets.to_corpus_ids(ids, sets, corpus, case.masks[0].path)
    except MedjaxError as error:
        return [problem_of(error, case.masks[0].path)], {}
    return _cut_off(case.masks[0].path, dense, extent), {
        corpus.values[i]: n for i, n in labels_of_case.value_counts(dense).items()
    }


def _pair(a: nifti.Volume, b: nifti.Volume) -> list[Problem]:
    try:
        nifti.check_same_geometry(a, b)
    except MedjaxError as error:
        return [problem_of(error, b.path)]
    return []


def _split(text: str, case: Case) -> tuple[str, str]:
    """A warning "file: what" -> file, what."""
    file, _, what = text.partition(": ")
    return (file, what) if what else (case.images[0], text)


def problem_of(error: MedjaxError, fallback: object) -> Problem:
    """An error as a problem; `fallback` is the file if the error names none."""
    return entry(
        ERROR, error.path or fallback, error.message, error.found, error.expected, error.fix
    )


def entry(
    severity: str, file: object, what: str, found: object = "", expected: object = "", fix: str = ""
) -> Problem:
    """A problem with all fields as text."""
    values: Iterable[object] = (severity, file, what, found, expected, fix)
    return {
        name: "" if value is None else str(value)
        for name, value in zip(FIELDS, values, strict=True)
    }


def line(problem: Problem) -> str:
    """One problem as one line: severity file: what; found; expected; fix."""
    parts = [f"{problem['severity'].upper()} {problem['file']}: {problem['what']}"]
    parts += [f"{name} {problem[name]}" for name in ("found", "expected") if problem[name]]
    parts += [f"fix: {problem['fix']}"] if problem["fix"] else []
    return shown("; ".join(parts))


def kind(problem: Problem) -> str:
    """The text of a problem without names and numbers, to list similar problems together."""
    return re.sub(r"'[^']*'|\d+", "#", f"{problem['severity']} {problem['what']}")


def described(corpus: Corpus, folder: Path) -> list[Problem]:
    """Warnings about what a description leaves open."""
    problems = []
    if corpus.modality == "unknown" and corpus.classes:
        fix = 'say "channels": ["CT"] (or "MR", "T1w", ...) in medjax.json'
        problems.append(
            entry(
                WARNING,
                folder,
                "nothing says what the images are",
                "no channel names",
                "CT, MR, ...",
                fix,
            )
        )
    if nameless := [
        name for name in corpus.classes if name.startswith("label_") and name[6:].isdigit()
    ]:
        fix = f'say "labels": {{"liver": {nameless[0][6:]}}} in medjax.json'
        problems.append(
            entry(WARNING, folder, "label values without names", _listed(nameless), fix=fix)
        )
    return problems + _declared(corpus, folder)


def _listed(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many there are."""
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _declared(corpus: Corpus, folder: Path) -> list[Problem]:
    """Warnings about classes that are probably declared by mistake."""
    problems = []
    if len(corpus.classes) > MOST_CLASSES:
        fix = "each class is a channel of the network: declare those that are wanted"
        problems.append(
            entry(
                WARNING,
                folder,
                "very many classes",
                len(corpus.classes),
                f"at most {MOST_CLASSES}",
                fix,
            )
        )
    members: dict[str, list[int]] = {name: [] for name in corpus.classes}
    for value, names in corpus.labels:
        for name in names:
            members[name].append(value)
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, values in members.items():
        alike.setdefault(tuple(values), []).append(name)
    same = [names for names in alike.values() if len(names) > 1]
    if same:
        found = "; ".join(
            " = ".join(names[:3]) + (", ..." if len(names) > 3 else "") for names in same[:3]
        )
        what = f"{sum(len(names) - 1 for names in same)} classes have the voxels of another class"
        problems.append(
            entry(
                WARNING,
                folder,
                what,
                found,
                "different label values",
                "leave all but one of them out",
            )
        )
    return problems


def counted(folder: Path, listed: int) -> list[Problem]:
    """A warning if dataset.json states another number of training cases than there are."""
    path = folder / "dataset.json"
    said = read_json(path) if path.is_file() else {}
    said = said.get("numTraining") if isinstance(said, dict) else None
    if said is None or said == listed:
        return []
    return [
        entry(
            WARNING,
            path,
            "numTraining is not the number of training cases",
            said,
            listed,
            "correct it: nnU-Net refuses to start",
        )
    ]


def shared(cases: Sequence[Case]) -> list[Problem]:
    """A warning for every file that is the image, or the label map, of several cases."""
    problems = []
    for word, files_of in (
        ("image", lambda c: c.images),
        ("label", lambda c: [c.label] if c.label else []),
    ):
        owners: dict[str, list[str]] = {}
        for case in cases:
            for path in {os.path.realpath(p) for p in files_of(case)}:
                owners.setdefault(path, []).append(case.name)
        for path, names in owners.items():
            if len(names) > 1:
                found = some(names)
                problems.append(
                    entry(
                        WARNING,
                        path,
                        f"the {word} of {len(names)} cases",
                        found,
                        "one case",
                        "correct the list",
                    )
                )
    return problems


@contextmanager
def routed_warnings() -> "Iterator[dict[int, list[str]]]":
    """Thread id -> texts of the `DataWarning`s that the thread raises; others are shown as usual.

    The warnings module has one hook for all threads.
    """
    heard: dict[int, list[str]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("always", nifti.DataWarning)
        show = warnings.showwarning

        def route(message, category, *rest, **named):
            if issubclass(
                category, nifti.DataWarning
            ) and threading.current_thread().name.startswith("medjax-case"):
                heard.setdefault(threading.get_ident(), []).append(str(message))
            else:
                show(message, category, *rest, **named)

        warnings.showwarning = route
        yield heard
