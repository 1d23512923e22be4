"""MAST-Pro: the budgets of the paper's rows, what a prompt reaches, and numpy's version of the path
from prompts to a mask.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from medjax.errors import ModelError
from medjax.losses import category, dice
from medjax.models import context, macs, mast_pro, swin_unetr
from medjax.models.parts import dynamic_head
from medjax.models.parts.fusion import PromptFusion
from medjax.tasks import supervised
from tests.support.marks import slow

EXPERTS = {"kind": "dynamic_low_rank"}
IMAGE = jax.ShapeDtypeStruct((1, 96, 96, 96, 2), jnp.float32)
TINY = {
    "feature_size": 6,
    "depths": (1, 1, 1, 1),
    "heads": (1, 1, 2, 2),
    "window": 2,
    "dims": 2,
    "fusion_width": 12,
    "theta_hidden": 10,
}
SMALL_EXPERTS = EXPERTS | {"rank": 2, "k1": 1, "k2": 2}
TASK = jnp.array([1, 0])


@functools.cache
def _sizes(**given):
    """Path -> number of values, of the full size with 8 tasks."""
    if "mlp" in given:
        given["mlp"] = EXPERTS | dict(given["mlp"])
    net = mast_pro.make(1, 2, 8, **given)

    def init(key):
        return context.initialise(net, key, jnp.zeros(IMAGE.shape))

    return {k: v.size for k, v in _flat(jax.eval_shape(init, jax.random.key(0))).items()}


def _flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def _sum(sizes, *starts):
    return sum(n for path, n in sizes.items() if path.startswith(starts))


PROMPTS = ("fusion", "theta/", "category/", "precls/", "out/")
ROWS = [  # arguments, prompts, experts, routers: spec 3.7 and the ablation rows of section 6
    ({"mlp": ()}, 3_776_696, 1_689_408, 48_960),
    ({"mlp": (("k1", 4), ("k2", 4), ("rank", 16))}, 3_776_696, 1_715_328, 97_920),
    ({"mlp": (("k1", 8), ("rank", 8))}, 3_776_696, 1_619_904, 118_080),
    ({"mlp": (("k1", 8), ("k2", 8), ("specific", "pooled"))}, 3_776_696, 1_501_696, 195_840),
    (
        {
            "mlp": (("k1", 1), ("rank", 4)),
            "fusion_width": 256,
            "theta_hidden": 256,
        },
        1_259_704,
        129_920,
        37_440,
    ),
    ({"text": False}, 2_990_264, 0, 0),
    ({"anatomy": False}, 3_797_432, 0, 0),
    ({"text": False, "anatomy": False, "mlp": ()}, 392, 1_689_408, 48_960),
    ({}, 3_776_696, 0, 0),
    ({"mlp": (), "feature_size": 12}, 1_536_308, 425_808, 12_240),
    ({"mlp": (), "feature_size": 24}, 2_283_104, 847_008, 24_480),
]


QUICK = (0, 5, 9)  # the default, a row without text, feature size 12


@pytest.mark.parametrize(
    ("given", "prompts", "experts", "routers"),
    [pytest.param(*r, marks=[pytest.mark.slow] * (k not in QUICK)) for k, r in enumerate(ROWS)],
)
def test_the_budget_of_every_row(given, prompts, experts, routers):
    sizes = _sizes(**given)
    assert _sum(sizes, *PROMPTS) == prompts
    assert sum(n for path, n in sizes.items() if "/generic/" in path or "/specific/" in path) == (
        experts
    )
    assert sum(n for path, n in sizes.items() if "/router_" in path) == routers
    backbone = {12: 4_078_064 - 26, 24: 15_703_004 - 50, 48: 62_186_610}
    size = given.get("feature_size", 48)
    assert _sum(sizes, "backbone/") - experts - routers == backbone[size]
    organ = {12: 694_998, 24: 2_171_466, 48: 8_062_002}
    assert _sum(sizes, "anatomy/") == (organ[size] if given.get("anatomy", True) else 0)
    assert _sum(sizes, "text/") == (8 * 512 if given.get("text", True) else 0)


def test_the_sums_of_the_budget():
    default = _sizes(mlp=())
    trained = sum(n for p, n in default.items() if "/generic/" in p or "/specific/" in p)
    trained += sum(n for p, n in default.items() if "/router_" in p) + _sum(default, *PROMPTS)
    assert trained == 5_515_064 and round(4 * trained / 2**20, 2) == 21.04
    decoders = _sum(default, *(f"backbone/decoder{k}/" for k in range(1, 6)))
    assert decoders == 19_597_824
    assert decoders + 1_259_704 + 129_920 + 37_440 == 21_024_888


@pytest.mark.slow
def test_the_experts_cost_of_a_patch():
    """3.694 GMAC per patch of 96^3 (spec 3.2), counted in the Swin encoder alone."""

    def work(**given):
        net = swin_unetr.make(1, **given).swin
        image = jax.ShapeDtypeStruct((1, 96, 96, 96, 1), jnp.float32)
        task = {"task": jax.ShapeDtypeStruct((1,), jnp.int32)}
        return macs.macs(net.init, jax.random.key(0), image, task)

    experts = swin_unetr.sockets.make("mlp", EXPERTS, {"tasks": 8})
    assert work(mlp=experts) - work() == 3_694_325_760


def _tiny(**given):
    net = mast_pro.make(1, given.pop("in_channels", 2), 2, **(TINY | given))
    return net, jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 32, 2)), jnp.float32)


def _params(net, image, seed=0):
    shapes = jax.eval_shape(lambda k: context.initialise(net, k, image), jax.random.key(0))
    rng = np.random.default_rng(seed)

    def fill(keys, leaf):
        fan = np.prod(leaf.shape[-2:-1]) if leaf.ndim > 1 else 10.0
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def _linear(x, p):
    return x @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"], np.float64)


def _fused_by_hand(p, features, organ, text, query="feature_concat", heads=1):
    """Equation 6 for one sample, query by query."""
    grid, c = features.shape[:-1], features.shape[-1]
    image, asked = features.reshape(-1, c), organ.reshape(-1, organ.shape[-1])
    if query == "feature_concat":
        q = _linear(np.concatenate([np.tile(text, (len(asked), 1)), asked], 1), p["q"])
    else:
        q = np.concatenate([_linear(text[None], p["q_text"]), _linear(asked, p["q"])])
    k, v = _linear(image, p["k"]), _linear(image, p["v"])
    rows = []
    for row in q:
        parts = []
        for own in np.split(np.arange(len(row)), heads):
            score = np.array([row[own] @ key[own] / np.sqrt(len(own)) for key in k])
            weight = np.exp(score - score.max())
            parts.append((weight / weight.sum()) @ v[:, own])
        rows.append(np.concatenate(parts))
    found = _linear(np.array(rows), p["out"])
    return found[-len(asked) :].reshape(*grid, c), found.mean(0)


@pytest.mark.parametrize(("query", "heads"), [("feature_concat", 1), ("token_concat", 2)])
def test_attended_prompts_are_what_the_equation_says(query, heads):
    rng = np.random.default_rng(1)
    features, organ = rng.normal(size=(2, 2, 3, 8)), rng.normal(size=(2, 2, 3, 5))
    text = rng.normal(size=(2, 7))
    given = [jnp.asarray(a, jnp.float32) for a in (features, organ, text)]
    net = PromptFusion(6, heads, query)
    params = net.init(jax.random.key(0), *given)["params"]
    added, mean = net.apply({"params": params}, *given)
    for n in range(2):
        by_hand = _fused_by_hand(params, features[n], organ[n], text[n], query, heads)
        np.testing.assert_allclose(added[n], by_hand[0], atol=1e-5)
        np.testing.assert_allclose(mean[n], by_hand[1], atol=1e-5)
    zero = PromptFusion(6, heads, query, "zero")
    fresh = zero.init(jax.random.key(0), *given)["params"]
    assert not np.asarray(zero.apply({"params": fresh}, *given)[0]).any()


@pytest.mark.slow
def test_a_mask_is_theta_times_the_decoder():
    """Equations 6 to 8 and the category by hand, from the network's own maps."""
    net, image = _tiny(mlp=SMALL_EXPERTS, weight_axes="xyz")
    params = _params(net, image)
    given = {"task": TASK}
    outputs = jax.jit(lambda p: net.apply({"params": p}, image, given))(params)

    def maps(p):
        turned = swin_unetr.reverse_axes(image)
        mask = (turned[..., 1:] > 0.5).astype(jnp.float32)
        own = {"params": p["backbone"]}
        found = net.backbone.apply(own, turned[..., :1], given, method="encode")
        return found, net.anatomy.apply({"params": p["anatomy"]}, mask)[0][4]

    found, organ = jax.jit(maps)(params)
    numbers = jax.tree.map(lambda a: np.asarray(a, np.float64), (found["deepest"], organ))
    text = np.asarray(params["text"]["table"], np.float64)[np.asarray(TASK)]
    pairs = [
        _fused_by_hand(params["fusion"], f, o, t) for f, o, t in zip(*numbers, text, strict=True)
    ]
    deepest = found["deepest"] + jnp.asarray(np.stack([added for added, _ in pairs]), jnp.float32)
    decode = jax.jit(lambda p, m: net.backbone.apply({"params": p}, m, method="decode"))
    decoded = np.asarray(decode(params["backbone"], found | {"deepest": deepest}), np.float64)
    for n, (_, mean) in enumerate(pairs):
        hidden = np.maximum(_linear(np.concatenate([mean, text[n]]), params["theta"]["fc1"]), 0)
        theta = _linear(hidden, params["theta"]["fc2"])
        logits = np.asarray(outputs["logits"])[n, ..., 0]
        np.testing.assert_allclose(logits, (decoded[n] @ theta).T, atol=2e-4 * logits.std())
        score = np.asarray(outputs["category"])[n]
        np.testing.assert_allclose(score, _linear(theta, params["category"]), rtol=1e-4, atol=1e-4)
    assert outputs["task_gates"]["backbone/swin/stage1/block0"].shape == (2, 32, 16, 3)


