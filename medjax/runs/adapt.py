"""Rearranges a source run's parameters before `weights.transfer` compares leaf with leaf.

In: the configs and label spaces of both runs and their parameters. Out: source parameters with
experts ordered by modality name; names along the axes of heads.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from medjax.errors import UsageError
from medjax.labels import LabelSpace
from medjax.models.parts import heads, sockets
from medjax.runs import build, fitted
from medjax.runs import folder as runfolder
from medjax.runs.settings.schema import Config
from medjax.train import checkpoint
from medjax.weights import experts


def expert_names(config: Config, space: LabelSpace, count: int) -> tuple[str, ...]:
    """Names of the experts of a run's network.

    The first modality that is routed to each; "expert3" if there is none.
    """
    modalities = space.modalities
    expert_of = sockets.words(config.model.to_json(), "mlp").get("expert_of") or (
        range(len(modalities)) if count >= len(modalities) else ()
    )
    names = {}
    for modality, expert in zip(modalities, expert_of, strict=True) if expert_of else ():
        names.setdefault(expert, modality)
    return tuple(names.get(e, f"expert{e}") for e in range(count))


def rearranged(
    source: Any, theirs: tuple[Config, LabelSpace], fresh: Any, ours: tuple[Config, LabelSpace]
) -> Any:
    """The source's parameters after `config.init`.

    Applied are `copy`, `also`, `experts_from`, `upcycle`, `experts` and `gate`, in this order.

    Args:
      source, theirs: parameters of the source, its config and label space. fresh, ours: the
        target's.

    Raises: `UsageError` for names that do not exist, or experts without a source.
    """
    given = ours[0].init
    if given.copy:
        source = experts.copied(source, given.copy)
    for rule in given.also:
        source = _joined(source, rule)
    if given.upcycle:
        source = experts.upcycled(source, fresh)
    here, there = experts.count(fresh), experts.count(source)
    if not here or not there:
        return source
    wanted = expert_names(*ours, here)
    if not given.upcycle:
        known = expert_names(*theirs, there)
        source = experts.aligned(
            source,
            fresh,
            experts.origins(wanted, known, given.experts),
            given.gate,
        )
    for name, other in given.experts_from.items():
        if name not in wanted:
            raise UsageError(
                f"config.init.experts_from names the unknown expert {name!r}",
                expected=", ".join(wanted),
            )
        params, where = _other(Path(other).expanduser(), name)
        source = experts.from_other(source, params, wanted.index(name), where)
    return source


def _joined(source: Any, rule: tuple[Any, ...]) -> dict:
    """The source with leaves of another run (or archive) below the paths that a rule of
    `config.init.also` gives them, in place of those that are there.
    """
    from medjax.runs.trained import read_model

    if len(rule) != 3:
        raise UsageError(
            "unusable rule in config.init.also", found=rule, expected="(regex, path, run)"
        )
    pattern, replacement, where = map(str, rule)
    given = experts.flat(read_model(Path(where).expanduser()).params())
    hits = {re.sub(pattern, replacement, n): v for n, v in given.items() if re.search(pattern, n)}
    if not hits:
        raise UsageError(
            f"config.init.also: nothing matches {pattern!r}", path=where, found=sorted(given)[:6]
        )
    return experts.nested(experts.flat(source) | hits)


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
    ours: tuple[Config, LabelSpace], theirs: tuple[Config, LabelSpace]
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
    ours: tuple[Config, LabelSpace], theirs: tuple[Config, LabelSpace]
) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """What runs along an axis -> its names in (the source, this run)."""

    def names(config: Config, space: LabelSpace) -> dict[str, tuple[str, ...]]:
        return {
            "modalities": tuple(space.modalities),
            "corpora": tuple(corpus.name for corpus in space.corpora),
            "tasks": build.tasks(config, space)[1],
        }

    here, there = names(*ours), names(*theirs)
    return {what: (there[what], here[what]) for what in here}


def _kind(config: Config) -> str:
    return sockets.words(config.model.to_json(), "head")["kind"]


def _column_names(config: Config, space: LabelSpace, common: set[str]) -> tuple[str, ...]:
    if _kind(config) != "corpus_softmax":
        return space.classes
    channels = tuple(tuple(np.flatnonzero(row).tolist()) for row in space.known)
    share = sockets.words(config.model.to_json(), "head").get("share", "corpus")
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
