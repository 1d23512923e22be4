"""The log of a run: metrics.jsonl, system.jsonl (speed), TensorBoard, progress line, progress.png.

In: device scalars of each step and counts of each validation. Out: files in the run folder and
text. metrics.jsonl holds nothing that depends on the clock, and a resumed run truncates it to its
checkpoint, so its lines equal those of a run that was never stopped. Device numbers are read one
step late, so that reading never waits for the step that was just started. Only the first process
writes.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from medjax import files, lines
from medjax.errors import TrainError, WriteError
from medjax.train import curves
from medjax.train.console import Console
from medjax.train.progress import Progress
from medjax.train.trackers import Trackers

SMOOTH = 0.95  # of the loss on the progress line
LEAST_STEPS, LEAST_S = 10, 60.0  # after these the speed of the run is known
MUST_BE_FINITE = ("loss", "grad_norm")


class Compiles:
    """Counts compilations by function name from jax' monitoring; `close` stops listening."""

    def __init__(self):
        self.by_name: dict[str, int] = {}
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, _: float, **details: Any) -> None:
        if event.endswith("backend_compile_duration"):
            name = str(details.get("fun_name", ""))
            self.by_name[name] = self.by_name.get(name, 0) + 1

    @property
    def total(self) -> int:
        """Compilations since the start."""
        return sum(self.by_name.values())

    def close(self) -> None:
        """Stops listening."""
        jax.monitoring.unregister_event_duration_listener(self._heard)


