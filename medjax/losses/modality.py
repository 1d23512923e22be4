"""The modality of a sample, guessed by the network: cross-entropy.

    L = mean over the samples of known modality of -log softmax(scores)[modality]

0 if no modality of the batch is known. Source: Hermes (arXiv 2306.02416), with weight 0.01.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medjax.errors import UsageError
from medjax.losses.parts import separable


def make() -> Callable[[Mapping, Mapping], Float[Array, ""]]:
    """The loss f(outputs, batch) -> scalar >= 0.

    outputs: `modality` (b, n), scores. batch: `modality` (b,), -1 if unknown.

    Raises: `UsageError`, when it is called, for outputs without scores of modalities.
    """

    def modality(outputs: Mapping, batch: Mapping) -> Float[Array, ""]:
        if "modality" not in outputs:
            raise UsageError(
                "the loss modality needs a network that guesses modalities",
                found=", ".join(outputs),
                fix="leave config.losses.modality out",
            )
        scores, index = outputs["modality"], jnp.asarray(batch["modality"])
        known = (index >= 0) & (index < scores.shape[-1])
        chosen = jnp.take_along_axis(scores, jnp.where(known, index, 0)[:, None], 1)[:, 0]
        each = (jax.nn.logsumexp(scores, -1) - chosen) * known
        return each.sum() / jnp.maximum(known.sum(), 1)

    return separable.marked(modality, lambda complete, weighted: separable.BATCH)
