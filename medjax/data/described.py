"""A corpus that is described completely in one file: `corpus.json`, written by an ingestion, read like any other layout.

    {"format": 1, "corpus": {name, labels, annotated, modality, channels, ignore, meanings},
     "cases": [{"name", "images": [paths], "label": path or "masks": [[class, path, pick]], "patient"}],
     "twins": [{"corpus", "cases", "other", "offset"}], "licence": "...", "citation": "..."}

Paths are absolute or relative to the file. Nothing is copied: the raw files stay where they are.
"""

import dataclasses
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from medjax.data.inputs import Case, Mask, read_json
from medjax.errors import LabelError, MedjaxError, UsageError
from medjax.labels import Corpus

FILE, FORMAT = "corpus.json", 1


def detect(folder: Path) -> bool:
    """Whether the folder holds such a description."""
    return (Path(folder) / FILE).is_file()


def write(folder: str | os.PathLike, corpus: Corpus, cases: Iterable[Case], facts: Mapping | None = None) -> Path:
    """Writes the description in one step; `facts` are further fields (twins, licence, citation). Returns the path."""
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in cases:
        row = {"name": case.name, "images": [os.path.abspath(p) for p in case.images], "patient": case.patient or case.name}
        if case.label:
            row["label"] = os.path.abspath(case.label)
        if case.masks:
            row["masks"] = [[mask.name, os.path.abspath(mask.path), mask.pick] for mask in case.masks]
        rows.append(row)
    temporary = path.with_name(f".{FILE}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    temporary.write_text(json.dumps({"format": FORMAT, "corpus": corpus.to_json(), "cases": rows} | dict(facts or {}), indent=1))
    os.replace(temporary, path)
    return path


def scan(folder: str | os.PathLike) -> tuple[Corpus, tuple[Case, ...], list[MedjaxError]]:
    """Corpus, usable cases, and the problems of the others (files that are no longer there)."""
    path = Path(folder) / FILE
    said = read_json(path)
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise UsageError(
            "not a description of a corpus that this version reads", path=path, expected=f'"format": {FORMAT}', fix="ingest again"
        )
    try:
        corpus = Corpus.from_json(said["corpus"])
        cases = [_case(row, corpus, path.parent) for row in said["cases"]]
    except LabelError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"damaged description of a corpus: {error!r}", path=path, fix="ingest again") from error
    problems = [_missing(case, path) for case in cases]
    good = tuple(case for case, problem in zip(cases, problems, strict=True) if problem is None)
    return corpus, good, [problem for problem in problems if problem is not None]


def facts(folder: str | os.PathLike) -> dict:
    """The further fields of a description: twins, licence, citation; {} without one."""
    return (
        {k: v for k, v in read_json(Path(folder) / FILE).items() if k not in ("format", "corpus", "cases")} if detect(Path(folder)) else {}
    )


def _case(row: Mapping, corpus: Corpus, folder: Path) -> Case:
    masks = tuple(Mask(name, str(folder / path), pick) for name, path, pick in row.get("masks", ()))
    label = str(folder / row["label"]) if row.get("label") else None
    images = tuple(str(folder / p) for p in row["images"])
    return Case(row["name"], images, label, corpus.name, corpus.modality, row["patient"], masks)


def _missing(case: Case, path: Path) -> MedjaxError | None:
    for file in (*case.images, *case.label_files):
        if not os.path.exists(file):
            return UsageError(
                f"a file of case {case.name!r} is no longer there", path=file, fix=f"put it back, or ingest again: {path} names it"
            )
    return None


def replaced_labels(corpus: Corpus, sets: Iterable[frozenset[str]]) -> Corpus:
    """The corpus with values added for every combination of its classes that occurs in masks but was not declared; order is fixed.

    A combination that names other classes than the corpus' is cut down to those it knows, as reading does.
    """
    known = {frozenset(names) for _, names in corpus.labels}
    order = {name: i for i, name in enumerate(corpus.classes)}
    cut = {members & frozenset(corpus.classes) for members in sets} - known
    fresh: Sequence[tuple[str, ...]] = sorted(
        (tuple(sorted(m, key=order.__getitem__)) for m in cut), key=lambda m: (len(m), [order[n] for n in m])
    )
    first = max(corpus.values) + 1
    added = tuple((first + i, names) for i, names in enumerate(fresh))
    return dataclasses.replace(corpus, labels=(*corpus.labels, *added))
