"""progress.png: a class has the same colour in the panels of losses and of Dice."""

import matplotlib.image
import numpy as np

from medjax.colours import of_classes
from medjax.train import curves


def seen(path, colour):
    """Number of pixels of a colour in the upper and in the lower half of the panels of classes."""
    picture = matplotlib.image.imread(path)[..., :3]
    there = np.abs(picture - np.asarray(colour)).max(-1) < 0.02
    rows = picture.shape[0]
    return there[: rows // 2].sum(), there[rows // 2 :].sum()


def test_a_class_has_its_colour_in_both_panels(tmp_path):
    names = ("liver", "gallbladder", "left kidney")
    rows = [
        {"step": k, "loss": 1 / k, "lr": 0.1}
        | {f"class_loss_ema/{name}": (i + 1) / k for i, name in enumerate(names)}
        | {f"dice_ema/{name}": 0.2 * i + k / 20 for i, name in enumerate(names)}
        for k in range(1, 9)
    ]
    path, plain = tmp_path / "progress.png", tmp_path / "plain.png"
    curves.draw(rows, path)
    colours = of_classes(names)
    for name in names:
        assert min(seen(path, colours[name])) > 50, name
    curves.draw([{k: v for k, v in row.items() if "class" not in k} for row in rows], plain)
    heights = [matplotlib.image.imread(each).shape[0] for each in (path, plain)]
    assert heights[0] > heights[1]
    curves.draw([], plain)  # a run that ended before its first line
    assert plain.stat().st_size > 1000
