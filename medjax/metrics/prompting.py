"""Numbers of a prompted evaluation: what prompts alone would score, curves, confusion of texts.

In: measurements of single predictions. Out: tables, JSON-ready, with the intervals of every other
evaluation (`metrics.aggregate`: patients drawn with replacement within each corpus; means over
(corpus, class) cells). Pure numpy; knows no network.

A prompt that is drawn from a reference holds a part of the answer. The floors say how much: the
Dice of the filled box, and of the ellipsoid inscribed in it, with the reference.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from medjax.metrics.aggregate import FOUND, Row, aggregate

FLOORS = ("filled_box", "ellipsoid")
RESAMPLES = 10_000


class Key(NamedTuple):
    """Which object of which scan."""

    corpus: str
    case: str
    patient: str
    name: str


@dataclasses.dataclass(frozen=True)
class Measured:
    """One prediction.

    Attributes:
      key, row: of what, and how it was asked. dice: with the reference.
      iou: of the box that was given with the tight one; None without a box.
      filled_box, ellipsoid: floors of this box. inverted: the box has a minimum above its maximum.
      empty: nothing was found.
    """

    key: Key
    row: str
    dice: float
    iou: float | None = None
    filled_box: float | None = None
    ellipsoid: float | None = None
    inverted: bool = False
    empty: bool = False


class Clicked(NamedTuple):
    """Dice after 0, 1, ... corrective clicks of a row."""

    key: Key
    row: str
    dice: tuple[float, ...]


class Absent(NamedTuple):
    """Millilitres that were found of a class that the scan does not have."""

    key: Key
    ml: float


class Confused(NamedTuple):
    """A scan asked for its classes by text.

    `dice` (n, n): of the prediction for text i with the reference of class j. `shared` (n, n):
    whether the references of two classes share a voxel; such pairs are not confused.
    """

    key: Key  # without a name
    names: tuple[str, ...]
    dice: np.ndarray
    shared: np.ndarray


@dataclasses.dataclass
class Record:
    """What was measured of all scans."""

    measured: list[Measured] = dataclasses.field(default_factory=list)
    clicked: list[Clicked] = dataclasses.field(default_factory=list)
    absent: list[Absent] = dataclasses.field(default_factory=list)
    confused: list[Confused] = dataclasses.field(default_factory=list)

    def extend(self, other: "Record") -> None:
        """Adds the measurements of another record."""
        for field in dataclasses.fields(self):
            getattr(self, field.name).extend(getattr(other, field.name))


def dice(overlap: float, one: float, other: float) -> float:
    """2 overlap / (one + other); nan if both are empty."""
    return 2 * overlap / (one + other) if one + other else float("nan")


def ellipsoid(box: Float[np.ndarray, "6"]) -> Bool[np.ndarray, "z y x"]:
    """The ellipsoid inscribed in an inclusive box: voxels of the box whose centre is in it.

    Half axes are half the extents of the box, in which voxels have a size: a box of n voxels has
    the extent n.
    """
    parts = []
    for low, high in zip(box[:3], box[3:], strict=True):
        extent = int(high - low) + 1
        parts.append(((np.arange(extent) - (extent - 1) / 2) / (extent / 2)) ** 2)
    return parts[0][:, None, None] + parts[1][:, None] + parts[2] <= 1


def floors(
    box: Float[np.ndarray, "6"], mask: Bool[np.ndarray, "z y x"], voxels: int | None = None
) -> tuple[float, float]:
    """Dice of the filled box and of its ellipsoid with a mask; (0, 0) for an inverted box.

    Args:
      box: inclusive whole voxel indices; parts outside the mask's array count as wrong. voxels: of
        the reference, if the mask is a part of it.
    """
    low, high = box[:3].astype(int), box[3:].astype(int)
    if np.any(low > high):
        return 0.0, 0.0
    total = int(np.count_nonzero(mask)) if voxels is None else voxels
    ends = np.array(mask.shape)
    first, last = np.clip(low, 0, ends), np.clip(high + 1, 0, ends)
    cut = mask[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
    round_ = ellipsoid(box)
    inner = round_[tuple(slice(a - b, c - b) for a, b, c in zip(first, low, last, strict=True))]
    return (
        dice(int(np.count_nonzero(cut)), round_.size, total),
        dice(int(np.count_nonzero(cut & inner)), int(np.count_nonzero(round_)), total),
    )


def area(steps: Sequence[float]) -> float:
    """Area under the Dice over corrective clicks, by trapezoids, divided by the number of clicks: 1
    if every step is perfect. (The challenge on interactive segmentation of 2025 does not divide.)
    """
    return float(np.trapezoid(steps)) / (len(steps) - 1) if len(steps) > 1 else float(steps[0])


def right_minus_wrong(one: Confused) -> list[tuple[Key, float]]:
    """Of every class i of a scan: Dice(text i, class i) minus the mean Dice(text i, class j) over
    the other classes present. Classes without another one that shares no voxel are left out.
    """
    found = []
    for i, name in enumerate(one.names):
        others = ~one.shared[i]
        others[i] = False
        if others.any():
            wrong = float(one.dice[i][others].mean())
            found.append((one.key._replace(name=name), float(one.dice[i, i]) - wrong))
    return found


def summary(
    values: Iterable[tuple[Key, float]], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Mean over (corpus, class) cells with a 95 % interval over patients, and every cell.

    Args:
      values: several of one key (draws) count as their mean.

    Returns: {"mean", "interval", "n" (values), "cells": {corpus: {class: {"mean", "interval",
      "n"}}}}.
    """
    grouped: dict[Key, list[float]] = {}
    for key, value in values:
        grouped.setdefault(key, []).append(value)
    rows = [
        Row(key.case, key.patient, key.corpus, key.name, FOUND, {"Dice": float(np.mean(found))})
        for key, found in grouped.items()
    ]
    tables = aggregate(rows, resamples=resamples, seed=seed)
    cells = {
        corpus: {
            name: {k: cell["Dice"][k] for k in ("mean", "interval", "n")}
            for name, cell in classes.items()
        }
        for corpus, classes in tables["cells"].items()
    }
    whole = tables["overall"]["Dice"]
    return {"mean": whole["mean"], "interval": whole["interval"], "n": len(rows), "cells": cells}


