"""The plan of an experiment: target spacing per corpus, normalisation per channel name.

In: fingerprints of all corpora, from `prepare/fingerprint.py`. Out: a `Plan` (JSON), used by
preparation, prediction and the run folder. Rules: nnU-Net v2. Spacing: the median per axis; if the
coarsest axis is over 3 times coarser and under a third as long as the others, its 10th percentile.
The channel name (case-insensitive) chooses the normalisation: `CT`, `noNorm`, `rescale_to_0_1`,
`rgb_to_0_1`; all others z-score, inside the non-zero voxels if cropping to them removes over a
quarter of the median volume.
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
from medjax.prepare.guard import Guard, from_cases
from medjax.prepare.presets import Configuration

ANISOTROPY = 3.0
QUANTILES = 2001  # so that percentiles 0.5 and 99.5 are nodes
# share of the voxels kept by the crop, below which z-scores are taken inside the non-zero voxels
MASK_BELOW = 0.75
SCHEMES = {
    "ct": "ct",
    "nonorm": "nonorm",
    "rescale_to_0_1": "rescale_to_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
}
ANY = "*"  # stands for every corpus that a plan does not name
Spacing = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Pooled foreground intensities of one channel.

    Attributes:
      mean, median, std, min, max, percentile_00_5, percentile_99_5: of the pooled sample.
      cases: how many cases gave voxels; the weight when corpora are pooled.
      quantiles: the quantile function at 2001 equidistant levels from 0 to 1.
    """

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float
    cases: int
    quantiles: tuple[float, ...]


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
class Intensity:
    """Normalisation of one channel: value -> (clipped value - mean) / std.

    Attributes:
      scheme: "ct" (clip, mean and std of the plan), "zscore" (mean and std of each case),
        "rescale_to_0_1" (each case), "rgb_to_0_1" (divided by 255), "nonorm".
      clip, mean, std: only for "ct"; percentiles 0.5 and 99.5, mean and standard deviation of the
        pooled foreground.
      masked: z-scores are taken inside the (hole-filled) non-zero voxels, and what is outside stays
        0.
    """

    scheme: str
    clip: tuple[float, float] | None = None
    mean: float | None = None
    std: float | None = None
    masked: bool = False

    def __post_init__(self):
        object.__setattr__(self, "scheme", plan_json.scheme(self.scheme))


@dataclasses.dataclass(frozen=True)
class Plan:
    """The decisions shared by preparation and prediction.

    Attributes:
      spacing_mm: store name -> target spacing in the network's axes; the name "*" stands for every
        corpus that is not named.
      intensity: channel name, as each corpus spells it -> `Intensity`.
      orientation: "RAS" or "stored". crop: "nonzero" or "none".
      transpose: for each axis of the network the (z, y, x) axis of the orientation it comes from.
      configurations: name -> patch, batch and topology planned for these volumes; decides nothing
        about the preparation.
      guard: what the scans of the training looked like; None in plans of medjax 0.1 and imported
        ones. Decides nothing.
    """

    spacing_mm: Mapping[str, Spacing]
    intensity: Mapping[str, Intensity]
    orientation: str = "RAS"
    crop: str = "nonzero"
    transpose: tuple[int, int, int] = (0, 1, 2)
    configurations: Mapping[str, Configuration] = dataclasses.field(default_factory=dict)
    guard: Guard | None = None

    def spacing_of(self, store: str) -> Spacing:
        """Target spacing of a corpus; `UsageError` if the plan does not cover it."""
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
        """This plan with the spacing of a configuration ("3d_lowres" has its own grid)."""
        chosen = self.configuration(name)
        if len(chosen.spacing_mm) < 3 or name == "3d_fullres":
            return self
        return dataclasses.replace(
            self, spacing_mm={store: chosen.spacing_mm for store in self.spacing_mm}
        )

    def key(self) -> str:
        """A hash of all decisions about the volumes, 16 hexadecimal digits."""
        fields = {k: v for k, v in self.to_json().items() if k not in ("configurations", "guard")}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict:
        """JSON-ready fields; `from_json` inverts it exactly."""
        return dataclasses.asdict(self) | {
            "spacing_mm": {name: list(spacing) for name, spacing in self.spacing_mm.items()},
            "intensity": {name: intensity_json(found) for name, found in self.intensity.items()},
            "transpose": list(self.transpose),
            "configurations": {
                name: found.to_json() for name, found in self.configurations.items()
            },
            "guard": self.guard and self.guard.to_json(),
        }

    @classmethod
    def from_json(cls, fields: Any, path: object = None) -> "Plan":
        """Inverse of `to_json`; `UsageError` naming `path` and the field for an invalid plan."""
        plan_json.check(fields, path)
        spacing = {
            name: tuple(float(s) for s in values) for name, values in fields["spacing_mm"].items()
        }
        intensity = {n: Intensity(**{**i, **_floats(i)}) for n, i in fields["intensity"].items()}
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
            spacing, intensity, fields["orientation"], fields["crop"], transpose, planned, guard
        )


def _floats(fields: Mapping) -> dict:
    """The numbers of an intensity: JSON has no difference between 3 and 3.0."""
    found = {k: None if fields.get(k) is None else float(fields[k]) for k in ("mean", "std")}
    return found | {"clip": tuple(map(float, fields["clip"])) if fields.get("clip") else None}


