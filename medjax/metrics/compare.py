"""Compares two sets of predictions on the same cases.

In: two `Result`s against the same references. Out: a `Comparison`: paired differences, intervals
over patients, and corrected tests. A difference is second minus first, of cases that both have
scored. If a class is absent from the reference and only one side predicts it, the correct absence
of the other side counts as a perfect score; if neither predicts it, there is no pair. Volumes are
compared by their absolute error.

Tests use the mean difference of each patient: Wilcoxon's signed-rank test, a permutation test that
flips signs (exact up to 14 patients), or Student's paired t test. p values are two-sided, or those
of "the second is better" (`better`); they are corrected by Holm within each metric over all
(corpus, class) cells. A corpus as a whole is tested by the mean over its classes of every patient.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from medjax import __version__, files
from medjax.errors import MetricError, UsageError, did_you_mean
from medjax.infer.owned import MARK, mark
from medjax.metrics import written
from medjax.metrics.aggregate import ABSENT, FOUND, OWN_CHANNEL, PERFECT, Row, aggregate
from medjax.metrics.result import Result
from medjax.metrics.tables import DECIMALS, TITLES, chance, escaped, mean

TESTS = ("wilcoxon", "permutation", "t")
SIDES = ("two-sided", "better")
LESS_IS_BETTER = ("HD95", "ASSD", "volume_error_ml")
EXACT = 14  # patients up to which all sign patterns are tried
LEVEL = 0.05
SIDED = {"two-sided": "two-sided", "better": "one-sided (the second is better)"}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Paired differences of two results.

    Attributes:
      names: of the first and the second. test: see `TESTS`.
      metrics: the metrics compared.
      cells: corpus -> class -> metric -> {n, n_patients, first, second, mean (the difference),
        interval, sd, median, q1, q3, p, p_holm}.
      overall: metric -> {mean, interval, n_cells}: macro over cells.
      unpaired: cases that only one of the two has scored, by the name of the one that has.
      side: see `SIDES`.
      corpora: corpus -> metric -> {n_patients, first, second, mean, p}: of the mean over its
        classes of every patient; empty in comparisons of earlier versions.
    """

    names: tuple[str, str]
    test: str
    metrics: tuple[str, ...]
    cells: Mapping[str, Mapping[str, Mapping[str, dict]]]
    overall: Mapping[str, dict]
    unpaired: Mapping[str, list[str]]
    side: str = "two-sided"
    corpora: Mapping[str, Mapping[str, dict]] = dataclasses.field(default_factory=dict)

    def markdown(self) -> str:
        """One table per metric: both means, the difference with its interval, and p after Holm.

        * marks p < 0.05.
        """
        first, second = map(escaped, self.names)
        lines = [
            f"## {second} against {first}",
            "",
            f"Difference = {second} - {first} [95 % interval over patients]; * p < {LEVEL} after "
            "Holm.",
            "",
        ]
        for metric in self.metrics:
            lines += [
                f"### {TITLES.get(metric, metric)}",
                "",
                f"| corpus | class | {first} | {second} | difference | p | p (Holm) | n |",
            ]
            lines.append("|---|---|---|---|---|---|---|---|")
            for corpus, classes in self.cells.items():
                for name, cell in ((name, entry[metric]) for name, entry in classes.items()):
                    digits = DECIMALS[metric]
                    both = " | ".join(
                        "-" if v is None else f"{v:.{digits}f}"
                        for v in (cell["first"], cell["second"])
                    )
                    star = " *" if cell["p_holm"] is not None and cell["p_holm"] < LEVEL else ""
                    chances = " | ".join(chance(cell[key]) for key in ("p", "p_holm"))
                    lines.append(
                        f"| {escaped(corpus)} | {escaped(name)} | {both} | "
                        f"{mean(cell, metric)}{star} | {chances} | {cell['n']} |"
                    )
            for corpus, entry in self.corpora.items():
                cell, digits = entry[metric], DECIMALS[metric]
                both = " | ".join(
                    "-" if v is None else f"{v:.{digits}f}" for v in (cell["first"], cell["second"])
                )
                change = "-" if cell["mean"] is None else f"{cell['mean']:.{digits}f}"
                lines.append(
                    f"| {escaped(corpus)} | mean over classes of a patient | {both} | {change} | "
                    f"{chance(cell['p'])} | - | {cell['n_patients']} |"
                )
            lines += [
                f"| all | mean over cells | | | {mean(self.overall[metric], metric)} | | | |",
                "",
            ]
        for name, cases in self.unpaired.items():
            lines += (
                [
                    f"Scored for {escaped(name)} only, so not compared: "
                    f"{', '.join(map(escaped, cases))}.",
                    "",
                ]
                if cases
                else []
            )
        lines.append(
            f"Test: {self.test}, {SIDED[self.side]}, on the mean difference of each patient; "
            "Holm's correction within each metric over all classes."
        )
        return "\n".join([*lines, "", f"Computed by medjax {__version__}.", ""])

    def to_json(self) -> dict:
        """JSON-ready fields."""
        return dataclasses.asdict(self)

    def write(self, folder: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes comparison.json and comparison.md, each complete or not at all.

        Raises: `UsageError` if one of them is there and medjax did not write it, unless
          `overwrite`.
        """
        folder = Path(folder)
        written.check(folder, written.COMPARISON[:2], overwrite=overwrite)
        files.write_json(folder / "comparison.json", self.to_json() | mark("comparison"))
        files.write_text(folder / "comparison.md", self.markdown())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Comparison":
        """Reads the comparison.json that `write` wrote."""
        fields = files.read_json(path)
        try:
            fields = {k: v for k, v in fields.items() if k != MARK}
            return cls(
                **fields | {"names": tuple(fields["names"]), "metrics": tuple(fields["metrics"])}
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise UsageError(
                "not a comparison that medjax wrote",
                path=path,
                fix="run `medjax evaluate --compare` again",
            ) from error


def compare(
    first: Result,
    second: Result,
    *,
    names: tuple[str, str] = ("first", "second"),
    test: str = "wilcoxon",
    side: str = "two-sided",
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compares two results case by case.

    Raises: `UsageError` for an unknown test or side, `MetricError` if the results share no scored
      case or were measured differently.
    """
    for what, word, known in (("test", test, TESTS), ("side", side, SIDES)):
        if word not in known:
            raise UsageError(f"unknown {what} {word!r}", fix=did_you_mean(word, known))
    if first.settings != second.settings:
        raise MetricError(
            "results with different settings", found=second.settings, expected=first.settings
        )
    metrics = tuple(
        m
        for m in PERFECT  # masks are compared, not what is behind them
        if m != OWN_CHANNEL and m in first.tables["metrics"] and m in second.tables["metrics"]
    )
    a, b = (
        {(row.corpus, row.case, row.name): row for row in result.rows} for result in (first, second)
    )
    shared = [key for key in a if key in b]
    if not shared:
        raise MetricError(
            "the two results share no scored case",
            found=len(b),
            expected="predictions of the same cases",
        )
    both = [(a[key], b[key]) for key in shared if {a[key].status, b[key].status} != {ABSENT}]
    keys = list(dict.fromkeys((corpus, name) for corpus, _, name in shared))
    rows = [
        Row(
            x.case,
            x.patient,
            x.corpus,
            x.name,
            FOUND,
            {m: _value(y, m) - _value(x, m) for m in metrics},
        )
        for x, y in both
    ]
    differences = aggregate(rows, resamples=resamples, seed=seed, cells=keys)
    cells: dict[str, dict[str, dict[str, dict]]] = {}
    for corpus, name in keys:
        pairs = [(x, y) for x, y in both if (x.corpus, x.name) == (corpus, name)]
        entry = cells.setdefault(corpus, {}).setdefault(name, {})
        for metric in metrics:
            table = differences["cells"][corpus][name].get(
                metric,
                {
                    "mean": None,
                    "interval": None,
                    "sd": None,
                    "median": None,
                    "q1": None,
                    "q3": None,
                },
            )
            by_patient: dict[str, list[float]] = {}
            for x, y in pairs:
                by_patient.setdefault(x.patient, []).append(_value(y, metric) - _value(x, metric))
            changes = np.array([np.mean(v) for v in by_patient.values()])
            means = [
                float(np.mean([_value(row, metric) for row in side])) if pairs else None
                for side in (zip(*pairs, strict=True) if pairs else ((), ()))
            ]
            kept = {k: table[k] for k in ("mean", "interval", "sd", "median", "q1", "q3")}
            entry[metric] = {
                "n": len(pairs),
                "n_patients": len(changes),
                "first": means[0],
                "second": means[1],
            } | kept
            sign = _sign(metric, side)
            entry[metric]["p"] = p_value(changes * sign, test, resamples, seed, side)
    for metric in metrics:
        chances = [cells[c][n][metric]["p"] for c, n in keys]
        for (c, n), corrected in zip(keys, holm(chances), strict=True):
            cells[c][n][metric]["p_holm"] = corrected
    scored = [
        {f"{corpus}/{pair.case}" for corpus, pair in result.pairs} for result in (first, second)
    ]
    unpaired = {names[0]: sorted(scored[0] - scored[1]), names[1]: sorted(scored[1] - scored[0])}
    overall = {
        m: differences["overall"].get(m, {"mean": None, "interval": None, "n_cells": 0})
        for m in metrics
    }
    apart = {tuple(cell) for cell in first.tables.get("apart", ())}
    corpora = {
        corpus: {
            metric: _of_corpus(
                [(x, y) for x, y in both if x.corpus == corpus and (corpus, x.name) not in apart],
                metric,
                functools.partial(p_value, test=test, resamples=resamples, seed=seed, side=side),
                _sign(metric, side),
            )
            for metric in metrics
        }
        for corpus in dict.fromkeys(corpus for corpus, _ in keys)
    }
    return Comparison(tuple(names), test, metrics, cells, overall, unpaired, side, corpora)


def _sign(metric: str, side: str) -> int:
    """1, or -1 where a one-sided test asks whether the values became smaller."""
    return -1 if side == "better" and metric in LESS_IS_BETTER else 1


def _of_corpus(
    pairs: Sequence[tuple[Row, Row]],
    metric: str,
    p_of: Callable[[np.ndarray], float | None],
    sign: int,
) -> dict:
    """Means over the classes of every patient: of both sides, their difference and its p.

    A patient's mean is taken over the (case, class) pairs that both sides have scored.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for x, y in pairs:
        found.setdefault(x.patient, []).append((_value(x, metric), _value(y, metric)))
    means = np.array([np.mean(values, 0) for values in found.values()]).reshape(-1, 2)
    changes = means[:, 1] - means[:, 0]
    empty = not len(means)
    return {
        "n_patients": len(means),
        "first": None if empty else float(means[:, 0].mean()),
        "second": None if empty else float(means[:, 1].mean()),
        "mean": None if empty else float(changes.mean()),
        "p": p_of(sign * changes),
    }


def p_value(
    differences: np.ndarray,
    test: str,
    resamples: int = 10_000,
    seed: int = 0,
    side: str = "two-sided",
) -> float | None:
    """p of "no difference", two-sided, or one-sided against differences above 0 ("better").

    1 if every difference is 0, None with fewer than two patients.
    """
    if len(differences) < 2:
        return None
    if not differences.any():
        return 1.0
    alternative = "greater" if side == "better" else "two-sided"
    if test == "wilcoxon":
        given = {"zero_method": "wilcox", "method": "auto", "alternative": alternative}
        return float(stats.wilcoxon(differences, **given).pvalue)
    if test == "t":
        if np.ptp(differences) == 0:  # no spread: t is infinite
            return 1.0 if side == "better" and differences[0] < 0 else 0.0
        return float(stats.ttest_1samp(differences, 0.0, alternative=alternative).pvalue)
    size = (lambda means: means) if side == "better" else np.abs
    observed = size(differences.mean())
    observed -= 1e-12 * abs(observed)
    if len(differences) <= EXACT:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(differences))))
        return float(np.mean(size(signs @ differences / len(differences)) >= observed))
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (resamples, len(differences)))
    extreme = np.count_nonzero(size(signs @ differences / len(differences)) >= observed)
    return float((1 + extreme) / (1 + resamples))


def holm(chances: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction: the i-th smallest of m values times m - i, monotone, at most 1.

    None stays None.
    """
    order = sorted((i for i, p in enumerate(chances) if p is not None), key=lambda i: chances[i])
    corrected: list[float | None] = [None] * len(chances)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, chances[i] * (len(order) - rank)))
        corrected[i] = highest
    return corrected


def _value(row: Row, metric: str) -> float:
    value = PERFECT[metric] if row.status == ABSENT else row.scores[metric]
    return abs(value) if metric == "volume_error_ml" else value