def tables(record: Record, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """All tables.

    Returns: {"rows": {row: {"dice", "empty", and with a box "iou", "filled_box", "ellipsoid",
      "minus_filled_box", "minus_ellipsoid" (paired), "inverted"}}, "clicks": {row: {"steps":
      [...], "last", "area", "gain"}}, "absent": {corpus: {class: {"n", "found_in", "ml", "most"}}},
      "confusion": {"right_minus_wrong", corpus: {"classes", "dice", "n"}}, "cases": [...]}, where
      every entry that is no number is a `summary`, and "cases" holds the mean Dice of every object
      by row, for comparisons.
    """

    def of(values: Iterable[tuple[Key, float]]) -> dict[str, Any]:
        return summary(values, resamples=resamples, seed=seed)

    rows = {}
    for row in dict.fromkeys(one.row for one in record.measured):
        found = [one for one in record.measured if one.row == row]
        rows[row] = {
            "dice": of((one.key, one.dice) for one in found),
            "empty": float(np.mean([one.empty for one in found])),
        }
        if all(one.iou is not None for one in found):
            rows[row] |= _against_floors(found, of)
    clicks = {}
    for row in dict.fromkeys(one.row for one in record.clicked):
        found = [one for one in record.clicked if one.row == row]
        clicks[row] = {
            "steps": [
                of((one.key, one.dice[step]) for one in found) for step in range(len(found[0].dice))
            ],
            "last": of((one.key, one.dice[-1]) for one in found),
            "area": of((one.key, area(one.dice)) for one in found),
            "gain": of((one.key, one.dice[-1] - one.dice[0]) for one in found),
        }
    return {
        "rows": rows,
        "clicks": clicks,
        "absent": _absent(record.absent),
        "confusion": _confusion(record.confused, of),
        "cases": _cases(record),
    }


def difference(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    row: str,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Second minus first in a row, paired by object; a `summary`.

    Args:
      first, second: "cases" of two `tables` over the same scans.
    """
    before = {_key(one): one["dice"].get(row) for one in first}
    return summary(
        (
            (_key(one), one["dice"][row] - value)
            for one in second
            if row in one["dice"] and (value := before.get(_key(one))) is not None
        ),
        resamples=resamples,
        seed=seed,
    )


def _key(one: Mapping[str, Any]) -> Key:
    return Key(one["corpus"], one["case"], one["patient"], one["class"])


def _against_floors(found: Sequence[Measured], of: Callable) -> dict[str, Any]:
    entry = {"iou": of((one.key, one.iou) for one in found)}
    for floor in FLOORS:
        entry[floor] = of((one.key, getattr(one, floor)) for one in found)
        entry[f"minus_{floor}"] = of((one.key, one.dice - getattr(one, floor)) for one in found)
    return entry | {"inverted": float(np.mean([one.inverted for one in found]))}


def _absent(found: Sequence[Absent]) -> dict[str, dict[str, dict[str, Any]]]:
    table: dict[str, dict[str, list[float]]] = {}
    for one in found:
        table.setdefault(one.key.corpus, {}).setdefault(one.key.name, []).append(one.ml)
    return {
        corpus: {
            name: {
                "n": len(ml),
                "found_in": sum(v > 0 for v in ml),
                "ml": float(np.mean(ml)),
                "most": max(ml),
            }
            for name, ml in classes.items()
        }
        for corpus, classes in table.items()
    }


def _confusion(found: Sequence[Confused], of: Callable) -> dict[str, Any]:
    matrices = {}
    for corpus in dict.fromkeys(one.key.corpus for one in found):
        members = [one for one in found if one.key.corpus == corpus]
        names = list(dict.fromkeys(name for one in members for name in one.names))
        total, n = np.zeros((len(names),) * 2), np.zeros((len(names),) * 2, int)
        for one in members:
            at = np.ix_(*[[names.index(name) for name in one.names]] * 2)
            total[at] += one.dice
            n[at] += 1
        means = np.where(n > 0, total / np.maximum(n, 1), np.nan)
        dices = [[None if np.isnan(v) else float(v) for v in line] for line in means]
        matrices[corpus] = {"classes": names, "dice": dices, "n": n.tolist()}
    pairs = [pair for one in found for pair in right_minus_wrong(one)]
    return {"right_minus_wrong": of(pairs) if pairs else None, "corpora": matrices}


def _cases(record: Record) -> list[dict[str, Any]]:
    found: dict[Key, dict[str, Any]] = {}
    for one in record.measured:
        entry = found.setdefault(one.key, {"dice": {}, "clicks": {}})
        entry["dice"].setdefault(one.row, []).append(one.dice)
    for one in record.clicked:
        entry = found.setdefault(one.key, {"dice": {}, "clicks": {}})
        entry["clicks"][one.row] = [round(v, 6) for v in one.dice]
    return [
        {"corpus": key.corpus, "case": key.case, "patient": key.patient, "class": key.name}
        | {"dice": {row: round(float(np.mean(v)), 6) for row, v in entry["dice"].items()}}
        | ({"clicks": entry["clicks"]} if entry["clicks"] else {})
        for key, entry in found.items()
    ]
