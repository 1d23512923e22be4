"""One layout for every batch: how it is split, what is idle, what each process feeds, and that the
numbers of a training do not depend on it.
"""

import itertools
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from medjax.errors import TrainError, UsageError
from medjax.train import log, loop, sharding
from tests.train import test_toy as toy

BOTH, DATA = ("data", "fsdp"), ("data",)
RULES = (("(bias|scale)$", "replicate"), (".*", "fsdp"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [  # (batch, devices, fsdp, accumulate) -> (data, fsdp, axes, samples on each device, idle)
        ((8, 8), (8, 1, BOTH, 1, 0)),
        ((2, 8, 8), (1, 8, DATA, 2, 0)),  # TSFM h as documented
        ((4, 8, 8), (1, 8, DATA, 4, 0)),
        ((8, 8, 4), (2, 4, BOTH, 1, 0)),
        ((8, 8, 8), (1, 8, BOTH, 1, 0)),
        ((4, 8, 2), (4, 2, DATA, 1, 0)),
        ((6, 8), (6, 1, BOTH, 1, 2)),
        ((6, 8, 2), (3, 2, BOTH, 1, 2)),
        ((12, 20, 4), (3, 4, BOTH, 1, 8)),  # rather than 3 samples on each of 16
        ((7, 8, 3), (1, 3, DATA, 7, 5)),
        ((6, 8, 3), (2, 3, BOTH, 1, 2)),
        ((1, 8), (1, 1, BOTH, 1, 7)),
        ((3, 1), (1, 1, BOTH, 3, 0)),
        ((16, 8, 1, 2), (8, 1, BOTH, 1, 0)),
        ((16, 8, 1, 4), (4, 1, BOTH, 1, 4)),
        ((2, 8, 8, 2), (1, 8, DATA, 1, 0)),
    ],
)
def test_layouts(given, expected):
    found = sharding.layout(*given)
    assert (found.data, found.fsdp, found.batch_axes, found.per_device, found.idle) == expected
    assert found.used + found.idle == given[1]


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 6, 8, 12, 16, 24])
def test_every_sample_is_computed_once_by_each_group(batch, fsdp):
    found = sharding.layout(batch, 8, fsdp)
    parts = found.used if found.batch_axes == BOTH else found.data
    assert found.per_device * parts == batch and found.used <= 8
    others = [d for d in range(1, 8 // fsdp + 1) if batch % d == 0]
    least = min(batch // (d * fsdp) if batch % (d * fsdp) == 0 else batch // d for d in others)
    assert found.per_device == least


def test_layouts_of_several_processes():
    found = sharding.layout(2, 16, 16, processes=2)
    assert (found.data, found.batch_axes, found.per_device) == (1, DATA, 2)
    found = sharding.layout(2, 16, processes=2)  # one device of each process
    assert (found.data, found.idle) == (2, 14)
    found = sharding.layout(4, 16, 4, processes=8)  # a group covers two processes
    assert (found.data, found.batch_axes, found.per_device) == (4, DATA, 1)
    with pytest.raises(UsageError, match="2 processes with 4 devices each"):
        sharding.layout(3, 8, processes=2)
    with pytest.raises(UsageError, match="cannot be shared among the processes"):
        sharding.layout(2, 6, 2, processes=3)


def test_impossible_layouts_are_refused_with_the_fix():
    with pytest.raises(UsageError, match=r"sharding.fsdp=16, 8 devices.*lower sharding.fsdp"):
        sharding.layout(8, 8, 16)
    with pytest.raises(UsageError, match=r"train.batch=6, train.accumulate=4.*change"):
        sharding.layout(6, 8, 1, 4)
    with pytest.raises(UsageError, match="micro-batches"):
        sharding.layout(6, 8, 1, 0)


def test_the_line_at_the_start_says_what_is_idle_or_computed_twice():
    assert sharding.layout(2, 1).sentence() == "1 device, 2 of 2 samples on each"
    idle = sharding.layout(6, 8).sentence()
    assert idle.startswith("6 of 8 devices as 6 x 1 (data x fsdp), 1 of 6 samples on each; 2 idle")
    assert "multiple of 8" in idle
    shared = sharding.layout(2, 8, 8).sentence()
    assert "8 devices as 1 x 8" in shared and "compute the same samples" in shared
    assert "idle" not in shared
    assert "2 micro-batches" in sharding.layout(4, 2, 1, 2).sentence()


def test_the_mesh_takes_the_devices_of_the_layout():
    mesh = sharding.layout(6, 8, 2).mesh()
    assert dict(mesh.shape) == {"data": 3, "fsdp": 2}
    assert list(mesh.devices.flat) == jax.devices()[:6]
    assert sharding.layout(6, 8, 2).abstract_mesh().shape == mesh.shape


def test_a_batch_is_placed_by_the_axes_of_its_layout():
    mesh, x = sharding.make_mesh(4), np.arange(4.0)
    placed = sharding.put({"x": x}, mesh, DATA)["x"]
    assert placed.sharding.is_equivalent_to(jax.NamedSharding(mesh, P("data")), 1)
    np.testing.assert_array_equal(placed, x)
    assert {tuple(np.asarray(s.data)) for s in placed.addressable_shards} == {(0, 1), (2, 3)}
    with pytest.raises(TrainError, match=r"'x' cannot be spread.*3 samples, 2 devices"):
        sharding.put({"x": x[:3]}, mesh, DATA)
    with pytest.raises(TrainError, match="4 samples, 8 devices"):
        sharding.put({"x": x}, mesh)
    assert sharding.share(mesh) == sharding.share(mesh, DATA) == (0, 1)


def test_processes_of_one_group_feed_the_same_part():
    assert [sharding.host_of({0: {0, 1}, 1: {2, 3}}, p) for p in (0, 1)] == [(0, 2), (1, 2)]
    across = {0: {0}, 1: {0}, 2: {1}, 3: {1}}
    assert [sharding.host_of(across, p) for p in range(4)] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    mixed = {0: {0, 3}, 1: {1, 2}}  # devices in the order of the network between them
    assert [sharding.host_of(mixed, p) for p in (0, 1)] == [(0, 2), (1, 2)]
    with pytest.raises(TrainError, match="overlap"):
        sharding.host_of({0: {0, 1}, 1: {1, 2}}, 0)
    with pytest.raises(TrainError, match="overlap"):
        sharding.host_of({0: {0}, 1: {1, 2}}, 0)


def fit(workdir, batch, layout, devices=None):
    """Losses and parameters of six steps of the small TSFM on a layout."""
    fresh, task, optimizer = toy.network("tsfm", 6)
    task = toy.task(task.apply, augment=None)
    state = loop.fit(
        task=task,
        init=fresh,
        optimizer=optimizer,
        stream=lambda start: (toy.host_batch(i, batch=batch) for i in itertools.count(start)),
        validation_stream=lambda: (toy.host_batch(10**6 + i, batch=batch) for i in range(2)),
        settings=loop.Settings(
            steps=6, validate_every=3, validation_batches=2, log_every=1, picture=False
        ),
        workdir=workdir,
        names=toy.CLASSES,
        mesh=layout.mesh(devices),
        batch_axes=layout.batch_axes,
        accumulate=layout.accumulate,
        sharding_rules=RULES,
    )
    rows = [
        {k: v for k, v in row.items() if k in ("loss", "grad_norm") or k.startswith("dice")}
        for row in log.read(workdir / "metrics.jsonl")
    ]
    return rows, jax.device_get(state["params"])


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "fsdp"), [(2, 8), (4, 8), (8, 4), (6, 1)])
def test_every_layout_trains_as_one_device(tmp_path, batch, fsdp):
    one = fit(tmp_path / "one", batch, sharding.layout(batch, 1), jax.devices()[:1])
    layout = sharding.layout(batch, 8, fsdp)
    many = fit(tmp_path / "many", batch, layout)
    assert len(one[0]) >= 6 and all(one[0])
    for a, b in zip(one[0], many[0], strict=True):
        assert b == pytest.approx(a, rel=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=0, atol=1e-5), one[1], many[1])


