"""`--mode=dry`: prints what a run would do, from shapes alone.

Allocates no array, prepares nothing, needs no scan of a declared corpus; of scans that are on disk
it reads the headers.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import jax

from medjax.errors import UsageError
from medjax.labels import LabelSpace
from medjax.runs import build, footprint, initial
from medjax.runs import open as corpora
from medjax.runs import spacing as spacings
from medjax.runs.ahead import cards
from medjax.runs.ahead import compiled as compiled_ahead
from medjax.runs.ahead import devices as on_devices
from medjax.runs.config import with_plan
from medjax.runs.settings.schema import Config
from medjax.runs.start import head_prior
from medjax.sample.draw import corpus_probabilities
from medjax.train import accumulate


def dry(
    config: Config,
    workdir: Path,
    devices: Sequence[int] = (),
    *,
    compiled: bool = True,
    target: str = "",
) -> str:
    """The experiment in words and tables: parameters, memory, corpora, mixture, classes.

    The first line states a spacing that had to be assumed because scans are not on disk.

    Args:
      devices: numbers of devices to show the memory per device, and to lower the training step,
        for. compiled: also compile it (minutes).
      target: card to compile the training step for without having it, like "h200x8".
    """
    if target:
        cards.check(cards.parse(target)[0])
    config = with_plan(config)
    head_prior.check(config)
    config = initial.with_topology(config, workdir)
    data = corpora.open_data(config.data, workdir, files=False)
    expected = spacings.expected(config, data, workdir)
    net = build.make_network(config, data.space, expected.spacing_mm)
    parts = [
        f"experiment {config.name}: {config.model.name}, {len(data.space.corpora)} "
        f"corpora, {len(data.space.classes)} classes",
        _network(config, net, data.space, expected),
        _mixture(config, data),
        _classes(data.space),
    ]
    if said := build.about_sides(config, data.space):
        parts.append(said)
    if devices:
        table = on_devices.report(
            config, net, data.space, devices, expected.spacing_mm, compiled=compiled
        )
        parts.insert(2, table)
    if target:
        parts.insert(2, compiled_ahead.report(config, data.space, target, expected.spacing_mm))
    assumed = f"{expected.sentence()}\n" if expected.assumed else ""
    return assumed + "\n\n".join(parts)


def _network(
    config: Config, net: build.Network, space: LabelSpace, expected: spacings.Expected
) -> str:
    sizes, found = footprint.memory(config, net, space), footprint.budget(config, net)
    lines = [
        f"parameters           {build.count(net.abstract()):,}",
        *[f"                     {footprint.budget_sentence(found)}"] * bool(found["frozen"]),
        f"patch, batch, steps  {'x'.join(map(str, net.patch))}, {config.train.batch}, "
        f"{config.train.steps:,}",
        f"spacing              {expected.sentence()}",
        *["heads                start at the share of every class in the drawn patches"]
        * head_prior.measures(config),
        f"this machine         {_here(config)}",
        f"memory of one step   {footprint.sentence(sizes)}, all on one device",
    ]
    if found["frozen"]:
        whole = footprint.tuned_as_a_whole(config)
        other = build.make_network(whole, space, expected.spacing_mm)
        sizes = footprint.memory(whole, other, space)
        lines.append(f"  all parameters tuned {footprint.sentence(sizes)}")
    if said := accumulate.sentence(build.make_task(config, space, net), config.train.accumulate):
        lines.append(said)
    return "\n".join(lines)


def _here(config: Config) -> str:
    """How training would use the devices of this machine, or why it would be refused."""
    try:
        count = len(jax.devices())
        return on_devices.layout_of(config, count, config.sharding.fsdp).sentence()
    except UsageError as error:
        return f"training would be refused: {error}"


def _mixture(config: Config, data: corpora.Data) -> str:
    fold = 1 - 1 / config.data.split.folds
    n = []
    for corpus in data.space.corpora:
        part = data.parts.get(corpus.name, "")
        share = 1 / int(part.split("/")[1]) if part else 1.0
        exact = (
            len(data.training_cases(corpus)) if data.splits and data.cases.get(corpus.store) else 0
        )
        n.append(exact or max(math.floor(data.counts[corpus.store] * fold * share), 1))
    shares = corpus_probabilities(
        n, config.sampler.exponent, [data.groups.get(c.store, "") for c in data.space.corpora]
    )
    rows = [("corpus", "cases", "training", "share", "modality", "annotates")]
    for corpus, cases, p in zip(data.space.corpora, n, shares, strict=True):
        annotated = ", ".join(corpus.annotated)
        rows.append(
            (
                corpus.name,
                str(data.counts[corpus.store]),
                str(cases),
                f"{p:.3f}",
                corpus.modality,
                annotated,
            )
        )
    return footprint.table(rows)


def _classes(space: LabelSpace) -> str:
    rows = [("channel", "class", "annotated by")]
    for k, name in enumerate(space.classes):
        by = [c.name for c, known in zip(space.corpora, space.known[:, k], strict=True) if known]
        rows.append((str(k), name, ", ".join(by)))
    return footprint.table(rows)
