"""Augmentation on the device with the steps, probabilities and ranges of nnU-Net v2.

In: image (b, *vol_in, m) normalised float32, label (b, *vol_in) ids (-1 outside the image), a key.
Out: the same at `out_shape`. Order: rotation and scaling in one resampling, noise, blur,
brightness, shift, contrast, low resolution, gamma of the inverted image, gamma, mirroring (lateral
classes are exchanged if requested), quarter turns, zero outside the normalisation mask. Shift and
quarter turns are MONAI's RandShiftIntensity and RandRotate90 and off by default. Channels of role
"mask" move with the image and stay 0 and 1; nothing else happens to them.

Drawing the numbers (`Draw`; a neutral value means "not drawn") is separate from applying them.
Samples are processed one after another, each step under a condition, so that a step that is not
drawn costs nothing; the volume of one sample already fills a device.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from medjax.augment import intensity, spatial
from medjax.augment.spatial import centre_crop
from medjax.errors import UsageError
from medjax.sample.patches import is_anisotropic, rotation_limit

__all__ = ["Augmentation", "Draw", "apply", "augment", "centre_crop", "draw"]

Range = tuple[float, float]
SHIFT, QUARTER = 1, 2  # numbers of the keys of steps that are off by default


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Probabilities per sample and ranges; the defaults are those of nnU-Net v2.

    Attributes:
      rotation, rotation_rad: probability; angles are uniform within +-rotation_rad, None uses
        nnU-Net's limit (`rotation_limit`).
      scaling, scaling_range: probability; one factor for all axes; a factor above 1 makes objects
        smaller.
      noise, noise_sd: probability; standard deviation, shared by the channels.
      blur, blur_channel, blur_sigma: probability per sample, then per channel; voxels, per axis.
      brightness, brightness_range: probability; factor, below and above 1 equally often.
      shift, shift_range: probability; a number that is added to all channels.
      contrast, contrast_range: probability; factor as for brightness.
      low_resolution, low_resolution_channel, zoom_range: probability per sample, then per channel;
        share of each side that is kept.
      gamma_inverted, gamma, gamma_range: probability of the step on the negated image and on the
        image itself; exponent as for brightness.
      mirror, mirror_axes: probability per axis, and which spatial axes (None: all). Left classes
        keep their label.
      quarter: probability of one, two or three quarter turns in the plane of the last two axes
        (axial, of (z, y, x)), which must have equal sides.
      swap: pairs of label ids (left, right) to exchange wherever the left-right axis is mirrored,
        so that sides stay correct; per corpus, in the order of the batch's `corpus` index.
      swap_axis: the left-right axis; None is the last one (x, in RAS). See `exchanging_axes`.
      mask_channels: channels that are 0 outside their normalisation mask, where the label is -1;
        they are set to 0 there again at the end.
      spare_channels: channels of role "mask", which hold 0 and 1: space and mirroring apply to them
        (interpolated values are 1 from 1/2 on), intensity steps do not. The draws are those of an
        image without them.
      slicewise: rotate and scale within slices of constant z; None decides by the patch shape
        (`is_anisotropic`). Low resolution then leaves z unchanged.
    """

    rotation: float = 0.2
    rotation_rad: float | None = None
    scaling: float = 0.2
    scaling_range: Range = (0.7, 1.4)
    noise: float = 0.1
    noise_sd: Range = (0.0, 0.1)
    blur: float = 0.2
    blur_channel: float = 0.5
    blur_sigma: Range = (0.5, 1.0)
    brightness: float = 0.15
    brightness_range: Range = (0.75, 1.25)
    shift: float = 0.0
    shift_range: Range = (-0.1, 0.1)
    contrast: float = 0.15
    contrast_range: Range = (0.75, 1.25)
    low_resolution: float = 0.25
    low_resolution_channel: float = 0.5
    zoom_range: Range = (0.5, 1.0)
    gamma_inverted: float = 0.1
    gamma: float = 0.3
    gamma_range: Range = (0.7, 1.5)
    mirror: float = 0.5
    mirror_axes: tuple[int, ...] | None = None
    quarter: float = 0.0
    slicewise: bool | None = None
    swap: tuple[tuple[tuple[int, int], ...], ...] = ()
    swap_axis: int | None = None
    mask_channels: tuple[int, ...] = ()
    spare_channels: tuple[int, ...] = ()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is float and not 0 <= value <= 1:
                raise UsageError(
                    f"augmentation probability {field.name!r} out of range",
                    found=value,
                    expected="0 to 1",
                )
            lowest = -math.inf if field.name == "shift_range" else 0
            if field.type is Range and not (len(value) == 2 and lowest <= value[0] <= value[1]):
                raise UsageError(
                    f"augmentation range {field.name!r} is not (low, high)", found=value
                )

    @classmethod
    def none(cls) -> "Augmentation":
        """No augmentation: returns the centre of the patch."""
        off = {f.name: 0.0 for f in dataclasses.fields(cls) if f.type is float}
        return cls(**off)

    def within_slices(self, out_shape: tuple[int, ...]) -> bool:
        """True if a 3D patch of this shape is rotated and scaled slice by slice."""
        return len(out_shape) == 3 and (
            is_anisotropic(out_shape) if self.slicewise is None else self.slicewise
        )


