"""How a loss of a batch follows from the losses of its micro-batches.

A loss function may carry an attribute `over_samples(complete, weighted) -> word`, where `complete`
says that every sample annotates every class, and `weighted` that voxels may be masked:

  mean    loss(batch) = mean over equal micro-batches of loss(micro-batch)
  sum     loss(batch) = sum over micro-batches of loss(micro-batch)
  batch   neither: it holds a ratio of sums over samples, or a maximum (batch Dice)
"""

from collections.abc import Callable

MEAN, SUM, BATCH = "mean", "sum", "batch"


def over_samples(loss: Callable, *, complete: bool, weighted: bool) -> str:
    """The word of a loss; "batch" if it does not say."""
    found = getattr(loss, "over_samples", None)
    return BATCH if found is None else found(complete, weighted)


def marked(loss: Callable, rule: Callable[[bool, bool], str]) -> Callable:
    """The loss with the attribute `over_samples`."""
    loss.over_samples = rule
    return loss
