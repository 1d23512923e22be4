"""Sockets by words: every network with every kind it has a place for, and the refusal of others."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.models import context, swin_unet, tsfm, unet
from medjax.models.parts import conditioning, sockets
from medjax.registry import build, known
from tests.support.marks import slow

SIDES = {"features": (3, 4, 6), "strides": ((1, 1), (2, 2), (2, 2)), "kernels": ((3, 3),) * 3}
SWIN = {"width": 6, "depths": (1, 1), "heads": (1, 2), "window": 2, "patch_size": 2}
NETWORKS = {  # name -> tiny arguments, image
    "unet": (SIDES | {"deep_supervision": False}, (2, 8, 8, 1)),
    "resenc": (SIDES | {"blocks": (1, 1, 1), "deep_supervision": False}, (2, 8, 8, 1)),
    "tsfm": (
        {
            "variant": "t",
            "channels": (3, 4, 6),
            "strides": ((2, 2), (2, 2)),
            "vit_width": 6,
            "vit_layers": 2,
            "vit_heads": 3,
            "deep_supervision": False,
        },
        (2, 8, 8, 1),
    ),
    "swin_unet": (SWIN, (2, 8, 8, 1)),
    "masked_swin": (SWIN, (2, 8, 8, 1)),
    "swin_unetr": (
        {"feature_size": 6, "depths": (1,) * 4, "heads": (1, 1, 1, 1), "window": 2, "dims": 2},
        (2, 64, 32, 1),
    ),
}
FACTS = {"modalities": 2, "corpora": 3, "tasks": 2, "corpus_channels": ((0, 1), (2,), (1, 2))}
VIT = {"kind": "vit", "width": 6, "layers": 2, "heads": 3, "mlp_ratio": 2}
WORDS = {  # what is asked for -> words, its parameters, what it offers, what it reads
    "gated experts": ({"mlp": {"kind": "experts"}}, "/mlp/(w1|gate/kernel)$", "gates", set()),
    "hard experts": (
        {"mlp": {"kind": "experts", "routing": "hard"}},
        "/mlp/w[12]$",
        None,
        {"modality"},
    ),
    "low-rank experts": (
        # all are kept: an expert that no token keeps has no gradient
        {"mlp": {"kind": "dynamic_low_rank", "rank": 2, "k1": 1, "top_k": 3}},
        "/mlp/(specific/B|generic/b|router_task)$",
        "task_gates",
        {"task"},
    ),
    "vit": ({"bottleneck": VIT}, "^(bottleneck|vit)/layer1/fc2/kernel$", None, set()),
    "vit with experts": (
        {"bottleneck": VIT, "mlp": {"kind": "experts", "gate_scope": "image"}},
        "/mlp/(w2|gate/kernel)$",
        "gates",
        set(),
    ),
    "corpus heads": (
        {"head": {"kind": "corpus_softmax", "share": "channels"}},
        "^(head_?0?|out)/kernel$",
        None,
        {"corpus"},
    ),
    "embedding": ({"context": {"kind": "embedding"}}, "^context/table$", None, {"modality"}),
    "embedded task": (
        {"context": {"kind": "embedding", "of": "task"}},
        "^context/table$",
        None,
        {"task"},
    ),
    "spacing": ({"context": {"kind": "linear"}}, "^context/map/kernel$", None, {"spacing_mm"}),
}


def _accepted(name):
    module = __import__(f"medjax.models.{name}", fromlist=["make"])
    return tuple(inspect.signature(module.make).parameters)


def _made(name, words):
    arguments, image = NETWORKS[name]
    accepted = _accepted(name)
    facts = {"corpus_channels": FACTS["corpus_channels"]} if "corpus_channels" in accepted else {}
    given = arguments | words
    if "head" in accepted and "head" not in words:
        given = given | {"head": "sigmoid"}
    if name == "masked_swin" and "mlp" not in words:
        given = given | {"experts_in": "none"}
    given = facts | sockets.resolved(name, accepted, given, FACTS)
    module = build("models", name, **({"classes": 3} if "classes" in accepted else {}), **given)
    return module, image


def _context(module, image, corpus=(2, 0)):
    """Of two samples that differ in every entry."""
    given = context.zeros(module.reads, image[0], image[1:-1])
    facts = {
        "corpus": jnp.array(corpus),
        "modality": jnp.array([1, 0]),
        "task": jnp.array([0, 1]),
        "spacing_mm": jnp.array([[5.0, 1.0, 1.0], [1.0, 1.0, 1.0]]),
    }
    if "masked" in given:
        given["masked"] = given["masked"].at[:, 0].set(True)
    return given | {name: value for name, value in facts.items() if name in given}


def _random(shapes):
    """Numbers of a size with which every path carries some of the output."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        fan = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 10.0
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan), jnp.float32)

    return jax.tree.map(fill, shapes)


