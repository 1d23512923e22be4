"""The figures of an evaluation: plots, pictures of the worst cases, the page.

In: a `Result` whose numbers are written. Out: plots/, montages/ and report.html in its folder.
"""

import os
from pathlib import Path

from medjax import __version__
from medjax.metrics import written
from medjax.metrics.compare import Comparison
from medjax.metrics.result import Result
from medjax.report import evaluation, figures, prediction


def present(
    result: Result,
    folder: str | os.PathLike,
    *,
    comparison: Comparison | None = None,
    montages: int = 6,
    viewer_cases: int = prediction.CASES,
    overwrite: bool = False,
) -> Path:
    """Draws into `folder`; a case that cannot be drawn is listed in the page.

    Args:
      montages: number of pictures of the worst cases. viewer_cases: scans inside the page.
      overwrite: also replace files that medjax did not write.

    Returns: the path of report.html. Raises: `UsageError` if a file with one of the names was not
      written by medjax.
    """
    folder, places = Path(folder), written.plots(result.classes)
    names = written.planned(
        result.classes, [(corpus, pair.case) for corpus, pair in result.pairs] if montages else []
    )
    written.check(
        folder, [name for name in names if name not in written.NUMBERS], overwrite=overwrite
    )
    for name, svg in evaluation.figures(result).items():
        prediction.write(
            folder / places[name],
            f"<!-- medjax {__version__} -->\n" + svg.replace("currentColor", "#1b1f24"),
        )
    drawn, _ = figures.montages(result, folder, montages)
    return prediction.evaluation_report(
        result,
        folder,
        comparison=comparison,
        pictures_of=drawn,
        cases=viewer_cases,
        overwrite=overwrite,
    )