class Draw(NamedTuple):
    """What was drawn for one sample with n axes and m channels (or, stacked, for a batch)."""

    spatial: Bool[Array, "*b"]  # rotate or scale at all
    angles: Float[Array, "*b 3"]  # rad
    scale: Float[Array, "*b"]
    noise: Float[Array, "*b"]  # standard deviation, 0: none
    blur: Float[Array, "*b m n"]  # sigma, 0: none
    brightness: Float[Array, "*b m"]  # factor, 1: none
    contrast: Float[Array, "*b m"]  # factor, 1: none
    zoom: Float[Array, "*b m"]  # share kept, 1: none
    gamma_inverted: Float[Array, "*b m"]  # exponent, 1: none
    gamma: Float[Array, "*b m"]  # exponent, 1: none
    flips: Bool[Array, "*b n"]
    shift: Float[Array, "*b"] | None = None  # added, 0: none; None where it is off
    quarter: Int[Array, "*b"] | None = None  # quarter turns; None where they are off


def draw(key: Array, settings: Augmentation, out_shape: tuple[int, ...], channels: int) -> Draw:
    """Draws all numbers for one sample.

    Args:
      channels: of role "image". Steps that are off by default have a key of their own, so that they
        change no other number.
    """
    s, axes, used = settings, len(out_shape), 0
    limit = rotation_limit(out_shape) if s.rotation_rad is None else s.rotation_rad
    numbers = jax.random.uniform(
        key, (14 + axes + channels * (15 + axes),)
    )  # every step uses its own key, whether it is drawn or not

    def uniform(bounds, *shape):
        nonlocal used
        used += math.prod(shape)
        return bounds[0] + (bounds[1] - bounds[0]) * numbers[
            used - math.prod(shape) : used
        ].reshape(shape)

    def chance(p, *shape):
        return uniform((0.0, 1.0), *shape) < p

    def around_one(bounds):
        """Per channel: uniform below 1 or uniform above 1, each half the time."""
        below, above = (
            uniform((min(bounds[0], 1.0), 1.0), channels),
            uniform((max(bounds[0], 1.0), bounds[1]), channels),
        )
        return jnp.where(chance(0.5, channels) & (bounds[0] < 1), below, above)

    turn, rescale = chance(s.rotation), chance(s.scaling)
    allowed = jnp.array([s.mirror_axes is None or axis in s.mirror_axes for axis in range(axes)])
    return Draw(
        spatial=turn | rescale,
        angles=jnp.where(turn, uniform((-limit, limit), 3), 0.0),
        scale=jnp.where(rescale, uniform(s.scaling_range), 1.0),
        noise=jnp.where(chance(s.noise), uniform(s.noise_sd), 0.0),
        blur=jnp.where(
            chance(s.blur) & chance(s.blur_channel, channels, 1),
            uniform(s.blur_sigma, channels, axes),
            0.0,
        ),
        brightness=jnp.where(chance(s.brightness), around_one(s.brightness_range), 1.0),
        contrast=jnp.where(chance(s.contrast), around_one(s.contrast_range), 1.0),
        zoom=jnp.where(
            chance(s.low_resolution) & chance(s.low_resolution_channel, channels),
            uniform(s.zoom_range, channels),
            1.0,
        ),
        gamma_inverted=jnp.where(chance(s.gamma_inverted), around_one(s.gamma_range), 1.0),
        gamma=jnp.where(chance(s.gamma), around_one(s.gamma_range), 1.0),
        flips=chance(s.mirror, axes) & allowed,
        shift=_shift(jax.random.fold_in(key, SHIFT), s) if s.shift else None,
        quarter=_quarter(jax.random.fold_in(key, QUARTER), s) if s.quarter else None,
    )


