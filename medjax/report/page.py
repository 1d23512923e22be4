"""A self-contained HTML file: style, script, viewer and scans inside, no network needed.

In: sections of HTML made of escaped text, and payloads from `viewer`. Out: the text of a page.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from gzip import decompress
from importlib import resources
from typing import Any

from medjax import __version__
from medjax.errors import MetricError

NIIVUE_VERSION = "0.69.0"
NIIVUE_SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"

text = html.escape


def asset(name: str) -> bytes:
    """A file that came with the package."""
    return (resources.files("medjax.report") / "assets" / name).read_bytes()


@lru_cache(maxsize=1)
def niivue() -> str:
    """The viewer as base64 of its gzipped source; `MetricError` if its file was modified."""
    packed = asset("niivue.umd.js.gz")
    if hashlib.sha256(decompress(packed)).hexdigest() != NIIVUE_SHA256:
        raise MetricError(
            "the viewer that came with medjax was changed",
            path="medjax/metrics/assets/niivue.umd.js.gz",
            fix="reinstall medjax",
        )
    return base64.b64encode(packed).decode("ascii")


def page(
    title: str,
    subtitle: str,
    facts: Sequence[tuple[str, Any]],
    sections: Sequence[tuple[str, str, str]],
    scans: Sequence[dict],
    notes: str,
) -> str:
    """The whole page.

    Args:
      title, subtitle, notes: plain text.
      facts: (name, value) shown large at the top.
      sections: (id, heading, HTML) in order; the section with id "viewer" holds the viewer.
      scans: payloads with "key" and "title"; without any there is no viewer.
    """
    chips = "".join(f"<div><b>{text(str(value))}</b>{text(name)}</div>" for name, value in facts)
    links = "".join(f'<a href="#{name}">{text(heading)}</a>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{text(heading)}</h2>{content}</section>\n'
        for name, heading, content in sections
    )
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1">',
        f'<meta name="generator" content="medjax {text(__version__)}">',
        f"<title>{text(title)}</title><style>{asset('report.css').decode()}</style></head><body>",
        f'<h1>{text(title)}</h1><p class="faint">{text(subtitle)}</p><nav>{links}</nav><div '
        f'class="facts">{chips}</div>',
        body,
        f"<footer><p>{text(notes)}</p><p>Written by medjax {text(__version__)}. Not a medical "
        "device.</p>",
    ]
    if scans:
        licences = text(asset("LICENSES.txt").decode())
        parts.append(
            f"<details><summary>Viewer: niivue {NIIVUE_VERSION}, "
            f"licences</summary><pre>{licences}</pre></details>"
        )
    parts.append("</footer>")
    if scans:
        parts.append(
            data("scans", [{"key": scan["key"], "title": scan["title"]} for scan in scans])
        )
        parts += [data(f"scan-{k}", scan) for k, scan in enumerate(scans)]
        parts.append(f'<script id="niivue" type="application/gzip">{niivue()}</script>')
    parts.append(f"<script>{asset('report.js').decode()}</script></body></html>\n")
    return "\n".join(parts)


def data(name: str, value: Any) -> str:
    """JSON inside a page; no text in it can end the element."""
    content = json.dumps(value, allow_nan=False).replace("<", chr(92) + "u003c")
    return f'<script id="{name}" type="application/json">{content}</script>'


VIEWER = """
<div class="controls">
<label>case <select id="scan"></select></label>
<label>view <select id="view"><option value="planes">three planes</option><option>axial</option>
<option>coronal</option><option>sagittal</option><option value="solid">3D</option></select></label>
<label>masks <select id="layer"></select></label>
<label>opacity <input id="strength" type="range" min="0" max="1" step="0.05" value="0.55"></label>
<label>grey from <input id="low" type="number" step="any"> to
<input id="high" type="number" step="any"></label>
</div>
<div id="stage"><canvas id="canvas"></canvas></div><div id="place"></div>
<div class="legend" id="legend"></div><p class="faint" id="note"></p>
<noscript><p class="bad">The viewer needs JavaScript; the tables and pictures do not.</p></noscript>
"""


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[Any]],
    total: Sequence[Any] | None = None,
    text_columns: Sequence[int] = (0,),
) -> str:
    """A table that is sorted by a click on its header.

    Args:
      rows: cells that are text or numbers (None: empty), or ready-made `Cell`s. total: a last line
        that is not sorted.
      text_columns: left-aligned columns.
    """
    side = ["text" if k in text_columns else "" for k in range(len(heads))]
    head = "".join(
        f'<th class="sortable {side[k]}">{text(name)}</th>' for k, name in enumerate(heads)
    )
    body = "".join(
        f"<tr>{''.join(_cell(cell, side[k]) for k, cell in enumerate(row))}</tr>" for row in rows
    )
    last = "".join(_cell(cell, side[k]) for k, cell in enumerate(total or ()))
    foot = f'<tfoot><tr class="total">{last}</tr></tfoot>' if total else ""
    inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}"
    return f'<div class="scroll"><table>{inside}</table></div>'


class Cell:
    """A cell with HTML of its own and a value to sort by."""

    def __init__(self, content: str, value: Any = None):
        self.content, self.value = content, value


def number(value: float | None, digits: int = 4) -> str:
    """Significant digits, or a dash."""
    return "-" if value is None else f"{value:.{digits}g}"


def opener(key: str, label: str) -> str:
    """A name that opens its case in the viewer, if the viewer has it."""
    return f'<button class="link" data-case="{text(key)}">{text(label)}</button>'


def picture(png: bytes, caption: str) -> str:
    """An inline PNG."""
    encoded = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img alt="{text(caption)}" '
        f'src="data:image/png;base64,{encoded}"><figcaption>{text(caption)}</figcaption></figure>'
    )


def failures(records: Sequence[Mapping]) -> str:
    """A list of failed cases with the reason of each."""
    from medjax.errors import sentence

    return (
        "<ul>"
        + "".join(
            f'<li><b>{text(str(r["case"]))}</b> <span class="bad">{text(sentence(r))}</span></li>'
            for r in records
        )
        + "</ul>"
    )


def _cell(cell: Any, side: str) -> str:
    if isinstance(cell, Cell):
        content, value = cell.content, cell.value
    else:
        content = number(cell) if isinstance(cell, float) or cell is None else text(str(cell))
        value = cell
    sortable = "" if value is None else f' data-value="{text(str(value))}"'
    if cell is None:
        sortable = ' data-value=""'
    return f'<td class="{side}"{sortable}>{content}</td>'
