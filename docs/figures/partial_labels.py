"""The figure of docs/concepts.md: what three corpora annotate, and what the loss learns from each.

    python docs/figures/partial_labels.py docs/pictures/partial_labels.png

The three synthetic corpora are written, read as any data set is, and merged into one label space.
A network without an opinion (every score is 0, every probability 1/2) sees one scan of each. A
cell is the gradient of the cross-entropy that reaches the scores of a class from this scan, summed
over the voxels: 0.5 where the class is annotated, since 1/2 is wrong by 1/2 in every voxel, and
exactly 0 where it is not.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from medjax import colours, labels
from medjax.corpora.cases import load
from medjax.corpora.sources import read_corpus
from medjax.losses import cross_entropy
from medjax.phantom.corpora import write_corpora
from medjax.prepare import geometry

WIDTH, HEIGHT, DPI = 10.0, 5.6, 110


def scans(folder: Path, size: str) -> tuple[labels.LabelSpace, list[tuple[np.ndarray, np.ndarray]]]:
    """The label space of the three corpora, and image and dense ids (z, y, x) of a case of each."""
    read = [read_corpus(one) for one in write_corpora(folder, cases=1, size=size)]
    found = []
    for corpus, cases in read:
        scan, ids = load(cases[0], corpus)
        upright = geometry.fit(scan, None, crop="none")  # RAS, whatever the file's axes
        image = upright.image(np.asarray(scan.array)).reshape(upright.image(ids).shape)
        found.append((image, upright.image(ids)))
    return labels.merge([corpus for corpus, _ in read]), found


def gradients(space: labels.LabelSpace, ids: Sequence[np.ndarray]) -> np.ndarray:
    """(corpus, class): sum of the absolute gradient of the cross-entropy over a scan's scores.

    Every scan is a batch of its own, with scores 0.
    """
    loss, rows = cross_entropy.make(), []
    for k, label in enumerate(ids):
        batch = {
            "label": jnp.asarray(label[None], jnp.int32),
            "corpus": jnp.array([k]),
            "table": jnp.asarray(space.table)[jnp.array([k])],
            "known": jnp.asarray(space.known)[jnp.array([k])],
        }
        scores = jnp.zeros((1, *label.shape, len(space.classes)))
        slope = jax.grad(lambda x, batch=batch: loss({"logits": x}, batch))(scores)
        rows.append(np.abs(np.asarray(slope)).sum((0, 1, 2, 3)))
    return np.stack(rows)


def draw(path: Path, size: str = "small") -> np.ndarray:
    """Writes the figure; returns the gradients (corpus, class)."""
    with tempfile.TemporaryDirectory() as folder:
        space, read = scans(Path(folder), size)
    slope = gradients(space, [ids for _, ids in read])
    found = colours.of_classes(space.classes)
    shades = [found[name] for name in space.classes]
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="white")
    FigureCanvasAgg(figure)
    height, top, left = 0.25, 0.93, 0.38
    for k, (image, ids) in enumerate(read):
        axes = figure.add_axes((0.0, top - (k + 1) * height, left - 0.11, height - 0.012))
        _scan(axes, image, space.table[k][ids], shades)
    table = figure.add_axes((left, top - 3 * height, 0.995 - left, 3 * height))
    _cells(table, space, slope, shades)
    heads = {0.012: "what each corpus annotates", left: "gradient that reaches each class"}
    for x, text in heads.items():
        figure.text(x, 0.955, text, fontsize=10.5, weight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return slope


def _scan(axes, image: np.ndarray, classes: np.ndarray, shades: Sequence) -> None:
    """The axial slice with most annotated voxels, its classes as colours over grey.

    Args:
      image: (z, y, x). classes: (z, y, x, class) bool.
    """
    at = int(np.argmax(classes.any(-1).sum((1, 2))))
    low, high = np.percentile(image[at], (2, 99.5))
    grey = np.clip((image[at] - low) / (high - low), 0, 1)
    shown = np.repeat(grey[..., None], 3, -1)
    order = np.argsort(-classes[at].sum((0, 1)))  # smaller regions over larger ones
    for c in order:
        inside = classes[at, ..., c]
        shown[inside] = 0.4 * grey[inside, None] + 0.6 * np.asarray(shades[c])[:3]
    shown = shown[:, ::-1]  # the patient's right on the left
    axes.imshow(shown, origin="lower", aspect="equal", interpolation="nearest")
    axes.set_axis_off()


def _cells(axes, space: labels.LabelSpace, slope: np.ndarray, shades: Sequence) -> None:
    """Rows are corpora, columns classes: coloured where annotated, with the number."""
    rows, columns = slope.shape
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    for k in range(rows):
        for c in range(columns):
            known = bool(space.known[k, c])
            face = (*shades[c][:3], 0.75) if known else "#f1f1f1"
            box = {"facecolor": face, "edgecolor": "white", "linewidth": 2}
            axes.add_patch(Rectangle((c, k), 1, 1, **box))
            text = f"{slope[k, c]:.1f}" if slope[k, c] else "0"
            ink = "#111111" if known else "#999999"
            axes.text(c + 0.5, k + 0.5, text, ha="center", va="center", fontsize=8, color=ink)
    names = [f"{c.name}\n{c.modality}" for c in space.corpora]
    axes.set_yticks(np.arange(rows) + 0.5, names, fontsize=9)
    axes.set_xticks(np.arange(columns) + 0.5, space.classes, fontsize=8.5, rotation=38, ha="right")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
