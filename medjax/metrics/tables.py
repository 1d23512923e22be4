"""The tables of an evaluation as Markdown, with the method and the counts.

In: a `Result`. Out: text.
"""

import html
import re
from collections.abc import Callable, Mapping, Sequence

from medjax import __version__
from medjax.errors import shown
from medjax.metrics import confidence
from medjax.metrics.aggregate import LEAST_PATIENTS
from medjax.metrics.surface import DEFINITION

REPORTED = ("Dice", "Dice_own_channel", "IoU", "NSD", "HD95", "ASSD", "volume_error_ml")
TITLES = {
    "Dice_own_channel": "Dice (own channel)",
    "HD95": "HD95 (mm)",
    "ASSD": "ASSD (mm)",
    "volume_error_ml": "volume error (ml)",
}
DECIMALS = {
    "Dice": 3,
    "Dice_own_channel": 3,
    "IoU": 3,
    "NSD": 3,
    "HD95": 2,
    "ASSD": 2,
    "volume_error_ml": 2,
}
CONFLICTING = 0.001  # share of the foreground from which the screen says so
CONFIDENCE = ("corpus", "class", "n", "mean confidence", "rank correlation with Dice")
CONFLICTS = {
    "ordered": "the last in precedence",
    "argmax": "the most probable",
    "calibrated": "the most probable at its temperature",
}


def markdown(result) -> str:
    """A table of means with intervals and counts per corpus, one of the spread, groups and pools.

    Failures and the method follow.

    Args:
      result: a `metrics.result.Result`.
    """
    found = result.tables
    metrics = [m for m in REPORTED if m in found["metrics"]]
    lines = []
    for corpus, cells in found["cells"].items():
        rows = [
            [
                escaped(name),
                *(mean(cell[m], m) for m in metrics),
                cell[metrics[0]]["n"],
                cell["n_missed"],
                cell["n_false_positive"],
                cell["n_absent"],
            ]
            for name, cell in cells.items()
        ]
        rows.append(
            [
                "**mean over classes**",
                *(mean(found["corpora"][corpus][m], m) for m in metrics),
                "",
                "",
                "",
                "",
            ]
        )
        lines += [
            f"## {escaped(corpus)}",
            "",
            "Mean [95 % interval over patients]; n cases scored.",
            "",
        ]
        lines += table(
            [
                "class",
                *(TITLES.get(m, m) for m in metrics),
                "n",
                "missed",
                "false positive",
                "absent",
            ],
            rows,
        )
        lines += ["Standard deviation; median (interquartile range).", ""]
        lines += table(
            ["class", *(TITLES.get(m, m) for m in metrics)],
            [[escaped(n), *(spread(c[m], m) for m in metrics)] for n, c in cells.items()],
        )
    pools = {"Groups": found["groups"]} if found["groups"] else {}
    if len(result.corpora) > 1:
        pools["Classes over corpora"] = found["classes"]
        pools["All"] = overall(found)
    for title, pooled in pools.items():
        rows = [
            [escaped(name), *(mean(cell[m], m) for m in metrics)] for name, cell in pooled.items()
        ]
        lines += [f"## {title}", "", *table(["", *(TITLES.get(m, m) for m in metrics)], rows)]
    if rows := confidences(result, escaped):
        lines += ["## Confidence", "", *table(list(CONFIDENCE), rows)]
    if result.failed:
        lines += [
            "## Not scored",
            "",
            *(
                f"- {escaped(f['corpus'])}/{escaped(f['case'])}: {escaped(f['message'])}"
                for f in result.failed
            ),
            "",
        ]
    return "\n".join([*lines, *notes(result), ""])


def confidences(result, name: Callable[[str], str] = str) -> list[list]:
    """Rows of a table with the heads `CONFIDENCE`; none for masks without a confidence."""
    return [
        [name(corpus), name(label), cell["n"], f"{cell['mean']:.3f}", confidence.said(cell)]
        for corpus, cells in result.tables.get("confidence", {}).items()
        for label, cell in cells.items()
    ]


def screen(result) -> str:
    """Dice of every class in every corpus as aligned plain text, with the mean over all."""
    found = result.tables
    names = list(dict.fromkeys(n for cells in found["cells"].values() for n in cells))
    rows = [("Dice", *(shown(corpus) for corpus in found["cells"]))]
    for name in names:
        cells = [row.get(name) for row in found["cells"].values()]
        rows.append((shown(name), *(_short(cell) for cell in cells)))
    means = [found["corpora"][corpus]["Dice"]["mean"] for corpus in found["cells"]]
    rows.append(("mean over classes", *("-" if m is None else f"{m:.3f}" for m in means)))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
    lines += ["", f"mean Dice  {mean(found['overall']['Dice'], 'Dice')}"]
    return "\n".join([*lines, *_conflicts(result, shown, CONFLICTING)])


