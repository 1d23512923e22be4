"""Hashes of checkpoints: written before a step gets its name, compared when it is read; old
checkpoints load and are said to have none.
"""

import json
import logging
import resource
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from medjax.errors import TrainError
from medjax.train import checkpoint, hashes, sharding
from medjax.train.checkpoint import Checkpoints
from tests.support.marks import slow
from tests.support.old_run import ROOT
from tests.train.test_checkpoint import at, fresh


@pytest.fixture
def run(tmp_path):
    """A run folder with the checkpoints 3 and 6, and the target to restore them to."""
    target, state = fresh()
    with Checkpoints(tmp_path / "run" / "checkpoints", keep=3) as checkpoints:
        for step in (3, 6):
            checkpoints.save(step, at(state, step), {"recipe": {}}, metric=0.1 * step)
    return tmp_path / "run", target


def flip(path, at=0.5):
    """Changes two bytes of a file; its size stays."""
    content = bytearray(path.read_bytes())
    for i in range(2):
        content[int(len(content) * at) - i] ^= 0x10
    path.write_bytes(content)


def files_of(step):
    """All files of a step folder that its hashes cover."""
    return sorted(
        p
        for p in step.rglob("*")
        if p.is_file()
        and p.name != "hashes.json"
        and not (p.parent == step and p.name in hashes.LATER)
    )


def test_every_file_of_a_step_is_hashed_before_it_has_its_name(run):
    folder, _ = run
    step = folder / "checkpoints" / "6"
    listed = json.loads((step / "hashes.json").read_text())["files"]
    assert sorted(listed) == [p.relative_to(step).as_posix() for p in files_of(step)] and any(
        "/d/" in name for name in listed
    )
    assert checkpoint.read_facts(step.parent, 6)["hashed"] is True
    assert json.loads((folder / "saved.json").read_text()) == {"step": 6}


def test_two_changed_bytes_in_any_file_are_found(run):
    step = run[0] / "checkpoints" / "6"
    for path in files_of(step):
        before = path.read_bytes()
        flip(path)
        with pytest.raises(
            TrainError, match=rf"{path.name}: a damaged file of a checkpoint.*--checkpoint STEP"
        ):
            hashes.check(step, checkpoint.read_facts(step.parent, 6))
        path.write_bytes(before)
    hashes.check(step, checkpoint.read_facts(step.parent, 6))


def test_a_step_is_identified_by_its_hashes(run, tmp_path):
    steps = run[0] / "checkpoints"
    found = {n: hashes.of_step(steps / n) for n in ("3", "6")}
    assert all(digest.startswith("xxh3:") for digest in found.values()) and len(
        set(found.values())
    ) == len(found)
    shutil.copytree(steps / "3", tmp_path / "copy")
    assert hashes.of_step(tmp_path / "copy") == found["3"]
    (steps / "3" / "hashes.json").unlink()
    assert hashes.of_step(steps / "3") == ""


@pytest.mark.parametrize(
    "damage", ["flip", "truncate", "remove", "facts", "no hashes", "bad hashes", "escape"]
)
def test_damaged_parameters_are_not_loaded_and_the_earlier_ones_can_be(run, damage):
    folder, target = run
    step = folder / "checkpoints" / "6"
    victim = max((step / "params").rglob("d/*"), key=lambda p: p.stat().st_size)
    if damage == "flip":
        flip(victim)
    elif damage == "truncate":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "remove":
        victim.unlink()
    elif damage == "facts":
        path = step / checkpoint.FACTS
        path.write_text(
            path.read_text()
            .replace('"metric": 0.6', '"metric": 0.7')
            .replace("0.6000000000000001", "0.7")
        )
    elif damage == "no hashes":
        (step / "hashes.json").unlink()
    elif damage == "bad hashes":
        (step / "hashes.json").write_text('{"files": [1]}')
    else:
        (step / "hashes.json").write_text('{"files": {"../../x": [1, "xxh3:0"]}, "facts": ""}')
    with pytest.raises(TrainError) as caught:
        checkpoint.load_params(folder, target["params"])
    assert str(step) in str(caught.value) and "copy the run folder again" in str(caught.value)
    loaded = checkpoint.load_params(folder, target["params"], which="3")
    np.testing.assert_array_equal(loaded["head"]["kernel"], 4.0)
    with (
        Checkpoints(folder / "checkpoints") as checkpoints,
        pytest.warns(RuntimeWarning, match=r"set aside as 6\.unreadable"),
    ):
        _, facts = checkpoints.restore(target)
    assert facts["step"] == 3 and (folder / "checkpoints" / "6.unreadable").is_dir()


