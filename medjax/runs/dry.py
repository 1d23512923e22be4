"""`--mode=dry`: prints what a run would do, from shapes alone.

Allocates no array, prepares nothing, needs no scan of a declared corpus.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from medjax.labels import LabelSpace
from medjax.runs import build, config, dry_devices, footprint
from medjax.runs import open as corpora
from medjax.sample.draw import corpus_probabilities


def dry(
    fields: Mapping, workdir: Path, devices: Sequence[int] = (), *, compiled: bool = True
) -> str:
    """The experiment in words and tables: parameters, memory, corpora, mixture, classes.

    Args:
      devices: numbers of devices to show the memory per device, and to lower the training step,
        for. compiled: also compile it (minutes).
    """
    fields = config.resolve(fields)
    data = corpora.open_data(fields["data"], workdir, files=False)
    spacing = tuple(fields["data"]["spacing_mm"]) or (1.0, 1.0, 1.0)
    net = build.make_network(fields, data.space, spacing)
    parts = [
        f"experiment {fields['name']}: {fields['model']['name']}, {len(data.space.corpora)} "
        f"corpora, {len(data.space.classes)} classes",
        _network(fields, net, data.space),
        _mixture(fields, data),
        _classes(data.space),
    ]
    if devices:
        parts.insert(2, dry_devices.report(fields, net, data.space, devices, compiled=compiled))
    return "\n\n".join(parts)


def _network(fields: Mapping, net: build.Network, space: LabelSpace) -> str:
    sizes = footprint.memory(fields, net, space)
    lines = [
        f"parameters           {build.count(net.abstract()):,}",
        f"patch, batch, steps  {'x'.join(map(str, net.patch))}, {fields['train']['batch']}, "
        f"{fields['train']['steps']:,}",
        "memory of one step   "
        + ", ".join(f"{name} {footprint.size(n)}" for name, n in sizes.items())
        + f"; together {footprint.size(sum(sizes.values()))}",
    ]
    return "\n".join(lines)


def _mixture(fields: Mapping, data: corpora.Data) -> str:
    fold = 1 - 1 / fields["data"]["split"]["folds"]
    n = []
    for corpus in data.space.corpora:
        part = data.parts.get(corpus.name, "")
        share = 1 / int(part.split("/")[1]) if part else 1.0
        exact = (
            len(data.training_cases(corpus)) if data.splits and data.cases.get(corpus.store) else 0
        )
        n.append(exact or max(math.floor(data.counts[corpus.store] * fold * share), 1))
    shares = corpus_probabilities(
        n, fields["sampler"]["exponent"], [data.groups.get(c.store, "") for c in data.space.corpora]
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
