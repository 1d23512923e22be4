"""A whole plan from fingerprints: preparation, and patch, batch and topology, with reasons.

In: fingerprints, a preset, a memory budget. Out: a `Plan` with its configurations; sentences that
explain it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medjax.prepare import grid
from medjax.prepare.intensity import MASK_BELOW, PERCENTILES, Intensity
from medjax.prepare.plan import (
    ANY,
    Fingerprint,
    Plan,
    make_plan,
    target_spacing,
)
from medjax.prepare.presets import PRESETS, Configuration, configurations, for_budget
from medjax.prepare.resample import ANISOTROPY

AXES = ("z", "y", "x")


def plan_experiment(
    fingerprints: Mapping[str, Fingerprint],
    outputs: int,
    *,
    preset: str = "default",
    memory_gib: float | int | None = None,
    spacing: str | Sequence[float | int] | None = None,
    orientation: str = "RAS",
    crop: str = "nonzero",
    transpose: str = "coarsest",
    size: Sequence[int] | None = None,
    intensity: Mapping[str, Any] | None = None,
    budget: str = "",
) -> Plan:
    """Preparation (see `plan.make_plan`) and its configurations (see `presets.configurations`).

    Args:
      outputs: channels of the network's head, background included.
      budget: a word of `presets.BUDGETS` instead of preset and memory: one configuration, with the
        number of steps.

    Corpora with their own spacing are planned at their mean spacing, because one network sees them
    all; cases with their own spacing, or a fixed size, at their typical one. A fixed size has no
    "3d_lowres".
    """
    plan = make_plan(
        fingerprints,
        spacing=spacing,
        orientation=orientation,
        crop=crop,
        transpose=transpose,
        size=size,
        intensity=intensity,
    )
    shapes = prepared_shapes(fingerprints, plan)
    if budget:
        found = for_budget(budget, plan.mean_spacing(), shapes, outputs)
        return dataclasses.replace(plan, configurations=found)
    found = configurations(plan.mean_spacing(), shapes, outputs, preset, memory_gib)
    if plan.size is not None:
        found.pop("3d_lowres", None)
    return dataclasses.replace(plan, configurations=found)


def prepared_shapes(fingerprints: Mapping[str, Fingerprint], plan: Plan) -> np.ndarray:
    """(n, 3) sizes of all cases after preparation, in the network's axes."""
    order, found = list(plan.transpose), []
    for name, measured in fingerprints.items():
        spacings, shapes = measured.grids(plan.orientation)
        found += [
            plan.grid_of(name).shape_of(shape[order], own[order])
            for shape, own in zip(shapes, spacings, strict=True)
        ]
    return np.array(found)


def explain(
    fingerprints: Mapping[str, Fingerprint],
    plan: Plan,
    chosen: str | Sequence[float | int] | None = None,
) -> list[str]:
    """The decisions and their reasons, one sentence per line.

    Args:
      chosen: the `spacing` that the plan was made with.
    """
    lines, kept = [], None
    for name, found in fingerprints.items():
        spacings, shapes = found.grids(plan.orientation)
        lines.append(
            f"{name}: {len(found.cases)} cases, spacing {_times(np.median(spacings, 0))} mm "
            f"(median; {_times(spacings.min(0))} to "
            f"{_times(spacings.max(0))}), size {_times(np.median(shapes, 0))} voxels (median, z y "
            "x)" + (f"; {len(found.failed)} could not be read" if found.failed else "")
        )
    if fingerprints:
        lines += _about_spacing(fingerprints, plan, chosen)
        kept = float(
            np.median([share for found in fingerprints.values() for share in found.cropped])
        )
    else:
        word = "Spacing" if plan.grid == "spacing" else "Grid"
        lines += [
            f"{word}{'' if name == ANY else f' for {name}'}: {plan.grid_of(name)}, of the plan."
            for name in plan.spacing_mm
        ]
    if plan.transpose != (0, 1, 2):
        first = AXES[plan.transpose[0]]
        lines.append(
            f"Axes: {first} is the coarsest and comes first for the network "
            f"({' '.join(AXES[a] for a in plan.transpose)})."
        )
    if plan.orientation == "RAS":
        lines.append(
            "Orientation: all volumes are turned to RAS; masks are turned back exactly on export."
        )
    else:
        lines.append("Orientation: volumes stay as stored.")
    box = "" if kept is None else f"; the non-zero box holds {kept:.0%} of a volume (median)"
    crops = {"nonzero": "to the non-zero box", "foreground": "to the box above the lower limit"}
    lines.append(f"Crop: {crops.get(plan.crop, 'none')}{box}.")
    lines += [_about_channel(name, found) for name, found in plan.intensity.items()]
    return lines + [_about_configuration(found) for found in plan.configurations.values()]


