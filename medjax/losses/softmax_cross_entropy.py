"""Cross-entropy of a softmax over the background and the classes each sample's corpus annotates.

    CE[voxel] = log(1 + sum over annotated c of exp(x_c)) - x_target

with logits x relative to the background's. Voxels are averaged within a sample, then samples (M4oE,
Swin-Unet: every slice has the same weight), or all voxels of the batch at once. Exclusive classes:
see `medjax.losses.parts.exclusive`. Sources: M4oE (Jiang and Shen, MICCAI 2024); MultiTalent's
successor (samples summed).
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medjax.errors import UsageError, did_you_mean
from medjax.losses.parts import exclusive, separable

POOLS = ("sample", "batch")
REDUCTIONS = ("mean", "sum")


def make(
    pool: str = "sample", reduction: str = "mean"
) -> Callable[[Mapping, Mapping], Float[Array, ""]]:
    """The loss f(outputs, batch) -> scalar >= 0.

    Args:
      pool: "sample" averages the voxels of every sample, then the samples; "batch" averages all
        voxels (they differ only where weights mask voxels).
      reduction: of the samples under pool="sample": "mean" or "sum" (MultiTalent's successor).

    Raises: `UsageError` for unknown names.
    """
    for name, allowed in ((pool, POOLS), (reduction, REDUCTIONS)):
        if name not in allowed:
            raise UsageError(
                f"unknown softmax cross-entropy option {name!r}", fix=did_you_mean(name, allowed)
            )

    def softmax_cross_entropy(outputs: Mapping, batch: Mapping) -> Float[Array, ""]:
        logits, target, _, weight = exclusive.unpack(outputs, batch)
        hit = target[..., None] == jnp.arange(logits.shape[-1])
        # a choice, not a product with a one-hot vector: nothing is multiplied with the huge numbers
        # of absent classes
        entropy = jax.nn.logsumexp(logits, -1) - jnp.where(hit, logits, 0).sum(-1)
        total, count = exclusive.mean_over_voxels(entropy, weight)
        if pool == "batch":
            return total.sum() / jnp.maximum(count.sum(), 1e-7)
        per_sample = total / jnp.maximum(count, 1e-7)
        return per_sample.mean() if reduction == "mean" else per_sample.sum()

    def over_samples(complete: bool, weighted: bool) -> str:
        if pool == "batch":
            return separable.BATCH if weighted else separable.MEAN
        return separable.MEAN if reduction == "mean" else separable.SUM

    return separable.marked(softmax_cross_entropy, over_samples)