class Log:
    """The log of one run from step `start` on; a context manager.

    Args:
      workdir: run folder.
      progress: running numbers, fresh or restored.
      steps: length of the run; start: completed steps so far.
      log_every: steps per line of the record (means since the line before; the learning rate is the
        last).
      print_seconds: pause between plain lines; 0 is silent. A terminal gets a live line instead.
      tensorboard, picture: also write TensorBoard scalars; also draw progress.png.
      trackers: get what this run has recorded and will record, and the picture.
    """

    def __init__(
        self,
        workdir: Path,
        progress: Progress,
        *,
        steps: int,
        start: int,
        log_every: int,
        print_seconds: float = 30.0,
        tensorboard: bool = False,
        picture: bool = True,
        trackers: Trackers | None = None,
    ):
        self.workdir, self.progress, self.steps, self.start, self.log_every = (
            workdir,
            progress,
            steps,
            start,
            log_every,
        )
        self.primary = jax.process_index() == 0
        self.picture, self.tensorboard = picture and self.primary, None
        self.console = Console(steps, start, print_seconds if self.primary else 0.0)
        self.pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self.waited, self.rate, self.drawn, self.loss = 0.0, 0.0, 0.0, math.nan
        self.mark = (time.monotonic(), start)
        self.begun: tuple[float, int] | None = (
            None  # when the first step, with its compilation, ended
        )
        self.compiles = Compiles()
        self.trackers = trackers or Trackers()
        if self.primary:
            truncate(workdir / "metrics.jsonl", start)
            self.trackers.catch_up(read(workdir / "metrics.jsonl"))
            self.files = {
                name: _opened(workdir / f"{name}.jsonl") for name in ("metrics", "system")
            }
            if tensorboard:
                from tensorboardX import SummaryWriter

                self.tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *failure: Any) -> None:
        self.console.close()
        self.compiles.close()
        if self.primary:
            for file in self.files.values():
                with contextlib.suppress(OSError):  # reported when the line was written
                    file.close()
            if self.tensorboard:
                with contextlib.suppress(OSError):
                    self.tensorboard.close()
            if self.picture and (failure[0] is None or issubclass(failure[0], Exception)):
                with (
                    contextlib.suppress(Exception) if failure[0] else contextlib.nullcontext()
                ):  # the first failure is the one to report
                    self._draw()
                self.trackers.picture(self.workdir / "progress.png")

    def submit(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Takes the device scalars of a step that may still be running."""
        self.pending = (step, scalars)

    def settle(self) -> int:
        """Reads the submitted step, if any, and returns its `request`.

        Raises: `TrainError` naming the step if its loss or gradient norm is not finite.
        """
        if self.pending is None:
            return 0
        (step, scalars), self.pending = self.pending, None
        values = {name: float(value) for name, value in jax.device_get(dict(scalars)).items()}
        request, rate = int(values.pop("request", 0)), values.pop("lr", None)
        for name in MUST_BE_FINITE:
            if not math.isfinite(values.get(name, 0.0)):
                raise TrainError(
                    f"{name} is {values[name]} at step {step}",
                    path=self.workdir,
                    fix="lower the learning rate, clip the gradients or compute in float32, and "
                    "check the data (medjax verify)",
                )
        if "loss" in values:  # smoothed: patches differ, a single step shows nothing
            before = self.loss if math.isfinite(self.loss) else values["loss"]
            self.loss = SMOOTH * before + (1 - SMOOTH) * values["loss"]
        self.progress.add(values)
        if step % self.log_every == 0 or step == self.steps:
            self._record(step, self.progress.take() | ({} if rate is None else {"lr": rate}))
            self._speed(step)
        if self.begun is None:
            self.begun = self.mark = (time.monotonic(), step)
            self.waited = 0.0
        texts = [self.progress.text(), self.progress.text(short=True)]
        self.console.show(
            step, self.loss, texts, self.rate, self._left(step), self.progress.worst()
        )
        return request

    def _left(self, step: int) -> float | None:
        """Seconds until the last step at the speed so far; None until that speed is known."""
        then, first = self.begun or (time.monotonic(), step)
        elapsed = time.monotonic() - then
        if step - first < LEAST_STEPS and (elapsed < LEAST_S or step == first):
            return None
        return (self.steps - step) * elapsed / (step - first)

    def busy(self, what: str) -> contextlib.AbstractContextManager:
        """Prints that something takes a while, and how long it took (see `lines.busy`)."""
        return lines.busy(what, self.console.note)

    def validated(self, step: int, sums: Mapping[str, np.ndarray]) -> bool:
        """Records one validation; True if it is the best so far. See `Progress.judge`."""
        record, improved = self.progress.judge(step, sums)
        self._record(step, record)
        if self.picture and time.monotonic() - self.drawn > 60:
            self._draw()
            self.drawn = time.monotonic()
        return improved

    def measured(self, step: int, dice: Mapping[str, float]) -> None:
        """Records the Dice of whole held-out volumes: class -> mean over its cases."""
        mean = math.fsum(dice.values()) / len(dice) if dice else None
        self.progress.measured, self.progress.volumes = step, mean
        record = {f"volume_dice/{name}": value for name, value in dice.items()}
        self._record(step, {"volume_dice": mean} | record)

    def _draw(self) -> None:
        """Draws progress.png; a full disk does not end the run."""
        try:
            draw(self.workdir)
        except WriteError as error:
            print(f"medjax: {error}", file=sys.stderr, flush=True)

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        try:
            self.files[name].write(json.dumps(row) + "\n")
        except OSError as error:
            raise files.refused(self.workdir / f"{name}.jsonl", error, error=TrainError) from error

    def _record(self, step: int, values: Mapping[str, float | None]) -> None:
        if self.primary:
            self._write("metrics", {"step": step, **values})
            self.trackers.scalars(step, values)
        for name, value in values.items() if self.tensorboard else ():
            if value is not None:
                self.tensorboard.add_scalar(name, value, step)

    def _speed(self, step: int) -> None:
        """One line of system.jsonl.

        steps/s, share of the time spent waiting for data, compilations, memory, time left.
        """
        now, (then, last) = time.monotonic(), self.mark
        if self.begun is None:
            self.rate = 0.0  # the first step of this process: mostly compilation
        else:
            self.rate = (step - last) / max(now - then, 1e-9)
        memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        line = {
            "step": step,
            "time": time.time(),
            "steps_per_s": self.rate,
            "data_wait": self.waited / max(now - then, 1e-9),
            "compiles": self.compiles.total,
            "eta_s": self._left(step),
            "peak_bytes": memory,
        }
        self.console.wait = line["data_wait"]
        self.mark, self.waited = (now, step), 0.0
        if self.primary:
            self._write("system", line)


def _opened(path: Path) -> TextIO:
    try:
        return open(path, "a", buffering=1, encoding="utf-8")
    except OSError as error:
        raise files.refused(path, error, error=TrainError) from error


def truncate(path: Path, step: int) -> None:
    """Drops the lines after `step`, and a half-written last line, from a record.

    Does nothing without a file.
    """
    if path.is_file():
        kept = [line for line in _lines(path) if (row := _parse(line)) and row["step"] <= step]
        files.write_text(path, "".join(line + "\n" for line in kept), error=TrainError)


def read(path: Path) -> list[dict]:
    """The rows of a record."""
    return [row for line in _lines(path) if (row := _parse(line))] if path.is_file() else []


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _parse(line: str) -> dict | None:
    """One row; None for a damaged line, as a kill or a bad disk leaves it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def draw(workdir: Path) -> None:
    """Draws progress.png of a run folder from its metrics.jsonl; see `medjax.train.curves`."""
    curves.draw(read(workdir / "metrics.jsonl"), workdir / "progress.png")