def intensity_json(intensity: Intensity) -> dict:
    """JSON-ready fields of an `Intensity`."""
    return dataclasses.asdict(intensity) | {"clip": intensity.clip and list(intensity.clip)}


def make_plan(
    fingerprints: Mapping[str, Fingerprint],
    *,
    spacing: str | Sequence[float | int] | None = None,
    orientation: str = "RAS",
    crop: str = "nonzero",
    transpose: str = "none",
) -> Plan:
    """Decides spacing and normalisation.

    Args:
      fingerprints: store name -> fingerprint.
      spacing: None or "median" (the rule over the cases of all corpora), "per_corpus" (the rule in
        each), or (z, y, x) mm for all.
      orientation, crop: what `geometry.fit` takes.
      transpose: "none" keeps the axes (z, y, x) of the orientation; "coarsest" puts the axis of the
        largest spacing first, as nnU-Net does.

    CT statistics are pooled over all corpora with a channel of that name, every case with the same
    weight.
    Raises: `UsageError` for unknown words, no readable case, or a CT channel without any
      foreground.
    """
    for word, known, what in (
        (orientation, ("RAS", "stored"), "orientation"),
        (crop, ("nonzero", "none"), "crop"),
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
    intensity = {channel: _intensity(channel, fingerprints) for channel in channels}
    spacings, order = _spacings(fingerprints, spacing, orientation), (0, 1, 2)
    if transpose == "coarsest":
        typical = np.mean(list(spacings.values()), 0)
        first = int(np.argmax(typical))
        order = (first, *(axis for axis in range(3) if axis != first))
        spacings = {name: tuple(found[axis] for axis in order) for name, found in spacings.items()}
    return Plan(spacings, intensity, orientation, crop, order, guard=_guard(fingerprints))


def _guard(fingerprints: Mapping[str, Fingerprint]) -> Guard | None:
    """The guard of all cases; None if a fingerprint lacks the data for it."""
    prints = list(fingerprints.values())
    if any(len(found.levels) != len(found.cases) for found in prints):
        return None
    channels = [
        (name, [case[c] for case in found.levels])
        for found in prints
        for c, name in enumerate(found.channels)
    ]
    spacings, shapes = (
        [row for found in prints for row in getattr(found, k)] for k in ("spacings_mm", "shapes")
    )
    return from_cases(spacings, shapes, channels)


def _spacings(
    fingerprints: Mapping[str, Fingerprint],
    spacing: str | Sequence[float | int] | None,
    orientation: str,
) -> dict[str, Spacing]:
    grids = {name: found.grids(orientation) for name, found in fingerprints.items()}
    if spacing == "per_corpus":
        return {name: target_spacing(*grid) for name, grid in grids.items()}
    if spacing is None or spacing == "median":
        common = target_spacing(
            *(np.concatenate(part) for part in zip(*grids.values(), strict=True))
        )
    elif isinstance(spacing, str):
        raise UsageError(
            f"unknown spacing rule {spacing!r}", fix=did_you_mean(spacing, ("median", "per_corpus"))
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


def _intensity(channel: str, fingerprints: Mapping[str, Fingerprint]) -> Intensity:
    scheme = SCHEMES.get(channel.lower(), "zscore")
    if scheme == "zscore":
        kept = [
            share
            for found in fingerprints.values()
            if channel in found.channels
            for share in found.cropped
        ]
        return Intensity(scheme, masked=bool(float(np.median(kept)) < MASK_BELOW))
    if scheme != "ct":
        return Intensity(scheme)
    parts = [
        statistics
        for found in fingerprints.values()
        for name, statistics in zip(found.channels, found.intensity, strict=True)
        if name.lower() == "ct" and statistics is not None
    ]
    if not parts:
        fix = "add a labelled corpus, or name the channel otherwise for z-scores"
        raise UsageError(
            "no foreground voxel to take CT statistics from", path=", ".join(fingerprints), fix=fix
        )
    weights = np.array([p.cases for p in parts], float) / sum(p.cases for p in parts)
    mean = float(weights @ [p.mean for p in parts])
    variance = float(weights @ [p.std**2 + p.mean**2 for p in parts]) - mean**2
    clip = (pooled_quantile(parts, 0.005), pooled_quantile(parts, 0.995))
    return Intensity(
        "ct", clip, mean, parts[0].std if len(parts) == 1 else math.sqrt(max(variance, 0.0))
    )


def pooled_quantile(parts: Sequence[Statistics], level: float) -> float:
    """Quantile of a union of samples given by quantile functions, weighted by cases."""
    if len(parts) == 1:
        nodes = parts[0].quantiles
        return float(np.interp(level, np.linspace(0, 1, len(nodes)), nodes))
    values = np.unique(np.concatenate([p.quantiles for p in parts]))
    total = sum(p.cases for p in parts)
    below = sum(p.cases / total * _share_below(p.quantiles, values) for p in parts)
    return float(values[min(int(np.searchsorted(below, level)), len(values) - 1)])


def _share_below(quantiles: Sequence[float], values: np.ndarray) -> np.ndarray:
    """Distribution function at `values` of the sample with this quantile function.

    It has steps at repeated values.
    """
    nodes = np.asarray(quantiles)
    unique, last = np.unique(
        nodes[::-1], return_index=True
    )  # the highest level at which each value occurs
    levels = np.linspace(0, 1, len(nodes))[len(nodes) - 1 - last]
    return np.interp(values, unique, levels, left=0.0, right=1.0)
