"""The progress of a training on the screen.

In: numbers of a step. Out: lines on stderr; on a terminal one live line.
"""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from medjax import lines

COLUMNS, GAP = 100, "  "  # of a line; between its parts
NAME, SHORT = 40, 8  # characters of a class name, and those that are always shown


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

    def show(
        self,
        step: int,
        loss: float,
        score: str | Sequence[str],
        rate: float,
        left_s: float | None,
        worst: tuple[str, float] | None = None,
    ) -> None:
        """Prints the progress of the run, in at most 100 columns if names permit.

        Args:
          score: the last results; of several wordings, from long to short, the first that fits.
          rate: steps per second, 0 if not measured yet. left_s: seconds until the end, if known.
          worst: the class with the highest loss, and that loss.
        """
        due = time.monotonic() - self.last > self.seconds or step == self.steps
        if not self.live and not (self.seconds and due):
            return
        ends = f"step {step}/{self.steps}", "" if left_s is None else f"{_clock(left_s)} left"
        room = COLUMNS - sum(len(end) + len(GAP) for end in ends if end)
        scores = [score] if isinstance(score, str) else list(score)
        speed = (f"{rate:.2f} steps/s", f"waiting for data {self.wait:.0%}") if rate else ()
        text = _fitted(_wordings(loss, scores, speed, worst), room)
        if self.live:
            self.live.update(self.task, completed=step, description=text)
        else:
            line = GAP.join(part for part in (ends[0], text, ends[1]) if part)
            print(line, file=sys.stderr, flush=True)
            self.last = time.monotonic()

    def close(self) -> None:
        """Ends the live line on a terminal."""
        if self.live:
            self.live.stop()


def _wordings(
    loss: float,
    scores: Sequence[str],
    speed: Sequence[str],
    worst: tuple[str, float] | None,
) -> Iterator[str]:
    """The middle of a line, from long to short: first the speed goes, then words of the score, then
    the end of a class name.
    """

    def text(score: str, parts: int, size: int) -> str:
        first = f"loss {loss:.4f}"
        if worst:
            name = worst[0] if len(worst[0]) <= size else worst[0][: size - 1].rstrip() + "…"
            first += f" (highest {name} {worst[1]:.3f})"
        return GAP.join(part for part in (first, score, *speed[:parts]) if part)

    for parts in range(len(speed), 0, -1):
        yield text(scores[0], parts, NAME)
    for score in scores:
        yield text(score, 0, NAME)
    for size in range(NAME, SHORT - 1, -1) if worst else ():
        yield text(scores[-1], 0, size)


def _fitted(wordings: Iterable[str], columns: int) -> str:
    """The first wording that is not longer; the last one if all are."""
    found = ""
    for found in wordings:
        if len(found) <= columns:
            break
    return found


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds: 26:03:05.

    >>> _clock(93785.2)
    '26:03:05'
    """
    whole = round(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"
