"""Augmentation of slices as in M4oE's released code (quarter turns, small rotations), and flips.

In: image (b, y, x, m) normalised float32, label (b, y, x) ids (-1 outside the image), a key. Out:
the same at `out_shape`. With probability 1/2: a uniformly drawn number of quarter turns, then a
flip along one uniformly drawn axis. Otherwise, with probability 1/2: a rotation by an integer
number of degrees in [-20, 19]. Otherwise: no change. Labels move with the image; ids of lateral
classes are exchanged in mirrored images if a table of them is given.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int

from medjax.augment import spatial
from medjax.augment.spatial import centre_crop
from medjax.errors import UsageError
from medjax.sample.patches import PADDING

DEGREES = (-20, 20)  # upper bound excluded


@dataclasses.dataclass(frozen=True)
class Turns:
    """Settings.

    Attributes:
      turn: probability of quarter turns with a flip. rotation: probability of a rotation if there
        was no turn.
      spare_channels: channels of role "mask", which hold 0 and 1: always rotated by nearest
        neighbour and filled with 0.
      nearest: rotate the image by nearest neighbour and fill with 0 (the released code); otherwise
        linearly, filling with the slice's minimum. Labels always take the nearest pixel; pixels
        from outside the image get the outside label.
    """

    turn: float = 0.5
    rotation: float = 0.5
    nearest: bool = False
    spare_channels: tuple[int, ...] = ()

    def __post_init__(self):
        if not (0 <= self.turn <= 1 and 0 <= self.rotation <= 1):
            raise UsageError(
                "augmentation probability out of range",
                found=(self.turn, self.rotation),
                expected="0 to 1",
            )


def turns(
    key: Array,
    image: Float[Array, "b y x m"],
    label: Int[Array, "b y x"],
    out_shape: tuple[int, ...],
    settings: Turns = Turns(),
    exchange: Int[Array, "b ids"] | None = None,
) -> tuple[Float[Array, "b v u m"], Int[Array, "b v u"]]:
    """Augments a batch; sample i uses fold_in(key, i).

    Args:
      exchange: per sample, the id that each id becomes in a mirrored image. Quarter turns with a
        flip always mirror, whatever the axis.

    Raises `UsageError` for a patch that is not square.
    """
    if len(out_shape) != 2 or out_shape[0] != out_shape[1]:
        raise UsageError(
            "quarter turns need a square patch",
            found=tuple(out_shape),
            fix="change train.patch, or augment.kind",
        )
    image, label = centre_crop(image, out_shape, first=1), centre_crop(label, out_shape, first=1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(image.shape[0]))
    one = functools.partial(_one, settings=settings)
    return jax.vmap(one)(keys, image, label, exchange)


def _one(
    key: Array, image: Array, label: Array, exchange: Array | None, settings: Turns
) -> tuple[Array, Array]:
    which, quarter, axis, angle, rotates = jax.random.split(key, 5)
    turned = _quarter(
        image, label, jax.random.randint(quarter, (), 0, 4), jax.random.randint(axis, (), 0, 2)
    )
    radians = jnp.deg2rad(jax.random.randint(angle, (), *DEGREES).astype(jnp.float32))
    if exchange is not None:
        turned = (turned[0], spatial.exchanged(turned[1], exchange))
    rotated = rotate(image, label, radians, settings.nearest, settings.spare_channels)
    turn = jax.random.uniform(which) < settings.turn
    rotation = ~turn & (jax.random.uniform(rotates) < settings.rotation)
    return tuple(
        jnp.where(turn, a, jnp.where(rotation, b, c))
        for a, b, c in zip(turned, rotated, (image, label), strict=True)
    )


def _quarter(image: Array, label: Array, count: Array, axis: Array) -> tuple[Array, Array]:
    def move(a: Array) -> Array:
        a = jax.lax.switch(count, [lambda v, k=k: jnp.rot90(v, k) for k in range(4)], a)
        return jnp.where(axis == 0, a[::-1], a[:, ::-1])

    return move(image), move(label)


def rotate(
    image: Float[Array, "y x m"],
    label: Int[Array, "y x"],
    radians: Float[Array, ""],
    nearest: bool = False,
    spare: tuple[int, ...] = (),
) -> tuple[Float[Array, "y x m"], Int[Array, "y x"]]:
    """Rotates about the centre, from y towards x; see `Turns` for fill values and `spare`."""
    height, width = label.shape
    y, x = jnp.meshgrid(
        jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij"
    )
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    places = [cos * y + sin * x + (height - 1) / 2, cos * x - sin * y + (width - 1) / 2]
    fill = jnp.zeros(image.shape[-1]) if nearest else image.min((0, 1))
    fill = fill.at[jnp.array(spare)].set(0.0) if spare else fill
    orders = [0 if nearest or c in spare else 1 for c in range(image.shape[-1])]
    channels = [
        map_coordinates(image[..., c] - fill[c], places, order, mode="constant") + fill[c]
        for c, order in enumerate(orders)
    ]
    ids = map_coordinates(label - PADDING, places, 0, mode="constant") + PADDING
    return jnp.stack(channels, -1), ids.astype(label.dtype)


def flips(
    key: Array,
    image: Float[Array, "b *vol_in m"],
    label: Int[Array, "b *vol_in"],
    out_shape: tuple[int, ...],
    axes: tuple[int, ...] = (1,),
    exchange: Int[Array, "b ids"] | None = None,
    exchange_axis: int = -1,
) -> tuple[Float[Array, "b *vol m"], Int[Array, "b *vol"]]:
    """Crops the centre of every patch and mirrors it along each given axis with probability 1/2.

    Args:
      exchange: per sample, the id that each id becomes under mirroring of `exchange_axis`.
    """
    image, label = centre_crop(image, out_shape, first=1), centre_crop(label, out_shape, first=1)
    for axis in axes:
        chosen = jax.random.bernoulli(jax.random.fold_in(key, axis), 0.5, (image.shape[0],))
        image, label = (
            jnp.where(chosen.reshape(-1, *(1,) * (a.ndim - 1)), jnp.flip(a, 1 + axis), a)
            for a in (image, label)
        )
        if exchange is not None and axis % len(out_shape) == exchange_axis % len(out_shape):
            other = jax.vmap(spatial.exchanged)(label, exchange)
            label = jnp.where(chosen.reshape(-1, *(1,) * (label.ndim - 1)), other, label)
    return image, label
