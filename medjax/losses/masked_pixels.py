"""Mean squared error of predicted pixels, over the hidden patches only.

    L = sum over hidden patches of (mean over its pixels of (guess - truth)^2) / (hidden patches)

Source: Swin-MAE (Xu et al. 2022) as released; with `normalise` the truth of every patch has mean 0
and standard deviation 1, as in MAE.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from medjax.losses.parts import separable

EPSILON = 1e-6


def make(normalise: bool = False) -> Callable[[Mapping, Mapping], Float[Array, ""]]:
    """The loss f(outputs, batch) -> scalar >= 0.

    outputs: `pixels` and `patches` (b, *grid, d), `masked` (b, *grid) bool.

    Args:
      normalise: predict every patch up to its own mean and (unbiased) standard deviation.
    """

    def masked_pixels(outputs: Mapping, batch: Mapping) -> Float[Array, ""]:
        truth = outputs["patches"]
        if normalise:
            truth = (truth - truth.mean(-1, keepdims=True)) / jnp.sqrt(
                truth.var(-1, ddof=1, keepdims=True) + EPSILON
            )
        error = jnp.square(outputs["pixels"] - truth).mean(-1)
        hidden = outputs["masked"].astype(error.dtype)
        return (error * hidden).sum() / jnp.maximum(hidden.sum(), 1)

    # every sample hides the same number of patches (tasks.masked_image.block_mask)
    return separable.marked(masked_pixels, lambda complete, weighted: separable.MEAN)
