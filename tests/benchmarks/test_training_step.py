"""The step that benchmarks time is the training step of medjax: it learns, and it equals an update
that is written out here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from benchmarks import m4oe_step, network_steps, training_step
from medjax.losses import cross_entropy, dice
from medjax.losses.parts import deep
from medjax.models import unet

PATCH = (8, 8, 8)
SHAPE = {"features": (2, 3), "strides": ((1,) * 3, (2,) * 3), "kernels": ((3,) * 3,) * 2}


@pytest.mark.slow
def test_a_step_is_the_gradient_step_it_says():
    net = unet.make(2, **SHAPE)
    one = training_step.supervised(net, PATCH, 2, 2)
    before = jax.tree.map(np.asarray, one.state["params"])
    batch = one.batch

    def loss(params):
        losses = [("cross_entropy", 1.0, cross_entropy.make()), ("dice", 1.0, dice.make())]
        return deep.total(losses, net.apply({"params": params}, batch["image"], None, True), batch)[
            0
        ]

    value, gradient = jax.value_and_grad(loss)(jax.tree.map(jnp.asarray, before))
    scale = jnp.minimum(1.0, training_step.CLIP / optax.global_norm(gradient))
    # the first step of SGD: momentum holds nothing yet, Nesterov adds 0.99 of the same gradient
    expected = jax.tree.map(lambda p, g: p - 0.01 * 1.99 * (scale * g + 3e-5 * p), before, gradient)
    assert one.step() == pytest.approx(float(value), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        one.state["params"],
        expected,
    )
    assert one.parameters == sum(v.size for v in jax.tree.leaves(before))


def test_its_task_validates_by_the_same_losses():
    """Without what is random in training: here dropout, which changes the loss."""

    class Dropping(nn.Module):
        @nn.compact
        def __call__(self, image, context=None, train=False):
            x = nn.Dropout(0.5, deterministic=not train)(nn.Conv(2, (1, 1, 1))(image))
            return {"logits": x}

    net, losses = Dropping(), [("cross_entropy", 2.0, cross_entropy.make())]
    batch = {
        "image": jnp.linspace(-1, 1, 2 * 64).reshape(2, 4, 4, 4, 1),
        "label": jnp.arange(2 * 64).reshape(2, 4, 4, 4) % 3,
        "table": jnp.eye(3, 2, -1, dtype=bool)[None].repeat(2, 0),
        "known": jnp.ones((2, 2), bool),
    }
    params = net.init(jax.random.key(0), batch["image"])["params"]
    task = training_step.Task(net, losses, ())
    found = task.validate(params, batch)["loss"]
    expected = 2 * cross_entropy.make()(net.apply({"params": params}, batch["image"]), batch)
    assert found.shape == (1,) and float(found[0]) == pytest.approx(float(expected), rel=1e-6)
    assert float(task.loss(params, batch, jax.random.key(1))[0]) != pytest.approx(
        float(expected), rel=1e-3
    )


@pytest.mark.slow
def test_steps_lower_the_loss_after_compilation():
    one = training_step.supervised(unet.make(2, **SHAPE), PATCH, 2, 2)
    one.compile()
    first = one.loss
    assert [one.step() for _ in range(20)][-1] < first
    assert one.memory()["planned"] is None or one.memory()["planned"] >= 0


def test_filled_parameters_are_finite_scaled_and_differ():
    shapes = {"k": jax.ShapeDtypeStruct((3, 3, 64, 128), jnp.float32)}
    found = np.asarray(training_step.filled(shapes)(jax.random.key(0))["k"])
    assert np.isfinite(found).all() and len(np.unique(found)) > 1000
    assert found.std() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", ["unet_small", "swin_small", "tsfm_tiny"])
def test_networks_are_counted(name):
    entry = network_steps.NETWORKS[name]
    net = network_steps.build(entry, "float32")
    image = jax.ShapeDtypeStruct((1, *entry["patch"], 1), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), image)["params"]
    forward = jax.make_jaxpr(lambda p, x: net.apply({"params": p}, x)["logits"])(shapes, image)
    assert network_steps.multiply_adds(forward.jaxpr) > 10**6


@pytest.mark.slow
def test_m4oes_step_runs_and_lowers_the_loss():
    given = m4oe_step.arguments().parse_args("--batch 3 --side 64 --window 2 --width 24".split())
    one = m4oe_step.ours(given, "soft")
    first = one.step()
    assert min(one.step() for _ in range(8)) < first


@pytest.mark.parity
def test_a_peer_steps_beside_ours():
    pytest.importorskip("torch")
    entry = network_steps.NETWORKS["unet_small"] | {"patch": (16, 16, 16), "batch": 1}
    sides = {name: make(entry, "float32") for name, make in network_steps.SIDES.items()}
    assert sides["medjax"].parameters == sides["torch"].parameters
    for one in sides.values():
        one.compile()
        first = one.loss
        assert min(one.step() for _ in range(10)) < first
