"""Trackers: what they get, once each, over interruptions and failures; what is refused before."""

import json
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from medjax import plugins
from medjax.errors import Preempted, UsageError
from medjax.train import log, tracker_mlflow, tracker_wandb, trackers
from tests.support import tracking

CONFIG = {"name": "small", "optim": {"lr": 0.01, "rules": [[".*", True]]}}


@pytest.fixture
def services(monkeypatch):
    """Package -> its service, with both packages in place."""
    found = {tracking.WANDB: tracking.Service(), tracking.MLFLOW: tracking.Service()}
    monkeypatch.setitem(sys.modules, "wandb", tracking.wandb(found["wandb"]))
    monkeypatch.setitem(sys.modules, "mlflow", tracking.mlflow(found["mlflow"]))
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    return found


def train(folder, start, end, *, names="wandb,mlflow", error=None, resumes=None, picture=True):
    """A training from step `start` on, of which every step is recorded and every second one
    validated, as the loop does.
    """
    resumes = bool(start) if resumes is None else resumes
    with trackers.Trackers(trackers.chosen(names), folder) as chosen:
        chosen.start("mine", CONFIG, resumes)
        settings = dict(steps=9, start=start, log_every=1, print_seconds=0, picture=picture)
        with log.Log(folder, log.Progress(()), **settings, trackers=chosen) as record:
            for step in range(start + 1, end + 1):
                record.submit(step, {"loss": 1 / step, "lr": 0.5})
                record.settle()
                if step % 2 == 0:
                    record.measured(step, {"liver": step / 10})
            if error:
                raise error


def rows_of(folder):
    """(step, name, value) of metrics.jsonl."""
    return [
        (row["step"], name, value)
        for row in log.read(folder / "metrics.jsonl")
        for name, value in row.items()
        if name != "step"
    ]


def test_both_get_the_record_the_config_and_the_picture(services, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    train(tmp_path, 0, 4)
    picture = str(tmp_path / "progress.png")
    assert len(rows_of(tmp_path)) == 12
    for service in services.values():
        (run,) = service.runs.values()
        assert run["rows"] == rows_of(tmp_path) and run["name"] == "mine"
        assert service.project == "medjax"
    (run,) = services["wandb"].runs.values()
    assert run["config"] == CONFIG and services["wandb"].dir == str(tmp_path)
    assert run["files"] == [(4, "progress", picture)] and run["status"] == 0
    (run,) = services["mlflow"].runs.values()
    assert run["params"] == {"name": "small", "optim.lr": "0.01", "optim.rules": '[[".*", true]]'}
    assert run["files"] == [str(tmp_path / "config.json"), picture]
    assert run["status"] == "FINISHED" and services["mlflow"].active is None


def test_a_resumed_training_continues_the_run_and_sends_nothing_twice(services, tmp_path):
    """Killed at step 5, resumed from the checkpoint of step 3: steps 4 and 5 are there already."""
    whole = tmp_path / "whole"
    whole.mkdir()
    train(whole, 0, 8, picture=False)
    expected = rows_of(whole)
    for service in services.values():
        service.runs.clear()
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(Preempted):
        train(folder, 0, 5, error=Preempted("stopped"), picture=False)
    assert [run["status"] for s in services.values() for run in s.runs.values()] == [1, "KILLED"]
    train(folder, 3, 8, picture=False)
    for service in services.values():
        (run,) = service.runs.values()
        assert run["rows"] == expected == rows_of(folder)
        assert run["status"] in (0, "FINISHED")
    train(folder, 8, 8)  # nothing new: no second picture either
    (run,) = services["wandb"].runs.values()
    assert run["rows"] == expected and not run["files"]


def test_a_kill_between_two_rows_of_a_step(services, tmp_path):
    train(tmp_path, 0, 1, picture=False)
    with trackers.Trackers(trackers.chosen("wandb"), tmp_path) as chosen:
        chosen.start("mine", CONFIG, True)
        chosen.scalars(2, {"loss": 0.5, "lr": 0.5})
    train(tmp_path, 1, 2, picture=False)
    (run,) = services["wandb"].runs.values()
    assert run["rows"] == rows_of(tmp_path)


def test_a_training_that_starts_again_is_another_run(services, tmp_path):
    """Without a checkpoint nothing is continued, whatever was sent."""
    train(tmp_path, 0, 3, picture=False)
    train(tmp_path, 0, 2, picture=False)
    assert [len(run["rows"]) for run in services["wandb"].runs.values()] == [8, 6]


def test_a_tracker_that_is_chosen_later_gets_all_of_the_record(services, tmp_path):
    train(tmp_path, 0, 4, names="", picture=False)
    assert not (tmp_path / trackers.NOTES).exists()
    train(tmp_path, 4, 6, names="mlflow", picture=False)
    (run,) = services["mlflow"].runs.values()
    assert run["rows"] == rows_of(tmp_path) and not services["wandb"].calls


def test_a_failure_is_said_once_and_the_rest_goes_on(services, tmp_path, capsys):
    """The next start sends what is missing."""
    train(tmp_path, 0, 2, picture=False)
    services["mlflow"].broken.add("log_metrics")
    train(tmp_path, 2, 5, picture=False)
    said = [line for line in capsys.readouterr().err.splitlines() if "tracker" in line]
    assert len(said) == 1 and "the tracker 'mlflow' failed" in said[0]
    assert "(ConnectionError: no answer to log_metrics)" in said[0]
    assert services["mlflow"].calls.count("log_metrics") == 4
    (run,) = services["mlflow"].runs.values()
    assert run["status"] == "FAILED" and services["mlflow"].active is None
    assert services["wandb"].runs["id0"]["rows"] == rows_of(tmp_path)
    services["mlflow"].broken.clear()
    train(tmp_path, 5, 6, picture=False)
    assert run["rows"] == rows_of(tmp_path) and run["status"] == "FINISHED"


def test_one_that_does_not_start_is_an_error_of_a_new_training_only(services, tmp_path, capsys):
    services["mlflow"].broken.add("start_run")
    with pytest.raises(
        UsageError, match=r"'mlflow' does not start.*no answer to start_run"
    ) as found:
        train(tmp_path, 0, 2)
    assert "leave it out of config.log" in found.value.fix
    assert services["wandb"].runs["id0"]["status"] == 1  # it had started
    assert not (tmp_path / "metrics.jsonl").exists()
    train(tmp_path, 2, 3, resumes=True, picture=False)
    assert "left out" in capsys.readouterr().err and rows_of(tmp_path)


def test_a_missing_package_and_an_unknown_name(monkeypatch):
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)  # cannot be imported
        with pytest.raises(UsageError) as found:
            trackers.chosen(f" {name},")
        assert f'pip install "medjax[{name}]"' in found.value.fix and "\n" not in str(found.value)
    with pytest.raises(UsageError, match=r"unknown tracker 'wandbb'.*did you mean wandb"):
        trackers.chosen("wandbb")
    assert trackers.chosen("") == {}


