"""The kinds of augmentation behind one interface: a word and its settings -> a function of batches.

In: `config.augment` without `on`, and facts of the data. Out: f(key, image (b, *vol_in, m), label
(b, *vol_in)[, corpus (b,)][, moved]) -> image and label at the network's patch. A true attribute
`by_corpus` says that it wants the corpora of the samples; `moved` is what `moves` drew. A new kind
is a settings dataclass, a function and an entry of `KINDS`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medjax.augment import lateral, movement, nnunet, turns
from medjax.augment.movement import Movement
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
      swap_axis: the left-right axis; None is the last one (x, in RAS).
    """

    flip_axes: tuple[int, ...] | None = None
    swap_axis: int | None = None


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind.

    Attributes:
      settings: the dataclass of its settings.
      make: (settings of the config, facts, what mirroring does to left and right) -> the function
        of batches.
      cut: the patch that the sampler has to cut for the network's patch.
      moves: settings of the config and the network's patch -> what draws rotation and scaling on
        the host, so that the sampler cuts the rest smaller; None if the kind has none.
    """

    settings: type
    make: Callable[[dict, Facts, lateral.Sides], Callable]
    cut: Callable[[tuple[int, ...]], tuple[int, ...]] = tuple
    moves: Callable[[dict, tuple[int, ...]], Movement] | None = None


def _nnunet(given: dict, facts: Facts, sides: lateral.Sides) -> Callable:
    if sides.swap:
        given["swap"] = sides.swap
    settings = fill(nnunet.Augmentation, given, "config.augment")
    if sides.reason:
        settings = dataclasses.replace(settings, mirror_axes=_upright(settings, facts))
    devices = {"mesh": facts.mesh, "batch_axes": facts.batch_axes}

    def augmented(key, image, label, corpus=None, moved=None):
        return nnunet.augment(
            key, image, label, facts.patch, settings, corpus=corpus, moved=moved, **devices
        )

    augmented.by_corpus = any(settings.swap)
    return augmented


def _nnunet_moves(given: dict, patch: tuple[int, ...]) -> Movement:
    return movement.of(fill(nnunet.Augmentation, given, "config.augment"), patch)


def _upright(settings: nnunet.Augmentation, facts: Facts) -> tuple[int, ...]:
    """The mirrored axes without those that exchange left and right; none if these are unknown."""
    if not _axis_known(settings.swap_axis, facts):
        return ()
    every = range(len(facts.patch)) if settings.mirror_axes is None else settings.mirror_axes
    exchanging = nnunet.exchanging_axes(settings, facts.patch)
    return tuple(axis for axis in every if axis not in exchanging)


def _turns(given: dict, facts: Facts, sides: lateral.Sides) -> Callable:
    settings = fill(turns.Turns, given, "config.augment")
    if sides.reason:  # every quarter turn comes with a flip
        settings = dataclasses.replace(settings, turn=0.0)
    return _exchanging(
        sides,
        lambda key, image, label, exchange: turns.turns(
            key, image, label, facts.patch, settings, exchange
        ),
    )


def _flips(given: dict, facts: Facts, sides: lateral.Sides) -> Callable:
    settings, dims = fill(Flips, given, "config.augment"), len(facts.patch)
    axes = (dims - 1,) if settings.flip_axes is None else tuple(settings.flip_axes)
    own = dims - 1 if settings.swap_axis is None else settings.swap_axis
    if sides.reason:
        known = _axis_known(settings.swap_axis, facts)
        axes = tuple(axis for axis in axes if axis % dims != own) if known else ()
    return _exchanging(
        sides,
        lambda key, image, label, exchange: turns.flips(
            key, image, label, facts.patch, axes, exchange, own
        ),
    )


def _exchanging(sides: lateral.Sides, function: Callable) -> Callable:
    """The function of batches; its last argument is filled in, see `nnunet.exchange_rows`."""

    def made(key, image, label, corpus=None):
        return function(key, image, label, nnunet.exchange_rows(sides.swap, corpus))

    made.by_corpus = any(sides.swap)
    return made


def _axis_known(named: int | None, facts: Facts) -> bool:
    return named is not None or facts.orientation == "RAS"


KINDS: Mapping[str, Kind] = {
    "nnunet": Kind(nnunet.Augmentation, _nnunet, enlarged_patch, _nnunet_moves),
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
      given: the section: `on`, `kind` ("nnunet" if left out), `lateral` (see `sides`) and the
        settings of the kind.

    Raises: `UsageError` for unknown kinds and settings.
    """
    given = dict(given)
    if not given.pop("on"):
        return None
    found = sides(given, facts)
    given.pop("lateral", None)
    return find(given.pop("kind", "nnunet")).make(given, facts, found)


def sides(given: Mapping, facts: Facts) -> lateral.Sides:
    """What the augmentation does to left and right, see `lateral.sides`.

    Args:
      given: the section `config.augment`; its `lateral` is "auto" or pairs of class names.
    """
    known = _axis_known(given.get("swap_axis"), facts)
    return lateral.sides(facts.corpora, given.get("lateral", ()), known)


def exchanging_axes(given: Mapping, facts: Facts) -> tuple[int, ...]:
    """The axes whose mirroring shows a network trained so the other side of every lateral class.

    Predictions of mirrored images along them cannot be averaged with others. Empty without
    `lateral`, and where no class has a side.

    Args:
      given: the section `config.augment`.
    """
    fields, every = dict(given), tuple(range(len(facts.patch)))
    found = sides(fields, facts)
    if not fields.pop("on") or not found:
        return ()
    kind = fields.pop("kind", "nnunet")
    fields.pop("lateral")
    if kind == "turns" or not _axis_known(fields.get("swap_axis"), facts):
        return every
    if kind == "nnunet":
        settings = fill(nnunet.Augmentation, fields, "config.augment")
        return nnunet.exchanging_axes(settings, facts.patch)
    own = fields.get("swap_axis")
    return every[-1:] if own is None else (own,)


def sentence(given: Mapping, facts: Facts) -> str:
    """What happens to classes with a side, in one line; empty if there are none.

    Args:
      given: the section `config.augment`.
    """
    if not given["on"]:
        return ""
    known = _axis_known(given.get("swap_axis"), facts)
    return lateral.sentence(facts.corpora, given.get("lateral", ()), known)


def cut(given: Mapping, patch: Sequence[int]) -> tuple[int, ...]:
    """The patch that the sampler cuts: enlarged if it will be rotated and scaled."""
    if not given["on"]:
        return tuple(patch)
    return tuple(find(given.get("kind", "nnunet")).cut(tuple(patch)))


def moves(given: Mapping, patch: Sequence[int]) -> Movement | None:
    """What draws rotation and scaling on the host; None where the augmentation has neither.

    Args:
      given: the section `config.augment`. patch: the network's.
    """
    fields = dict(given)
    on, kind = fields.pop("on"), find(fields.pop("kind", "nnunet"))
    fields.pop("lateral", None)
    return kind.moves(fields, tuple(patch)) if on and kind.moves else None
