"""Adapters as leaves: surgery, routing, merging, the learned gate."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError, TrainError, UsageError
from medjax.models.context import initialise
from medjax.models.parts import adapters as listener
from medjax.models.parts.conv import Conv, Down, Up
from medjax.models.parts.patch import PatchEmbed
from medjax.weights import adapters
from medjax.weights.adapters import Adapters
from tests.support import golden
from tests.support.marks import slow


class Toy(nn.Module):
    """One of every owner of a kernel."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, image, context=None, train=False):
        given = {"dtype": self.dtype}
        x = PatchEmbed(6, (2, 2), name="patch_embed", **given)(image)
        x = Conv(5, (3, 3), name="conv", **given)(x)
        x = Conv(5, (3, 1), (2, 1), name="strided", **given)(nn.gelu(x))
        x = Down(7, (2, 2), name="down", **given)(x)
        x = Up(4, (2, 2), name="up", **given)(nn.gelu(x))
        return listener.Dense(3, name="head", **given)(x)


EVERY = ((r"kernel$", 2), (".*", 0))
SIZE, CHANNELS = (8, 8), 2


def _made(settings=None, dtype="float32"):
    image = jax.random.normal(jax.random.key(1), (4, *SIZE, CHANNELS))
    module = Toy(dtype)
    params = module.init(jax.random.key(0), image)["params"]
    settings = settings or Adapters(EVERY)
    return module, params, adapters.graft(params, settings, jax.random.key(2), channels=2), image


def _drawn(tree, seed=3):
    """The tree with random adapters (a fresh b is zero)."""

    def draw(keys, leaf):
        path = jax.tree_util.keystr(keys)
        if "lora_b" in path or "router" in path:
            return jax.random.normal(
                jax.random.fold_in(jax.random.key(seed), len(path)), leaf.shape
            )
        return leaf

    return jax.tree_util.tree_map_with_path(draw, tree)


def _applied(module, tree, settings, image, context=None):
    return module.apply(adapters.variables(tree, settings, image, context or {}), image)


@pytest.mark.parametrize("dtype", ["float32", slow("bfloat16")])
def test_fresh_adapters_change_nothing(dtype):
    settings = Adapters(EVERY)
    module, params, tree, image = _made(settings, dtype)
    base = module.apply({"params": params}, image)
    np.testing.assert_array_equal(_applied(module, tree, settings, image), base)


def test_merged_equals_beside_and_subtracted_equals_the_base():
    for scaling in adapters.SCALINGS:
        settings = Adapters(EVERY, scaling=scaling, alpha=3.0)
        module, params, tree, image = _made(settings)
        tree = _drawn(tree)
        merged = adapters.merge(tree, settings)
        beside = _applied(module, tree, settings, image)
        plain = module.apply({"params": merged}, image)
        assert jnp.abs(plain - module.apply({"params": params}, image)).max() > 0.1
        np.testing.assert_allclose(beside, plain, atol=2e-5 * float(jnp.abs(plain).max()))
        back = adapters.merge(_joined(merged, tree), settings, sign=-1)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), back, params)


def _joined(base, tree):
    from flax import traverse_util

    flat = traverse_util.flatten_dict(base, sep="/")
    own = traverse_util.flatten_dict(tree, sep="/")
    return traverse_util.unflatten_dict(
        flat | {k: v for k, v in own.items() if "lora" in k}, sep="/"
    )


@pytest.mark.slow
def test_every_kernel_listens_and_its_gradient_follows_the_merged_form():
    settings = Adapters(EVERY)
    module, _, tree, image = _made(settings)
    tree = _drawn(tree)
    fixed = jax.random.normal(jax.random.key(7), _applied(module, tree, settings, image).shape)

    def beside(tree):
        return jnp.vdot(_applied(module, tree, settings, image), fixed)

    def merged(tree):
        return jnp.vdot(module.apply({"params": adapters.merge(tree, settings)}, image), fixed)

    mine, theirs = jax.grad(beside)(tree), jax.grad(merged)(tree)
    sites = [path for path in adapters._flat(tree) if "lora" in path]
    assert len(sites) == 2 * 6
    for path in sites:
        a, b = adapters._flat(mine)[path], adapters._flat(theirs)[path]
        assert jnp.abs(a).max() > 0, path
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max()), err_msg=path)


def test_scales():
    assert Adapters(alpha=16, scaling="rslora").scale(4) == 8
    assert Adapters(alpha=16, scaling="classic").scale(4) == 4
    # the four scales of SegVol's table: alpha = r
    for rank, scale in ((4, 2.0), (8, 2.828), (16, 4.0), (32, 5.657)):
        assert Adapters(alpha=rank).scale(rank) == pytest.approx(scale, abs=1e-3)


