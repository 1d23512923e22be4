"""The verbs of the `medjax` command, one module each: `add(verbs)` declares its arguments and sets
`run(args) -> exit code`.

A module here is a verb; nothing else needs to know of it. Nothing heavy is imported before `run`,
so that `--help` answers at once.
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
)  # how a user meets them; the others follow by name


def modules() -> list:
    """The verb modules in the order `--help` lists them."""
    names = [m.name for m in pkgutil.iter_modules(__path__)]
    names.sort(key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


def progress(quiet: bool, what: str, live: bool = True) -> Callable[[int, int, str, str], None]:
    """A callback (done, total, name, status): a live line on a terminal, if `live`; else one for
    trouble and one at the end.
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
    """One line on stderr per failed case, with kind and place of an error that is none of ours; the
    exit code that follows.
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
