"""A prompted evaluation for readers: a page section, a table as Markdown, a plot.

In: what `metrics.prompting.tables` made, with the facts of the evaluation. Out: prompted.json,
prompted.md and plots/prompted.svg in a folder, and HTML for its report.html.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax import __version__, files
from medjax.errors import MedjaxError, shown
from medjax.infer import outputs, owned
from medjax.metrics import tables
from medjax.metrics.tables import escaped
from medjax.prompts import rows
from medjax.report import curves, page
from medjax.report.page import text

KIND, NUMBERS, TABLE, PLOT = "prompted", "prompted.json", "prompted.md", "plots/prompted.svg"
METHOD = (
    "Dice on the grid of the scan, mean over corpora and classes [95 % interval over patients]. "
    "Prompts are drawn from the reference, so all rows but those of texts alone hold a part of the "
    "answer; the floors are what the box alone would score, filled or as its inscribed ellipsoid. "
    "Differences are paired. Clicks are placed in the middle of the largest error."
)
HEADS = (
    "row",
    "Dice",
    "box IoU",
    "filled box",
    "ellipsoid",
    "Dice - ellipsoid",
    "inverted boxes",
    "nothing found",
)


def write(found: Mapping[str, Any], folder: Path, *, overwrite: bool = False) -> None:
    """Writes the three files.

    Raises: `UsageError` if one of them is there and medjax did not write it, unless `overwrite`.
    """
    owned.refuse_foreign(
        folder,
        (NUMBERS, TABLE, PLOT),
        lambda name: (
            owned.document(folder / name, KIND) is not None
            if name == NUMBERS
            else owned.is_marked(folder / name)
        ),
        overwrite=overwrite,
        what="the prompted evaluation",
    )
    outputs.make_folder(folder)
    content = json.dumps(dict(found) | owned.mark(KIND), indent=1, allow_nan=False)
    files.write_text(folder / NUMBERS, content)
    files.write_text(folder / TABLE, markdown(found))
    drawn = plot(found)
    if drawn:
        drawn = drawn.replace("currentColor", "#1b1f24")
        outputs.make_folder((folder / PLOT).parent)
        files.write_text(folder / PLOT, f"<!-- medjax {__version__} -->\n" + drawn)


def read(folder: Path) -> dict[str, Any] | None:
    """The numbers in a folder; None without any that medjax wrote."""
    return owned.document(folder / NUMBERS, KIND)


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What stands out, for the screen and the page: a line per fact."""
    said = []
    for name, row in found["rows"].items():
        if name == "box":
            said.append(_verdict("a tight box", row))
        if name == "text":
            said.append(f"text alone: Dice {_mean(row['dice'])}, no part of the answer is given")
    for name, row in found["clicks"].items():
        first, count = _mean(row["steps"][0]), len(row["steps"]) - 1
        last = f"after {count} clicks {_mean(row['last'])}, change {_mean(row['gain'], '+')}"
        said.append(f"{name}: Dice {first}, {last}")
    wrong = found["confusion"]["right_minus_wrong"]
    if wrong:
        said.append(
            f"texts choose: Dice of the right minus that of a wrong class {_mean(wrong, '+')}"
        )
    for row, gain in found.get("compared", {}).get("rows", {}).items():
        said.append(f"{row}, minus {shown(found['compared']['name'])}: {_mean(gain, '+')}")
    for corpus, names in found.get("without_text", {}).items():
        said.append(f"{corpus}: the network has no text for {', '.join(map(shown, names))}")
    if found.get("failed"):
        said.append(f"{len(found['failed'])} cases failed")
    return said


def _verdict(what: str, row: Mapping[str, Any]) -> str:
    gain, few = row["minus_ellipsoid"], ""
    if not gain["interval"]:
        word = "above" if gain["mean"] > 0 else "NOT above"
        few = "; too few patients for an interval"
    else:
        low, high = gain["interval"]
        word = "above" if low > 0 else "BELOW" if high < 0 else "NOT clearly above"
    return (
        f"{what}: Dice {_mean(row['dice'])}, {word} the ellipsoid in the box "
        f"({_mean(gain, '+')}; filled box {_mean(row['minus_filled_box'], '+')}{few})"
    )


