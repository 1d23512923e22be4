"""From scores per case to tables: empty cases, means with spread, bootstrap intervals.

In: a list of `Row`s (case, patient, corpus, class, status, scores). Out: `Summary` dicts,
JSON-ready: numbers or None, never nan.

    both empty       left out of every mean, counted as n_absent (a second mean,
                     "mean_absent_as_one", counts them as perfect)
    missed           overlap scores 0, distances the image diagonal, counted as n_missed
    false positive   the same, counted as n_false_positive
    not annotated    no row at all

Means are never taken over (case, class) pairs: a corpus is the mean over its classes, a class over
its corpora, a group over its (corpus, class) cells. Intervals are 95 % bootstrap intervals of
expanded percentiles (Hesterberg, What Teachers Should Know about the Bootstrap, 2015, section 5.4);
patients are drawn with replacement within each corpus, all classes of a patient together, and
corpora are held fixed (stratified). Fewer than 5 patients give no interval.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import stats

from medjax.metrics import counts as overlap
from medjax.metrics import surface

OWN_CHANNEL = "Dice_own_channel"  # of a class before the label map is painted: `metrics.channels`
PERFECT = {
    "Dice": 1.0,
    OWN_CHANNEL: 1.0,
    "IoU": 1.0,
    "NSD": 1.0,
    "HD95": 0.0,
    "ASSD": 0.0,
    "volume_error_ml": 0.0,
}
LEVEL, LEAST_PATIENTS = 0.95, 5
FOUND, ABSENT, MISSED, FALSE_POSITIVE = "found", "absent", "missed", "false_positive"


@dataclasses.dataclass(frozen=True)
class Row:
    """Scores of one class in one case, with voxel counts and voxel size; none if absent.

    confidence: of the prediction, see `metrics.confidence`.
    """

    case: str
    patient: str
    corpus: str
    name: str
    status: str
    scores: Mapping[str, float]
    counts: overlap.Counts | None = None
    voxel_ml: float = 0.0
    confidence: float | None = None


def status_of(n_reference: int, n_prediction: int) -> str:
    """Which of the four situations a pair of masks is in."""
    if n_reference and n_prediction:
        return FOUND
    return MISSED if n_reference else FALSE_POSITIVE if n_prediction else ABSENT


def empty_scores(status: str, diagonal_mm: float, with_surface: bool) -> dict[str, float]:
    """Scores of a pair with an empty side: the worst finite ones, or none if both are empty."""
    if status == ABSENT:
        return {}
    worst = {"Dice": 0.0, "IoU": 0.0}
    return worst | {"NSD": 0.0, "HD95": diagonal_mm, "ASSD": diagonal_mm} if with_surface else worst


def score_masks(
    reference: np.ndarray,
    prediction: np.ndarray,
    counts: overlap.Counts,
    spacing_mm: Sequence[float],
    tolerance_mm: float | None,
    image_shape: Sequence[int] | None = None,
) -> tuple[str, dict[str, float]]:
    """Status and scores of two masks (z, y, x), crops of an image of `image_shape`.

    Surface metrics are computed only with a tolerance.
    """
    status = status_of(counts.n_reference, counts.n_prediction)
    shape = tuple(image_shape or reference.shape)
    if status != FOUND:
        return status, empty_scores(
            status, surface.image_diagonal_mm(shape, spacing_mm), tolerance_mm is not None
        )
    scores = {"Dice": counts.dice, "IoU": counts.iou}
    if tolerance_mm is not None:
        distances = surface.surface_distances(reference, prediction, spacing_mm, shape)
        scores["NSD"] = surface.surface_dice(distances, tolerance_mm)
        scores |= {"HD95": surface.hausdorff(distances), "ASSD": surface.assd(distances)}
    return status, scores


def aggregate(
    rows: Sequence[Row],
    *,
    groups: Mapping[str, Iterable[str]] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    cells: Iterable[tuple[str, str]] = (),
    apart: Iterable[tuple[str, str]] = (),
) -> dict:
    """Tables per (corpus, class), per class, per corpus, per group and overall.

    Args:
      rows: scores of all cases; several corpora may be mixed.
      groups: group name -> class names, e.g. {"tumours": ["liver tumour", ...]}, or "corpus/class";
        a class may be in several.
      resamples, seed: of the bootstrap.
      cells: (corpus, class) pairs that must be listed even without any row (a class every case of
        which failed): they get n = 0.
      apart: (corpus, class) pairs that are listed, but count in no mean of a corpus and not
        overall: regions that unite classes which count already.

    Returns: {"metrics": [...], "cells": {corpus: {class: Summary}}, "classes": {class: Summary},
      "corpora": {...}, "groups": {...}, "overall": Summary, "over_corpora": Summary, "bootstrap":
      {...}}. "overall" is the mean over the cells, "over_corpora" that over the means of the
      corpora, which weighs a corpus of one class like one of thirteen. A cell's Summary
      has n_absent, n_missed, n_false_positive, and per metric {mean, sd, median, q1, q3, n,
      interval, mean_absent_as_one}, volume_error_ml also the limits of agreement; the others have
      {mean, interval, n_cells} or {mean, interval, n_corpora}.
    """
    apart = set(apart)
    keys = list(dict.fromkeys([*cells, *((row.corpus, row.name) for row in rows)]))
    metrics = [m for m in PERFECT if any(m in row.scores for row in rows)] or ["Dice", "IoU"]
    draws = {metric: _bootstrap(rows, keys, metric, resamples, seed) for metric in metrics}
    by_cell: dict[tuple[str, str], list[Row]] = {key: [] for key in keys}
    for row in rows:
        by_cell[row.corpus, row.name].append(row)
    result = {"metrics": metrics, "cells": {}}
    for column, ((corpus, name), members) in enumerate(by_cell.items()):
        summary = {
            f"n_{s}": sum(row.status == s for row in members)
            for s in (ABSENT, MISSED, FALSE_POSITIVE)
        }
        for metric in metrics:
            described = _describe([row.scores[metric] for row in members if metric in row.scores])
            absent = [
                row.scores.get(metric, PERFECT[metric])
                for row in members
                if metric in row.scores or row.status == ABSENT
            ]
            described["interval"] = _interval(*_chosen(*draws[metric], [column]))
            if metric == "volume_error_ml":
                described["limits"] = agreement_limits(described["mean"], described["sd"])
            summary[metric] = described | {
                "mean_absent_as_one": float(np.mean(absent)) if absent else None
            }
        result["cells"].setdefault(corpus, {})[name] = summary

    def pooled(chosen: list[int]) -> dict:
        table = {}
        for metric in metrics:
            means = [result["cells"][keys[i][0]][keys[i][1]][metric]["mean"] for i in chosen]
            used = [i for i, mean in zip(chosen, means, strict=True) if mean is not None]
            values = [mean for mean in means if mean is not None]
            table[metric] = {
                "mean": float(np.mean(values)) if values else None,
                "interval": _interval(*_chosen(*draws[metric], used)),
            }
            table[metric]["n_cells"] = len(used)
        return table

    result["classes"] = {
        name: pooled([i for i, k in enumerate(keys) if k[1] == name])
        for name in dict.fromkeys(k[1] for k in keys)
    }
    counted = {name: [] for name in dict.fromkeys(k[0] for k in keys)}
    for i, key in enumerate(keys):
        if key not in apart:
            counted[key[0]].append(i)
    result["corpora"] = {name: pooled(chosen) for name, chosen in counted.items()}
    grouped = {group: set(names) for group, names in (groups or {}).items()}
    result["groups"] = {
        group: pooled([i for i, k in enumerate(keys) if k[1] in names or f"{k[0]}/{k[1]}" in names])
        for group, names in grouped.items()
    }
    result["overall"] = pooled([i for chosen in counted.values() for i in chosen])
    result["over_corpora"] = {
        metric: _over_corpora(
            [found[metric]["mean"] for found in result["corpora"].values()],
            [_chosen(*draws[metric], chosen) for chosen in counted.values()],
        )
        for metric in metrics
    }
    if apart:
        result["apart"] = sorted(apart)
    result["bootstrap"] = {
        "resamples": resamples,
        "seed": seed,
        "level": LEVEL,
        "unit": "patient within corpus",
        "kind": "expanded percentile",
        "least_patients": LEAST_PATIENTS,
    }
    return result


def agreement_limits(bias: float | None, sd: float | None) -> list[float] | None:
    """Bland and Altman's 95 % limits of agreement: bias -/+ 1.96 SD of the differences."""
    return None if bias is None or sd is None else [bias - 1.96 * sd, bias + 1.96 * sd]


