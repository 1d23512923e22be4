"""Verifies a raw data set before training and lists all its problems.

In: a data set folder. Out: a `Report` with one line per problem (file: what; found; expected; fix),
errors and warnings separately, and a table of spacings, sizes, cases and voxels per class. All
checks that are still possible run after a problem, so a problem does not hide others.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medjax.corpora import cases as case_tools
from medjax.corpora.check import (
    ERROR,
    WARNING,
    Problem,
    check_case,
    counted,
    described,
    entry,
    kind,
    line,
    problem_of,
    routed_warnings,
    shared,
)
from medjax.corpora.sources import data_sets_in, layout_of, scan_corpus
from medjax.errors import LabelError, shown
from medjax.labels import Corpus

__all__ = ["Report", "line", "verify"]

MOST_ALIKE = 20  # lines for problems of one kind


@dataclasses.dataclass(frozen=True)
class Report:
    """Result of `verify`.

    Attributes:
      folder, corpus, modality, channels: the data set.
      cases: number of cases, including unusable ones.
      problems: dictionaries with file, what, found, expected, fix and severity ("error" or
        "warning").
      rows: one per readable case: name, modality, shape and spacing_mm (z, y, x), label voxels {raw
        value: count}.
      classes: class -> {"values", "annotated", "cases", "voxels"}.
      empty: names of the cases whose label map has no foreground; allowed. layout: in which its
        files lie.
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
    layout: str = ""

    @property
    def ok(self) -> bool:
        """No errors; warnings are allowed."""
        return not any(p["severity"] == ERROR for p in self.problems)

    def text(self) -> str:
        """The report for people: summary table, then the problems, errors first."""
        kinds = Counter(row["modality"] for row in self.rows)
        modality = (
            ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
            if len(kinds) > 1
            else self.modality
        )
        lines = [
            f"{self.corpus} ({self.folder}): {self.cases} cases, {modality}, channels "
            f"{', '.join(self.channels)}"
            + (f", layout {self.layout}" if self.layout else "")
            + ("" if self.classes or not self.rows else ", no labels")
        ]
        if self.rows:
            lines.append(f"  {'(z, y, x)':<12}{'smallest':>22}{'median':>22}{'largest':>22}")
            for title, key, pattern in (
                ("spacing mm", "spacing_mm", "{:.3g}"),
                ("size", "shape", "{:.0f}"),
            ):
                array = np.array([row[key] for row in self.rows], float)
                cells = (
                    " x ".join(pattern.format(v) for v in f(array, axis=0))
                    for f in (np.min, np.median, np.max)
                )
                lines.append(f"  {title:<12}" + "".join(f"{cell:>22}" for cell in cells))
        if self.classes:
            width = max(12, *(len(name) + 1 for name in self.classes))
            lines.append(
                f"  {'class':<{width}}{'values':>14}{'cases':>10}{'voxels':>14}{'share':>9}"
            )
            total = sum(sum(row["voxels"].values()) for row in self.rows) or 1
            for name, row in self.classes.items():
                values = ",".join(map(str, row["values"]))
                values = values if len(values) < 14 else values[:10] + "..."
                share = f"{row['voxels'] / total:.2%}" if row["annotated"] else "hidden"
                lines.append(
                    f"  {name:<{width}}{values:>14}{row['cases']:>10}{row['voxels']:>14}{share:>9}"
                )
        if self.empty:
            lines.append(
                f"  {len(self.empty)} empty label maps: "
                f"{', '.join(self.empty[:10])}{', ...' if len(self.empty) > 10 else ''}"
            )
        lines = [shown(text) for text in lines] + self._listed()
        counts = {s: sum(p["severity"] == s for p in self.problems) for s in (ERROR, WARNING)}
        verdict = "verified" if self.ok else "NOT usable as it is"
        return "\n".join(
            [
                *lines,
                f"{shown(self.corpus)}: {verdict}, {counts[ERROR]} errors, {counts[WARNING]} "
                "warnings",
            ]
        )

    def _listed(self) -> list[str]:
        """A line per problem, errors first; only the first few problems of one kind."""
        of_kind: dict[str, list[Problem]] = {}
        for problem in sorted(self.problems, key=lambda p: p["severity"]):
            of_kind.setdefault(kind(problem), []).append(problem)
        lines = []
        for members in of_kind.values():
            lines += [line(p) for p in members[:MOST_ALIKE]]
            if (more := len(members) - MOST_ALIKE) > 0:
                lines.append(
                    f"{members[0]['severity'].upper()} {more} more like these (--json lists them "
                    "all)"
                )
        return lines

    def to_json(self) -> dict:
        """All fields, and `ok`."""
        return {"ok": self.ok} | dataclasses.asdict(self)