def markdown(found: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    lines = ["# Prompted evaluation", "", METHOD, ""]
    lines += [f"- {escaped(sentence)}" for sentence in sentences(found)]
    lines += ["", *_table(HEADS, _rows(found))]
    classes = _by_class(found)
    if classes:
        lines += ["", "## Dice by class", "", *_table(*classes)]
    for name, row in found["clicks"].items():
        lines += ["", f"## {escaped(name)}", "", *_table(*_clicks(row))]
    if found["absent"]:
        lines += ["", "## Found although it is absent (by text)", "", *_table(*_absent(found))]
    for corpus, matrix in found["confusion"]["corpora"].items():
        heads = (f"{corpus}: text \\ reference", *matrix["classes"])
        body = [
            [name, *("-" if v is None else f"{v:.2f}" for v in line)]
            for name, line in zip(matrix["classes"], matrix["dice"], strict=True)
        ]
        lines += ["", "## What is taken for what", "", *_table(heads, body)]
    if found.get("failed"):
        lines += ["", "Failed: " + ", ".join(escaped(str(one["case"])) for one in found["failed"])]
    return "\n".join([*lines, "", f"Computed by medjax {__version__}.", ""])


def section(folder: Path) -> str:
    """HTML of a folder's prompted evaluation; empty without one, or if it cannot be shown."""
    found = read(folder)
    if found is None:
        return ""
    try:
        said = "".join(f"<li>{text(sentence)}</li>" for sentence in sentences(found))
        parts = [f'<p class="faint">{text(METHOD)}</p><ul>{said}</ul>']
        parts.append(page.table(HEADS, _rows(found)))
        if drawn := plot(found):
            parts.append(f"<figure>{drawn}</figure>")
        if classes := _by_class(found):
            parts.append("<h3>Dice by class</h3>" + page.table(*classes))
        for name, row in found["clicks"].items():
            parts.append(f"<h3>{text(name)}</h3>" + page.table(*_clicks(row)))
        if found["absent"]:
            parts.append("<h3>Found although absent, by text</h3>" + page.table(*_absent(found)))
        weights = str(found.get("settings", {}).get("weights", ""))
        parts.append(f'<p class="faint">weights {text(weights)}</p>' if weights else "")
        return "".join(parts)
    except (KeyError, TypeError, ValueError, MedjaxError):
        return '<p class="bad">prompted.json is of another version: run medjax prompted again</p>'


def plot(found: Mapping[str, Any]) -> str:
    """Jitter of boxes, clicks, and what is taken for what, side by side; empty without any."""
    panels = []
    boxes = {
        name: row
        for name, row in found["rows"].items()
        if "iou" in row and _is_jitter(name) and row["dice"]["mean"] is not None
    }
    if len(boxes) > 1:
        points = {
            title: [
                curves.Point(row["iou"]["mean"], row[key]["mean"], row[key]["interval"], name)
                for name, row in boxes.items()
            ]
            for title, key in (
                ("network", "dice"),
                ("filled box", "filled_box"),
                ("ellipsoid", "ellipsoid"),
            )
        }
        title = "Boxes that are not tight"
        panels.append(
            curves.lines(title, points, x="IoU with the tight box", y="Dice", ends=(0.0, 1.0))
        )
    if found["clicks"]:
        most = max(len(row["steps"]) for row in found["clicks"].values()) - 1
        points = {
            name: [
                curves.Point(k, step["mean"], step["interval"])
                for k, step in enumerate(row["steps"])
            ]
            for name, row in found["clicks"].items()
        }
        panels.append(
            curves.lines("Corrections", points, x="clicks", y="Dice", ends=(0, max(1, most)))
        )
    for corpus, matrix in found["confusion"]["corpora"].items():
        if len(matrix["classes"]) > 1:
            title = f"{corpus}: Dice of texts"
            panels.append(curves.matrix(title, matrix["classes"], matrix["dice"], row="text"))
    return curves.svg(panels) if panels else ""


def _is_jitter(name: str) -> bool:
    row = rows.parse(name)
    return row.jitter in ("none", "fraction") and not (row.text or row.positives or row.changes)


def _rows(found: Mapping[str, Any]) -> list[list[str]]:
    lines = []
    for name, row in found["rows"].items():
        line = [name, _mean(row["dice"])]
        if "iou" in row:
            line += [f"{row['iou']['mean']:.2f}"]
            line += [f"{row[floor]['mean']:.3f}" for floor in ("filled_box", "ellipsoid")]
            line += [_mean(row["minus_ellipsoid"], "+"), f"{row['inverted']:.0%}"]
        else:
            line += ["-"] * 5
        lines.append([*line, f"{row['empty']:.0%}"])
    return lines


def _by_class(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    chosen = [
        n for n in found["rows"] if (row := rows.parse(n)).jitter == "none" and not row.changes
    ]
    cells: dict[tuple[str, str], dict[str, Mapping]] = {}
    for row in chosen:
        for corpus, classes in found["rows"][row]["dice"]["cells"].items():
            for name, cell in classes.items():
                cells.setdefault((corpus, name), {})[row] = cell
    if not cells:
        return None
    lines = [
        [
            f"{corpus}: {name}",
            *(_mean(entry[r]) if r in entry else "-" for r in chosen),
            str(max(cell["n"] for cell in entry.values())),
        ]
        for (corpus, name), entry in cells.items()
    ]
    return ["class", *chosen, "n"], lines


def _clicks(row: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    heads = ["clicks", *(str(k) for k in range(len(row["steps"]))), "last - first", "area"]
    line = ["Dice", *(_mean(step) for step in row["steps"]), _mean(row["gain"], "+")]
    return heads, [[*line, _mean(row["area"])]]


def _absent(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    heads = ["class", "scans without it", "found in", "ml (mean)", "ml (most)"]
    lines = [
        [
            f"{corpus}: {name}",
            *(str(one[key]) for key in ("n", "found_in")),
            *(f"{one[key]:.2f}" for key in ("ml", "most")),
        ]
        for corpus, classes in found["absent"].items()
        for name, one in classes.items()
    ]
    return heads, lines


def _mean(cell: Mapping[str, Any], sign: str = "") -> str:
    if cell["mean"] is None:
        return "-"
    value = f"{cell['mean']:{sign}.3f}"
    if not cell["interval"]:
        return value
    low, high = cell["interval"]
    return f"{value} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; only heads and first cells hold names of files and classes."""
    return tables.table([escaped(h) for h in heads], [[escaped(b[0]), *b[1:]] for b in body])
