"""A step on the device: a batch of windows through the network, averaged over its copies.

In: a `Model`, and which mirrors and members are averaged. Out: a pure function for `jax.jit`; what
the network reads beside the image and the classes are its arguments, so one compiled program serves
all corpora.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from medjax.decision import Decision
from medjax.infer.device import tta
from medjax.infer.model import Model
from medjax.models import context


def make(
    model: Model,
    decision: Decision,
    *,
    mirror_axes: Sequence[int] = (),
    members: int = 1,
    uncertainty: bool = False,
) -> Callable[..., Array]:
    """The step of a network.

    Args:
      mirror_axes: spatial axes; all combinations are averaged. members: how many parameter trees
        are stacked in `params`, see `tta.stack`.
      uncertainty: one channel more: the standard deviation of the probability over mirrors and
        members, of the class where it is largest.

    Returns: (params, image (k, *window, m) float32, entries, channels (c,) int32) -> values
      (k, *window, c or c + 1), as `decision.average` says. The entries are those of `model.reads`:
      of a case without a batch axis, those that move with the window (k, ...).
    """
    moving = context.moving(model.reads)

    def step(params: Any, image: Array, entries: Mapping[str, Array], channels: Array) -> Array:
        k = image.shape[0]
        case = {
            name: jnp.broadcast_to(value, (k, *value.shape))
            for name, value in entries.items()
            if name not in moving
        }

        def network(params: Any, image: Array, moved: Mapping[str, Array] = {}) -> dict[str, Array]:
            logits = decision.class_logits(
                model.apply(params, image, case | dict(moved))["logits"].astype(jnp.float32),
                len(model.space.classes),
            )
            outputs = {"value": jnp.take(decision.values(logits), channels, axis=-1)}
            if uncertainty:
                chosen = jnp.take(decision.activated(logits), channels, axis=-1)
                outputs |= {"mean": chosen, "square": jnp.square(chosen)}
            return outputs

        def mirrored(params: Any, image: Array) -> Any:
            moved = {name: entries[name] for name in moving}
            function = partial(network, params)
            return tta.mirrored(function, mirror_axes, model.reads, moved)(image)

        found = tta.ensemble(mirrored, params)(image) if members > 1 else mirrored(params, image)
        if not uncertainty:
            return found["value"]
        variance = jnp.maximum(found["square"] - jnp.square(found["mean"]), 0).max(
            -1, keepdims=True
        )
        return jnp.concatenate([found["value"], jnp.sqrt(variance)], -1)

    return step
