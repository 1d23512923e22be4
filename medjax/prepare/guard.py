"""Ranges of the training scans, to warn about a scan that is very different.

In: sizes, spacings and intensities of the training's cases. Out: a `Guard` (JSON, part of
plan.json), and sentences about a scan far outside. "Far" is a range widened by a factor of 4 for
lengths and contrast, and by a quarter of its own width for absolute intensities. Scans of another
protocol give no warning; scans in metres, in other units or with one absurd voxel do.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

LEVELS = (1.0, 50.0, 99.0)  # percentiles of a scan
SAMPLE = 1 << 18  # voxels used for percentiles, at most
FACTOR = 4.0  # tolerance of lengths and contrast around the training's range
MARGIN = 0.25  # tolerance of intensities, as a share of their range
Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Guard:
    """Ranges over the cases of a training.

    Attributes:
      spacing_mm: smallest and largest side of a voxel. field_mm: smallest and largest longest side
        of the cropped volume.
      intensity: channel name in lower case -> lowest percentile 1, highest percentile 99.
      contrast: channel name in lower case -> range of the difference of percentiles 99 and 1.
    """

    spacing_mm: Range
    field_mm: Range
    intensity: Mapping[str, Range] = dataclasses.field(default_factory=dict)
    contrast: Mapping[str, Range] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict:
        """JSON-ready fields; `from_json` inverts it exactly."""
        plain = {"spacing_mm": list(self.spacing_mm), "field_mm": list(self.field_mm)}
        return plain | {
            k: {n: list(r) for n, r in getattr(self, k).items()} for k in ("intensity", "contrast")
        }

    @classmethod
    def from_json(cls, fields: Mapping) -> "Guard":
        """Inverse of `to_json`."""

        def pair(values: Sequence) -> Range:
            low, high = values
            return float(low), float(high)

        by_channel = (
            {str(n): pair(r) for n, r in fields.get(k, {}).items()}
            for k in ("intensity", "contrast")
        )
        return cls(pair(fields["spacing_mm"]), pair(fields["field_mm"]), *by_channel)


def sample(array: np.ndarray) -> np.ndarray:
    """At most 262,144 voxels of a (z, y, x) array, evenly spread, as float32."""
    step = 1
    while np.prod([-(-n // step) for n in array.shape]) > SAMPLE:
        step += 1
    return np.asarray(array[::step, ::step, ::step], np.float32)


def levels(array: np.ndarray) -> tuple[float, ...]:
    """Percentiles 1, 50 and 99 of a (z, y, x) array, from a `sample` of it."""
    return tuple(float(v) for v in np.percentile(sample(array), LEVELS))


def from_cases(
    spacings_mm: Sequence[Sequence[float]],
    shapes: Sequence[Sequence[int]],
    channels: Sequence[tuple[str, Sequence[Sequence[float]]]],
) -> Guard:
    """The ranges over cases.

    Args:
      spacings_mm, shapes: one row per case. channels: (name, `levels` of every case), a name may
        occur several times.
    """
    sides = np.asarray(spacings_mm, float)
    fields = (sides * np.asarray(shapes, float)).max(1)
    pooled: dict[str, list] = {}
    for name, rows in channels:
        pooled.setdefault(name.lower(), []).extend(rows)
    found = {name: np.asarray(rows, float) for name, rows in pooled.items() if rows}
    return Guard(
        (float(sides.min()), float(sides.max())),
        (float(fields.min()), float(fields.max())),
        {name: (float(v[:, 0].min()), float(v[:, 2].max())) for name, v in found.items()},
        {
            name: (float((v[:, 2] - v[:, 0]).min()), float((v[:, 2] - v[:, 0]).max()))
            for name, v in found.items()
        },
    )


def lengths_outside(known: Range, lengths: Sequence[float], what: str) -> str:
    """A sentence if a length in mm is far outside the known range; else nothing."""
    low, high = min(lengths), max(lengths)
    if low >= known[0] / FACTOR and high <= known[1] * FACTOR:
        return ""
    seen = low if low < known[0] / FACTOR else high
    return f"{what} {seen:.4g} mm, in training {known[0]:.4g} to {known[1]:.4g} mm"


def intensities_outside(known: Range, contrast: Range, found: Sequence[float], channel: str) -> str:
    """A sentence if percentiles 1, 50, 99 of a scan are far from the training's; else nothing.

    For intensities in absolute units.
    """
    low, middle, high = found
    margin = MARGIN * (known[1] - known[0])
    inside = (
        known[0] - margin <= middle <= known[1] + margin
        and known[0] - margin <= high <= known[1] + margin
    )
    if inside and contrast[0] / FACTOR <= high - low <= contrast[1] * FACTOR:
        return ""
    return (
        f"intensities of {channel} {low:.4g} to {high:.4g} (percentiles 1 and 99), in training "
        f"{known[0]:.4g} to {known[1]:.4g}"
    )