def _shift(key: Array, settings: Augmentation) -> Array:
    wanted, value = jax.random.uniform(key, (2,))
    low, high = settings.shift_range
    return jnp.where(wanted < settings.shift, low + (high - low) * value, 0.0)


def _quarter(key: Array, settings: Augmentation) -> Array:
    wanted, turns = jax.random.split(key)
    drawn = jax.random.uniform(wanted) < settings.quarter
    return jnp.where(drawn, jax.random.randint(turns, (), 1, 4), 0)


def apply(
    key: Array,
    drawn: Draw,
    image: Float[Array, "*vol_in m"],
    label: Int[Array, "*vol_in"],
    out_shape: tuple[int, ...],
    settings: Augmentation,
    exchange: Int[Array, "ids"] | None = None,
) -> tuple[Float[Array, "*vol_out m"], Int[Array, "*vol_out"]]:
    """Applies a draw to one sample.

    `key` is used for the noise only; `exchange` maps each id to its id under left-right mirroring.
    """
    image, label = _space(drawn, image, label, out_shape, settings)
    spare = list(settings.spare_channels)
    kept = [c for c in range(image.shape[-1]) if c not in spare]
    if spare:
        image, masks = image[..., np.array(kept)], image[..., np.array(spare)]
    channels = jnp.moveaxis(image, -1, 0)
    if settings.noise:
        keys = jax.random.split(key, channels.shape[0])
        noisy = jax.vmap(intensity.noise, (0, 0, None))
        channels = jax.lax.cond(
            drawn.noise > 0, noisy, lambda keys, x, sd: x, keys, channels, drawn.noise
        )
    shift = () if drawn.shift is None else (jnp.broadcast_to(drawn.shift, (len(kept),)),)
    numbers = (
        drawn.blur,
        drawn.brightness,
        drawn.contrast,
        drawn.zoom,
        drawn.gamma_inverted,
        drawn.gamma,
    )
    first = int(settings.within_slices(out_shape))
    channels = jax.lax.map(
        lambda args: _channel(*args, settings=settings, first=first), (channels, *numbers, *shift)
    )
    image = jnp.moveaxis(channels, 0, -1)
    if spare:
        together = jnp.concatenate([image, (masks >= 0.5).astype(image.dtype)], -1)
        image = together[..., np.argsort(kept + spare)]
    if settings.mirror and settings.mirror_axes != ():
        image, label = spatial.mirror(image, drawn.flips), spatial.mirror(label, drawn.flips)
        if exchange is not None:
            axes = np.array(exchanging_axes(settings, out_shape))
            other = spatial.exchanged(label, exchange)
            odd = jnp.sum(drawn.flips[axes]) % 2 == 1
            label = jnp.where(odd, other, label)
    if drawn.quarter is not None:
        image, label = (
            spatial.quarter_turns(a, drawn.quarter, len(out_shape)) for a in (image, label)
        )
    if settings.mask_channels:
        masked = np.isin(np.arange(image.shape[-1]), settings.mask_channels)
        image = jnp.where((label < 0)[..., None] & masked, 0.0, image)
    return image, label


