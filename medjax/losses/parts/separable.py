"""How a loss of a batch follows from the losses of its micro-batches.

A loss function may carry an attribute `over_samples(complete, weighted) -> word`, where `complete`
says that every sample annotates every class, and `weighted` that voxels may be masked:

  mean    loss(batch) = mean over equal micro-batches of loss(micro-batch)
  sum     loss(batch) = sum over micro-batches of loss(micro-batch)
  batch   neither: it holds a ratio of sums over samples, or a maximum (batch Dice)

A loss that is a sum or mean over classes also has the attribute `by_class(outputs, batch) -> (c,)`:
the loss of every class alone, as the mean over the samples (or groups of samples) that annotate it;
0 where none does.
"""

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

MEAN, SUM, BATCH = "mean", "sum", "batch"


def over_samples(loss: Callable, *, complete: bool, weighted: bool) -> str:
    """The word of a loss; "batch" if it does not say."""
    found = getattr(loss, "over_samples", None)
    return BATCH if found is None else found(complete, weighted)


def marked(
    loss: Callable, rule: Callable[[bool, bool], str], by_class: Callable | None = None
) -> Callable:
    """The loss with the attribute `over_samples`, and `by_class` if it has classes of its own."""
    loss.over_samples = rule
    if by_class is not None:
        loss.by_class = by_class
    return loss


def by_class(
    losses: Sequence[tuple], outputs: Mapping, batch: Mapping
) -> tuple[Float[Array, "c"], Float[Array, "c"]] | None:
    """The weighted sum of the losses of every class, over the samples that annotate it.

    Args:
      losses: (name, weight, f) entries; those without classes of their own are left out.
      outputs, batch: as for the losses, with their logits at full resolution.

    Returns: per class the number of annotating samples times their loss, and that number; None if
      no loss has classes of its own.
    """
    known = [(weight, f.by_class) for _, weight, f in losses if hasattr(f, "by_class")]
    if not known:
        return None
    samples = batch["known"].sum(0).astype(jnp.float32)
    return samples * sum(weight * f(outputs, batch) for weight, f in known), samples
