"""Training on several devices from the command line: the layout that is printed, the same numbers
as on one device, micro-batches, and resuming with either.
"""

import re

import jax
import pytest

from medjax import main
from medjax.errors import UsageError
from medjax.runs import hosts, trained
from medjax.train import log
from tests.support.configs import typed
from tests.support.raw import write_corpus


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """A small run of TSFM's smallest network on one corpus; no evaluation."""
    folder = tmp_path_factory.mktemp("raw") / "Task01_Blobs"
    write_corpus(folder, n=4, shape=(20, 36, 36))
    return [
        "--config=configs/tsfm.py:t_small",
        f"--config.data.folders={folder}",
        f"--config.data.store={folder.parent / 'store'}",
        "--config.data.split.folds=2",
        "--config.train.patch=16,32,32",
        "--config.train.batch=2",
        "--config.train.steps=2",
        "--config.train.validate_every=2",
        "--config.train.validation_batches=1",
        "--config.train.checkpoint_every=1",
        "--config.train.log_every=1",
        "--config.evaluate.on=False",
    ]


def losses(workdir):
    return [row["loss"] for row in log.read(workdir / "metrics.jsonl") if "loss" in row]


@pytest.mark.slow
def test_tsfm_trains_on_eight_devices_that_share_one_copy(flags, tmp_path, monkeypatch, capsys):
    assert main.main([*flags, f"--workdir={tmp_path / 'many'}", "--config.sharding.fsdp=8"]) == 0
    out = capsys.readouterr().out
    line = next(text for text in out.splitlines() if "8 devices as 1 x 8 (data x fsdp)" in text)
    assert "2 of 2 samples on each" in line and "compute the same samples" in line
    everything = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda *_: everything[:1])
    assert main.main([*flags, f"--workdir={tmp_path / 'one'}"]) == 0
    assert "data x fsdp" not in capsys.readouterr().out
    many, one = losses(tmp_path / "many"), losses(tmp_path / "one")
    assert len(one) == 2 and many == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
def test_idle_devices_and_micro_batches_are_said_and_resumed(flags, tmp_path, capsys):
    divided = [*flags, f"--workdir={tmp_path}", "--config.train.accumulate=2"]
    assert main.main(divided) == 0
    out = capsys.readouterr().out
    assert re.search(r"^1 of 8 devices as 1 x 1 .*2 micro-batches.*; 7 idle: make", out, re.M)
    assert "train.accumulate=2: dice are no sums over samples" in out
    assert main.main([*divided, "--config.train.steps=2"]) == 0, "the same recipe again"
    capsys.readouterr()
    assert main.main([*flags, f"--workdir={tmp_path}"]) != 0
    assert "train.accumulate" in capsys.readouterr().err


def test_a_layout_that_cannot_work_is_refused_before_anything_is_prepared(flags, tmp_path, capsys):
    arguments = [*flags, f"--workdir={tmp_path / 'x'}"]
    assert main.main([*arguments, "--config.sharding.fsdp=16"]) == 2
    assert "sharding.fsdp=16, 8 devices" in capsys.readouterr().err
    assert main.main([*arguments, "--config.train.accumulate=4"]) == 2
    assert "train.batch=2, train.accumulate=4" in capsys.readouterr().err
    with pytest.raises(UsageError, match="micro-batches"):
        hosts.layout(typed({"train": {"batch": 3, "accumulate": 2}, "sharding": {"fsdp": 1}}))
    found = hosts.layout(typed({"train": {"batch": 6}, "sharding": {"fsdp": 1}}))
    assert (found.data, found.accumulate, found.idle) == (6, 1, 2)


def test_a_platform_is_all_its_local_devices_and_a_number_one_of_them(monkeypatch):
    cards = [f"card {i}" for i in range(4)]
    known = {"gpu": cards, "cpu": jax.devices()}
    monkeypatch.setattr(jax, "devices", lambda name=None: known[name])
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: known[backend][:2])
    assert trained.named_devices("") is None
    assert trained.named_devices("gpu") == cards[:2] and trained.named_devices("gpu:3") == cards[3:]
    assert trained.named_devices("cpu") == jax.devices("cpu")[:1], "one device has all cores"
