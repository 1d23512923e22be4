"""Names of classes and cases as parts of file names, members of archives and cells of spreadsheets.

In: names as users give them, with any character. Out: text that is safe in that place and distinct
where the names are.
"""

import hashlib
import os
import re
from collections.abc import Sequence

STEM_BYTES = 200  # leaves room for endings in the 255 bytes of a file name
_FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "'",
)  # what spreadsheets run, and the sign that stops them


def file_stems(names: Sequence[str]) -> list[str]:
    """Distinct file stems (also where upper and lower case are one) for names that may hold
    slashes, blanks or too many letters.

    >>> file_stems(["../liver", "Liver"])
    ['liver', 'Liver_1']
    """
    found: list[str] = []
    taken: set[str] = set()
    for position, name in enumerate(names):
        plain = _short(re.sub(r"[^\w.+-]+", "_", name).strip("._") or "class")
        stem, number = plain, position
        while stem.casefold() in taken:
            stem, number = f"{plain}_{number}", number + 1
        taken.add(stem.casefold())
        found.append(stem)
    return found


def spreadsheet(name: str) -> str:
    """A cell that no spreadsheet takes for a formula: a name that begins like one gets an
    apostrophe in front.

    >>> spreadsheet("=2+5")
    "'=2+5"
    """
    return f"'{name}" if name.startswith(_FORMULA) else name


def from_spreadsheet(cell: str) -> str:
    """Inverse of `spreadsheet`."""
    return cell[1:] if cell.startswith("'") else cell


def _short(stem: str) -> str:
    content = os.fsencode(stem)
    if len(content) <= STEM_BYTES:
        return stem
    digest = hashlib.sha256(content).hexdigest()[:12]
    return content[: STEM_BYTES - 13].decode("utf-8", "ignore") + f"_{digest}"
