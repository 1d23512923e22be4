"""The record of a training: pseudo Dice by corpus, and the picture of the curves."""

import json

import matplotlib.image
import numpy as np
import pytest

from medjax.colours import shade
from medjax.train import log


def test_pseudo_dice_by_corpus():
    """One class each: 2 TP / (2 TP + FP + FN) by hand; views of a store count together."""
    one = {"tp": np.array([6, 1]), "fp": np.array([2, 0]), "fn": np.array([2, 2])}
    rows = {
        "corpus_tp": np.array([[4, 0], [2, 0], [0, 1]]),
        "corpus_fp": np.array([[0, 0], [2, 0], [0, 0]]),
        "corpus_fn": np.array([[0, 0], [2, 0], [0, 2]]),
    }
    progress = log.Progress(("a", "b"), corpora=("X", "Y", "Z"))
    record, _ = progress.judge(1, one | rows)
    assert record["corpus_dice/X"] == 1
    assert record["corpus_dice/Y"] == pytest.approx(4 / 8)
    assert record["corpus_dice/Z"] == pytest.approx(2 / 4)
    again = log.Progress(("a", "b"), progress.to_json(), ("X", "X", "Z"))
    joined, _ = again.judge(2, one | rows)
    assert joined["corpus_dice/X"] == pytest.approx(12 / 16) and "corpus_dice/Y" not in joined
    plain, _ = log.Progress(("a", "b"), corpora=("X", "Y", "Z")).judge(1, one)
    assert not [key for key in plain if key.startswith("corpus_dice/")]


def test_the_picture_has_a_curve_for_every_corpus(tmp_path):
    rows = [
        {"step": k, "loss": 1 / k, "dice_ema/liver": k / 9, "corpus_dice/A": k / 10, "lr": 0.1}
        | {"corpus_dice/B": k / 20}
        for k in range(1, 9)
    ]
    shapes = []
    for name, kept in (("with", rows), ("without", [{"step": 1, "loss": 1.0, "lr": 0.1}])):
        folder = tmp_path / name
        folder.mkdir()
        text = "".join(json.dumps(row) + "\n" for row in kept)
        (folder / "metrics.jsonl").write_text(text)
        log.draw(folder)
        picture = matplotlib.image.imread(folder / "progress.png")[..., :3]
        shapes.append(picture.shape[0])
        seen = [(np.abs(picture - shade(k)).max(-1) < 0.02).sum() for k in (0, 1)]
        assert (min(seen) > 50) == (name == "with")
    assert shapes[0] > shapes[1]  # a panel more