def verify(
    folder: str | os.PathLike,
    *,
    layout: str = "",
    workers: int | None = None,
    progress: case_tools.Progress | None = None,
) -> Report:
    """Checks description, files, geometry and values of every case of a raw data set.

    Args:
      folder: in any layout (see `corpora/layouts`), or scans without labels. layout: its name,
        detected by default.
      workers: threads; fewer while memory is short. progress: called after every case.

    Errors: missing, unreadable or truncated files; NaN or infinite voxels; image, channels and
    label on different grids; label values that are fractional, negative or undeclared; masks that
    are not binary; a wrong number of channels. Warnings: constant images, doubtful geometry,
    misleading file endings, values without names, an annotated class that never occurs. Empty label
    maps are only listed.

    Raises: `UsageError` if there is no data set in the folder.
    """
    with routed_warnings() as heard:
        try:
            corpus, cases, missing = scan_corpus(folder, layout)
        except LabelError as error:
            return Report(
                str(folder), Path(folder).name, "?", ("?",), 0, (problem_of(error, folder),)
            )
        outcomes = case_tools.each(
            lambda case: check_case(case, corpus, heard),
            cases,
            workers=workers,
            progress=progress,
            status=lambda found: found[2],
        )
    problems, rows = [problem_of(error, folder) for error in missing], []
    for outcome in outcomes:
        if outcome.failure is not None:  # an unexpected error; the reason is in the record
            what = f"{outcome.failure['error']}: {outcome.failure['message']}"
            problems.append(entry(ERROR, outcome.case.images[0], what))
            continue
        found, row, _ = outcome.value
        problems += found
        rows += [row] if row else []
    problems += (
        described(corpus, Path(folder))
        + counted(Path(folder), len(cases) + len(missing))
        + shared(cases)
    )
    if not rows and len(several := data_sets_in(folder)) > 1:
        what = f"no case is usable, and the folder holds {len(several)} data sets"
        problems.insert(
            0, entry(ERROR, folder, what, fix=f"give each by itself: {' '.join(several[:20])}")
        )
    classes = _classes(corpus, rows)
    for name, found in classes.items():
        if found["annotated"] and not found["cases"] and rows:
            what = f"class {name!r} is annotated but occurs in no case"
            fix = 'leave it out of "annotated" in the "medjax" block, or correct the label values'
            problems.append(
                entry(
                    WARNING,
                    Path(folder) / "dataset.json",
                    what,
                    f"no voxel of {found['values']}",
                    "at least one",
                    fix,
                )
            )
    background = {0, corpus.ignore}
    empty = tuple(
        row["name"] for row in rows if row["labelled"] and not set(row["voxels"]) - background
    )
    return Report(
        str(folder),
        corpus.name,
        corpus.modality,
        corpus.channels,
        len(cases) + len(missing),
        tuple(problems),
        tuple(rows),
        classes,
        empty,
        layout_of(folder, layout),
    )


def _classes(corpus: Corpus, rows: Sequence[dict]) -> dict[str, dict]:
    found = {}
    for name in corpus.classes:
        values = [corpus.values[i] for i in corpus.ids_of(name)]
        counts = [sum(row["voxels"].get(v, 0) for v in values) for row in rows]
        annotated = name in corpus.annotated
        found[name] = {
            "values": values,
            "annotated": annotated,
            "cases": sum(n > 0 for n in counts),
            "voxels": sum(counts),
        }
    return found
