"""The verbs of the `medjax` command, one module each.

`add(verbs)` declares the arguments of a verb and sets `run(args) -> exit code`. Modules of this
package are found automatically, and those of other packages by the entry points "medjax.verbs"
(module under the name of its verb). Heavy imports happen inside `run`, so that `--help` is fast.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Sequence

from medjax import plugins
from medjax.errors import EXIT_OK, EXIT_SOME_FAILED, sentence, shown

ORDER = (
    "verify",
    "prepare",
    "train",
    "predict",
    "evaluate",
)  # in the order of a user's work; other verbs follow by name


def modules() -> list:
    """The verb modules in the order `--help` lists them.

    A verb of another package that cannot be imported is left out with a warning.
    """
    found = {m.name: f"{__name__}.{m.name}" for m in pkgutil.iter_modules(__path__)}
    for name, point in plugins.points(plugins.VERBS).items():
        found.setdefault(name.replace("-", "_"), point.value)
    names = sorted(
        found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)
    )
    loaded = []
    for name in names:
        try:
            loaded.append(importlib.import_module(found[name]))
        except ImportError as error:
            if found[name].startswith(f"{__name__}."):
                raise
            print(f"medjax: the verb {name!r} cannot be loaded: {error}", file=sys.stderr)
    return loaded


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