def _flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(k.key for k in keys): leaf for keys, leaf in leaves}


LONG = (("unet", "vit"), ("unet", "vit with experts"), ("unet", "spacing"))


def _cases():
    for name in NETWORKS:
        for asked, (words, *_) in WORDS.items():
            if not set(words) <= set(_accepted(name)):
                continue  # refused, see below
            if "mlp" in words and "bottleneck" not in words and name in ("unet", "resenc"):
                continue
            quick = name == "unet" and (name, asked) not in LONG
            yield pytest.param(name, asked, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize("name, asked", _cases())
def test_a_socket_learns_and_offers_by_name(name, asked):
    words, pattern, offer, reads = WORDS[asked]
    module, image = _made(name, words)
    assert set(module.reads) - {"masked"} == reads
    shapes = jax.eval_shape(
        functools.partial(context.initialise, module), jax.random.key(0), jnp.zeros(image)
    )
    params, x = _random(shapes), jax.random.normal(jax.random.key(1), image)
    given = _context(module, image)
    weights = jax.random.normal(jax.random.key(2), (*image[:-1], 64))

    def loss(params):
        found = module.apply(
            {"params": params}, x, given, True, rngs={"dropout": jax.random.key(3)}
        )
        y = found["logits"] if "logits" in found else found["pixels"]
        cut = weights[(slice(None), *(slice(n) for n in y.shape[1:]))]
        return jnp.sum(jnp.where(jnp.isfinite(y), y, 0) * cut), found

    (_, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    own = {k: v for k, v in _flat(gradient).items() if re.search(pattern, k)}
    assert own, sorted(_flat(gradient))
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in own.values())
    assert {name for name in ("gates", "task_gates") if name in found} == ({offer} - {None})
    if offer:
        number = {"gates": 2, "task_gates": 3}[offer]
        assert all(g.shape[0] == 2 and g.shape[-1] == number for g in found[offer].values())
        for gate in found[offer].values():
            np.testing.assert_allclose(gate.sum(-1), 1, rtol=1e-5)
        assert all("/" in place for place in found[offer])


@pytest.mark.parametrize("name", ["unet", slow("swin_unet")])
@pytest.mark.parametrize("kind", [slow("embedding"), "linear"])
def test_a_fresh_context_changes_nothing_and_a_trained_one_its_own_samples(name, kind):
    plain, image = _made(name, {})
    told, _ = _made(name, {"context": {"kind": kind}})
    key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), image)
    given = _context(told, image)
    base = jax.jit(functools.partial(context.initialise, plain))(key, x)
    params = jax.jit(functools.partial(context.initialise, told))(key, x)
    run = jax.jit(lambda p: told.apply({"params": p}, x, given)["logits"])
    expected = jax.jit(lambda p: plain.apply({"params": p}, x)["logits"])(base)
    np.testing.assert_array_equal(run(params), expected)
    own = params["context"] if kind == "embedding" else params["context"]["map"]
    leaf = "table" if kind == "embedding" else "kernel"
    assert own[leaf].shape[0] == (2 if kind == "embedding" else 3) and not np.any(own[leaf])
    row = 1 if kind == "embedding" else 0
    own[leaf] = own[leaf].at[row].set(jnp.arange(1.0, own[leaf].shape[-1] + 1))
    moved = np.abs(np.asarray(run(params)) - np.asarray(expected)).max((1, 2, 3))
    assert moved[0] > 1e-3 and (moved[1] == 0 if kind == "embedding" else moved[1] > 0)


