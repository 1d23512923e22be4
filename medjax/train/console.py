"""The progress of a training on the screen.

In: numbers of a step. Out: lines on stderr; on a terminal one live line.
"""

import math
import sys
import time

from medjax import lines


class Console:
    """A live line on a terminal, else a plain line every `seconds` (0: silent); on stderr."""

    def __init__(self, steps: int, start: int, seconds: float):
        self.steps, self.seconds, self.last, self.wait, self.live = (
            steps,
            seconds,
            -math.inf,
            0.0,
            None,
        )
        if seconds and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console as Terminal

            columns = (
                "{task.completed}/{task.total}",
                progress.BarColumn(None),
                "{task.description}",
                progress.TimeRemainingColumn(),
            )
            self.live = progress.Progress(
                *columns, console=Terminal(stderr=True), refresh_per_second=4
            )
            self.task = self.live.add_task("", total=steps, completed=start)
            self.live.start()

    def note(self, text: str) -> None:
        """Prints a line of its own, above the live one on a terminal."""
        if self.live:
            self.live.console.print(text, markup=False, highlight=False)
        elif self.seconds:
            lines.say(text)

    def show(self, step: int, loss: float, score: str, rate: float, left_s: float | None) -> None:
        """Prints the progress of the run.

        Args:
          rate: steps per second, 0 if not measured yet. left_s: seconds until the end, if known.
        """
        parts = [f"loss {loss:.4f}", score]
        if rate:
            parts += [f"{rate:.2f} steps/s", f"waiting for data {self.wait:.0%}"]
        text = "  ".join(part for part in parts if part)
        if self.live:
            self.live.update(self.task, completed=step, description=text)
        elif self.seconds and (time.monotonic() - self.last > self.seconds or step == self.steps):
            left = "" if left_s is None else f"  {_clock(left_s)} left"
            print(f"step {step}/{self.steps}  {text}{left}", file=sys.stderr, flush=True)
            self.last = time.monotonic()

    def close(self) -> None:
        """Ends the live line on a terminal."""
        if self.live:
            self.live.stop()


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds: 26:03:05.

    >>> _clock(93785.2)
    '26:03:05'
    """
    whole = round(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"
