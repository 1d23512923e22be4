"""Checkpoints: what is kept, what a kill or a bad disk leaves behind, strict loading.

Placement and the record beside them.
"""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from medjax.errors import TrainError, UsageError
from medjax.train import checkpoint, log, optim, sharding
from medjax.train import state as states
from medjax.train.checkpoint import Checkpoints


def init(key):
    """A few leaves, one of them large enough to be split."""
    return {
        "encoder": {"0": {"kernel": jax.random.normal(key, (16, 64, 8)), "bias": jnp.zeros(8)}},
        "head": {"kernel": jnp.ones((8, 3))},
    }


OPTIMIZER = optim.make(steps=10)


def fresh(mesh=None, rules=sharding.REPLICATE):
    """(target, state) of the toy parameters."""
    target = states.abstract(
        init, OPTIMIZER, mesh or sharding.make_mesh(devices=jax.devices()[:1]), rules
    )
    return target, states.born(init, OPTIMIZER, target, 0)


def at(state, step):
    """The state pretending to be at another step, with other numbers."""
    return {
        **state,
        "step": jnp.asarray(step, jnp.int32),
        "params": jax.tree.map(lambda p: p + step, state["params"]),
    }


def test_newest_and_best_are_kept_and_found(tmp_path):
    target, state = fresh()
    with Checkpoints(tmp_path / "run" / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.restore(target) is None
        for step, metric in ((1, None), (2, 0.5), (3, 0.2), (4, None), (5, None)):
            checkpoints.save(step, at(state, step), {"recipe": {"a": [1, 2]}}, metric)
    folder = tmp_path / "run" / "checkpoints"
    assert (
        checkpoint.steps(folder),
        checkpoint.latest_step(folder),
        checkpoint.best_step(folder),
    ) == ([2, 4, 5], 5, 2)
    facts = checkpoint.read_facts(folder, 2)
    assert (facts["step"], facts["metric"], facts["recipe"]) == (2, 0.5, {"a": [1, 2]})
    assert facts["arrays"]["params"]["encoder/0/kernel"] == [16, 64, 8]
    for which, step in (("last", 5), ("best", 2), ("4", 4)):
        assert checkpoint.find(tmp_path / "run", which) == folder / str(step)
        kernel = checkpoint.load_params(tmp_path / "run", target["params"], which=which)["head"][
            "kernel"
        ]
        np.testing.assert_array_equal(kernel, 1.0 + step)
    with pytest.raises(TrainError, match=r"no checkpoint '3'.*\[2, 4, 5\]"):
        checkpoint.find(tmp_path / "run", "3")
    with pytest.raises(TrainError, match="no complete checkpoint"):
        checkpoint.find(tmp_path / "nothing")


def test_a_write_is_not_disturbed_by_the_next_steps(tmp_path):
    """The buffers that are being written are donated to the next update at once."""
    target, state = fresh()
    state["params"]["head"]["kernel"] = jnp.zeros((2000, 1000))
    advance = jax.jit(
        lambda s: {**s, "params": jax.tree.map(lambda p: p + 1, s["params"])}, donate_argnums=0
    )
    state = advance(state)
    progress = {"sums": {"loss": 1.0}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {"progress": progress})
        progress["sums"]["loss"] = 2.0
        for _ in range(5):
            state = advance(state)
        jax.block_until_ready(state)
    assert checkpoint.read_facts(tmp_path, 1)["progress"] == {"sums": {"loss": 1.0}}
    params = {
        **target["params"],
        "head": {"kernel": jax.ShapeDtypeStruct((2000, 1000), jnp.float32)},
    }
    loaded = checkpoint.load_params(tmp_path, params)
    assert (np.asarray(loaded["head"]["kernel"]) == 1).all()


def test_a_killed_write_leaves_the_previous_checkpoint(tmp_path):
    target, state = fresh()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, at(state, 3), {})
    half = tmp_path / "6.orbax-checkpoint-tmp" / "params.orbax-checkpoint-tmp"
    half.mkdir(parents=True)
    (half / "manifest.ocdbt").write_bytes(b"half")
    (tmp_path / "7").mkdir()  # a folder somebody began to copy
    assert checkpoint.steps(tmp_path) == [3]
    with Checkpoints(tmp_path) as checkpoints:
        restored, facts = checkpoints.restore(target)
        assert facts["step"] == int(restored["step"]) == 3
        checkpoints.save(6, at(state, 6), {})  # the very step whose write was killed
    assert checkpoint.steps(tmp_path) == [3, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "6", "7.unreadable"]


