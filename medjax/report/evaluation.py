"""The sections of an evaluation's page: scores, plots, comparison, cases, pictures.

In: a `Result` (and a `Comparison`). Out: HTML text for `page.page`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medjax.metrics import tables, written
from medjax.metrics.compare import LEVEL, SIDED, Comparison
from medjax.metrics.result import Result
from medjax.report import charts, page
from medjax.report.page import Cell, number, text

AGREEMENT_PLOTS = 12  # volume plots in a page; the tables hold the bias of all classes
CASE_ROWS = 2000
COUNTED = ("n", "missed", "false positive", "absent")  # beside the class, where they are seen


def scores(result: Result) -> str:
    """A table per corpus: mean with interval and spread of every metric, and the counts.

    Groups and pools follow.
    """
    found, parts = result.tables, []
    metrics = [m for m in tables.REPORTED if m in found["metrics"]]
    heads = [
        "class",
        *COUNTED,
        *(tables.TITLES.get(m, m) for m in metrics),
    ]
    for corpus, cells in found["cells"].items():
        counts = ("n_missed", "n_false_positive", "n_absent")
        rows = [
            [n, c[metrics[0]]["n"], *(c[k] for k in counts), *(_mean(c[m], m) for m in metrics)]
            for n, c in cells.items()
        ]
        total = [
            "mean over classes",
            *[""] * len(COUNTED),
            *(_mean(found["corpora"][corpus][m], m) for m in metrics),
        ]
        parts.append(f"<h3>{text(corpus)}</h3>" + page.table(heads, rows, total))
    pools = {"Groups": found["groups"]} if found["groups"] else {}
    if len(result.corpora) > 1:
        pools |= {
            "Classes over corpora": found["classes"],
            "All": tables.overall(found),
        }
    for title, table in pools.items():
        rows = [[name, *(_mean(cell[m], m) for m in metrics)] for name, cell in table.items()]
        parts.append(f"<h3>{title}</h3>" + page.table(["class", *heads[1 + len(COUNTED) :]], rows))
    if told := tables.confidences(result):
        parts.append(
            "<h3>Confidence</h3>" + page.table(list(tables.CONFIDENCE), told, None, (0, 1))
        )
    explained = (
        "Mean with 95 % interval over patients; below it the standard deviation and "
        "median (interquartile range)."
    )
    return f'<p class="faint">{explained}</p>' + "".join(parts)


def figures(result: Result) -> dict[str, str]:
    """Name -> SVG: a box plot per corpus and metric, and volume agreement of the first classes."""
    drawn = {}
    for corpus, names in result.classes.items():
        for metric in (m for m in written.PLOTTED if m in result.tables["metrics"]):
            rows = [row for row in result.rows if row.corpus == corpus and metric in row.scores]
            values = {
                name: [(row.case, row.scores[metric]) for row in rows if row.name == name]
                for name in names
            }
            high = 1.0 if metric != "HD95" else None
            drawn[f"{corpus}_{metric}"] = charts.box_plot(
                f"{corpus}: {tables.TITLES.get(metric, metric)}", values, 0.0, high
            )
        for name in names:
            points = _volumes(result, corpus, name)
            cell = result.tables["cells"][corpus][name].get("volume_error_ml", {})
            if (
                len(points) > 1
                and cell.get("mean") is not None
                and sum("volume" in key for key in drawn) < AGREEMENT_PLOTS
            ):
                title = f"{name}: predicted - reference volume (ml)"
                drawn[f"{corpus}_{name}_volume"] = charts.bland_altman(
                    title, points, cell["mean"], cell.get("limits")
                )
    return drawn


def comparison(found: Comparison) -> str:
    """The paired differences as one table per metric."""
    first, second = found.names
    said = (
        f"Difference = {second} minus {first}, with 95 % interval over patients. Test: "
        f"{found.test}, {SIDED[found.side]}, Holm's correction."
    )
    parts = [f"<p>{text(said)}</p>"]
    for metric in found.metrics:
        rows = []
        for corpus, classes in found.cells.items():
            for name, entry in classes.items():
                cell = entry[metric]
                mark = " *" if cell["p_holm"] is not None and cell["p_holm"] < LEVEL else ""
                change = Cell(text(tables.mean(cell, metric)) + mark, cell["mean"])
                means = [
                    Cell("-" if v is None else f"{v:.{tables.DECIMALS[metric]}f}", v)
                    for v in (cell["first"], cell["second"])
                ]
                chances = [
                    Cell(text(tables.chance(cell[key])), cell[key]) for key in ("p", "p_holm")
                ]
                rows.append([name, corpus, *means, change, *chances, cell["n"]])
        for corpus, entry in found.corpora.items():
            cell, digits = entry[metric], tables.DECIMALS[metric]
            means = [
                Cell("-" if v is None else f"{v:.{digits}f}", v)
                for v in (cell["first"], cell["second"], cell["mean"])
            ]
            chance = Cell(text(tables.chance(cell["p"])), cell["p"])
            rows.append(
                ["mean over classes of a patient", corpus, *means, chance, "-", cell["n_patients"]]
            )
        heads = ["class", "corpus", first, second, "difference", "p", "p (Holm)", "n"]
        total = [
            "mean over cells",
            "",
            "",
            "",
            Cell(text(tables.mean(found.overall[metric], metric))),
            "",
            "",
            "",
        ]
        parts.append(
            f"<h3>{text(tables.TITLES.get(metric, metric))}</h3>"
            + page.table(heads, rows, total, text_columns=(0, 1))
        )
    return "".join(parts) + f'<p class="faint">* p &lt; {LEVEL} after correction.</p>'


def cases(result: Result) -> str:
    """One row per case: means over its classes, and what was missed or invented."""
    metrics = [m for m in ("Dice", "IoU", "NSD", "HD95") if m in result.tables["metrics"]]
    rows = []
    by_case: dict[tuple[str, str], list] = {}
    for row in result.rows:
        by_case.setdefault((row.corpus, row.case), []).append(row)
    for (corpus, case), members in by_case.items():
        means = [
            float(np.mean(v)) if (v := [r.scores[m] for r in members if m in r.scores]) else None
            for m in metrics
        ]
        worst = min(
            (r for r in members if "Dice" in r.scores), key=lambda r: r.scores["Dice"], default=None
        )
        lowest = (
            Cell(
                f"{text(worst.name)} <small>{number(worst.scores['Dice'])}</small>",
                worst.scores["Dice"],
            )
            if worst
            else None
        )
        counted = [
            ", ".join(r.name for r in members if r.status == status)
            for status in ("missed", "false_positive")
        ]
        rows.append(
            [Cell(page.opener(f"{corpus}/{case}", case), case), corpus, *means, lowest, *counted]
        )
    said = (
        f'<p class="faint">The first {CASE_ROWS} of {len(rows)} cases; all are in cases.csv.</p>'
        if len(rows) > CASE_ROWS
        else ""
    )
    heads = [
        "case",
        "corpus",
        *(f"mean {tables.TITLES.get(m, m)}" for m in metrics),
        "lowest Dice",
        "missed",
        "false positive",
    ]
    columns = (0, 1, len(heads) - 2, len(heads) - 1)
    return said + page.table(heads, rows[:CASE_ROWS], text_columns=columns)


def pictures(drawn: Sequence[tuple[str, Path]]) -> str:
    """The montages of the worst cases, inline."""
    return (
        '<div class="montages">'
        + "".join(page.picture(path.read_bytes(), title) for title, path in drawn if path.is_file())
        + "</div>"
    )


def _mean(cell: dict, metric: str) -> Cell:
    spread = tables.spread(cell, metric) if "median" in cell else ""
    return Cell(
        text(tables.mean(cell, metric))
        + (f"<small>{text(spread)}</small>" if spread not in ("", "-") else ""),
        cell["mean"],
    )


def _volumes(result: Result, corpus: str, name: str) -> list[tuple[str, float, float]]:
    """(case, mean volume, difference) in ml of the cases where either side has the class."""
    points = []
    for row in result.rows:
        error = row.scores.get("volume_error_ml")
        if (row.corpus, row.name) != (corpus, name) or error is None or row.counts is None:
            continue
        a, b = row.counts.n_reference, row.counts.n_prediction
        points.append((row.case, row.voxel_ml * (a + b) / 2, error))
    return points