@pytest.mark.slow
def test_a_fresh_network_without_prompts_is_the_plain_backbone():
    """Experts that start at zero change nothing, bit for bit (operation by operation: XLA may fuse
    two programs differently); every sample has the output of its task.
    """
    net, image = _tiny(mlp=SMALL_EXPERTS, text=False, anatomy=False, in_channels=1)
    image = image[..., :1]
    params = context.initialise(net, jax.random.key(0), image)
    names = {k: v for k, v in TINY.items() if k not in ("fusion_width", "theta_hidden")}
    plain = swin_unetr.make(2, **names)
    experts = ("generic", "specific", "router_generic", "router_task")
    kept = {
        path: leaf
        for path, leaf in _flat(params["backbone"]).items()
        if not any(f"/{name}" in path for name in experts)
    }
    base = traverse_util.unflatten_dict(kept, sep="/") | {"out": params["out"]}
    every = np.asarray(plain.apply({"params": base}, image)["logits"])
    mine = net.apply({"params": params}, image, {"task": TASK})
    assert "category" not in mine
    for n, task in enumerate(np.asarray(TASK)):
        np.testing.assert_array_equal(mine["logits"][n, ..., 0], every[n, ..., task])


@pytest.fixture(scope="module")
def trained():
    """(network, parameters, image, gradient of the loss of a batch with a task mask, programs)."""
    net, image = _tiny(mlp=SMALL_EXPERTS, remat="all")
    params = _params(net, image)
    compiled = []

    def apply(params, image, given, train, key):
        return net.apply({"params": params}, image, given, train)

    task = supervised.make(
        apply,
        [("dice", 1.0, dice.make("sample", 1e-5, "mean")), ("category", 1.0, category.make())],
        table=np.array([[[False], [True]]] * 3),
        known=np.ones((3, 1), bool),
        ignore_ids=np.full(3, -2),
        patch=(64, 32),
        reads=net.reads,
        tasks=(0, 1, 1),
    )
    label = (np.random.default_rng(3).random((2, 64, 32)) > 0.7).astype(np.int32)

    def loss(params, image, label, corpus):
        compiled.append(1)
        batch = {"image": image, "label": label, "corpus": corpus}
        ones = jnp.ones((image.shape[0], 2))
        batch |= {"gain": ones, "bias": 0 * ones, "modality": corpus}
        return task.loss(params, batch, jax.random.key(0))

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return params, jnp.asarray(image), jnp.asarray(label), step, compiled