def _describe(values: Sequence[float]) -> dict:
    if not values:
        return {"mean": None, "sd": None, "median": None, "q1": None, "q3": None, "n": 0}
    q1, median, q3 = np.percentile(values, [25, 50, 75])
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {
        "mean": float(np.mean(values)),
        "sd": sd,
        "median": float(median),
        "q1": float(q1),
        "q3": float(q3),
        "n": len(values),
    }


def _bootstrap(
    rows: Sequence[Row], keys: Sequence[tuple[str, str]], metric: str, resamples: int, seed: int
) -> tuple[np.ndarray, list[set[tuple[str, str]]]]:
    """Resampled cell means (resamples, cell); nan if a resample has no scored case of a cell.

    And the scored (corpus, patient) of every cell.
    """
    scored: list[set[tuple[str, str]]] = [set() for _ in keys]
    draws = np.full((resamples, len(keys)), np.nan)
    for position, corpus in enumerate(dict.fromkeys(k[0] for k in keys)):
        members = [row for row in rows if row.corpus == corpus]
        patients = sorted({row.patient for row in members})
        columns = {name: i for i, (c, name) in enumerate(keys) if c == corpus}
        total, n = np.zeros((len(patients), len(keys))), np.zeros((len(patients), len(keys)))
        place = {patient: i for i, patient in enumerate(patients)}
        for row in members:
            if metric in row.scores:
                total[place[row.patient], columns[row.name]] += row.scores[metric]
                n[place[row.patient], columns[row.name]] += 1
                scored[columns[row.name]].add((corpus, row.patient))
        if len(patients) < 2:
            continue  # one patient gives no interval over patients
        # How often each patient is drawn: the same for every metric, so that tables of one
        # evaluation move together.
        rng, evenly = (
            np.random.default_rng([seed, position]),
            np.full(len(patients), 1 / len(patients)),
        )
        weights = rng.multinomial(len(patients), evenly, resamples).astype(np.float64)
        used = list(columns.values())
        with np.errstate(invalid="ignore", divide="ignore"):
            draws[:, used] = (weights @ total[:, used]) / (weights @ n[:, used])
    return draws, scored


