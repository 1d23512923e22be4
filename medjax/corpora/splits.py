"""Cross-validation splits over all corpora, grouped by patient and by twins.

In: the cases of every corpus. Out: per fold the "corpus/case" names to train on and to validate on,
in nnU-Net's `splits_final.json` form. A patient in two corpora (same disease, two modalities), or a
scan that two corpora share (corpora/twins.py), is never on both sides.
"""

import collections
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from medjax import files
from medjax.corpora.inputs import Case
from medjax.corpora.twins import Pair
from medjax.errors import UsageError

Split = dict[str, list[str]]
SIDES = ("train", "val")  # of every split; "test" is the third one of some


def make_splits(
    cases: Mapping[str, Sequence[Case]],
    folds: int = 5,
    seed: int = 12345,
    twins: Iterable[Pair] = (),
    test: bool = False,
) -> list[Split]:
    """Assigns the patients of each corpus to `folds` groups; fold f validates on group f.

    Args:
      cases: corpus (store) name -> its cases.
      folds: number of groups, at least 2.
      seed: seed of the shuffle; the same cases, twins and seed give the same splits on any machine.
      twins: pairs of "corpus/case" names that must stay together; their patients count as one.
      test: fold f holds the next group out altogether, as a third part: ten folds give parts of
        eight, one and one tenths.

    Returns: one {"train": [...], "val": [...]} of "corpus/case" names per fold, with "test" if
      asked for.
    Raises: `UsageError` for too few folds (2, or 3 with a test part), or fewer patients than folds.
    """
    if folds < 2 + test:
        what = "a split into three parts" if test else "cross-validation"
        raise UsageError(f"{what} needs at least {2 + test} folds", found=folds)
    owner = group_owners(cases, twins)
    patients = {c: [owner[case.patient] for case in members] for c, members in cases.items()}
    if (count := len({p for members in patients.values() for p in members})) < folds:
        raise UsageError(
            f"{count} patients cannot fill {folds} folds",
            fix=f"set data.split.folds to {count} or less",
        )
    group: dict[str, int] = {}
    for corpus in sorted(cases):
        fresh = sorted(set(patients[corpus]) - set(group))
        order = np.random.default_rng([seed, *corpus.encode()]).permutation(len(fresh))
        sizes = collections.Counter(patients[corpus])
        counts = np.bincount([group[p] for p in patients[corpus] if p in group], minlength=folds)
        for i in order:
            smallest = int(counts.argmin())
            group[fresh[i]] = smallest
            counts[smallest] += sizes[fresh[i]]
    splits = []
    for fold in range(folds):
        sides: Split = {side: [] for side in (*SIDES, *(("test",) if test else ()))}
        held = {fold: "val"} | ({(fold + 1) % folds: "test"} if test else {})
        for corpus, members in cases.items():
            for case, patient in zip(members, patients[corpus], strict=True):
                sides[held.get(group[patient], "train")].append(f"{corpus}/{case.name}")
        splits.append(sides)
    return splits


def group_owners(cases: Mapping[str, Sequence[Case]], twins: Iterable[Pair] = ()) -> dict[str, str]:
    """Patient -> the patient that represents its group of patients joined by twins."""
    patient = {
        f"{corpus}/{case.name}": case.patient
        for corpus, members in cases.items()
        for case in members
    }
    parent = {p: p for p in patient.values()}

    def root(p: str) -> str:
        while parent[p] != p:
            parent[p] = p = parent[parent[p]]
        return p

    for pair in twins:
        if pair.first in patient and pair.second in patient:
            low, high = sorted((root(patient[pair.first]), root(patient[pair.second])))
            parent[high] = low
    return {p: root(p) for p in parent}


def provenance(
    splits: Sequence[Split],
    cases: Mapping[str, Sequence[Case]],
    twins: Iterable[Pair] = (),
    **settings: object,
) -> dict:
    """Contents of the file beside splits_final.json: hashes, twins and settings.

    Hashes are of the splits and of the cases and patients of every corpus.
    """
    rows = {
        corpus: [[case.name, case.patient] for case in members] for corpus, members in cases.items()
    }
    owner, twins = group_owners(cases, twins), list(twins)
    return {
        "sha256": digest(splits),
        "settings": settings,
        "corpora": {
            c: {"cases": len(r), "sha256": hashlib.sha256(json.dumps(r).encode()).hexdigest()}
            for c, r in rows.items()
        },
        "patients": len(owner),
        "groups": len(set(owner.values())),
        "twins": [[pair.first, pair.second, pair.why] for pair in twins],
    }


def part_of(cases: Sequence[str], part: str, seed: int = 12345) -> list[str]:
    """A seeded share of the cases: "0/2" is the first of two halves, "" all of them."""
    if not part:
        return list(cases)
    try:
        index, parts = (int(v) for v in part.split("/"))
        if not 0 <= index < parts:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"not a part: {part!r}", expected='"i/n" with 0 <= i < n, like "0/2"'
        ) from None
    order = np.random.default_rng([seed, parts]).permutation(len(cases))
    return [cases[i] for i in sorted(order[index::parts])]


def subset(names: Sequence[str], corpus: str, count: int, seed: int) -> list[str]:
    """`count` of a corpus' case names, in their given order.

    The choice does not depend on the order or the machine. A smaller count with the same seed gives
    a subset of a larger one.

    Raises: `UsageError` if there are fewer cases.
    """
    if not 0 < count <= len(names):
        raise UsageError(
            f"{corpus} has {len(names)} cases",
            found=f"a subset of {count}",
            fix=f"set config.data.subset.{corpus}.count",
        )
    ordered = sorted(names)
    chosen = {
        ordered[i]
        for i in np.random.default_rng([seed, *corpus.encode()]).permutation(len(ordered))[:count]
    }
    return [name for name in names if name in chosen]


def digest(splits: Sequence[Split]) -> str:
    """sha256 of the splits, to compare the splits of two runs."""
    return hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()


def read_splits(path: Path, cases: Mapping[str, Sequence[Case]]) -> list[Split]:
    """Splits from a file in medjax' or nnU-Net's form (bare case names are looked up).

    Raises `UsageError` for unknown cases.
    """
    splits = files.read_json(path)
    if not isinstance(splits, list) or not all(
        isinstance(s, dict) and all(_is_names(s.get(side)) for side in sides_of(s)) for s in splits
    ):
        raise UsageError(
            "not splits",
            path=path,
            found=repr(splits)[:80],
            expected='[{"train": [names], "val": [names]}, ...]',
        )
    names = {
        f"{corpus}/{c.name}": f"{corpus}/{c.name}"
        for corpus, members in cases.items()
        for c in members
    }
    bare = collections.Counter(c.name for members in cases.values() for c in members)
    names |= {
        c.name: f"{corpus}/{c.name}"
        for corpus, members in cases.items()
        for c in members
        if bare[c.name] == 1
    }
    unknown = [
        name
        for split in splits
        for side in sides_of(split)
        for name in split[side]
        if name not in names
    ]
    if several := next((name for name in unknown if bare[name] > 1), None):
        raise UsageError(
            f"case {several!r} of the splits is in several corpora",
            path=path,
            fix=f'write "CORPUS/{several}"',
        )
    if unknown:
        raise UsageError(
            f"{len(unknown)} cases of the splits are not in the corpora, first {unknown[0]!r}",
            path=path,
        )
    return [
        {side: [names[name] for name in split[side]] for side in sides_of(split)}
        for split in splits
    ]


def sides_of(split: Mapping) -> tuple[str, ...]:
    """The parts of a split: train and val, and test if there is one."""
    return (*SIDES, "test") if "test" in split else SIDES


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
