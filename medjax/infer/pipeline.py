"""Three stages side by side: reading, computing (one case at a time), writing.

In: cases and a function per stage. Out: the cases in order, each with the error that ended it or
None.
"""

import collections
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
    ahead: int,
    stop: Stop | None = None,
) -> Iterator[tuple[Case, Exception | None]]:
    """Each case with the error that ended it, or None, in order.

    Args:
      load: case -> what `work` is given, in threads.
      work: (case, that) -> what `export` is given, in this thread.
      export: (case, that), in threads.
      ahead: cases that are read, and cases that are written, while one is computed; 0: the stages
        of neighbouring cases run one after another.
      stop: set when this generator is left early; cases that wait are not begun, and the generator
        ends when those under way have noticed.
    """
    reader, writer = (
        ThreadPoolExecutor(max(ahead, 1), thread_name_prefix=f"medjax-{name}")
        for name in ("load", "write")
    )
    waiting = collections.deque(cases)
    upcoming: collections.deque[Future] = collections.deque()
    leaving: collections.deque[tuple[Case, Future]] = collections.deque()

    def outcome(case: Case, future: Future) -> tuple[Case, Exception | None]:
        try:
            future.result()
        except Exception as error:
            return case, error
        return case, None

    try:
        for case in cases:
            if not upcoming:
                upcoming.append(reader.submit(load, waiting.popleft()))
            given: Any = None
            error: Exception | None = None
            try:
                given = upcoming.popleft().result()
            except Exception as reason:
                error = reason
            while waiting and len(upcoming) < ahead:
                upcoming.append(reader.submit(load, waiting.popleft()))
            try:
                given = work(case, given) if error is None else None
            except Exception as reason:
                given, error = None, reason
            while len(leaving) >= (max(ahead, 1) if error is None else 1):
                yield outcome(*leaving.popleft())
            if error is not None:
                yield case, error
                continue
            leaving.append((case, writer.submit(export, case, given)))
            del given
            if not ahead:
                yield outcome(*leaving.popleft())
        while leaving:
            yield outcome(*leaving.popleft())
    except BaseException:
        if stop is not None:
            stop.set()
        raise
    finally:
        for pool in (reader, writer):
            pool.shutdown(wait=True, cancel_futures=True)