PAIR = """
import sys
import jax, numpy as np
from medjax.train import sharding
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
told = []
for batch, fsdp in ((2, 8), (2, 4), (8, 8), (6, 1)):
    layout = sharding.layout(batch, 8, fsdp, processes=2)
    mesh, axes = layout.mesh(), layout.batch_axes
    host, hosts = sharding.share(mesh, axes)
    own = np.arange(batch, dtype=np.float32).reshape(hosts, -1)[host]
    placed = sharding.put({"x": own}, mesh, axes)["x"]
    weights, everywhere = 1 + np.arange(batch), sharding.replicated(mesh)
    weigh = jax.jit(lambda x: (x * weights).sum(), out_shardings=everywhere)
    assert placed.shape == (batch,), placed.shape
    assert float(weigh(placed)) == float((np.arange(batch) * weights).sum())
    each = layout.used // 2
    assert sum(d.process_index == jax.process_index() for d in mesh.devices.flat) == each
    told.append((batch, fsdp, host, hosts))
print("told", told, file=sys.stderr)
"""


@pytest.mark.slow
def test_two_processes_feed_what_their_devices_need():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", PAIR, port, str(i)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=300)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], "\n".join(outputs)
    for i, text in enumerate(outputs):  # (2, 8): one group of both processes; both feed everything
        told = [line for line in text.splitlines() if line.startswith("told")]
        assert told == [f"told {[(2, 8, 0, 1), (2, 4, i, 2), (8, 8, i, 2), (6, 1, i, 2)]}"]
