"""Warnings about empty masks in scans that are unlike those trained on.

In: a plan, a scan and its prepared image. Out: the reasons why the scan is unlike those trained on,
and the warnings of its prediction if a class is found nowhere. There is no warning about a class
that is found.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from medjax.errors import shown
from medjax.infer.model import Prepared
from medjax.prepare import guard
from medjax.prepare.plan import Intensity, Plan
from medjax.scans.nifti import Volume

ABSOLUTE = ("ct", "window", "nonorm", "rgb_to_0_1")  # schemes whose units are those of the training
FLAT = {
    "rescale_to_0_1": 0.02,
    "window": 0.02,
    "foreground": 0.02,
    "rgb_to_0_1": 0.002,
    "nonorm": 0.0,
}  # contrast (percentiles 1 to 99) below which a scan is flat
FLAT_SCORE = 0.2  # the same limit in standard deviations, for "ct" and "zscore"
INSIDE = 1e-3  # share of the voxels that must lie within the trained range of a CT
# factor of the target spacing that a voxel may be smaller or larger, where the plan has no ranges
COARSE = 8.0
NAMED = 6  # classes that a warning names


def doubts(plan: Plan, channels: Sequence[str], volume: Volume, prepared: Prepared) -> list[str]:
    """Why a scan is unlike those trained on; usually nothing.

    Args:
      channels: of the corpus. volume: with pixels (z, y, x[, m]). prepared: as the network sees it.
    """
    transform, known = prepared.transform, plan.guard
    found = []
    if known is not None:
        sides = [n * s for n, s in zip(transform.box_shape, transform.spacing_mm, strict=True)]
        found.append(guard.lengths_outside(known.spacing_mm, transform.spacing_mm, "voxels of"))
        found.append(guard.lengths_outside(known.field_mm, [max(sides)], "a field of view of"))
    else:
        ratio = np.array(transform.spacing_mm) / transform.target_spacing_mm
        if ratio.max() > COARSE or ratio.min() < 1 / COARSE:
            said = (
                "x".join(f"{s:.4g}" for s in spacing)
                for spacing in (transform.spacing_mm, transform.target_spacing_mm)
            )
            found.append("voxels of {} mm, in training {} mm".format(*said))
    view = transform.image(volume.array if volume.array.ndim == 4 else volume.array[..., None])
    for c, channel in enumerate(channels):
        found.append(_intensity(plan, channel, view[..., c], prepared.image[..., c]))
    return [text for text in found if text]


def unchecked(plan: Plan, channels: Sequence[str]) -> str:
    """What cannot be compared with the training; empty if all can."""
    if plan.guard is None:
        return (
            "its plan holds no ranges of the training scans (made by an earlier version): "
            "field of view and most intensities"
        )
    missing = [
        c
        for c in channels
        if _scheme(plan, c).scheme in ABSOLUTE and c.lower() not in plan.guard.intensity
    ]
    return f"its plan holds no intensities of {', '.join(missing)}" if missing else ""


def warnings(voxels: Mapping[str, int], reasons: Sequence[str]) -> list[str]:
    """One sentence if a class is empty in a scan that there are doubts about."""
    empty = [shown(name) for name, count in voxels.items() if not count]
    if not empty or not reasons:
        return []
    names = ", ".join(empty[:NAMED]) + (
        f" and {len(empty) - NAMED} more" if len(empty) > NAMED else ""
    )
    return [
        f"no voxel of {names} was found, but the scan is unlike those trained on: "
        f"{'; '.join(reasons)}. Check its units and its type"
    ]


def _scheme(plan: Plan, channel: str) -> Intensity:
    return plan.intensity_of(channel)


def _intensity(plan: Plan, channel: str, raw: np.ndarray, seen: np.ndarray) -> str:
    """A sentence if a channel's intensities are far from those trained on, or have no contrast
    after normalisation.
    """
    rule, known = _scheme(plan, channel), plan.guard
    if rule.role == "mask":  # may be empty
        return ""
    name, low_high = channel.lower(), guard.levels(raw)
    if rule.scheme in ABSOLUTE and known is not None and name in known.intensity:
        if text := guard.intensities_outside(
            known.intensity[name], known.contrast[name], low_high, shown(channel)
        ):
            return text
    elif rule.scheme in ("ct", "window") and rule.clip is not None:
        sample = guard.sample(raw)
        if np.mean((sample >= rule.clip[0]) & (sample <= rule.clip[1])) < INSIDE:
            return (
                f"intensities of {shown(channel)} {low_high[0]:.4g} to {low_high[-1]:.4g} "
                "(percentiles 1 and 99), in training "
                f"{rule.clip[0]:.4g} to {rule.clip[1]:.4g} within the classes"
            )
    first, _, last = guard.levels(seen)
    if last - first < FLAT.get(rule.scheme, FLAT_SCORE):
        return (
            f"hardly any contrast is left of {shown(channel)} when it is normalised (a few "
            "extreme voxels, or other units)"
        )
    return ""
