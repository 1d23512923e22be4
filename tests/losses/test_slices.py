"""Dice per slice with a smoothed denominator, as the released SegVol code has it (T11, T12)."""

import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.losses import cross_entropy, dice


def given(target):
    """A prediction that is right everywhere, with logits of 20."""
    target = jnp.asarray(target)
    table = jnp.array([[[False], [True]]])
    batch = {"label": target.astype(jnp.int32), "table": table, "known": jnp.array([[True]])}
    return {"logits": jnp.where(target, 20.0, -20.0)[..., None]}, batch


def organ():
    target = np.zeros((1, 32, 64, 64), bool)
    target[0, 8:18, 4:54, 2:62] = True
    return target


def test_t11_a_perfect_prediction_of_ten_slices_keeps_a_loss():
    outputs, batch = given(organ())
    released = dice.make("slice", 1.0, "mean", smooth_in="denominator")
    assert 1 + released(outputs, batch) == pytest.approx(0.68755, abs=1e-5)
    volume = dice.make("sample", 1.0, "mean", smooth_in="denominator")
    assert 1 + volume(outputs, batch) == pytest.approx(1.669e-5, rel=0.02)
    assert 1 + dice.make("sample", 1.0, "mean")(outputs, batch) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_t12_an_empty_prediction_of_nothing():
    outputs, batch = given(np.zeros((1, 32, 256, 256), bool))
    released = dice.make("slice", 1.0, "mean", smooth_in="denominator")
    assert 1 + released(outputs, batch) == 1
    whole = dice.make("sample", 1.0, "mean")
    both = 1 + whole(outputs, batch) + cross_entropy.make("per_annotating", "mean")(outputs, batch)
    assert float(both) == pytest.approx(0.004, abs=5e-4)


def test_slices_are_counted_once_per_sample():
    """Two samples of one class, a sum over (sample, class): each at most -1."""
    outputs, batch = given(np.ones((2, 4, 5, 6), bool))
    batch["table"], batch["known"] = batch["table"].repeat(2, 0), batch["known"].repeat(2, 0)
    assert float(dice.make("slice")(outputs, batch)) == pytest.approx(-2, abs=1e-5)
    batch["known"] = jnp.array([[True], [False]])
    assert float(dice.make("slice", reduction="mean")(outputs, batch)) == pytest.approx(
        -1, abs=1e-5
    )
    with pytest.raises(UsageError, match="denominator"):
        dice.make(smooth_in="denominater")
