"""MLflow as a tracker (extra `mlflow`): see `medjax.train.trackers`.

The experiment is $MLFLOW_EXPERIMENT_NAME, by default medjax; the server is $MLFLOW_TRACKING_URI, by
default MLflow's own. Limits of a server: a parameter has a name of 250 and a value of 500
characters (6000 in newer versions), a call 100 parameters or 1000 metrics, and names consist of
letters, digits, `_ - . /` and spaces. Longer values are cut; the artifact config.json is complete.
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medjax.train import trackers

NAME, VALUE, PARAMS, METRICS = 250, 500, 100, 1000
STATUS = {trackers.FINISHED: "FINISHED", trackers.STOPPED: "KILLED", trackers.FAILED: "FAILED"}


class Mlflow:
    """A run of MLflow, the active one of this process."""

    def __init__(self):
        self.mlflow = trackers.imported("mlflow")

    def start(self, run: trackers.Described) -> str:
        """See `trackers.Tracker`. MLflow never changes a parameter: those of a run that is
        continued stay as they were.
        """
        if run.id:
            return str(self.mlflow.start_run(run_id=run.id).info.run_id)
        if not os.environ.get("MLFLOW_EXPERIMENT_ID"):
            self.mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or "medjax")
        found = str(self.mlflow.start_run(run_name=run.name).info.run_id)
        try:
            for part in _parts(params(run.config), PARAMS):
                self.mlflow.log_params(part)
            if (path := run.folder / "config.json").is_file():
                self.mlflow.log_artifact(str(path))
        except BaseException:  # else it would stay the active run of this process
            self.mlflow.end_run("FAILED")
            raise
        return found

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `trackers.Tracker`."""
        for part in _parts({usable(name): value for name, value in values.items()}, METRICS):
            self.mlflow.log_metrics(part, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """See `trackers.Tracker`; a later picture of the same name replaces this one."""
        self.mlflow.log_artifact(str(path))

    def finish(self, status: str) -> None:
        """See `trackers.Tracker`."""
        self.mlflow.end_run(STATUS[status])


def params(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted field -> value as text, as MLflow accepts both.

    >>> params({"optim": {"lr": 0.01}, "note": "x" * 501})["note"][-4:]
    'x...'
    """
    found = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= params(value, f"{prefix}{key}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        found[usable(f"{prefix}{key}")] = text if len(text) <= VALUE else text[: VALUE - 3] + "..."
    return found


def usable(name: str) -> str:
    """A name that MLflow accepts; one that had to be changed ends with digits of its own, so that
    two names stay two.

    >>> usable("dice/liver")
    'dice/liver'
    """
    parts = re.sub(r"[^/\w.\- ]", "_", name).split("/")
    found = "/".join("_" if part in ("", ".", "..") else part for part in parts)
    if found == name and len(name) <= NAME:
        return name
    digits = hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()[:6]
    return f"{found[: NAME - 7]}_{digits}"


def _parts(values: Mapping[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """The values in dictionaries of at most `size`."""
    pairs = iter(values.items())
    while part := dict(itertools.islice(pairs, size)):
        yield part
