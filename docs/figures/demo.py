"""The first picture of README and site: held-out scans of the demo, annotation, and mask.

    python -m medjax.main --config=configs/multitalent.py:demo --workdir=runs/demo \\
      --config.train.steps=1200
    python docs/figures/demo.py runs/demo docs/pictures/demo.png

In: a run folder with predictions. Out: a row per corpus: the first held-out case, its axial slice
with most annotated voxels: scan, annotation, prediction. Nothing is retouched.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medjax import colours, labels
from medjax.corpora.cases import load
from medjax.corpora.sources import read_corpus
from medjax.prepare import geometry
from medjax.report import montage
from medjax.scans import nifti

GROUND, INK, DPI = "#111111", "#dddddd", 90
COLUMNS = ("scan", "annotation", "prediction")


def cases(run: Path) -> Iterator[tuple[labels.Corpus, np.ndarray, np.ndarray, np.ndarray]]:
    """Of every corpus with predictions: corpus, and (y, x) slices of grey, annotation, prediction.

    The slices are dense ids, with the patient's right on the left.
    """
    for folder in sorted((run / "phantoms").iterdir()):
        corpus, known = read_corpus(folder)
        found = sorted((run / "predictions" / corpus.name).glob("*.nii.gz"))
        if not found:
            continue
        case = next(c for c in known if c.name == found[0].name.removesuffix(".nii.gz"))
        scan, ids = load(case, corpus)
        mask = corpus.to_ids(nifti.read(found[0]).array)
        upright = geometry.fit(scan, None, crop="none")
        reference, predicted = upright.image(ids), upright.image(mask)
        grey = upright.image(np.asarray(scan.array)).reshape(reference.shape)
        at = montage.best_slices(reference)[0]
        yield corpus, *(volume[at][:, ::-1] for volume in (grey, reference, predicted))


def draw(run: Path, out: Path) -> None:
    """Writes the picture; raises `SystemExit` for a run without predictions."""
    rows = list(cases(run))
    if not rows:
        raise SystemExit(f"{run}: no predictions of phantoms; run the demo to its end")
    space = labels.merge([corpus for corpus, *_ in rows])
    found = colours.of_classes(space.classes)
    shades = [found[name] for name in space.classes]
    figure = Figure(figsize=(10.0, 2.35 * len(rows) + 0.75), facecolor=GROUND)
    FigureCanvasAgg(figure)
    tall = figure.get_figheight()
    for row, (corpus, grey, *maps) in enumerate(rows):
        shown = [_coloured(grey, None, corpus, space, shades)]
        shown += [_coloured(grey, ids, corpus, space, shades) for ids in maps]
        for column, picture in enumerate(shown):
            bottom = (tall - 0.3 - 2.35 * (row + 1)) / tall
            axes = figure.add_axes((0.005 + column / 3, bottom, 0.323, 2.3 / tall))
            axes.imshow(picture, origin="lower", interpolation="bilinear")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(COLUMNS[column], color=INK, fontsize=11, pad=4)
        place = (0.012, (tall - 0.55 - 2.35 * row) / tall)
        figure.text(*place, f"{corpus.modality}, {corpus.name}", color=INK, fontsize=9)
    _legend(figure, space, shades)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=DPI, facecolor=GROUND, metadata={"Software": None})


def _coloured(grey, ids, corpus, space, shades: Sequence) -> np.ndarray:
    """(y, x, 3): the slice, with the smallest class of every voxel as its colour."""
    low, high = np.percentile(grey, (2, 99.5))
    light = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
    picture = np.repeat(light[..., None], 3, -1)
    if ids is None:
        return picture
    classes = space.table[space.corpus_index(corpus.name)][ids]
    for c in np.argsort(-classes.sum((0, 1))):
        inside = classes[..., c]
        picture[inside] = 0.45 * light[inside, None] + 0.55 * np.asarray(shades[c])[:3]
    return picture


def _legend(figure: Figure, space: labels.LabelSpace, shades: Sequence) -> None:
    from matplotlib.patches import Patch

    drawn = [Patch(color=c, label=n) for n, c in zip(space.classes, shades, strict=True)]
    style = {"frameon": False, "labelcolor": INK, "fontsize": 8.5, "handlelength": 1.0}
    figure.legend(handles=drawn, loc="lower center", ncols=7, columnspacing=1.1, **style)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
