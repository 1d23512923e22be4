"""SegVol: exact counts and work at full size, prompts, encode once, priors, switches; T numbers are
those of the specification.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.models import segvol
from medjax.models.context import abstract, declared, initialise, zeros
from medjax.models.macs import macs
from medjax.weights import adapters
from tests.support.fast import FAST

FULL = (32, 256, 256)
TOWER, MASK_BRANCH = 63_165_952, 13_388  # stored beside the parameters
TINY = {
    "frame": (8, 16, 16),
    "patch_size": (2, 4, 4),
    "width": 24,
    "layers": 2,
    "heads": 2,
    "hidden": 48,
    "decoder_heads": 4,
    "decoder_hidden": 24,
    "text_width": 10,
}
PRIOR = {"prior": "additive_token", "prior_tasks": 21, "modalities": 2}
SETS = ("points+text", "box+text", "text", "box", "points", "box+points")


def _count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@functools.cache
def _shapes(**arguments):
    net = segvol.make(3, **arguments)
    image = jax.ShapeDtypeStruct((1, *net.frame, 1), jnp.float32)
    return jax.eval_shape(functools.partial(initialise, net), jax.random.key(0), image)


def _random(tree, seed=0):
    """Parameters far from their start, of gain about 1."""
    rng = np.random.default_rng(seed)

    def fill(keys, leaf):
        name = jax.tree_util.keystr(keys, simple=True, separator="/")
        noise = rng.normal(size=leaf.shape)
        if name.endswith("scale"):
            return jnp.asarray(1 + 0.2 * noise, jnp.float32)
        fan = np.prod(leaf.shape[:-1]) if name.endswith("kernel") else 1
        return jnp.asarray(noise / np.sqrt(fan), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, tree)


def _prompts(sets, frame=(8, 16, 16), seed=0, absent=16):
    """Prompts of one sample, a query for every name of a set."""
    rng = np.random.default_rng(seed)
    q = len(sets)
    has = np.array([["points" in s, "box" in s, "text" in s] for s in sets])
    kind = np.array(rng.integers(-1, 2, (q, 21)), np.int32)
    kind[:, 21 - absent :] = -2
    first = rng.integers(0, 3, (q, 3))
    points = rng.uniform(size=(q, 21, 3)) * np.array(frame)
    found = {
        "prompt_points": np.where(kind[..., None] == -2, 1e3, points).astype(np.float32),
        "prompt_point_kind": kind,
        "prompt_box": np.concatenate([first, first + 4], -1).astype(np.float32),
        "prompt_has": has,
        "prompt_text": np.arange(q, dtype=np.int32) % 3,
    }
    return {name: jnp.asarray(value)[None] for name, value in found.items()}


def _only(prompts, q):
    """The context of one query."""
    return {
        name: value if value.ndim < 2 else value[:, q : q + 1] for name, value in prompts.items()
    }


def _compiled(net):
    return jax.jit(
        lambda params, image, context: net.apply({"params": params}, image, context),
        compiler_options=FAST,
    )


@pytest.fixture(scope="module")
def tiny():
    """(network, parameters, image, compiled apply)."""
    net = segvol.make(3, **TINY)
    params = _random(_shapes(**TINY))
    image = jnp.asarray(np.random.default_rng(1).normal(size=(1, 8, 16, 16, 1)), jnp.float32)
    return net, params, image, _compiled(net)


def test_t1_parameters_at_full_size():
    tree = _shapes()
    parts = {name: _count(part) for name, part in tree.items()}
    matrix, table = 3 * 384, 3 * 512
    assert parts == {
        "encoder": 87_388_416,
        "prompt": 4_608 + matrix,
        "decoder": 29_923_716,
        "text": 393_984 + table,
    }
    assert _count(tree) - matrix - table == 117_710_724
    assert 117_710_724 + TOWER == 180_876_676 == 180_890_064 - MASK_BRANCH
    block = _count(tree["encoder"]["block0"])
    assert block == 7_085_568 and 12 * block == 85_026_816
    embedding = _count([tree["encoder"][name] for name in ("patch_embed", "pos")])
    assert embedding == 2_360_064 and _count(tree["encoder"]["ln_f"]) == 1_536
    decoder = {name: _count(part) for name, part in tree["decoder"].items()}
    two_way = sum(decoder[n] for n in ("layer0", "layer1", "final", "norm_final"))
    assert two_way == 16_943_488 and decoder["tokens"] == 3_840 and decoder["text"] == 73_824
    assert decoder["up1"] + decoder["up_norm"] + decoder["up2"] == 7_618_848
    assert decoder["up_norm"] == 6_291_456 and decoder["iou"] == 263_684
    assert {decoder[f"hyper{i}"] for i in range(4)} == {1_255_008}
    # the tree of the encoder's 137 tensors, one leaf each
    assert len(jax.tree.leaves(tree["encoder"])) == 137


def test_t3_work_of_the_encoder():
    net = segvol.make(3)
    variables = {"params": _shapes()}
    image = jax.ShapeDtypeStruct((1, *FULL, 1), jnp.float32)

    def encode(variables, image):
        return net.apply(variables, image, method="encode")

    assert macs(encode, variables, image) == 252_866_199_552


def test_names_and_shapes_of_the_outputs():
    net = segvol.make(3)
    image = jax.ShapeDtypeStruct((1, *FULL, 1), jnp.float32)
    given = abstract(declared(net), 1, FULL)
    assert given["prompt_points"].shape == (1, 8, 21, 3)
    found = jax.eval_shape(net.apply, {"params": _shapes()}, image, given)
    assert found["logits"].shape == (1, 8, *FULL) and found["low"].shape == (1, 8, 32, 64, 64)
    # another number of queries needs no other network
    wide = {k: jax.ShapeDtypeStruct((1, 18, *v.shape[2:]), v.dtype) for k, v in given.items()}
    more = jax.eval_shape(net.apply, {"params": _shapes()}, image, wide)
    assert more["logits"].shape == (1, 18, *FULL) and more["logits"].dtype == jnp.float32


def test_t14_adapters_of_the_published_targets():
    tree = _shapes()
    for rank, scale in ((4, 2.0), (8, 2.828), (16, 4.0), (32, 5.657)):
        rules = adapters.rules_of("segvol", rank)
        settings = adapters.Adapters(rules, alpha=float(rank))
        grafted = jax.eval_shape(
            lambda tree, settings=settings: adapters.graft(tree, settings, jax.random.key(0)), tree
        )
        parts = {name: _count(grafted[name]) - _count(tree[name]) for name in tree}
        assert parts == {
            "encoder": 129_024 * rank,
            "decoder": 13_056 * rank,
            "prompt": 0,
            "text": 0,
        }
        paths = [
            jax.tree_util.keystr(keys, simple=True, separator="/")
            for keys, _ in jax.tree_util.tree_leaves_with_path(grafted)
        ]
        sites = [path for path in paths if path.endswith("lora_a")]
        assert len(sites) == 46 and sum("qkv" in path for path in sites) == 12
        assert settings.scale(rank) == pytest.approx(scale, abs=5e-4)
    assert 142_080 * 8 + 4_608 == 1_141_248 and 142_080 * 16 + 4_608 == 2_277_888


@pytest.mark.slow
def test_t17_experts_with_an_identity(tiny):
    """Expert 0 is the network itself bit for bit, and only the expert in use gets a gradient."""
    net, params, image, _ = tiny
    settings = adapters.Adapters(
        adapters.rules_of("segvol", 2), experts=3, routing="modality", alpha=2.0
    )
    tree = adapters.graft(params, settings, jax.random.key(0))
    added = _count(tree) - _count(params)
    sites = [path for path in adapters._flat(tree) if path.endswith("lora_a")]
    assert len(sites) == 2 * 3 + 10  # two blocks here; twelve of them give 46
    full = jax.eval_shape(lambda tree: adapters.graft(tree, settings, jax.random.key(0)), _shapes())
    assert _count(full) - _count(_shapes()) == 2 * 142_080 * 2 and added > 0
    tree = jax.tree_util.tree_map_with_path(
        lambda keys, leaf: leaf + 0.1 if "lora_b" in jax.tree_util.keystr(keys) else leaf, tree
    )
    images, prompts = jnp.concatenate([image, image]), _prompts(("text", "box"))
    prompts = {name: jnp.concatenate([value, value]) for name, value in prompts.items()}

    def low(tree, modality):
        context = prompts | {"modality": modality}
        given = adapters.variables(tree, settings, images, context)
        return net.apply(given, images, context)["low"]

    run = jax.jit(low, compiler_options=FAST)

    plain = jax.jit(
        lambda params: net.apply({"params": params}, images, prompts)["low"], compiler_options=FAST
    )(params)
    mixed = run(tree, jnp.array([0, 2]))
    np.testing.assert_array_equal(mixed[0], plain[0])
    assert float(jnp.abs(mixed[1] - plain[1]).max()) > 1e-3
    slopes = jax.jit(
        jax.grad(lambda tree: (low(tree, jnp.array([0, 2])) ** 2).sum()), compiler_options=FAST
    )(tree)
    for path, slope in adapters._flat(slopes).items():
        if "lora" in path:  # stored: experts 1 and 2
            assert not np.any(np.asarray(slope[0])) and np.any(np.asarray(slope[1])), path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"mode": "release"}, 2_868_720),
        ({"unknown_task": False}, 2_868_722),
        ({}, 2_868_722 + 2 * 768),  # a token of unknown tasks, and one of unknown modalities
    ],
)
def test_t15_parameters_of_the_priors(arguments, expected):
    prior = _shapes(**PRIOR, **arguments)["prior"]
    assert _count(prior) == expected
    assert _count([prior["task"], prior["modality"]]) == 17_664
    assert _count([prior["posterior1"], prior["posterior2"]]) == 187_440
    if arguments == {"mode": "release"}:
        assert 2_868_720 + 142_080 * 8 + 4_608 == 4_009_968  # what learns with adapters of rank 8


@pytest.mark.slow
def test_t2_t29_what_gets_a_gradient_and_how_much_that_is(tiny):
    net, params, image, _ = tiny
    context = _prompts(SETS)

    def loss(params):
        low = net.apply({"params": params}, image, context)["logits"]
        return (low * jax.random.normal(jax.random.key(1), low.shape)).mean()

    slopes = jax.jit(jax.grad(loss), compiler_options=FAST)(params)
    full, dead, live = _shapes(), {}, 10 * 7_085_568  # the small network has two blocks of twelve
    for keys, slope in jax.tree_util.tree_leaves_with_path(slopes):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        size = functools.reduce(lambda tree, name: tree[name], path.split("/"), full).size
        if not np.any(np.asarray(slope)):
            dead[path.split("/")[1]] = dead.get(path.split("/")[1], 0) + size
        elif path != "text/table":  # filled from texts, not trained
            live += size
    assert set(dead) == {"gaussian", "iou", "hyper1", "hyper2", "hyper3"}
    assert dead["iou"] == 263_684 and dead["hyper1"] + dead["hyper2"] + dead["hyper3"] == 3_765_024
    assert dead["gaussian"] == 1_152
    assert live == 113_682_016  # with the map of the texts; `release` never trains it:
    assert live - 393_984 == 113_288_032
    assert 117_710_724 + MASK_BRANCH == 117_724_112  # marked as trained in the published code


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_t27_masked_slots_equal_prompts_of_that_length(tiny, name):
    """One program with 25 slots for prompts against a call with exactly the tokens that exist."""
    net, params, image, apply = tiny
    context, q = _prompts(SETS, absent=17), SETS.index(name)
    together = apply(params, image, context)["low"][:, q]
    one = _only(context, q)
    row = jnp.where(one["prompt_has"][..., 2], one["prompt_text"], -1)
    names = ("points", "point_kind", "box", "has")
    bound = net.bind({"params": params})
    text, spoken = bound.text(row, None)
    tokens, exists = bound.prompt(*(one[f"prompt_{n}"] for n in names), text, spoken)
    short = tokens[:, :, np.flatnonzero(np.asarray(exists[0, 0]))]
    expected = {"points+text": 4 + 1 + 1, "box+text": 3, "text": 1, "box": 2, "points": 5}
    assert short.shape[2] == expected.get(name, 4 + 2)  # one pad, if there are points and no box

    @functools.partial(jax.jit, compiler_options=FAST)
    def alone(params):
        bound = net.bind({"params": params})
        image_there = bound.encode(image)[:, None] + bound.prompt.image_prompt()
        there = jnp.ones(short.shape[:3], bool)
        return bound.decoder(image_there, bound.prompt.cells(), short, there, text, spoken)["low"]

    found = alone(params)[:, 0]
    assert 0.05 < float(found.std()) < 3
    np.testing.assert_allclose(together, found, atol=1e-5)


@pytest.mark.slow
def test_t28_one_embedding_serves_all_queries(tiny):
    net, params, image, apply = tiny
    context = _prompts(SETS)
    variables = {"params": params}
    embedding = net.apply(variables, image, method="encode")
    decode = jax.jit(lambda e, c: net.apply(variables, e, c, method="decode")["logits"])
    together = decode(embedding, context)
    np.testing.assert_allclose(together, apply(params, image, context)["logits"], atol=1e-4)
    for q in range(len(SETS)):
        alone = apply(params, image, _only(context, q))["logits"]
        np.testing.assert_allclose(together[:, q], alone[:, 0], atol=1e-4)
    spread = np.asarray(together[0]).reshape(len(SETS), -1)
    apart = np.abs(spread[:, None] - spread[None]).max(-1) + np.eye(len(SETS))
    assert apart.min() > 1e-3  # every query has a mask of its own


@pytest.mark.slow
def test_a_prompt_that_is_not_given_changes_nothing(tiny):
    _, params, image, apply = tiny
    context = _prompts(("text", "box"))
    other = _prompts(("text", "box"), seed=5)
    for q, kept in enumerate((("prompt_has", "prompt_text"), ("prompt_has", "prompt_box"))):
        mixed = {n: context[n] if n in kept else v for n, v in other.items()}
        mixed["prompt_text"] = context["prompt_text"] if q == 0 else other["prompt_text"] + 1
        one, same = (apply(params, image, c)["low"][:, q] for c in (context, mixed))
        np.testing.assert_array_equal(one, same)
        assert not np.allclose(one, apply(params, image, other)["low"][:, q], atol=1e-3) or q == 0


@pytest.fixture(scope="module")
def gated():
    """The plain network with priors: parameters of fresh gates, contexts, compiled apply."""
    arguments = TINY | {"prior": "additive_token", "prior_tasks": 3, "modalities": 2}
    net = segvol.make(3, **arguments)
    params = _random(_shapes(**arguments))
    params["prior"]["gate"] = jnp.zeros(2)
    context = _prompts(SETS[:4]) | {
        "prompt_task": jnp.array([[0, 1, 2, -1]]),
        "modality": jnp.array([1]),
    }
    return params, context, _compiled(net)


@pytest.mark.slow
def test_t16_priors_with_closed_gates_are_the_plain_network_bit_for_bit(tiny, gated):
    _, _, image, apply = tiny
    params, context, prior = gated
    plain = {name: part for name, part in params.items() if name != "prior"}
    names = [name for name in context if name not in ("prompt_task", "modality")]
    base = apply(plain, image, {name: context[name] for name in names})
    one = prior(params, image, context | {"prompt_task": jnp.array([[2]])})
    np.testing.assert_array_equal(one["logits"], base["logits"])
    # an image per task is another order of sums, not another number
    np.testing.assert_allclose(prior(params, image, context)["low"], base["low"], atol=1e-5)
    for gate in ([1.0, 0.0], [0.0, 1.0]):  # each path matters once its gate opens
        opened = params | {"prior": params["prior"] | {"gate": jnp.array(gate)}}
        assert float(jnp.abs(prior(opened, image, context)["low"] - base["low"]).max()) > 1e-3
    opened = params | {"prior": params["prior"] | {"gate": jnp.ones(2)}}
    low = prior(opened, image, context)["low"]
    for name, other in (("prompt_task", jnp.array([[1, 1, 0, 2]])), ("modality", jnp.array([0]))):
        moved = np.abs(prior(opened, image, context | {name: other})["low"] - low)[0].max((1, 2, 3))
        changed = [True, False, True, True] if name == "prompt_task" else [True] * 4
        np.testing.assert_array_equal(moved > 1e-4, changed)
    far = context | {"prompt_task": jnp.array([[0, 1, 2, 99]])}  # no such row: unknown
    np.testing.assert_array_equal(prior(opened, image, far)["low"], low)


@pytest.mark.slow
def test_one_task_serves_neighbouring_queries(tiny, gated):
    params, context, prior = gated
    params = params | {"prior": params["prior"] | {"gate": jnp.ones(2)}}
    each = prior(params, tiny[2], context | {"prompt_task": jnp.array([[2, 2, 0, 0]])})
    groups = prior(params, tiny[2], context | {"prompt_task": jnp.array([[2, 0]])})
    np.testing.assert_allclose(each["low"], groups["low"], atol=2e-5)
    with pytest.raises(ModelError, match=r"tasks do not fit the queries.*3 tasks, 4 queries"):
        prior(params, tiny[2], context | {"prompt_task": jnp.array([[2, 0, 1]])})


@pytest.mark.slow
def test_a_mask_of_the_round_before_is_read_per_query():
    net = segvol.make(3, **TINY, mask_input=True, free_text=True, queries=2)
    params = _random(_shapes(**TINY, mask_input=True, free_text=True))
    rng = np.random.default_rng(2)
    image = jnp.asarray(rng.normal(size=(1, 8, 16, 16, 1)), jnp.float32)
    low = jnp.asarray(rng.normal(size=(1, 2, 16, 16, 16)), jnp.float32).at[:, 1].set(0)
    context = _prompts(("text", "text")) | {
        "prompt_text": jnp.array([[-2, -2]]),
        "prompt_vector": jnp.repeat(params["text"]["table"][None, :1], 2, 1),
        "prompt_mask": low,
    }
    apply = jax.jit(lambda c: net.apply({"params": params}, image, c)["low"][0])
    found = apply(context)
    none = apply(context | {"prompt_mask": jnp.zeros_like(low)})
    np.testing.assert_allclose(found[1], none[1], atol=1e-5)  # all zero: none
    np.testing.assert_allclose(none[0], none[1], atol=1e-5)
    assert float(jnp.abs(found[0] - none[0]).max()) > 1e-2
    row = apply(context | {"prompt_text": jnp.array([[0, -1]]), "prompt_mask": jnp.zeros_like(low)})
    np.testing.assert_allclose(row[0], none[0], atol=1e-5)  # the vector is that of row 0
    assert float(jnp.abs(row[1] - none[1]).max()) > 1e-2  # no text at all


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"remat": "block"}, {"scan": False}])
def test_recomputing_and_scanning_change_no_number(tiny, change):
    _, params, image, _ = tiny
    context = _prompts(SETS)

    def step(net):
        def loss(params):
            return jnp.mean(net.apply({"params": params}, image, context)["logits"] ** 2)

        return jax.jit(jax.value_and_grad(loss))(params)

    first, second = step(segvol.make(3, **TINY)), step(segvol.make(3, **TINY, **change))
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4 * max(1e-3, float(jnp.abs(one).max())))


@pytest.mark.slow
def test_half_precision_gives_float32_masks_close_to_those_of_float32(tiny):
    _, params, image, apply = tiny
    context = _prompts(SETS)
    net = segvol.make(3, **TINY, dtype="bfloat16")
    found = jax.jit(lambda p: net.apply({"params": p}, image, context))(params)
    expected = apply(params, image, context)["logits"]
    assert found["logits"].dtype == jnp.float32
    error = np.abs(found["logits"] - expected).mean() / np.abs(expected).mean()
    assert 1e-5 < error < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "relese"}, r"unknown mode 'relese'.*did you mean release"),
        ({"pe_order": "zyx"}, r"unknown pe_order 'zyx'.*consistent or release"),
        ({"mask_select": "iou"}, r"rates masks was not trained.*mask_select=\"first\""),
        ({"prior": "additive"}, r"unknown prior 'additive'"),
        ({"prior": "additive_token", "posterior": "replace"}, r"unknown posterior 'replace'"),
        ({"frame": (8, 16)}, r"no whole number of patches"),
        ({"frame": (9, 16, 16)}, r"no whole number of patches.*frame \(9, 16, 16\)"),
        ({"width": 20}, r"width fits neither heads nor filters"),
        ({"remat": "all"}, r"unknown remat 'all'"),
        ({"initial": "xavir"}, r"unknown initial values 'xavir'"),
    ],
)
def test_arguments_that_describe_no_network_are_refused(arguments, message):
    with pytest.raises(ModelError, match=message):
        segvol.make(3, **TINY | arguments)


def test_the_order_of_positions_is_known_of_the_network():
    assert segvol.make(3, **TINY).pe_order == "consistent"
    assert segvol.make(3, **TINY, mode="release").pe_order == "release"
    assert segvol.make(3, **TINY, mode="release", pe_order="consistent").pe_order == "consistent"


def test_what_a_call_lacks_is_named(tiny):
    net, params, image, _ = tiny
    context = zeros(declared(net), 1, net.frame)
    with pytest.raises(ModelError, match=r"size of the network's frame.*\(8, 16, 32\)"):
        jax.eval_shape(net.apply, {"params": params}, jnp.zeros((1, 8, 16, 32, 1)), context)
    del context["prompt_box"]
    with pytest.raises(ModelError, match="prompted networks need the prompt_box"):
        jax.eval_shape(net.apply, {"params": params}, image, context)
    with pytest.raises(ModelError, match="heads do not divide half the width"):
        heads = segvol.make(3, **TINY | {"decoder_heads": 5})
        jax.eval_shape(functools.partial(initialise, heads), jax.random.key(0), image)


@pytest.mark.slow
def test_the_best_rated_mask_is_chosen_once_the_head_is_trained(tiny):
    _, params, image, apply = tiny
    context = _prompts(SETS)
    given = {"all_masks": True, "rated": True, "mask_select": "iou"}
    net = segvol.make(3, **TINY, **given)
    found = jax.jit(lambda p: net.apply({"params": p}, image, context))(params)
    best = np.asarray(found["iou"][0]).argmax(-1)
    for q, mask in enumerate(best):
        np.testing.assert_array_equal(found["low"][0, q], found["masks"][0, q, mask])
    first = apply(params, image, context)["low"]
    np.testing.assert_allclose(found["masks"][:, :, 0], first, atol=1e-4)
    assert np.ptp(np.asarray(found["iou"][0]), -1).min() > 1e-3
