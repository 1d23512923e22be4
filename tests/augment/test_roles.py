"""Channels of role "mask" stay 0 and 1 through every augmentation and leave the draws of the images
alone; shift and quarter turns, off by default, change no other draw.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.augment import nnunet, turns
from medjax.augment.nnunet import Augmentation, augment, draw
from medjax.augment.turns import Turns
from medjax.errors import UsageError
from tests.augment.test_nnunet import NONE, volume
from tests.support.marks import slow

EVERY = Augmentation(
    rotation=1.0,
    scaling=1.0,
    noise=1.0,
    blur=1.0,
    brightness=1.0,
    shift=1.0,
    contrast=1.0,
    low_resolution=1.0,
    gamma_inverted=1.0,
    gamma=1.0,
    quarter=1.0,
)
run = jax.jit(augment, static_argnums=(3, 4))

# of key 7, every step on, 2 channels of (8, 8, 8); computed by commit 11fea70
DRAWN = {
    "spatial": [1.0],
    "angles": [-0.206462, -0.058686, 0.241784],
    "scale": [1.141651],
    "noise": [0.041148],
    "blur": [0.920626, 0.85065, 0.520188, 0.964879, 0.742479, 0.699728],
    "brightness": [0.841486, 1.09923],
    "contrast": [0.778991, 1.131204],
    "zoom": [0.51361, 0.975301],
    "gamma_inverted": [1.176042, 0.875804],
    "gamma": [0.867727, 0.942254],
    "flips": [1.0, 1.0, 1.0],
}


def with_mask(image, position, seed=0):
    mask = np.random.default_rng(seed).integers(0, 2, (*image.shape[:-1], 1)).astype(np.float32)
    return np.insert(image, [position], mask, axis=-1), mask


@pytest.mark.parametrize("extra", [{}, {"shift": 1.0}, {"quarter": 1.0}])
def test_the_draws_are_those_of_earlier_versions(extra):
    settings_ = dataclasses.replace(
        EVERY, blur_channel=1.0, low_resolution_channel=1.0, shift=0.0, quarter=0.0
    )
    settings_ = dataclasses.replace(settings_, **extra)
    drawn = draw(jax.random.key(7), settings_, (8, 8, 8), 2)._asdict()
    for name, known in DRAWN.items():
        np.testing.assert_allclose(np.ravel(np.asarray(drawn[name], float)), known, atol=2e-6)
    assert [drawn[name] is not None for name in ("shift", "quarter")] == [
        name in extra for name in ("shift", "quarter")
    ]


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 1 << 20),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([((9, 10, 11), (6, 8, 8)), ((4, 20, 20), (4, 16, 16)), ((11, 12), (8, 8))]),
)
@pytest.mark.slow
def test_masks_stay_binary_and_images_are_as_without_them(seed, position, shapes):
    shape, out = shapes
    one, label = volume(shape)
    image = np.concatenate([one, 2 * one[::-1]], -1)
    both, _ = with_mask(image, position, seed)
    key = jax.random.key(seed)
    alone, ids = run(key, image[None], label[None], out, EVERY)
    chosen = dataclasses.replace(EVERY, spare_channels=(position,))
    found, same = run(key, both[None], label[None], out, chosen)
    np.testing.assert_array_equal(ids, same)
    np.testing.assert_allclose(np.delete(found, position, -1), alone, atol=2e-5)
    assert set(np.unique(found[..., position])) <= {0.0, 1.0}
    assert found.shape == (1, *out, 3)


def test_a_mask_moves_with_the_image():
    image, _ = volume((12, 12, 12))
    ball = (np.linalg.norm(np.indices((12, 12, 12)) - 5.5, axis=0) < 4).astype(np.float32)
    ball[6:] = 0  # half of it, so that turns show
    both = np.stack([image[..., 0], ball], -1)
    chosen = dataclasses.replace(
        NONE, rotation=1.0, scaling=1.0, mirror=1.0, quarter=1.0, spare_channels=(1,)
    )
    for k in range(6):
        found, label = run(
            jax.random.key(k), both[None], ball[None].astype(np.int16), (8, 8, 8), chosen
        )
        differ = (np.asarray(found[0, ..., 1]) > 0) != (np.asarray(label[0]) > 0)
        assert differ.mean() < 0.02 and (np.asarray(label) > 0).any()


@pytest.mark.parametrize("nearest", [slow(False), True])
def test_turns_keep_masks_binary(nearest):
    image, label = volume((12, 12))
    image = image + 3.0
    both, _ = with_mask(image, 1)
    both[..., 1] = 1.0  # full: what is turned in from outside must be 0
    first, second, labels = (jnp.asarray(a)[None] for a in (image, both, label))
    for k in range(8):
        key = jax.random.key(k)
        alone, ids = turns.turns(key, first, labels, (12, 12), Turns(nearest=nearest))
        chosen = Turns(nearest=nearest, spare_channels=(1,))
        found, same = turns.turns(key, second, labels, (12, 12), chosen)
        np.testing.assert_array_equal(ids, same)
        np.testing.assert_array_equal(found[..., :1], alone)
        assert set(np.unique(found[..., 1])) <= {0.0, 1.0}
    radians = jnp.float32(0.4)
    turned, ids = turns.rotate(
        jnp.asarray(both), jnp.asarray(label.astype(np.int32)), radians, nearest, (1,)
    )
    np.testing.assert_array_equal(np.asarray(turned[..., 1]) == 0, np.asarray(ids) == -1)
    mirrored, _ = turns.flips(jax.random.key(0), second, labels, (12, 12), (0, 1))
    assert (np.asarray(mirrored[..., 1]) == 1).all()


def test_shift_adds_one_number_to_all_channels():
    image, label = volume((6, 6, 6))
    image = np.concatenate([image, image[::-1]], -1)
    values = []
    for k in range(40):
        chosen = dataclasses.replace(NONE, shift=0.5, shift_range=(-0.3, -0.1))
        found, _ = run(jax.random.key(k), image[None], label[None], (6, 6, 6), chosen)
        difference = np.asarray(found[0]) - image
        np.testing.assert_allclose(difference, difference.flat[0], atol=1e-6)
        values.append(float(difference.flat[0]))
    moved = [v for v in values if abs(v) > 1e-6]
    assert 10 <= len(moved) <= 30 and all(-0.3 <= v <= -0.1 for v in moved)


@pytest.mark.parametrize("shape", [(3, 6, 6), (6, 6)])
def test_quarter_turns_in_the_plane_of_the_last_two_axes(shape):
    image, label = volume(shape)
    chosen, plane = dataclasses.replace(NONE, quarter=0.8), (len(shape) - 2, len(shape) - 1)
    counts = [0] * 4
    for k in range(60):
        found, ids = run(jax.random.key(k), image[None], label[None], shape, chosen)
        [turned] = [
            n for n in range(4) if np.array_equal(np.rot90(label, n, plane), np.asarray(ids[0]))
        ]
        np.testing.assert_array_equal(found[0], np.rot90(image, turned, plane))
        counts[turned] += 1
    assert 4 <= counts[0] <= 22 and min(counts[1:]) >= 6


def test_what_is_refused():
    image, label = volume((6, 8, 7))
    for settings_, words in (
        (dataclasses.replace(NONE, quarter=0.1), "equal sides in its last two axes"),
        (dataclasses.replace(NONE, spare_channels=(0,)), "a channel that is no mask"),
    ):
        with pytest.raises(UsageError, match=words):
            run(jax.random.key(0), image[None], label[None], (6, 8, 7), settings_)
    with pytest.raises(UsageError, match="'shift_range' is not"):
        nnunet.Augmentation(shift_range=(0.2, 0.1))
    with pytest.raises(UsageError, match="'quarter' out of range"):
        nnunet.Augmentation(quarter=1.2)
