"""Frozen parameters are written once per run; every step names them by their hash; readers get all
parameters, whatever is stored where.
"""

import json
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import TrainError, UsageError
from medjax.train import base, checkpoint, hashes, optim, rules, sharding, storage
from medjax.train import state as states
from medjax.train.checkpoint import Checkpoints
from tests.support.marks import slow
from tests.support.old_run import ROOT, extract
from tests.train.test_checkpoint_hashes import flip

HEAD = (("^head/", True), (".*", False))
ONE = sharding.make_mesh(devices=jax.devices()[:1])


def init(key):
    """A frozen part that can be split over devices, and a small head."""
    return {
        "encoder": {"kernel": jax.random.normal(key, (64, 64)), "bias": jnp.arange(3.0)},
        "head": {"kernel": jnp.ones((8, 3))},
    }


def adamw(**changes):
    return optim.make(**dict(name="adamw", steps=10, trainable=HEAD) | changes)


def fresh(optimizer=None, mesh=ONE, placing=sharding.REPLICATE, start=init, seed=0):
    """(target, state) of a run."""
    optimizer = optimizer or adamw()
    target = states.abstract(start, optimizer, mesh, placing)
    return target, states.born(start, optimizer, target, seed)


def at(state, step):
    """The state at another step, with other numbers in all that is trained."""
    moved = {
        part: jax.tree.map(lambda v: v + step, tree)
        for part, tree in state.items()
        if part != "frozen"
    }
    return state | moved | {"step": jnp.asarray(step, jnp.int32)}


def same(left, right):
    assert rules.paths(left) == rules.paths(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def bytes_of(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def run(tmp_path):
    """(checkpoints of a run with a frozen encoder at steps 1 and 2, target, state at step 2)."""
    target, state = fresh(adamw(ema=0.9))
    folder = tmp_path / "run" / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, at(state, step), {"recipe": {}})
    return folder, target, at(state, 2)


def test_steps_hold_what_is_trained_and_the_base_is_written_once(tmp_path):
    """60 MB of frozen numbers, 1 % trained: a step has at most 1.2 % of a whole checkpoint, which
    would hold all parameters and their two moments.
    """

    def large(key):
        one, two = jax.random.split(key)
        return {
            "encoder": {"kernel": jax.random.normal(one, (15_000, 1000))},
            "head": {"kernel": jax.random.normal(two, (152, 1000))},
        }

    target, state = fresh(start=large)
    state["opt"] = jax.tree.map(  # moments of a run are no zeros, which would be compressed
        lambda v: jax.random.normal(jax.random.key(v.size), v.shape) if v.ndim else v, state["opt"]
    )
    whole = 4 * (15_000 + 152) * 1000
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, at(state, step), {}, metric=1.0 if step == 1 else 0.5)
            checkpoints.wait()
            if step == 1:
                written = {p: p.stat().st_mtime_ns for p in (tmp_path / "base").rglob("*")}
    assert checkpoint.steps(tmp_path) == [1, 2, 3] and checkpoint.best_step(tmp_path) == 1
    for step in ("1", "2", "3"):
        size = bytes_of(tmp_path / step)
        assert 0.008 * whole * 3 < size < 0.012 * whole * 3
    assert 0.85 * whole < bytes_of(tmp_path / "base") < 1.02 * whole
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "base").rglob("*")} == written
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(target)
        same(restored, at(state, 3))
        checkpoints.save(4, restored, {})
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "base").rglob("*")} == written


