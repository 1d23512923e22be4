"""The plan of an experiment: the grid of each corpus, normalisation per channel name.

In: fingerprints of all corpora, from `prepare/fingerprint.py`. Out: a `Plan` (JSON), used by
preparation, prediction and the run folder. Rules: nnU-Net v2. Spacing: the median per axis; if the
coarsest axis is over 3 times coarser and under a third as long as the others, its 10th percentile.
Normalisation: see `prepare/intensity.py`; z-scores are taken inside the non-zero voxels if cropping
to them removes over a quarter of the median volume.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medjax.errors import UsageError, did_you_mean
from medjax.prepare import plan_json
from medjax.prepare.geometry import CROPS, ORIENTATIONS, Transform
from medjax.prepare.grid import Grid, typical_spacing
from medjax.prepare.guard import Guard, from_cases
from medjax.prepare.intensity import Intensity, Statistics, check_given, crop_limit, decide
from medjax.prepare.presets import Configuration
from medjax.scans.nifti import Volume

ANISOTROPY = 3.0
SPACING_RULES = ("median", "per_corpus", "native")
ANY = "*"  # stands for every corpus that a plan does not name
Spacing = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of a corpus; per-case tuples cover the cases that could be read.

    Attributes:
      corpus, channels: store name and channel names.
      cases: names.
      spacings_mm, shapes: (z, y, x) of each case in canonical (RAS) axes; shapes after the crop to
        non-zero.
      stored_axes: for each canonical axis the stored one, to convert both to stored axes.
      cropped: share of the voxels that the crop keeps.
      intensity: one `Statistics` per channel, None if no case has foreground.
      failed: failure records.
      ids: dense label ids that occur in some case. labelled: how many cases have labels.
      levels: per case and channel `guard.levels`, of the crop; empty in fingerprints of medjax 0.1.
    """

    corpus: str
    channels: tuple[str, ...]
    cases: tuple[str, ...]
    spacings_mm: tuple[tuple[float, float, float], ...]
    shapes: tuple[tuple[int, int, int], ...]
    stored_axes: tuple[tuple[int, int, int], ...]
    cropped: tuple[float, ...]
    intensity: tuple[Statistics | None, ...]
    failed: tuple[dict, ...] = ()
    ids: tuple[int, ...] = ()
    labelled: int = 0
    levels: tuple[tuple[tuple[float, ...], ...], ...] = ()

    def grids(self, orientation: str) -> tuple[np.ndarray, np.ndarray]:
        """(n, 3) spacings in mm and (n, 3) shapes in the axis order of an orientation.

        Orientation "RAS" or "stored".
        """
        spacings, shapes = (
            np.array(self.spacings_mm, float).reshape(-1, 3),
            np.array(self.shapes, int).reshape(-1, 3),
        )
        if orientation == "stored":
            back = np.argsort(np.array(self.stored_axes, int).reshape(-1, 3), axis=1)
            spacings, shapes = (
                np.take_along_axis(spacings, back, 1),
                np.take_along_axis(shapes, back, 1),
            )
        return spacings, shapes

    def to_json(self) -> dict:
        """JSON-ready fields; `from_json` inverts it exactly."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Any) -> "Fingerprint":
        """Inverse of `to_json`."""
        plain = {k: tuple(fields[k]) for k in ("channels", "cases", "cropped", "failed", "ids")}
        nested = {
            k: tuple(tuple(row) for row in fields[k])
            for k in ("spacings_mm", "shapes", "stored_axes")
        }
        statistics = tuple(
            s and Statistics(**{**s, "quantiles": tuple(s["quantiles"])})
            for s in fields["intensity"]
        )
        levels = tuple(
            tuple(tuple(channel) for channel in case) for case in fields.get("levels", ())
        )
        return cls(
            corpus=fields["corpus"],
            intensity=statistics,
            labelled=int(fields["labelled"]),
            levels=levels,
            **plain,
            **nested,
        )


@dataclasses.dataclass(frozen=True)
class Plan:
    """The decisions shared by preparation and prediction.

    Attributes:
      spacing_mm: store name -> target spacing in the network's axes, or the typical one if `grid`
        is not "spacing"; the name "*" stands for every corpus that is not named.
      intensity: channel name, as each corpus spells it -> `Intensity`.
      orientation: "RAS" or "stored". crop: "nonzero", "foreground" or "none".
      transpose: for each axis of the network the (z, y, x) axis of the orientation it comes from.
      configurations: name -> patch, batch and topology planned for these volumes; decides nothing
        about the preparation.
      guard: what the scans of the training looked like; None in plans of medjax 0.1 and imported
        ones. Decides nothing.
      grid: "spacing", "native" or "size", see `grid.Grid`. size: voxels of the grid "size". Part of
        the JSON, and so of the key, only if the grid is not "spacing".
    """

    spacing_mm: Mapping[str, Spacing]
    intensity: Mapping[str, Intensity]
    orientation: str = "RAS"
    crop: str = "nonzero"
    transpose: tuple[int, int, int] = (0, 1, 2)
    configurations: Mapping[str, Configuration] = dataclasses.field(default_factory=dict)
    guard: Guard | None = None
    grid: str = "spacing"
    size: tuple[int, int, int] | None = None

    def grid_of(self, store: str) -> Grid:
        """The grid of a corpus; `UsageError` if the plan does not cover it."""
        return Grid(self.grid, self.spacing_of(store), self.size)

    def fit(
        self, volume: Volume, store: str, channels: Sequence[str], crop: str | None = None
    ) -> Transform:
        """The transform of a volume to the grid of its corpus.

        Args:
          volume: with pixels (z, y, x, m), unless nothing is cropped. channels: their names.
          crop: another crop than the plan's ("none" for a volume without pixels).
        """
        crop, above = crop or self.crop, None
        if crop != "none":
            limits = [self.intensity_of(name) for name in channels]
            above = [
                crop_limit(volume.array[..., c], found)
                if crop == "foreground"
                else None
                if found.role == "mask"
                else 0.0
                for c, found in enumerate(limits)
            ]
        return self.grid_of(store).fit(
            volume,
            orientation=self.orientation,
            crop=crop,
            transpose=self.transpose,
            above=above,
        )

    def mean_spacing(self) -> Spacing:
        """(z, y, x) mm for which the network is built: the mean of `spacing_mm` over the corpora.

        Of the grids "native" and "size" these are typical spacings (`grid.typical_spacing`).
        """
        return tuple(float(v) for v in np.mean(list(self.spacing_mm.values()), 0))

    def spacing_of(self, store: str) -> Spacing:
        """Target spacing of a corpus, or the typical one of a grid without a target.

        `UsageError` if the plan does not cover the corpus.
        """
        if store not in self.spacing_mm and ANY in self.spacing_mm:
            return self.spacing_mm[ANY]
        if store not in self.spacing_mm:
            raise UsageError(
                f"the plan does not cover corpus {store!r}",
                fix=did_you_mean(store, self.spacing_mm),
            )
        return self.spacing_mm[store]

    def intensity_of(self, channel: str) -> Intensity:
        """Normalisation of a channel by its name (case-insensitive); `UsageError` without one."""
        for name, found in self.intensity.items():
            if name.lower() == channel.lower():
                return found
        raise UsageError(
            f"the plan does not cover channel {channel!r}",
            fix=did_you_mean(channel, self.intensity),
        )

    def configuration(self, name: str) -> Configuration:
        """A planned configuration by its name; `UsageError` listing the available ones."""
        if name not in self.configurations:
            raise UsageError(
                f"the plan has no configuration {name!r}",
                fix=did_you_mean(name, self.configurations),
            )
        return self.configurations[name]

    def at(self, name: str) -> "Plan":
        """This plan at the grid of a configuration, which may be coarser ("3d_lowres").

        Corpora with their own spacings are all coarsened by the same factor.
        """
        chosen, common = self.configuration(name), len(set(self.spacing_mm.values())) == 1
        if len(chosen.spacing_mm) < 3 or name == "3d_fullres":
            return self
        factor = np.asarray(chosen.spacing_mm) / np.asarray(self.mean_spacing())
        if np.allclose(factor, 1):
            return self
        scaled = {
            store: chosen.spacing_mm if common else tuple(float(s) for s in spacing * factor)
            for store, spacing in self.spacing_mm.items()
        }
        return dataclasses.replace(
            self,
            spacing_mm=scaled,
            grid="spacing",
            size=None,
        )

    def key(self) -> str:
        """A hash of all decisions about the volumes, 16 hexadecimal digits."""
        fields = {k: v for k, v in self.to_json().items() if k not in ("configurations", "guard")}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict:
        """JSON-ready fields; `from_json` inverts it exactly."""
        fields = dataclasses.asdict(self) | {
            "spacing_mm": {name: list(spacing) for name, spacing in self.spacing_mm.items()},
            "intensity": {name: found.to_json() for name, found in self.intensity.items()},
            "transpose": list(self.transpose),
            "configurations": {
                name: found.to_json() for name, found in self.configurations.items()
            },
            "guard": self.guard and self.guard.to_json(),
            "size": self.size and list(self.size),
        }
        left_out = {"spacing": ("grid", "size"), "native": ("size",)}.get(self.grid, ())
        return {name: value for name, value in fields.items() if name not in left_out}

    @classmethod
    def from_json(cls, fields: Any, path: object = None) -> "Plan":
        """Inverse of `to_json`; `UsageError` naming `path` and the field for an invalid plan."""
        plan_json.check(fields, path)
        spacing = {
            name: tuple(float(s) for s in values) for name, values in fields["spacing_mm"].items()
        }
        intensity = {n: Intensity.from_json(i) for n, i in fields["intensity"].items()}
        planned = {
            name: plan_json.configuration(name, found, path)
            for name, found in fields.get("configurations", {}).items()
        }
        transpose = tuple(int(a) for a in fields.get("transpose", (0, 1, 2)))
        try:
            guard = Guard.from_json(fields["guard"]) if fields.get("guard") else None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                "unusable plan: guard holds no ranges",
                path=path,
                found=str(error)[:80],
                fix="leave guard out",
            ) from error
        return cls(
            spacing,
            intensity,
            fields["orientation"],
            fields["crop"],
            transpose,
            planned,
            guard,
            fields.get("grid", "spacing"),
            plan_json.check_size(fields.get("size")),
        )


def make_plan(
    fingerprints: Mapping[str, Fingerprint],
    *,
    spacing: str | Sequence[float | int] | None = None,
    orientation: str = "RAS",
    crop: str = "nonzero",
    transpose: str = "none",
    size: Sequence[float] | None = None,
    intensity: Mapping[str, Any] | None = None,
) -> Plan:
    """Decides grid and normalisation.

    Args:
      fingerprints: store name -> fingerprint.
      spacing: None or "median" (the rule over the cases of all corpora), "per_corpus" (the rule in
        each), (z, y, x) mm for all, or "native" (every case keeps its own).
      orientation, crop: what `geometry.fit` takes.
      transpose: "none" keeps the axes (z, y, x) of the orientation; "coarsest" puts the axis of the
        largest spacing first, as nnU-Net does; with a `size` the axes are kept.
      size: (z, y, x) voxels: every cropped volume is resampled to this frame; `spacing` is not
        used.
      intensity: channel name -> scheme and its numbers, where they should not follow from the name;
        see `intensity.decide`.

    CT statistics are pooled over all corpora with a channel of that name, every case with the same
    weight.
    Raises: `UsageError` for unknown words, no readable case, or a CT channel without any
      foreground.
    """
    for word, known, what in (
        (orientation, ORIENTATIONS, "orientation"),
        (crop, CROPS, "crop"),
        (transpose, ("none", "coarsest"), "transpose"),
    ):
        if word not in known:
            raise UsageError(f"unknown {what} {word!r}", fix=did_you_mean(word, known))
    if not fingerprints:
        raise UsageError("a plan needs at least one corpus")
    for name, found in fingerprints.items():
        if not found.cases:
            reason = (
                f"; the first failed with: {found.failed[0]['message']}" if found.failed else ""
            )
            raise UsageError(f"no readable case{reason}", path=name, fix="see `medjax verify`")
    channels = {c: None for found in fingerprints.values() for c in found.channels}
    check_given(intensity or {}, tuple(channels))
    decided = {channel: decide(channel, fingerprints, intensity or {}) for channel in channels}
    size = None if size is None else _frame(size)
    if size is not None and spacing is not None and not isinstance(spacing, str):
        raise UsageError(
            "a target spacing and a target size exclude each other", found=(tuple(spacing), size)
        )
    spacings, order = _spacings(fingerprints, spacing, orientation, size), (0, 1, 2)
    if transpose == "coarsest" and size is None:
        typical = np.mean(list(spacings.values()), 0)
        first = int(np.argmax(typical))
        order = (first, *(axis for axis in range(3) if axis != first))
        spacings = {name: tuple(found[axis] for axis in order) for name, found in spacings.items()}
    kind = "size" if size else "native" if spacing == "native" else "spacing"
    masks = {name for name, found in decided.items() if found.role == "mask"}
    guard = _guard(fingerprints, masks)
    return Plan(spacings, decided, orientation, crop, order, guard=guard, grid=kind, size=size)


def _frame(size: Sequence[float]) -> tuple[int, int, int]:
    found = plan_json.check_size([int(n) if float(n).is_integer() else n for n in size])
    if found is None:
        raise UsageError(
            "unusable target size",
            found=tuple(size),
            expected=f"three whole numbers of voxels (z, y, x), 1 to {plan_json.MOST_VOXELS}, or "
            "-1 for the volume's own",
        )
    return found


def _guard(fingerprints: Mapping[str, Fingerprint], masks: set[str]) -> Guard | None:
    """The guard of all cases, without masks; None if a fingerprint lacks the data for it."""
    prints = list(fingerprints.values())
    if any(len(found.levels) != len(found.cases) for found in prints):
        return None
    channels = [
        (name, [case[c] for case in found.levels])
        for found in prints
        for c, name in enumerate(found.channels)
        if name not in masks
    ]
    spacings, shapes = (
        [row for found in prints for row in getattr(found, k)] for k in ("spacings_mm", "shapes")
    )
    return from_cases(spacings, shapes, channels)


def _spacings(
    fingerprints: Mapping[str, Fingerprint],
    spacing: str | Sequence[float | int] | None,
    orientation: str,
    size: tuple[int, int, int] | None = None,
) -> dict[str, Spacing]:
    grids = {name: found.grids(orientation) for name, found in fingerprints.items()}
    if size is not None or spacing == "native":
        return {name: typical_spacing(*grid, size) for name, grid in grids.items()}
    if spacing == "per_corpus":
        return {name: target_spacing(*grid) for name, grid in grids.items()}
    if spacing is None or spacing == "median":
        common = target_spacing(
            *(np.concatenate(part) for part in zip(*grids.values(), strict=True))
        )
    elif isinstance(spacing, str):
        raise UsageError(
            f"unknown spacing rule {spacing!r}", fix=did_you_mean(spacing, SPACING_RULES)
        )
    else:
        common = tuple(float(s) for s in spacing)
        if len(common) != 3 or not all(math.isfinite(s) and s > 0 for s in common):
            raise UsageError(
                "unusable target spacing",
                found=tuple(spacing),
                expected="three positive sizes in mm, (z, y, x)",
            )
    return {name: common for name in fingerprints}


def target_spacing(spacings_mm: np.ndarray, shapes: np.ndarray) -> Spacing:
    """nnU-Net's target spacing of cases with (n, 3) spacings and (n, 3) shapes."""
    target, size = np.percentile(spacings_mm, 50, 0), np.percentile(shapes, 50, 0)
    coarse = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != coarse]
    finest_allowed = target[others].max()
    if (
        target[coarse] > ANISOTROPY * finest_allowed
        and size[coarse] * ANISOTROPY < size[others].min()
    ):
        wanted = np.percentile(spacings_mm[:, coarse], 10)
        target[coarse] = wanted if wanted >= finest_allowed else finest_allowed + 1e-5
    return tuple(float(t) for t in target)
