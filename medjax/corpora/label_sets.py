"""Overlapping binary masks -> one volume whose ids stand for *sets* of classes.

    k masks of a case ──combine──► ids (z, y, x) + the sets that occur
    the sets of all cases ──corpus_of──► the label table

Nested (tumour in liver), adjacent and overlapping masks need no further channel: a voxel in liver
and tumour has the id of {liver, tumour}. The table lists every class alone, then every combination
that occurs in some case.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt16

from medjax.corpora.inputs import Case
from medjax.errors import LabelError, UsageError, did_you_mean
from medjax.labels import Corpus
from medjax.scans import formats
from medjax.scans.nifti import Volume
from medjax.scans.paths import Mask

Sets = tuple[frozenset[str], ...]  # position -> classes; position 0 is the empty set

MOST_SETS = 65_535


def combine(
    masks: Iterable[tuple[str, Bool[np.ndarray, "z y x"]]], shape: Sequence[int]
) -> tuple[UInt16[np.ndarray, "z y x"], Sets]:
    """Combines masks one at a time, so that only one of them is in memory.

    Args:
      masks: (class name, (z, y, x) bool); a name may be repeated (several files of one class).
      shape: (z, y, x).

    Returns: ids (z, y, x), and the set that every id stands for; every set except the empty one
      occurs.
    Raises: `LabelError` for more than 65535 different sets.
    """
    ids, sets, number = np.zeros(shape, np.uint16), [frozenset()], {frozenset(): 0}
    for name, mask in masks:
        below = ids[mask]
        table = np.zeros(len(sets), np.uint16)
        for old in np.flatnonzero(_used(below, len(sets))):
            joined = sets[old] | {name}
            if joined not in number:
                if len(sets) > MOST_SETS:
                    raise LabelError(
                        "too many different combinations of masks",
                        found=f"over {MOST_SETS}",
                        fix="use fewer classes",
                    )
                number[joined] = len(sets)
                sets.append(joined)
            table[old] = number[joined]
        ids[mask] = table[below]
    return _compact(ids, sets)


def read_sets(case: Case, like: Volume) -> tuple[UInt16[np.ndarray, "z y x"], Sets]:
    """`combine` for the masks of a case, on the grid of `like`; every file is opened once."""
    by_file: dict[str, list[Mask]] = {}
    for mask in case.masks:
        by_file.setdefault(mask.path, []).append(mask)

    def each():
        for path, members in by_file.items():
            mask_of = formats.open_masks(path, like)
            for mask in members:
                yield mask.name, mask_of(mask)

    return combine(each(), like.shape)


def corpus_of(
    name: str, classes: Sequence[str], sets: Iterable[Iterable[str]], **fields: Any
) -> Corpus:
    """The corpus of cases whose labels are masks.

    Args:
      name: name of the corpus.
      classes: class names; the class at position i alone has the raw value i + 1.
      sets: combinations that occur (sets of one class are allowed); their values follow those of
        the classes.
      fields: further fields of `Corpus`, such as annotated, modality, channels.

    Raises: `LabelError` for a combination with an unknown class, or a repeated class.
    """
    classes = tuple(classes)
    if len(set(classes)) != len(classes):
        raise LabelError("a class is named twice", path=name, found=classes)
    order = {c: i for i, c in enumerate(classes)}
    combinations = set()
    for members in map(frozenset, sets):
        for unknown in members - set(classes):
            raise LabelError(
                f"a combination names the unknown class {unknown!r}",
                path=name,
                fix=did_you_mean(unknown, classes),
            )
        if len(members) > 1:
            combinations.add(tuple(sorted(members, key=order.get)))
    ordered = sorted(combinations, key=lambda members: (len(members), [order[m] for m in members]))
    labels = [(i + 1, (c,)) for i, c in enumerate(classes)] + [
        (len(classes) + 1 + i, c) for i, c in enumerate(ordered)
    ]
    return Corpus(name, tuple(labels), **fields)


def to_corpus_ids(
    ids: UInt16[np.ndarray, "z y x"], sets: Sets, corpus: Corpus, path: str
) -> np.ndarray:
    """Ids of a case's own sets -> dense ids of the corpus (uint8, uint16 from 256 ids).

    Classes that the corpus does not name are removed from the sets (if only some masks were
    declared). Raises: `LabelError` naming a combination that is not in the corpus' table.
    """
    number = {frozenset(names): i for i, (_, names) in enumerate(corpus.labels)}
    table = np.zeros(len(sets), np.uint8 if len(corpus.values) <= 256 else np.uint16)
    for i, members in enumerate(sets):
        known = members & set(corpus.classes)
        if known not in number:
            raise LabelError(
                f"an overlap of {', '.join(sorted(known))} that the corpus' table does not know",
                path=path,
                found=f"{int((ids == i).sum())} voxels",
                expected="a combination that was there when the corpus was scanned",
                fix="scan the corpus again, or declare the combination",
            )
        table[i] = number[known]
    return table[ids]


def check_classes(case: Case) -> None:
    """`UsageError` if a case has both a label map and masks: the choice would be a guess."""
    if case.label is not None and case.masks:
        raise UsageError(
            "a label map and masks for one case",
            path=case.label,
            found=f"{len(case.masks)} masks",
            fix="give one of them",
        )


def _compact(ids: np.ndarray, sets: list[frozenset[str]]) -> tuple[np.ndarray, Sets]:
    """Removes sets whose voxels were all overwritten by later masks."""
    used = _used(ids, len(sets))
    used[0] = True
    table = (np.cumsum(used) - 1).astype(np.uint16)
    return table[ids], tuple(members for members, kept in zip(sets, used, strict=True) if kept)


def _used(ids: np.ndarray, count: int) -> np.ndarray:
    """(count,) bool: which ids occur."""
    used = np.zeros(count, bool)
    used[ids] = True
    return used
