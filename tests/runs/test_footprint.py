"""Memory of a step from shapes: every part counted by hand, nothing allocated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.multitalent import get_config
from medjax.registry import plain
from medjax.runs import build, footprint
from medjax.runs import open as corpora
from medjax.train import state as states
from tests.support.configs import typed

PATCH, BATCH = (8, 16, 8), 3


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    c = get_config("demo").unlock()
    c.model.update(dict(base_features=4, max_features=8, max_stages=2))
    c.train.patch, c.train.batch = PATCH, BATCH
    c.augment.on = False
    c.optim.name = "sgd"
    fields = plain(c)
    space = corpora.open_data(typed(fields).data, tmp_path_factory.mktemp("x"), files=False).space
    return fields, build.make_network(typed(fields), space, (3.0, 2.0, 2.0)), space


def test_a_batch_as_the_sampler_cuts_it(small):
    fields, net, _ = small
    batch = footprint.abstract_batch(typed(fields), net)
    assert batch["image"].shape == (BATCH, *PATCH, net.channels)
    assert batch["label"].shape == (BATCH, *PATCH) and batch["spacing_mm"].shape == (BATCH, 3)
    enlarged = footprint.abstract_batch(typed(fields | {"augment": {"on": True}}), net)
    grown = np.array(enlarged["label"].shape[1:])
    assert (grown >= PATCH).all() and (grown > PATCH).any()  # room for rotations


def test_every_part_by_hand(small):
    fields, net, space = small
    found = footprint.memory(typed(fields), net, space)
    count = sum(leaf.size for leaf in jax.tree.leaves(net.abstract()))
    assert found["parameters"] == found["gradients"] == 4 * count
    assert 4 * count <= found["optimizer"] < 4 * count + 100  # one momentum, and a step
    voxels = BATCH * int(np.prod(PATCH))
    assert found["batch"] == 2 * voxels * (net.channels + 1) + BATCH * 4 * (2 * net.channels + 6)
    assert found["kept for backward"] > 4 * voxels * 4  # at least one layer of 4 float32 features


def test_the_backward_pass_grows_with_the_batch_alone(small):
    fields, net, space = small
    double = fields | {"train": fields["train"] | {"batch": 2 * BATCH}}
    once, twice = (footprint.memory(typed(f), net, space) for f in (fields, double))
    for part in ("parameters", "optimizer", "gradients"):
        assert once[part] == twice[part]
    assert twice["batch"] == 2 * once["batch"]
    assert twice["kept for backward"] == pytest.approx(2 * once["kept for backward"], rel=0.05)


def test_what_the_step_computes_is_kept_and_what_it_is_given_is_not(small):
    """d/dw sum(w^2 v) reads w and v: inputs in float32, copies that the step makes in bfloat16."""
    fields, net, _ = small

    class Task:
        def __init__(self, dtype):
            self.dtype = dtype

        def loss(self, params, batch, key):
            w, v = (params[name].astype(self.dtype) for name in "wv")
            return jnp.sum(w * w * v).astype(jnp.float32), {}

    params = {name: jnp.ones(1000) for name in "wv"}
    batch, key = footprint.abstract_batch(typed(fields), net), jax.random.key(0)

    def kept(dtype, *trainable):
        optim = fields["optim"] | {"trainable": (*trainable, (".*", True))}
        optimizer = build.make_optimizer(typed(fields | {"optim": optim}))
        state = jax.eval_shape(states.maker(lambda key: params, optimizer), key)
        return footprint._kept(Task(dtype), state, batch, key)

    assert kept(jnp.float32) == 1000 * 4, "w^2 alone"
    assert kept(jnp.bfloat16) == 1000 * 2 * 3, "w, v and w^2"
    assert kept(jnp.bfloat16, ("w", False)) == 1000 * 2, "w^2, for the gradient of v"


def test_tables_are_aligned():
    rows = [("part", "bytes", "why"), ("parameters", "4", "trained"), ("x", "12345", "")]
    assert footprint.table(rows).split("\n") == [
        "part        bytes  why",
        "parameters  4      trained",
        "x           12345  ",
    ]


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0.0 MiB"), (1536 * 1024, "1.5 MiB"), (2**30, "1.00 GiB"), (5 * 2**29, "2.50 GiB")],
)
def test_bytes_for_people(n, text):
    assert footprint.size(n) == text


def test_frozen_parameters_have_no_gradient_and_no_moments(small):
    fields, net, space = small
    part = {"trainable": (("^head", True), (".*", False)), "ema": 0.9, "name": "adamw"}
    found = footprint.memory(typed(fields | {"optim": fields["optim"] | part}), net, space)
    heads = {name: tree for name, tree in net.abstract().items() if name.startswith("head")}
    trained, whole = (build.bytes_of(tree) for tree in (heads, net.abstract()))
    assert 0 < trained < whole / 4
    assert found["parameters"] == whole and found["gradients"] == trained
    assert 3 * trained <= found["optimizer"] < 3 * trained + 100  # two moments and the average
