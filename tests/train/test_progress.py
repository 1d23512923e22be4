"""The running numbers of a training: losses and Dice of classes, and the words of the line."""

import json
import math

import numpy as np
import pytest

from medjax.train import progress

NAMES = ("liver", "gallbladder", "colon")


def sums(loss, samples=(2.0, 4.0, 0.0)):
    """What validation sums up; nobody annotates the colon."""
    counts = {"tp": (8, 1, 0), "fp": (2, 1, 0), "fn": (2, 1, 0)}
    counts |= {"class_loss": np.array(loss), "class_samples": np.array(samples)}
    return {name: np.asarray(values) for name, values in counts.items()}


def test_the_loss_of_a_class_is_the_mean_over_its_samples_and_smoothed():
    one = progress.Progress(NAMES)
    record, _ = one.judge(5, sums((1.0, 8.0, 0.0)))
    assert record["class_loss/liver"] == 0.5 and record["class_loss/gallbladder"] == 2.0
    assert not [key for key in record if "loss" in key and key.endswith("colon")]
    assert one.losses == {"liver": 0.5, "gallbladder": 2.0} and one.worst() == ("gallbladder", 2.0)
    again = progress.Progress(NAMES, json.loads(json.dumps(one.to_json())))  # resumed
    record, _ = again.judge(10, sums((3.0, math.nan, 0.0)))
    assert record["class_loss_ema/liver"] == pytest.approx(0.9 * 0.5 + 0.1 * 1.5)
    assert "class_loss/gallbladder" not in record and record["class_loss_ema/gallbladder"] == 2.0
    assert json.dumps(record, allow_nan=False)


def test_a_run_of_an_earlier_version_has_no_losses():
    stored = progress.Progress(NAMES).to_json()
    del stored["losses"]
    one = progress.Progress(NAMES, stored)
    assert one.losses == {} and one.worst() is None
    without = {k: v for k, v in sums((1.0, 1.0, 0.0)).items() if not k.startswith("class")}
    record, improved = one.judge(1, without)
    assert improved and not [key for key in record if "loss" in key]


def test_the_words_of_the_line():
    one = progress.Progress(NAMES)
    assert one.text() == ""
    without = {k: v for k, v in sums((0, 0, 0)).items() if not k.startswith("class")}
    one.judge(1, without)  # Dice 0.8 and 0.5
    assert one.text() == "Dice in patches 0.650 (least gallbladder 0.500)"
    one.judge(2, sums((1.0, 8.0, 0.0)))  # the losses name a class then
    assert one.text() == one.text(short=True) == "Dice in patches 0.650"
    one.volumes = 0.6
    assert one.text() == "Dice in patches 0.650, in volumes 0.600"
    assert one.text(short=True) == "Dice 0.650, volumes 0.600"
