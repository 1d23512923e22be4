"""The kinds of augmentation behind one interface: a word and its settings -> a function of batches.

In: `config.augment` without `on`, and facts of the data. Out: f(key, image (b, *vol_in, m), label
(b, *vol_in)[, corpus (b,)]) -> image and label at the network's patch. A true attribute `by_corpus`
says that it wants the corpora of the samples. A new kind is a settings dataclass, a function and an
entry of `KINDS`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medjax.augment import lateral, nnunet, turns
from medjax.errors import UsageError, did_you_mean
from medjax.labels import Corpus
from medjax.registry import fill
from medjax.sample.patches import enlarged_patch


@dataclasses.dataclass(frozen=True)
class Facts:
    """What an augmentation may need to know of the experiment.

    Attributes:
      patch: the network's, (z, y, x) or (y, x).
      corpora: in the order of the batch's `corpus` index.
      orientation: of the prepared volumes, "RAS" or "stored".
      mesh, batch_axes: the devices that a batch is split over, see `nnunet.augment`.
    """

    patch: tuple[int, ...]
    corpora: Sequence[Corpus] = ()
    orientation: str = "RAS"
    mesh: Any = None
    batch_axes: str | tuple[str, ...] = "data"


@dataclasses.dataclass(frozen=True)
class Flips:
    """Settings of `turns.flips`.

    Attributes:
      flip_axes: spatial axes that are mirrored; None: the last one.
    """

    flip_axes: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind.

    Attributes:
      settings: the dataclass of its settings.
      make: (settings of the config, facts) -> the function of batches.
      cut: the patch that the sampler has to cut for the network's patch.
    """

    settings: type
    make: Callable[[dict, Facts], Callable]
    cut: Callable[[tuple[int, ...]], tuple[int, ...]] = tuple


def _nnunet(given: dict, facts: Facts) -> Callable:
    if pairs := given.pop("lateral", ()):
        given["swap"] = lateral.swaps(facts.corpora, pairs)
        if facts.orientation != "RAS" and "swap_axis" not in given:
            raise UsageError(
                "left and right are known in RAS orientation only",
                fix="name the axis: --config.augment.swap_axis=2",
            )
    settings = fill(nnunet.Augmentation, given, "config.augment")
    devices = {"mesh": facts.mesh, "batch_axes": facts.batch_axes}

    def augmented(key, image, label, corpus=None):
        return nnunet.augment(key, image, label, facts.patch, settings, corpus=corpus, **devices)

    augmented.by_corpus = any(settings.swap)
    return augmented


def _turns(given: dict, facts: Facts) -> Callable:
    settings = fill(turns.Turns, given, "config.augment")
    return lambda key, image, label: turns.turns(key, image, label, facts.patch, settings)


def _flips(given: dict, facts: Facts) -> Callable:
    axes = fill(Flips, given, "config.augment").flip_axes
    axes = (len(facts.patch) - 1,) if axes is None else tuple(axes)
    return lambda key, image, label: turns.flips(key, image, label, facts.patch, axes)


KINDS: Mapping[str, Kind] = {
    "nnunet": Kind(nnunet.Augmentation, _nnunet, enlarged_patch),
    "turns": Kind(turns.Turns, _turns),
    "flips": Kind(Flips, _flips),
}


def find(kind: str) -> Kind:
    """A kind by its word; `UsageError` for an unknown one."""
    if kind not in KINDS:
        raise UsageError(f"unknown augmentation {kind!r}", fix=did_you_mean(str(kind), KINDS))
    return KINDS[kind]


def make(given: Mapping, facts: Facts) -> Callable | None:
    """The function of `config.augment`; None if it is off.

    Args:
      given: the section: `on`, `kind` ("nnunet" if left out) and the settings of the kind; those of
        "nnunet" are `nnunet.Augmentation` and `lateral`, "auto" or pairs of class names.

    Raises: `UsageError` for unknown kinds and settings.
    """
    given = dict(given)
    if not given.pop("on"):
        return None
    return find(given.pop("kind", "nnunet")).make(given, facts)


def cut(given: Mapping, patch: Sequence[int]) -> tuple[int, ...]:
    """The patch that the sampler cuts: enlarged if it will be rotated and scaled."""
    if not given["on"]:
        return tuple(patch)
    return tuple(find(given.get("kind", "nnunet")).cut(tuple(patch)))