@pytest.mark.parametrize("damage", ["array", "facts", "manifest"])
def test_an_unreadable_checkpoint_is_set_aside(tmp_path, damage):
    target, state = fresh()
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (3, 6):
            checkpoints.save(step, at(state, step), {})
    newest = tmp_path / "6"
    if damage == "array":
        for path in (newest / "params").rglob("d/*"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "facts":
        (newest / checkpoint.FACTS).write_text('{"custom_metadata": {"st')
    else:
        for path in (newest / "train").rglob("manifest.ocdbt"):
            path.unlink()
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        with pytest.warns(RuntimeWarning, match="set aside"):
            restored, _ = checkpoints.restore(target)
        assert int(restored["step"]) == 3
        np.testing.assert_array_equal(restored["params"]["head"]["kernel"], 4.0)
        checkpoints.save(6, at(state, 6), {})
    assert checkpoint.steps(tmp_path) == [3, 6] and (tmp_path / "6.unreadable").is_dir()


def test_nothing_readable_is_an_error_not_a_new_start(tmp_path):
    target, state = fresh()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, {})
    (tmp_path / "3" / checkpoint.FACTS).write_text("")
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(TrainError, match="no checkpoint can be read"),
        Checkpoints(tmp_path) as checkpoints,
    ):
        checkpoints.restore(target)


def test_another_model_is_refused_with_every_difference(tmp_path):
    target, state = fresh()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        other = {
            **target,
            "params": {
                **target["params"],
                "head": {"kernel": jax.ShapeDtypeStruct((8, 5), jnp.float32)},
            },
        }
        with pytest.raises(
            TrainError, match=r"1 differences.*head/kernel: \(8, 3\) stored, \(8, 5\) wanted"
        ):
            checkpoints.restore(other)
    params = target["params"]
    renamed = {"encodr": params["encoder"], "head": params["head"]}
    with pytest.raises(
        TrainError,
        match=r"4 differences.*encodr/0/bias is not in the checkpoint.*encoder/0/kernel is not in "
        r"the model",
    ):
        checkpoint.load_params(tmp_path, renamed)
    with pytest.raises(TrainError, match="head/kernel is not in the model"):
        checkpoint.load_params(tmp_path, {"encoder": params["encoder"]})
    new_head = {
        "encoder": params["encoder"],
        "head": {"kernel": jnp.full((8, 5), 7.0), "scale": jnp.ones(5)},
    }
    loaded = checkpoint.load_params(tmp_path, new_head, keep="^head/")
    np.testing.assert_array_equal(
        loaded["encoder"]["0"]["kernel"], state["params"]["encoder"]["0"]["kernel"]
    )
    assert loaded["head"]["kernel"].shape == (8, 5) and float(loaded["head"]["kernel"][0, 0]) == 7.0
    half = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bfloat16), params)
    assert checkpoint.load_params(tmp_path, half)["head"]["kernel"].dtype == jnp.bfloat16


def test_saved_on_eight_devices_loaded_on_one_and_two(tmp_path):
    target, state = fresh(sharding.make_mesh(8), ((".*", "fsdp"),))
    kernel = state["params"]["encoder"]["0"]["kernel"]
    assert len(
        {shard.device for shard in kernel.addressable_shards}
    ) == 8 and kernel.addressable_shards[0].data.shape == (16, 8, 8)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for devices in (1, 2):
            mesh = sharding.make_mesh(devices, jax.devices()[:devices])
            restored, _ = checkpoints.restore(
                states.abstract(init, OPTIMIZER, mesh, ((".*", "fsdp"),))
            )
            got = restored["params"]["encoder"]["0"]["kernel"]
            np.testing.assert_array_equal(got, kernel)
            assert len(got.sharding.device_set) == devices
            assert jax.tree.structure(restored) == jax.tree.structure(target)


