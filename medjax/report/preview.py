"""Pictures of prepared cases and drawn samples, with their labels in colour.

In: normalised images (z, y, x[, m]) or (y, x[, m]) and label ids of one shape. Out: PNG sheets, one
row per case or sample.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np

from medjax import files
from medjax.colours import RGB, of_labels
from medjax.errors import DataError, UsageError
from medjax.prepare.resample import Spacing

MARK = "medjax preview"  # in every picture; identifies pictures that medjax wrote
PLANES = ("axial", "coronal", "sagittal")
GROUND, INK, PADDED = "#111111", "#dddddd", "#5a2a2a"


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a sheet.

    Attributes:
      image: (y, x) grey values. label: (y, x) ids, 0 background, negative outside the image.
      title: above it. aspect: height of a pixel over its width.
    """

    image: np.ndarray
    label: np.ndarray
    title: str = ""
    aspect: float = 1.0


def planes(
    image: np.ndarray, label: np.ndarray, spacing_mm: Spacing, title: str = ""
) -> list[Panel]:
    """The three orthogonal slices of a (z, y, x[, m]) volume with most labelled voxels.

    First channel only.
    """
    values = image[..., 0] if image.ndim == 4 else image
    panels, foreground = [], label > 0
    for axis, name in enumerate(PLANES):
        rest = tuple(a for a in range(3) if a != axis)
        counts = foreground.sum(rest)
        place = int(counts.argmax()) if counts.any() else values.shape[axis] // 2
        where = f"{name} {place + 1}/{values.shape[axis]}"
        aspect = float(spacing_mm[rest[0]]) / float(spacing_mm[rest[1]])
        panels.append(
            Panel(
                values.take(place, axis),
                label.take(place, axis),
                f"{title}\n{where}" if axis == 0 and title else where,
                aspect,
            )
        )
    return panels


def middle(image: np.ndarray, label: np.ndarray, spacing_mm: Spacing, title: str = "") -> Panel:
    """The slice of constant z of a patch with most labelled voxels; first channel.

    A 2D patch is returned as it is.
    """
    values = image[..., 0]
    if values.ndim == 3:
        counts = (label > 0).sum((1, 2))
        place = int(counts.argmax()) if counts.any() else len(values) // 2
        values, label = values[place], label[place]
    return Panel(values, label, title, float(spacing_mm[-2]) / float(spacing_mm[-1]))


def sheet(
    rows: Sequence[Sequence[Panel]],
    path: str | os.PathLike,
    *,
    title: str = "",
    names: Mapping[int, str] | None = None,
) -> None:
    """Draws rows of panels as one PNG; a picture of an earlier call is replaced.

    Args:
      names: label id -> name for the legend.

    Raises: `DataError` for nothing to draw, or a panel whose label has another shape than its
      image; `UsageError` for a file in the way that this function did not write.
    """
    if os.path.lexists(path) and not _is_sheet(path):
        raise UsageError(
            "is in the way of a picture, and medjax did not write it",
            path=path,
            fix="move it away, or give another folder",
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    if not rows or not any(rows):
        raise DataError("nothing to draw", path=path)
    columns = max(map(len, rows))
    figure = Figure((2.6 * columns, 2.8 * len(rows) + 0.6), facecolor=GROUND, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    ids = {int(i) for panels in rows for panel in panels for i in np.unique(panel.label) if i > 0}
    colours, seen = of_labels(names or {}, ids), set()
    for line, panels in zip(axes, rows, strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, panel in zip(line, panels, strict=False):
            if panel.image.shape != panel.label.shape:
                raise DataError(
                    "a label on another grid than its image",
                    path=path,
                    found=panel.label.shape,
                    expected=panel.image.shape,
                )
            seen |= _draw(axis, panel, colours)
    handles = [
        Line2D(
            [],
            [],
            marker="s",
            linestyle="",
            color=colours[i],
            label=(names or {}).get(i, f"label {i}"),
        )
        for i in sorted(seen)
    ]
    if handles:
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(6, len(handles)),
            frameon=False,
            labelcolor=INK,
            fontsize=7,
        )
    if title:
        figure.suptitle(title, color=INK, fontsize=9)
    FigureCanvasAgg(figure)
    with files.replacing_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": MARK})


def _is_sheet(path: str | os.PathLike) -> bool:
    """Whether a file is a picture that `sheet` has drawn."""
    if os.path.islink(path) or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return f"tEXtSoftware\0{MARK}".encode() in file.read(1024)


def _draw(axis, panel: Panel, colours: Mapping[int, RGB]) -> set[int]:
    from matplotlib.colors import to_rgb

    inside = panel.label >= 0
    grey = panel.image[inside] if inside.any() else panel.image
    low, high = (float(v) for v in np.percentile(grey, (1, 99)))
    picture = np.repeat(
        np.clip((panel.image - low) / max(high - low, 1e-6), 0, 1)[..., None], 3, -1
    )
    picture[~inside] = to_rgb(PADDED)
    found = {int(i) for i in np.unique(panel.label) if i > 0}
    for i in found:
        here = panel.label == i
        picture[here] = 0.55 * picture[here] + 0.45 * np.array(colours[i])
    axis.imshow(picture, origin="lower", aspect=panel.aspect, interpolation="nearest")
    axis.invert_xaxis()  # the patient's right on the left, as radiologists look at scans
    axis.set_title(panel.title, color=INK, fontsize=7)
    return found
