"""Results as HTML for notebooks: small tables and pictures, every text escaped."""

import base64
import html
from collections.abc import Mapping
from pathlib import Path

from medjax.errors import shown


def table(title: str, rows: Mapping[str, object]) -> str:
    """A title and a row per name."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{text(name)}</th>"
        f"<td style='text-align:left'>{text(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<b>{text(title)}</b><table>{cells}</table>"


def plain(lines: str) -> str:
    """Aligned text."""
    return f"<pre>{html.escape(lines)}</pre>"


def picture(path: Path, width: int = 700) -> str:
    """A PNG file inside the page; nothing if it does not exist."""
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"<img width='{width}' src='data:image/png;base64,{data}'>"


def text(value: object) -> str:
    """Any value as text of a page."""
    return html.escape(shown(value))