def test_readers_get_all_parameters(run):
    folder, _, state = run
    expected = states.weights(state)
    shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), expected)
    same(checkpoint.load_params(folder, shapes), expected)
    same(checkpoint.read_params(folder.parent), expected)
    plain = states.weights(state, average=False)
    same(checkpoint.load_params(folder, shapes, ema="off"), plain)
    same(checkpoint.read_params(folder, ema="off"), plain)
    same(checkpoint.read_params(folder / "2"), expected)
    assert float(expected["head"]["kernel"][0, 0]) == 3 == float(plain["head"]["kernel"][0, 0])
    new = {**shapes, "head": {"kernel": jnp.full((8, 5), 7.0)}}
    loaded = checkpoint.load_params(folder, new, keep="^head/")
    same(loaded["encoder"], expected["encoder"])
    assert loaded["head"]["kernel"].shape == (8, 5)
    loaded = checkpoint.load_params(folder, {**new, "encoder": jnp.ones(2)}, keep="^encoder|^head")
    same(loaded["encoder"], jnp.ones(2))
    with pytest.raises(TrainError, match=r"encodr/bias is not in the checkpoint.*not in the model"):
        checkpoint.load_params(folder, {"encodr": shapes["encoder"], "head": shapes["head"]})
    with pytest.raises(UsageError, match=r"infer.ema='of'.*did you mean off"):
        checkpoint.read_params(folder, ema="of")


def test_the_average_is_what_readers_take(run):
    folder, _, state = run
    state["ema"] = jax.tree.map(lambda v: v + 0.5, state["ema"])
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(3, state, {})
    for ema, value in (("auto", 3.5), ("off", 3.0)):
        assert checkpoint.read_params(folder, ema=ema)["head"]["kernel"][0, 0] == value
    flip(max((folder / "3" / "params").rglob("d/*"), key=lambda p: p.stat().st_size))
    assert checkpoint.read_params(folder)["head"]["kernel"][0, 0] == 3.5
    with pytest.raises(TrainError, match="a damaged file"):
        checkpoint.read_params(folder, ema="off")


@pytest.mark.parametrize("damage", ["missing", "facts", "another", "flip", "number"])
def test_a_missing_or_another_base_is_refused(run, damage):
    folder, target, _ = run
    facts = folder / "base" / "0" / checkpoint.FACTS
    if damage == "missing":
        shutil.rmtree(folder / "base")
        text = "the frozen parameters of checkpoint 2 are missing.*copy the folder checkpoints as a"
    elif damage == "facts":
        facts.write_text("{")
        text = "damaged JSON"
    elif damage == "another":
        _, other = fresh(seed=1)
        with Checkpoints(folder.parent / "other") as checkpoints:
            checkpoints.save(1, other, {})
        shutil.rmtree(folder / "base")
        shutil.copytree(folder.parent / "other" / "base", folder / "base")
        text = "the frozen parameters are not those of checkpoint 2.*expected xxh3"
    elif damage == "flip":
        flip(max((folder / "base").rglob("d/*"), key=lambda p: p.stat().st_size))
        text = "a damaged file of a checkpoint"
    else:
        content = json.loads((folder / "2" / checkpoint.FACTS).read_text())
        content["custom_metadata"]["base"] = {"number": "../../x", "hash": ""}
        (folder / "2" / checkpoint.FACTS).write_text(json.dumps(content))
        shutil.rmtree(folder / "1")
        text = "no readable checkpoint facts"
    before = sorted(p for p in folder.rglob("*"))
    with pytest.raises(TrainError, match=text):
        checkpoint.read_params(folder)
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(TrainError, match=f"no checkpoint can be read.*{text.split('.*')[0][:40]}"),
        Checkpoints(folder) as checkpoints,
    ):
        checkpoints.restore(target)
    assert sorted(p for p in folder.rglob("*")) == before, "nothing was moved or removed"


def test_a_checkpoint_with_all_parameters_fits_a_run_that_freezes_some(tmp_path):
    """As earlier versions wrote them: one tree of parameters, no state of frozen leaves."""
    target, state = fresh()
    whole = states.weights(state)
    old = {"step": state["step"], "params": whole, "opt": adamw().tx.init(whole)}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(3, old, {})
    assert not (tmp_path / "checkpoints" / "base").exists()
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        restored, _ = checkpoints.restore(target)
        same(restored, state)
        checkpoints.save(4, at(restored, 4), {})
        same(checkpoints.restore(target)[0], at(state, 4))
    assert not (tmp_path / "checkpoints" / "3" / "params" / "base").exists()
    same(checkpoint.read_params(tmp_path, "3"), whole)
    same(checkpoint.read_params(tmp_path, "4")["encoder"], whole["encoder"])


