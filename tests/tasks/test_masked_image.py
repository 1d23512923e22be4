"""The masked-image task with a network one can compute by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.losses import masked_pixels
from medjax.tasks import masked_image
from medjax.train import checkpoint, log, loop, optim, sharding


def _task(seen=None, apply=None, **more):
    def one_number(params, image, context, train, key):
        """Guesses one number for every pixel of 2 x 2 patches."""
        if seen is not None:
            seen.append((set(context), train, image.shape))
        b, y, x, _ = image.shape
        patches = (
            image[..., 0]
            .reshape(b, y // 2, 2, x // 2, 2)
            .transpose(0, 1, 3, 2, 4)
            .reshape(b, y // 2, x // 2, 4)
        )
        return {
            "pixels": jnp.broadcast_to(params, patches.shape),
            "patches": patches,
            "masked": context["masked"],
        }

    space = {"table": np.zeros((1, 1, 1)), "known": np.ones((1, 1)), "ignore_ids": [-2]}
    options = {
        "patch": (16, 16),
        "patch_size": 2,
        "block": 4,
        "ratio": 0.75,
        "modalities": ("CT",),
    } | more
    return masked_image.make(
        apply or one_number, [("masked_pixels", 2.0, masked_pixels.make())], **space, **options
    )


def _batch(b=2):
    rng = np.random.default_rng(0)
    zeros = np.zeros(b, np.int32)
    return {
        "image": rng.integers(-9, 9, (b, 16, 16, 1)).astype(np.int16),
        "gain": np.full((b, 1), 0.5, np.float32),
        "bias": np.ones((b, 1), np.float32),
        "label": np.zeros((b, 16, 16), np.int16),
        "corpus": zeros,
        "modality": zeros,
        "case": zeros,
    }


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


def test_tokens_outside_the_image_are_neither_trained_on_nor_validated():
    """The sampler's padding, label -1, of a patch that sticks out; one sample is nothing else."""
    batch, key, guess = _batch(3), jax.random.key(3), jnp.float32(0.25)
    batch["label"][0, :, 9:] = batch["label"][2] = -1
    task = _task()
    masked = np.asarray(masked_image.block_mask(jax.random.fold_in(key, 2), 3, (8, 8), 4, 0.75))
    held = masked_image.block_mask(jax.random.key(masked_image.HELD_OUT), 3, (8, 8), 4, 0.75)
    pixels, inside = batch["image"][..., 0] * 0.5 + 1.0, batch["label"] >= 0

    def by_hand(hidden, k):
        """Mean over tokens of the mean over their pixels within the image."""
        means = []
        for y, x in zip(*np.nonzero(hidden[k]), strict=True):
            block = (k, slice(2 * y, 2 * y + 2), slice(2 * x, 2 * x + 2))
            if inside[block].any():
                means.append(((pixels[block][inside[block]] - 0.25) ** 2).mean())
        return np.mean(means)

    _, parts = jax.jit(task.loss)(guess, batch, key)
    expected = (by_hand(masked, 0) + by_hand(masked, 1)) / 3
    np.testing.assert_allclose(parts["loss/masked_pixels"], expected, rtol=1e-5)
    found = jax.jit(task.validate)(guess, batch)
    held = np.asarray(held)
    np.testing.assert_allclose(
        found["error"], [2 * (by_hand(held, 0) + by_hand(held, 1))], rtol=1e-5
    )
    assert found["weight"].tolist() == [2]


def test_augmented_images_are_what_is_guessed():
    def darker(key, image, label):
        return image - 100.0, label

    value, _ = _task(augment=darker).loss(jnp.float32(-100.0), _batch(), jax.random.key(0))
    assert float(value) < 100  # of order 1 per pixel once the same 100 is taken off


@pytest.mark.parametrize(
    ("more", "message"),
    [({"patch": (15, 16)}, "tokens"), ({"block": 3}, "blocks"), ({"ratio": 0.99}, "ratio")],
)
def test_masks_that_do_not_fit_are_refused_before_training(more, message):
    with pytest.raises(UsageError, match=message):
        _task(**more)


def _guess_by_modality(params, image, context, train, key):
    """One number for all pixels of a sample, by its modality."""
    patches = image[..., 0].reshape(-1, 8, 2, 8, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 8, 8, 4)
    pixels = jnp.broadcast_to(params[context["modality"]][:, None, None, None], patches.shape)
    return {"pixels": pixels, "patches": patches, "masked": context["masked"]}


