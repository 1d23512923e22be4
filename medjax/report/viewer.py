"""The data of one case for a report's viewer: scan, masks and their differences.

In: file paths of a case and the meaning of its label values. Out: JSON-ready payloads with base64
NIfTI files, small enough to embed in a page.
"""

import base64
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from medjax.colours import of_labels
from medjax.corpora.inputs import Case
from medjax.labels import Corpus
from medjax.metrics import side
from medjax.prepare import geometry
from medjax.report import embed
from medjax.scans import formats, grid, nifti

AIR_HU, SOFT_TISSUE_HU = -500.0, (-160.0, 240.0)
DIFFERENCES = (
    ("missed by the prediction", "#D55E00"),
    ("only in the prediction", "#56B4E9"),
    ("another class", "#F0E442"),
)


@dataclasses.dataclass(frozen=True)
class Shown:
    """One case of a viewer.

    Attributes:
      key: unique in the page, e.g. "corpus/case". title: what the reader chooses.
      images: paths of the scan's channels (the first is shown); empty shows the masks alone.
      reference, prediction: paths of label maps, or None.
      names: label value -> class name.
      frame: of a 4D scan, the one that is shown.
      corpus, source: for references and predictions that are no plain label maps; see
        `metrics.side.open_masks`.
    """

    key: str
    title: str
    images: tuple[str, ...]
    reference: str | None
    prediction: str | None
    names: Mapping[int, str]
    corpus: Corpus | None = None
    source: Case | None = None
    frame: int = 0


def payload(shown: Shown, voxels: int) -> dict:
    """Reads, crops, coarsens and encodes one case.

    Args:
      voxels: most voxels per volume.

    Returns: {"image", "layers": {name: {"data", "labels"}}, "window", "focus", "note"}; images as
      base64 of .nii.gz.
    Raises: `DataError` for unreadable files or masks on another grid.
    """
    paths = {"reference": (shown.reference, shown.source), "prediction": (shown.prediction, None)}
    maps = {
        name: _map(path, shown.corpus, source) for name, (path, source) in paths.items() if path
    }
    scan = (
        formats.read(shown.images[0], frame=shown.frame, allow_nonfinite=True)
        if shown.images
        else None
    )
    like = scan if scan is not None else next(iter(maps.values()))
    for other in maps.values():
        nifti.check_same_geometry(like, other)
    canonical = geometry.fit(like, None, crop="none")
    found = {int(v) for m in maps.values() for v in np.unique(m.array)}
    values = sorted((found | set(shown.names)) - {0})[:255]  # a label layer is uint8
    layers = {name: _dense(canonical.image(m.array), values) for name, m in maps.items()}
    focus = grid.nonzero_box(np.stack(list(layers.values()), -1)) if layers else None
    small = embed.reduce_to(voxels, canonical.shape, canonical.spacing_mm, focus)
    affine = small.affine(canonical.affine(like.affine))
    layers = {name: small.label(ids) for name, ids in layers.items()}
    if scan is None:
        grey, low, high = np.zeros(next(iter(layers.values())).shape, np.float32), 0.0, 1.0
    else:
        grey = np.nan_to_num(small.image(canonical.image(scan.array)), posinf=0.0, neginf=0.0)
        low, high = (float(v) for v in np.percentile(grey, (0.1, 99.9)))
    window = _window(grey) if scan is not None else [0.0, 1.0]
    colour = of_labels(shown.names, values)
    shown_labels = [
        {"name": shown.names.get(v, f"label {v}"), "rgb": _rgb(colour[v])} for v in values
    ]
    drawn = {name: _layer(ids, shown_labels, affine) for name, ids in layers.items()}
    if len(layers) == 2:
        drawn["differences"] = _layer(
            _differences(*layers.values()),
            [{"name": n, "rgb": _rgb(c)} for n, c in DIFFERENCES],
            affine,
        )
    return {
        "key": shown.key,
        "image": _text(embed.encode(*_scaled(grey, low, high, affine))),
        "layers": drawn,
        "window": window,
        "focus": _focus(layers, affine),
        "note": _note(small, canonical, bool(shown.images)),
    }


def _window(grey: np.ndarray) -> list[float]:
    """The initial grey range: soft tissue for Hounsfield units, else percentiles 1 and 99.

    Values are taken for Hounsfield units if the air is far below 0.
    """
    low, high = (float(v) for v in np.percentile(grey, (1, 99)))
    if low <= AIR_HU:
        return list(SOFT_TISSUE_HU)
    return [round(low, 4), round(high if high > low else low + 1, 4)]


def _map(path: str, corpus: Corpus | None, source: Case | None) -> nifti.Volume:
    return formats.read(path, "label") if corpus is None else side.label_map(path, corpus, source)


def _scaled(
    grey: np.ndarray, low: float, high: float, affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, float]:
    stored, slope, intercept = embed.to_bytes(grey, low, high)
    return stored, affine, slope, intercept


def _dense(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Label values -> 1 + position in `values`, 0 elsewhere."""
    table = np.zeros(int(max([*values, int(labels.max(initial=0))])) + 1, np.uint8)
    table[list(values)] = np.arange(1, len(values) + 1)
    return table[labels]


def _differences(reference: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """1 missed, 2 only predicted, 3 another class, 0 agreement."""
    out = np.zeros(reference.shape, np.uint8)
    out[(reference > 0) & (prediction == 0)] = 1
    out[(reference == 0) & (prediction > 0)] = 2
    out[(reference > 0) & (prediction > 0) & (reference != prediction)] = 3
    return out


def _layer(ids: np.ndarray, labels: Sequence[dict], affine: np.ndarray) -> dict:
    seen = set(np.unique(ids).tolist())
    return {
        "data": _text(embed.encode(ids, affine)),
        "labels": [label | {"seen": k + 1 in seen} for k, label in enumerate(labels)],
    }


def _focus(layers: Mapping[str, np.ndarray], affine: np.ndarray) -> list[float] | None:
    """The centre (RAS+ mm) of the masks in the slice with most of them."""
    for ids in layers.values():
        mask = ids > 0
        if mask.any():
            z = int(mask.sum((1, 2)).argmax())
            rows, columns = np.nonzero(mask[z])
            nearest = int(((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin())
            return [
                round(float(v), 3) for v in (affine @ [columns[nearest], rows[nearest], z, 1])[:3]
            ]
    return None


def _note(small: embed.Reduction, canonical: geometry.Transform, with_scan: bool) -> str:
    parts = [] if with_scan else ["no scan was given: masks alone"]
    if small.box != tuple((0, n) for n in canonical.shape):
        parts.append("cropped to the masks")
    if small.factors != (1, 1, 1):
        parts.append(
            "shown at {:.3g} x {:.3g} x {:.3g} mm".format(
                *(s * f for s, f in zip(canonical.spacing_mm, small.factors, strict=True))
            )
        )
    return (
        ("For display only: " + ", ".join(parts) + ". All numbers are from the full files.")
        if parts
        else ""
    )


def _rgb(value: str | tuple[float, float, float]) -> list[int]:
    from matplotlib.colors import to_rgb

    return [round(255 * v) for v in to_rgb(value)]


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