def tail(patients: int, corpora: int = 1) -> float:
    """The lower percentile, between 0 and 0.025, of an interval over so many patients.

    A bootstrap interval of the mean is too narrow by sqrt((m - 1) / m) for m patients per corpus,
    and by the difference between a normal and a t quantile: Phi(sqrt(m / (m - 1)) t).
    """
    each = patients / corpora
    t = stats.t.ppf((1 - LEVEL) / 2, patients - corpora)
    return float(stats.norm.cdf(math.sqrt(each / (each - 1)) * t))


def _over_corpora(
    means: Sequence[float | None], chosen: Sequence[tuple[np.ndarray, set[tuple[str, str]]]]
) -> dict:
    """Summary of the mean over the corpora that have one.

    Args:
      means: of every corpus. chosen: of every corpus, (resamples, its cells) and its patients.
    """
    used = [k for k, mean in enumerate(means) if mean is not None]
    values = [means[k] for k in used]
    columns = [_means(chosen[k][0]) for k in used]
    patients = set().union(*(chosen[k][1] for k in used))
    return {
        "mean": float(np.mean(values)) if values else None,
        "interval": _interval(np.stack(columns, 1), patients) if columns else None,
        "n_corpora": len(used),
    }


def _means(draws: np.ndarray) -> np.ndarray:
    """(resamples, cells) -> (resamples,) mean over the cells of which a resample holds a case."""
    finite = np.isfinite(draws)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(finite, draws, 0).sum(1) / finite.sum(1)


def _chosen(
    draws: np.ndarray, scored: Sequence[set[tuple[str, str]]], columns: Sequence[int]
) -> tuple[np.ndarray, set[tuple[str, str]]]:
    """The resampled means of some cells, and the (corpus, patient) scored in any of them."""
    return draws[:, columns], set().union(*(scored[column] for column in columns))


def _interval(draws: np.ndarray, patients: set[tuple[str, str]]) -> list[float] | None:
    """95 % interval of the mean over cells; None if a cell has none, or below 5 patients.

    A resample ignores cells of which it holds no case.
    """
    corpora = len({corpus for corpus, _ in patients})
    if len(patients) < LEAST_PATIENTS or len(patients) <= corpora:
        return None
    finite = np.isfinite(draws)
    if not draws.shape[1] or not finite.any(0).all():
        return None
    below = tail(len(patients), corpora)
    low, high = np.quantile(_means(draws)[finite.any(1)], [below, 1 - below])
    return [float(low), float(high)]