def test_a_routed_batch_equals_batches_of_one_expert():
    settings = Adapters(EVERY, experts=3, routing="modality", expert_of=(0, 2, 1, 1))
    module, params, tree, image = _made(settings)
    tree = _drawn(tree)
    modality = jnp.array([0, 1, 2, 0])
    mixed = _applied(module, tree, settings, image, {"modality": modality})
    base = module.apply({"params": params}, image)
    np.testing.assert_array_equal(mixed[jnp.array([0, 3])], base[jnp.array([0, 3])])
    for row, expert in ((1, 2), (2, 1)):
        own = Adapters(EVERY, experts=3, expert=expert)
        alone = _applied(module, tree, own, image)
        assert jnp.abs(alone - base)[row].max() > 0.1
        np.testing.assert_array_equal(mixed[row], alone[row])
        share = [float(e == expert) for e in (1, 2)]
        merged = adapters.merge(tree, settings, share)
        plain = module.apply({"params": merged}, image)[row]
        np.testing.assert_allclose(mixed[row], plain, atol=2e-5 * float(jnp.abs(plain).max()))


@pytest.mark.slow
def test_an_expert_that_nobody_uses_has_no_gradient():
    settings = Adapters(EVERY, experts=3, routing="corpus")
    module, _, tree, image = _made(settings)
    tree = _drawn(tree)

    def loss(tree):
        context = {"corpus": jnp.array([0, 1, 1, 0])}
        return jnp.square(_applied(module, tree, settings, image, context)).sum()

    for path, leaf in adapters._flat(jax.grad(loss)(tree)).items():
        if "lora" in path:
            assert not np.any(leaf[1]) and np.any(leaf[0]), path


def test_windows_of_one_sample_are_neighbours():
    settings = Adapters(EVERY, experts=2, routing="modality")
    module, _, tree, image = _made(settings)
    tree = _drawn(tree)
    own = {"modality": jnp.array([0, 1])}
    base, pairs, _ = adapters.split(tree)
    share = settings.route({}, None, own, 2)
    y = module.apply(
        {"params": base, listener.COLLECTION: adapters.routed(pairs, share, settings)}, image
    )
    each = {"modality": jnp.array([0, 0, 1, 1])}
    np.testing.assert_array_equal(y, _applied(module, tree, settings, image, each))


@pytest.mark.slow
def test_the_gate_sees_the_mean_token_of_the_patch_embedding():
    settings = Adapters(EVERY, experts=3, routing="image", top_k=1)
    module, _, tree, image = _made(settings)
    tree = _drawn(tree)
    base, _, router = adapters.split(tree)
    tokens = PatchEmbed(6, (2, 2)).apply({"params": base["patch_embed"]}, image)
    np.testing.assert_allclose(adapters.image_features(base, image), tokens.mean((1, 2)), atol=1e-5)
    share = settings.route(router, adapters.image_features(base, image), {}, 4)
    assert share.shape == (4, 2)
    assert set(np.asarray(share.sum(-1)).round(5)) <= {0.0, 1.0}
    grad = jax.grad(lambda t: _applied(module, t, settings, image).sum())(tree)
    assert np.any(grad[adapters.ROUTER]["kernel"])
    both = Adapters(EVERY, experts=3, routing="image", top_k=3)
    soft = both.route(router, adapters.image_features(base, image), {}, 4)
    chosen = settings.route(router, adapters.image_features(base, image), {}, 4)
    full = jnp.concatenate([1 - soft.sum(-1, keepdims=True), soft], -1)
    hot = jnp.concatenate([1 - chosen.sum(-1, keepdims=True), chosen], -1)
    np.testing.assert_array_equal(hot.argmax(-1), full.argmax(-1))


def test_the_gate_of_a_network_without_patches_sees_mean_and_deviation():
    image = jnp.array([[[1.0], [3.0]], [[2.0], [2.0]]])
    np.testing.assert_allclose(
        adapters.image_features({"conv": {"kernel": jnp.ones((1, 1, 1))}}, image),
        [[2.0, 1.0], [2.0, 0.0]],
    )


def test_whole_leaves_are_trained_and_stay_in_the_base_tree():
    settings = Adapters(((r"^head/", "whole"), (r"kernel$", 2), (".*", 0)))
    _, params, tree, _ = _made(settings)
    assert "lora_a" not in tree["head"] and "lora_a" in tree["conv"]
    from medjax.train import rules

    on = adapters._flat(rules.assign(tree, adapters.trainable(settings)))
    assert {k for k, v in on.items() if v} == {
        k for k in adapters._flat(tree) if "lora" in k or k.startswith("head/")
    }
    base, own, router = adapters.split(tree)
    assert jax.tree.structure(base) == jax.tree.structure(params) and not router and own