def test_what_is_trained_may_differ_from_what_was(run):
    """The optimizer's state decides whether that is possible; SGD without momentum has none."""
    folder = run[0].parent / "other"
    plain = dict(name="sgd", momentum=0.0)
    _, state = fresh(adamw(**plain))
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, state, {})
    every = rules.paths(states.weights(state))
    other = (("^encoder/kernel", True), (".*", False))
    for part, trained in ((other, ["encoder/kernel"]), (((".*", True),), every)):
        target, _ = fresh(adamw(**plain | {"trainable": part}))
        with Checkpoints(folder) as checkpoints:
            restored, _ = checkpoints.restore(target)
            same(states.weights(restored), states.weights(state))
            assert rules.paths(restored["params"]) == trained
            checkpoints.save(2, restored, {})
            same(states.weights(checkpoints.restore(target)[0]), states.weights(state))
        shutil.rmtree(folder / "2")


def test_the_parameters_of_the_earlier_version_fit_a_run_that_freezes_some(tmp_path):
    extract(tmp_path, "run/checkpoints/")
    before = checkpoint.read_params(tmp_path / "run")
    names = rules.paths(before)
    part = ((f"^{names[0]}$", True), (".*", False))
    target, state = fresh(adamw(trainable=part), start=lambda key: before)
    folder = tmp_path / "run" / "checkpoints"
    newest = checkpoint.latest_step(folder)
    with Checkpoints(tmp_path / "new") as checkpoints:
        checkpoints.save(newest + 1, state, {})
    same(checkpoint.read_params(tmp_path / "new"), before)
    shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), before)
    same(checkpoint.load_params(folder, shapes), before)
    assert rules.paths(target["params"]) == names[:1]


KILLED = """
import os, sys
sys.path.insert(0, {root!r})
from medjax.train import hashes
from medjax.train.checkpoint import Checkpoints
from tests.train.test_base import fresh
target, state = fresh()
whole, calls = hashes.write, []
def killed(folder, facts):
    calls.append(folder)
    if len(calls) == {call}:
        os.kill(os.getpid(), 9)
    whole(folder, facts)
hashes.write = killed
with Checkpoints({folder!r}) as checkpoints:
    checkpoints.save(1, state, {{}})
    checkpoints.wait()
"""


@pytest.mark.parametrize(("call", "left"), [(1, []), slow(2, [0])])
def test_a_kill_at_the_base_or_before_the_first_step(tmp_path, call, left):
    folder = tmp_path / "checkpoints"
    code = KILLED.format(root=str(ROOT), folder=str(folder), call=call)
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=200, check=False, capture_output=True, text=True
    )
    assert done.returncode == -9, done.stderr
    assert checkpoint.steps(folder) == [] and checkpoint.steps(folder / "base") == left
    written = {p: p.stat().st_mtime_ns for n in left for p in (folder / f"base/{n}").rglob("*")}
    target, state = fresh()
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(target) is None, "nothing was saved, so the run starts"
        checkpoints.save(1, state, {})
        same(checkpoints.restore(target)[0], state)
    assert [p.name for p in (folder / "base").iterdir()] == ["0"]
    assert {p: p.stat().st_mtime_ns for p in written} == written, "what is there is used"
    # begun again with other frozen parameters: the earlier ones stay
    shutil.rmtree(folder / "1")
    _, other = fresh(seed=1)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, other, {})
        same(checkpoints.restore(target)[0], other)
    assert checkpoint.steps(folder / "base") == [0, 1]


def test_files_of_others_beside_the_base_stay(tmp_path):
    (tmp_path / "base" / "0").mkdir(parents=True)
    (tmp_path / "base" / "0" / "scan.nii").write_text("a")
    (tmp_path / "base" / "notes.txt").write_text("b")
    target, state = fresh()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        same(checkpoints.restore(target)[0], state)
    assert (tmp_path / "base" / "0" / "scan.nii").read_text() == "a"
    assert (tmp_path / "base" / "notes.txt").read_text() == "b"
    assert checkpoint.steps(tmp_path / "base") == [1]


