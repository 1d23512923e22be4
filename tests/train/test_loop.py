"""The loop: killed and resumed equals never killed, signals, devices, bad numbers, changed recipes,
what it compiles.
"""

import functools
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tsfm
from medjax.errors import Preempted, TrainError, UsageError
from medjax.train import base, checkpoint, log, loop, optim, sharding
from medjax.train import state as states
from tests.train import test_toy as toy

RULES = tsfm.get_config("t").sharding.rules  # biases and scales replicated, all else spread
KILLED = (
    "toy",
    pytest.param("partly", marks=pytest.mark.slow),
    pytest.param("adapted", marks=pytest.mark.slow),
)
NETS = ("toy", pytest.param("tsfm", marks=pytest.mark.slow))


def flat(params):
    return {
        jax.tree_util.keystr(k): np.asarray(v)
        for k, v in jax.tree_util.tree_leaves_with_path(params)
    }


def assert_same(left, right, atol=0.0):
    left, right = flat(left), flat(right)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=0, atol=atol, err_msg=name)


def assert_same_record(left, right):
    assert (left / "metrics.jsonl").read_text() == (right / "metrics.jsonl").read_text()


def start_program(workdir, *arguments, **settings):
    """The toy run in a process of its own."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    command = [
        sys.executable,
        str(root / "tests" / "train" / "test_toy.py"),
        str(workdir),
        "--settings",
        json.dumps(settings),
        *arguments,
    ]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def stopped_by(number, at):
    """A stream that sends this process a signal while it makes batch `at`."""

    def stream(start):
        for i in itertools.count(start):
            if i == at:
                os.kill(os.getpid(), number)
            yield toy.host_batch(i)

    return stream


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Network -> a run that was never stopped, on one device: (run folder, parameters, compilations
    by function).
    """

    @functools.cache
    def trained(net):
        workdir = tmp_path_factory.mktemp("reference")
        compiles = log.Compiles()
        state = toy.run(workdir, net=net, devices=1, picture=True, tensorboard=True)
        compiles.close()
        return workdir, toy.weights_of(state), compiles.by_name

    return trained


@pytest.fixture(scope="module")
def reference(references):
    """That of the toy network."""
    return references("toy")


