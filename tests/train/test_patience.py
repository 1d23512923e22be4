"""Early stopping: off unless asked for, and a run that ended early stays ended."""

import jax.numpy as jnp
import pytest

from medjax.train import checkpoint
from tests.train import test_toy as toy


class _NeverBetter:
    """The toy's task, but every validation finds nothing right: Dice 0, which is best only once."""

    def __init__(self):
        self.loss = toy.task().loss

    def validate(self, params, batch):
        ones = jnp.ones(len(toy.CLASSES), jnp.int32)
        return {"tp": 0 * ones, "fp": ones, "fn": ones}


@pytest.mark.slow
def test_training_stops_after_so_many_validations_without_a_better_one(tmp_path, capsys):
    state = toy.run(tmp_path / "run", steps=40, task=_NeverBetter(), patience=2)
    assert int(state["step"]) == 12  # validated at 4 (the best), 8 and 12
    assert "2 validations without a better one" in capsys.readouterr().out
    assert checkpoint.latest_step(tmp_path / "run" / "checkpoints") == 12
    again = toy.run(tmp_path / "run", steps=40, task=_NeverBetter(), patience=2)
    assert int(again["step"]) == 12


def test_without_patience_it_goes_on(tmp_path):
    assert int(toy.run(tmp_path / "run", steps=16, task=_NeverBetter())["step"]) == 16
