"""Soft Dice of a softmax over the background and the classes each sample's corpus annotates.

    D = (2 sum p g + s) / (sum p^k + sum g^k + s),     loss = 1 - mean of D

with k = 2 (V-Net, Swin-Unet, M4oE) or 1 (nnU-Net), p the softmax's probability, g the exclusive
one-hot target (`medjax.losses.parts.exclusive`), and sums over the voxels of a sample, or of all
samples of its corpus together. With s > 0 and per-sample sums, an absent class costs almost 1 as
soon as sum p^2 >> s. Source: M4oE's released code (per sample, squared, background included, mean
over the sample's own classes).
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medjax.errors import UsageError, did_you_mean
from medjax.losses.parts import exclusive, separable

POOLS = ("sample", "corpus")
REDUCTIONS = ("mean", "sum")


def make(
    pool: str = "sample",
    squared: bool = True,
    background: bool = True,
    smooth: float = 1e-5,
    reduction: str = "mean",
    masked: bool = True,
) -> Callable[[Mapping, Mapping], Float[Array, ""]]:
    """The loss f(outputs, batch) -> scalar, 0 to 1 ("mean").

    Args:
      pool: "sample" or "corpus": whose voxels are summed before the ratio ("corpus": all samples of
        one corpus share one ratio).
      squared: k = 2.
      background: counts as a class.
      smooth: s above.
      reduction: over samples, "mean" or "sum". Over a sample's classes it is always the mean.
      masked: ignore voxels of weight 0; False includes their probabilities in the denominator
        (M4oE's released code).

    Raises: `UsageError` for unknown names.
    """
    for name, allowed in ((pool, POOLS), (reduction, REDUCTIONS)):
        if name not in allowed:
            raise UsageError(
                f"unknown softmax Dice option {name!r}", fix=did_you_mean(name, allowed)
            )

    def scores(outputs: Mapping, batch: Mapping) -> tuple[Array, Array]:
        logits, target, present, weight = exclusive.unpack(outputs, batch)
        probability = jax.nn.softmax(logits, -1)
        hit = (target[..., None] == jnp.arange(logits.shape[-1])).astype(probability.dtype)
        everywhere = weight[..., None] if weight is not None else 1.0
        axes = tuple(range(1, logits.ndim - 1))
        power = jnp.square if squared else (lambda v: v)
        hit = hit * everywhere if weight is not None else hit
        own = everywhere if masked else 1.0
        overlap = (probability * hit).sum(axes)
        volume = (power(probability) * own).sum(axes) + hit.sum(axes)
        if pool == "corpus":
            same = (batch["corpus"][:, None] == batch["corpus"][None]).astype(overlap.dtype)
            overlap, volume = same @ overlap, same @ volume
        return (2 * overlap + smooth) / jnp.maximum(volume + smooth, 1e-12), present

    def softmax_dice(outputs: Mapping, batch: Mapping) -> Float[Array, ""]:
        score, present = scores(outputs, batch)
        counted = present.astype(score.dtype).at[:, 0].set(float(background))
        per_sample = 1 - (score * counted).sum(-1) / jnp.maximum(counted.sum(-1), 1)
        return per_sample.mean() if reduction == "mean" else per_sample.sum()

    def by_class(outputs: Mapping, batch: Mapping) -> Float[Array, "c"]:
        score, present = scores(outputs, batch)
        known = present[:, 1:].astype(score.dtype)
        return ((1 - score[:, 1:]) * known).sum(0) / jnp.maximum(known.sum(0), 1)

    def over_samples(complete: bool, weighted: bool) -> str:
        if pool == "corpus":
            return separable.BATCH
        return separable.MEAN if reduction == "mean" else separable.SUM

    return separable.marked(softmax_dice, over_samples, by_class)
