"""Soft Dice on sigmoid channels, over the classes each sample's corpus annotates.

    D = sum over (group, class) of (2 TP + s) / max(2 TP + FP + FN + s, 1e-7),     loss = -D

with soft counts TP = sum w p g and 2 TP + FP + FN = sum w p + sum w g, p = sigmoid(logits), g the
multi-hot target, w the voxel weight. Without smoothing (s = 0, MultiTalent) an annotated class
without a voxel in the pooled patches contributes exactly no gradient; s = 1e-5 is nnU-Net's.
Source: MultiTalent (Ulrich et al., MICCAI 2023), Eq. 2 and its released code.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from medjax.errors import UsageError, did_you_mean
from medjax.losses.parts import separable, sums

POOLS = ("global", "sample", "rank_index", "slice")
SMOOTHED = ("both", "denominator")
REDUCTIONS = ("sum", "mean")
SMALLEST_DENOMINATOR = 1e-7


def make(
    pool: str = "global",
    smooth: float = 0.0,
    reduction: str = "sum",
    ranks: int = 1,
    smooth_in: str = "both",
) -> Callable[[Mapping, Mapping], Float[Array, ""]]:
    """The loss f(outputs, batch) -> scalar <= 0, at least -1 ("mean") or -classes ("sum").

    Args:
      pool: what the counts are summed over before the ratio. "global": all samples of the global
        batch (under jit on a mesh the sums run over every device), "sample": each sample alone,
        "rank_index": sample j of each of `ranks` equal parts of the batch together, for every j
        (the released MultiTalent code on `ranks` GPUs; 1 equals "sample", the batch size equals
        "global"), "slice": each z slice of each sample alone, whose scores are averaged (the
        released SegVol code, which takes the depth for the batch where that is 1).
      smooth: s above.
      reduction: "sum" over the annotated (group, class) pairs, so that the weight of a class does
        not depend on the number of annotated classes; "mean" over those pairs.
      ranks: number of parts for pool="rank_index"; must divide the batch.
      smooth_in: where s is added: "both", or "denominator" (SegVol: an empty prediction of an empty
        class scores 0).

    Raises: `UsageError` for unknown names, or a batch that `ranks` does not divide.
    """
    for name, allowed in ((pool, POOLS), (reduction, REDUCTIONS), (smooth_in, SMOOTHED)):
        if name not in allowed:
            raise UsageError(f"unknown Dice option {name!r}", fix=did_you_mean(name, allowed))

    def scores(outputs: Mapping, batch: Mapping) -> tuple[Array, Array]:
        depth = outputs["logits"].shape[1] if pool == "slice" else 1
        found = (sums.of_slices if pool == "slice" else sums.shared)(outputs, batch)
        known = jnp.repeat(batch["known"], depth, axis=0).astype(found.overlap.dtype)
        overlap, volume = found.overlap * known, (found.predicted + found.target) * known
        samples = known.shape[0]
        if pool == "rank_index" and samples % ranks:
            raise UsageError(
                "the batch cannot be split into ranks",
                found=samples,
                expected=f"a multiple of {ranks}",
            )
        parts = {"global": samples, "sample": 1, "slice": 1, "rank_index": ranks}[pool]
        overlap, volume, known = (
            v.reshape(parts, samples // parts, -1).sum(0) for v in (overlap, volume, known)
        )
        annotated = (known > 0).astype(overlap.dtype) / depth
        above = smooth if smooth_in == "both" else 0.0
        score = (
            annotated * (2 * overlap + above) / jnp.maximum(volume + smooth, SMALLEST_DENOMINATOR)
        )
        return score, annotated

    def dice(outputs: Mapping, batch: Mapping) -> Float[Array, ""]:
        score, annotated = scores(outputs, batch)
        total = score.sum()
        return -(total if reduction == "sum" else total / jnp.maximum(annotated.sum(), 1))

    def by_class(outputs: Mapping, batch: Mapping) -> Float[Array, "c"]:
        score, annotated = scores(outputs, batch)
        count = annotated.sum(0)
        return -score.sum(0) / jnp.where(count > 0, count, 1)

    def over_samples(complete: bool, weighted: bool) -> str:
        if not (pool in ("sample", "slice") or (pool == "rank_index" and ranks == 1)):
            return separable.BATCH
        if reduction == "sum":
            return separable.SUM
        return separable.MEAN if complete else separable.BATCH

    return separable.marked(dice, over_samples, by_class)
