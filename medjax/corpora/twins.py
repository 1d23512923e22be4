"""Scans that occur in two corpora: found by name rules of the corpora, or by image content.

In: cases of several corpora. Out: pairs of "corpus/case" names. `splits.make_splits` keeps a pair
on one side; `straddling` and `between` find the pairs that leak in a given split, or between
training and evaluation corpora.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax.corpora.cases import Progress, each
from medjax.corpora.inputs import Case, read_json
from medjax.corpora.layouts import corpus_json
from medjax.corpora.layouts.records import facts
from medjax.corpora.patterns import Pattern
from medjax.errors import UsageError
from medjax.scans import formats, grid, records


@dataclasses.dataclass(frozen=True)
class Twin:
    """A rule that names a case's twin in another corpus.

    Attributes:
      corpus: public name of the other corpus.
      cases: regular expression that a case name must match as a whole.
      other: the other corpus' case name, with the groups of `cases` as \\1, \\2.
      offset: added to the number in group 1 first.
      note: how the overlap is known.
    """

    corpus: str
    cases: str
    other: str
    offset: int = 0
    note: str = ""

    def __post_init__(self):
        pattern = Pattern(self.cases, f"twin rule for {self.corpus}", error=UsageError)
        if wrong := next(
            (n for n in re.findall(r"\\(\d)", self.other) if not 1 <= int(n) <= pattern.groups),
            None,
        ):
            raise UsageError(
                f"the twin rule for {self.corpus} uses a group that its expression lacks",
                found=f"\\{wrong}",
                expected=f"{pattern.groups} groups",
            )
        object.__setattr__(self, "_pattern", pattern)

    def other_name(self, case: str) -> str | None:
        """Name of the twin in the other corpus, None if the rule does not concern this case.

        >>> Twin("LiTS", r"3Dircadb1\\.(\\d+)", r"volume-\\1", offset=27).other_name("3Dircadb1.20")
        'volume-47'
        """
        match = self._pattern.fullmatch(case)
        if match is None:
            return None
        groups = [group or "" for group in match.groups()]
        if self.offset and groups:
            if not groups[0].isdecimal():
                raise UsageError(
                    f"the twin rule for {self.corpus} adds to what is no number",
                    found=groups[0],
                    expected="digits in group 1",
                )
            groups[0] = str(int(groups[0]) + self.offset)
        return re.sub(r"\\(\d)", lambda m: groups[int(m[1]) - 1], self.other)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two cases ("corpus/case") that show the same scan or patient, and how this is known."""

    first: str
    second: str
    why: str


def read_rules(rules: Any) -> tuple[Twin, ...]:
    """Rules from JSON or a config; rules without an expression are ignored.

    Those only state that there is an overlap.
    """
    rules, names = (
        list(rules) if isinstance(rules, Iterable) else [rules],
        [field.name for field in dataclasses.fields(Twin)],
    )
    for rule in rules:
        if not isinstance(rule, Mapping) or (
            rule.get("cases") and not {"corpus", "other"} <= set(rule)
        ):
            raise UsageError(
                "not a twin rule",
                found=repr(rule)[:80],
                expected='{"corpus": ..., "cases": ..., "other": ...}',
            )
        if any(not isinstance(v, int if k == "offset" else str) for k, v in rule.items()):
            raise UsageError(
                "a twin rule whose fields are no text",
                found=repr(dict(rule))[:120],
                expected="see docs/data.md",
            )
        if unknown := set(rule) - set(names):
            raise UsageError(
                f"unknown field {min(unknown)!r} in a twin rule", expected=", ".join(names)
            )
    return tuple(Twin(**rule) for rule in rules if rule.get("cases"))


def rules_of(folder: str | os.PathLike) -> tuple[Twin, ...]:
    """The rules in the "medjax" block of dataset.json or in corpus.json; () without any."""
    if records.is_record(folder):
        return read_rules(facts(folder).get("twins", ()))
    folder = Path(folder)
    if corpus_json.detect(folder):
        return read_rules(corpus_json.facts(folder).get("twins", ()))
    said = read_json(folder / "dataset.json") if (folder / "dataset.json").is_file() else {}
    block = said.get("medjax", {}) if isinstance(said, dict) else {}
    return read_rules(block.get("twins", ())) if isinstance(block, dict) else ()


