"""The temperatures of a run's classes, as prediction reads them from calibration.json.

In: models and the rule for conflicts. Out: the arguments of a `Segmenter`. Written by
`runs.calibration.measure`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medjax.errors import UsageError
from medjax.infer import owned
from medjax.infer.conflicts import CALIBRATED

FILE, KIND = "calibration.json", "calibration"


def rule(models: Sequence[Any], word: str, weights: str) -> dict[str, Any]:
    """The arguments `conflicts` and `temperatures` of a `Segmenter`.

    Args:
      models: the `Trained` members of a predictor. word: one of `infer.conflicts.RULES`. weights:
        hash of the parameters in use; empty if unknown.

    Raises: `UsageError` for calibrated conflicts of several models, of an archive, of a run without
      calibration.json, or with one that was chosen for other parameters.
    """
    if word != CALIBRATED:
        return {"conflicts": word}
    one = models[0]
    if one.current is not None:  # of a training: what it scores are the classes' own channels
        return {"conflicts": word}
    if len(models) > 1:
        raise UsageError(
            "calibrated conflicts are chosen for one model",
            found=f"{len(models)} models",
            fix="predict with --conflicts argmax",
        )
    return {"conflicts": word, "temperatures": read(one.path, weights)}


def read(run: Path, weights: str = "") -> dict[str, float]:
    """Class -> temperature, from calibration.json of a run folder.

    Raises: see `rule`.
    """
    found = owned.document(run / FILE, KIND) if run.is_dir() else None
    fix = f"run `medjax calibrate {run}`, or predict with --conflicts argmax"
    if found is None:
        raise UsageError(
            f"calibrated conflicts need a {FILE}",
            path=run,
            found="an archive, which holds none" if run.is_file() else "none",
            fix=fix if run.is_dir() else "predict with its run folder, or with --conflicts argmax",
        )
    if weights and found.get("weights") and found["weights"] != weights:
        raise UsageError(f"{FILE} was chosen for other parameters", path=run, fix=fix)
    given = found.get("temperatures")
    if not isinstance(given, dict) or not all(
        type(t) in (int, float) and t > 0 for t in given.values()
    ):
        raise UsageError(f"unusable {FILE}", path=run, expected="positive temperatures", fix=fix)
    return {str(name): float(t) for name, t in given.items()}