def test_the_record_and_the_folder_of_a_run(reference):
    workdir, _, _ = reference
    rows = log.read(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == [3, 4, 6, 8, 9, 12, 12]
    training = [row for row in rows if "loss" in row]
    assert training[-1]["loss"] < training[0]["loss"] - 0.3
    assert set(training[0]) == {
        "step",
        "loss",
        "loss/cross_entropy",
        "loss/dice",
        "grad_norm",
        "lr",
    }
    assert training[0]["loss"] == pytest.approx(
        training[0]["loss/cross_entropy"] + training[0]["loss/dice"], abs=1e-6
    )
    assert training[0]["lr"] == pytest.approx(0.05 * (1 - 2 / 12) ** 0.9)
    dice = [row["dice/liver"] for row in rows if "dice" in row]
    assert rows[-1]["dice_ema/liver"] == pytest.approx(
        0.9 * (0.9 * dice[0] + 0.1 * dice[1]) + 0.1 * dice[2]
    )
    assert checkpoint.steps(workdir / "checkpoints") == [8, 12]
    assert [row["step"] for row in log.read(workdir / "system.jsonl")] == [3, 6, 9, 12]
    assert (workdir / "progress.png").stat().st_size > 10_000
    assert list((workdir / "tensorboard").glob("events*"))
    assert "tensorflow" not in sys.modules


def test_one_compilation_for_all_steps(reference):
    _, _, by_name = reference
    assert by_name["jit(update)"] == 1 and by_name["jit(validate)"] == 1
    assert len({row["compiles"] for row in log.read(reference[0] / "system.jsonl")[1:]}) == 1, (
        "it stops growing after the first validation"
    )


def kill_at_random(workdir, net):
    """Starts the run in a process of its own and kills it (-9) some time after its first
    checkpoint.
    """
    process = start_program(workdir, "--delay", "0.1", net=net, devices=1, checkpoint_every=2)
    deadline, lines = (
        time.monotonic() + 120,
        len(log.read(workdir / "metrics.jsonl")) + random.randint(0, 3),
    )
    while process.poll() is None and time.monotonic() < deadline:
        if len(log.read(workdir / "metrics.jsonl")) >= lines and checkpoint.steps(
            workdir / "checkpoints"
        ):
            break
        time.sleep(0.02)
    time.sleep(random.random() / 5)
    process.kill()
    return process.communicate()[0]


@pytest.mark.parametrize("net", KILLED)
def test_killed_and_resumed_equals_never_killed(references, tmp_path, net):
    """`kill -9` twice, each time at a random moment, then the same command again; also with frozen
    parameters and a moving average.
    """
    reference = references(net)
    for _ in range(2):
        assert "Error" not in kill_at_random(tmp_path, net)
    assert checkpoint.steps(tmp_path / "checkpoints")
    (tmp_path / "metrics.jsonl").open("a").write(
        '{"step": 11, "loss": '
    )  # a line that was being written
    state = toy.run(tmp_path, net=net, devices=1)
    assert_same(toy.weights_of(state), reference[1])
    assert_same_record(tmp_path, reference[0])


def test_a_signal_saves_and_the_run_goes_on_later(reference, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="state saved") as caught:
        toy.run(tmp_path, devices=1, checkpoint_every=0, stream=stopped_by(signal.SIGTERM, 6))
    assert caught.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is before
    (step,) = checkpoint.steps(tmp_path / "checkpoints")[-1:]
    assert 3 <= step <= 9
    state = toy.run(tmp_path, devices=1)
    assert_same(state["params"], reference[1])
    assert_same_record(tmp_path, reference[0])


def test_what_a_process_requests():
    before = signal.getsignal(signal.SIGINT)
    requests = loop.Requests(sharding.make_mesh(), checkpoint_minutes=0.001)
    assert np.asarray(requests.array()).tolist() == [loop.NOTHING] * 8
    time.sleep(0.07)
    assert np.asarray(requests.array()).max() == loop.SAVE
    requests.saved()
    assert np.asarray(requests.array()).max() == loop.NOTHING
    with requests:
        os.kill(os.getpid(), signal.SIGINT)
        assert np.asarray(requests.array()).max() == loop.STOP
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_during_validation_repeats_it_later(reference, tmp_path):
    calls = []

    def validation():
        calls.append(0)
        for i in range(2):
            if i == 0 and len(calls) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)
            yield toy.host_batch(10**6 + i)

    with pytest.raises(Preempted, match="after step 4"):
        toy.run(tmp_path, devices=1, validation_stream=validation)
    assert checkpoint.read_facts(tmp_path / "checkpoints", 4)["progress"]["validated"] == 0
    state = toy.run(tmp_path, devices=1)
    assert_same(state["params"], reference[1])
    assert_same_record(tmp_path, reference[0])


def test_a_finished_run_returns_at_once(reference):
    workdir, params, _ = reference
    before = (workdir / "metrics.jsonl").read_text()
    state = toy.run(workdir, devices=1, stream=lambda start: pytest.fail("the stream was opened"))
    assert_same(state["params"], params)
    assert int(state["step"]) == 12 and (workdir / "metrics.jsonl").read_text() == before


def assert_result_of(reference, workdir, params):
    """Parameters and record are those of one device but for the order of sums, which is far below
    what training changed.
    """
    assert_same(params, reference[1], atol=1e-5)
    for row, expected in zip(
        log.read(workdir / "metrics.jsonl"), log.read(reference[0] / "metrics.jsonl"), strict=True
    ):
        assert row == pytest.approx(expected, abs=2e-4)
        assert row.get("loss") == pytest.approx(expected.get("loss"), abs=1e-5)


