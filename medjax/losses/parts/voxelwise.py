"""Losses that are a number per voxel and class, averaged over the classes each sample annotates.

    E[b, c] = (sum over voxels of w f(x, g)) / (sum of w)

with logits x, multi-hot target g and voxel weight w; then a sum over the annotated (sample, class)
pairs, normalised as configured. In: the sums and the words of the config. Out: a loss.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medjax.errors import UsageError, did_you_mean
from medjax.losses.parts import separable, targets

NORMALISATIONS = ("batch", "per_annotating", "sum")
REDUCTIONS = ("sum", "mean")


@jax.custom_jvp
def softplus(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 + exp(x)), stable for large |x|.

    Its derivative is written as sigmoid(x), which is cheaper than differentiating the formula.
    """
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


softplus.defjvps(lambda tangent, _, x: tangent * jax.nn.sigmoid(x))


def summed(
    per_voxel: Callable[[Array, Array], Array],
) -> Callable[[Mapping, Mapping], Float[Array, "b c"]]:
    """(outputs, batch) -> the sum over voxels of w f(x, g), with f = `per_voxel`.

    `per_voxel`: (logits (b, *vol, c), target (b, *vol, c)) -> (b, *vol, c).
    """

    def found(outputs: Mapping, batch: Mapping) -> Float[Array, "b c"]:
        logits, target, _, weight = targets.unpack(outputs, batch)
        return targets.spatial_sum(per_voxel(logits, target), weight)

    return found


def make(
    what: str,
    sum_of: Callable[[Mapping, Mapping], Array],
    normalise: str,
    reduction: str,
    ranks: int,
) -> Callable[[Mapping, Mapping], Float[Array, ""]]:
    """The loss f(outputs, batch) -> scalar, with the attribute `over_samples`.

    Args:
      what: the loss in words, for errors.
      sum_of: (outputs, batch) -> the sums over voxels of w f(x, g), (b, c); see `summed`.
      normalise: how the samples of a class are averaged: "batch", divided by the batch size,
        "per_annotating", by the number of samples that annotate the class, "sum", by `ranks` only.
      reduction: "sum" over the classes, or "mean" over the classes that some sample of the batch
        annotates.
      ranks: divisor of normalise="sum".

    Raises: `UsageError` for unknown names.
    """
    for name, allowed in ((normalise, NORMALISATIONS), (reduction, REDUCTIONS)):
        if name not in allowed:
            raise UsageError(f"unknown {what} option {name!r}", fix=did_you_mean(name, allowed))

    def of_classes(outputs: Mapping, batch: Mapping) -> tuple[Array, Array]:
        sums, weight = sum_of(outputs, batch), batch.get("weight")
        known = batch["known"].astype(sums.dtype)
        weight = None if weight is None else weight[..., None]
        voxels = jnp.maximum(targets.voxel_count(outputs["logits"].shape, weight), 1e-7)
        return (sums / voxels * known).sum(0), known

    def voxelwise(outputs: Mapping, batch: Mapping) -> Float[Array, ""]:
        per_class, known = of_classes(outputs, batch)
        annotating = known.sum(0)
        divisor = {
            "batch": known.shape[0],
            "per_annotating": jnp.maximum(annotating, 1),
            "sum": ranks,
        }[normalise]
        total = (per_class / divisor).sum()
        return total if reduction == "sum" else total / jnp.maximum((annotating > 0).sum(), 1)

    def by_class(outputs: Mapping, batch: Mapping) -> Float[Array, "c"]:
        per_class, known = of_classes(outputs, batch)
        return per_class / jnp.maximum(known.sum(0), 1)

    def over_samples(complete: bool, weighted: bool) -> str:
        if not complete and (normalise == "per_annotating" or reduction == "mean"):
            return separable.BATCH  # divided by counts of the annotations in the batch
        return separable.SUM if normalise == "sum" else separable.MEAN

    return separable.marked(voxelwise, over_samples, by_class)
