"""Everything an evaluation shows beside its numbers: plots, pictures of the worst cases, the page.

In: a `Result` whose numbers are written. Out: plots/, montages/ and report.html in its folder.
"""

import os
import re
from pathlib import Path

from medjax.metrics import html, pictures, sections
from medjax.metrics.compare import Comparison
from medjax.metrics.report import Result


def present(
    result: Result, folder: str | os.PathLike, *, comparison: Comparison | None = None, montages: int = 6, viewer_cases: int = html.CASES
) -> Path:
    """Draws into `folder`; a case that cannot be drawn is named in the page and costs nothing else.

    Args:
      montages: pictures of so many of the worst cases. viewer_cases: scans inside the page.

    Returns: the path of report.html.
    """
    folder = Path(folder)
    for name, svg in sections.figures(result).items():
        file = re.sub(r"[^\w.+-]+", "_", name)
        html.write(folder / "plots" / f"{file}.svg", svg.replace("currentColor", "#1b1f24"))
    drawn, _ = pictures.montages(result, folder / "montages", montages)
    return html.evaluation_report(result, folder, comparison=comparison, pictures_of=drawn, cases=viewer_cases)