def split_share(params):
    """Share of the parameters that no device holds whole."""
    leaves = jax.tree.leaves(params)
    return sum(v.size for v in leaves if v.sharding.shard_shape(v.shape) != v.shape) / sum(
        v.size for v in leaves
    )


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
def test_eight_devices_equal_one_and_a_checkpoint_fits_any_number(references, tmp_path, net):
    """Data parallel, then parameters and optimizer spread over all devices, then both; from the
    middle also on one device and on 2 x 2.
    """
    reference = references(net)
    begun = flat(jax.jit(toy.network(net, 12)[0])(jax.random.key(0)))
    assert max(np.abs(v - begun[k]).max() for k, v in flat(reference[1]).items()) > 1e-2, (
        "a thousand times what may differ"
    )
    eight, rules = tmp_path / "eight", {"sharding_rules": RULES}
    copies = toy.run(eight, net=net, until=3, devices=8)["params"]
    spread = toy.run(eight, net=net, until=9, devices=8, fsdp=8, **rules)["params"]
    assert split_share(copies) == 0 and split_share(spread) > 0.7
    for devices, fsdp in ((1, 1), (4, 2)):
        shutil.copytree(eight, tmp_path / str(devices))
        state = toy.run(tmp_path / str(devices), net=net, devices=devices, fsdp=fsdp, **rules)
        assert_result_of(reference, tmp_path / str(devices), state["params"])
    assert_result_of(
        reference, eight, toy.run(eight, net=net, devices=8, fsdp=4, **rules)["params"]
    )


@pytest.mark.slow
def test_adapters_train_alike_on_eight_devices_beside_a_base_that_stays(references, tmp_path):
    """Scanned and recomputed layers, the base spread over four devices, twice; the base's leaves
    stay, and the optimizer holds two numbers for each that is trained.
    """
    reference = references("adapted")
    fresh, _, _ = toy.network("adapted", 12)
    begun = flat(jax.jit(fresh)(jax.random.key(0)))
    state = toy.run(tmp_path / "eight", net="adapted", devices=8, fsdp=4, sharding_rules=RULES)
    assert split_share(state["frozen"]) > 0.7
    assert_same(toy.weights_of(state), reference[1], atol=1e-5)
    moved = {name for name, v in flat(toy.weights_of(state)).items() if np.any(v != begun[name])}
    trained = {name for name in begun if "lora" in name or "head" in name}
    assert moved == trained and len(trained) < len(begun)
    numbers = sum(np.size(v) for v in jax.tree.leaves(state["opt"]))
    assert 0 <= numbers - 2 * sum(begun[name].size for name in trained) <= 3


def test_another_recipe_is_refused(reference):
    with pytest.raises(
        TrainError,
        match=r"net: was toy, is other; optimizer\.lr: was nothing, is 0\.5; seed: was 0, is 1",
    ):
        toy.run(reference[0], devices=1, recipe={"net": "other", "optimizer": {"lr": 0.5}}, seed=1)


def test_a_non_finite_loss_stops_before_anything_is_saved(tmp_path):
    def stream(start):
        for i in itertools.count(start):
            batch = toy.host_batch(i)
            yield batch if i != 4 else {**batch, "gain": batch["gain"] * np.nan}

    with pytest.raises(TrainError, match="loss is nan at step 5"):
        toy.run(tmp_path, devices=1, stream=stream, checkpoint_every=5, validate_every=0)
    assert checkpoint.steps(tmp_path / "checkpoints") == []
    assert [row["step"] for row in log.read(tmp_path / "metrics.jsonl")] == [3]


def test_bad_streams_are_named(tmp_path):
    def breaks():
        yield 1
        raise OSError("the disk went away")

    placer = sharding.Placer(sharding.make_mesh())
    placer(toy.host_batch(0))
    with pytest.raises(TrainError, match=r"differs from the first one.*image.*\(8, 8, 8, 8, 1\)"):
        placer(toy.host_batch(1, vol=(8, 8, 8)))
    with (
        pytest.raises(OSError, match="the disk went away") as caught,
        sharding.prefetch(breaks(), lambda x: x) as items,
    ):
        assert list(items) == [1]
    assert any(entry.name == "breaks" for entry in caught.traceback), "the worker's own traceback"
    with pytest.raises(TrainError, match="ended before step 3"):
        toy.run(
            tmp_path, devices=1, stream=lambda start: iter([toy.host_batch(0), toy.host_batch(1)])
        )
    with pytest.raises(UsageError, match="log_every"):
        loop.Settings(steps=10, log_every=0)


