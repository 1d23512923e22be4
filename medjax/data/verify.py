"""Looks through a raw data set before anything is trained on it, and lists every problem it has.

In: a data set folder. Out: a `Report` with one line per problem (file: what; found; expected; fix), errors and warnings apart, and a
table of what is there: spacings, sizes, cases and voxels per class. A problem never hides the ones behind it.
"""

import dataclasses
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from medjax.data import cases as case_tools
from medjax.data import nifti
from medjax.data.inputs import Case
from medjax.data.sources import scan_corpus
from medjax.errors import LabelError, MedjaxError
from medjax.labels import Corpus

ERROR, WARNING = "error", "warning"
FIELDS = ("severity", "file", "what", "found", "expected", "fix")
Problem = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
      folder, corpus, modality, channels: whose report this is.
      cases: how many there are, unusable ones included.
      problems: dictionaries with file, what, found, expected, fix and severity ("error" or "warning").
      rows: one per readable case: name, shape and spacing_mm (z, y, x), label voxels {raw value: count}.
      classes: class -> {"values", "annotated", "cases", "voxels"}.
      empty: names of the cases whose label map has no foreground; allowed.
    """

    folder: str
    corpus: str
    modality: str
    channels: tuple[str, ...]
    cases: int
    problems: tuple[Problem, ...]
    rows: tuple[dict, ...] = ()
    classes: dict[str, dict] = dataclasses.field(default_factory=dict)
    empty: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """No errors; warnings are allowed."""
        return not any(p["severity"] == ERROR for p in self.problems)

    def text(self) -> str:
        """The report for people: summary table, then the problems, errors first."""
        lines = [f"{self.corpus} ({self.folder}): {self.cases} cases, {self.modality}, channels {', '.join(self.channels)}"]
        if self.rows:
            lines.append(f"  {'(z, y, x)':<12}{'smallest':>22}{'median':>22}{'largest':>22}")
            for title, key, pattern in (("spacing mm", "spacing_mm", "{:.3g}"), ("size", "shape", "{:.0f}")):
                array = np.array([row[key] for row in self.rows], float)
                cells = (" x ".join(pattern.format(v) for v in f(array, axis=0)) for f in (np.min, np.median, np.max))
                lines.append(f"  {title:<12}" + "".join(f"{cell:>22}" for cell in cells))
        if self.classes:
            width = max(12, *(len(name) + 1 for name in self.classes))
            lines.append(f"  {'class':<{width}}{'values':>14}{'cases':>10}{'voxels':>14}{'share':>9}")
            total = sum(sum(row["voxels"].values()) for row in self.rows) or 1
            for name, row in self.classes.items():
                values = ",".join(map(str, row["values"]))
                values = values if len(values) < 14 else values[:10] + "..."
                share = f"{row['voxels'] / total:.2%}" if row["annotated"] else "hidden"
                lines.append(f"  {name:<{width}}{values:>14}{row['cases']:>10}{row['voxels']:>14}{share:>9}")
        if self.empty:
            lines.append(f"  {len(self.empty)} empty label maps: {', '.join(self.empty[:10])}{', ...' if len(self.empty) > 10 else ''}")
        lines += [line(p) for p in sorted(self.problems, key=lambda p: p["severity"])]
        counts = {s: sum(p["severity"] == s for p in self.problems) for s in (ERROR, WARNING)}
        verdict = "verified" if self.ok else "NOT usable as it is"
        return "\n".join([*lines, f"{self.corpus}: {verdict}, {counts[ERROR]} errors, {counts[WARNING]} warnings"])

    def to_json(self) -> dict:
        """All fields, and `ok`."""
        return {"ok": self.ok} | dataclasses.asdict(self)


def line(problem: Problem) -> str:
    """One problem as one line: severity file: what; found; expected; fix."""
    parts = [f"{problem['severity'].upper()} {problem['file']}: {problem['what']}"]
    parts += [f"{name} {problem[name]}" for name in ("found", "expected") if problem[name]]
    parts += [f"fix: {problem['fix']}"] if problem["fix"] else []
    return "; ".join(" ".join(part.split()) for part in parts)


def verify(folder: str | os.PathLike, *, workers: int | None = None, progress: case_tools.Progress | None = None) -> Report:
    """Checks description, files, geometry and values of every case of a raw data set.

    Errors: missing, unreadable or truncated files; NaN or infinite voxels; image, channels and label on different grids; label values that
    are fractional, negative or undeclared; a wrong number of channels. Warnings: constant images, doubtful geometry, an annotated class
    that never occurs. Empty label maps are only listed.

    Raises: `UsageError` if there is no data set in the folder.
    """
    try:
        corpus, cases, missing = scan_corpus(folder)
    except LabelError as error:
        return Report(str(folder), Path(folder).name, "?", ("?",), 0, (_problem(error, folder),))
    with _routed_warnings() as heard:
        outcomes = case_tools.each(
            lambda case: _check(case, corpus, heard), cases, workers=workers, progress=progress, status=lambda found: found[2]
        )
    problems, rows = [_problem(error, folder) for error in missing], []
    for outcome in outcomes:
        if outcome.failure is not None:  # nothing that _check foresees; the reason is in the record
            what = f"{outcome.failure['error']}: {outcome.failure['message']}"
            problems.append(_entry(ERROR, outcome.case.images[0], what))
            continue
        found, row, _ = outcome.value
        problems += found
        rows += [row] if row else []
    classes = _classes(corpus, rows)
    for name, found in classes.items():
        if found["annotated"] and not found["cases"] and rows:
            what = f"class {name!r} is annotated but occurs in no case"
            fix = 'leave it out of "annotated" in the "medjax" block, or correct the label values'
            problems.append(_entry(WARNING, Path(folder) / "dataset.json", what, f"no voxel of {found['values']}", "at least one", fix))
    background = {0, corpus.ignore}
    empty = tuple(row["name"] for row in rows if row["labelled"] and not set(row["voxels"]) - background)
    return Report(
        str(folder), corpus.name, corpus.modality, corpus.channels, len(cases) + len(missing), tuple(problems), tuple(rows), classes, empty
    )


def _classes(corpus: Corpus, rows: Sequence[dict]) -> dict[str, dict]:
    found = {}
    for name in corpus.classes:
        values = [corpus.values[i] for i in corpus.ids_of(name)]
        counts = [sum(row["voxels"].get(v, 0) for v in values) for row in rows]
        annotated = name in corpus.annotated
        found[name] = {"values": values, "annotated": annotated, "cases": sum(n > 0 for n in counts), "voxels": sum(counts)}
    return found


def _check(case: Case, corpus: Corpus, heard: "dict[int, list[str]]") -> tuple[list[Problem], dict | None, str]:
    """Problems and summary row of one case; whatever can still be checked after a problem is."""
    warned = heard[threading.get_ident()] = []
    problems, images, label, counts = [], [], None, {}
    for path in case.images:
        try:
            images.append(nifti.read(path))
        except MedjaxError as error:
            problems.append(_problem(error, path))
    for image in images[1:]:
        problems += _pair(images[0], image)
    if len(images) == len(case.images):
        found = images[0].array.shape[3] if len(images) == 1 and images[0].array.ndim == 4 else len(images)
        if found != len(corpus.channels):
            expected = f"{len(corpus.channels)} ({', '.join(corpus.channels)})"
            fix = "correct the channel names in dataset.json, or split the file"
            problems.append(_entry(ERROR, case.images[0], "wrong number of channels", found, expected, fix))
    for image in images:
        flat = image.array.reshape(-1, image.array.shape[3] if image.array.ndim == 4 else 1)
        for c in np.flatnonzero(flat.min(0) == flat.max(0)):
            what = "constant image" + (f" in channel {c}" if flat.shape[1] > 1 else "")
            problems.append(_entry(WARNING, image.path, what, f"{float(flat[0, c]):g} everywhere", "varying values", "leave the case out"))
    if case.label is not None:
        try:
            label = nifti.read(case.label, want="label")
        except MedjaxError as error:
            problems.append(_problem(error, case.label))
    if label is not None:
        problems += _pair(images[0], label) if images else []
        counts = case_tools.value_counts(label.array)
        for value, count, place in case_tools.undeclared(label.array, counts, corpus):
            found = f"{count} voxels, first at {place} (z, y, x)"
            fix = f'declare it in dataset.json, e.g. "labels": {{"name": {value}}}, or correct the file'
            problems.append(_entry(ERROR, case.label, f"undeclared label value {value}", found, f"one of {list(corpus.values)}", fix))
    problems += [_entry(WARNING, *_split(text, case)) for text in dict.fromkeys(warned)]
    row = None
    if images:
        row = {"name": case.name, "shape": images[0].shape, "spacing_mm": images[0].spacing_mm, "voxels": counts}
        row["labelled"] = case.label is not None
    return problems, row, "failed" if any(p["severity"] == ERROR for p in problems) else "ok"


def _pair(a: nifti.Volume, b: nifti.Volume) -> list[Problem]:
    try:
        nifti.check_same_geometry(a, b)
    except MedjaxError as error:
        return [_problem(error, b.path)]
    return []


def _split(text: str, case: Case) -> tuple[str, str]:
    """A warning "file: what" -> file, what."""
    file, _, what = text.partition(": ")
    return (file, what) if what else (case.images[0], text)


def _problem(error: MedjaxError, fallback: object) -> Problem:
    return _entry(ERROR, error.path or fallback, error.message, error.found, error.expected, error.fix)


def _entry(severity: str, file: object, what: str, found: object = "", expected: object = "", fix: str = "") -> Problem:
    values: Iterable[object] = (severity, file, what, found, expected, fix)
    return {name: "" if value is None else str(value) for name, value in zip(FIELDS, values, strict=True)}


@contextmanager
def _routed_warnings() -> "Iterator[dict[int, list[str]]]":
    """Thread id -> texts of the `DataWarning`s it raises; others are shown as ever. The warnings module keeps one hook for all threads."""
    heard: dict[int, list[str]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("always", nifti.DataWarning)
        show = warnings.showwarning

        def route(message, category, *rest, **named):
            if issubclass(category, nifti.DataWarning) and threading.get_ident() in heard:
                heard[threading.get_ident()].append(str(message))
            else:
                show(message, category, *rest, **named)

        warnings.showwarning = route
        yield heard
