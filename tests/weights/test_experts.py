"""Experts under another order, number or origin: what is copied where, and which gate columns leave
the function as it was.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import TrainError, UsageError
from medjax.models.parts import moe
from medjax.weights import experts

WIDTH, HIDDEN = 4, 6


def _layer(count, seed=0):
    shapes = jax.eval_shape(
        moe.MixtureOfExperts(HIDDEN, count, "gate").init,
        jax.random.key(0),
        jnp.zeros((1, 2, WIDTH)),
    )["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    return {"stage0": {"block0": {"mlp": params}}, "norm": np.ones(3)}


def _run(count, tree, x):
    net = moe.MixtureOfExperts(HIDDEN, count, "gate")
    return jax.jit(lambda p, x: net.apply({"params": p}, x))(tree["stage0"]["block0"]["mlp"], x)


def test_experts_are_found_by_name_and_the_gate_follows():
    old, new = _layer(3), _layer(3, seed=1)
    begin = experts.origins(("MR", "CT", "PET"), ("CT", "MR", "US"), {"PET": ""})
    assert begin == (1, 0, None)
    out = experts.flat(experts.aligned(old, new, begin))
    a, b = experts.flat(old), experts.flat(new)
    for leaf in ("w1", "b1", "w2", "b2"):
        name = f"stage0/block0/mlp/{leaf}"
        np.testing.assert_array_equal(out[name], np.stack([a[name][1], a[name][0], b[name][2]]))
    for leaf in ("kernel", "bias"):
        name = f"stage0/block0/mlp/gate/{leaf}"
        np.testing.assert_array_equal(
            out[name], np.stack([a[name][..., 1], a[name][..., 0], b[name][..., 2]], -1)
        )
    np.testing.assert_array_equal(out["norm"], old["norm"])
    assert experts.count(old) == 3 and experts.count({"norm": np.ones(2)}) == 0


def test_fresh_experts_stay_where_they_are_spread_over_devices():
    mesh = jax.make_mesh((2,), ("fsdp",), devices=jax.devices()[:2])
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    old, new = experts.flat(_layer(2)), experts.flat(_layer(3, seed=1))
    fresh = {
        name: jax.device_put(leaf, spread if name.endswith(("w1", "w2")) else whole)
        for name, leaf in new.items()
    }
    trees = [experts.nested(leaves) for leaves in (old, new, fresh)]
    expected, found = (
        experts.flat(experts.aligned(trees[0], tree, (1, None, 0), "closed")) for tree in trees[1:]
    )
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf)
    for leaf in ("w1", "b2", "gate/bias"):
        name = f"stage0/block0/mlp/{leaf}"
        assert found[name].sharding == fresh[name].sharding
    other = _layer(1, seed=2)
    taken = experts.flat(experts.from_other(experts.nested(found), other, 1, 0))
    name = "stage0/block0/mlp/w1"
    np.testing.assert_array_equal(taken[name][1], experts.flat(other)[name][0])
    np.testing.assert_array_equal(taken[name][0], expected[name][0])
    assert taken[name].sharding == spread


def test_the_plain_mlps_of_a_vit_become_experts():
    dense = {"fc1": {"kernel": np.ones((4, 6)), "bias": np.zeros(6)}}
    dense |= {"fc2": {"kernel": np.full((6, 4), 2.0), "bias": np.ones(4)}}
    old = {"vit": {"layer0": dense | {"q": {"kernel": np.ones(3)}}}}
    shapes = {"w1": (4, 6), "b1": (6,), "w2": (6, 4), "b2": (4,)}
    experts_of = {name: np.zeros((3, *shape)) for name, shape in shapes.items()}
    found = experts.flat(experts.upcycled(old, {"vit": {"layer0": {"mlp": experts_of}}}))
    assert {k: v.shape for k, v in found.items()} == {
        "vit/layer0/q/kernel": (3,),
        **{f"vit/layer0/mlp/{k}": v.shape for k, v in experts_of.items()},
    }
    assert (found["vit/layer0/mlp/w2"] == 2).all() and (found["vit/layer0/mlp/b2"] == 1).all()


@pytest.mark.parametrize(
    ("begin", "gate", "atol"),
    [
        ((0, 1, 1), "split", 1e-6),
        ((0, 1, 0), "split", 1e-6),
        ((0, 1, 1), "apart", 3e-6),
        ((0, 1, None), "closed", 1e-4),
    ],
)
def test_a_split_or_closed_column_leaves_the_function_as_it_was(begin, gate, atol):
    old, new = _layer(2), _layer(3, seed=1)
    x = np.random.default_rng(3).normal(size=(2, 5, WIDTH)).astype(np.float32)
    before = _run(2, old, x)
    np.testing.assert_allclose(
        _run(3, experts.aligned(old, new, begin, gate), x), before, atol=atol
    )
    assert (
        np.abs(_run(3, experts.aligned(old, new, (0, 1, None), "fresh"), x) - before).max()
        > 100 * atol
    )  # so the rule matters


@pytest.mark.parametrize(("gate", "equal"), [("split", True), ("apart", False)])
def test_copies_that_are_trained_together_must_be_moved_apart(gate, equal):
    x = jax.random.normal(jax.random.key(3), (2, 5, WIDTH))
    tree = experts.aligned(_layer(2), _layer(3, seed=1), (0, 1, 1), gate)["stage0"]["block0"]["mlp"]
    net = moe.MixtureOfExperts(HIDDEN, 3, "gate")
    slopes = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(net.apply({"params": p}, x)))))(tree)
    one, other = slopes["w1"][1], slopes["w1"][2]
    assert (float(jnp.abs(one - other).max()) < 1e-5) == equal
    one, other = slopes["gate"]["kernel"][:, 1], slopes["gate"]["kernel"][:, 2]
    assert (float(jnp.abs(one - other).max()) < 1e-5) == equal


def test_a_plain_mlp_becomes_every_expert_and_a_pretrained_one_takes_its_place():
    new = _layer(2, seed=1)
    x = np.random.default_rng(3).normal(size=(2, 5, WIDTH)).astype(np.float32)
    dense = {
        "fc1": {"kernel": np.ones((WIDTH, HIDDEN)), "bias": np.arange(HIDDEN)},
        "fc2": {"kernel": np.ones((HIDDEN, WIDTH)), "bias": np.ones(WIDTH)},
    }
    source = {"stage0": {"block0": {"mlp": dense}}}
    out = experts.flat(experts.upcycled(source, new))
    assert set(out) == {f"stage0/block0/mlp/{leaf}" for leaf in ("w1", "b1", "w2", "b2")}
    np.testing.assert_array_equal(out["stage0/block0/mlp/b1"], np.stack([np.arange(HIDDEN)] * 2))
    placed = experts.flat(experts.from_other(new, source, 1, 0))
    np.testing.assert_array_equal(placed["stage0/block0/mlp/w1"][1], np.ones((WIDTH, HIDDEN)))
    np.testing.assert_array_equal(
        placed["stage0/block0/mlp/w1"][0], new["stage0"]["block0"]["mlp"]["w1"][0]
    )
    with pytest.raises(TrainError, match="no MLP"):
        experts.from_other(new, {"norm": np.ones(3)}, 0, 0)
    assert _run(2, experts.aligned(new, new, (0, 1)), x).shape == x.shape


def test_the_encoder_can_be_offered_to_the_decoder():
    source = {
        "encoder": {"stage2": {"block0": {"k": np.ones(2)}}},
        "up1": {"block0": {"k": np.zeros(2)}},
    }
    out = experts.flat(experts.copied(source, ((r"^encoder/stage2/block", "up1/block"),)))
    assert (
        set(out) == {"encoder/stage2/block0/k", "up1/block0/k"} and (out["up1/block0/k"] == 1).all()
    )
    with pytest.raises(UsageError, match="nothing matches"):
        experts.copied(source, (("^encodr", "up1"),))


@pytest.mark.parametrize(
    ("wanted", "known", "same", "message"),
    [
        (("CT", "MR"), ("MR",), {}, "no expert for"),
        (("CT",), ("CT",), {"PET": "CT"}, "PET"),
        (("CT",), ("CT",), {"CT": "MRI"}, "MRI"),
    ],
)
def test_experts_that_nothing_accounts_for_are_errors(wanted, known, same, message):
    with pytest.raises(UsageError, match=message):
        experts.origins(wanted, known, same)


def test_a_fresh_expert_has_no_column_to_share():
    old, new = _layer(2), _layer(3, seed=1)
    with pytest.raises(UsageError, match="no gate column"):
        experts.aligned(old, new, (0, 1, None), "split")
    with pytest.raises(UsageError, match="split"):
        experts.aligned(old, new, (0, 1, None), "splt")
