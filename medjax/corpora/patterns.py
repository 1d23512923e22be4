"""Regular expressions from data sets: a pattern that takes too long is an error, not a hang.

In: a pattern and the file that contains it. Out: matches, each within `PER_NAME_S` seconds and all
together within `IN_ALL_S`.
"""

import math
import re
import time

import regex

from medjax.errors import LabelError, MedjaxError

PER_NAME_S, IN_ALL_S = 0.5, 10.0
LONGEST = 2_000  # characters in a pattern, at most
# product of its {counts}: the compiled form, which unrolls nested ones, stays below 100 MB
MOST_REPEATS = 300_000


class Pattern:
    """A compiled pattern of a file, with a budget of time.

    Args:
      text: the pattern. what: what it is for, e.g. '"patients"'. path: the file it stands in.
        error: the class to raise.
    """

    def __init__(
        self, text: object, what: str, path: object = None, error: type[MedjaxError] = LabelError
    ):
        self.text, self.what, self.path, self.error = text, what, path, error
        self._left = IN_ALL_S
        if not isinstance(text, str) or len(text) > LONGEST:
            expected = f"text of at most {LONGEST:,} characters"
            raise error(
                f"{what} is not a regular expression",
                path=path,
                found=repr(text)[:80],
                expected=expected,
            )
        counts = [
            max(1, *map(int, (n for n in pair if n)))
            for pair in re.findall(r"\{(\d*),?(\d*)\}", text)
            if any(pair)
        ]
        if (
            max(map(len, re.findall(r"\d+", text)), default=0) > 6
            or math.prod(counts) > MOST_REPEATS
        ):
            raise error(
                f"the {what} expression repeats too often",
                path=path,
                found=text,
                fix="use smaller counts in {}",
            )
        try:
            re.compile(text)  # the syntax is Python's; `regex` knows more, recursion among it
            self._compiled = regex.compile(text)
        except (
            re.error,
            regex.error,
            RecursionError,
            OverflowError,
            ValueError,
            KeyError,
        ) as reason:
            raise error(
                f"{what} is not a regular expression: {reason}", path=path, found=text
            ) from None

    @property
    def groups(self) -> int:
        """How many groups the pattern has."""
        return self._compiled.groups

    def search(self, name: str) -> "regex.Match | None":
        """The first match anywhere in a name."""
        return self._within_time(self._compiled.search, name)

    def fullmatch(self, name: str) -> "regex.Match | None":
        """The match of a whole name."""
        return self._within_time(self._compiled.fullmatch, name)

    def _within_time(self, method, name: str) -> "regex.Match | None":
        began = time.perf_counter()
        try:
            return method(name, timeout=max(0.01, min(PER_NAME_S, self._left)))
        except TimeoutError:
            raise self.error(
                f"the {self.what} expression takes too long for {name!r}",
                path=self.path,
                found=self.text,
                expected=f"at most {PER_NAME_S:g} s for a name, {IN_ALL_S:g} s in all",
                fix="avoid nested repetitions like (a+)+",
            ) from None
        finally:
            self._left -= time.perf_counter() - began