def exchanging_axes(settings: Augmentation, out_shape: Sequence[int]) -> tuple[int, ...]:
    """The axes along which an odd number of mirrorings exchanges left and right.

    That is the left-right axis alone, as long as images stay about upright: a class lies on the
    side where it is seen. Where slices are turned by more than a quarter, mirroring y and turning
    by 180 degrees is mirroring x, so that both count alike; in space turned so far, all three do.
    """
    axes = len(out_shape)
    own = axes - 1 if settings.swap_axis is None else settings.swap_axis
    limit = rotation_limit(out_shape) if settings.rotation_rad is None else settings.rotation_rad
    turned: set[int] = set()
    if settings.rotation and limit > math.pi / 2:
        turned = set(range(int(settings.within_slices(out_shape)), axes))
    if settings.quarter:
        turned |= {axes - 2, axes - 1}
    return tuple(sorted(turned)) if own in turned else (own,)


def exchange_rows(swap: Sequence, corpus: Int[Array, " b"] | None) -> Int[Array, "b ids"] | None:
    """Per sample, the id that each id becomes in a mirrored image; None if none changes.

    Args:
      swap: see `Augmentation`. corpus: of each sample.

    Raises: `UsageError` for lateral classes without the corpus of the samples.
    """
    table = exchanges(swap)
    if table is None:
        return None
    if corpus is None:
        raise UsageError(
            "lateral classes are swapped per corpus",
            found="no corpus of the samples",
            fix="pass batch['corpus']",
        )
    return jnp.asarray(table)[corpus]


def exchanges(swap: Sequence) -> Int[np.ndarray, "corpora ids"] | None:
    """Per corpus, the id that each id maps to under mirroring; None without lateral classes."""
    if not any(swap):
        return None
    table = np.tile(
        np.arange(1 + max(i for pairs in swap for pair in pairs for i in pair)),
        (len(swap), 1),
    )
    for row, pairs in zip(table, swap, strict=True):
        for left, right in pairs:
            row[left], row[right] = right, left
    return table


def _space(drawn, image, label, out_shape, settings):
    """Rotation and scaling if drawn, else the centre.

    Within slices, z is carried along as channels that share the coordinates.
    """
    if not (settings.rotation or settings.scaling):
        return centre_crop(image, out_shape), centre_crop(label, out_shape)

    def crop(image, label):
        return centre_crop(image, out_shape), centre_crop(label, out_shape)

    def turn(image, label):
        matrix = spatial.affine(drawn.angles, drawn.scale, 3)
        image, label = spatial.resample(image, label[..., None], matrix, out_shape)
        return image, label[..., 0]

    def turn_slices(image, label):
        depth, inner, m = out_shape[0], image.shape[1:-1], image.shape[-1]
        image, label = centre_crop(image, (depth, *inner)), centre_crop(label, (depth, *inner))
        image = jnp.moveaxis(image, 0, -2).reshape(*inner, depth * m)
        matrix = spatial.affine(drawn.angles, drawn.scale, 2)
        image, label = spatial.resample(image, jnp.moveaxis(label, 0, -1), matrix, out_shape[1:])
        return jnp.moveaxis(image.reshape(*out_shape[1:], depth, m), -2, 0), jnp.moveaxis(
            label, -1, 0
        )

    def turn_plane(image, label):
        image, label = spatial.resample(
            image, label[..., None], spatial.affine(drawn.angles, drawn.scale, 2), out_shape
        )
        return image, label[..., 0]

    chosen = (
        turn_plane
        if len(out_shape) == 2
        else turn_slices
        if settings.within_slices(out_shape)
        else turn
    )
    return jax.lax.cond(drawn.spatial, chosen, crop, image, label)


