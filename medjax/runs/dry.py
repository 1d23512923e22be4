"""`--mode=dry`: everything a run would do, from shapes alone. Allocates no array, prepares nothing, needs no scan of a declared corpus."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from medjax.labels import LabelSpace
from medjax.runs import build, config
from medjax.runs import open as corpora
from medjax.sample.draw import corpus_probabilities

MIB, GIB = 2**20, 2**30


def dry(fields: Mapping, workdir: Path, devices: Sequence[int] = (), *, compiled: bool = True) -> str:
    """The experiment in words and tables: parameters, memory, corpora, mixture, classes.

    Args:
      devices: numbers of devices to show the memory per device, and to lower the training step, for. compiled: also compile it (minutes).
    """
    fields = config.resolve(fields)
    data = corpora.open_data(fields["data"], workdir, files=False)
    spacing = tuple(fields["data"]["spacing_mm"]) or (1.0, 1.0, 1.0)
    net = build.make_network(fields, data.space, spacing)
    parts = [
        f"experiment {fields['name']}: {fields['model']['name']}, {len(data.space.corpora)} corpora, {len(data.space.classes)} classes",
        _network(fields, net, data.space),
        _mixture(fields, data),
        _classes(data.space),
    ]
    if devices:
        from medjax.runs import dry_devices as many

        parts.insert(2, many.report(fields, net, data.space, devices, compiled=compiled))
    return "\n\n".join(parts)


def memory(fields: Mapping, net: build.Network, space: LabelSpace) -> dict[str, int]:
    """Bytes of one training step on one device: parameters, optimizer state, gradients, batch, and what is kept for the backward pass."""
    params = net.abstract()
    task = build.make_task(fields, space, net)
    state = jax.eval_shape(build.make_optimizer(fields).tx.init, params)
    batch = abstract_batch(fields, net)

    def residuals(params, batch, key):
        return jax.vjp(lambda p: task.loss(p, batch, key)[0], params)[1]

    kept = jax.eval_shape(residuals, params, batch, jax.random.key(0))
    return {
        "parameters": build.bytes_of(params),
        "optimizer": build.bytes_of(state),
        "gradients": build.bytes_of(params),
        "batch": build.bytes_of(batch),
        "kept for backward": max(build.bytes_of(kept) - build.bytes_of(params), 0),
    }


def abstract_batch(fields: Mapping, net: build.Network) -> dict:
    """Shapes of one global batch as the sampler cuts it."""
    b, m, patch = fields["train"]["batch"], net.channels, build.sampled_patch(fields)
    shapes = {
        "image": ((b, *patch, m), jnp.int16), "gain": ((b, m), jnp.float32), "bias": ((b, m), jnp.float32),
        "label": ((b, *patch), jnp.int16), "corpus": ((b,), jnp.int32), "modality": ((b,), jnp.int32),
        "spacing_mm": ((b, 3), jnp.float32), "case": ((b,), jnp.int32),
    }  # fmt: skip
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def _network(fields: Mapping, net: build.Network, space: LabelSpace) -> str:
    sizes = memory(fields, net, space)
    lines = [
        f"parameters           {build.count(net.abstract()):,}",
        f"patch, batch, steps  {'x'.join(map(str, net.patch))}, {fields['train']['batch']}, {fields['train']['steps']:,}",
        "memory of one step   " + ", ".join(f"{name} {size(n)}" for name, n in sizes.items()) + f"; together {size(sum(sizes.values()))}",
    ]
    return "\n".join(lines)


def _mixture(fields: Mapping, data: corpora.Data) -> str:
    fold = 1 - 1 / fields["data"]["split"]["folds"]
    n = []
    for corpus in data.space.corpora:
        part = data.parts.get(corpus.name, "")
        share = 1 / int(part.split("/")[1]) if part else 1.0
        exact = len(data.training_cases(corpus)) if data.splits and data.cases.get(corpus.store) else 0
        n.append(exact or max(math.floor(data.counts[corpus.store] * fold * share), 1))
    shares = corpus_probabilities(n, fields["sampler"]["exponent"], [data.groups.get(c.store, "") for c in data.space.corpora])
    rows = [("corpus", "cases", "training", "share", "modality", "annotates")]
    for corpus, cases, p in zip(data.space.corpora, n, shares, strict=True):
        annotated = ", ".join(corpus.annotated)
        rows.append((corpus.name, str(data.counts[corpus.store]), str(cases), f"{p:.3f}", corpus.modality, annotated))
    return table(rows)


def _classes(space: LabelSpace) -> str:
    rows = [("channel", "class", "annotated by")]
    for k, name in enumerate(space.classes):
        by = [c.name for c, known in zip(space.corpora, space.known[:, k], strict=True) if known]
        rows.append((str(k), name, ", ".join(by)))
    return table(rows)


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows of text as aligned columns; the last column is not padded."""
    widths = np.array([[len(cell) for cell in row] for row in rows]).max(0)
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row[:-1], widths, strict=False)) + "  " + row[-1] for row in rows)


def size(n: int) -> str:
    """Bytes for people."""
    return f"{n / GIB:.2f} GiB" if n >= GIB else f"{n / MIB:.1f} MiB"