@pytest.mark.parametrize(
    "word, name, sites",
    [
        ("unet", "unet", r"^(en|de)coder_\d/conv_\d/conv/"),
        ("unet", "resenc", r"^(en|de)coder_\d/(block|conv)_\d/(conv\d?|skip_conv)/|^stem/conv/"),
        ("unet", "tsfm", r"^(enc|dec)\d/block\d/(conv\d|short)/|^stem/conv/"),
        ("vit", "tsfm", r"^vit/layer\d/(q|v|fc\d)/"),
        ("swin", "masked_swin", r"/(attn/(qkv|proj)|mlp/fc\d)/"),
        ("every", "unet", ""),
    ],
)
def test_words_name_the_kernels_of_a_family(word, name, sites):
    case = golden.CASES[name]
    module = golden.build("models", case.model, **case.arguments)
    image, _ = golden.inputs(case)
    params = jax.eval_shape(lambda k: initialise(module, k, image), jax.random.key(0))
    settings = Adapters(adapters.rules_of(word, 3))
    tree = jax.eval_shape(lambda p: adapters.graft(p, settings, jax.random.key(0)), params)
    found = {path[: -len("lora_a")] for path in adapters._flat(tree) if path.endswith("lora_a")}
    kernels = [path for path in adapters._flat(params) if path.endswith("/kernel")]
    assert found == {p[: -len("kernel")] for p in kernels if re.search(sites, p)} != set()


def test_refusals():
    _, params, tree, _ = _made()
    with pytest.raises(ModelError, match="has adapters already"):
        adapters.graft(tree, Adapters(EVERY), jax.random.key(0))
    with pytest.raises(ModelError, match="conv/bias cannot take an adapter"):
        adapters.graft(params, Adapters(((".*", 2),)), jax.random.key(0))
    with pytest.raises(TrainError, match="no rule matches"):
        adapters.graft(params, Adapters(((r"^conv/", 0),)), jax.random.key(0))
    with pytest.raises(TrainError, match="no parameter is left"):
        adapters.graft(params, Adapters(((r"^cnov/", 2), (".*", 0))), jax.random.key(0))
    with pytest.raises(UsageError, match="several experts"):
        adapters.merge(_made(Adapters(EVERY, experts=3))[2], Adapters(EVERY, experts=3))
    for wrong in (
        {"scaling": "lora"},
        {"routing": "site"},
        {"rules": ((".*", -1),)},
        {"rules": ((".*", True),)},
        {"experts": 0},
        {"experts": 2, "expert_of": (0, 2)},
        {"top_k": 2},
    ):
        with pytest.raises(UsageError, match=r"config\.adapters"):
            Adapters(**wrong)


def test_the_digest_depends_on_names_shapes_types_and_numbers():
    base = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.zeros(2)}
    same = {"b": np.zeros(2), "a": {"kernel": jnp.arange(6, dtype=jnp.float32).reshape(2, 3)}}
    first = adapters.digest(base)
    assert adapters.digest(same) == first
    for other in (
        {**base, "b": np.zeros(2, np.float32)},
        {**base, "b": np.array([0.0, 1e-9])},
        {"a": {"kernel": base["a"]["kernel"].reshape(3, 2)}, "b": base["b"]},
        {"a": {"bias": base["a"]["kernel"]}, "b": base["b"]},
    ):
        assert adapters.digest(other) != first


def test_the_balance_of_the_learned_gate_is_its_soft_share():
    settings = Adapters(EVERY, experts=3, routing="image", top_k=1)
    _, _, tree, image = _made(settings)
    tree = _drawn(tree)
    base, _, router = adapters.split(tree)
    given = adapters.image_features(base, image) @ router["kernel"] + router["bias"]
    found = adapters.balance(tree, image)
    np.testing.assert_allclose(found["adapters"], jax.nn.softmax(given), rtol=1e-6)
    assert adapters.balance(_made()[2], image) == {}


def test_the_gradient_of_adapters_costs_less_than_that_of_all_kernels():
    """Without the kernels' own gradients, about a third of a step's products is left out."""

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            for k in range(6):
                x = nn.gelu(listener.Dense(96, name=f"layer{k}")(x))
            return x

    x = jnp.ones((1, 64, 96))
    settings = Adapters(((r"kernel$", 4), (".*", 0)))
    base = jax.eval_shape(lambda k: Stack().init(k, x)["params"], jax.random.key(0))
    tree = jax.eval_shape(lambda p: adapters.graft(p, settings, jax.random.key(1)), base)
    own = adapters._flat(tree)
    pairs = {k: v for k, v in own.items() if "lora" in k}
    frozen = {k: v for k, v in own.items() if "lora" not in k}

    def beside(pairs, frozen):
        tree = adapters._nested(frozen | pairs)
        return Stack().apply(adapters.variables(tree, settings, x, {}), x).sum()

    def whole(params):
        return Stack().apply({"params": params}, x).sum()

    def flops(function, *arguments):
        return jax.jit(jax.grad(function)).lower(*arguments).compile().cost_analysis()["flops"]

    share = flops(beside, pairs, frozen) / flops(whole, base)
    assert 0.6 < share < 0.85  # 2/3 of the products, and those of the pairs (rank 4 beside 96)
