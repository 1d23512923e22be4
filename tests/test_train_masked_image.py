"""The masked-image task with a network one can compute by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.losses import masked_pixels
from medjax.train.tasks import masked_image


def _task(seen=None, **more):
    def apply(params, image, context, train, key):
        """Guesses one number for every pixel of 2 x 2 patches."""
        if seen is not None:
            seen.append((set(context), train, image.shape))
        b, y, x, _ = image.shape
        patches = image[..., 0].reshape(b, y // 2, 2, x // 2, 2).transpose(0, 1, 3, 2, 4).reshape(b, y // 2, x // 2, 4)
        return {"pixels": jnp.broadcast_to(params, patches.shape), "patches": patches, "masked": context["masked"]}

    space = {"table": np.zeros((1, 1, 1)), "known": np.ones((1, 1)), "ignore_ids": [-2]}
    options = {"patch": (16, 16), "patch_size": 2, "block": 4, "ratio": 0.75} | more
    return masked_image.make(apply, [("masked_pixels", 2.0, masked_pixels.make())], **space, **options)


def _batch(b=2):
    rng = np.random.default_rng(0)
    zeros = np.zeros(b, np.int32)
    return {
        "image": rng.integers(-9, 9, (b, 16, 16, 1)).astype(np.int16), "gain": np.full((b, 1), 0.5, np.float32),
        "bias": np.ones((b, 1), np.float32), "label": np.zeros((b, 16, 16), np.int16), "corpus": zeros, "modality": zeros, "case": zeros,
    }  # fmt: skip


def test_the_loss_is_that_of_the_hidden_pixels_of_normalised_images():
    seen, batch = [], _batch()
    task = _task(seen)
    key = jax.random.key(3)
    value, parts = jax.jit(task.loss)(jnp.float32(0.25), batch, key)
    masked = np.asarray(masked_image.block_mask(jax.random.fold_in(key, 2), 2, (8, 8), 4, 0.75))
    pixels = batch["image"][..., 0] * 0.5 + 1.0
    hidden = np.repeat(np.repeat(masked, 2, 1), 2, 2)
    expected = ((pixels[hidden] - 0.25) ** 2).mean()
    np.testing.assert_allclose(parts["loss/masked_pixels"], expected, rtol=1e-5)
    np.testing.assert_allclose(value, 2 * expected, rtol=1e-5)
    assert seen[0] == ({"corpus", "modality", "masked"}, True, (2, 16, 16, 1))
    other, _ = jax.jit(task.loss)(jnp.float32(0.25), batch, jax.random.key(4))
    assert float(other) != float(value)


def test_augmented_images_are_what_is_guessed():
    def darker(key, image, label):
        return image - 100.0, label

    value, _ = _task(augment=darker).loss(jnp.float32(-100.0), _batch(), jax.random.key(0))
    assert float(value) < 100  # of order 1 per pixel once the same 100 is taken off


@pytest.mark.parametrize(("more", "message"), [({"patch": (15, 16)}, "tokens"), ({"block": 3}, "blocks"), ({"ratio": 0.99}, "ratio")])
def test_masks_that_do_not_fit_are_refused_before_training(more, message):
    with pytest.raises(UsageError, match=message):
        _task(**more)


def test_there_are_no_counts_to_validate_on():
    with pytest.raises(UsageError, match="validate_every"):
        _task().validate(None, _batch())
