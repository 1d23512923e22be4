"""Binary cross-entropy on sigmoid channels, over the classes each sample's corpus annotates.

    E[b, c] = (sum over voxels of w (softplus(x) - x g)) / (sum of w)

with logits x, multi-hot target g and voxel weight w; then a sum over the annotated (sample, class)
pairs, normalised as configured. Source: MultiTalent (Ulrich et al., MICCAI 2023), Eq. 2 and its
released code; with every class annotated, normalise="batch" and reduction="mean" give nnU-Net's
mean BCE.
"""

from collections.abc import Callable, Mapping

from jaxtyping import Array, Float

from medjax.losses.parts import sums, voxelwise


def make(
    normalise: str = "batch", reduction: str = "sum", ranks: int = 1
) -> Callable[[Mapping, Mapping], Float[Array, ""]]:
    """The loss f(outputs, batch) -> scalar >= 0.

    Args:
      normalise: how the samples of a class are averaged. "batch": divided by the batch size (a
        class annotated in few samples weighs less; the released MultiTalent code with one sample
        per GPU), "per_annotating": by the number of samples that annotate the class, "sum": by
        `ranks` only (the released code on `ranks` GPUs).
      reduction: "sum" over the classes, or "mean" over the classes that some sample of the batch
        annotates.
      ranks: divisor of normalise="sum".

    Raises: `UsageError` for unknown names.
    """
    return voxelwise.make(
        "cross-entropy",
        lambda outputs, batch: sums.shared(outputs, batch).entropy,
        normalise,
        reduction,
        ranks,
    )
