"""The verbs of the `medjax` command, one module each.

`add(verbs)` declares the arguments of a verb and sets `run(args) -> exit code`. Modules of this
package are found automatically. Heavy imports happen inside `run`, so that `--help` is fast.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Sequence

from medjax.errors import EXIT_OK, EXIT_SOME_FAILED, sentence, shown

ORDER = (
    "verify",
    "prepare",
    "train",
    "predict",
    "evaluate",
)  # in the order of a user's work; other verbs follow by name


def modules() -> list:
    """The verb modules in the order `--help` lists them."""
    names = [m.name for m in pkgutil.iter_modules(__path__)]
    names.sort(key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


def progress(quiet: bool, what: str, live: bool = True) -> Callable[[int, int, str, str], None]:
    """A callback (done, total, name, status) that prints progress.

    If `live`: one line on a terminal that is updated. Otherwise: a line per problem and one at the
    end.
    """
    live = live and sys.stderr.isatty()

    def show(done: int, total: int, name: str, status: str) -> None:
        end = "\r" if live and done < total else "\n"
        if not quiet and (live or status == "failed" or done == total):
            print(
                f"{what} {done}/{total} {shown(name)}: {status}".ljust(78),
                end=end,
                file=sys.stderr,
                flush=True,
            )

    return show


def report_failures(failed: Sequence[dict]) -> int:
    """Prints one line on stderr per failed case; returns the exit code.

    Errors that are not medjax's own are printed with their type and place.
    """
    for entry in failed:
        trace = entry.get("traceback", "").rstrip().splitlines()
        kind = f"{entry['error']}: " if trace else ""
        print(
            "\n".join(
                [f"medjax: {shown(entry['case'])} failed: {kind}{sentence(entry)}", *trace[-5:-1]]
            ),
            file=sys.stderr,
        )
    return EXIT_SOME_FAILED if failed else EXIT_OK
