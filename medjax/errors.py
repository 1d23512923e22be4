"""The errors of medjax: one class per kind, each naming file, found, expected and fix.

Imports no other module of medjax. Modules raise; only `main`, `cli` and the loops over cases catch.
Exit codes: 0 ok, 1 run-time error, 2 usage, 3 some cases failed, 4 verification failed, 75 stopped
after saving (run again to continue), 130 interrupted, 143 terminated.
"""

import difflib
import unicodedata
from collections.abc import Iterable, Mapping

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_SOME_FAILED, EXIT_VERIFICATION, EXIT_PREEMPTED = (
    0,
    1,
    2,
    3,
    4,
    75,
)
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143  # SIGINT, SIGTERM


class MedjaxError(Exception):
    """Base class of all errors that a user can cause or fix.

    Args:
      message: the problem, in one sentence.
      path: the file or folder concerned.
      found / expected: the offending and the expected value.
      fix: what the user can do, as an imperative.
    """

    exit_code = EXIT_ERROR

    def __init__(
        self,
        message: str,
        *,
        path: object = None,
        found: object = None,
        expected: object = None,
        fix: str = "",
    ):
        self.message, self.path, self.found, self.expected, self.fix = (
            message,
            path,
            found,
            expected,
            fix,
        )
        super().__init__(
            sentence(
                {"message": message, "path": path, "found": found, "expected": expected, "fix": fix}
            )
        )

    def record(self) -> dict:
        """The error as JSON-ready fields (for reports, manifests and `--json`)."""
        plain = {
            "message": self.message,
            "path": self.path,
            "found": self.found,
            "expected": self.expected,
            "fix": self.fix,
        }
        return {"error": type(self).__name__} | {
            k: str(v) for k, v in plain.items() if v not in (None, "")
        }


def sentence(record: Mapping) -> str:
    """A failure record (see `MedjaxError.record`) as one line.

    The line holds path, message, found, expected and fix.
    """
    parts = [record["message"]] + [
        f"{word} {record[word]}" for word in ("found", "expected") if record.get(word) is not None
    ]
    path, fix = record.get("path"), record.get("fix")
    return shown(
        (f"{path}: " if path is not None else "")
        + "; ".join(parts)
        + (f". Fix: {fix}" if fix else "")
    )


def shown(text: object) -> str:
    r"""Text from a file as it may be printed: control characters, direction marks and undecodable
    bytes become escapes.

    >>> shown("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escaped(c) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c
        for c in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


class UsageError(MedjaxError):
    """A wrong argument, config key, name or missing input: nothing was started (exit 2)."""

    exit_code = EXIT_USAGE


class LabelError(UsageError):
    """Classes, corpora or label values that contradict each other."""


class DataError(MedjaxError):
    """An unreadable, corrupt or inconsistent scan, label or store."""


class VerificationError(DataError):
    """A data set that failed verification (exit 4)."""

    exit_code = EXIT_VERIFICATION


class ModelError(MedjaxError):
    """Arguments that do not describe a network, or weights that do not fit it."""


class TrainError(MedjaxError):
    """Training cannot continue: non-finite loss, invalid rule list, unusable checkpoint."""


class Preempted(MedjaxError):
    """The run was asked to stop and saved its state; start it again to continue (exit 75)."""

    exit_code = EXIT_PREEMPTED


class WriteError(MedjaxError):
    """A file that cannot be written: permissions, a full disk, a name that is taken."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised in the main thread so that every `finally` runs (exit 143)."""


class PredictError(MedjaxError):
    """A case that cannot be predicted or written."""


class MetricError(MedjaxError):
    """A pair of masks that cannot be compared."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known names, or all of them if few.

    >>> did_you_mean("livr", ["liver", "spleen"])
    'did you mean liver? Known: liver, spleen'
    """
    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
    listing = ", ".join(known[:40]) + (f", ... ({len(known)} in all)" if len(known) > 40 else "")
    return (f"did you mean {' or '.join(close)}? " if close else "") + f"Known: {listing or 'none'}"
