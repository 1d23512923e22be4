"""The confidence of predictions beside their Dice: does a low number tell of a bad mask?

In: the sidecars of predictions, and rows of scores. Out: per corpus and class the mean confidence,
and its rank correlation (Spearman) with Dice over the cases. The confidence of a class in a case is
the mean probability of the voxels that were decided for (`infer.packed.Masks`); a class that was
predicted nowhere has none.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from medjax.infer import owned
from medjax.metrics.aggregate import LEAST_PATIENTS, Row
from medjax.scans.paths import stem

FIELD = "confidence"  # of the sidecar: class of the corpus -> mean probability, or None
LEAST_CASES = LEAST_PATIENTS


def read(prediction: str | os.PathLike) -> dict[str, float]:
    """Class -> confidence, from the sidecar beside a label map <case>.nii.gz or a folder of masks
    <case>/; nothing for a mask without one.
    """
    path = Path(prediction)
    case = path.name if path.is_dir() else stem(path)
    found = (owned.sidecar(path.parent, case) or {}).get(FIELD)
    if not isinstance(found, Mapping):
        return {}
    return {
        str(name): float(value)
        for name, value in found.items()
        if type(value) in (int, float) and 0 <= value <= 1
    }


def table(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """Corpus -> class -> {"n", "mean", "spearman"}: cases with a confidence and a Dice, their mean
    confidence, and the rank correlation of both.

    The correlation is None below 5 cases, and where all have one confidence or one Dice. Classes
    without such a case are left out.
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if row.confidence is not None and "Dice" in row.scores:
            pair = row.confidence, row.scores["Dice"]
            found.setdefault((row.corpus, row.name), []).append(pair)
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for (corpus, name), pairs in found.items():
        told, dice = np.array(pairs, np.float64).T
        out.setdefault(corpus, {})[name] = {
            "n": len(pairs),
            "mean": float(told.mean()),
            "spearman": correlation(told, dice),
        }
    return out


def correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's rank correlation of two lists; None below 5 pairs, and for a constant list."""
    if len(one) < LEAST_CASES or not np.ptp(one) or not np.ptp(other):
        return None
    return float(stats.spearmanr(one, other).statistic)


def said(cell: Mapping[str, Any]) -> str:
    """0.71, or what keeps a cell of `table` from having a correlation."""
    if cell["spearman"] is not None:
        return f"{cell['spearman']:.2f}"
    return f"n = {cell['n']}: none" if cell["n"] < LEAST_CASES else "constant"
