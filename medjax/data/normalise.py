"""Raw intensities -> what a network sees, as float32 or as the int16 that the store keeps.

In: a stored-order image, its `Transform` and one `Intensity` per channel. Out: values in the network's grid. The order is nnU-Net v2's:
crop, clip (CT), normalise, resample. Normalising is linear and can wait: mean and spread of the cropped, clipped, not yet resampled
channel (of the plan for CT) become gain and bias, which the device applies.
"""

import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from medjax.data.geometry import Transform
from medjax.data.nifti import DataWarning
from medjax.data.plan import Intensity

STEPS = 65_534  # int16 values used, symmetric about 0: half a step is 7.6e-6 of the range
EPSILON = 1e-8
_SLAB = 1 << 22  # values per piece of a conversion: bounds the temporaries


def network_image(transform: Transform, array: np.ndarray, intensities: Sequence[Intensity], path: str = "") -> np.ndarray:
    """Stored (z, y, x, m) values -> normalised float32 (*transform.shape, m): what prediction feeds to a network."""
    out = np.empty((*transform.shape, len(intensities)), np.float32)
    for c, intensity in enumerate(intensities):
        channel, mean, std = _channel(transform, array, c, intensity, path)
        resampled = transform.resample_image(channel)
        for rows in _slabs(resampled):
            out[rows, ..., c] = (resampled[rows] - np.float32(mean)) / np.float32(std)
    return out


def stored_image(
    transform: Transform, array: np.ndarray, intensities: Sequence[Intensity], path: str = ""
) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Stored (z, y, x, m) values -> int16 (*transform.shape, m) and, per channel, the numbers that undo the quantisation.

    Returns: the array, and lists gain and bias (normalised = stored * gain + bias), scale and offset (clipped raw value = stored * scale +
      offset).
    """
    out = np.empty((*transform.shape, len(intensities)), np.int16)
    numbers = {name: [] for name in ("gain", "bias", "scale", "offset")}
    for c, intensity in enumerate(intensities):
        channel, mean, std = _channel(transform, array, c, intensity, path)
        out[..., c], scale, offset = quantise(transform.resample_image(channel))
        for name, value in zip(numbers, (scale / std, (offset - mean) / std, scale, offset), strict=True):
            numbers[name].append(float(value))
    return out, numbers


def _channel(transform: Transform, array: np.ndarray, c: int, intensity: Intensity, path: str) -> tuple[np.ndarray, float, float]:
    """Cropped, clipped channel with the mean and divisor that normalise it."""
    channel = np.asarray(transform.image(array[..., c]), np.float32)
    if intensity.clip is not None:
        channel = np.clip(channel, *np.asarray(intensity.clip, np.float32))
    mean, divisor = moments(channel, intensity)
    if divisor < EPSILON:
        warnings.warn(f"{path}: constant image (channel {c}); it becomes 0", DataWarning, stacklevel=3)
        divisor = 1.0
    return channel, mean, divisor


def moments(channel: np.ndarray, intensity: Intensity) -> tuple[float, float]:
    """Mean and divisor of a clipped (z, y, x) channel: normalised = (value - mean) / divisor; 0 if a channel to be scaled is constant."""
    if intensity.scheme == "ct":
        return intensity.mean, max(intensity.std, EPSILON)
    if intensity.scheme == "nonorm":
        return 0.0, 1.0
    if intensity.scheme == "rescale_to_0_1":
        low = float(channel.min())
        return low, float(channel.max()) - low
    mean = float(channel.mean(dtype=np.float64))
    squares = sum(float(np.square(channel[rows] - mean, dtype=np.float64).sum()) for rows in _slabs(channel))
    return mean, (squares / channel.size) ** 0.5


def quantise(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """float32 (z, y, x) -> int16, scale, offset with value = stored * scale + offset.

    Off by at most 7.7e-6 of the range; exact (scale 1) for whole numbers of a range that int16 can hold.
    """
    low, high = float(values.min()), float(values.max())
    whole = low.is_integer() and high - low <= STEPS and all(np.array_equal(values[rows], np.rint(values[rows])) for rows in _slabs(values))
    scale = 1.0 if whole or high == low else (high - low) / STEPS
    offset = float(round((low + high) / 2)) if whole else (low + high) / 2
    out = np.empty(values.shape, np.int16)
    for rows in _slabs(values):
        out[rows] = np.clip(np.rint((values[rows].astype(np.float64) - offset) / scale), -STEPS // 2, STEPS // 2)
    return out, scale, offset


def _slabs(array: np.ndarray) -> Iterator[slice]:
    step = max(1, _SLAB // max(1, array[0].size))
    return (slice(i, i + step) for i in range(0, array.shape[0], step))
