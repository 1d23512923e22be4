"""The loss of masked images: closed forms, pixels outside the image, balance of modalities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.losses import masked_pixels
from medjax.losses.parts import separable
from medjax.models.parts.patch import space_to_depth

RNG = np.random.default_rng(0)
SIDE, CHANNELS = 2, 3


def outputs(samples=4, grid=(3, 5)):
    image = RNG.normal(size=(samples, *(SIDE * g for g in grid), CHANNELS))
    patches = space_to_depth(jnp.asarray(image, jnp.float32), (SIDE,) * len(grid))
    pixels = jnp.asarray(RNG.normal(size=patches.shape), jnp.float32)
    masked = jnp.asarray(RNG.random(patches.shape[:-1]) < 0.7)
    return {"patches": patches, "pixels": pixels, "masked": masked}


def tokens(inside):
    """(b, *vol) -> (b, *grid, pixels)."""
    return space_to_depth(jnp.asarray(inside)[..., None], (SIDE,) * (inside.ndim - 1))


def by_hand(found, inside, normalise, sample):
    """The loss of one sample, patch by patch; None if none counts."""
    losses, grid = [], found["masked"].shape[1:]
    for place in np.ndindex(grid):
        if not found["masked"][sample][place]:
            continue
        block = tuple(slice(SIDE * i, SIDE * i + SIDE) for i in place)
        known = np.repeat(np.asarray(inside[sample][block]).ravel(), CHANNELS)
        if not known.any():
            continue
        truth = np.asarray(found["patches"][sample][place], np.float64)[known]
        if normalise:
            truth = (truth - truth.mean()) / np.sqrt(truth.var(ddof=1) + 1e-6)
        guess = np.asarray(found["pixels"][sample][place])[known]
        losses.append(((guess - truth) ** 2).mean())
    return np.mean(losses) if losses else None


def _inside(samples=4, grid=(3, 5)):
    """Sample 0 is whole, 1 ends within a token, 2 at one, and of 3 there is nothing."""
    inside = np.ones((samples, *(SIDE * g for g in grid)), bool)
    inside[1, :, -3:] = False
    inside[2, -2 * SIDE :] = False
    inside[3] = False
    return inside


@pytest.mark.parametrize("normalise", [False, True])
def test_only_pixels_within_the_image_are_counted(normalise):
    found, inside = outputs(), _inside()
    expected = [by_hand(found, inside, normalise, k) for k in range(4)]
    assert expected[3] is None and None not in expected[:3]
    each, counted = masked_pixels.per_sample(found, tokens(inside), normalise)
    np.testing.assert_allclose(each, [*expected[:3], 0], rtol=1e-4)
    assert counted.tolist() == [1, 1, 1, 0]
    loss = masked_pixels.make(normalise)
    batch = {"inside": tokens(inside)}
    np.testing.assert_allclose(loss(found, batch), sum(expected[:3]) / 4, rtol=1e-4)
    # whatever is guessed or true outside changes nothing, and gets no gradient
    outside = 1.0 - jnp.repeat(tokens(inside), CHANNELS, -1)
    moved = {k: found[k] + 1e3 * outside for k in ("patches", "pixels")} | {
        "masked": found["masked"]
    }
    np.testing.assert_allclose(loss(moved, batch), loss(found, batch), rtol=1e-4)
    slope = jax.grad(lambda p: loss(found | {"pixels": p}, batch))(found["pixels"])
    assert np.isfinite(slope).all() and not (slope * outside).any() and (slope != 0).any()


@pytest.mark.parametrize("normalise", [False, True])
def test_an_image_without_an_outside_has_the_published_loss(normalise):
    found = outputs()
    whole = tokens(np.ones((4, 6, 10), bool))
    loss = masked_pixels.make(normalise)
    np.testing.assert_allclose(loss(found, {"inside": whole}), loss(found, {}), rtol=1e-5)


def test_modalities_weigh_alike_whatever_their_number_of_samples():
    found, inside = outputs(6, (2, 3)), np.ones((6, 4, 6), bool)
    inside[5] = False
    modality = jnp.array([0, 0, 0, 2, 1, 1])
    each, _ = masked_pixels.per_sample(found, tokens(inside))
    batch = {"inside": tokens(inside), "modality": modality}
    expected = (each[:3].mean() + each[3] + each[4]) / 3  # sample 5 shows nothing
    balanced = masked_pixels.make(balance="modalities")
    np.testing.assert_allclose(balanced(found, batch), expected, rtol=1e-5)
    alone = {k: v[3:4] for k, v in found.items()}
    one = {"inside": batch["inside"][3:4], "modality": modality[3:4]}
    np.testing.assert_allclose(balanced(alone, one), each[3], rtol=1e-5)
    nothing = {"inside": jnp.zeros_like(batch["inside"]), "modality": modality}
    assert float(balanced(found, nothing)) == 0
    with pytest.raises(UsageError, match=r"unknown balance 'modality'.*modalities"):
        masked_pixels.make(balance="modality")


def test_a_balanced_loss_is_one_of_the_whole_batch():
    rule = {"complete": True, "weighted": False}
    assert separable.over_samples(masked_pixels.make(), **rule) == separable.MEAN
    balanced = masked_pixels.make(balance="modalities")
    assert separable.over_samples(balanced, **rule) == separable.BATCH


def test_absolute_errors_as_in_simmim():
    found, inside = outputs(), _inside()
    loss = masked_pixels.make(power=1)
    whole = float(loss(found, {}))
    error = np.abs(np.asarray(found["pixels"]) - np.asarray(found["patches"])).mean(-1)
    hidden = np.asarray(found["masked"])
    expected = [error[k][hidden[k]].mean() for k in range(4)]
    assert whole == pytest.approx(np.mean(expected), rel=1e-5)
    part, counted = masked_pixels.per_sample(found, tokens(inside), power=1)
    assert float(part[0]) == pytest.approx(expected[0], rel=1e-5) and counted.tolist()[3] == 0
    with pytest.raises(UsageError, match="unknown power of masked_pixels; found 3"):
        masked_pixels.make(power=3)
