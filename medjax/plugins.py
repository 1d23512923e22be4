"""What installed packages offer to medjax, found by their entry points.

  medjax.corpora      a function () -> catalogue; see `medjax.runs.catalogues`
  medjax.verbs        a module with `add(verbs)`, under the name of its verb; see `medjax.commands`
  medjax.evaluations  a module with `check` and `evaluate`, under the name of its config field; see
                      `medjax.runs.evaluations`
  medjax.trackers     a function () -> tracker, under its name in `config.log`; see
                      `medjax.train.trackers`

In a checkout, its own pyproject.toml is read as well, so that an editable installation that is
older than an entry point still has it.
"""

import tomllib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from medjax import recipes

VERBS, EVALUATIONS, TRACKERS = "medjax.verbs", "medjax.evaluations", "medjax.trackers"


def points(group: str) -> dict[str, EntryPoint]:
    """Name -> entry point of a group; the checkout's own before those of other packages."""
    found = {point.name: point for point in _own(group)}
    for point in entry_points(group=group):
        found.setdefault(point.name, point)
    return found


def load(point: EntryPoint) -> Any:
    """What an entry point names; those of the shipped `data_pipelines` are found in a wheel too."""
    with recipes.importable():
        return point.load()


@cache
def _own(group: str) -> tuple[EntryPoint, ...]:
    """Those of the checkout that medjax is imported from; none where it is installed otherwise."""
    path = Path(__file__).resolve().parents[1] / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text())["project"]
    except (OSError, ValueError, KeyError):
        return ()
    if project.get("name") != "medjax":
        return ()
    given = project.get("entry-points", {}).get(group, {})
    return tuple(EntryPoint(name, value, group) for name, value in given.items())
