"""The fingerprint of a corpus: spacings, sizes and intensities, from which plans are made.

In: a corpus and its raw cases. Out: a `Fingerprint` (JSON) for `plan.make_plan`. The rule is
nnU-Net v2's: crop to non-zero, draw the same number of foreground voxels (label > 0) of every case
with replacement, pool, and compute mean, median, spread and percentiles per channel.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax import files
from medjax.corpora.cases import Progress, each, load, stamp, still_wanted, voxel_counts
from medjax.corpora.inputs import Case
from medjax.errors import LabelError, MedjaxError, WriteError
from medjax.labels import Corpus
from medjax.prepare import geometry, guard
from medjax.prepare.intensity import QUANTILES, Intensity, Statistics, masks_of
from medjax.prepare.plan import Fingerprint, Plan, make_plan
from medjax.scans import grid

__all__ = [
    "Fingerprint",
    "Intensity",
    "Plan",
    "Statistics",
    "check_classes",
    "fingerprint",
    "make_plan",
]

# pooled voxels per channel, 40 MB; nnU-Net draws 1e8, which moves mean and percentiles by under
# 1e-3 of the range
SAMPLES = 10_000_000
SEED = 1234
VERSION = 2  # of the measurements

log = logging.getLogger("medjax.fingerprint")


def fingerprint(
    corpus: Corpus,
    cases: Sequence[Case],
    *,
    samples: int = SAMPLES,
    workers: int | None = None,
    progress: Progress | None = None,
    cache: str | os.PathLike | None = None,
    intensity: Mapping[str, Any] | None = None,
) -> Fingerprint:
    """Measures a corpus; a case that cannot be read is recorded and left out.

    Args:
      samples: voxels drawn per channel in all, floor(samples / cases) from each case (100_000_000
        gives nnU-Net's very sample).
      cache: JSON file to keep the result in; used again while no source file has changed (size,
        times and inode). A file of that name that is no fingerprint is left as it is.
      intensity: schemes that the user chose for channels (`intensity.decide`): masks take no part
        in the crop and give no voxels.

    An unlabelled case gives its voxels above the channel's mean instead of the foreground.
    """
    masks = masks_of(corpus.channels, intensity or {})
    measured = [VERSION, samples, SEED, corpus.to_json(), [_identity(case) for case in cases]]
    inputs = json.dumps(measured + ([{"masks": masks}] if masks else []), default=str)
    key = hashlib.sha256(inputs.encode()).hexdigest()
    kept = _kept(cache) if cache is not None else {}
    if kept and kept["key"] == key and not kept["fingerprint"].failed:
        return kept["fingerprint"]
    per_case = max(1, samples // max(1, len(cases)))
    outcomes = each(
        lambda case: _measure(case, corpus, per_case, masks),
        cases,
        workers=workers,
        progress=progress,
    )
    good = [o.value for o in outcomes if o.failure is None]
    intensity = tuple(
        _statistics([v["drawn"][c] for v in good if len(v["drawn"][c])])
        for c in range(len(corpus.channels))
    )
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
        ids=tuple(sorted({i for v in good for i in v["ids"]})),
        labelled=sum(v["labelled"] for v in good),
        levels=tuple(v["levels"] for v in good),
    )
    if cache is not None and kept is not None:
        try:
            Path(cache).parent.mkdir(parents=True, exist_ok=True)
            files.write_text(cache, json.dumps({"key": key, "fingerprint": result.to_json()}))
        except (OSError, WriteError) as error:
            log.warning("the fingerprint is not kept: %s", error)
    return result


def _kept(cache: str | os.PathLike) -> dict | None:
    """Key and fingerprint of a cache; {} if there is none, None for any other file.

    Other files are left as they are.
    """
    if not os.path.lexists(cache):
        return {}
    try:
        found = files.read_json(cache)
        return {
            "key": str(found["key"]),
            "fingerprint": Fingerprint.from_json(found["fingerprint"]),
        }
    except (MedjaxError, KeyError, TypeError, ValueError, AttributeError) as error:
        log.warning(
            "%s: no fingerprint of medjax, or a damaged one: measured again and not kept. Fix: "
            "delete it (%s)",
            cache,
            error,
        )
        return None


def check_classes(corpus: Corpus, found: Fingerprint) -> None:
    """`LabelError` if a class declared as annotated occurs in none of the labelled cases.

    Such a class would be trained as background in all of them.
    """
    absent = [name for name in corpus.annotated if not set(corpus.ids_of(name)) & set(found.ids)]
    if not found.labelled or not absent:
        return
    values = {name: [corpus.values[i] for i in corpus.ids_of(name)] for name in absent}
    raise LabelError(
        f"declared classes that occur in none of the {found.labelled} labelled cases",
        path=corpus.name,
        found=", ".join(f"{name} (label {' or '.join(map(str, v))})" for name, v in values.items()),
        expected="every annotated class in at least one case; it would be taught as background "
        "everywhere",
        fix='correct the labels, take the class out, or list only what was annotated: "medjax": '
        '{"annotated": [...]} in dataset.json; '
        "to continue anyway: --allow-absent, or --config.data.allow_absent=True",
    )


def _identity(case: Case) -> list:
    stats = [stamp(p) if os.path.exists(p) else None for p in case.files()]
    return [dataclasses.asdict(case), stats]


def _measure(case: Case, corpus: Corpus, n: int, masks: Sequence[int] = ()) -> dict:
    """Geometry of a case after the crop, and n foreground voxels per channel.

    The voxels are float32; none without foreground, and none of masks.
    """
    volume, ids = load(case, corpus, native=True)
    still_wanted()
    images = [c for c in range(volume.array.shape[-1]) if c not in masks]
    canonical = geometry.fit(
        volume, None, above=[None if c in masks else 0.0 for c in range(volume.array.shape[-1])]
    )
    present = None if ids is None else voxel_counts(ids, len(corpus.values))
    # in stored axes: the order of the voxels decides which are drawn
    box = grid.nonzero_box(volume.array[..., images] if masks else volume.array)
    inside = tuple(slice(*ends) for ends in box) if box else ...
    image, ids = volume.array[inside], None if ids is None else ids[inside]
    random, drawn = np.random.RandomState(SEED), []
    for c in range(image.shape[-1]):
        channel = image[..., c]
        if c in masks:
            drawn.append(np.empty(0, np.float32))
            continue
        pixels = (
            channel[channel > channel.mean(dtype=np.float64)] if ids is None else channel[ids > 0]
        )
        drawn.append(
            np.asarray(
                random.choice(pixels, n, replace=True) if len(pixels) else pixels, np.float32
            )
        )
    return {
        "spacing_mm": canonical.spacing_mm,
        "shape": canonical.box_shape,
        "axes": canonical.axes,
        "cropped": float(np.prod(canonical.box_shape) / np.prod(volume.shape)),
        "drawn": drawn,
        "levels": tuple(guard.levels(image[..., c]) for c in range(image.shape[-1])),
        "labelled": present is not None,
        "ids": [] if present is None else [int(i) for i in np.flatnonzero(present)],
    }


def _statistics(drawn: Sequence[np.ndarray]) -> Statistics | None:
    if not drawn:
        return None
    pooled = np.concatenate(drawn)
    quantiles = np.percentile(pooled, np.linspace(0, 100, QUANTILES))
    low, median, high = (
        float(quantiles[round(p / 100 * (QUANTILES - 1))]) for p in (0.5, 50, 99.5)
    )
    mean, std = float(pooled.mean(dtype=np.float64)), float(pooled.std(dtype=np.float64))
    return Statistics(
        mean,
        median,
        std,
        float(quantiles[0]),
        float(quantiles[-1]),
        low,
        high,
        len(drawn),
        tuple(float(q) for q in quantiles),
    )
