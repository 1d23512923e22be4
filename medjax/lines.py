"""Lines about what a program is doing while it computes for a while.

They go to stderr, so that results on stdout stay readable by programs.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

SHORT_S = 2.0  # work that took less needs no second line


def say(text: str) -> None:
    """Prints a line on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def busy(what: str, tell: Callable[[str], None] = say) -> Iterator[None]:
    """Prints "WHAT ..." before a block and "WHAT: 12 s" after it, if it took a while.

    Args:
      tell: prints a line.
    """
    tell(f"{what} ...")
    began = time.monotonic()
    yield
    if (seconds := time.monotonic() - began) >= SHORT_S:
        tell(f"{what}: {seconds:.0f} s")
