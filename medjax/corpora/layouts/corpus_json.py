"""A corpus described completely in one file: `corpus.json`, written by an ingestion.

    {"format": 1,
     "corpus": {name, labels, annotated, modality, channels, ignore, meanings},
     "cases": [{"name", "images": [paths], "patient",
                "label": path   or   "masks": [[class, path, pick]]}],
     "twins": [{"corpus", "cases", "other", "offset"}], "licence": "...", "citation": "..."}

Paths are absolute or relative to the file. Nothing is copied: the raw files stay in place.
"""

import collections
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medjax import files
from medjax.corpora.inputs import Case, listed_path, read_json, usable
from medjax.errors import LabelError, MedjaxError, UsageError
from medjax.labels import Corpus
from medjax.scans.paths import Mask

FILE, FORMAT = "corpus.json", 1


def detect(folder: Path) -> bool:
    """Whether the folder holds such a description."""
    return (Path(folder) / FILE).is_file()


def write(
    folder: str | os.PathLike, corpus: Corpus, cases: Iterable[Case], facts: Mapping | None = None
) -> Path:
    """Writes the description atomically and returns its path.

    `facts` are further fields (twins, licence, citation).

    Raises: `UsageError` for a corpus or case name that cannot be a folder name, and if another
      program's `corpus.json` exists.
    """
    path = Path(folder) / FILE
    cases, wrong = usable(cases, folder)
    if wrong:
        raise wrong[0]
    rows = []
    for case in cases:
        row = {
            "name": case.name,
            "images": [os.path.abspath(p) for p in case.images],
            "patient": case.patient or case.name,
        }
        if case.label:
            row["label"] = os.path.abspath(case.label)
        if case.masks:
            row["masks"] = [
                [mask.name, os.path.abspath(mask.path), mask.pick] for mask in case.masks
            ]
        rows.append(row)
    if os.path.lexists(path) and not _is_ours(path):
        raise UsageError(
            "a file that medjax did not write",
            path=path,
            fix="move it, or write the description into another folder",
        )
    files.write_json(
        path, {"format": FORMAT, "corpus": corpus.to_json(), "cases": rows} | dict(facts or {})
    )
    return path


def scan(folder: str | os.PathLike) -> tuple[Corpus, tuple[Case, ...], list[MedjaxError]]:
    """Corpus, usable cases, and the problems of the others (files that are no longer there)."""
    path = Path(folder) / FILE
    said = read_json(path)
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise UsageError(
            "not a description of a corpus that this version reads",
            path=path,
            expected=f'"format": {FORMAT}',
            fix="ingest again",
        )
    try:
        corpus = Corpus.from_json(said["corpus"], path)
        files.check_name(corpus.name, "corpus name", path=path, error=LabelError)
        cases, wrong = _cases(said["cases"], corpus, path)
    except MedjaxError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"damaged description of a corpus: {error!r}", path=path, fix="ingest again"
        ) from error
    problems = [_missing(case, path) for case in cases]
    good = tuple(case for case, problem in zip(cases, problems, strict=True) if problem is None)
    return corpus, good, wrong + [problem for problem in problems if problem is not None]


def facts(folder: str | os.PathLike) -> dict:
    """The further fields of a description: twins, licence, citation; {} without one."""
    said = read_json(Path(folder) / FILE) if detect(Path(folder)) else {}
    return (
        {k: v for k, v in said.items() if k not in ("format", "corpus", "cases")}
        if isinstance(said, dict)
        else {}
    )


def _cases(rows: Sequence, corpus: Corpus, path: Path) -> tuple[list[Case], list[MedjaxError]]:
    """The cases, and a problem for every row that does not describe one."""
    cases, wrong = [], []
    for number, row in enumerate(rows, 1):
        try:
            cases.append(_case(row, corpus, path))
        except UsageError as problem:
            wrong.append(problem)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            wrong.append(
                UsageError(
                    f"damaged description of case {number}: {error!r}",
                    path=path,
                    fix="ingest again",
                )
            )
    if twice := next(
        (
            n
            for n, count in collections.Counter(
                c.name for c in cases if isinstance(c.name, str)
            ).items()
            if count > 1
        ),
        None,
    ):
        raise UsageError(f"case {twice!r} occurs twice", path=path, fix="ingest again")
    return cases, wrong


def _case(row: Mapping, corpus: Corpus, file: Path) -> Case:
    name, folder = row["name"], file.parent
    masks = tuple(
        Mask(str(class_), listed_path(folder, path, f"a mask of case {name!r}", file), str(pick))
        for class_, path, pick in row.get("masks", ())
    )
    label = (
        listed_path(folder, row["label"], f"the label of case {name!r}", file)
        if row.get("label")
        else None
    )
    images = tuple(
        listed_path(folder, p, f"an image of case {name!r}", file) for p in row["images"]
    )
    if not images or isinstance(row["images"], str):
        raise UsageError(f"case {name!r} has no list of images", path=file, fix="ingest again")
    return Case(name, images, label, corpus.name, corpus.modality, row["patient"], masks)


def _is_ours(path: Path) -> bool:
    """Whether a file is a description that medjax wrote (of any version)."""
    try:
        said = files.read_json(path)
    except MedjaxError:
        return False
    return (
        isinstance(said, dict)
        and isinstance(said.get("format"), int)
        and {"corpus", "cases"} <= set(said)
    )


def _missing(case: Case, path: Path) -> MedjaxError | None:
    for file in (*case.images, *case.label_files):
        if not os.path.exists(file):
            return UsageError(
                f"a file of case {case.name!r} is no longer there",
                path=file,
                fix=f"put it back, or ingest again: {path} names it",
            )
    return None


def replaced_labels(corpus: Corpus, sets: Iterable[frozenset[str]]) -> Corpus:
    """The corpus with a value for every combination of its classes that occurs in masks.

    Values of undeclared combinations are added in a fixed order. Classes that the corpus does not
    name are removed from a combination, as in reading.
    """
    known = {frozenset(names) for _, names in corpus.labels}
    order = {name: i for i, name in enumerate(corpus.classes)}
    cut = {members & frozenset(corpus.classes) for members in sets} - known
    fresh: Sequence[tuple[str, ...]] = sorted(
        (tuple(sorted(m, key=order.__getitem__)) for m in cut),
        key=lambda m: (len(m), [order[n] for n in m]),
    )
    first = max(corpus.values) + 1
    added = tuple((first + i, names) for i, names in enumerate(fresh))
    return dataclasses.replace(corpus, labels=(*corpus.labels, *added))