def _short(cell: Mapping | None) -> str:
    """0.863 of 6 cases as "0.863"; with cases that were missed entirely: "0.431 (3/6 missed)"."""
    if cell is None or cell["Dice"]["mean"] is None:
        return "-"
    missed = f" ({cell['n_missed']}/{cell['Dice']['n']} missed)" if cell["n_missed"] else ""
    return f"{cell['Dice']['mean']:.3f}{missed}"


def overall(found: Mapping) -> dict[str, Mapping]:
    """The last rows of a table of several corpora; earlier summaries have the first one only.

    Args:
      found: what `aggregate.aggregate` returns.
    """
    rows = {"mean over corpora and classes": found["overall"]}
    if "over_corpora" in found:
        rows["mean over corpora"] = found["over_corpora"]
    return rows


def notes(result) -> list[str]:
    """How the numbers were computed, in sentences."""
    said = [
        "Missed and false-positive classes score 0 (distances: image diagonal); classes absent "
        "from both maps are left out of the means.",
        'IoU in the line "mean over classes" is the mIoU.',
    ]
    if result.settings["surface"]:
        said.append(f"NSD tolerance {_tolerance(result.settings['tolerance_mm'])}; {DEFINITION}.")
    said += _conflicts(result, escaped)
    b = result.tables["bootstrap"]
    said.append(
        f"Intervals: {b['kind']} bootstrap, {b['resamples']} resamples of patients within each "
        f"corpus, seed {b['seed']}"
        + (f"; none below {b['least_patients']} patients." if "least_patients" in b else ".")
    )
    return [*said, f"Computed by medjax {__version__}."]


def _conflicts(result, name: Callable[[str], str], least: float | int = 0) -> list[str]:
    """A sentence for every corpus in which at least that share of the foreground is in conflict."""
    return [
        f"{name(corpus)}: {100 * found['share']:.2f} % of the predicted foreground holds two "
        f"exclusive classes; the label map shows {CONFLICTS.get(found['rule'], found['rule'])}."
        for corpus, found in result.conflicts.items()
        if found["share"] is not None and found["share"] >= least
    ]


def mean(cell: Mapping, metric: str) -> str:
    """0.863 [0.851, 0.874], or 0.863 (n = 3: no interval), or a dash."""
    if cell["mean"] is None:
        return "-"
    digits = DECIMALS[metric]
    if cell["interval"] is None and cell.get("n", LEAST_PATIENTS) < LEAST_PATIENTS:
        return f"{cell['mean']:.{digits}f} (n = {cell['n']}: no interval)"
    return f"{cell['mean']:.{digits}f}" + (
        ""
        if cell["interval"] is None
        else " [{:.{d}f}, {:.{d}f}]".format(*cell["interval"], d=digits)
    )


def spread(cell: Mapping, metric: str) -> str:
    """0.041; 0.871 (0.842 to 0.890), or a dash."""
    digits = DECIMALS[metric]
    if cell["median"] is None:
        return "-"
    sd = "-" if cell["sd"] is None else f"{cell['sd']:.{digits}f}"
    return f"{sd}; {cell['median']:.{digits}f} ({cell['q1']:.{digits}f} to {cell['q3']:.{digits}f})"


def chance(p: float | None) -> str:
    """A p value: three decimals, or < 0.001."""
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _tolerance(tolerance: float | Mapping) -> str:
    """One number, or the tolerances that differ."""
    if not isinstance(tolerance, Mapping):
        return f"{tolerance:g} mm"
    return ", ".join(f"{escaped(name)} {_tolerance(value)}" for name, value in tolerance.items())


def escaped(name: object) -> str:
    """A name from a file as Markdown text, without markup, HTML, line ends or control characters.

    Cell separators are escaped.

    >>> escaped("<b>|")
    '&lt;b&gt;\\\\|'
    """
    return html.escape(re.sub(r"([\\|`*\[\]])", r"\\\1", shown(name)), quote=False)


def table(heads: Sequence[str], rows: Sequence[Sequence]) -> list[str]:
    """The lines of a Markdown table, and an empty one; names must be `escaped`."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (heads, *rows)]
    return [lines[0], "|---" * len(heads) + "|", *lines[1:], ""]
