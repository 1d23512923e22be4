"""Focal loss on sigmoid channels, over the classes each sample's corpus annotates.

    FL = -a (1 - q)^gamma log q,     q = p where the voxel belongs to the class, else 1 - p

with p = sigmoid(x) of the logits x, and a = alpha where the voxel belongs to the class, else
1 - alpha: cross-entropy in which voxels that are easily right weigh less. Voxels, samples and
classes are averaged as in `cross_entropy` (the paper divides by the number of anchors with an
object, which volumes do not have). Source: Lin et al., "Focal Loss for Dense Object Detection"
(ICCV 2017), Eq. 5, best with gamma = 2 and alpha = 0.25.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from medjax.errors import UsageError
from medjax.losses.parts import voxelwise
from medjax.losses.parts.voxelwise import softplus


def make(
    gamma: float | int = 2.0,
    alpha: float | int | None = 0.25,
    normalise: str = "batch",
    reduction: str = "sum",
    ranks: int = 1,
) -> Callable[[Mapping, Mapping], Float[Array, ""]]:
    """The loss f(outputs, batch) -> scalar >= 0.

    Args:
      gamma: exponent of the modulating factor; 0 gives weighted cross-entropy.
      alpha: weight of the voxels that belong to a class, 0 to 1; 1 - alpha is that of the others;
        None: all voxels weigh 1.
      normalise, reduction, ranks: as in `cross_entropy.make`.

    Raises: `UsageError` for unknown names, and numbers out of range.
    """
    if gamma < 0:
        raise UsageError("unusable gamma of the focal loss", found=gamma, expected="0 or more")
    if alpha is not None and not 0 <= alpha <= 1:
        raise UsageError(
            "unusable alpha of the focal loss", found=alpha, expected="0 to 1, or None"
        )

    def per_voxel(logits: Array, target: Array) -> Array:
        # log q = -softplus(-right) and log(1 - q) = -softplus(right): finite for every logit, the
        # derivative of a power below 1 included
        right = logits * (2 * target - 1)
        found = jnp.exp(-gamma * softplus(right)) * softplus(-right)
        return found if alpha is None else found * (alpha * target + (1 - alpha) * (1 - target))

    return voxelwise.make("focal loss", voxelwise.summed(per_voxel), normalise, reduction, ranks)