def test_a_full_disk_is_a_clean_error_and_the_old_checkpoint_stays(tmp_path):
    target, state = fresh()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    large = {
        **state,
        "params": {
            **state["params"],
            "head": {"kernel": jax.random.normal(jax.random.key(0), (1000, 500))},
        },
    }
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (500_000, hard)
    )  # files cannot grow beyond: what a full disk does to a write
    try:
        with (
            pytest.raises(TrainError, match="could not be written"),
            Checkpoints(tmp_path) as checkpoints,
        ):
            checkpoints.save(2, large, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.steps(tmp_path) == [1]
    with Checkpoints(tmp_path) as checkpoints:
        assert int(checkpoints.restore(target)[0]["step"]) == 0


@pytest.mark.parametrize(
    ("shape", "kind", "size", "expected"),
    [
        ((64, 128), "fsdp", 4, P(None, "fsdp")),
        ((128, 64), "fsdp", 4, P("fsdp", None)),
        ((3, 3, 3, 64, 64), "fsdp", 8, P(None, None, None, None, "fsdp")),
        ((3, 3, 3, 64, 30), "fsdp", 8, P(None, None, None, "fsdp", None)),
        ((33, 65), "fsdp", 4, P()),
        ((16, 16), "fsdp", 4, P()),
        ((64, 128), "replicate", 4, P()),
        ((64, 128), "fsdp", 1, P()),
    ],
)
def test_sharding_rule_of_a_leaf(shape, kind, size, expected):
    assert sharding.spec(shape, kind, size) == expected


def test_optimizer_state_follows_its_parameter():
    rules = (("^head/", "replicate"), (".*", "fsdp"))
    shapes = jax.eval_shape(
        states.maker(init, optim.make(name="adamw", steps=3)), jax.random.key(0)
    )
    where = sharding.of_state(shapes, sharding.make_mesh(4), rules)
    placed = dict(zip(log_names(where), jax.tree.leaves(where), strict=True))
    moments = [v.spec for k, v in placed.items() if k.endswith("encoder/0/kernel")]
    assert moments == [P(None, "fsdp", None)] * 3  # mu, nu and the parameter
    assert all(v.spec == P() for k, v in placed.items() if not k.endswith("encoder/0/kernel"))
    with pytest.raises(UsageError, match="replicate"):
        sharding.spec((4,), "replicated", 2)
    with pytest.raises(UsageError, match="8 devices, fsdp=3"):
        sharding.make_mesh(3)
    with pytest.raises(TrainError, match=r"'image' cannot be spread.*6 samples, 8 devices"):
        sharding.put({"image": np.zeros((6, 2))}, sharding.make_mesh())


def log_names(tree):
    return [
        jax.tree_util.keystr(k, simple=True, separator="/")
        for k, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def test_pseudo_dice_and_its_moving_average():
    progress = log.Progress(("a", "b", "c"))
    first = {"tp": np.array([5, 0, 0]), "fp": np.array([5, 2, 0]), "fn": np.array([0, 2, 0])}
    record, improved = progress.judge(10, first)
    assert (
        improved
        and record["dice/a"] == pytest.approx(2 / 3)
        and record["dice/b"] == 0
        and "dice/c" not in record
    )
    assert record["dice"] == record["dice_ema"] == pytest.approx(1 / 3), (
        "a class never seen counts for nothing"
    )
    progress = log.Progress(("a", "b", "c"), progress.to_json())
    second = {"tp": np.array([0, 1, 4]), "fp": np.array([0, 0, 0]), "fn": np.array([0, 0, 0])}
    record, improved = progress.judge(20, second)
    assert record["dice_ema/a"] == pytest.approx(2 / 3) and "dice/a" not in record
    assert record["dice_ema/b"] == pytest.approx(0.1) and record["dice_ema/c"] == 1.0 and improved
    assert record["dice_ema"] == pytest.approx((2 / 3 + 0.1 + 1) / 3) == progress.best
    assert not progress.judge(30, {k: np.zeros(3, int) for k in second})[1]
    progress.add({"loss": 1.0})
    progress.add({"loss": 2.0})
    assert log.Progress("abc", progress.to_json()).take() == {"loss": 1.5}
