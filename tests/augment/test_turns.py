"""Slice augmentation by quarter turns, small rotations and flips: image and label move together,
and by what was asked for.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.augment import turns
from medjax.errors import UsageError

SIDE = 9
AUGMENT = jax.jit(turns.turns, static_argnums=(3, 4))
ROTATE = jax.jit(turns.rotate, static_argnums=3)


def _slices(b=64):
    """Every pixel has its own value; the label is the value's parity, the border is outside the
    image.
    """
    values = np.arange(SIDE * SIDE, dtype=np.float32).reshape(1, SIDE, SIDE, 1) + 1
    label = (values[..., 0] % 2).astype(np.int32)
    label[:, 0] = -1
    return jnp.asarray(np.repeat(values, b, 0)), jnp.asarray(np.repeat(label, b, 0))


def _dihedral(a):
    """All images of a square under quarter turns and flips, as bytes."""
    turned = [np.rot90(a, k) for k in range(4)]
    return {np.ascontiguousarray(v).tobytes() for t in turned for v in (t[::-1], t[:, ::-1])}


def test_quarter_turns_with_a_flip_move_image_and_label_alike():
    image, label = _slices()
    moved, ids = AUGMENT(jax.random.key(0), image, label, (SIDE, SIDE), turns.Turns(turn=1.0))
    wanted = _dihedral(np.asarray(image[0, ..., 0]))
    found = {np.asarray(m[..., 0]).tobytes() for m in moved}
    assert (
        found <= wanted and len(found) == 4
    )  # a turn and then a flip: the four reflections, whichever axis is flipped
    for m, i in zip(np.asarray(moved), np.asarray(ids), strict=True):
        inside = i >= 0
        np.testing.assert_array_equal(i[inside], (m[..., 0] % 2)[inside])


def test_half_of_the_slices_turn_a_quarter_rotate_and_a_quarter_stay():
    image, label = _slices(2000)
    moved, _ = AUGMENT(jax.random.key(1), image, label, (SIDE, SIDE), turns.Turns())
    same = np.asarray((moved == image).all((1, 2, 3)))
    wanted = _dihedral(np.asarray(image[0, ..., 0]))
    turned = np.array([np.asarray(m[..., 0]).tobytes() in wanted for m in np.asarray(moved)])
    np.testing.assert_allclose(
        [turned.mean(), same.mean()], [0.5, 0.25 + 0.25 / 40], atol=0.03
    )  # 1 of 40 angles is 0


@pytest.mark.parametrize("nearest", [False, True])
def test_a_rotation_by_90_degrees_is_a_quarter_turn_and_by_0_nothing(nearest):
    image, label = (a[0] for a in _slices(1))
    for radians, expected in ((0.0, lambda a: a), (np.pi / 2, np.rot90)):
        moved, ids = ROTATE(image, label, jnp.float32(radians), nearest)
        np.testing.assert_allclose(moved, expected(np.asarray(image)), atol=1e-3)
        np.testing.assert_array_equal(ids, expected(np.asarray(label)))


def test_corners_are_filled_with_the_minimum_or_as_released_with_0():
    image, label = (a[0] for a in _slices(1))
    for nearest, fill in ((False, float(image.min())), (True, 0.0)):
        moved, ids = ROTATE(image, label, jnp.float32(np.pi / 9), nearest)
        assert float(moved[0, 0, 0]) == pytest.approx(fill, abs=1e-4) and int(ids[0, 0]) == -1


def test_flips_alone_and_what_is_refused():
    image, label = _slices(200)
    moved, ids = jax.jit(turns.flips, static_argnums=(3, 4))(
        jax.random.key(0), image, label, (SIDE, SIDE), (1,)
    )
    flipped = np.asarray((moved == image[:, :, ::-1]).all((1, 2, 3)))
    assert (
        0.4 < flipped.mean() < 0.6 and np.asarray((moved == image).all((1, 2, 3)))[~flipped].all()
    )
    np.testing.assert_array_equal(np.asarray(ids)[flipped], np.asarray(label)[flipped][:, :, ::-1])
    with pytest.raises(UsageError, match="square"):
        turns.turns(jax.random.key(0), image, label, (SIDE, SIDE - 1))
    with pytest.raises(UsageError, match="0 to 1"):
        turns.Turns(turn=1.5)
