"""One picture per case: the scan with reference and predicted contours in three planes.

In: an image and dense-id label maps (z, y, x) in canonical axes, spacing, class names. Out: a PNG
file.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medjax import __version__, files
from medjax.colours import of_labels
from medjax.errors import MetricError, shown

PLANES = ("axial", "coronal", "sagittal")
GROUND, INK = "#111111", "#dddddd"


def montage(
    image: np.ndarray,
    reference: np.ndarray | None,
    prediction: np.ndarray,
    path: str | os.PathLike,
    spacing_mm: Sequence[float],
    *,
    names: Mapping[int, str] | None = None,
    window: tuple[float, float] | None = None,
    title: str = "",
) -> None:
    """Draws rows axial, coronal, sagittal at the slice with most foreground.

    Columns: image, reference, prediction.

    Args:
      image: (z, y, x) intensities in canonical axes (z up, y to the front, x to the patient's right
        growing).
      reference, prediction: (z, y, x) label ids, 0 background; without a reference its column is
        omitted.
      path: the PNG to write.
      spacing_mm: (z, y, x); slices keep their true proportions.
      names: id -> name for the legend, which lists the classes in the picture; default the id.
      window: grey range; default percentiles 1 and 99 of the slices' surroundings.
      title: e.g. the case and its Dice.

    Raises: `MetricError` for maps on another grid.
    """
    for what, volume in (("reference", reference), ("prediction", prediction)):
        if volume is not None and volume.shape != image.shape:
            raise MetricError(
                f"the {what} is on another grid than the image",
                path=path,
                found=volume.shape,
                expected=image.shape,
            )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    maps = (
        {"image": None}
        | ({} if reference is None else {"reference": reference})
        | {"prediction": prediction}
    )
    drawn = [volume for volume in maps.values() if volume is not None]
    ids = sorted({int(i) for volume in drawn for i in np.unique(volume)} - {0})
    colours = of_labels(names or {}, ids)
    places = best_slices(prediction if reference is None else reference, prediction)
    low, high = window or np.percentile(image, (1, 99))
    extents = [_extent(image.shape, spacing_mm, axis) for axis in range(3)]
    planes = [
        axis for axis in range(3) if min(image.shape[k] for k in range(3) if k != axis) > 1
    ]  # a single slice has one plane only
    width = 3.2
    heights = [width * extents[axis][1] / extents[axis][0] for axis in planes]
    heights = [min(max(h, 0.4 * width), 1.6 * width) for h in heights]
    visible = {
        int(i)
        for volume in drawn
        for axis in planes
        for i in np.unique(_plane(volume, axis, places[axis]))
    }
    legend = [i for i in ids if i in visible]
    columns = 2 * len(maps)
    foot = 0.2 + 0.165 * -(-max(len(legend), 1) // columns)
    figure = Figure(figsize=(width * len(maps), sum(heights) + 0.35 + foot), facecolor=GROUND)
    FigureCanvasAgg(figure)
    total = figure.get_figheight()
    grid = figure.add_gridspec(
        len(planes),
        len(maps),
        height_ratios=heights,
        hspace=0.03,
        wspace=0.02,
        left=0.03,
        right=0.995,
        bottom=foot / total,
        top=1 - 0.35 / total,
    )
    for row, axis in enumerate(planes):
        for column, (name, volume) in enumerate(maps.items()):
            axes = figure.add_subplot(grid[row, column])
            axes.set_facecolor(GROUND)
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
            ratio = (extents[axis][1] / _plane(image, axis, 0).shape[0]) / (
                extents[axis][0] / _plane(image, axis, 0).shape[1]
            )
            axes.imshow(
                _plane(image, axis, places[axis]),
                cmap="gray",
                vmin=low,
                vmax=max(high, low + 1e-6),
                aspect=ratio,
                origin="lower",
            )
            if volume is not None:
                _draw(axes, _plane(volume, axis, places[axis]), colours)
            if row == 0:
                axes.set_title(name, color=INK, fontsize=9, pad=3)
            if column == 0:
                axes.set_ylabel(
                    f"{PLANES[axis]}  {places[axis]}", color=INK, fontsize=8, labelpad=2
                )
    if title:
        figure.text(
            0.03, 1 - 0.06 / total, _plain(title), color=INK, fontsize=9, va="top", ha="left"
        )
    handles = [Line2D([], [], color=colours[i], linewidth=3) for i in legend]
    if handles:
        labels = [_plain((names or {}).get(i, str(i))) for i in legend]
        style = {
            "frameon": False,
            "labelcolor": INK,
            "fontsize": 8,
            "handlelength": 1.2,
            "borderaxespad": 0.4,
        }
        figure.legend(handles, labels, loc="lower center", ncols=min(columns, len(legend)), **style)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as file:
        figure.savefig(
            file,
            format="png",
            dpi=110,
            facecolor=GROUND,
            metadata={"Software": f"medjax {__version__}"},
        )


def _plain(name: str) -> str:
    """A name as matplotlib draws it: no formulas, no control characters."""
    return shown(name).replace("$", r"\$")


def best_slices(*maps: np.ndarray) -> tuple[int, int, int]:
    """Index along each axis of the slice with most foreground, in the first map that has any.

    The middle if no map has foreground.
    """
    for volume in maps:
        mask = volume > 0
        if mask.any():
            return tuple(
                int(mask.sum(tuple(k for k in range(3) if k != axis)).argmax()) for axis in range(3)
            )
    return tuple(n // 2 for n in maps[0].shape)


def _plane(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """(rows, columns) in radiological orientation: patient's right on the left.

    Rows grow towards the front (axial) or the head.
    """
    plane = volume.take(min(index, volume.shape[axis] - 1), axis)
    return plane[:, ::-1] if axis < 2 else plane


def _extent(shape: Sequence[int], spacing_mm: Sequence[float], axis: int) -> tuple[float, float]:
    """(width, height) of a plane in mm."""
    high, wide = (k for k in range(3) if k != axis)
    return shape[wide] * spacing_mm[wide], shape[high] * spacing_mm[high]


def _draw(axes, plane: np.ndarray, colours: Mapping[int, tuple[float, float, float]]) -> None:
    """A faint fill and a clear contour per class."""
    tint = np.zeros((*plane.shape, 4))
    colours = {int(i): colours[int(i)] for i in np.unique(plane) if i > 0}
    for i, rgb in colours.items():
        tint[plane == i] = (*rgb, 0.22)
    axes.imshow(tint, aspect=axes.get_aspect(), origin="lower", interpolation="nearest")
    for i, rgb in colours.items():
        mask = plane == i
        if mask.any():
            padded = np.pad(mask, 1).astype(float)  # so that contours close at the border
            axes.contour(
                np.arange(-1, plane.shape[1] + 1),
                np.arange(-1, plane.shape[0] + 1),
                padded,
                [0.5],
                colors=[rgb],
                linewidths=1.1,
            )
    axes.set_xlim(-0.5, plane.shape[1] - 0.5)
    axes.set_ylim(-0.5, plane.shape[0] - 0.5)