def by_name(
    cases: Mapping[str, Sequence[Case]],
    rules: Mapping[str, Sequence[Twin]],
    public: Mapping[str, str] | None = None,
) -> tuple[Pair, ...]:
    """Twins by the corpora's rules.

    Args:
      cases: corpus name -> its cases. rules: corpus name -> its rules.
      public: corpus name -> public name, which rules speak of; default the name itself.
    """
    public = {name: name for name in cases} | dict(public or {})
    there: dict[str, list[str]] = {}
    for corpus in cases:
        there.setdefault(public[corpus], []).append(corpus)
    known = {corpus: {case.name for case in members} for corpus, members in cases.items()}
    found: dict[tuple[str, str], Pair] = {}
    for corpus, members in cases.items():
        for rule in rules.get(corpus, ()):
            for case in members if rule.corpus in there else ():
                other = rule.other_name(case.name)
                for second in there[rule.corpus]:
                    if other in known[second] and second != corpus:
                        ends = tuple(sorted((f"{corpus}/{case.name}", f"{second}/{other}")))
                        found.setdefault(
                            ends,
                            Pair(
                                *ends, rule.note or f"twins of {public[corpus]} and {rule.corpus}"
                            ),
                        )
    return tuple(found[ends] for ends in sorted(found))


def by_content(
    cases: Mapping[str, Sequence[Case]],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[tuple[Pair, ...], list[dict]]:
    """Cases whose images are equal voxel by voxel in any channel.

    File format and stored orientation do not matter. Every image is read once.

    Returns: the pairs, including those within a corpus, and the records of unreadable cases.
    """
    named = [
        dataclasses.replace(case, name=f"{corpus}/{case.name}")
        for corpus, members in cases.items()
        for case in members
    ]
    outcomes = each(digests, named, workers=workers, progress=progress)
    holders: dict[str, list[str]] = {}
    for outcome in outcomes:
        for digest in dict.fromkeys(outcome.value or ()):
            holders.setdefault(digest, []).append(outcome.case.name)
    found: dict[tuple[str, str], Pair] = {}
    for names in holders.values():
        for name in names[1:]:
            ends = tuple(sorted((names[0], name)))
            found.setdefault(ends, Pair(*ends, "equal images"))
    return tuple(found[ends] for ends in sorted(found)), [
        o.failure for o in outcomes if o.failure is not None
    ]


def digests(case: Case) -> tuple[str, ...]:
    """sha256 of each channel's voxels; constant channels have none.

    Voxels are taken in canonical axes, cropped to non-zero values and rounded to three decimals.
    """
    volume = formats.read_case(case.images)
    image = grid.canonical(volume.array, *grid.canonical_axes(volume.affine))
    if (box := grid.nonzero_box(image)) is not None:
        image = image[tuple(slice(*ends) for ends in box)]
    found = []
    for c in range(image.shape[-1]):
        channel = np.round(image[..., c].astype(np.float32), 3) + 0.0  # + 0 turns -0 into 0
        if channel.size and channel.min() < channel.max():
            found.append(
                hashlib.sha256(
                    str(channel.shape).encode() + np.ascontiguousarray(channel).tobytes()
                ).hexdigest()
            )
    return tuple(found)


def straddling(split: Mapping[str, Sequence[str]], pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """The pairs of which one case is trained on and the other validated or tested on."""
    pairs = tuple(pairs)
    found = between(split["train"], split["val"], pairs)
    return found + between(split["train"], split.get("test", ()), pairs)


def between(
    train: Iterable[str], evaluation: Iterable[str], pairs: Iterable[Pair]
) -> tuple[Pair, ...]:
    """The pairs that join two collections of "corpus/case" names, the training case first.

    A case in both collections is its own pair.
    """
    train, evaluation = set(train), set(evaluation)
    found = [Pair(name, name, "the same case") for name in sorted(train & evaluation)]
    for pair in pairs:
        for first, second in ((pair.first, pair.second), (pair.second, pair.first)):
            if first in train and second in evaluation:
                found.append(Pair(first, second, pair.why))
    return tuple(found)
