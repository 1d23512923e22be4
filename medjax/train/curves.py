"""progress.png: the curves of a training.

In: the rows of metrics.jsonl. Out: the picture. A class has its own colour in every panel, the one
it has in all other pictures (`medjax.colours`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax import files
from medjax.colours import of_classes, shade

LOSS, DICE, CORPUS = "class_loss_ema/", "dice_ema/", "corpus_dice/"


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the picture.

    Loss (of validation in black), moving averages of loss and pseudo Dice per class, the mean Dice
    of whole volumes (dots), pseudo Dice of every corpus if there are several, learning rate.

    Args:
      rows: of metrics.jsonl. path: of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def named(kind: str) -> list[str]:
        return sorted({k.removeprefix(kind) for row in rows for k in row if k.startswith(kind)})

    losses, classes, corpora = map(named, (LOSS, DICE, CORPUS))
    colours = of_classes({*losses, *classes})
    titles = ["loss", "loss in validation, moving average" if losses else ""]
    titles += ["pseudo Dice, moving average", "pseudo Dice by corpus" if corpora else ""]
    titles = [title for title in (*titles, "learning rate") if title]
    figure = Figure(figsize=(9, 1 + 3 * len(titles)), layout="constrained")
    panels = dict(zip(titles, figure.subplots(len(titles), 1, sharex=True), strict=True))

    def line(panel: Any, key: str, **style: Any) -> None:
        points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            panel.plot(*zip(*points, strict=True), **style)

    def legend(panel: Any, count: int) -> None:
        if count:
            columns = 1 + count // 24
            place = dict(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="x-small")
            panel.legend(**place, ncols=columns)

    line(panels["loss"], "loss", color="tab:red")
    line(panels["loss"], "validation_loss", color="black", marker=".")
    if losses:
        panel = panels[titles[1]]
        for name in losses:
            line(panel, LOSS + name, label=name, linewidth=1, color=colours[name])
        legend(panel, len(losses))
    panel = panels["pseudo Dice, moving average"]
    for name in classes:
        line(panel, DICE + name, label=name, linewidth=1, color=colours[name])
    line(panel, "dice_ema", label="mean", color="black", linewidth=2)
    volumes = dict(color="black", marker="o", linestyle="none")
    line(panel, "volume_dice", label="mean of whole volumes", **volumes)
    legend(panel, len(classes))
    if corpora:
        panel = panels["pseudo Dice by corpus"]
        for k, name in enumerate(corpora):
            line(panel, CORPUS + name, label=name, color=shade(k), marker=".")
        legend(panel, len(corpora))
    line(panels["learning rate"], "lr", color="tab:blue")
    for title, panel in panels.items():
        panel.set_ylabel(title.replace(", ", ",\n"))
        panel.grid(alpha=0.3)
    panels["learning rate"].set_xlabel("step")
    with files.replacing_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
