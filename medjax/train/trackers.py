"""Experiment trackers: the numbers of metrics.jsonl on Weights & Biases, MLflow or elsewhere.

In: the rows of the record, and progress.png at the end. Out: calls of the chosen trackers. A
package offers one under its name in a config (`config.log`), a function () -> `Tracker`:

    [project.entry-points."medjax.trackers"]
    wandb = "medjax.train.tracker_wandb:Wandb"

trackers.json in the run folder holds the id of each tracker's run and what it has: a resumed
training continues that run, sends what it lacks from metrics.jsonl, and no value twice.
"""

import contextlib
import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from medjax import files, plugins
from medjax.errors import Preempted, UsageError, did_you_mean, shown

NOTES = "trackers.json"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


class Described(NamedTuple):
    """A run as a tracker shows it.

    Attributes:
      name: of the run. folder: the run folder. config: all fields, as plain values.
      id: that the tracker gave to this run before; empty for a new run.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    id: str = ""


@runtime_checkable
class Tracker(Protocol):
    """What a tracker has to offer; only the first process of a training calls it."""

    def start(self, run: Described) -> str:
        """Begins a run, or continues the one with `run.id`. Returns its id."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Finite values of a step; steps never decrease, and one may come several times, with other
        names.
        """

    def picture(self, name: str, path: Path, step: int) -> None:
        """A PNG file as it is at the end of this training."""

    def finish(self, status: str) -> None:
        """Ends the run: "finished", "stopped" (it will be continued) or "failed"."""


def imported(package: str) -> ModuleType:
    """A package that comes with the extra of its name; `UsageError` with the command without it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UsageError(
            f"config.log={package} needs a package that cannot be imported",
            found=shown(str(error)),
            fix=f'pip install "medjax[{package}]", or leave {package} out of config.log',
        ) from error


def chosen(names: str) -> dict[str, Tracker]:
    """Name -> tracker, for the comma-separated names of `config.log`; nothing is started.

    Raises: `UsageError` for a name that no installed package offers, and a package that is missing.
    """
    points, found = plugins.points(plugins.TRACKERS), {}
    for name in filter(None, (word.strip() for word in names.split(","))):
        if name not in points:
            raise UsageError(f"unknown tracker {name!r}", fix=did_you_mean(name, points))
        try:
            found[name] = plugins.load(points[name])()
        except (ImportError, AttributeError) as error:
            raise UsageError(
                f"the tracker {name!r} cannot be loaded",
                found=shown(str(error)),
                fix="install the package that offers it again, or leave it out of config.log",
            ) from error
    return found


class Trackers:
    """The chosen trackers of one training; a context manager that ends their runs.

    A tracker that raises while a network trains is reported once and left out from then on.

    Args:
      chosen: name -> tracker, see `chosen`; none in all processes but the first.
      folder: run folder.
    """

    def __init__(self, chosen: Mapping[str, Tracker] | None = None, folder: Path = Path()):
        self.open, self.folder, self.sent = dict(chosen or {}), folder, False
        self.begun: dict[str, Tracker] = {}
        self.notes: dict[str, dict[str, Any]] = {}

    def start(self, name: str, config: Mapping[str, Any], resumes: bool) -> None:
        """Begins a run with every tracker, or continues those in trackers.json.

        Args:
          name, config: see `Described`. resumes: whether the training has a checkpoint. If not,
            what an earlier attempt sent belongs to another run.

        Raises: `UsageError` for a tracker that does not start. When a training resumes, this is
          only reported.
        """
        path = self.folder / NOTES
        if resumes and self.open and path.is_file():
            held = files.read_json(path, fix=f"delete {NOTES}: the trackers begin new runs")
            self.notes = {k: v for k, v in dict(held).items() if isinstance(v, dict)}
        for one, tracker in list(self.open.items()):
            before = str(self.notes.get(one, {}).get("id", ""))
            try:
                found = tracker.start(Described(name, self.folder, config, before))
            except Exception as error:  # of whatever kind: a login, a network, a server
                if not resumes:
                    raise UsageError(
                        f"the tracker {one!r} does not start",
                        found=_words(error),
                        fix=f"see the documentation of {one}, or leave it out of config.log",
                    ) from error
                self._leave(one, error)
                continue
            self.begun[one] = tracker
            if found != before:
                self.notes[one] = {"id": found, "step": -1, "names": []}
                self._write()

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Sends the values of a row of metrics.jsonl, those that a tracker does not have yet."""
        values = {k: v for k, v in values.items() if v is not None and math.isfinite(v)}
        for one in list(self.open):
            self._call(one, lambda one=one: self._send(one, step, values))

    def catch_up(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Sends what a tracker lacks of the record so far."""
        for row in rows if self.open else ():
            numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
            self.scalars(row["step"], numbers)

    def picture(self, path: Path) -> None:
        """Sends a picture that exists, if this training has sent anything else."""
        for one, tracker in list(self.open.items()) if self.sent and path.is_file() else ():
            step = max(self.notes[one]["step"], 0)
            self._call(one, lambda t=tracker, s=step: t.picture(path.stem, path, s))

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        stopped = isinstance(error, KeyboardInterrupt | Preempted)
        status = FINISHED if kind is None else STOPPED if stopped else FAILED
        for one, tracker in self.begun.items():
            if one in self.open:
                self._call(one, lambda t=tracker: t.finish(status))
            else:  # it failed before, and that was reported
                with contextlib.suppress(Exception):
                    tracker.finish(FAILED if status == FINISHED else status)

    def _send(self, one: str, step: int, values: Mapping[str, float]) -> None:
        note = self.notes[one]
        if step < note["step"]:
            return
        there = set(note["names"]) if step == note["step"] else set()
        new = {name: value for name, value in values.items() if name not in there}
        if not new:
            return
        # noted before it is sent: after a kill between the two, a row is missing rather than double
        self.notes[one] = note | {"step": step, "names": sorted({*there, *new})}
        self._write()
        try:
            self.open[one].scalars(step, new)
        except Exception:
            self.notes[one] = note
            self._write()
            raise
        self.sent = True

    def _call(self, one: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # of whatever kind: a training does not end for it
            self._leave(one, error)

    def _leave(self, one: str, error: Exception) -> None:
        del self.open[one]
        print(
            f"medjax: the tracker {one!r} failed and is left out from here on ({_words(error)}); "
            "metrics.jsonl holds all numbers, and the next start of this run sends what is missing",
            file=sys.stderr,
            flush=True,
        )

    def _write(self) -> None:
        files.write_json(self.folder / NOTES, self.notes)


def _words(error: Exception) -> str:
    """The error in one line."""
    return shown(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
