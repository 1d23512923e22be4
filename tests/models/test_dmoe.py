"""Low-rank experts beside an MLP: against loops in numpy, what starts at zero, who is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.losses import balance
from medjax.models import context
from medjax.models.parts import dmoe, sockets
from medjax.models.parts.attention import Mlp, SwinBlock

WIDTH, HIDDEN, TASKS, RANK = 6, 10, 3, 2
GIVEN = {"k1": 2, "k2": 3, "top_k": 2, "rank": RANK}
TASK = jnp.array([2, 0, 1])


def _net(**more):
    return dmoe.socket(TASKS, **(GIVEN | more))(HIDDEN, name=None)


def _tokens(samples=3):
    return jnp.asarray(np.random.default_rng(2).normal(size=(samples, 4, 2, WIDTH)), jnp.float32)


def _shapes(net, x=None, **given):
    x = _tokens() if x is None else x

    def init(key):
        return net.init(key, x, {"task": jnp.zeros(x.shape[0], jnp.int32), "residual": x}, **given)

    return jax.eval_shape(init, jax.random.key(0))["params"]


def _random(shapes, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes)


def _softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def _kept(logits, k):
    """Shares of the k largest logits, the first of equal ones; loops over the definition."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k]
    share = np.zeros(len(logits))
    share[order] = _softmax(np.array([logits[i] for i in order]))
    return share