def _about_spacing(fingerprints: Mapping[str, Fingerprint], plan: Plan, chosen) -> list[str]:
    different = {store: spacing for store, spacing in plan.spacing_mm.items()}
    if plan.grid != "spacing":
        typical = f"{_times(plan.mean_spacing())} mm (z y x), the median over the cases"
        if plan.size:
            return [
                f"Grid: each cropped volume is resampled to {grid.written(plan.size)} voxels, as "
                f"asked; the network is built for {typical}."
            ]
        return [f"Spacing: each case keeps its own, as asked; the network is built for {typical}."]
    if chosen is not None and not isinstance(chosen, str):
        return [f"Spacing: {_times(next(iter(different.values())))} mm, as asked."]
    groups = (
        {n: [f] for n, f in fingerprints.items()}
        if chosen == "per_corpus"
        else {"all corpora": list(fingerprints.values())}
    )
    lines = []
    for name, members in groups.items():
        spacings, shapes = (
            np.concatenate(part)
            for part in zip(*(m.grids(plan.orientation) for m in members), strict=True)
        )
        target, median = target_spacing(spacings, shapes), np.median(spacings, 0)
        coarse = int(np.argmax(median))
        if np.allclose(target, median):
            why = "the median of each axis, nnU-Net's rule"
        else:
            why = (
                f"the median, but {AXES[coarse]} is over {ANISOTROPY:g} times coarser "
                f"({median[coarse]:.4g} mm) with under a third of the "
                f"voxels of the others, so that axis takes its 10th percentile"
            )
        lines.append(f"Spacing for {name}: {_times(target)} mm (z y x): {why}.")
    return lines


def _about_channel(name: str, found: Intensity) -> str:
    if found.scheme == "ct":
        low, high = found.clip
        return (
            f"Channel {name}: CT, clipped to {low:.4g}..{high:.4g} (0.5 and 99.5 percentile of "
            "the foreground), then "
            f"(x - {found.mean:.4g}) / {found.std:.4g}, the foreground's mean and standard "
            "deviation."
        )
    if found.scheme == "window":
        low, high = found.clip
        return f"Channel {name}: clipped to {low:.4g}..{high:.4g}, then scaled to [0, 1]."
    if found.scheme == "foreground":
        low, high = found.percentiles or PERCENTILES
        return (
            f"Channel {name}: clipped to percentiles {low:g} and {high:g} of each case's voxels "
            "above its mean, then scaled to [0, 1]."
        )
    if found.role == "mask":
        return (
            f"Channel {name}: a mask of 0 and 1 (1 where the value is above 0), resampled by "
            "nearest neighbour."
        )
    if found.scheme == "zscore":
        where = (
            f"inside the non-zero voxels only, because the crop keeps less than {MASK_BELOW:.0%} "
            "of a volume"
            if found.masked
            else "over the cropped volume"
        )
        return (
            f"Channel {name}: z-score of each case {where} (its name is not CT, noNorm, "
            "rescale_to_0_1, rgb_to_0_1 or mask)."
        )
    return f"Channel {name}: {found.scheme}, as its name says."


def _about_configuration(found: Configuration) -> str:
    preset = PRESETS[found.preset] if found.preset in PRESETS else None
    shrunk = (
        f"shrunk from {_times(found.first_patch)} to fit"
        if found.first_patch and found.first_patch != found.patch
        else "which fits"
    )
    memory = "two CPU cores" if found.preset == "cpu" else f"{found.memory_gib:g} GiB"
    budget = f"{shrunk} {memory} ({found.preset})" if preset else "as imported"
    batch = f"batch {found.batch}"
    covers = np.prod(found.patch) / max(1.0, float(np.prod(found.median_shape)))
    return (
        f"{found.name}: {found.model}, patch {_times(found.patch)} ({min(covers, 1):.0%} of the "
        f"median, {_times(found.median_shape)}), "
        f"{budget}; {batch}; {len(found.strides)} stages of {', '.join(map(str, found.features))} "
        "features, halving each axis "
        f"{_times(np.log2(np.prod(found.strides, 0)))} times"
        + ("" if len(found.spacing_mm) == 2 else f", at {_times(found.spacing_mm)} mm")
        + (f"; {found.steps:,} steps" if found.steps else "")
        + "."
    )


def _times(numbers) -> str:
    return "x".join(f"{float(n):.4g}" for n in numbers)
