"""Raw intensities -> normalised values, as float32 or as the int16 that the store holds.

In: a stored-order image, its `Transform` and one `Intensity` per channel. Out: values in the
network's grid. The order is nnU-Net v2's: crop, clip (CT), normalise, resample. Normalising a whole
channel is linear and can be postponed: mean and spread of the cropped, clipped, not yet resampled
channel (of the plan for CT) become gain and bias, which the device applies. A masked channel is
normalised before it is resampled, inside the hole-filled non-zero voxels only, and is 0 elsewhere.
A channel of role "mask" becomes 0 and 1, is resampled by nearest neighbour and has gain 1, bias 0.

Everything runs in pieces along the first axis: a volume is never held as float32 at the source's
and the target's size at once.
"""

import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from medjax.corpora.cases import still_wanted
from medjax.errors import DataError
from medjax.prepare import resample
from medjax.prepare.geometry import Transform
from medjax.prepare.intensity import Intensity, foreground_limits
from medjax.prepare.resample import image_rows, pieces
from medjax.scans.nifti import DataWarning

STEPS = 65_534  # int16 values used, symmetric about 0: half a step is 7.6e-6 of the range
EPSILON = 1e-8


def network_image(
    transform: Transform, array: np.ndarray, intensities: Sequence[Intensity], path: str = ""
) -> np.ndarray:
    """Stored (z, y, x, m) values -> normalised float32 (*transform.shape, m), for prediction."""
    out = np.empty((*transform.shape, len(intensities)), np.float32)
    for c, channel in enumerate(channels(transform, array, intensities, path)):
        for rows, piece in channel.resampled(transform):
            out[rows, ..., c] = (piece - np.float32(channel.mean)) / np.float32(channel.divisor)
    return out