def _by_hand(params, x, task, *, net):
    """Token by token, expert by expert, in float64."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x, out = np.asarray(x, np.float64), np.zeros(x.shape)
    for sample in range(x.shape[0]):
        t, flat = int(task[sample]), x[sample].reshape(-1, WIDTH)
        own = {n: p["specific"][n] for n in "AaBb"} if net.specific != "none" else None
        if net.specific == "per_task":
            own = {n: a[t] for n, a in own.items()}
        experts = [] if own is None else [{n: a[k] for n, a in own.items()} for k in range(net.k1)]
        experts += [{n: p["generic"][n][k] for n in "AaBb"} for k in range(net.k2)]
        for n, token in enumerate(flat):
            seen = flat.mean(0) if net.router == "sample" else token
            share = _kept(seen @ p["router_task"][t], net.top_k)
            if net.generic_path:
                share[len(experts) - net.k2 :] += _kept(seen @ p["router_generic"], net.top_k)
            y = np.zeros(WIDTH)
            for s, e in zip(share, experts, strict=True):
                hidden = token @ e["A"] + e["a"]
                hidden = np.maximum(hidden, 0) if net.activation == "relu" else hidden
                y += s * (hidden @ e["B"] + e["b"])
            out[sample].reshape(-1, WIDTH)[n] = net.scale * y
    return out


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"specific": "pooled", "router": "sample"},
        {"specific": "none", "activation": "relu", "scale": 0.1},
        {"generic_path": False, "top_k": 3},
    ],
    ids=lambda more: "-".join(map(str, more)) or "default",
)
def test_experts_are_what_the_equations_say(more):
    """All experts computed and weighted equal those kept, one after another; a batch of three
    tasks is three batches.
    """
    net = _net(placement="replace", **more)
    params, x = _random(_shapes(net)), _tokens()
    y, gates = jax.jit(lambda p: net.apply({"params": p}, x, {"task": TASK}))(params)
    np.testing.assert_allclose(y, _by_hand(params, x, TASK, net=net), atol=2e-5)
    share = np.asarray(gates["task_gates"])
    np.testing.assert_allclose(share.sum(-1), 1, atol=1e-6)
    assert ((share > 0).sum(-1) == net.top_k).all()
    assert share.shape == (3, *((1, 1) if net.router == "sample" else (4, 2)), share.shape[-1])
    assert ("generic_gates" in gates) == net.generic_path


def test_the_k_largest_are_kept_and_of_equal_ones_the_first():
    def shares(logits, k):
        return jax.nn.softmax(dmoe.keep_top_k(jnp.array(logits), k))

    np.testing.assert_allclose(
        shares([1.0, 2.0, 0.5, 2.5], 2), [0, 0.377541, 0, 0.622459], atol=1e-6
    )
    np.testing.assert_allclose(shares([0.0, 0.0, 0.0], 2), [0.5, 0.5, 0], atol=0)
    np.testing.assert_allclose(shares([1.0, 3.0, 3.0], 1), [0, 1, 0], atol=0)
    gradient = jax.grad(lambda v: (shares(v, 2) * jnp.array([1.0, 2.0, 3.0, 4.0])).sum())
    found = np.asarray(gradient(jnp.array([1.0, 2.0, 0.5, 2.5])))
    assert found[0] == found[2] == 0 and (found[[1, 3]] != 0).all()


def test_experts_of_absent_tasks_and_dropped_columns_get_no_gradient():
    net = _net()
    params, x, task = _random(_shapes(net)), _tokens(2), jnp.array([2, 0])

    def scalar(p):
        y, gates = net.apply({"params": p}, x, {"task": task})
        return jnp.square(y).sum(), gates

    gradient, gates = jax.jit(jax.grad(scalar, has_aux=True))(params)
    for name, g in (*gradient["specific"].items(), ("router", gradient["router_task"])):
        assert (g[1] == 0).all() and (g[0] != 0).any() and (g[2] != 0).any(), name
    assert all((g != 0).any() for g in jax.tree.leaves(gradient["generic"]))
    share = np.asarray(gates["task_gates"])[0].reshape(-1, 5)
    never = (share == 0).all(0)
    columns = np.asarray(gradient["router_task"])[2]
    assert ((columns == 0).all(0) == never).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fresh_mixture_is_the_plain_mlp_bit_for_bit(dtype):
    net = _net(dtype=jnp.dtype(dtype))
    x = _tokens().astype(dtype)
    params = jax.jit(net.init)(jax.random.key(0), x, {"task": TASK})["params"]
    plain = {name: params[name] for name in ("fc1", "fc2")}
    expected = jax.jit(Mlp(HIDDEN, dtype=jnp.dtype(dtype)).apply)({"params": plain}, x)
    y, _ = jax.jit(net.apply)({"params": params}, x, {"task": TASK})
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(expected, np.float32))
    bound = 1 / np.sqrt(WIDTH)
    first = np.asarray(params["specific"]["A"])
    assert np.abs(first).max() <= bound and first.std() == pytest.approx(bound / 3**0.5, rel=0.3)
    assert all(not params["generic"][n].any() for n in "aBb")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({"placement": "after_mlp"}, {"fc1", "fc2"}),
        ({"placement": "qkv_lora"}, {"fc1", "fc2"}),
        ({"expert_input": "residual"}, {"fc1", "fc2"}),
        ({"placement": "replace"}, set()),
    ],
    ids=["after_mlp", "qkv_lora", "residual", "replace"],
)
def test_other_placements_within_a_block(more, names):
    """Of a block with window attention: fresh ones equal the plain block, or one without an MLP,
    bit for bit (operation by operation: XLA may fuse two programs differently), and every number of
    the experts takes part.
    """
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, WIDTH)), jnp.float32)
    given = {"task": jnp.array([1, 0])}

    def block(mlp):
        return SwinBlock(2, (2, 2), (1, 1), mlp_ratio=2.0, mlp=mlp, offers=True)

    net = block(dmoe.socket(2, **(GIVEN | more)))
    params = net.init(jax.random.key(0), x, given)["params"]
    assert {"fc1", "fc2"} & set(params["mlp"]) == names

    def run(p):
        y, offered = net.apply({"params": p}, x, given)
        return y, offered

    (y, offered), plain = run(params), block(Mlp)
    base = params | {"mlp": {name: params["mlp"][name] for name in sorted(names)}}
    base = base if names else _silent(base, plain, x)
    np.testing.assert_array_equal(y, plain.apply({"params": base}, x, given)[0])
    assert set(offered) == {"task_gates", "generic_gates"}
    full = params | {"mlp": _random(jax.eval_shape(lambda: params["mlp"]))}
    fixed = jnp.asarray(np.random.default_rng(3).normal(size=y.shape), jnp.float32)
    gradient = jax.jit(jax.grad(lambda p: (run(p)[0] * fixed).sum()))(full)["mlp"]
    for part in ("generic", "specific"):
        assert all((g != 0).any() for g in jax.tree.leaves(gradient[part]))
    if more.get("placement") == "qkv_lora":
        assert params["mlp"]["generic"]["B"].shape == (3, RANK, 3 * WIDTH)
    else:
        assert params["mlp"]["generic"]["B"].shape == (3, RANK, WIDTH)
    assert np.abs(np.asarray(jax.jit(run)(full)[0] - y)).max() > 0.1


def _silent(base, plain, x):
    """The plain block's parameters with an MLP of zeros."""
    shapes = jax.eval_shape(lambda k: plain.init(k, x), jax.random.key(0))["params"]["mlp"]
    return base | {"mlp": jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)}


