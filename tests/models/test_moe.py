"""Mixtures of experts: what permuting, closing and equalising experts must and must not change, and
the masked-image network's counts.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError, UsageError
from medjax.losses import masked_pixels
from medjax.models import macs, masked_swin, swin_unet
from medjax.models.parts import moe
from medjax.models.parts.attention import Mlp
from medjax.tasks import masked_image
from tests.support.networks import fresh

WIDTH, HIDDEN = 6, 10
PLAIN = jax.jit(Mlp(HIDDEN).apply)


def _net(routing="gate", experts=3, **more):
    more = {"dtype": jnp.float32, "initial": "swin"} | more
    return moe.MixtureOfExperts(HIDDEN, experts, routing, **more)


def _params(net):
    shapes = jax.eval_shape(fresh(net), jax.random.key(0), jnp.zeros((1, 2, 2, WIDTH)))["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def _tokens(b=3):
    return jnp.asarray(np.random.default_rng(2).normal(size=(b, 4, 3, WIDTH)), jnp.float32)


def _apply(net, params, x, context=None):
    return jax.jit(lambda p, x: net.apply({"params": p}, x, context))(params, x)


def _single(params, e, x):
    """Expert e alone, as the plain MLP of a block."""
    dense = {
        "fc1": {"kernel": params["w1"][e], "bias": params["b1"][e]},
        "fc2": {"kernel": params["w2"][e], "bias": params["b2"][e]},
    }
    return PLAIN({"params": dense}, x)


def _permuted(params, order, gate=True):
    out = {k: v[np.array(order)] if k != "gate" else v for k, v in params.items()}
    return (
        out | {"gate": jax.tree.map(lambda a: a[..., np.array(order)], params["gate"])}
        if gate
        else out
    )


@pytest.mark.parametrize("gate_scope", ["token", "image"])
def test_a_gated_mixture_is_the_weighted_sum_of_its_experts(gate_scope):
    net = _net(gate_scope=gate_scope, offers=True)
    params, x = _params(net), _tokens()
    y, offered = _apply(net, params, x)
    seen = x if gate_scope == "token" else x.mean((1, 2), keepdims=True)
    w = jax.nn.softmax(seen @ params["gate"]["kernel"] + params["gate"]["bias"], -1)
    np.testing.assert_allclose(offered["gates"], w, atol=1e-6)
    assert offered["gates"].shape == ((3, 4, 3, 3) if gate_scope == "token" else (3, 1, 1, 3))
    np.testing.assert_allclose(
        y, sum(w[..., e, None] * _single(params, e, x) for e in range(3)), atol=2e-5
    )


def test_the_products_are_a_vmap_over_stacked_experts():
    """One expert mapped over the leading axis: the same numbers, and the same gradients."""
    params, x = _params(_net()), _tokens()
    weights = [params[name] for name in ("w1", "b1", "w2", "b2")]
    share = jax.nn.softmax(x @ params["gate"]["kernel"], -1)

    def both(function):
        def value(x, weights, share):
            y = function(x, *weights, share)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.grad(value, (0, 1, 2), has_aux=True))(x, weights, share)

    found, wanted = both(moe.mixture), both(moe.mixture_by_vmap)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)
    assert float(jnp.abs(found[1]).max()) > 1


@pytest.mark.slow
@pytest.mark.parametrize("routing", ["gate", "channel_gate", "hard"])
def test_the_word_vmap_computes_the_same(routing):
    x, context = _tokens(), {"modality": jnp.array([2, 0, 2])}
    params = _params(_net(routing))
    wanted = _apply(_net(routing), params, x, context)
    found = _apply(_net(routing, dispatch="vmap"), params, x, context)
    np.testing.assert_allclose(found, wanted, atol=5e-5)


def test_permuting_experts_needs_the_gate_columns_to_follow():
    net = _net()
    params, x = _params(net), _tokens()
    y = _apply(net, params, x)
    np.testing.assert_allclose(_apply(net, _permuted(params, [2, 0, 1]), x), y, atol=2e-5)
    assert np.abs(_apply(net, _permuted(params, [2, 0, 1], gate=False), x) - y).max() > 0.1


def test_a_gate_that_is_sure_equal_experts_and_one_expert_are_the_plain_mlp():
    net, x = _net(), _tokens()
    params = _params(net)
    sure = params | {"gate": params["gate"] | {"bias": np.array([0.0, 1e4, 0.0], np.float32)}}
    np.testing.assert_allclose(_apply(net, sure, x), _single(params, 1, x), atol=2e-5)
    equal = {k: np.repeat(v[:1], 3, 0) if k != "gate" else v for k, v in params.items()}
    np.testing.assert_allclose(_apply(net, equal, x), _single(params, 0, x), atol=2e-5)
    lone = _net(experts=1)
    alone = _params(lone)
    np.testing.assert_allclose(_apply(lone, alone, x), _single(alone, 0, x), atol=2e-6)


def test_the_released_gate_weighs_channels_not_experts():
    net, x = _net("channel_gate"), _tokens()
    params = _params(net)
    y = _apply(net, params, x)
    g = jax.nn.softmax(x @ params["gate"]["kernel"] + params["gate"]["bias"], -1)
    np.testing.assert_allclose(g.sum(-1), 1, atol=1e-6)  # so its mean over the channels is 1 / c
    np.testing.assert_allclose(y, g * sum(_single(params, e, x) for e in range(3)), atol=2e-5)
    np.testing.assert_allclose(
        _apply(net, _permuted(params, [1, 2, 0], gate=False), x), y, atol=2e-5
    )


@pytest.mark.parametrize("dispatch", ["gather", "mask", "auto"])
def test_hard_routing_sends_every_sample_through_its_expert(dispatch):
    net, x, chosen = _net("hard", dispatch=dispatch), _tokens(), jnp.array([2, 0, 2])
    params = _params(net)
    run = jax.jit(lambda p: net.apply({"params": p}, x, {"modality": chosen}))
    expected = jnp.stack([_single(params, int(e), x[i : i + 1])[0] for i, e in enumerate(chosen)])
    np.testing.assert_allclose(run(params), expected, atol=2e-5)
    gradient = jax.jit(jax.grad(lambda p: jnp.square(run(p)).sum()))(params)
    assert all(
        (g[1] == 0).all() and (g[2] != 0).any() for g in jax.tree.leaves(gradient)
    )  # modality 1 is not in the batch
    shared = _net("hard", dispatch=dispatch, experts=2, expert_of=(1, 0, 1))
    two = _params(shared)
    out = _apply(shared, two, x, {"modality": chosen})
    np.testing.assert_allclose(out[1], _single(two, 1, x[1:2])[0], atol=2e-5)


def test_wrong_words_and_missing_modalities_are_refused():
    x = _tokens()
    for net, message in (
        (_net("soft"), "gate"),
        (_net(gate_scope="pixel"), "token"),
        (_net("hard", expert_of=(0, 3)), "not enough"),
    ):
        with pytest.raises(ModelError, match=message):
            jax.eval_shape(net.init, jax.random.key(0), x)
    net = _net("hard")
    with pytest.raises(ModelError, match="modality"):
        _apply(net, _params(net), x)
    assert moe.socket("dense") is Mlp


# -----------------------------------------------------------------------------------------------
# masked-image pre-training

TINY = dict(width=16, depths=(2, 2), heads=(1, 2), window=4, patch_size=2)  # side 32: grids 16, 8


@pytest.mark.parametrize(("place", "parameters"), [("none", 26_635_860), ("encoder", 51_732_180)])
def test_the_masked_image_network_has_swin_maes_size(place, parameters):
    net = masked_swin.make(modalities=3, experts_in=place, dispatch="gather")
    image = jax.ShapeDtypeStruct((1, 224, 224, 1), jnp.float32)
    work, made = macs.macs_and_shapes(fresh(net), jax.random.key(0), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(made)) == parameters
    assert work == 5_445_049_344
    if place == "none":
        encoder = sum(leaf.size for leaf in jax.tree.leaves(made["params"]["encoder"]))
        assert encoder == 20_411_850 and parameters - encoder == 6_224_010


def test_masks_hide_three_quarters_in_whole_blocks_differently_in_every_sample():
    """49 of 196 blocks visible, mean exactly 0.75, constant inside each 4 x 4 block (Swin-MAE)."""
    mask = np.asarray(masked_image.block_mask(jax.random.key(0), 4, (56, 56), 4, 0.75))
    blocks = mask.reshape(4, 14, 4, 14, 4).transpose(0, 1, 3, 2, 4).reshape(4, 196, 16)
    assert (
        (blocks.all(-1) | ~blocks.any(-1)).all()
        and ((~blocks[..., 0]).sum(-1) == 49).all()
        and mask.mean() == 0.75
    )
    assert all((mask[i] != mask[j]).any() for i in range(4) for j in range(i))
    many = masked_image.block_mask(jax.random.key(1), 2000, (8, 8), 4, 0.75)[:, ::4, ::4].mean(0)
    np.testing.assert_allclose(many, 0.75, atol=0.04)  # every block alike
    with pytest.raises(UsageError, match="fill"):
        masked_image.block_mask(jax.random.key(0), 1, (14, 14), 4, 0.75)
    with pytest.raises(UsageError, match="ratio"):
        masked_image.block_mask(jax.random.key(0), 1, (4, 4), 4, 0.75)


@pytest.mark.parametrize("normalise", [False, True])
def test_the_pixel_loss_counts_hidden_patches_only(normalise):
    rng = np.random.default_rng(0)
    patches, pixels = (
        rng.normal(size=(2, 4, 4, 48)).astype(np.float32),
        rng.normal(size=(2, 4, 4, 48)).astype(np.float32),
    )
    # as many in every sample, as `block_mask` hides
    masked = (rng.permuted(np.tile(np.arange(16), (2, 1)), axis=1) < 11).reshape(2, 4, 4)
    truth = patches
    if normalise:
        truth = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(
            patches.var(-1, ddof=1, keepdims=True) + 1e-6
        )
    expected = ((pixels - truth) ** 2).mean(-1)[masked].mean()
    outputs = {
        k: jnp.asarray(v) for k, v in (("patches", patches), ("pixels", pixels), ("masked", masked))
    }
    np.testing.assert_allclose(masked_pixels.make(normalise)(outputs, {}), expected, rtol=1e-5)


@pytest.mark.slow
def test_hidden_tokens_say_nothing_and_both_phases_have_the_same_features():
    net = masked_swin.make(modalities=2, **TINY)
    image = jax.random.normal(jax.random.key(0), (2, 32, 32, 1))
    masked = masked_image.block_mask(jax.random.key(1), 2, (16, 16), 4, 0.75)
    context = {"modality": jnp.array([1, 0]), "masked": masked}
    params = jax.jit(fresh(net))(jax.random.key(2), image)["params"]
    run = jax.jit(lambda x: net.apply({"params": params}, x, context))
    out = run(image)
    assert out["pixels"].shape == (2, 16, 16, 12)  # one channel repeated to three, 2 x 2 pixels
    np.testing.assert_array_equal(
        out["patches"][0, 0, 0], np.repeat(np.asarray(image[0, :2, :2, 0]).ravel(), 3)
    )
    other = jnp.where(jnp.repeat(jnp.repeat(masked, 2, 1), 2, 2)[..., None], 7.0, image)
    np.testing.assert_array_equal(run(other)["pixels"], out["pixels"])
    fine = swin_unet.make(
        1, corpus_channels=((0,),), modalities=2, experts_in="encoder", routing="hard", **TINY
    )
    tree = jax.jit(fresh(fine))(jax.random.key(3), image)["params"]
    assert jax.tree.map(jnp.shape, tree["encoder"]) == jax.tree.map(jnp.shape, params["encoder"])
    visible = context | {"masked": jnp.zeros_like(masked), "corpus": jnp.zeros(2, jnp.int32)}
    first = jax.jit(lambda p: net.encoder.apply({"params": p}, image, visible)[1])(
        params["encoder"]
    )
    second = jax.jit(lambda p: fine.apply({"params": p}, image, visible)["features"]["stage1"])(
        tree | {"encoder": params["encoder"]}
    )
    np.testing.assert_allclose(first, second, atol=1e-5)
    with pytest.raises(ModelError, match="masked images need the masked"):
        net.apply({"params": params}, image, {"modality": jnp.array([1, 0])})
