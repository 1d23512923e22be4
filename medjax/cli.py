"""The `medjax` command: parses arguments and calls a verb of `medjax.commands`.

Errors become messages and exit codes. Heavy imports happen only when work starts, so `--help` is
fast.

Exit codes: 0 ok, 1 error, 2 usage, 3 finished but some cases failed, 4 verification failed, 75
preempted (run again to continue), 130 interrupted, 143 terminated.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from medjax import __version__, commands, recipes
from medjax.border import guarded
from medjax.errors import UsageError, did_you_mean

COORDINATES = ("--point", "--box")


class _Parser(argparse.ArgumentParser):
    """argparse with suggestions for unknown flags."""

    def error(self, message: str):
        known = [option for action in self._actions for option in action.option_strings]
        unknown = [
            word
            for word in message.split()
            if word.startswith("--") and word.split("=")[0] not in known
        ]
        raise UsageError(
            f"{self.prog}: {message}",
            fix=did_you_mean(unknown[0], known) if unknown else f"see {self.prog} --help",
        )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "medjax",
        description="Train a segmentation model on many partly annotated data sets, and use it.",
    )
    parser.add_argument("--version", action="version", version=f"medjax {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Parser)
    for module in commands.modules():
        module.add(verbs)
    for p in verbs.choices.values():
        p.set_defaults(parser=p)
    return parser


def _joined(words: Sequence[str]) -> list[str]:
    """Coordinates that begin with a minus joined to their flag, which argparse takes for flags.

    >>> _joined(["predict", "--point", "-1,2,3", "-i", "a"])
    ['predict', '--point=-1,2,3', '-i', 'a']
    """
    found: list[str] = []
    for word in words:
        if found and found[-1] in COORDINATES and re.match(r"-[\d.]", word):
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command line; turns errors into one message and an exit code."""

    def work() -> int:
        words = sys.argv[1:] if argv is None else argv
        args, rest = _parser().parse_known_args(_joined(words))
        if rest and not getattr(args, "forwards", False):
            args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.rest = rest
        with recipes.importable():
            return args.run(args)

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
