"""How linear maps start: the word `initial` of every network with Swin blocks or a transformer, and
the words of the recipes.

Standard deviations are closed forms of the width: Swin 0.02, Xavier sqrt(2 / (inputs + outputs)),
PyTorch sqrt(1 / (3 inputs)).
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.models import masked_swin, swin_unet, swin_unetr, tsfm
from medjax.models.parts import sockets
from medjax.models.parts.attention import INITIAL, check_initial
from medjax.registry import plain
from tests.support.fast import FAST
from tests.support.marks import slow
from tests.support.networks import fresh

EXPECTED = {
    "swin": lambda inputs, outputs: 0.02,
    "xavier": lambda inputs, outputs: (2 / (inputs + outputs)) ** 0.5,
    "torch": lambda inputs, outputs: (1 / (3 * inputs)) ** 0.5,
}
SWIN = {"width": 8, "heads": (1, 2), "window": 2, "patch_size": 2, "modalities": 2}
SWIN |= {"drop_path": 0.0, "depths": (1, 1)}
VIT = {"variant": "t", "channels": (4, 8), "strides": ((2, 2),), "vit_width": 12}
NETWORKS = {  # constructor, image, maps that always start as in PyTorch, the part that is looked at
    "swin_unet": (
        functools.partial(swin_unet.make, 2, experts_in="both", head="sigmoid", **SWIN),
        (1, 8, 8, 1),
        ("patch_embed", "head"),
        lambda net: net,
    ),
    "masked_swin": (
        functools.partial(masked_swin.make, **SWIN),
        (1, 8, 8, 1),
        ("patch_embed",),
        lambda net: net,
    ),
    "swin_unetr": (
        functools.partial(
            swin_unetr.make,
            2,
            feature_size=8,
            depths=(1, 1, 1, 1),
            heads=(1, 2, 4, 8),
            window=2,
            dims=2,
            mlp={"kind": "experts", "experts": 2},
        ),
        (1, 32, 32, 1),
        ("patch_embed",),
        lambda net: net.swin,
    ),
    "tsfm": (
        functools.partial(tsfm.make, 2, **VIT),
        (1, 4, 4, 8),
        (),
        lambda net: net.bottleneck(dtype=jnp.float32),
    ),
}
MAPS = ("qkv", "proj", "fc1", "fc2", "q", "k", "v", "out", "reduction", "expand", "pixels", "gate")


@functools.cache
def _started(name, **word):
    make, shape, _, part = NETWORKS[name]
    net = part(make(**word))
    start = fresh(net) if hasattr(net, "reads") else net.init
    made = jax.jit(start, compiler_options=FAST)(jax.random.key(3), jnp.zeros(shape))
    tree = made["params"]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _linear(leaves):
    """Kernels (inputs, outputs) of the linear maps that follow the word, experts one by one."""
    found = {}
    for path, leaf in leaves.items():
        *_, owner, kind = ["", *path.split("/")]
        if kind == "kernel" and (owner in MAPS or owner.startswith("skip")) and leaf.ndim == 2:
            found[path] = leaf
        elif kind in ("w1", "w2"):
            found |= {f"{path}/{e}": expert for e, expert in enumerate(leaf)}
    return found


@pytest.mark.parametrize("word", INITIAL)
@pytest.mark.parametrize("name", [n if n == "tsfm" else slow(n) for n in NETWORKS])
def test_every_linear_map_has_the_standard_deviation_of_the_word(name, word):
    always = NETWORKS[name][2]
    kernels = {
        path: kernel
        for path, kernel in _linear(_started(name, initial=word)).items()
        if path.split("/")[0] not in always
    }
    assert len(kernels) >= 12
    for path, kernel in kernels.items():
        spread = EXPECTED[word](*kernel.shape)
        # the deviation of n values is known to 1 / sqrt(2 n) for normal ones, less for uniform ones
        assert kernel.std() == pytest.approx(spread, rel=5 / np.sqrt(2 * kernel.size)), path
        if word != "swin":
            assert np.abs(kernel).max() <= spread * 3**0.5 * (1 + 1e-6), path  # uniform


@pytest.mark.parametrize("name", [n if n == "tsfm" else slow(n) for n in NETWORKS])
def test_only_linear_maps_follow_the_word(name):
    """Embedding, head, convolutions, norms and position tables are the same for every word."""
    one, other = _started(name, initial="xavier"), _started(name, initial="swin")
    assert list(one) == list(other)
    moved = {path for path in one if not np.array_equal(one[path], other[path])}
    follow = {path.rsplit("/", 1)[0] if path[-1].isdigit() else path for path in _linear(one)}
    outside = {p for p in follow if p.split("/")[0] in NETWORKS[name][2]}
    biases = {p for p in moved if p.endswith("/bias")}
    assert moved - biases == follow - outside
    # ViT's biases start at 1e-6 under its own word
    assert not biases or (name == "tsfm" and max(np.abs(one[p]).max() for p in biases) < 1e-5)


@pytest.mark.parametrize(
    ("name", "word"),
    [("swin_unet", "swin"), ("masked_swin", "xavier"), ("swin_unetr", "torch"), ("tsfm", "xavier")],
)
@pytest.mark.slow
def test_the_default_is_what_the_published_code_does(name, word):
    default, named = _started(name), _started(name, initial=word)
    assert all(np.array_equal(default[path], named[path]) for path in named)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_unknown_word_is_refused_with_the_nearest_one(name):
    with pytest.raises(ModelError, match=r"unknown initial values 'xavir'.*did you mean xavier"):
        NETWORKS[name][0](initial="xavir")


@pytest.mark.slow
def test_a_transformer_in_a_socket_takes_the_word_too():
    words = {"kind": "vit", "width": 24, "layers": 1, "heads": 2, "initial": "swin"}
    module = sockets.make("bottleneck", words, {})(dtype=jnp.float32)
    tree = module.init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))["params"]
    assert np.std(tree["layer0"]["fc1"]["kernel"]) == pytest.approx(0.02, rel=0.1)
    with pytest.raises(ModelError, match="did you mean torch"):
        sockets.make("bottleneck", words | {"initial": "torc"}, {})
    assert check_initial("torch") == "torch"


def _model(config, variant):
    return plain(importlib.import_module(f"configs.{config}").get_config(variant))["model"]


@pytest.mark.parametrize(
    ("pretrained", "trained"), [("demo_pretrain", "demo_from"), ("small_pretrain", "small")]
)
def test_both_phases_of_a_narrow_recipe_start_alike(pretrained, trained):
    first, second = _model("m4oe", pretrained), _model("m4oe", trained)
    assert first["initial"] == second["initial"] == _model("m4oe", "demo")["initial"] == "xavier"
    assert first["width"] == second["width"] < 96


def test_the_recipes_of_the_papers_keep_the_start_of_their_code():
    assert all("initial" not in _model("m4oe", v) for v in ("finetune", "release", "pretrain"))
    assert "initial" not in _model("multitalent", "swin")
    assert _model("multitalent", "swin_small")["initial"] == "xavier"
