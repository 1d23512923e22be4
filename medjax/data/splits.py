"""Cross-validation splits grouped by patient, over all corpora at once.

In: the cases of every corpus. Out: per fold the "corpus/case" names to train on and to validate on, in nnU-Net's `splits_final.json` form.
A patient seen in two corpora (same disease, two modalities) is never on both sides.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medjax.data.inputs import Case
from medjax.errors import UsageError

Split = dict[str, list[str]]


def make_splits(cases: Mapping[str, Sequence[Case]], folds: int = 5, seed: int = 12345) -> list[Split]:
    """Deals the patients of each corpus to `folds` groups; fold f validates on group f.

    Args:
      cases: corpus (store) name -> its cases.
      folds: number of groups, at least 2.
      seed: of the shuffle; the same cases and seed give the same splits on any machine.

    Returns: one {"train": [...], "val": [...]} of "corpus/case" names per fold.
    Raises: `UsageError` for fewer than two folds or fewer patients than folds.
    """
    if folds < 2:
        raise UsageError("cross-validation needs at least 2 folds", found=folds)
    patients = {c.patient for members in cases.values() for c in members}
    if len(patients) < folds:
        raise UsageError(f"{len(patients)} patients cannot fill {folds} folds", fix=f"set data.split.folds to {len(patients)} or less")
    group: dict[str, int] = {}
    for corpus in sorted(cases):
        fresh = sorted({c.patient for c in cases[corpus]} - set(group))
        order = np.random.default_rng([seed, *corpus.encode()]).permutation(len(fresh))
        counts = np.bincount([group[c.patient] for c in cases[corpus] if c.patient in group], minlength=folds)
        for i in order:
            smallest = int(counts.argmin())
            group[fresh[i]] = smallest
            counts[smallest] += sum(c.patient == fresh[i] for c in cases[corpus])
    splits = []
    for fold in range(folds):
        sides: Split = {"train": [], "val": []}
        for corpus, members in cases.items():
            for case in members:
                sides["val" if group[case.patient] == fold else "train"].append(f"{corpus}/{case.name}")
        splits.append(sides)
    return splits


def part_of(cases: Sequence[str], part: str, seed: int = 12345) -> list[str]:
    """A seeded share of the cases: "0/2" is the first of two halves, "3/4" the last of four quarters, "" all of them."""
    if not part:
        return list(cases)
    try:
        index, parts = (int(v) for v in part.split("/"))
        if not 0 <= index < parts:
            raise ValueError
    except ValueError:
        raise UsageError(f"not a part: {part!r}", expected='"i/n" with 0 <= i < n, like "0/2"') from None
    order = np.random.default_rng([seed, parts]).permutation(len(cases))
    return [cases[i] for i in sorted(order[index::parts])]


def digest(splits: Sequence[Split]) -> str:
    """sha256 of the splits, so that two runs can be seen to share theirs."""
    return hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()


def read_splits(path: Path, cases: Mapping[str, Sequence[Case]]) -> list[Split]:
    """Splits from a file in our or nnU-Net's form (bare case names are looked up); unknown cases raise `UsageError`."""
    try:
        splits = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the splits: {error}", path=path) from error
    names = {f"{corpus}/{c.name}": f"{corpus}/{c.name}" for corpus, members in cases.items() for c in members}
    names |= {c.name: f"{corpus}/{c.name}" for corpus, members in cases.items() for c in members}
    unknown = [name for split in splits for side in ("train", "val") for name in split[side] if name not in names]
    if unknown:
        raise UsageError(f"{len(unknown)} cases of the splits are not in the corpora, first {unknown[0]!r}", path=path)
    return [{side: [names[name] for name in split[side]] for side in ("train", "val")} for split in splits]
