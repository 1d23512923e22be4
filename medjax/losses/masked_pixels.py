"""Mean squared error of predicted pixels, over the hidden patches only.

    L[b] = mean over the hidden patches of a sample of (mean over its pixels of (guess - truth)^2)

Pixels outside the image, which the sampler adds where a patch sticks out, are neither guessed nor
counted: a patch that holds some has the mean over the others, a patch of nothing else counts not at
all. Source: Swin-MAE (Xu et al. 2022) as released, whose images have no outside; with `normalise`
the truth of every patch has mean 0 and standard deviation 1, as in MAE.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from medjax.errors import UsageError, did_you_mean
from medjax.losses.parts import separable
from medjax.models.parts.patch import space_to_depth

EPSILON = 1e-6
BALANCES = ("samples", "modalities")


def make(
    normalise: bool = False, balance: str = "samples"
) -> Callable[[Mapping, Mapping], Float[Array, ""]]:
    """The loss f(outputs, batch) -> scalar >= 0.

    outputs: `pixels` and `patches` (b, *grid, d), `masked` (b, *grid) bool. batch: `inside` (b,
    *vol) bool, true within the image (default everywhere), and `modality` (b,) for "modalities".

    Args:
      normalise: predict every patch up to its own mean and (unbiased) standard deviation. Without
        it, an intensity scheme with large values (CT's air) outweighs the others.
      balance: what is averaged: "samples" alike (Swin-MAE), or first the samples of each modality,
        then the "modalities" of the batch.

    Raises: `UsageError` for another word.
    """
    if balance not in BALANCES:
        raise UsageError(
            f"unknown balance {balance!r} of masked_pixels", fix=did_you_mean(balance, BALANCES)
        )

    def masked_pixels(outputs: Mapping, batch: Mapping) -> Float[Array, ""]:
        each, counted = per_sample(outputs, batch.get("inside"), normalise)
        if balance == "samples":
            return each.mean()
        alike = batch["modality"][:, None] == batch["modality"][None]
        share = counted / jnp.maximum((alike * counted).sum(-1), 1)  # of its modality's mean
        return (each * share).sum() / jnp.maximum(share.sum(), 1)

    def over_samples(complete: bool, weighted: bool) -> str:
        return separable.MEAN if balance == "samples" else separable.BATCH

    return separable.marked(masked_pixels, over_samples)


def per_sample(
    outputs: Mapping,
    inside: Bool[Array | np.ndarray, "b *vol"] | None = None,
    normalise: bool = False,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """The loss of every sample, and 1 where it has a hidden patch that counts, else 0 (so is its
    loss). Arguments: see `make`.
    """
    truth, hidden = outputs["patches"], outputs["masked"].astype(jnp.float32)
    axes = tuple(range(1, hidden.ndim))
    if inside is None:
        if normalise:
            truth = (truth - truth.mean(-1, keepdims=True)) / jnp.sqrt(
                truth.var(-1, ddof=1, keepdims=True) + EPSILON
            )
        error = jnp.square(outputs["pixels"] - truth).mean(-1)
    else:
        pixels = _pixels_inside(jnp.asarray(inside), jnp.asarray(truth))
        count = pixels.sum(-1)
        if normalise:
            mean = (truth * pixels).sum(-1) / jnp.maximum(count, 1)
            squares = (jnp.square(truth - mean[..., None]) * pixels).sum(-1)
            spread = jnp.sqrt(squares / jnp.maximum(count - 1, 1) + EPSILON)
            truth = (truth - mean[..., None]) / spread[..., None]
        error = (jnp.square(outputs["pixels"] - truth) * pixels).sum(-1) / jnp.maximum(count, 1)
        hidden = hidden * (count > 0)
    patches = hidden.sum(axes)
    return (error * hidden).sum(axes) / jnp.maximum(patches, 1), (patches > 0).astype(jnp.float32)


def _pixels_inside(
    inside: Bool[Array, "b *vol"], patches: Float[Array, "b *grid d"]
) -> Float[Array, "b *grid d"]:
    """1 for the pixels of every patch that lie within the image; d runs over (offsets, channel)."""
    size = [n // g for n, g in zip(inside.shape[1:], patches.shape[1:-1], strict=True)]
    found = space_to_depth(inside[..., None], size).astype(patches.dtype)
    return jnp.repeat(found, patches.shape[-1] // found.shape[-1], -1)