@pytest.mark.slow
def test_noise_and_dropout_act_in_training_only():
    net = _net(router_noise=True, expert_dropout=0.5)
    params, x = _random(_shapes(net)), _tokens()
    assert set(params) >= {"noise_generic", "noise_task"}
    assert params["noise_task"].shape == params["router_task"].shape == (TASKS, WIDTH, 5)

    @jax.jit
    def run(key):
        rngs = {"dropout": key}
        return net.apply({"params": params}, x, {"task": TASK}, train=True, rngs=rngs)[0]

    quiet = net.apply({"params": params}, x, {"task": TASK})[0]
    a, b = run(jax.random.key(0)), run(jax.random.key(1))
    assert np.abs(np.asarray(a - b)).max() > 0.1 and np.abs(np.asarray(a - quiet)).max() > 0.1
    assert net.stochastic and not _net().stochastic


def test_the_balance_loss_reads_both_groups_of_gates():
    gates = {
        "task_gates": {"block": jnp.array([[[1.0, 0.0], [1.0, 0.0]]])},
        "generic_gates": {"block": jnp.array([[[0.5, 0.5], [0.5, 0.5]]])},
    }
    loss = balance.make(of=("task_gates", "generic_gates"))
    assert float(loss(gates, {})) == pytest.approx(0.5)  # the mean of 1 and 0
    assert float(balance.make(of=("generic_gates",))(gates, {})) == pytest.approx(0, abs=1e-6)


def test_words_of_a_config_and_their_refusal():
    made = sockets.make("mlp", {"kind": "dynamic_low_rank", "rank": 4}, {"tasks": 5})
    assert made.reads == {"task": context.TASK} and not made.swin_only
    net = made(8)
    assert (net.tasks, net.rank, net.k1, net.k2, net.top_k) == (5, 4, 2, 2, 2)
    for words, message in (
        ({"placement": "before"}, "placement"),
        ({"specific": "shared"}, "specific"),
        ({"top_k": 5}, "top_k from 1"),
        ({"top_k": 3, "specific": "none"}, "top_k from 1"),
        ({"rank": 0}, "rank"),
        ({"expert_input": "residual", "placement": "after_mlp"}, "what the experts read"),
        ({"expert_dropout": 1.0}, "share"),
    ):
        with pytest.raises(ModelError, match=message):
            sockets.make("mlp", {"kind": "dynamic_low_rank"} | words, {"tasks": 2})
    inside = sockets.make("mlp", {"kind": "dynamic_low_rank", "placement": "qkv_lora"}, {})
    with pytest.raises(ModelError, match="window attention"):
        sockets.in_transformer(sockets.make("bottleneck", "vit", {}), inside, "a U-Net")
