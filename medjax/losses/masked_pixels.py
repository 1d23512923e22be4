"""Mean error of predicted pixels, squared or absolute, over the hidden patches only.

    L[b] = mean over the hidden patches of a sample of (mean over its pixels of |guess - truth|^p)

Pixels outside the image, which the sampler adds where a patch sticks out, are neither guessed nor
counted: a patch that holds some has the mean over the others, a patch of nothing else counts not at
all. Source: Swin-MAE (Xu et al. 2022) as released, whose images have no outside; with `normalise`
the truth of every patch has mean 0 and standard deviation 1, as in MAE. p = 1 is SimMIM's loss.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from medjax.errors import UsageError, did_you_mean
from medjax.losses.parts import separable

EPSILON = 1e-6
BALANCES = ("samples", "modalities")


def make(
    normalise: bool = False, balance: str = "samples", power: int = 2
) -> Callable[[Mapping, Mapping], Float[Array, ""]]:
    """The loss f(outputs, batch) -> scalar >= 0.

    outputs: `pixels` and `patches` (b, *grid, d), `masked` (b, *grid) bool. batch: `inside` (b,
    *grid, p) bool, true for the pixels of a patch that lie within the image (default: all), and
    `modality` (b,) for "modalities". d runs over (pixel, channel).

    Args:
      normalise: predict every patch up to its own mean and (unbiased) standard deviation. Without
        it, an intensity scheme with large values (CT's air) outweighs the others.
      balance: what is averaged: "samples" alike (Swin-MAE), or first the samples of each modality,
        then the "modalities" of the batch.
      power: 2, squares; 1, absolute values (SimMIM).

    Raises: `UsageError` for another word or power.
    """
    if power not in (1, 2):
        raise UsageError("unknown power of masked_pixels", found=power, expected="1 or 2")
    if balance not in BALANCES:
        raise UsageError(
            f"unknown balance {balance!r} of masked_pixels", fix=did_you_mean(balance, BALANCES)
        )

    def masked_pixels(outputs: Mapping, batch: Mapping) -> Float[Array, ""]:
        each, counted = per_sample(outputs, batch.get("inside"), normalise, power)
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
    inside: Bool[Array, "b *grid p"] | None = None,
    normalise: bool = False,
    power: int = 2,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """The loss of every sample, and 1 where it has a hidden patch that counts, else 0 (so is its
    loss). Arguments: see `make`.
    """
    error_of = jnp.square if power == 2 else jnp.abs
    truth, hidden = outputs["patches"], outputs["masked"].astype(jnp.float32)
    axes = tuple(range(1, hidden.ndim))
    if inside is None:
        if normalise:
            truth = (truth - truth.mean(-1, keepdims=True)) / jnp.sqrt(
                truth.var(-1, ddof=1, keepdims=True) + EPSILON
            )
        error = error_of(outputs["pixels"] - truth).mean(-1)
    else:
        channels = truth.shape[-1] // inside.shape[-1]
        pixels = jnp.repeat(inside.astype(truth.dtype), channels, -1)
        count = pixels.sum(-1)
        if normalise:
            mean = (truth * pixels).sum(-1) / jnp.maximum(count, 1)
            squares = (jnp.square(truth - mean[..., None]) * pixels).sum(-1)
            spread = jnp.sqrt(squares / jnp.maximum(count - 1, 1) + EPSILON)
            truth = (truth - mean[..., None]) / spread[..., None]
        error = (error_of(outputs["pixels"] - truth) * pixels).sum(-1) / jnp.maximum(count, 1)
        hidden = hidden * (count > 0)
    patches = hidden.sum(axes)
    return (error * hidden).sum(axes) / jnp.maximum(patches, 1), (patches > 0).astype(jnp.float32)
