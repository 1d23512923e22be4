"""Further classes that are scored beside those of a data set: unions of its classes, and its label
values alone.

In: a corpus. Out: the corpus with the further classes, which own the same label values. A region
("whole tumour" of three exclusive classes) is the union of classes. A class "kidney alone" is a
class without the classes nested in it: the voxels that a label map stores as kidney.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from medjax.corpora.inputs import Case
from medjax.errors import LabelError, UsageError, did_you_mean
from medjax.labels import Corpus

ALONE = "{} alone"


def extended(
    corpus: Corpus, regions: Mapping[str, Sequence[str]], alone: bool = False
) -> tuple[Corpus, tuple[str, ...]]:
    """The corpus with further classes, and their names, in order.

    Args:
      regions: region -> the classes it unites. A corpus that has none of the classes has not the
        region either.
      alone: also every class that contains others, without them.

    Raises: `LabelError` for a region of which a corpus has only some classes, or whose voxels are
      those of a class that is scored anyway.
    """
    further: dict[str, tuple[int, ...]] = {}
    for region, members in regions.items():
        own = [name for name in members if name in corpus.classes]
        if not own:
            continue
        if missing := [name for name in members if name not in corpus.classes]:
            raise LabelError(
                f"region {region!r} unites an unknown class {missing[0]!r}",
                path=corpus.name,
                fix=did_you_mean(missing[0], corpus.classes),
            )
        further[region] = tuple(sorted({i for name in own for i in corpus.ids_of(name)}))
    if alone:
        further |= _alone(corpus)
    taken = {corpus.ids_of(name): name for name in corpus.annotated}
    for name, ids in further.items():
        if name in corpus.classes or ids in taken:
            raise LabelError(
                f"region {name!r} is a class already",
                path=corpus.name,
                found=taken.get(ids, name),
                fix="leave it out of config.evaluate.regions",
            )
        taken[ids] = name
    if not further:
        return corpus, ()
    labels = tuple(
        (value, (*names, *(name for name, ids in further.items() if i in ids)))
        for i, (value, names) in enumerate(corpus.labels)
    )
    return dataclasses.replace(corpus, labels=labels), tuple(further)


def _alone(corpus: Corpus) -> dict[str, tuple[int, ...]]:
    """Class with others inside -> dense ids of which it is the smallest class."""
    size = {name: len(corpus.ids_of(name)) for name in corpus.annotated}
    smallest: dict[str, list[int]] = {name: [] for name in corpus.annotated}
    for i, (_, names) in enumerate(corpus.labels):
        if own := [name for name in names if name in size]:
            smallest[min(own, key=size.__getitem__)].append(i)
    return {
        ALONE.format(name): tuple(ids)
        for name, ids in smallest.items()
        if 0 < len(ids) < size[name]
    }


def check(
    corpora: Sequence[Corpus],
    cases: Mapping[str, Sequence[Case]],
    regions: Mapping[str, Sequence[str]],
    alone: bool = False,
) -> None:
    """Refuses further classes that cannot be scored, before anything is trained or predicted.

    Raises: what `extended` raises; `UsageError` for a region that no corpus has, and for a data set
      with one mask per class, whose overlaps have no label value.
    """
    found = [extended(corpus, regions, alone) for corpus in corpora]
    names = {name for _, further in found for name in further}
    if unknown := [name for name in regions if name not in names]:
        raise UsageError(
            f"no corpus has the classes of region {unknown[0]!r}",
            found=", ".join(regions[unknown[0]]),
            fix=did_you_mean(regions[unknown[0]][0], {n for c in corpora for n in c.classes}),
        )
    for corpus, (_, further) in zip(corpora, found, strict=True):
        if further and any(case.masks for case in cases.get(corpus.store, ())):
            raise UsageError(
                "regions are scored from label maps, and this data set has a mask per class",
                path=corpus.name,
                found=further[0],
                fix="declare the region in its dataset.json instead",
            )