def test_validation_tells_the_loss_of_every_modality_under_masks_that_stay():
    task = _task(
        apply=_guess_by_modality,
        modalities=("CT", "MR", "PT"),
        augment=lambda key, image, label: (image - 100.0, label),
    )
    batch = _batch(6) | {"modality": np.array([0, 1, 0, 0, 1, 1], np.int32)}
    params = jnp.array([0.25, -0.5, 9.0])
    found = jax.jit(task.validate)(params, batch)
    masked = np.asarray(
        masked_image.block_mask(jax.random.key(masked_image.HELD_OUT), 6, (8, 8), 4, 0.75)
    )
    hidden = np.repeat(np.repeat(masked, 2, 1), 2, 2)
    pixels = batch["image"][..., 0] * 0.5 + 1.0  # not augmented
    each = [
        2 * ((p[h] - params[m]) ** 2).mean()
        for p, h, m in zip(pixels, hidden, batch["modality"], strict=True)
    ]  # weight 2
    np.testing.assert_allclose(
        found["error"], [each[0] + each[2] + each[3], each[1] + each[4] + each[5], 0], rtol=1e-5
    )
    assert np.asarray(found["weight"]).tolist() == [3, 3, 0]
    again = jax.jit(task.validate)(params, batch)
    np.testing.assert_array_equal(found["error"], again["error"])


def _fit(workdir, **settings):
    """Training images come near 3 (CT) and -3 (MR); those of validation are near 1 and -1, which
    the guesses pass on their way.
    """

    def batch(seed, level):
        rng = np.random.default_rng(seed)
        modality = np.array([0, 1] * 4, np.int32)
        levels = np.where(modality, -level, level)[:, None, None, None]
        image = np.rint(100 * (levels + 0.1 * rng.normal(size=(8, 16, 16, 1)))).astype(np.int16)
        gains = {"gain": np.full((8, 1), 0.01, np.float32), "bias": np.zeros((8, 1), np.float32)}
        return _batch(8) | gains | {"image": image, "modality": modality}

    return loop.fit(
        task=_task(apply=_guess_by_modality, modalities=("CT", "MR")),
        init=lambda key: jnp.zeros(2),
        optimizer=optim.make(
            lr=0.025,
            schedule="constant",
            momentum=0.0,
            nesterov=False,
            weight_decay=0.0,
            clip_norm=0.0,
            steps=40,
        ),
        stream=lambda start: (batch(i, 3.0) for i in itertools.count(start)),
        validation_stream=lambda: (batch(10**6 + i, 1.0) for i in range(2)),
        names=("CT", "MR"),
        settings=loop.Settings(
            steps=40,
            validation_batches=2,
            checkpoint_every=20,
            log_every=10,
            print_seconds=0.0,
            picture=False,
            **settings,
        ),
        workdir=workdir,
        mesh=sharding.make_mesh(1, jax.devices()[:1]),
    )


def test_the_best_checkpoint_has_the_lowest_loss_on_held_out_images_and_training_does_not_notice(
    tmp_path,
):
    state = _fit(tmp_path / "checked", validate_every=4)
    rows = [
        row for row in log.read(tmp_path / "checked" / "metrics.jsonl") if "validation_loss" in row
    ]
    assert [row["step"] for row in rows] == list(range(4, 41, 4))
    losses = [row["validation_loss"] for row in rows]
    for row in rows:
        assert row["validation_loss"] == pytest.approx(
            (row["validation_loss/CT"] + row["validation_loss/MR"]) / 2
        )
    lowest = int(np.argmin(losses))
    assert (
        0 < lowest < len(rows) - 1
        and losses[0] > 2 * losses[lowest]
        and losses[-1] > 2 * losses[lowest]
    )
    assert (
        checkpoint.best_step(tmp_path / "checked" / "checkpoints") == rows[lowest]["step"] == 8
    )  # 3 (1 - 0.95^8) = 1.01
    plain = _fit(tmp_path / "plain", validate_every=0)
    np.testing.assert_array_equal(np.asarray(state["params"]), np.asarray(plain["params"]))
    assert not any(
        "validation_loss" in row for row in log.read(tmp_path / "plain" / "metrics.jsonl")
    )


def test_losses_that_are_not_finite_are_told_and_never_the_best():
    progress = log.Progress(("CT", "MR"))
    weight = np.array([2, 1])
    record, improved = progress.judge(1, {"error": np.array([np.nan, 1.0]), "weight": weight})
    assert (
        record == {"validation_loss": None, "validation_loss/CT": None, "validation_loss/MR": 1.0}
        and not improved
    )
    record, improved = progress.judge(2, {"error": np.array([4.0, 3.0]), "weight": weight})
    assert (
        record["validation_loss"] == 2.5
        and improved
        and progress.text() == "validation loss 2.5000"
    )
    again = log.Progress(("CT", "MR"), progress.to_json())
    assert (
        again.text() == progress.text()
        and not again.judge(3, {"error": np.array([4.0, 3.1]), "weight": weight})[1]
    )
    assert again.waited == 1 and again.judge(
        4, {"error": np.array([0.0, 2.4]), "weight": np.array([0, 1])}
    ) == (
        {"validation_loss": 2.4, "validation_loss/MR": 2.4},
        True,
    )
