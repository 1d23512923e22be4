"""The state: trained and frozen leaves apart, what is differentiated, the moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import TrainError
from medjax.train import optim, phases, rules, sharding, update
from medjax.train import state as states
from tests.train import test_toy as toy

HEAD = (("^head/", True), (".*", False))
MESH = sharding.make_mesh(devices=jax.devices()[:1])


def adamw(**changes):
    return optim.make(**dict(name="adamw", lr=0.01, steps=4) | changes)


def count_of(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "frozen", [(), ("a",), ("a/x",), ("b/c/y", "d"), ("a", "b"), ("a", "b", "d")]
)
def test_join_is_the_inverse_of_split(frozen):
    tree = {"a": {"x": 1, "z": 2}, "b": {"c": {"y": 3}}, "d": 4}
    assigned = [*((f"^{name}(/|$)", False) for name in frozen), (".*", True)]
    trained = rules.assign(tree, assigned)
    params, fixed = states.split(tree, trained)
    off = {
        name for name, on in zip(rules.paths(tree), jax.tree.leaves(trained), strict=True) if not on
    }
    assert set(rules.paths(fixed)) == off
    assert set(rules.paths(params)) == set(rules.paths(tree)) - off
    assert states.join(params, fixed) == tree
    assert (params is tree and fixed == {}) or frozen, "nothing is copied if all are trained"


def test_a_list_is_trained_or_frozen_as_a_whole():
    tree = {"a": [1, 2], "b": (3,)}
    params, fixed = states.split(tree, {"a": [True, True], "b": (False,)})
    assert (params, fixed) == ({"a": [1, 2]}, {"b": (3,)})
    with pytest.raises(TrainError, match="a list of parameters holds trained and frozen leaves"):
        states.split(tree, {"a": [True, False], "b": (True,)})


def test_gradients_and_optimizer_are_as_large_as_what_is_trained():
    sizes = {}
    for name, optimizer in (
        ("all", adamw()),
        ("head", adamw(trainable=HEAD)),
        ("average", adamw(trainable=HEAD, ema=0.9)),
    ):
        shapes = jax.eval_shape(states.maker(toy.init, optimizer), jax.random.key(0))
        sizes[name] = {part: count_of(tree) for part, tree in shapes.items()}
    encoder, head = 27 * 16 + 16, 27 * 16 * 3 + 3
    counts = {"step": 1, "params": head, "frozen": encoder, "opt": 2 * head + 2}
    assert sizes["all"] == counts | {
        "params": encoder + head,
        "frozen": 0,
        "opt": 2 * (encoder + head) + 2,
    }
    assert sizes["head"] == counts and sizes["average"] == counts | {"ema": head}


def primitives(jaxpr, name):
    """How often a primitive occurs, in inner programs as well."""
    found = sum(equation.primitive.name == name for equation in jaxpr.eqns)
    inner = (v for equation in jaxpr.eqns for v in equation.params.values())
    return found + sum(
        primitives(getattr(v, "jaxpr", v), name)
        for v in inner
        if hasattr(getattr(v, "jaxpr", v), "eqns")
    )


def traced(optimizer):
    """The program of an update of the toy, before the compiler removes anything."""
    target = states.abstract(toy.init, optimizer, MESH, sharding.REPLICATE)
    step, _ = update.make(toy.task(augment=None, patch=toy.CUT), optimizer, 0, MESH, target)
    where = sharding.split(MESH)
    batch = {
        name: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=where)
        for name, v in toy.host_batch(0).items()
    }
    return step.trace(target, batch, jax.ShapeDtypeStruct((1,), jnp.int32, sharding=where))


def test_no_gradient_of_a_frozen_leaf_is_computed():
    """Forward two convolutions; backward one per trained kernel, and one through the head if the
    encoder is trained.
    """
    found = {
        name: primitives(traced(optimizer).jaxpr.jaxpr, "conv_general_dilated")
        for name, optimizer in (
            ("all", adamw()),
            ("head", adamw(trainable=HEAD)),
            ("encoder", adamw(trainable=(("^head/", False), (".*", True)))),
        )
    }
    assert found == {"all": 5, "head": 3, "encoder": 4}


def test_what_one_phase_trains_is_differentiated():
    given = (
        dict(steps=2, trainable=HEAD),
        dict(steps=2, trainable=(("bias$", True), (".*", False))),
    )
    made = phases.make(given, dict(name="adamw"), 4)
    shapes = jax.eval_shape(states.maker(toy.init, made), jax.random.key(0))
    assert rules.paths(shapes["frozen"]) == ["encoder/kernel"]
    assert rules.paths(shapes["params"]) == ["encoder/bias", "head/bias", "head/kernel"]


def test_a_rule_for_the_sharding_of_frozen_leaves_is_used():
    assigned = (("^encoder/", "fsdp"), (".*", "replicate"))
    target = states.abstract(
        lambda key: {"encoder": {"k": jnp.zeros((64, 64))}, "head": {"k": jnp.zeros((64, 64))}},
        adamw(trainable=HEAD, ema=0.5),
        sharding.make_mesh(8),
        assigned,
    )
    spread = [
        rules.path_name(keys)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(target)
        if not leaf.sharding.is_fully_replicated
    ]
    assert spread == ["frozen/encoder/k"]


def test_borrowed_parameters_reach_all_parts():
    optimizer = adamw(trainable=HEAD, ema=0.9)
    target = states.abstract(toy.init, optimizer, MESH, sharding.REPLICATE)
    state = states.born(toy.init, optimizer, target, 0)
    begun = jax.tree.map(lambda p: p + 1, states.weights(state, average=False))
    new = states.with_params(state, begun)
    for whole in (states.weights(new), states.weights(new, average=False)):
        jax.tree.map(np.testing.assert_array_equal, whole, begun)
    pairs = zip(jax.tree.leaves(new["ema"]), jax.tree.leaves(new["params"]), strict=True)
    assert all(a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer() for a, b in pairs), (
        "both are donated"
    )
    assert jax.tree.structure(new) == jax.tree.structure(target)


def test_the_average_of_half_precision_is_kept_in_float32():
    params = {"a": jnp.ones(3, jnp.bfloat16)}
    state = {"params": params, "frozen": {}, "ema": states.average_of(params)}
    assert state["ema"]["a"].dtype == jnp.float32
    assert states.weights(state)["a"].dtype == jnp.bfloat16
