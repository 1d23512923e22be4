"""Masked volumes: the encoder is SegVol's, hidden tokens are not seen, and the task trains it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError, UsageError
from medjax.losses import masked_pixels
from medjax.models import masked_vit, segvol
from medjax.models.context import initialise
from medjax.tasks import masked_image
from tests.support.fast import FAST

SMALL = {"patch_size": (2, 4, 4), "width": 24, "layers": 2, "heads": 2, "hidden": 48}
SIDES, GRID = (8, 16, 16), (4, 4, 4)


def _shapes(net):
    image = jax.ShapeDtypeStruct((1, *SIDES, 1), jnp.float32)
    return jax.eval_shape(functools.partial(initialise, net), jax.random.key(0), image)


def test_the_encoder_is_segvols():
    ours = _shapes(masked_vit.make(**SMALL))
    theirs = _shapes(segvol.make(2, frame=SIDES, decoder_heads=4, decoder_hidden=8, **SMALL))
    assert set(ours) == {"encoder", "mask_token", "pixels"}
    assert jax.tree.map(lambda leaf: leaf.shape, ours["encoder"]) == jax.tree.map(
        lambda leaf: leaf.shape, theirs["encoder"]
    )
    full = jax.eval_shape(
        functools.partial(initialise, masked_vit.make()),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 32, 256, 256, 1), jnp.float32),
    )
    count = {k: sum(int(np.prod(v.shape)) for v in jax.tree.leaves(full[k])) for k in full}
    assert count == {"encoder": 87_388_416, "mask_token": 768, "pixels": 768 * 1024 + 1024}


@pytest.mark.slow
def test_hidden_tokens_are_not_seen():
    net = masked_vit.make(**SMALL)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(2, *SIDES, 1)), jnp.float32)
    params = initialise(net, jax.random.key(0), image)
    masked = jnp.zeros((2, *GRID), bool).at[:, 1, 2, 3].set(True)

    @functools.partial(jax.jit, compiler_options=FAST)
    def run(image, masked):
        return net.apply({"params": params}, image, {"masked": masked})

    found = run(image, masked)
    assert found["pixels"].shape == found["patches"].shape == (2, *GRID, 32)
    np.testing.assert_array_equal(
        found["patches"][0, 1, 2, 3], np.asarray(image[0, 2:4, 8:12, 12:16, 0]).ravel()
    )
    other = run(image.at[:, 2:4, 8:12, 12:16].add(3.0), masked)
    np.testing.assert_array_equal(found["pixels"], other["pixels"])
    seen = run(image.at[:, 2:4, 8:12, 12:16].add(3.0), masked & False)["pixels"]
    assert float(jnp.abs(seen - run(image, masked & False)["pixels"]).max()) > 1e-3


def test_the_task_masks_blocks_of_oblong_tokens():
    given = {"patch": SIDES, "modalities": ("CT",), "ratio": 0.6, "block": 2}
    facts = {
        "table": np.ones((1, 2, 1), bool),
        "known": np.ones((1, 1), bool),
        "ignore_ids": np.array([-2]),
    }
    losses = [("masked_pixels", 1.0, masked_pixels.make(power=1))]
    task = masked_image.make(dict, losses, patch_size=(2, 4, 4), **given, **facts)
    assert task.grid == GRID
    with pytest.raises(UsageError, match="tokens do not fill the patch"):
        masked_image.make(dict, losses, patch_size=(3, 4, 4), **given, **facts)


def test_what_fits_nothing_is_refused():
    with pytest.raises(ModelError, match="heads do not divide the width"):
        masked_vit.make(**SMALL | {"heads": 5})
    net = masked_vit.make(**SMALL)
    image = jax.ShapeDtypeStruct((1, 9, 16, 16, 1), jnp.float32)
    with pytest.raises(ModelError, match="no whole number of patches"):
        jax.eval_shape(net.init, jax.random.key(0), image, {"masked": jnp.zeros((1, *GRID), bool)})
    image = jax.ShapeDtypeStruct((1, *SIDES, 1), jnp.float32)
    with pytest.raises(ModelError, match="does not fit the token grid"):
        jax.eval_shape(
            net.init, jax.random.key(0), image, {"masked": jnp.zeros((1, 4, 4, 2), bool)}
        )
