"""Further evaluations of held-out cases that installed packages offer.

A package registers a module under the name of a field, which `config.evaluate` then accepts:

    [project.entry-points."medjax.evaluations"]
    resampled = "medjax_verbs.resampled"

If the field is set, `check(value)` is called before the training (it raises `UsageError` for a
value that cannot be used), and after the evaluation `evaluate(scorer, held, store, value)` with the
scorer of the first network, corpus name -> (corpus, cases), the prepared volumes and the value. It
returns what becomes evaluation/<name>.json, with the records of failed cases under "failed", and
the lines to print.
"""

from types import ModuleType
from typing import Any

from medjax import plugins
from medjax.errors import UsageError
from medjax.runs.prompted import evaluation as prompted
from medjax.runs.settings.schema import Evaluate
from medjax.runs.settings.section import fields_of

# fields of `config.evaluate` that the core reads itself
CORE = {"on", "surface", "montages", "groups", "baseline", "difficult_below"}
CORE |= {"during", "during_cases", "prompted", "regions", "alone"}


def chosen(given: Evaluate) -> dict[str, tuple[ModuleType, Any]]:
    """Name -> (module, value) of the evaluations that a config asks for, values checked.

    Raises: `UsageError` for one that no installed package offers, and for unusable values.
    """
    if given.during < 0 or given.during_cases < 1:
        raise UsageError(
            "config.evaluate.during must not be negative, and during_cases must be positive",
            found=(given.during, given.during_cases),
            fix="leave during at 0 to predict no volumes while training",
        )
    if given.prompted.on:
        prompted.check(given.prompted)
    points, found = plugins.points(plugins.EVALUATIONS), {}
    further = {name: getattr(given, name) for name in fields_of(Evaluate) if name not in CORE}
    for name, value in {**further, **given.options}.items():
        if not value:
            continue
        if name not in points:
            raise UsageError(
                f"no installed package offers the evaluation {name!r}",
                found=f"config.evaluate.{name}={value}",
                expected=", ".join(sorted(points)) or "none",
                fix="install medjax again (pip install -e .), or leave the field out",
            )
        module = plugins.load(points[name])
        module.check(value)
        found[name] = module, value
    return found
