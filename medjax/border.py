"""Error handling of both commands: errors and signals become one message and an exit code.

Exit codes: those of `medjax.errors`; 130 after SIGINT, 143 after SIGTERM. Training has its own
handlers (`train/loop.py`): it saves its state and exits with 75.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from medjax.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_TERMINATED, MedjaxError, Terminated
from medjax.train import waiting

AGAIN_AFTER_S = 0.05
AGAIN = "files under their final names are complete; run the same command again to continue"


def guarded(work: Callable[[], int]) -> int:
    """Runs `work` and returns its exit code; prints one message for a `MedjaxError` or a signal.

    Any other exception is a defect of medjax and keeps its traceback.
    """
    code = _guarded(work)
    if waiting.unfinished():  # an abandoned compilation
        waiting.leave(code)
    return code


def _guarded(work: Callable[[], int]) -> int:
    with _terminating():
        try:
            return work()
        except MedjaxError as error:
            say(str(error))
            return error.exit_code
        except Terminated:
            say(f"stopped by SIGTERM; {AGAIN}")
            return EXIT_TERMINATED
        except KeyboardInterrupt:
            say(f"interrupted; {AGAIN}")
            return EXIT_INTERRUPTED
        except (
            BrokenPipeError
        ):  # the reader of the output is gone; nothing can be printed, also not at exit
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_ERROR


def say(text: str) -> None:
    """Prints one line on stderr, even if the pipe is closed."""
    with contextlib.suppress(OSError, ValueError):
        print(f"medjax: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """SIGTERM raises `Terminated`, SIGINT `KeyboardInterrupt`, in the main thread.

    A second SIGTERM ends the process at once. Python drops an exception raised within a finaliser
    or a garbage-collector callback (jax has one). The signal is then sent again a moment later,
    until its exception arrives.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    report = sys.unraisablehook

    def heard(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    def dropped(lost: object) -> None:
        kind = lost.exc_type
        if not issubclass(kind, KeyboardInterrupt):
            report(lost)
            return
        number = signal.SIGTERM if issubclass(kind, Terminated) else signal.SIGINT
        if number == signal.SIGTERM:
            signal.signal(number, heard)
        again = threading.Timer(AGAIN_AFTER_S, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    signal.signal(signal.SIGTERM, heard)
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = report
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