@pytest.mark.slow
def test_heads_see_what_other_parts_offer():
    """A head that weighs its logits by the first expert's share in the deepest block."""
    from flax import linen as nn

    class Head(nn.Module):
        classes: int
        use_bias: bool = True
        kernel_init: object = nn.initializers.ones
        bias_init: object = nn.initializers.zeros
        dtype: object = jnp.float32
        contextual = True

        @nn.compact
        def __call__(self, x, seen):
            gate = seen["gates"]["encoder/stage1/block0"][..., 0].mean((1, 2))
            return nn.Dense(self.classes, name="map")(x) * gate[:, None, None, None]

    arguments, image = NETWORKS["swin_unet"]
    given = arguments | {"mlp": sockets.make("mlp", "experts", FACTS)}
    own = swin_unet.make(3, head=sockets.Socket("own", Head), **given)
    plain = swin_unet.make(3, head="sigmoid", **given)
    x = jax.random.normal(jax.random.key(0), image)
    params = jax.jit(functools.partial(context.initialise, own))(jax.random.key(1), x)
    other = params | {"head": {"kernel": params["head"]["map"]["kernel"]}}
    found = jax.jit(lambda p: own.apply({"params": p}, x))(params)
    expected = jax.jit(lambda p: plain.apply({"params": p}, x))(other)
    gate = found["gates"]["encoder/stage1/block0"][..., 0].mean((1, 2))
    np.testing.assert_allclose(
        found["logits"], expected["logits"] * gate[:, None, None, None], rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
def test_scanned_layers_offer_what_single_ones_do():
    arguments, image = NETWORKS["tsfm"]
    x = jax.random.normal(jax.random.key(0), image)
    mlp = sockets.make("mlp", {"kind": "experts", "experts": 3}, FACTS)
    nets = [tsfm.make(3, **arguments, mlp=mlp, scan=scan) for scan in ("none", "vit")]
    shapes = jax.eval_shape(functools.partial(context.initialise, nets[0]), jax.random.key(0), x)
    params = _random(shapes)
    one, other = (jax.jit(lambda p, n=net: n.apply({"params": p}, x))(params) for net in nets)
    assert set(one["gates"]) == {"vit/layer0", "vit/layer1"}
    assert one["gates"]["vit/layer0"].shape == (2, 2, 2, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)


@pytest.mark.slow
def test_words_say_the_same_as_the_older_fields():
    def tree(**given):
        arguments, image = NETWORKS["swin_unet"]
        given = sockets.resolved("swin_unet", _accepted("swin_unet"), arguments | given, FACTS)
        module = swin_unet.make(3, corpus_channels=FACTS["corpus_channels"], **given)
        made = functools.partial(context.initialise, module)
        return jax.jit(made)(jax.random.key(0), jnp.zeros(image)), module.reads

    for old, new in (
        (
            {"experts_in": "both", "experts": 2},
            {"mlp": {"kind": "experts", "experts": 2}, "head": {"kind": "corpus_softmax"}},
        ),
        (
            {"experts_in": "decoder", "routing": "hard", "modalities": 2, "head": "sigmoid"},
            {
                "mlp": {"kind": "experts", "routing": "hard", "place": "decoder"},
                "head": {"kind": "sigmoid"},
            },
        ),
        ({"experts_in": "none", "share_heads": (0, 1, 0)}, {"head": _shared((0, 1, 0))}),
    ):
        (first, reads), (second, others) = tree(**old), tree(**new)
        assert reads == others
        jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_network_is_made_of_words_in_python_as_well():
    given = {**SIDES, "deep_supervision": False, "mlp": "experts", "context": {"kind": "linear"}}
    module = unet.make(2, bottleneck=VIT, head="sigmoid", **given)
    assert set(module.reads) == {"spacing_mm"} and module.bottleneck.kind == "vit"
    shapes = jax.eval_shape(
        functools.partial(context.initialise, module), jax.random.key(0), jnp.zeros((1, 8, 8, 1))
    )
    assert shapes["bottleneck"]["layer1"]["mlp"]["w1"].shape == (1, 6, 12)
    assert unet.make(2, **SIDES, head={"kind": "sigmoid"}).reads == {}
    told = sockets.make("context", "linear", {})
    assert told.make.func is conditioning.Linear and told.reads == module.reads


def _shared(heads):
    return {"kind": "corpus_softmax", "share": heads}


@pytest.mark.parametrize(
    "model, socket, expected",
    [
        ({"name": "unet"}, "head", {"kind": "sigmoid"}),
        (
            {"name": "unet", "head": "corpus_softmax", "share_heads": "channels"},
            "head",
            {"kind": "corpus_softmax", "share": "channels"},
        ),
        ({"name": "swin_unet"}, "head", {"kind": "corpus_softmax"}),
        ({"name": "gone"}, "head", {"kind": "sigmoid"}),
        (
            {"name": "swin_unet", "experts_in": "both", "routing": "hard", "experts": 4},
            "mlp",
            {"kind": "experts", "routing": "hard", "experts": 4},
        ),
        ({"name": "swin_unet", "routing": "gate"}, "mlp", {"kind": "dense", "routing": "gate"}),
        ({"name": "tsfm", "mlp": {"kind": "experts"}}, "mlp", {"kind": "experts"}),
        ({"name": "tsfm", "vit": False}, "bottleneck", {"kind": "none"}),
        ({"name": "unet", "bottleneck": "vit"}, "bottleneck", {"kind": "vit"}),
        ({"name": "unet"}, "context", {"kind": "none"}),
    ],
)
def test_a_config_says_what_is_in_a_socket(model, socket, expected):
    assert sockets.words(model, socket) == expected


@pytest.mark.parametrize(
    "name, words, message",
    [
        ("unet", {"mlp": {"kind": "experts"}}, "transformer of its bottleneck only"),
        ("swin_unetr", {"mlp": {"kind": "experts", "place": "decoder"}}, "decoder of SwinUNETR"),
        ("masked_swin", {"head": {"kind": "sigmoid"}}, "its sockets: mlp, bottleneck, context"),
        ("unet", {"bottleneck": {"kind": "vti"}}, "unknown kind 'vti' of model.bottleneck"),
        ("unet", {"bottleneck": {"kind": "vit", "wdith": 3}}, "has no field 'wdith'"),
        ("unet", {"context": {"kind": "embedding", "of": "age"}}, "entry of an embedding"),
        ("unet", {"context": {"kind": "embedding", "tasks": 3}}, "has no field 'tasks'"),
        ("swin_unet", {"mlp": {"kind": "experts", "experts": 1, "routing": "hard"}}, "no expert"),
        ("swin_unet", {"mlp": {"kind": "experts"}, "experts_in": "both"}, "described twice"),
        ("masked_swin", {"mlp": "experts", "experts_in": "encoder"}, "described twice"),
        ("unet", {"head": {"share": "corpus"}}, "unknown kind None"),
    ],
)
def test_what_a_network_has_no_place_for_is_refused(name, words, message):
    with pytest.raises(ModelError, match=message):
        _made(name, words)


def test_every_network_says_its_sockets():
    there = {name: [s for s in sockets.KINDS if s in _accepted(name)] for name in known("models")}
    assert there == {
        name: [s for s in sockets.KINDS if s != "head" or name != "masked_swin"]
        for name in NETWORKS
    } | {"mast_pro": ["mlp"], "universal": [], "hermes": [], "masked_vit": [], "segvol": []}
