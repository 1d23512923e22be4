"""The cases of one corpus that a stream may draw, and what its patches are centred on.

Source of the ratios: MONAI's RandCropByLabelClasses, with which the Universal Model trains on organ
and tumour sets.
"""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

from medjax.errors import UsageError, did_you_mean
from medjax.labels import Corpus

BACKGROUND = "background"


@dataclasses.dataclass(frozen=True)
class Pool:
    """The cases of one corpus that a stream may draw.

    Attributes:
      corpus: index in the label space.
      folder: the corpus' folder in the store.
      cases: case names, one folder each.
      foreground_ids: dense ids that may be forced into a patch; without those that a view hides.
      modality: index in the label space.
      classes: per annotated class the dense ids of its voxels (nested classes share ids), for
        `Recipe.by` "class"; empty: every id is one class.
      group: pools of one group count as one data set for the probability of a corpus (AMOS22's CT
        and MR); empty: a group of its own.
    """

    corpus: int
    folder: str
    cases: tuple[str, ...]
    foreground_ids: tuple[int, ...]
    modality: int
    classes: tuple[tuple[int, ...], ...] = ()
    group: str = ""
    ratios: tuple[tuple[tuple[int, ...], float], ...] = ()
    still: bool = False

    def groups(self, by: str) -> tuple[tuple[int, ...], ...]:
        """Groups of dense ids that may be forced into a patch, with equal probability."""
        allowed = set(self.foreground_ids)
        if by == "class" and self.classes:
            return tuple(
                found for ids in self.classes if (found := tuple(i for i in ids if i in allowed))
            )
        return tuple((i,) for i in self.foreground_ids)

    def centre(self, chance: float, held: Collection[str]) -> tuple[int, ...]:
        """The dense ids of which a voxel is the centre of a patch; () for any place.

        Args:
          chance: random number in [0, 1).
          held: dense ids, as text, of which the case has voxels. Ratios hold among what it has.
        """
        found = [
            (ids, weight)
            for ids, weight in self.ratios
            if not ids or any(str(i) in held for i in ids)
        ]
        weights = np.cumsum([weight for _, weight in found])
        if not len(weights) or not weights[-1]:
            return ()
        return found[int(np.searchsorted(weights, chance * weights[-1], side="right"))][0]


def ratios(corpus: Corpus, given: Mapping[str, float]) -> tuple[tuple[tuple[int, ...], float], ...]:
    """`Pool.ratios` from class name (or "background") -> weight.

    A class that contains another named one counts without it: of {"liver": 1, "liver tumour": 5},
    liver is what is not tumour.

    Raises: `UsageError` for a class that the corpus does not annotate, and weights that are
      negative or all 0.
    """
    known = (BACKGROUND, *corpus.annotated)
    for name, weight in given.items():
        if name not in known:
            raise UsageError(
                f"sampler.ratios names a class that {corpus.name!r} does not annotate",
                found=name,
                fix=did_you_mean(name, known),
            )
        if not 0 <= weight < np.inf:
            raise UsageError(
                f"sampler.ratios of {corpus.name!r} must not be negative",
                found=f"{name}: {weight}",
            )
    if not any(given.values()):
        raise UsageError(f"sampler.ratios of {corpus.name!r} are all 0")
    allowed = set(corpus.foreground_ids)
    ids = {name: allowed & set(corpus.ids_of(name)) for name in given if name != BACKGROUND}
    found = [((), float(given[BACKGROUND]))] if BACKGROUND in given else []
    for name, own in ids.items():
        inner = set().union(*(other for other in ids.values() if other < own))
        if own - inner:  # else it would mean any place
            found.append((tuple(sorted(own - inner)), float(given[name])))
    return tuple(found)
