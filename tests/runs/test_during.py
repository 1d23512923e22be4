"""Dice of whole held-out volumes while a network trains: the numbers of the final evaluation, and
the same after an interruption.
"""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from medjax.errors import UsageError
from medjax.runs import during, stages
from medjax.runs.settings.use import Evaluate
from medjax.runs.trained import read_model
from tests.support import tiny


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("raw"))


def _fields(raw, **evaluate):
    fields = tiny.fields(raw, checkpoint_every=4, validate_every=3, validation_batches=1)
    fields["optim"] |= {"name": "adamw", "lr": 1e-2}
    fields["evaluate"] |= {"during": 2, "surface": False, "montages": 0} | evaluate
    return fields


def _rows(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "volume_dice" in row]


@pytest.fixture(scope="module")
def run(raw, tmp_path_factory):
    """A finished and evaluated run of four steps."""
    folder = tmp_path_factory.mktemp("run") / "run"
    opened = stages.open_run(_fields(raw), folder)
    stages.train(opened)
    assert stages.evaluate(opened) == 0
    return folder


@pytest.mark.slow
def test_the_last_measurement_is_the_final_evaluation(run):
    """Two held-out cases per corpus, so the few cases are all of them."""
    first, last = _rows(run)
    assert (first["step"], last["step"]) == (2, 4) and first != last | {"step": 2}
    cells = json.loads((run / "evaluation" / "summary.json").read_text())["cells"]
    expected = {
        f"volume_dice/{corpus}/{name}": cell["Dice_own_channel"]["mean"]
        for corpus, row in cells.items()
        for name, cell in row.items()
    }
    found = {name: value for name, value in last.items() if name.startswith("volume_dice/")}
    assert found == pytest.approx(expected, abs=1e-4) and len(found) == 3
    assert last["volume_dice"] == pytest.approx(math.fsum(found.values()) / 3)
    assert 0 < last["volume_dice"] < 1


@pytest.mark.slow
def test_an_interrupted_run_measures_the_same(raw, run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    tiny.interrupt(_fields(raw), folder, monkeypatch, 3)
    assert _rows(folder) == _rows(run)[:1]
    stages.train(stages.open_run(_fields(raw), folder))
    assert (folder / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()


def test_it_is_off_by_default_and_needs_a_case(raw, tmp_path):
    assert Evaluate().during == 0
    for wrong in ({"during_cases": 0}, {"during": -1}):
        with pytest.raises(UsageError, match="during_cases must be positive"):
            stages.open_run(_fields(raw, **wrong), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_one_program_serves_all_calls(raw, run):
    opened = stages.open_run(_fields(raw), run)
    trained = read_model(run)
    held = list(stages.held_cases(opened, trained.space.unveiled()).values())
    volumes = during.Volumes(trained.config, trained.space, trained.plan, run, held)
    params = jax.tree.map(jnp.asarray, trained.params())
    first = volumes(params)
    other = volumes(jax.tree.map(jnp.zeros_like, params))
    assert volumes(params) == first and first != other
    assert volumes.segmenter.compiled == 2, "one per number of classes"
