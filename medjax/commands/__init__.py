"""The verbs of the `medjax` command, one module each.

`add(verbs)` declares the arguments of a verb and sets `run(args) -> exit code`. Modules of this
package are found automatically, and those of other packages by the entry points "medjax.verbs"
(module under the name of its verb). Heavy imports happen inside `run`, so that `--help` is fast.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medjax import plugins, recipes
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
            with recipes.importable():
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


def add_preparing(parser: Any) -> None:
    """Adds the arguments of every command that prepares volumes: `spacing_mm`, `orientation`,
    `workers`, `quiet`.
    """
    parser.add_argument(
        "--spacing-mm",
        nargs=3,
        type=float,
        metavar=("Z", "Y", "X"),
        help="target spacing; default: nnU-Net's median rule",
    )
    parser.add_argument("--orientation", choices=("RAS", "stored"), default="RAS")
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="cases at a time; 0: one per core, fewer where memory is short",
    )
    parser.add_argument("--quiet", action="store_true")


def add_planning(parser: Any) -> None:
    """Adds the arguments that decide how volumes are prepared; `plan_arguments` reads them."""
    add_preparing(parser)
    parser.add_argument(
        "--spacing-rule",
        choices=("median", "per_corpus", "native"),
        default="median",
        help="target spacing if --spacing-mm is not given; native: each case keeps its own",
    )
    parser.add_argument(
        "--size",
        nargs=3,
        type=int,
        metavar=("Z", "Y", "X"),
        help="resample each cropped volume to these numbers of voxels instead (a fixed frame)",
    )
    parser.add_argument(
        "--crop",
        choices=("nonzero", "foreground", "none"),
        default="nonzero",
        help="box to crop to; foreground: the voxels above the lower intensity limit",
    )
    parser.add_argument(
        "--intensity",
        nargs="+",
        default=(),
        metavar="CHANNEL=SCHEME",
        help="schemes that do not follow from the channel's name: CT=window:-175,250 MR=foreground "
        "organ=mask",
    )
    parser.add_argument(
        "--allow-absent",
        action="store_true",
        help="continue although a declared class occurs in no case",
    )


def plan_arguments(args: Any) -> dict:
    """The arguments of `prepare.plan.make_plan` that the flags of `add_planning` decide."""
    from medjax.prepare.intensity import parse

    return {
        "spacing": tuple(args.spacing_mm) if args.spacing_mm else args.spacing_rule,
        "orientation": args.orientation,
        "crop": args.crop,
        "size": args.size and tuple(args.size),
        "intensity": parse(args.intensity),
    }


def fingerprints(args: Any, corpora: Sequence[tuple], intensity: Mapping) -> dict:
    """Corpus name -> fingerprint, checked for classes that never occur.

    Args:
      args: parsed flags of `add_planning`. corpora: (corpus, cases, problems) of `scan_corpus`.
      intensity: schemes that the user chose.
    """
    from medjax.prepare.fingerprint import check_classes, fingerprint

    found = {}
    for corpus, cases, _ in corpora:
        found[corpus.name] = fingerprint(
            corpus,
            cases,
            workers=args.workers or None,
            progress=progress(args.quiet, f"measure {corpus.name}"),
            intensity=intensity,
        )
        if not args.allow_absent:
            check_classes(corpus, found[corpus.name])
    return found


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
