"""A step on the device: a batch of windows through the network, averaged over its copies.

In: a `Model`, and which mirrors and members are averaged. Out: a pure function for `jax.jit`;
corpus, modality, spacing and classes are its arguments, so one compiled program serves all of them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from medjax.infer import tta
from medjax.infer.model import Model
from medjax.infer.scores import Decision


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

    Returns: (params, image (k, *window, m) float32, corpus () int32, modality () int32, spacing_mm
      (3,) float32, channels (c,) int32) -> values (k, *window, c or c + 1), as `decision.average`
      says.
    """

    def step(
        params: Any,
        image: Array,
        corpus: Array,
        modality: Array,
        spacing_mm: Array,
        channels: Array,
    ) -> Array:
        k = image.shape[0]
        context = {
            "corpus": jnp.full(k, corpus),
            "modality": jnp.full(k, modality),
            "spacing_mm": jnp.tile(spacing_mm, (k, 1)),
        }

        def network(params: Any, image: Array) -> dict[str, Array]:
            logits = decision.class_logits(
                model.apply(params, image, context)["logits"].astype(jnp.float32),
                len(model.space.classes),
            )
            wanted = logits
            if decision.average == "prob" or uncertainty:
                probabilities = decision.activated(logits)
                wanted = probabilities if decision.average == "prob" else logits
            outputs = {"value": jnp.take(wanted, channels, axis=-1)}
            if uncertainty:
                chosen = jnp.take(probabilities, channels, axis=-1)
                outputs |= {"mean": chosen, "square": jnp.square(chosen)}
            return outputs

        def mirrored(params: Any, image: Array) -> Any:
            return tta.mirrored(partial(network, params), mirror_axes)(image)

        found = tta.ensemble(mirrored, params)(image) if members > 1 else mirrored(params, image)
        if not uncertainty:
            return found["value"]
        variance = jnp.maximum(found["square"] - jnp.square(found["mean"]), 0).max(
            -1, keepdims=True
        )
        return jnp.concatenate([found["value"], jnp.sqrt(variance)], -1)

    return step