def test_damage_of_the_optimizer_does_not_keep_the_parameters_from_being_read(run):
    folder, target = run
    flip(max((folder / "checkpoints" / "6" / "train").rglob("d/*"), key=lambda p: p.stat().st_size))
    np.testing.assert_array_equal(
        checkpoint.load_params(folder, target["params"])["head"]["kernel"], 7.0
    )
    with (
        Checkpoints(folder / "checkpoints") as checkpoints,
        pytest.warns(RuntimeWarning, match="a damaged file of a checkpoint"),
    ):
        assert checkpoints.restore(target)[1]["step"] == 3


def test_spread_parameters_are_hashed_as_well(tmp_path):
    rules = ((".*", "fsdp"),)
    target, state = fresh(sharding.make_mesh(8), rules)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.save(2, at(state, 2), {})
    flip(
        max(
            (tmp_path / "checkpoints" / "2" / "params").rglob("d/*"), key=lambda p: p.stat().st_size
        )
    )
    with (
        Checkpoints(tmp_path / "checkpoints") as checkpoints,
        pytest.warns(RuntimeWarning, match="a damaged file"),
    ):
        restored, facts = checkpoints.restore(target)
    np.testing.assert_array_equal(
        restored["params"]["encoder"]["0"]["kernel"], state["params"]["encoder"]["0"]["kernel"]
    )
    assert facts["step"] == 1


def test_a_checkpoint_without_hashes_loads_and_that_is_said_once(run, capsys):
    folder, target = run
    for step in (3, 6):
        path = folder / "checkpoints" / str(step)
        (path / "hashes.json").unlink()
        content = json.loads((path / checkpoint.FACTS).read_text())
        del content["custom_metadata"]["hashed"]
        (path / checkpoint.FACTS).write_text(json.dumps(content))
    for which in ("last", "3"):
        checkpoint.load_params(folder, target["params"], which=which)
    assert capsys.readouterr().err.count("made by an earlier version, without hashes") == 1


KILLED = """
import os, sys
import jax
sys.path.insert(0, {root!r})
from medjax.train import hashes
from medjax.train.checkpoint import Checkpoints
from tests.train.test_checkpoint import at, fresh
target, state = fresh()
with Checkpoints({folder!r}) as checkpoints:
    checkpoints.save(1, state, {{}})
    checkpoints.wait()
    whole = hashes.write
    def killed(folder, facts):
        {before}
        os.kill(os.getpid(), 9)
    hashes.write = killed
    checkpoints.save(2, at(state, 2), {{}})
    checkpoints.wait()
"""


@pytest.mark.parametrize("before", [slow("pass"), "whole(folder, facts)"])
def test_a_kill_beside_the_hashes_leaves_the_earlier_checkpoint(tmp_path, before):
    folder = tmp_path / "checkpoints"
    code = KILLED.format(root=str(ROOT), folder=str(folder), before=before)
    assert (
        subprocess.run(
            [sys.executable, "-c", code], timeout=200, check=False, capture_output=True
        ).returncode
        == -9
    )
    assert checkpoint.steps(folder) == [1]
    target, state = fresh()
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(target)[1]["step"] == 1
        checkpoints.save(2, at(state, 2), {})
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2"]


def test_a_full_disk_leaves_no_traceback_and_no_half_checkpoint(run, caplog):
    folder, _ = run
    _, state = fresh()
    large = {
        **state,
        "params": {
            **state["params"],
            "head": {"kernel": jax.random.normal(jax.random.key(0), (1000, 500))},
        },
    }
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with (
            caplog.at_level(logging.ERROR),
            pytest.raises(
                TrainError,
                match="the older ones are untouched; found files may not grow that large here",
            ),
            Checkpoints(folder / "checkpoints") as checkpoints,
        ):
            checkpoints.save(9, large, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [record for record in caplog.records if record.exc_info], caplog.text
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["3", "6"]
    assert json.loads((folder / "saved.json").read_text()) == {"step": 6}


def test_hashing_takes_a_small_share_of_a_restore(tmp_path):
    """Loose bound for any machine; benchmarks/hashing_checkpoint.py measures it."""
    target, state = fresh()
    big = {"kernel": jax.random.normal(jax.random.key(1), (4, 1000, 1000))}
    target = {
        **target,
        "params": jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), big),
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {**state, "params": big}, {})
    facts, best = checkpoint.read_facts(tmp_path, 1), [float("inf")] * 2
    for _ in range(5):
        for i, work in enumerate(
            (
                lambda: hashes.check(tmp_path / "1", facts, "params"),
                lambda: checkpoint.read_params(tmp_path),
            )
        ):
            began = time.perf_counter()
            work()
            best[i] = min(best[i], time.perf_counter() - began)
    assert best[0] < 0.3 * best[1], best