def test_a_full_disk_at_the_base_is_a_clean_error(tmp_path):
    def large(key):
        return {
            "encoder": {"kernel": jax.random.normal(key, (1000, 500))},
            "head": {"kernel": jnp.ones(3)},
        }

    target, state = fresh(start=large)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with (
            pytest.raises(
                TrainError, match=r"base: a checkpoint could not be written.*may not grow"
            ),
            Checkpoints(tmp_path) as checkpoints,
        ):
            checkpoints.save(1, state, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(target) is None
        checkpoints.save(1, state, {})
        same(checkpoints.restore(target)[0], state)


def test_a_run_that_trains_nothing_is_still_a_run(tmp_path):
    """Only useful for its validation."""
    target, state = fresh(adamw(trainable=((".*", False),)))
    assert states.weights(state) == state["frozen"] and state["params"] == {}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        same(checkpoints.restore(target)[0], state)
    same(checkpoint.read_params(tmp_path), state["frozen"])


def test_a_damaged_base_is_not_used_for_new_steps(tmp_path):
    target, state = fresh()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    flip(max((tmp_path / "base").rglob("d/*"), key=lambda p: p.stat().st_size))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, at(state, 2), {})
        same(checkpoints.restore(target)[0], at(state, 2))
    assert checkpoint.steps(tmp_path / "base") == [0, 1]


def test_the_hash_is_of_the_content_whatever_the_devices():
    """Names, types, shapes and values count; eight devices that share a leaf do not."""
    spread = ((".*", "fsdp"),)
    states_of = [fresh(mesh=m, placing=spread)[1] for m in (ONE, sharding.make_mesh(8))]
    assert len(states_of[1]["frozen"]["encoder"]["kernel"].sharding.device_set) == 8
    one, eight = (base.digest(state["frozen"]) for state in states_of)
    assert one == eight and one.startswith("xxh3:")
    frozen = jax.tree.map(np.asarray, states_of[0]["frozen"])
    assert base.digest(frozen) == one
    kernel, bias = frozen["encoder"]["kernel"], frozen["encoder"]["bias"]
    for other in (
        {"encoder": {"kernel": kernel.T.copy(), "bias": bias}},
        {"encoder": {"kernel": kernel.reshape(32, 128), "bias": bias}},
        {"encoder": {"kernel": kernel, "bias": bias.astype(jnp.bfloat16)}},
        {"encoder": {"kernel": kernel, "offset": bias}},
        {"encoder": {"kernel": kernel, "bias": bias * [-1, 1, 1]}},  # -0.0
    ):
        assert base.digest(other) != one


def test_saved_on_eight_devices_restored_on_one_and_two(tmp_path):
    spread = ((".*", "fsdp"),)
    _, state = fresh(mesh=sharding.make_mesh(8), placing=spread)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for devices in (1, 2):
            mesh = sharding.make_mesh(devices, jax.devices()[:devices])
            target = states.abstract(init, adamw(), mesh, spread)
            restored, _ = checkpoints.restore(target)
            same(restored, state)
            kernel = restored["frozen"]["encoder"]["kernel"]
            assert len(kernel.sharding.device_set) == devices
            checkpoints.save(1 + devices, restored, {})
    assert checkpoint.steps(tmp_path / "base") == [0]


def test_names_of_leaves_on_disk():
    tree = {"a": {"b": np.zeros((2, 3))}, "c": np.zeros(4)}
    assert storage.shapes(tree) == {"a/b": [2, 3], "c": [4]}
    assert storage.nest(storage.flat(tree)).keys() == tree.keys()


def test_every_file_of_the_base_is_hashed(run):
    folder = run[0] / "base" / "0"
    facts = json.loads((folder / checkpoint.FACTS).read_text())["custom_metadata"]
    assert facts["hash"] == base.digest(run[2]["frozen"])
    hashes.check(folder, facts)
    (folder / hashes.NAME).unlink()
    with pytest.raises(TrainError, match="a file of the checkpoint is missing"):
        hashes.check(folder, facts)