def stored_image(
    transform: Transform, array: np.ndarray, intensities: Sequence[Intensity], path: str = ""
) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Stored (z, y, x, m) values -> int16 (*transform.shape, m) and its scale factors per channel.

    Returns: the array, and lists gain and bias (normalised = stored * gain + bias), scale and
      offset (clipped raw value = stored * scale + offset; of a masked channel inside the mask).
    """
    out = np.empty((*transform.shape, len(intensities)), np.int16)
    numbers = {name: [] for name in ("gain", "bias", "scale", "offset")}
    for c, channel in enumerate(channels(transform, array, intensities, path)):
        grid = (
            (1.0, 0.0)
            if channel.intensity.role == "mask"
            else quantisation(
                *channel.limits, channel.whole and transform.shape == transform.box_shape
            )
        )
        for rows, piece in channel.resampled(transform):
            still_wanted()
            out[rows, ..., c] = quantise(piece, *grid)
        raw_scale, raw_offset = (
            (channel.raw_divisor, channel.raw_mean) if channel.mask is not None else (1.0, 0.0)
        )
        scale, offset = grid
        values = (
            scale / channel.divisor,
            (offset - channel.mean) / channel.divisor,
            scale * raw_scale,
            offset * raw_scale + raw_offset,
        )
        for name, value in zip(numbers, values, strict=True):
            numbers[name].append(float(value))
    return out, numbers


def outside_mask(
    transform: Transform, array: np.ndarray, intensities: Sequence[Intensity]
) -> np.ndarray | None:
    """(*box_shape) bool: cropped voxels outside the hole-filled non-zero voxels of all images.

    None if there are none. Channels of role "mask" take no part.
    """
    view = transform.image(array)
    used = [c for c, intensity in enumerate(intensities) if intensity.role == "image"]
    inside = np.empty(view.shape[:3], bool)
    for rows in pieces(view.shape[:3]):
        inside[rows] = np.logical_or.reduce([view[rows][..., c] != 0 for c in used])
    if inside.all():
        return None
    outside = ~ndimage.binary_fill_holes(inside)
    return outside if outside.any() else None


@dataclasses.dataclass(frozen=True, eq=False)
class Channel:
    """One channel, read in rows while it is resampled.

    Attributes:
      view: (z, y, x) canonical, cropped, as stored.
      intensity: its normalisation, with the clip limits of this case.
      mask: voxels to leave at 0, or None.
      mean, divisor: what remains to be applied after resampling; 0 and 1 for a masked channel.
      raw_mean, raw_divisor: what turned raw into normalised values inside the mask.
      limits: smallest and largest value of `rows`. whole: all values are whole numbers.
    """

    view: np.ndarray
    intensity: Intensity
    mask: np.ndarray | None = None
    mean: float = 0.0
    divisor: float = 1.0
    raw_mean: float = 0.0
    raw_divisor: float = 1.0
    limits: tuple[float, float] = (0.0, 0.0)
    whole: bool = False

    def rows(self, rows: slice) -> np.ndarray:
        """float32 values before resampling: clipped, normalised within the mask, or 0 and 1."""
        if self.intensity.role == "mask":
            return (self.view[rows] > 0).astype(np.float32)
        piece = self.view[rows].astype(np.float32)
        if self.intensity.clip is not None:
            np.clip(piece, *np.float32(self.intensity.clip), out=piece)
        if self.mask is not None:
            piece = (piece - np.float32(self.raw_mean)) / np.float32(self.raw_divisor)
            piece[self.mask[rows]] = 0
        return piece

    def resampled(self, transform: Transform) -> Iterator[tuple[slice, np.ndarray]]:
        """(rows, float32 piece) on the target grid."""
        if self.intensity.role == "mask":
            return self._nearest(transform)
        return image_rows(
            self.rows,
            transform.box_shape,
            transform.shape,
            transform.spacing_mm,
            transform.target_spacing_mm,
            self.limits,
        )

    def _nearest(self, transform: Transform) -> Iterator[tuple[slice, np.ndarray]]:
        z, y, x = (
            resample.nearest(a, b)
            for a, b in zip(transform.box_shape, transform.shape, strict=True)
        )
        for rows in pieces(transform.shape):
            yield rows, (self.view[np.ix_(z[rows], y, x)] > 0).astype(np.float32)


def channels(
    transform: Transform, array: np.ndarray, intensities: Sequence[Intensity], path: str = ""
) -> Iterator[Channel]:
    """The channels of a stored (z, y, x, m) image, one by one, with their normalisation.

    A constant channel warns.
    """
    mask = (
        outside_mask(transform, array, intensities) if any(i.masked for i in intensities) else None
    )
    for c, intensity in enumerate(intensities):
        if intensity.role == "mask":
            _check_finite(array[..., c], c, path)
            view = transform.image(array[..., c])
            yield Channel(view, intensity, limits=(0.0, 1.0), whole=True, divisor=1.0)
            continue
        if intensity.scheme == "foreground":
            clip = foreground_limits(array[..., c], intensity.percentiles)
            intensity = dataclasses.replace(intensity, clip=clip)
        channel = Channel(transform.image(array[..., c]), intensity)
        mean, divisor = moments(channel, mask if intensity.masked else None)
        if divisor < EPSILON:
            warnings.warn(
                f"{path}: constant image (channel {c}); it becomes 0", DataWarning, stacklevel=3
            )
            divisor = 1.0
        if intensity.masked and mask is not None:
            channel = dataclasses.replace(channel, mask=mask, raw_mean=mean, raw_divisor=divisor)
        else:
            channel = dataclasses.replace(channel, mean=mean, divisor=divisor)
        low, high, whole = _span(channel)
        yield dataclasses.replace(channel, limits=(low, high), whole=whole)


def moments(channel: Channel, mask: np.ndarray | None = None) -> tuple[float, float]:
    """Mean and divisor of a clipped channel: normalised = (value - mean) / divisor.

    The divisor is 0 if a channel to be scaled is constant. With a mask (True outside) z-scores use
    the voxels inside it.
    """
    intensity = channel.intensity
    if intensity.scheme == "ct":
        return intensity.mean, max(intensity.std, EPSILON)
    if intensity.scheme == "nonorm":
        return 0.0, 1.0
    if intensity.scheme == "rgb_to_0_1":
        return 0.0, 255.0
    if intensity.scheme in ("window", "foreground"):
        low, high = intensity.clip
        return low, high - low
    if intensity.scheme == "rescale_to_0_1":
        low, high, _ = _span(channel)
        return low, high - low
    total, count, squares = 0.0, 0, 0.0
    for piece in _inside(channel, mask):
        total, count = total + float(piece.sum(dtype=np.float64)), count + piece.size
    mean = total / max(1, count)
    for piece in _inside(channel, mask):
        squares += float(np.square(piece - np.float32(mean), dtype=np.float64).sum())
    return mean, (squares / max(1, count)) ** 0.5


def quantisation(low: float | int, high: float | int, whole: bool = False) -> tuple[float, float]:
    """Scale and offset with value = stored * scale + offset for values between low and high.

    1 and a whole number for whole numbers. The error is at most 7.7e-6 of the range; exact for
    whole numbers of a range that int16 can hold.
    """
    exact = whole and high - low <= STEPS
    scale = 1.0 if exact or high == low else (high - low) / STEPS
    return scale, float(round((low + high) / 2)) if exact else (low + high) / 2


def quantise(values: np.ndarray, scale: float, offset: float) -> np.ndarray:
    """float32 values -> int16, see `quantisation`."""
    return np.clip(
        np.rint((values.astype(np.float64) - offset) / scale), -STEPS // 2, STEPS // 2
    ).astype(np.int16)


def _span(channel: Channel) -> tuple[float, float, bool]:
    """Smallest and largest value, and whether all are whole."""
    low, high, whole = math.inf, -math.inf, True
    if (
        channel.view.dtype.kind in "iu" and channel.mask is None
    ):  # no conversion needed: clipping preserves the order
        ends = np.array([channel.view.min(), channel.view.max()], np.float32)
        ends = (
            ends
            if channel.intensity.clip is None
            else np.clip(ends, *np.float32(channel.intensity.clip))
        )
        return float(ends[0]), float(ends[1]), bool(np.array_equal(ends, np.rint(ends)))
    for rows in pieces(channel.view.shape):
        piece = channel.rows(rows)
        low, high = min(low, float(piece.min())), max(high, float(piece.max()))
        whole = whole and bool(np.array_equal(piece, np.rint(piece)))
    return low, high, whole


def _check_finite(array: np.ndarray, c: int, path: str) -> None:
    if array.dtype.kind == "f" and not all(np.isfinite(piece).all() for piece in array):
        raise DataError(
            f"channel {c} is a mask and holds voxels that are not finite",
            path=path,
            expected="0 outside and a number above 0 inside",
            fix="write the mask again",
        )


def _inside(channel: Channel, mask: np.ndarray | None) -> Iterator[np.ndarray]:
    for rows in pieces(channel.view.shape):
        piece = channel.rows(rows)
        yield piece if mask is None else piece[~mask[rows]]
