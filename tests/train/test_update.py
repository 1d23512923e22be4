"""One step by hand: gradient, rate, frozen leaves, the key of a step, what a process requests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.train import optim, sharding, update
from medjax.train import state as states

LR, SEED = 0.1, 3


class Task:
    """(w x + frozen)^2 summed over the batch, and a number drawn from the key."""

    def loss(self, params, batch, key):
        found = params["w"] * batch["x"] + params["frozen"]
        return (found**2).sum(), {"drawn": jax.random.uniform(key), "largest": found.max()}

    def validate(self, params, batch):
        return {"sum": (params["w"] * batch["x"]).sum()[None]}


def init(key):
    return {"w": jnp.asarray(2.0), "frozen": jnp.asarray(-0.0)}


@pytest.fixture(scope="module")
def made():
    rules = {"trainable": (("frozen", False), (".*", True))}
    optimizer = optim.make(
        lr=LR, steps=10, momentum=0.0, nesterov=False, weight_decay=0.0, clip_norm=1.0, **rules
    )
    mesh = sharding.make_mesh(1, jax.devices()[:2])
    target = states.abstract(init, optimizer, mesh, sharding.REPLICATE)
    functions = update.make(Task(), optimizer, SEED, mesh, target)
    return functions, optimizer, mesh, target


def fresh(made):
    _, optimizer, _, target = made
    return states.born(init, optimizer, target, 0)


def batch(made, x=(1.0, 3.0), request=(0, 0)):
    mesh = made[2]
    return [
        sharding.put({"v": np.asarray(v)}, mesh)["v"] for v in (np.float32(x), np.int32(request))
    ]


def test_a_step_is_the_formula(made):
    (step, _), *_ = made
    x, request = batch(made, request=(0, 2))
    state, scalars = step(fresh(made), {"x": x}, request)
    # d/dw (2 x)^2 = 4 x^2 = 40 in all, clipped to 1
    assert float(scalars["loss"]) == 40 and float(scalars["grad_norm"]) == 40
    assert float(state["params"]["w"]) == pytest.approx(2 - LR)
    assert float(scalars["lr"]) == pytest.approx(LR) and int(scalars["request"]) == 2
    assert int(state["step"]) == 1 and float(scalars["largest"]) == 6


def test_frozen_leaves_stay_bit_by_bit(made):
    (step, _), *_ = made
    x, request = batch(made)
    state, _ = step(fresh(made), {"x": x}, request)
    assert np.signbit(state["frozen"]["frozen"])  # -0.0, not 0.0


def test_every_step_has_its_own_key_and_rate(made):
    (step, _), optimizer, *_ = made
    x, request = batch(made)
    state, drawn, rates = fresh(made), [], []
    for _ in range(3):
        state, scalars = step(state, {"x": x}, request)
        drawn.append(float(scalars["drawn"]))
        rates.append(float(scalars["lr"]))
    keys = [jax.random.fold_in(jax.random.key(SEED), k) for k in range(3)]
    assert drawn == [float(jax.random.uniform(k)) for k in keys]
    assert rates == pytest.approx([float(optimizer.schedule(k)) for k in range(3)], rel=1e-6)
    assert rates[0] > rates[1] > rates[2]


def test_the_old_buffers_are_given_away(made):
    (step, _), *_ = made
    x, request = batch(made)
    state = fresh(made)
    new, _ = step(state, {"x": x}, request)
    assert state["params"]["w"].is_deleted()
    assert new["frozen"]["frozen"] is state["frozen"]["frozen"]


def test_validation_sums_over_the_batch_and_hears_requests(made):
    (_, validate), *_ = made
    x, request = batch(made, x=(1.0, 2.5), request=(1, 0))
    found = validate(init(None), {"x": x}, request)
    assert float(found["sum"][0]) == 7 and int(found["request"]) == 1


def test_the_average_follows_the_parameters_and_validation_may_use_it():
    """r average + (1 - r) p with r = min(decay, (1 + t) / (10 + t)) after update t."""
    mesh = sharding.make_mesh(1, jax.devices()[:2])
    optimizer = optim.make(
        lr=LR,
        steps=10,
        momentum=0.0,
        clip_norm=1.0,
        trainable=(("frozen", False), (".*", True)),
        ema=0.2,
    )
    target = states.abstract(init, optimizer, mesh, sharding.REPLICATE)
    step, validate = update.make(Task(), optimizer, SEED, mesh, target)
    state, expected = states.born(init, optimizer, target, 0), 2.0
    x = sharding.put({"v": np.float32((1.0, 3.0))}, mesh)["v"]
    request = sharding.put({"v": np.int32((0, 0))}, mesh)["v"]
    for t, r in enumerate((1 / 10, 2 / 11, 0.2, 0.2)):
        state, _ = step(state, {"x": x}, request)
        expected = r * expected + (1 - r) * float(state["params"]["w"])
        assert float(state["ema"]["w"]) == pytest.approx(expected, rel=1e-6), t
    assert abs(expected - float(state["params"]["w"])) > 1e-3
    found = validate(states.weights(state), {"x": x}, request)
    assert float(found["sum"][0]) == pytest.approx(4 * expected)