def test_a_tracker_of_another_package(monkeypatch, tmp_path):
    (tmp_path / "their_tracker.py").write_text(
        "rows = []\n"
        "class Own:\n"
        "    def start(self, run): return run.name\n"
        "    def scalars(self, step, values): rows.append((step, dict(values)))\n"
        "    def picture(self, name, path, step): rows.append((step, name))\n"
        "    def finish(self, status): rows.append(status)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("own", "their_tracker:Own", plugins.TRACKERS)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [point])
    train(tmp_path, 0, 1, names="own")
    rows = sys.modules["their_tracker"].rows
    assert rows == [(1, {"loss": 1.0, "lr": 0.5}), (1, "progress"), "finished"]
    lost = EntryPoint("lost", "no_such_module:Own", plugins.TRACKERS)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [lost])
    with pytest.raises(UsageError, match="'lost' cannot be loaded"):
        trackers.chosen("lost")


def test_numbers_that_are_none_are_left_out(services, tmp_path):
    with trackers.Trackers(trackers.chosen("wandb"), tmp_path) as chosen:
        chosen.start("mine", CONFIG, False)
        chosen.scalars(1, {"a": float("nan"), "b": None, "c": 2.0})
        chosen.scalars(1, {"a": float("inf")})
    assert services["wandb"].runs["id0"]["rows"] == [(1, "c", 2.0)]
    assert services["wandb"].calls == ["init", "define_metric", "log", "finish"]


def test_damaged_notes_say_what_to_do(services, tmp_path):
    (tmp_path / trackers.NOTES).write_text("{")
    with pytest.raises(UsageError, match=re.escape(trackers.NOTES)) as found:
        train(tmp_path, 2, 3)
    assert "delete trackers.json" in found.value.fix


def test_what_mlflow_accepts():
    """Names and values within the limits of mlflow/utils/validation.py; two names stay two."""
    long = {"a": "x" * 501, "b": {"c": list(range(400)), "d": {}}, "e": "y" * 500}
    found = tracker_mlflow.params(long)
    assert [len(v) for v in found.values()] == [500, 500, 2, 500] and found["e"] == "y" * 500
    assert found["a"].endswith("x...") and found["b.d"] == "{}"
    names = ["dice/liver (left)", "dice/liver [left]", "a//b", "/a", "../a", "x" * 251, "x" * 252]
    usable = [tracker_mlflow.usable(name) for name in names]
    assert len(set(usable)) == len(names)
    for name in usable:
        assert tracking.NAMES.match(name) and len(name) <= 250
        assert not {"", ".", ".."} & set(name.split("/"))
    assert tracker_mlflow.usable("dice/Leber-groß 1.5") == "dice/Leber-groß 1.5"


def test_many_values_go_in_several_calls(services):
    service, one = services["mlflow"], tracker_mlflow.Mlflow()
    one.start(trackers.Described("mine", Path("."), {f"f{k}": k for k in range(250)}))
    one.scalars(3, {f"m{k}": float(k) for k in range(2500)})
    assert service.calls.count("log_params") == 3 and service.calls.count("log_metrics") == 3
    assert len(service.runs["id0"]["params"]) == 250 and len(service.rows("id0")) == 2500


def test_projects_of_the_environment(services, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_PROJECT", "organs")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "organs")
    for made in (tracker_wandb.Wandb(), tracker_mlflow.Mlflow()):
        made.start(trackers.Described("mine", tmp_path, {}))
    assert {service.project for service in services.values()} == {"organs"}