def test_frozen_leaves_stay_bitwise_and_borrowed_ones_arrive(reference, tmp_path):
    workdir, params, _ = reference
    frozen = optim.make(name="adamw", lr=0.01, steps=4, trainable=(("^head/", True), (".*", False)))

    def borrow(fresh):
        loaded = checkpoint.load_params(workdir, fresh, keep="^head/")
        return {"head": fresh["head"], "encoder": {**loaded["encoder"], "bias": -jnp.zeros(16)}}

    state = toy.run(tmp_path, steps=4, devices=1, optimizer=frozen, borrow=borrow, validate_every=0)
    assert (
        np.asarray(state["frozen"]["encoder"]["kernel"]).tobytes()
        == np.asarray(params["encoder"]["kernel"]).tobytes()
    )
    assert np.signbit(state["frozen"]["encoder"]["bias"]).all(), "even the sign of zero"
    assert not np.array_equal(
        state["params"]["head"]["kernel"], toy.init(jax.random.key(0))["head"]["kernel"]
    )
    moments = [leaf for leaf in jax.tree.leaves(state["opt"]) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * sum(
        leaf.size for leaf in jax.tree.leaves(state["params"]["head"])
    )
    with pytest.raises(TrainError, match="do not fit"):
        states.with_params(state, {"encoder": state["frozen"]["encoder"]})


@pytest.mark.parametrize("net", ["toy", "partly"])
def test_nothing_is_moved_between_host_and_devices_unasked(tmp_path, net):
    """Steps, validations, checkpoints, borrowed parameters and a resume in which jax refuses every
    implicit transfer, in all threads; on CPUs it sees those to devices and between them.
    """

    def borrow(fresh):
        return jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), fresh)

    before = jax.config.jax_transfer_guard
    jax.config.update("jax_transfer_guard", "disallow")
    try:
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
            jax.jit(jnp.negative)(np.zeros(2))
        for until in (5, 8):
            state = toy.run(tmp_path, net=net, until=until, devices=2, borrow=borrow)
    finally:
        jax.config.update("jax_transfer_guard", before)
    assert int(state["step"]) == 8
    assert [row["step"] for row in log.read(tmp_path / "metrics.jsonl") if "dice" in row] == [4, 8]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "fsdp"), [("toy", 4), ("partly", 8), ("tsfm", 8)]
)  # 8: parameters are spread over the two processes
def test_two_processes_equal_one(references, tmp_path, net, fsdp):
    reference = references(net)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    pair = [
        start_program(
            tmp_path, "--host", str(i), "--port", port, net=net, fsdp=fsdp, sharding_rules=RULES
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=900)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(outputs)
    final = np.load(tmp_path / "final.npz", allow_pickle=False)
    for name, value in flat(reference[1]).items():
        np.testing.assert_allclose(final[name], value, rtol=0, atol=1e-5, err_msg=name)
    state = toy.run(tmp_path, net=net, devices=1)  # two processes saved, one reads
    assert_result_of(reference, tmp_path, toy.weights_of(state))
    if net == "partly":  # a leaf that is spread over both processes is frozen
        folder = tmp_path / "checkpoints"
        assert checkpoint.steps(folder / "base") == [0]
        facts = checkpoint.read_facts(folder / "base", 0)
        assert facts["hash"] == base.digest(state["frozen"])


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = ("--port", port, "--delay", "0.1")
    pair = [
        start_program(
            tmp_path, "--host", str(i), *arguments, steps=400, checkpoint_every=0, validate_every=0
        )
        for i in range(2)
    ]
    deadline = time.monotonic() + 120
    while (
        all(p.poll() is None for p in pair)
        and len(log.read(tmp_path / "metrics.jsonl")) < 2
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    pair[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=100)[0] for process in pair]
    assert [process.returncode for process in pair] == [75, 75], "\n".join(outputs)
    assert len(checkpoint.steps(tmp_path / "checkpoints")) == 1
