"""Values and mask combinations that occur in label files without a description.

In: cases. Out: label values, or combinations of overlapping masks, that occur in any case. Every
label file is read once, in parallel; the result is cached as a small JSON under $MEDJAX_HOME
(default ~/.cache/medjax) by path, size and times of the files.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medjax import files
from medjax.corpora import label_sets
from medjax.corpora.cases import Progress, each, stamp
from medjax.corpora.inputs import Case
from medjax.corpora.labels_of_case import value_counts
from medjax.errors import DataError, MedjaxError, WriteError
from medjax.scans import formats

VERSION = 1
MANY = 500  # number of label files from which on progress is reported


def label_values(
    cases: Sequence[Case], *, workers: int | None = None
) -> tuple[tuple[int, ...], list[MedjaxError]]:
    """Values above 0 of the cases' label maps, ascending, and the problems of unreadable ones."""
    found, problems = _over(cases, "values", _values, workers)
    return tuple(sorted({v for values in found for v in values} - {0})), problems


def mask_sets(
    cases: Sequence[Case], *, workers: int | None = None
) -> tuple[set[frozenset[str]], list[MedjaxError]]:
    """Sets of classes that share a voxel in some case, and the problems of unreadable cases."""
    found, problems = _over(cases, "sets", _sets, workers)
    return {frozenset(members) for sets in found for members in sets if members}, problems


def _values(case: Case) -> list[int]:
    return sorted(value_counts(formats.read(case.label, "label", like=_grid(case)).array))


def _sets(case: Case) -> list[list[str]]:
    like = _grid(case)
    return [sorted(members) for members in label_sets.read_sets(case, like)[1]]


def _grid(case: Case):
    return formats.read_geometry(case.images[0])


def _over(
    cases: Sequence[Case], kind: str, measure: Callable[[Case], Any], workers: int | None
) -> tuple[list, list[MedjaxError]]:
    if not cases:
        return [], []
    name = hashlib.sha256(os.path.abspath(cases[0].label_files[0]).encode()).hexdigest()[:24]
    file = files.home() / "survey" / f"{name}-{kind}.json"
    kept, fresh = _read(file) or {}, {}

    def one(case: Case) -> Any:
        key = _key(case)
        fresh[key] = kept[key] if key in kept else measure(case)
        return fresh[key]

    outcomes = each(
        one,
        cases,
        workers=workers,
        progress=_progress(kind, sum(len(c.label_files) for c in cases), file),
    )
    if set(fresh) - set(kept):
        _write(file, fresh)
    problems = [
        DataError(
            o.failure["message"],
            **{k: o.failure.get(k) for k in ("path", "found", "expected")},
            fix=o.failure.get("fix") or "",
        )
        for o in outcomes
        if o.failure is not None
    ]
    return [o.value for o in outcomes if o.failure is None], problems


def _progress(kind: str, count: int, kept: Path) -> Progress | None:
    """Reports the progress of a long survey after every tenth; short surveys are silent."""
    if count < MANY:
        return None

    def show(done: int, total: int, name: str, status: str) -> None:
        if done == 1:
            print(
                f"looking once for the {kind} in {count} label files (kept in {kept})",
                file=sys.stderr,
                flush=True,
            )
        if done % max(1, total // 10) == 0:
            print(f"  {done}/{total} cases", file=sys.stderr, flush=True)

    return show


def _key(case: Case) -> str:
    stats = []
    for path in case.label_files:
        try:
            stats.append([os.path.abspath(path), *stamp(path)])
        except OSError as error:
            raise DataError(
                f"cannot be read: {error.strerror}",
                path=path,
                fix="check the path and its permissions",
            ) from error
    return hashlib.sha256(
        json.dumps([VERSION, stats, [[m.name, m.pick] for m in case.masks]]).encode()
    ).hexdigest()


def _read(file: Path) -> dict | None:
    """The cached result: sha256 of the files -> what occurs; None for a foreign file."""
    try:
        found = files.read_json(file)
    except MedjaxError:
        return None if os.path.lexists(file) else {}
    return (
        found
        if isinstance(found, dict) and all(re.fullmatch("[0-9a-f]{64}", key) for key in found)
        else None
    )


def _write(file: Path, found: dict) -> None:
    """Caches the result.

    If the cache folder cannot be written or holds another program's file, nothing is cached.
    """
    with contextlib.suppress(OSError, WriteError):
        if _read(file) is not None:
            files.write_json(file, found)
