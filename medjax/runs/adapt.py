"""Rearranges a source run's parameters before `weights.transfer` compares leaf with leaf.

In: the configs and label spaces of both runs and their parameters. Out: source parameters with
experts ordered by modality name; names along the axes of heads.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medjax.errors import UsageError
from medjax.labels import LabelSpace
from medjax.models.parts import heads, sockets
from medjax.runs import build, fitted
from medjax.runs import folder as runfolder
from medjax.train import checkpoint
from medjax.weights import experts


def expert_names(fields: Mapping, space: LabelSpace, count: int) -> tuple[str, ...]:
    """Names of the experts of a run's network.

    The first modality that is routed to each; "expert3" if there is none.
    """
    modalities = space.modalities
    expert_of = sockets.words(fields["model"], "mlp").get("expert_of") or (
        range(len(modalities)) if count >= len(modalities) else ()
    )
    names = {}
    for modality, expert in zip(modalities, expert_of, strict=True) if expert_of else ():
        names.setdefault(expert, modality)
    return tuple(names.get(e, f"expert{e}") for e in range(count))


def rearranged(
    source: Any, theirs: tuple[Mapping, LabelSpace], fresh: Any, ours: tuple[Mapping, LabelSpace]
) -> Any:
    """The source's parameters after `config.init`.

    Applied are `copy`, `experts_from`, `upcycle`, `experts` and `gate`, in this order.

    Args:
      source, theirs: parameters of the source, its config and label space. fresh, ours: the
        target's.

    Raises: `UsageError` for names that do not exist, or experts without a source.
    """
    given = ours[0]["init"]
    if given.get("copy"):
        source = experts.copied(source, given["copy"])
    if given.get("upcycle"):
        source = experts.upcycled(source, fresh)
    here, there = experts.count(fresh), experts.count(source)
    if not here or not there:
        return source
    wanted = expert_names(*ours, here)
    if not given.get("upcycle"):
        known = expert_names(*theirs, there)
        source = experts.aligned(
            source,
            fresh,
            experts.origins(wanted, known, given.get("experts", {})),
            given.get("gate", "fresh"),
        )
    for name, other in given.get("experts_from", {}).items():
        if name not in wanted:
            raise UsageError(
                f"config.init.experts_from names the unknown expert {name!r}",
                expected=", ".join(wanted),
            )
        params, where = _other(Path(other).expanduser(), name)
        source = experts.from_other(source, params, wanted.index(name), where)
    return source


def _other(folder: Path, name: str) -> tuple[Any, int]:
    params = fitted.check_finite(checkpoint.read_params(folder), folder)
    known = expert_names(
        runfolder.read_config(folder), runfolder.read_space(folder), experts.count(params)
    )
    if known and name not in known:
        raise UsageError(
            f"this run has no expert for {name!r}", path=folder, found=", ".join(known)
        )
    return params, known.index(name) if known else 0


def channel_names(
    ours: tuple[Mapping, LabelSpace], theirs: tuple[Mapping, LabelSpace]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names along the class axis of the heads of (this run, the source): equal names are copied.

    Those of the label space for sigmoid heads; for heads by corpus one name per column,
    "corpus/class" as the corpus calls it and "corpus/background". A head that corpora share is
    named after one that both runs have.
    """
    if "corpus_softmax" not in (_kind(ours[0]), _kind(theirs[0])):
        return ours[1].classes, theirs[1].classes
    stores = {corpus.name for corpus in theirs[1].corpora} & {
        corpus.name for corpus in ours[1].corpora
    }
    return _column_names(*ours, stores), _column_names(*theirs, stores)


def axis_names(
    ours: tuple[Mapping, LabelSpace], theirs: tuple[Mapping, LabelSpace]
) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """What runs along an axis -> its names in (the source, this run)."""

    def names(fields: Mapping, space: LabelSpace) -> dict[str, tuple[str, ...]]:
        return {
            "modalities": tuple(space.modalities),
            "corpora": tuple(corpus.name for corpus in space.corpora),
            "tasks": build.tasks(fields, space)[1],
        }

    here, there = names(*ours), names(*theirs)
    return {what: (there[what], here[what]) for what in here}


def _kind(fields: Mapping) -> str:
    return sockets.words(fields["model"], "head")["kind"]


def _column_names(fields: Mapping, space: LabelSpace, common: set[str]) -> tuple[str, ...]:
    if _kind(fields) != "corpus_softmax":
        return space.classes
    channels = tuple(tuple(np.flatnonzero(row).tolist()) for row in space.known)
    share = sockets.words(fields["model"], "head").get("share", "corpus")
    numbers = heads.numbered(share, channels)
    table = heads.columns(len(space.classes), channels, numbers)
    names = [""] * (int(table.max()) + 1)
    order = sorted(
        range(len(numbers)), key=lambda k: space.corpora[k].name in common
    )  # a common corpus takes precedence
    for k in order:
        own = {
            channel: local for local, channel in space.names[k]
        }  # the same whichever way the run shares classes between corpora
        for column, channel in zip(table[k], ("", *space.classes), strict=True):
            if column >= 0:
                names[column] = f"{space.corpora[k].name}/{own.get(channel, 'background')}"
    return tuple(names)
