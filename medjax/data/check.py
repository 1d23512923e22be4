"""One case under the glass: every file read to its end, every value and grid compared, every finding on its own line.

In: a `Case` and its `Corpus`. Out: problems (dictionaries with severity, file, what, found, expected, fix) and a row with what the case
holds. A problem never hides the ones behind it: what can still be checked after one is.
"""

import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from medjax.data import annotation, classmasks, formats, nifti
from medjax.data.inputs import NIFTI_ENDINGS, Case, Mask
from medjax.errors import MedjaxError
from medjax.labels import Corpus

ERROR, WARNING = "error", "warning"
FIELDS = ("severity", "file", "what", "found", "expected", "fix")
Problem = dict[str, str]


def check_case(case: Case, corpus: Corpus, heard: "dict[int, list[str]]") -> tuple[list[Problem], dict | None, str]:
    """Problems, summary row (None if no image can be read) and "ok" or "failed" of one case; `heard` is from `routed_warnings`."""
    warned = heard[threading.get_ident()] = []
    problems, grids, channels = [], [], 0
    for path in case.images:
        try:
            image = formats.read(path)
        except MedjaxError as error:
            problems.append(problem_of(error, path))
            continue
        problems += _constant(image) + _container(path)
        channels += image.array.shape[3] if image.array.ndim == 4 else 1
        grids.append(nifti.replaced(image, None))
    for other in grids[1:]:
        problems += _pair(grids[0], other)
    if len(grids) == len(case.images) and channels != len(corpus.channels):
        problems.append(_wrong_channels(case, corpus, channels))
    grid = grids[0] if grids else None
    found, counts = _masks(case, corpus, grid) if case.masks else _label_map(case, corpus, grid)
    problems += found
    problems += [entry(WARNING, *_split(text, case)) for text in dict.fromkeys(warned)]
    row = None
    if grid is not None:
        row = {"name": case.name, "shape": grid.shape, "spacing_mm": grid.spacing_mm, "modality": case.modality, "voxels": counts}
        row["labelled"] = case.labelled
    return problems, row, "failed" if any(p["severity"] == ERROR for p in problems) else "ok"


def _constant(image: nifti.Volume) -> list[Problem]:
    flat = image.array.reshape(-1, image.array.shape[3] if image.array.ndim == 4 else 1)
    problems = []
    for c in np.flatnonzero(flat.min(0) == flat.max(0)):
        what = "constant image" + (f" in channel {c}" if flat.shape[1] > 1 else "")
        problems.append(entry(WARNING, image.path, what, f"{float(flat[0, c]):g} everywhere", "varying values", "leave the case out"))
    return problems


def _container(path: str) -> list[Problem]:
    """A NIfTI file whose ending does not say whether it is compressed; we read it, others may not."""
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
        fix = 'a time series? Keep one frame (predict with --frame N, from 0), or declare every frame as a channel in "channel_names"'
        return entry(ERROR, case.images[0], "a 4D image where one 3D scan is declared", f"{channels} frames", expected, fix)
    fix = "correct the channel names in the description, or split the file"
    return entry(ERROR, case.images[0], "wrong number of channels", channels, expected, fix)


def _label_map(case: Case, corpus: Corpus, grid: nifti.Volume | None) -> tuple[list[Problem], dict[int, int]]:
    if case.label is None:
        return [], {}
    try:
        label = formats.read(case.label, "label", like=grid)
    except MedjaxError as error:
        return [problem_of(error, case.label)], {}
    problems = (_pair(grid, label) if grid else []) + _container(case.label)
    counts = annotation.value_counts(label.array)
    for value, count, place in annotation.undeclared(label.array, counts, corpus):
        found = f"{count} voxels, first at {place} (z, y, x)"
        fix = f'declare it in dataset.json, e.g. "labels": {{"name": {value}}}, or correct the file'
        problems.append(entry(ERROR, case.label, f"undeclared label value {value}", found, f"one of {list(corpus.values)}", fix))
    return problems, counts


def _masks(case: Case, corpus: Corpus, grid: nifti.Volume | None) -> tuple[list[Problem], dict[int, int]]:
    """Checks every mask by itself; voxels are counted by the raw value of their set of classes."""
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

    ids, sets = classmasks.combine(good(), grid.shape)
    if problems:
        return problems, {}
    try:
        dense = classmasks.to_corpus_ids(ids, sets, corpus, case.masks[0].path)
    except MedjaxError as error:
        return [problem_of(error, case.masks[0].path)], {}
    return [], {corpus.values[i]: n for i, n in annotation.value_counts(dense).items()}


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
    return entry(ERROR, error.path or fallback, error.message, error.found, error.expected, error.fix)


def entry(severity: str, file: object, what: str, found: object = "", expected: object = "", fix: str = "") -> Problem:
    """A problem with all fields as text."""
    values: Iterable[object] = (severity, file, what, found, expected, fix)
    return {name: "" if value is None else str(value) for name, value in zip(FIELDS, values, strict=True)}


def line(problem: Problem) -> str:
    """One problem as one line: severity file: what; found; expected; fix."""
    parts = [f"{problem['severity'].upper()} {problem['file']}: {problem['what']}"]
    parts += [f"{name} {problem[name]}" for name in ("found", "expected") if problem[name]]
    parts += [f"fix: {problem['fix']}"] if problem["fix"] else []
    return "; ".join(" ".join(part.split()) for part in parts)


def described(corpus: Corpus, folder: Path) -> list[Problem]:
    """Warnings about what a description leaves open."""
    problems = []
    if corpus.modality == "unknown" and corpus.classes:
        fix = 'say "channels": ["CT"] (or "MR", "T1w", ...) in medjax.json'
        problems.append(entry(WARNING, folder, "nothing says what the images are", "no channel names", "CT, MR, ...", fix))
    if nameless := [name for name in corpus.classes if name.startswith("label_") and name[6:].isdigit()]:
        fix = f'say "labels": {{"liver": {nameless[0][6:]}}} in medjax.json'
        problems.append(entry(WARNING, folder, "label values without names", ", ".join(nameless[:8]), fix=fix))
    return problems


@contextmanager
def routed_warnings() -> "Iterator[dict[int, list[str]]]":
    """Thread id -> texts of the `DataWarning`s it raises; others are shown as ever. The warnings module keeps one hook for all threads."""
    heard: dict[int, list[str]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("always", nifti.DataWarning)
        show = warnings.showwarning

        def route(message, category, *rest, **named):
            if issubclass(category, nifti.DataWarning) and threading.current_thread().name.startswith("medjax-case"):
                heard.setdefault(threading.get_ident(), []).append(str(message))
            else:
                show(message, category, *rest, **named)

        warnings.showwarning = route
        yield heard