@pytest.mark.slow
def test_the_loss_reaches_the_tasks_of_a_batch_only(trained):
    params, image, label, step, _ = trained
    (_, scalars), gradient = step(params, image, label, jnp.array([1, 2]))  # both of task 1
    assert set(scalars) == {"loss/dice", "loss/category"}
    found = _flat(gradient)
    per_task = [p for p in found if "/specific/" in p or "/router_task" in p]
    assert len(per_task) == 4 * 5
    for path in per_task:
        assert not np.asarray(found[path][0]).any(), path
        if "stage1" in path:  # of the few tokens of deeper stages none may keep an expert
            assert np.asarray(found[path][1]).any(), path
    assert not np.asarray(found["text/table"][0]).any()
    for part in ("generic/", "router_generic", "fusion", "theta", "category"):
        assert all(
            np.asarray(g).any() for p, g in found.items() if part in p and p[-6:] != "k/bias"
        )


@pytest.mark.slow
def test_a_batch_of_two_tasks_is_the_mean_of_its_samples_in_one_program(trained):
    params, image, label, step, compiled = trained
    before = len(compiled)
    (both, _), _ = step(params, image, label, jnp.array([1, 0]))
    values = [
        step(params, image[np.array([n, n])], label[np.array([n, n])], jnp.array([c, c]))[0][0]
        for n, c in ((0, 1), (1, 0))
    ]
    assert float(both) == pytest.approx(float(sum(values) / 2), rel=1e-4)
    assert len(compiled) == max(before, 1)


