"""Memory of a training step from shapes alone, and text tables.

In: the config as plain values, a network and a label space. Out: bytes by purpose; nothing is
allocated.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from medjax.labels import LabelSpace
from medjax.runs import build
from medjax.train import state as states

MIB, GIB = 2**20, 2**30


def memory(fields: Mapping, net: build.Network, space: LabelSpace) -> dict[str, int]:
    """Bytes of one training step on one device.

    Parameters, optimizer state and moving average, gradients of the trained parameters, batch, and
    values kept for the backward pass.
    """
    params = net.abstract()
    task = build.make_task(fields, space, net)
    shapes = jax.eval_shape(states.maker(net.init, build.make_optimizer(fields)), jax.random.key(0))
    state = [shapes["opt"], shapes.get("ema", {})]
    batch = abstract_batch(fields, net)

    def residuals(params, batch, key):
        return jax.vjp(lambda p: task.loss(p, batch, key)[0], params)[1]

    kept = jax.eval_shape(residuals, params, batch, jax.random.key(0))
    return {
        "parameters": build.bytes_of(params),
        "optimizer": build.bytes_of(state),
        "gradients": build.bytes_of(shapes["params"]),
        "batch": build.bytes_of(batch),
        "kept for backward": max(build.bytes_of(kept) - build.bytes_of(params), 0),
    }


def abstract_batch(fields: Mapping, net: build.Network) -> dict:
    """Shapes of one global batch as the sampler cuts it."""
    b, m, patch = fields["train"]["batch"], net.channels, build.sampled_patch(fields)
    shapes = {
        "image": ((b, *patch, m), jnp.int16),
        "gain": ((b, m), jnp.float32),
        "bias": ((b, m), jnp.float32),
        "label": ((b, *patch), jnp.int16),
        "corpus": ((b,), jnp.int32),
        "modality": ((b,), jnp.int32),
        "spacing_mm": ((b, 3), jnp.float32),
        "case": ((b,), jnp.int32),
    }
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


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
