"""Rotation and scaling drawn on the host: distributed as in `nnunet.draw`, the same picture."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.augment import kinds, movement
from medjax.augment.nnunet import Augmentation, augment, draw

PATCH, CUT = (8, 6), (11, 9)


def test_the_distribution_is_that_of_the_device():
    settings = Augmentation()
    patch = (6, 8, 6)
    of_host = movement.of(settings, patch)
    found = [of_host(np.random.default_rng((3, i))) for i in range(6000)]
    angles, scale = np.array([a for a, _ in found]), np.array([s for _, s in found])
    keys = jax.random.split(jax.random.key(0), 6000)
    device = jax.jit(jax.vmap(lambda key: draw(key, settings, patch, 1)))(keys)
    moved = angles.any(1) | (scale != 1)
    assert moved.mean() == pytest.approx(0.36, abs=0.02)
    assert float(device.spatial.mean()) == pytest.approx(0.36, abs=0.02)
    for mine, theirs in ((angles, np.asarray(device.angles)), (scale, np.asarray(device.scale))):
        at = (0.0, 0.02, 0.1, 0.5, 0.9, 0.98, 1.0)
        np.testing.assert_allclose(
            np.quantile(mine, at, axis=0), np.quantile(theirs, at, axis=0), atol=0.06
        )
    assert found[0][0].dtype == found[0][1].dtype == np.float32


def test_a_given_draw_gives_the_picture_of_the_old_augmentation():
    """The device's own numbers, handed in, change nothing; nor does what lies outside the centre of
    samples that do not move.
    """
    rng = np.random.default_rng(0)
    image = rng.normal(size=(6, *CUT, 1)).astype(np.float32)
    label = rng.integers(0, 3, (6, *CUT)).astype(np.int32)
    settings = dataclasses.replace(Augmentation.none(), rotation=0.4, scaling=0.2, noise=0.5)
    key = jax.random.key(5)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i))[0])(jnp.arange(6))
    drawn = jax.vmap(lambda k: draw(k, settings, PATCH, 1))(keys)
    still = ~np.asarray(drawn.spatial)
    assert 0 < still.sum() < 6
    run = jax.jit(augment, static_argnums=(3, 4))
    old = run(key, image, label, PATCH, settings)
    inner = (slice(1, 9), slice(1, 7))
    cut, ids = np.zeros_like(image), np.full_like(label, -1)
    cut[(slice(None), *inner)], ids[(slice(None), *inner)] = (
        a[(slice(None), *inner)] for a in (image, label)
    )
    cut[~still], ids[~still] = image[~still], label[~still]
    new = run(key, cut, ids, PATCH, settings, moved=(drawn.angles, drawn.scale))
    for a, b in zip(old, new, strict=True):
        np.testing.assert_array_equal(a, b)
    other = run(key, image, label, PATCH, settings, moved=(drawn.angles * 0, drawn.scale * 0 + 1))
    assert not np.array_equal(other[1], old[1])


def test_the_kinds_that_move():
    section = {"on": True, "kind": "nnunet", "rotation_rad": 0.3, "lateral": ()}
    made = kinds.moves(section, PATCH)
    assert made == movement.Movement(0.2, 0.3, 0.2, (0.7, 1.4))
    assert kinds.moves({"on": True}, (20, 100)).limit == pytest.approx(np.pi / 12)
    assert kinds.moves({"on": True, "kind": "turns"}, (6, 6)) is None
    never = dataclasses.replace(made, rotation=0.0, scaling=0.0)
    angles, scale = never(np.random.default_rng(0))
    assert not angles.any() and scale == 1