@pytest.mark.parametrize(
    "given",
    [
        {"theta": "dynamic_head", "fusion_levels": "multi", "dtype": "bfloat16"},
        slow(
            {"theta_all": True, "query": "token_concat", "in_channels": 1, "attn_out_init": "zero"}
        ),
        {"text": False, "fusion_heads": 3, "anatomy": True},
        {"anatomy": False},
        {"theta": "off"},
    ],
    ids=["dynamic_head", "theta_all", "organ", "text", "off"],
)
def test_what_else_can_be_chosen(given):
    """Shapes, from shapes alone."""
    net, image = _tiny(**given)
    image = image[..., : given.get("in_channels", 2)]

    def run(key):
        params = context.initialise(net, key, image)
        return params, net.apply({"params": params}, image, {"task": TASK})

    params, outputs = jax.eval_shape(run, jax.random.key(0))
    assert outputs["logits"].shape == (2, 64, 32, 1)
    assert ("category" in outputs) == (given.get("theta") != "off")
    assert ("text" in params) == given.get("text", True)
    assert ("anatomy" in params) == given.get("anatomy", True)
    assert ("fusion_x3" in params and "fusion_enc3" in params) == ("fusion_levels" in given)
    if given.get("theta") == "dynamic_head":
        assert params["theta"]["fc2"]["bias"].shape == (153,)
        assert params["fusion_x3"]["q"]["kernel"].shape == (512 + 48, 6)
    if "anatomy" in given and not given["anatomy"]:
        assert params["fusion"]["query"].shape == (2, 1, 96)


@pytest.mark.slow
def test_theta_of_all_tasks_scores_each_by_its_own():
    net, image = _tiny(theta_all=True)
    params = _params(net, image)
    run = jax.jit(lambda p: net.apply({"params": p}, image, {"task": TASK}))
    scores = np.asarray(run(params)["category"])
    single, _ = _tiny()
    plain = jax.jit(lambda p: single.apply({"params": p}, image, {"task": TASK}))(params)
    own = np.asarray(plain["category"])
    for n, task in enumerate(np.asarray(TASK)):
        np.testing.assert_allclose(scores[n, task], own[n, task], rtol=1e-4)
    np.testing.assert_allclose(run(params)["logits"], plain["logits"], rtol=1e-3, atol=1e-4)
    assert np.abs(scores - own).max() > 1e-2  # of the other task another theta


def test_153_numbers_are_three_maps():
    rng = np.random.default_rng(0)
    numbers, features = rng.normal(size=(1, 2, 153)), rng.normal(size=(1, 3, 8))
    found = dynamic_head.dynamic(
        jnp.asarray(features, jnp.float32), jnp.asarray(numbers, jnp.float32)
    )
    for c in range(2):
        w, b = numbers[0, c, :136], numbers[0, c, 136:]
        for v in range(3):
            x = np.maximum(w[:64].reshape(8, 8) @ features[0, v] + b[:8], 0)
            x = np.maximum(w[64:128].reshape(8, 8) @ x + b[8:16], 0)
            assert float(found[0, v, c]) == pytest.approx(w[128:] @ x + b[16], rel=1e-4, abs=1e-4)


def test_what_describes_no_network_is_refused():
    for given, message in (
        ({"classes": 2}, "one class"),
        ({"theta": "kernel"}, "theta"),
        ({"text": False, "anatomy": False, "theta": "kernel48"}, "needs a prompt"),
        ({"text": False, "theta_all": True}, "reads none"),
        ({"fusion_heads": 5}, "do not divide"),
        ({"in_channels": 3}, "channels of the data"),
        ({"query": "tokens"}, "query"),
    ):
        with pytest.raises(ModelError, match=message):
            mast_pro.make(**({"classes": 1, "in_channels": 2, "tasks": 2} | TINY | given))
    net, image = _tiny()
    with pytest.raises(ModelError, match="organ mask 2"):
        jax.eval_shape(lambda k: context.initialise(net, k, image[..., :0]), jax.random.key(0))
