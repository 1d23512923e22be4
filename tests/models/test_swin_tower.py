"""The Swin encoder: grids and widths of its stages, what is refused, and masked tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.models.parts import swin_tower
from medjax.models.parts.attention import Mlp

SIZES = {
    "width": 4,
    "depths": (1, 1),
    "heads": (1, 2),
    "window": 2,
    "patch_size": 2,
    "dims": 2,
    "drop_path": 0.0,
    "inside": Mlp,
    "outside": Mlp,
    "dtype": "float32",
    "remat": "none",
    "initial": "swin",
    "epsilon": 1e-5,
}


def build(**fields):
    return swin_tower.tower_and_decoder("a network", **(SIZES | fields))


def test_widths_and_grids_of_every_stage():
    tower, decoder = build(depths=(1, 1, 1), heads=(1, 2, 4))
    image = jax.ShapeDtypeStruct((2, 16, 8, 1), jnp.float32)
    (entering, leaving, offered), variables = jax.eval_shape(
        lambda key, x: tower.init_with_output(key, x), jax.random.key(0), image
    )
    assert [x.shape for x in entering] == [(2, 8, 4, 4), (2, 4, 2, 8), (2, 2, 1, 16)]
    assert leaving.shape == (2, 2, 1, 16) and list(offered) == ["stage0", "stage1", "stage2"]
    assert set(variables["params"]) == {
        "patch_embed",
        "patch_norm",
        *(f"stage{s}" for s in range(3)),
        "merge0",
        "merge1",
    }
    # one channel is repeated to ImageNet's three
    assert variables["params"]["patch_embed"]["kernel"].shape == (2, 2, 3, 4)
    assert [stage.args[0] for stage in decoder] == [2, 1]  # heads, deepest first, without the last


def test_drop_path_grows_over_all_blocks():
    made = swin_tower.stages((1, 2), (2, 3), (2, 2), 0.4)
    rates = [rate for stage in made for rate in stage.args[2]]
    assert np.allclose(rates, [0, 0.1, 0.2, 0.3, 0.4])


def test_masked_tokens_are_replaced_before_the_stages():
    tower, _ = build()
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 1)), jnp.float32)
    shapes = jax.eval_shape(tower.init, jax.random.key(0), image)
    params = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), shapes)
    masked = jnp.zeros((1, 4, 4), bool).at[0, 1, 2].set(True)
    token = jnp.arange(4.0)

    @jax.jit
    def entering(*masked):
        return tower.apply(params, image, masked=masked or None)[0][0]

    plain, found, kept = (np.asarray(x) for x in (entering(), entering(masked, token), ~masked))
    assert np.array_equal(found[0, 1, 2], token)
    assert np.array_equal(found[kept], plain[kept]) and plain.std() > 0.01


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"dims": 1}, "dims"),
        ({"depths": (1,), "heads": (1,)}, "depths"),
        ({"depths": (1, 0)}, "depths"),
        ({"heads": (1,)}, "heads"),
        ({"heads": (3, 2)}, "heads"),
        ({"dtype": "float64"}, "dtype"),
        ({"remat": "convs"}, "remat"),
    ],
)
def test_numbers_that_describe_no_network(fields, name):
    with pytest.raises(ModelError, match=f"a network cannot be built with this {name}"):
        build(**fields)


@pytest.mark.parametrize("side", [4, 8, 16, 32])
def test_sides_that_windows_fill(side):
    """Patch 2, two stages: the grids are side / 2 and side / 4, windows of 4."""
    assert swin_tower.check_grids((side,), (2,), 2, (4,)) is None


@pytest.mark.parametrize(("side", "near"), [(24, 16), (12, 8), (10, 8), (36, 32)])
def test_other_sides_are_refused_with_one_that_fits(side, near):
    with pytest.raises(ModelError, match=rf"found side {side}, grids .* sides like {near},"):
        swin_tower.check_grids((side,), (2,), 2, (4,))


def test_an_image_with_other_axes_or_channels():
    tower, _ = build()
    swin_tower.check_image((1, 8, 8, 1), 1, tower, (2, 2))
    for shape in ((1, 8, 8, 8, 1), (1, 8, 8, 2)):
        with pytest.raises(ModelError, match="does not fit the network"):
            swin_tower.check_image(shape, 1, tower, (2, 2))