def _channel(
    image,
    sigma,
    brightness,
    contrast,
    zoom,
    gamma_inverted,
    gamma,
    shift=0.0,
    *,
    settings: Augmentation,
    first: int,
):
    """Intensity steps of one channel, in order; steps with probability 0 are not compiled."""
    taps = intensity.blur_taps(settings.blur_sigma[1])
    steps = (
        (settings.blur, sigma[0] > 0, lambda x: intensity.blur(x, sigma, taps)),
        (settings.brightness, brightness != 1, lambda x: x * brightness),
        (settings.shift, shift != 0, lambda x: x + shift),
        (settings.contrast, contrast != 1, lambda x: intensity.contrast(x, contrast)),
        (settings.low_resolution, zoom < 1, lambda x: intensity.low_resolution(x, zoom, first)),
        (
            settings.gamma_inverted,
            gamma_inverted != 1,
            lambda x: -intensity.gamma(-x, gamma_inverted),
        ),
        (settings.gamma, gamma != 1, lambda x: intensity.gamma(x, gamma)),
    )
    for probability, wanted, step in steps:
        if probability:
            image = jax.lax.cond(wanted, step, lambda x: x, image)
    return image


def augment(
    key: Array,
    image: Float[Array, "b *vol_in m"],
    label: Int[Array, "b *vol_in"],
    out_shape: tuple[int, ...],
    settings: Augmentation = Augmentation(),
    *,
    corpus: Int[Array, "b"] | None = None,
    moved: tuple[Float[Array, "b 3"], Float[Array, "b"]] | None = None,
    mesh: Mesh | None = None,
    batch_axes: str | tuple[str, ...] = "data",
) -> tuple[Float[Array, "b *vol_out m"], Int[Array, "b *vol_out"]]:
    """Augments a batch. Pure; jit it with `out_shape`, `settings`, `mesh` and `batch_axes` static.

    Sample i uses fold_in(key, i) with i counted over the global batch, so the result does not
    depend on the number of devices.

    Args:
      key: key of this training step.
      image, label: enlarged patches (`enlarged_patch`), no side smaller than `out_shape`.
      out_shape: the network's patch, (z, y, x) or (y, x).
      settings: probabilities and ranges; `Augmentation.none()` crops the centre.
      corpus: corpus index of each sample; required if `settings.swap` has lateral classes.
      moved: angles (rad) and scale of each sample, drawn elsewhere (`movement.Movement`); of one
        that has zeros and 1, only the centre is looked at. None: drawn here.
      mesh, batch_axes: give both if the batch is split over devices: each device then processes its
        own samples. Without a mesh the result is the same, but every device would process all of
        them.

    Raises: `UsageError` if the patches are smaller than `out_shape`.
    """
    inner = image.shape[1:-1]
    if len(inner) != len(out_shape) or any(n < k for n, k in zip(inner, out_shape, strict=True)):
        raise UsageError(
            "patches do not cover the network's patch",
            found=inner,
            expected=f"at least {out_shape}",
            fix="see enlarged_patch",
        )
    if settings.quarter and out_shape[-1] != out_shape[-2]:
        raise UsageError(
            "quarter turns need a patch with equal sides in its last two axes",
            found=tuple(out_shape),
            fix="change train.patch, or set augment.quarter to 0",
        )
    if len(settings.spare_channels) >= image.shape[-1]:
        raise UsageError(
            "augmentation needs a channel that is no mask", found=tuple(settings.spare_channels)
        )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(image.shape[0]))
    images = image.shape[-1] - len(settings.spare_channels)

    rows = exchange_rows(settings.swap, corpus)

    def one(args):
        key, image, label, exchange, moved = args
        key_draw, key_noise = jax.random.split(key)
        drawn = draw(key_draw, settings, out_shape, images)
        if moved is not None:
            angles, scale = moved
            moves = jnp.any(angles != 0) | (scale != 1)
            drawn = drawn._replace(spatial=moves, angles=angles, scale=scale)
        return apply(key_noise, drawn, image, label, out_shape, settings, exchange)

    def several(*given):
        in_turn = functools.partial(jax.lax.map, one)
        if len(out_shape) == 3:
            return in_turn(given)
        # A slice is small: on an accelerator its many steps cost launches, and every condition
        # waits for the host; all slices at once compute both sides of a condition and select.
        return jax.lax.platform_dependent(given, cpu=in_turn, default=jax.vmap(one))

    if mesh is not None:
        split = PartitionSpec(batch_axes)
        several = jax.shard_map(
            several, mesh=mesh, in_specs=split, out_specs=split, check_vma=False
        )
    return several(keys, image, label, rows, moved)
