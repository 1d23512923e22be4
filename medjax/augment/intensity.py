"""Intensity augmentation of one channel of one sample, with the semantics of nnU-Net v2.

Pure, jittable, static shapes; axes (z, y, x) or (y, x). Every function takes the values to apply;
`augment/nnunet.py` draws them.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-7


def noise(
    key: Array, image: Float[Array, "*vol"], deviation: Float[Array, ""]
) -> Float[Array, "*vol"]:
    """Adds Gaussian noise with the given standard deviation."""
    return image + deviation * jax.random.normal(key, image.shape, image.dtype)


def blur_taps(sigma_max: float) -> int:
    """Half length of the longest blur kernel, in voxels, for sigmas up to `sigma_max`."""
    return max(1, math.floor(3 * sigma_max + 0.25))


def blur(image: Float[Array, "*vol"], sigma: Float[Array, "n"], taps: int) -> Float[Array, "*vol"]:
    """Separable Gaussian blur with reflected borders.

    The kernel of an axis has the odd length next to 6 sigma + 0.5, so half length floor(3 sigma +
    0.25), and sums to one.

    Args:
      sigma: standard deviation per axis, voxels.
      taps: half length that is computed; weights beyond an axis' own half length are zero.
    """
    offsets = jnp.arange(-taps, taps + 1)
    for axis, size in enumerate(image.shape):
        inside = jnp.abs(offsets) <= jnp.floor(3 * sigma[axis] + 0.25)
        kernel = jnp.where(inside, jnp.exp(-0.5 * (offsets / sigma[axis]) ** 2), 0.0)
        kernel = kernel / kernel.sum()
        padded = jnp.pad(
            image,
            [(taps, taps) if d == axis else (0, 0) for d in range(image.ndim)],
            mode="reflect",
        )
        image = sum(
            kernel[k] * jax.lax.slice_in_dim(padded, k, k + size, axis=axis)
            for k in range(2 * taps + 1)
        )
    return image


def contrast(image: Float[Array, "*vol"], factor: Float[Array, ""]) -> Float[Array, "*vol"]:
    """Stretches around the mean by `factor` and clips to the former range."""
    mean = image.mean()
    return jnp.clip((image - mean) * factor + mean, image.min(), image.max())


def low_resolution(
    image: Float[Array, "*vol"], zoom: Float[Array, ""], first: int = 0
) -> Float[Array, "*vol"]:
    """Nearest-neighbour reduction to round(side * zoom) voxels, then linear enlargement.

    Both steps act on each axis separately, as index gathers, so every voxel along an axis is a
    mixture of two voxels of the original.

    Args:
      zoom: share of each side that is kept, above 0, at most 1.
      first: axes before this one are unchanged (1 for thin volumes).
    """
    for axis in range(first, image.ndim):
        size = image.shape[axis]
        coarse = jnp.maximum(jnp.round(size * zoom), 1)
        point = jnp.maximum((jnp.arange(size) + 0.5) * (coarse / size) - 0.5, 0)
        low = jnp.floor(point)
        share = (point - low).reshape([-1 if d == axis else 1 for d in range(image.ndim)])
        below, above = (_source(i, coarse, size) for i in (low, jnp.minimum(low + 1, coarse - 1)))
        image = (
            jnp.take(image, below, axis, mode="clip") * (1 - share)
            + jnp.take(image, above, axis, mode="clip") * share
        )
    return image


def _source(coarse_index: Float[Array, "n"], coarse: Float[Array, ""], size: int) -> Array:
    """Original voxel that nearest-neighbour reduction puts at a coarse index."""
    return jnp.clip(jnp.floor((coarse_index + 0.5) * (size / coarse)), 0, size - 1).astype(
        jnp.int32
    )


def gamma(image: Float[Array, "*vol"], exponent: Float[Array, ""]) -> Float[Array, "*vol"]:
    """((x - min) / range)^exponent range + min, then mean and (unbiased) deviation are restored."""
    mean, deviation, low = image.mean(), image.std(ddof=1), image.min()
    extent = image.max() - low
    bent = ((image - low) / jnp.maximum(extent, EPSILON)) ** exponent * extent + low
    return (bent - bent.mean()) * (deviation / jnp.maximum(bent.std(ddof=1), EPSILON)) + mean
