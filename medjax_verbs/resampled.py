"""Scores on the network's grid, with M4oE's published rule for empty classes.

Only for comparison with such tables. In: a scorer, held-out cases and the store that holds their
resampled labels. Out: Dice and IoU per corpus and class. The usual scores (`metrics`) are computed
on the original grid; these ignore errors that resampling hides, and the released rule gives a
perfect score to a class that is found where there is none, and 0 where both sides correctly have
none.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medjax.corpora.cases import failure
from medjax.corpora.inputs import Case
from medjax.errors import DataError, UsageError
from medjax.infer import conflicts
from medjax.labels import Corpus, LabelSpace
from medjax.prepare.store import again, open_case
from medjax.prompts.request import Request
from medjax.scans import formats

RULES = ("standard", "released")


def check(rule: str) -> None:
    """`UsageError` for a rule that does not exist."""
    if rule not in RULES:
        raise UsageError(
            f"unknown rule {rule!r} for empty classes",
            expected=" or ".join(RULES),
            fix="set config.evaluate.resampled to one",
        )


def class_scores(
    reference: np.ndarray, prediction: np.ndarray, rule: str = "standard"
) -> tuple[float, float] | None:
    """(Dice, IoU) of two masks; None if the case does not count.

    Args:
      rule: "standard": both empty does not count, one empty scores 0. "released" (M4oE's code):
        reference empty and prediction not scores (1, 1); both empty, or the prediction alone, (0,
        0).
    """
    check(rule)
    truth, found = bool(reference.any()), bool(prediction.any())
    if rule == "released" and not truth:
        return (1.0, 1.0) if found else (0.0, 0.0)
    if not truth and not found:
        return None
    overlap, total = (
        int((reference & prediction).sum()),
        int(reference.sum()) + int(prediction.sum()),
    )
    return 2 * overlap / total, overlap / (total - overlap)


def class_masks(ids: np.ndarray, space: LabelSpace, corpus: str) -> dict[str, np.ndarray]:
    """Dense ids (z, y, x) of a corpus -> class name -> mask, for the classes it annotates.

    Regions include the classes nested in them.
    """
    k = space.corpus_index(corpus)
    inside = np.minimum(ids, space.table.shape[1] - 1)
    return {
        name: space.table[k, :, c][inside]
        for c, name in enumerate(space.classes)
        if space.known[k, c]
    }


def score(
    scorer: Any,
    held: Mapping[str, tuple[Corpus, Iterable[Case]]],
    store: Path,
    rule: str = "standard",
) -> dict:
    """Mean Dice and IoU on the network's grid: classes over volumes, corpora over classes.

    Args:
      scorer: an `infer.scorer.Scorer`. held: corpus name -> corpus and cases. store: prepared
        volumes, whose labels are the reference.

    Returns: {"rule": ..., corpus: {"Dice": mean, "IoU": mean, "classes": {class: {"Dice": ...,
      "IoU": ..., "n": volumes}}}, "not prepared": ["corpus/case", ...], "failed": [record, ...]};
      cases that are not in the store, and those that cannot be read or predicted (see
      `corpora.cases.failure`), do not count.
    """
    check(rule)
    out, missing, failed = {"rule": rule, "grid": "network"}, [], []
    for name, (corpus, cases) in held.items():
        values: dict[str, list[tuple[float, float]]] = {}
        for case in cases:
            if not (Path(store) / corpus.store / case.name / "case.json").is_file():
                missing.append(f"{name}/{case.name}")
                continue
            try:
                results = _case_scores(
                    scorer, case, name, Path(store) / corpus.store / case.name, rule
                )
            except Exception as error:
                failed.append({"corpus": name} | failure(case, error))
                continue
            for label, result in results.items():
                values.setdefault(label, []).append(result)
        classes = {
            c: dict(zip(("Dice", "IoU"), np.mean(v, 0).tolist(), strict=True)) | {"n": len(v)}
            for c, v in values.items()
        }
        if classes:
            mean = {
                m: float(np.mean([entry[m] for entry in classes.values()])) for m in ("Dice", "IoU")
            }
            out[name] = mean | {"classes": classes}
    return out | {"not prepared": missing, "failed": failed}


def evaluate(
    scorer: Any, held: Mapping[str, tuple[Corpus, Iterable[Case]]], store: Path, rule: str
) -> tuple[dict, list[str]]:
    """`score`, and what to print; called by `medjax.runs.evaluations`."""
    found = score(scorer, held, store, rule)
    lines = [f"on the network's grid, empty classes by the {rule} rule:"]
    if left := found["not prepared"]:
        names = ", ".join(left[:4])
        lines.append(f"  without {len(left)} cases that the store does not hold: {names}")
    return found, lines


def _case_scores(
    scorer: Any, case: Case, name: str, prepared: Path, rule: str
) -> dict[str, tuple[float, float]]:
    """Class -> (Dice, IoU) of one case, for the classes that count."""
    space = scorer.model.space
    probabilities, _ = scorer.scores(formats.read_case(case.images), Request(name))
    decision = dataclasses.replace(scorer.decision, average="prob")
    mask = decision.decide(probabilities)
    if getattr(scorer, "conflicts", conflicts.ORDERED) != conflicts.ORDERED:
        among = conflicts.excluding(space, name, space.classes)
        where = conflicts.overlapping(mask, among)
        order = conflicts.strength(space, space.classes)
        scale = conflicts.odds(decision, getattr(scorer, "temperatures", {}), space.classes)
        mask = conflicts.settled(mask, probabilities, among, order, where, scale)
    ids = space.corpora[space.corpus_index(name)].to_ids(space.export(mask, name))
    label = open_case(prepared).label()
    if label.shape != ids.shape:
        raise DataError(
            "the store holds this case on another grid than the network's",
            path=prepared,
            found=label.shape,
            expected=ids.shape,
            fix="prepare it by the plan of this run",
        )
    if int(label.max(initial=0)) >= len(space.corpora[space.corpus_index(name)].values):
        raise DataError(
            "undeclared ids in a prepared label",
            path=prepared,
            found=int(label.max()),
            fix=again(prepared),
        )
    truth = class_masks(label, space, name)
    scores = {
        c: class_scores(truth[c], found, rule) for c, found in class_masks(ids, space, name).items()
    }
    return {c: found for c, found in scores.items() if found is not None}
