"""A finished run goes on: `--config.train.steps=+N`."""

import json

import numpy as np
import pytest

from medjax import main
from medjax.errors import UsageError
from medjax.registry import plain
from medjax.runs import folder as runfolder
from medjax.runs import stages
from medjax.runs.start import continued
from medjax.train import checkpoint, optim, phases
from tests.support import tiny
from tests.support.configs import typed

LR = 1e-2


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("raw"))[1:]


def _fields(raw, **train):
    fields = tiny.fields(raw, **{"checkpoint_every": 4, **train})
    fields["optim"] |= {"name": "adamw", "lr": LR}
    return fields


def _train(raw, folder, **given):
    stages.train(stages.open_run(_fields(raw, **given), folder))


def _rows(folder):
    return list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))


@pytest.fixture(scope="module")
def run(raw, tmp_path_factory):
    """Four steps, then four more, in two calls."""
    folder = tmp_path_factory.mktemp("run") / "run"
    _train(raw, folder)
    first = _rows(folder)
    _train(raw, folder, steps=99, more=4)
    return folder, first


def test_the_schedule_begins_again_and_the_record_goes_on(run):
    folder, first = run
    rows = _rows(folder)
    assert rows[:4] == first and [row["step"] for row in rows] == list(range(1, 9))
    assert rows[4]["lr"] == pytest.approx(LR) and rows[3]["lr"] < rows[4]["lr"] > rows[7]["lr"]
    train = runfolder.read_config(folder).train
    assert (train.steps, train.continued, train.more) == (8, (4,), 0)
    assert "more" not in runfolder.read_json(folder, runfolder.CONFIG)["train"]


def test_the_first_command_means_the_run_as_it_is(raw, run):
    folder, _ = run
    before = (folder / "metrics.jsonl").read_text()
    _train(raw, folder)
    assert (folder / "metrics.jsonl").read_text() == before
    assert runfolder.read_config(folder).train.steps == 8
    with pytest.raises(UsageError, match="another recipe"):
        _train(raw, folder, batch=3)
    with pytest.raises(UsageError, match="another recipe"):
        _train(raw, folder, more=2, batch=3)


@pytest.mark.slow
def test_an_interrupted_continuation_is_resumed_by_the_same_command(
    raw, run, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    _train(raw, folder)
    tiny.interrupt(_fields(raw, more=4), folder, monkeypatch, 1)
    with pytest.raises(UsageError, match=r"not finished: step [67] of 8"):
        _train(raw, folder, more=5)
    _train(raw, folder, more=4)
    whole, _ = run
    assert _rows(folder) == _rows(whole)
    one, other = (checkpoint.read_params(f)["head_0"]["kernel"] for f in (folder, whole))
    np.testing.assert_array_equal(one, other)


def test_only_a_finished_run_goes_on(raw, tmp_path):
    with pytest.raises(UsageError, match="no finished run to continue"):
        _train(raw, tmp_path / "new", more=3)
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="cannot be shortened"):
        continued.applied(typed(_fields(raw, more=-3)), tmp_path)


def test_the_flag():
    words = ["main", "--config=configs/hippocampus.py:full", "--workdir=x"]
    train = plain(main.parse([*words, "--config.train.steps=+1000"]).config)["train"]
    assert (train["steps"], train["more"]) == (1500, 1000)
    with pytest.raises(UsageError, match=r"train.more"):
        main.parse([*words, "--config.train.steps=+ten"])


def test_schedules_of_several_segments():
    rate = optim.make(steps=10, lr=1.0, power=1.0, restarts=(4, 6)).schedule
    parts = [(4, 0), (2, 4), (4, 6)]
    expected = [1 - k / n for n, _ in parts for k in range(n)]
    np.testing.assert_allclose([rate(k) for k in range(10)], expected, rtol=1e-6)
    plan = [{"steps": 2, "lr": 5.0, "schedule": "constant"}, {"steps": 4, "lr": 1.0, "power": 1.0}]
    rate = phases.make(plan, {"name": "sgd"}, 9, (6,)).schedule
    expected = [5, 5, 1, 0.75, 0.5, 0.25, 1, 2 / 3, 1 / 3]
    np.testing.assert_allclose([rate(k) for k in range(9)], expected, rtol=1e-6)
    with pytest.raises(UsageError, match="do not fill the run"):
        phases.make(plan, {"name": "sgd"}, 9)
