"""Memory of a training step from shapes alone, and text tables.

In: the config, a network and a label space. Out: bytes by purpose; nothing is
allocated.
"""

import math
from typing import Any

import jax
import jax.extend
import numpy as np

from medjax.labels import LabelSpace
from medjax.runs import build
from medjax.runs.config import with_batch, with_field
from medjax.runs.settings.schema import Config
from medjax.sample.batch import abstract
from medjax.train import state as states

MIB, GIB = 2**20, 2**30


def memory(config: Config, net: build.Network, space: LabelSpace) -> dict[str, int]:
    """Bytes of one training step on one device.

    Parameters, optimizer state and moving average, gradients of the trained parameters, batch, and
    values kept for the backward pass.

    With `train.accumulate` > 1 the values kept are those of one micro-batch, the batch is held as
    cut and as augmented, and gradients are held twice (the sum, and those of one micro-batch).
    """
    parts, task = config.train.accumulate, build.make_task(config, space, net)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(states.maker(net.init, build.make_optimizer(config)), key)
    batch = abstract_batch(config, net)
    held = [batch]
    if parts > 1 and hasattr(task, "prepare"):
        held.append(jax.eval_shape(task.prepare, batch, key))
    micro = abstract_batch(with_batch(config, config.train.batch // parts), net)
    return {
        "parameters": build.bytes_of([state["params"], state["frozen"]]),
        "optimizer": build.bytes_of([state["opt"], state.get("ema", {})]),
        "gradients": build.bytes_of(state["params"]) * min(parts, 2),
        "batch": build.bytes_of(held),
        "kept for backward": _kept(task, state, micro, key),
    }


def budget(config: Config, net: build.Network) -> dict[str, int]:
    """Numbers of "trained" and "frozen" parameters; with phases, trained in any of them."""
    tree = net.abstract()
    on = jax.tree.leaves(build.make_optimizer(config).trained(tree))
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)]
    trained = sum(n for n, used in zip(sizes, on, strict=True) if used)
    return {"trained": trained, "frozen": sum(sizes) - trained}


def budget_sentence(found: dict[str, int]) -> str:
    """A `budget` in words; sizes are those of float32."""
    trained, frozen = found["trained"], found["frozen"]
    share = trained / max(trained + frozen, 1)
    return f"{trained:,} ({4 * trained / MIB:.2f} MiB, {share:.1%}) trained, {frozen:,} frozen"


def tuned_as_a_whole(config: Config) -> Config:
    """The same training of all parameters, without adapters."""
    config = with_field(config, "adapters", {})
    for name, value in {"trainable": ((".*", True),), "only": (), "phases": {}}.items():
        config = with_field(config, f"optim.{name}", value)
    return config


def sentence(sizes: dict[str, int]) -> str:
    """A `memory` in words."""
    parts = ", ".join(f"{name} {size(n)}" for name, n in sizes.items())
    return f"{parts}; together {size(sum(sizes.values()))}"


def _kept(task: Any, state: states.State, batch: Any, key: Any) -> int:
    """Bytes that the forward pass computes and the backward pass of the trained leaves reads.

    What is an input of the step anyway (parameters, batch) does not count.
    """

    def residuals(params, frozen, batch, key):
        return jax.vjp(lambda p: task.loss(states.join(p, frozen), batch, key)[0], params)[1]

    jaxpr = jax.make_jaxpr(residuals)(state["params"], state["frozen"], batch, key).jaxpr
    given = set(jaxpr.invars)
    kept = {v for v in jaxpr.outvars if isinstance(v, jax.extend.core.Var) and v not in given}
    return sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in kept)


def abstract_batch(config: Config, net: build.Network) -> dict:
    """Shapes of one global batch as the sampler cuts it."""
    patch, whole = build.sampled_patch(config), bool(config.sampler.whole)
    moved = build.moves(config) is not None
    found = abstract(config.train.batch, patch, net.channels, whole=whole, moved=moved)
    return {name: jax.ShapeDtypeStruct(*array) for name, array in found.items()}


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows of text as aligned columns; the last column is not padded."""
    widths = np.array([[len(cell) for cell in row] for row in rows]).max(0)
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row[:-1], widths, strict=False)) + "  " + row[-1]
        for row in rows
    )


def size(n: int) -> str:
    """Bytes for people."""
    return f"{n / GIB:.2f} GiB" if n >= GIB else f"{n / MIB:.1f} MiB"
