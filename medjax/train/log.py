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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from medjax import files, lines
from medjax.colours import of_classes, shade
from medjax.errors import TrainError, WriteError
from medjax.train.console import Console

OLD, NEW = 0.9, 0.1  # moving average of the pseudo Dice, as nnU-Net's
SMOOTH = 0.95  # of the loss on the progress line
LEAST_STEPS, LEAST_S = 10, 60.0  # after these the speed of the run is known
MUST_BE_FINITE = ("loss", "grad_norm")


class Progress:
    """The host's running numbers, saved with every checkpoint so that a resumed run is exact.

    Attributes:
      sums, count: scalars summed since the last line of the record.
      ema: class name -> moving average of its pseudo Dice, for classes seen so far.
      now: class name -> its pseudo Dice in the last validation.
      volumes: mean Dice of whole held-out volumes when they were last predicted; None: never.
        measured: step at which they were.
      error: mean error of the last validation, for tasks that measure one.
      best: the highest rating of a validation so far (the mean of `ema`, or the negative error).
        waited: validations since.
      validated: step of the last complete validation.
    """

    def __init__(
        self,
        names: Sequence[str],
        stored: Mapping[str, Any] | None = None,
        corpora: Sequence[str] = (),
    ):
        self.names, self.corpora = list(names), list(corpora)
        stored = stored or {"sums": {}, "count": 0, "ema": {}, "best": None, "validated": 0}
        self.sums, self.count, self.ema, self.error = (
            dict(stored["sums"]),
            stored["count"],
            dict(stored["ema"]),
            stored.get("error"),
        )
        self.now, self.volumes, self.measured = (
            dict(stored.get("now", {})),
            stored.get("volumes"),
            stored.get("measured", 0),
        )
        self.best, self.validated, self.waited = (
            stored["best"],
            stored["validated"],
            stored.get("waited", 0),
        )

    def to_json(self) -> dict:
        """JSON-ready fields for the second argument of the constructor."""
        return {
            "sums": dict(self.sums),
            "count": self.count,
            "ema": dict(self.ema),
            "now": dict(self.now),
            "volumes": self.volumes,
            "measured": self.measured,
            "error": self.error,
            "best": self.best,
            "validated": self.validated,
            "waited": self.waited,
        }

    def add(self, scalars: Mapping[str, float]) -> None:
        """Adds the scalars of one step."""
        for name, value in scalars.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means since the last call; resets the sums."""
        means = {name: value / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def judge(
        self, step: int, sums: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, float | None], bool]:
        """Records one validation.

        Args:
          step: its step.
          sums: over all validation batches, one entry per name: counts `tp`, `fp`, `fn`, or `error`
            and the `weight` it is a sum over.

        Returns: the record, and whether its rating is the highest so far.
        """
        self.validated = step
        record, rating = self._errors(sums) if "error" in sums else self._dice(sums)
        if rating is None:
            return record, False
        improved = self.best is None or rating > self.best
        self.best, self.waited = (rating, 0) if improved else (self.best, self.waited + 1)
        return record, improved

    def _dice(
        self, counts: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, float | None], float | None]:
        """Pseudo Dice per class, and the rating: the mean of the moving averages.

        The pseudo Dice of a class is 2 TP / (2 TP + FP + FN); classes without any such voxel are
        left out of the means and keep their moving average.
        """
        tp, union = counts["tp"], 2 * counts["tp"] + counts["fp"] + counts["fn"]
        now = {
            name: 2 * float(t) / float(u)
            for name, t, u in zip(self.names, tp, union, strict=True)
            if u > 0
        }
        self.now = now
        for name, value in now.items():
            self.ema[name] = OLD * self.ema[name] + NEW * value if name in self.ema else value
        record = {f"dice/{name}": value for name, value in now.items()} | {
            f"dice_ema/{name}": value for name, value in self.ema.items()
        }
        if not self.ema:
            return record, None
        mean = math.fsum(self.ema.values()) / len(self.ema)
        record |= self._of_corpora(counts)
        return {
            "dice": math.fsum(now.values()) / len(now) if now else None,
            "dice_ema": mean,
        } | record, mean

    def _of_corpora(self, counts: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Corpus -> mean pseudo Dice over the classes that occur in its patches."""
        found = {}
        for name in dict.fromkeys(self.corpora) if "corpus_tp" in counts else ():
            rows = [k for k, other in enumerate(self.corpora) if other == name]  # views of a store
            tp, fp, fn = (counts[f"corpus_{kind}"][rows].sum(0) for kind in ("tp", "fp", "fn"))
            union = 2 * tp + fp + fn
            if (union > 0).any():
                found[f"corpus_dice/{name}"] = float(
                    (2 * tp[union > 0] / union[union > 0].astype(float)).mean()
                )
        return found

    def _errors(
        self, sums: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, float | None], float | None]:
        """Mean error by name, and the mean over the names that have any; lower is better.

        A non-finite value is not a rating.
        """
        means = {
            name: float(e) / float(w)
            for name, e, w in zip(self.names, sums["error"], sums["weight"], strict=True)
            if w > 0
        }
        mean = math.fsum(means.values()) / len(means) if means else math.nan
        self.error = mean if math.isfinite(mean) else None
        record = {
            f"validation_loss/{name}": value if math.isfinite(value) else None
            for name, value in means.items()
        }
        return {"validation_loss": self.error} | record, None if self.error is None else -self.error

    def text(self) -> str:
        """The results of the last validation and of the last volumes, for the progress line; empty
        before the first.

        With several classes the least one is named.
        """
        if self.error is not None:
            return f"validation loss {self.error:.4f}"
        found = []
        if shown := self.now or self.ema:
            name, least = min(shown.items(), key=lambda item: item[1])
            found.append(f"Dice in patches {math.fsum(shown.values()) / len(shown):.3f}")
            found[0] += f" (least {name} {least:.3f})" if len(shown) > 1 else ""
        if self.volumes is not None:
            found.append(f"in volumes {self.volumes:.3f}")
        return ", ".join(found)


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
        if self.primary:
            truncate(workdir / "metrics.jsonl", start)
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
        self.console.show(step, self.loss, self.progress.text(), self.rate, self._left(step))
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
    """Draws progress.png from metrics.jsonl.

    Loss (of validation in black), moving average of the pseudo Dice per class and the mean Dice of
    whole volumes (dots), pseudo Dice of every corpus if there are several, learning rate.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read(workdir / "metrics.jsonl")
    titles = ["loss", "pseudo Dice, moving average", "learning rate"]
    corpora = sorted({key for row in rows for key in row if key.startswith("corpus_dice/")})
    if corpora:
        titles.insert(2, "pseudo Dice by corpus")
    figure = Figure(figsize=(9, 10 if not corpora else 13), layout="constrained")
    panels = figure.subplots(len(titles), 1, sharex=True)

    def line(panel: Any, key: str, **style: Any) -> None:
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            panel.plot(*zip(*points, strict=True), **style)

    line(panels[0], "loss", color="tab:red")
    line(panels[0], "validation_loss", color="black", marker=".")
    classes = sorted({key for row in rows for key in row if key.startswith("dice_ema/")})
    colours = of_classes(key.removeprefix("dice_ema/") for key in classes)
    for name, colour in colours.items():
        line(panels[1], f"dice_ema/{name}", label=name, linewidth=1, color=colour)
    line(panels[1], "dice_ema", label="mean", color="black", linewidth=2)
    volumes = dict(color="black", marker="o", linestyle="none")
    line(panels[1], "volume_dice", label="mean of whole volumes", **volumes)
    for k, key in enumerate(corpora):
        name = key.removeprefix("corpus_dice/")
        line(panels[2], key, label=name, color=shade(k), marker=".")
    if corpora:
        panels[2].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="x-small")
    line(panels[-1], "lr", color="tab:blue")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_ylabel(title)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("step")
    if classes:
        panels[1].legend(
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            fontsize="x-small",
            ncols=1 + len(classes) // 24,
        )
    with files.replacing_path(workdir / "progress.png") as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
