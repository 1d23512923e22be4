"""Waits for work that does not return to Python for minutes (a compilation), handling signals.

Python runs signal handlers in the main thread, between two of its instructions. Work in its own
thread leaves the main thread waiting where a handler may raise. The work itself cannot be stopped:
a caller that abandons it ends the process with `leave`.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

NAME = "medjax-uninterruptible"
GRACE = 2.0  # seconds that work may still take when it is no longer wanted


def interruptibly(
    work: Callable[[], Any], unwanted: Callable[[], bool] = lambda: False
) -> tuple[bool, Any]:
    """Runs `work` and returns (True, its result); its exceptions are raised here.

    Args:
      unwanted: called while waiting; if it is true for `GRACE` seconds, the result is (False, None)
        and the work is abandoned.

    Outside the main thread, where no handler runs, the work is simply called.
    """
    if threading.current_thread() is not threading.main_thread():
        return True, work()
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread, patience = threading.Thread(target=run, name=NAME, daemon=True), GRACE
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        patience = patience - 0.1 if unwanted() else GRACE
        if patience <= 0 and thread.is_alive():
            return False, None
    result, error = outcome[0]
    if error is not None:
        raise error
    return True, result


def unfinished() -> bool:
    """Whether abandoned work is still running."""
    return any(thread.name == NAME and thread.is_alive() for thread in threading.enumerate())


def leave(code: int) -> None:
    """Ends the process at once although such work still runs.

    Otherwise the work would end during interpreter shutdown.
    """
    for child in multiprocessing.active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(code)
