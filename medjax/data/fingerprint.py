"""What a corpus looks like in numbers: spacings, sizes and intensities, from which `plan.make_plan` decides how to prepare it.

In: a corpus and its raw cases. Out: a `Fingerprint` (JSON). The rule is nnU-Net v2's: crop to non-zero, draw the same number of foreground
voxels (label > 0) of every case with replacement, pool, and take mean, median, spread and percentiles per channel.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medjax.data import geometry
from medjax.data.cases import Progress, each, load
from medjax.data.inputs import Case
from medjax.data.plan import Intensity, Plan, make_plan
from medjax.labels import Corpus

__all__ = ["Fingerprint", "Intensity", "Plan", "Statistics", "fingerprint", "make_plan"]

SAMPLES = 10_000_000  # pooled voxels per channel, 40 MB; nnU-Net draws 1e8, which moves mean and percentiles by under 1e-3 of the range
SEED = 1234
QUANTILES = 2001  # enough that percentiles 0.5 and 99.5 are nodes; lets several corpora be pooled later


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
    """A corpus in numbers; all per-case tuples run over the cases that could be read.

    Attributes:
      corpus, channels: store name and channel names.
      cases: names.
      spacings_mm, shapes: (z, y, x) of each case in canonical (RAS) axes; shapes after the crop to non-zero.
      stored_axes: for each canonical axis the stored one, to have the same in stored axes.
      cropped: share of the voxels that the crop keeps.
      intensity: one `Statistics` per channel, None where no case has foreground.
      failed: failure records.
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

    def grids(self, orientation: str) -> tuple[np.ndarray, np.ndarray]:
        """(n, 3) spacings in mm and (n, 3) shapes in the axis order of an orientation ("RAS" or "stored")."""
        spacings, shapes = np.array(self.spacings_mm, float).reshape(-1, 3), np.array(self.shapes, int).reshape(-1, 3)
        if orientation == "stored":
            back = np.argsort(np.array(self.stored_axes, int).reshape(-1, 3), axis=1)
            spacings, shapes = np.take_along_axis(spacings, back, 1), np.take_along_axis(shapes, back, 1)
        return spacings, shapes

    def to_json(self) -> dict:
        """JSON-ready fields; `from_json` inverts it exactly."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping) -> "Fingerprint":
        """Inverse of `to_json`."""
        plain = {k: tuple(fields[k]) for k in ("channels", "cases", "cropped", "failed")}
        nested = {k: tuple(tuple(row) for row in fields[k]) for k in ("spacings_mm", "shapes", "stored_axes")}
        statistics = tuple(s and Statistics(**{**s, "quantiles": tuple(s["quantiles"])}) for s in fields["intensity"])
        return cls(corpus=fields["corpus"], intensity=statistics, **plain, **nested)


def fingerprint(
    corpus: Corpus,
    cases: Sequence[Case],
    *,
    samples: int = SAMPLES,
    workers: int | None = None,
    progress: Progress | None = None,
    cache: str | os.PathLike | None = None,
) -> Fingerprint:
    """Measures a corpus; a case that cannot be read is recorded and left out.

    Args:
      samples: voxels drawn per channel in all, floor(samples / cases) from each case (100_000_000 gives nnU-Net's very sample).
      cache: JSON file to keep the result in; used again while no source file has changed (size and modification time).

    An unlabelled case gives its voxels above the channel's mean instead of the foreground.
    """
    inputs = json.dumps([samples, SEED, corpus.to_json(), [_identity(case) for case in cases]], default=str)
    key = hashlib.sha256(inputs.encode()).hexdigest()
    if cache is not None and Path(cache).is_file():
        kept = json.loads(Path(cache).read_text())
        if kept["key"] == key and not kept["fingerprint"]["failed"]:
            return Fingerprint.from_json(kept["fingerprint"])
    per_case = max(1, samples // max(1, len(cases)))
    outcomes = each(lambda case: _measure(case, corpus, per_case), cases, workers=workers, progress=progress)
    good = [o.value for o in outcomes if o.failure is None]
    intensity = tuple(_statistics([v["drawn"][c] for v in good if len(v["drawn"][c])]) for c in range(len(corpus.channels)))
    result = Fingerprint(
        corpus=corpus.store,
        channels=corpus.channels,
        cases=tuple(o.case.name for o in outcomes if o.failure is None),
        spacings_mm=tuple(v["spacing_mm"] for v in good),
        shapes=tuple(v["shape"] for v in good),
        stored_axes=tuple(v["axes"] for v in good),
        cropped=tuple(v["cropped"] for v in good),
        intensity=intensity,
        failed=tuple(o.failure for o in outcomes if o.failure is not None),
    )
    if cache is not None:
        temporary = Path(f"{cache}.{os.getpid()}.tmp")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"key": key, "fingerprint": result.to_json()}))
        os.replace(temporary, cache)
    return result


def _identity(case: Case) -> list:
    stats = [os.stat(p) if os.path.exists(p) else None for p in (*case.images, case.label) if p]
    return [dataclasses.asdict(case), [s and (s.st_size, s.st_mtime_ns) for s in stats]]


def _measure(case: Case, corpus: Corpus, n: int) -> dict:
    """Geometry of a case after the crop, and n foreground voxels per channel (float32, none without foreground)."""
    volume, ids = load(case, corpus)
    canonical = geometry.fit(volume, None)
    box = geometry.nonzero_box(volume.array)  # in stored axes: the order of the voxels decides which are drawn
    inside = tuple(slice(*ends) for ends in box) if box else ...
    image, ids = volume.array[inside], None if ids is None else ids[inside]
    random, drawn = np.random.RandomState(SEED), []
    for c in range(image.shape[-1]):
        channel = image[..., c]
        pixels = channel[channel > channel.mean(dtype=np.float64)] if ids is None else channel[ids > 0]
        drawn.append(random.choice(pixels, n, replace=True) if len(pixels) else pixels)
    return {
        "spacing_mm": canonical.spacing_mm,
        "shape": canonical.box_shape,
        "axes": canonical.axes,
        "cropped": float(np.prod(canonical.box_shape) / np.prod(volume.shape)),
        "drawn": drawn,
    }


def _statistics(drawn: Sequence[np.ndarray]) -> Statistics | None:
    if not drawn:
        return None
    pooled = np.concatenate(drawn)
    quantiles = np.percentile(pooled, np.linspace(0, 100, QUANTILES))
    low, median, high = (float(quantiles[round(p / 100 * (QUANTILES - 1))]) for p in (0.5, 50, 99.5))
    mean, std = float(pooled.mean(dtype=np.float64)), float(pooled.std(dtype=np.float64))
    return Statistics(
        mean, median, std, float(quantiles[0]), float(quantiles[-1]), low, high, len(drawn), tuple(float(q) for q in quantiles)
    )
