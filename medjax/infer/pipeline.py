"""Three stages side by side, each on one case at a time: reading, computing, writing.

In: cases and a function per stage. Out: the cases in order, each with the error that ended it or
None.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from medjax.corpora.inputs import Case
from medjax.errors import PredictError


class Stop(threading.Event):
    """Set when the work is given up: `check` ends a stage at its next step."""

    def check(self) -> None:
        """`PredictError` once it is set."""
        if self.is_set():
            raise PredictError(
                "given up before it was finished", fix="run the same command again with --continue"
            )


def run(
    cases: Sequence[Case],
    load: Callable,
    work: Callable,
    export: Callable,
    together: bool,
    stop: Stop | None = None,
) -> Iterator[tuple[Case, Exception | None]]:
    """Each case with the error that ended it, or None, in order.

    Args:
      load: case -> what `work` is given, in a thread.
      work: (case, that) -> what `export` is given, in this thread.
      export: (case, that), in a thread.
      together: the stages of neighbouring cases run at the same time.
      stop: set when this generator is left early; cases that wait are not begun, and the generator
        ends when those under way have noticed.
    """
    reader, writer = (
        ThreadPoolExecutor(1, thread_name_prefix=f"medjax-{name}") for name in ("load", "write")
    )
    upcoming: Future | None = None
    leaving: tuple[Case, Future] | None = None

    def outcome(case: Case, future: Future) -> tuple[Case, Exception | None]:
        try:
            future.result()
        except Exception as error:
            return case, error
        return case, None

    try:
        for i, case in enumerate(cases):
            current = upcoming or reader.submit(load, case)
            upcoming = None
            given: Any = None
            error: Exception | None = None
            try:
                given = current.result()
                del current
                if together and i + 1 < len(cases):
                    upcoming = reader.submit(load, cases[i + 1])
                given = work(case, given)
            except Exception as reason:
                given, error = None, reason
                if together and upcoming is None and i + 1 < len(cases):
                    upcoming = reader.submit(load, cases[i + 1])
            if leaving:
                yield outcome(*leaving)
                leaving = None
            if error is not None:
                yield case, error
                continue
            leaving = case, writer.submit(export, case, given)
            del given
            if not together:
                yield outcome(*leaving)
                leaving = None
        if leaving:
            yield outcome(*leaving)
    except BaseException:
        if stop is not None:
            stop.set()
        raise
    finally:
        for pool in (reader, writer):
            pool.shutdown(wait=True, cancel_futures=True)
