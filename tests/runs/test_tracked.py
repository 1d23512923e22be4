"""`config.log` in a run: refused before anything is read, and a training that is tracked."""

import json
import sys

import pytest

import medjax
from medjax import main
from medjax.errors import EXIT_USAGE
from medjax.runs.start import tracked
from medjax.train import log, trackers
from tests.support import tracking
from tests.support.configs import typed
from tests.support.raw import write_corpus
from tests.test_main import SMALL


@pytest.mark.parametrize("mode", ["train", "crossval"])
def test_a_missing_package_ends_the_command_before_anything_is_read(
    mode, monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    folder = tmp_path / "data"  # does not exist: it is not looked for
    flags = ["--config=configs/multitalent.py:demo", f"--workdir={tmp_path / 'run'}"]
    flags += [f"--config.data.folders={folder}", "--config.log=wandb", f"--mode={mode}"]
    assert main.main([*flags]) == EXIT_USAGE
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'pip install "medjax[wandb]"' in said and str(folder) not in said
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_needs_no_tracker(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    flags = ["--config=configs/multitalent.py:demo", f"--workdir={tmp_path / 'run'}"]
    flags += [f"--config.data.folders={tmp_path / 'data'}", "--config.log=wandb", SMALL[0]]
    assert main.main([*flags, "--mode=evaluate"]) == EXIT_USAGE
    said = capsys.readouterr().err
    assert "wandb" not in said and str(tmp_path / "data") in said


def test_a_field_that_old_recipes_lack():
    from configs.base import base_config
    from medjax.registry import plain

    fields = plain(base_config())
    assert "log" not in fields and typed(fields).log == "" and "log" not in typed(fields).to_json()
    assert typed(fields | {"log": "wandb"}).as_given()["log"] == "wandb"


def test_only_the_first_process_has_trackers(monkeypatch, tmp_path):
    import jax

    monkeypatch.setitem(sys.modules, "wandb", None)  # nor is the package needed elsewhere
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    config = typed({"log": "wandb"})
    tracked.check(config)
    with tracked.started(config, tmp_path) as found:
        found.scalars(1, {"loss": 1.0})
    assert not found.open and not (tmp_path / trackers.NOTES).exists()


def test_names_of_folders(tmp_path):
    assert tracked.name_of(tmp_path / "mine") == "mine"
    assert tracked.name_of(tmp_path / "mine" / "fold_2") == "mine/fold_2"
    assert tracked.name_of(tmp_path / "mine" / "fold_b") == "fold_b"


@pytest.mark.slow
def test_a_training_with_trackers(monkeypatch, tmp_path):
    """Its weights and record are those of a training without; the service has the record."""
    services = {name: tracking.Service() for name in ("wandb", "mlflow")}
    monkeypatch.setitem(sys.modules, "wandb", tracking.wandb(services["wandb"]))
    monkeypatch.setitem(sys.modules, "mlflow", tracking.mlflow(services["mlflow"]))
    data = write_corpus(
        tmp_path / "Task01_Organs",
        n=4,
        shape=(18, 22, 20),
        labels={"organ": 1, "lesion": 2},
        layout="msd",
    )
    flags = dict(flag.removeprefix("--config.").split("=") for flag in SMALL)
    changes = {key: json.loads(f"[{value}]") for key, value in flags.items()}
    changes = {k: tuple(v) if len(v) > 1 else v[0] for k, v in changes.items()}
    changes |= {"data.folders": str(data), "train.steps": 4, "train.validate_every": 2}
    changes |= {"evaluate.on": False, "train.checkpoint_every": 2}
    for name, names in (("tracked", "wandb,mlflow"), ("plain", "")):
        config = medjax.config("configs/multitalent.py:demo", changes | {"log": names})
        medjax.train(config, tmp_path / name)
    text = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("tracked", "plain")]
    assert text[0] == text[1] and '"class_loss_ema/lesion"' in text[0]
    rows = [
        (row["step"], name, value)
        for row in log.read(tmp_path / "tracked" / "metrics.jsonl")
        for name, value in row.items()
        if name != "step" and value is not None
    ]
    for service in services.values():
        (run,) = service.runs.values()
        assert run["name"] == "tracked" and run["rows"] == rows
    assert services["mlflow"].runs["id0"]["params"]["train.steps"] == "4"
    assert services["wandb"].runs["id0"]["config"]["log"] == "wandb,mlflow"
