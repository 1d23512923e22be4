"""Chooses cases of an evaluation to show and draws them: montages of the worst, viewer cases.

In: a `Result`. Out: PNG files, `viewer.Shown` records.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medjax.corpora.cases import failure
from medjax.corpora.inputs import Case
from medjax.labels import Corpus
from medjax.metrics import side, written
from medjax.metrics.result import Pair, Result
from medjax.prepare import geometry
from medjax.report import montage, viewer
from medjax.scans import formats, nifti

Scored = tuple[str, Pair, float | None]  # corpus, pair, mean Dice over the classes that were scored


def ranked(result: Result) -> list[Scored]:
    """All scored cases, worst mean Dice first; cases without any scored class come last."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in result.rows:
        if "Dice" in row.scores:
            values.setdefault((row.corpus, row.case), []).append(row.scores["Dice"])
    found = [
        (
            corpus,
            pair,
            float(np.mean(values[corpus, pair.case])) if (corpus, pair.case) in values else None,
        )
        for corpus, pair in result.pairs
    ]
    return sorted(found, key=lambda entry: (entry[2] is None, entry[2] or 0.0))


def chosen(result: Result, count: int) -> list[Scored]:
    """At most `count` cases, corpora in turn: mostly the worst, then middle and best ones."""
    by_corpus: dict[str, list[Scored]] = {}
    for entry in ranked(result):
        by_corpus.setdefault(entry[0], []).append(entry)
    turns: list[list[Scored]] = []
    for entries in by_corpus.values():
        scored = [e for e in entries if e[2] is not None] or entries
        tail = [scored[-1], scored[len(scored) // 2]] if len(scored) > 3 else []
        worst = [e for e in entries if e not in tail]
        turns.append([*worst[: max(1, count // len(by_corpus) - len(tail))], *tail[::-1]])
    order = [
        entry
        for k in range(max(map(len, turns), default=0))
        for entry in (t[k] for t in turns if k < len(t))
    ]
    return order[:count]


def montages(result: Result, folder: Path, count: int) -> tuple[list[tuple[str, Path]], list[dict]]:
    """Draws the worst `count` cases into `folder`/montages.

    Returns (title, path) of each, and records of those that could not be drawn.
    """
    drawn, failed = [], []
    places = written.montages([(corpus, pair.case) for corpus, pair in result.pairs])
    worst = [entry for entry in ranked(result) if entry[2] is not None][:count]
    for corpus, pair, dice in worst:
        path = folder / places[corpus, pair.case]
        try:
            _draw(pair, result.corpora[corpus], path, f"{pair.case}   mean Dice {dice:.3f}")
        except Exception as error:
            failed.append({"corpus": corpus} | failure(Case(pair.case, (pair.reference,)), error))
        else:
            drawn.append((f"{corpus}/{pair.case}, mean Dice {dice:.3f}", path))
    return drawn, failed


def shown(result: Result, count: int) -> list[viewer.Shown]:
    """The cases for the viewer of a report."""
    several = len(result.corpora) > 1
    found = []
    for corpus, pair, dice in chosen(result, count):
        name = f"{corpus}/{pair.case}" if several else pair.case
        title = name + ("" if dice is None else f"  (mean Dice {dice:.3f})")
        paths = pair.source.images[:1] if pair.source else ()
        described = result.corpora[corpus]
        names = side.value_names(described)
        found.append(
            viewer.Shown(
                f"{corpus}/{pair.case}",
                title,
                tuple(paths),
                pair.reference,
                pair.prediction,
                names,
                described,
                pair.source,
            )
        )
    return found


def _draw(pair: Pair, corpus: Corpus, path: Path, title: str) -> None:
    maps: Sequence[nifti.Volume] = [
        side.label_map(pair.reference, corpus, pair.source),
        side.label_map(pair.prediction, corpus),
    ]
    images = pair.source.images if pair.source else ()
    scan = formats.read(images[0], frame=0, allow_nonfinite=True) if images else None
    canonical = geometry.fit(scan or maps[0], None, crop="none")
    if scan is not None:
        nifti.check_same_geometry(scan, maps[0])
    reference, prediction = (canonical.image(m.array) for m in maps)
    grey = np.zeros(reference.shape, np.float32) if scan is None else canonical.image(scan.array)
    names = side.value_names(corpus)
    montage.montage(
        grey, reference, prediction, path, spacing_mm=canonical.spacing_mm, names=names, title=title
    )
