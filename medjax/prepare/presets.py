"""Patch, batch and network shape from spacing, median size and a memory budget.

nnU-Net v2's planners as pure numbers. In: target spacing, median size after resampling, size of the
collection, a preset. Out: a `Configuration`, JSON. No network is built: the proxy for memory is the
number of output values of all convolutions, which follows from widths and strides alone. Source:
nnU-Net v2 (experiment planning): the default planner and the residual encoder presets M, L and XL.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from medjax.errors import UsageError, did_you_mean
from medjax.prepare.resample import Spacing
from medjax.topology import Topology, features_per_stage, topology

# a patch that covers less of the median volume asks for a low-resolution configuration as well
LOWRES_BELOW = 0.25
LOWRES_STEP, LOWRES_LEAST = 1.03, 2.0
LEAST_BATCH = 2
BUDGETS = {  # word of `medjax plan --budget` -> preset, GiB
    "cpu": ("cpu", 1.0),
    "8gb": ("default", 8.0),
    "24gb": ("resenc_l", 24.0),
    "80gb": ("resenc_xl", 80.0),
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """A budget and the network that spends it.

    Attributes:
      model: module of `medjax.models`. residual: encoder of residual blocks.
      encoder: convolutions (plain) or blocks (residual) per encoder stage, the last one repeated.
        decoder: convolutions per decoder stage.
      values_3d, values_2d: values of all convolution outputs that fit `memory_gib` at a batch of 2
        (3D) or 12 (2D).
      memory_gib: the memory these numbers stand for; another budget scales them.
      covered: largest share of the collection's voxels in one batch.
      base_features, max_features: channels of the first stage, and the most (3D).
      steps: length of a training with this budget.
    """

    model: str
    residual: bool
    encoder: tuple[int, ...]
    decoder: int
    values_3d: float
    values_2d: float
    memory_gib: float
    covered: float
    base_features: int = 32
    max_features: int = 320
    steps: int = 250_000


RESENC = {
    "model": "resenc",
    "residual": True,
    "encoder": (1, 3, 4, 6),
    "decoder": 1,
    "covered": 1.0,
}
PRESETS = {
    "default": Preset("unet", False, (2,), 2, 560e6, 85e6, 8.0, 0.05),
    "resenc_m": Preset(values_3d=680e6, values_2d=135e6, memory_gib=8.0, **RESENC),
    "resenc_l": Preset(values_3d=2.1e9, values_2d=380e6, memory_gib=24.0, **RESENC),
    "resenc_xl": Preset(values_3d=3.6e9, values_2d=560e6, memory_gib=40.0, **RESENC),
    # 2 patches of 24x48x48 voxels: a third of a second per step on two cores
    "cpu": Preset("unet", False, (2,), 2, 6.5e6, 1.5e6, 1.0, 1.0, 16, 128, 3000),
}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One way to train on the prepared volumes; axes as in the plan, the last two for "2d".

    Attributes:
      name: "3d_fullres", "3d_lowres" or "2d". preset, memory_gib: what it was made with.
      spacing_mm, median_shape: of the volumes the network sees.
      patch, batch: voxels and samples of a step.
      model: module of `medjax.models`. strides, kernels, features: per stage, finest first.
        encoder: convolutions or blocks per stage.
      decoder: convolutions per decoder stage.
      batch_dice: whether Dice is pooled over the batch.
      values, budget: convolution outputs of one patch (the proxy for memory) and what the budget
        allows at the reference batch.
      first_patch: the patch before it was shrunk to the budget.
      steps: of a training; 0: the recipe decides.
    """

    name: str
    preset: str
    memory_gib: float
    spacing_mm: tuple[float, ...]
    median_shape: tuple[int, ...]
    patch: tuple[int, ...]
    batch: int
    model: str
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    features: tuple[int, ...]
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    batch_dice: bool = False
    values: int = 0
    budget: float = 0.0
    first_patch: tuple[int, ...] = ()
    steps: int = 0

    def to_json(self) -> dict:
        """JSON-ready fields; `from_json` inverts it exactly."""
        fields = dataclasses.asdict(self)
        return fields if self.steps else {k: v for k, v in fields.items() if k != "steps"}

    @classmethod
    def from_json(cls, fields: Mapping) -> "Configuration":
        """Inverse of `to_json`."""
        return cls(**{name: _tuples(value) for name, value in fields.items()})


def _tuples(value):
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def preset_named(name: str) -> Preset:
    """A preset; `UsageError` listing them for an unknown name."""
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}", fix=did_you_mean(name, PRESETS))
    return PRESETS[name]


def conv_values(
    patch: Sequence[int], found: Topology, features: Sequence[int], preset: Preset, outputs: int
) -> int:
    """Number of output values of the convolutions of the preset's U-Net for one patch.

    Counted are encoder, decoder, transposed convolutions and the full-resolution head with
    `outputs` channels (background included); a residual block counts its skip once if width or size
    changes, and the stem counts as one convolution.
    """
    sizes, side = [], [int(p) for p in patch]
    for stride in found.strides:
        side = [n // s for n, s in zip(side, stride, strict=True)]
        sizes.append(math.prod(side))
    stages, total = len(sizes), 0
    blocks = repeated(preset.encoder, stages)
    for s in range(stages):
        if preset.residual:
            changed = s > 0 and (features[s] != features[s - 1] or max(found.strides[s]) > 1)
            total += features[s] * sizes[s] * (2 * blocks[s] + changed)
        else:
            total += features[s] * sizes[s] * blocks[s]
    if preset.residual:
        total += features[0] * sizes[0]  # the stem
    total += sum(features[s] * sizes[s] * (preset.decoder + 1) for s in range(stages - 1))
    return total + outputs * sizes[0]


def repeated(pattern: Sequence[int], stages: int) -> tuple[int, ...]:
    """The first `stages` entries of a pattern whose last entry is repeated."""
    return tuple(pattern[min(s, len(pattern) - 1)] for s in range(stages))


def configure(
    name: str,
    spacing_mm: Spacing,
    median_shape: Spacing,
    voxels: float | int,
    outputs: int,
    preset: str = "default",
    memory_gib: float | int | None = None,
) -> Configuration:
    """Patch, batch and topology for volumes of one spacing.

    Args:
      name: of the configuration.
      spacing_mm, median_shape: two axes or three, in array order.
      voxels: of the whole collection after resampling; bounds the batch.
      outputs: channels of the head, background included.
      memory_gib: budget; None is the preset's own.
    """
    chosen, axes, spacing = preset_named(preset), len(spacing_mm), [float(s) for s in spacing_mm]
    budget = memory_gib or chosen.memory_gib
    if budget <= 0:
        raise UsageError("no memory to plan for", found=budget, expected="a positive number of GiB")
    reference = (chosen.values_2d if axes == 2 else chosen.values_3d) * (budget / chosen.memory_gib)
    batch_there, largest = (12, 512) if axes == 2 else (2, chosen.max_features)
    limit = (
        reference if chosen.residual else reference * batch_there / 2
    )  # the plain planner shrinks for a batch of two

    def built(patch: Sequence[int]) -> tuple[Topology, tuple[int, ...], int]:
        found = topology(spacing, patch)
        features = features_per_stage(len(found.strides), chosen.base_features, largest)
        return found, features, conv_values(found.patch, found, features, chosen, outputs)

    inverse = 1 / np.asarray(spacing)
    side = (
        (256.0**3 / inverse.prod()) ** (1 / 3)
        if axes == 3
        else (2048.0**2 / inverse.prod()) ** (1 / 2)
    )
    first = [
        int(min(round(float(a)), b)) for a, b in zip(inverse * side, median_shape, strict=True)
    ]
    found, features, values = built(first)
    first_patch = found.patch
    while values > limit:
        axis = int(np.argsort([p / m for p, m in zip(found.patch, median_shape, strict=True)])[-1])
        smaller = list(found.patch)
        smaller[axis] -= divisors(found)[axis]
        step = divisors(topology(spacing, [max(1, p) for p in smaller]))[
            axis
        ]  # 256 may go to 224 although it is divisible by 64
        patch = list(found.patch)
        patch[axis] -= step
        if patch[axis] < 1:
            raise UsageError(
                "no patch fits this memory",
                found=f"{budget:g} GiB",
                fix="give more memory or a coarser spacing",
            )
        found, features, values = built(patch)
    batch = round(reference / values * batch_there)
    covering = round(voxels * chosen.covered / math.prod(found.patch))
    stages = len(found.strides)
    return Configuration(
        name,
        preset,
        float(budget),
        tuple(spacing),
        tuple(round(float(n)) for n in median_shape),
        found.patch,
        max(min(batch, covering), LEAST_BATCH),
        chosen.model,
        found.strides,
        found.kernels,
        features,
        repeated(chosen.encoder, stages),
        (chosen.decoder,) * (stages - 1),
        False,
        int(values),
        float(reference),
        first_patch,
    )


def divisors(found: Topology) -> tuple[int, ...]:
    """Per axis, what a patch must be a multiple of."""
    return tuple(math.prod(sides) for sides in zip(*found.strides, strict=True))


def configurations(
    spacing_mm: Spacing,
    shapes: np.ndarray,
    outputs: int,
    preset: str = "default",
    memory_gib: float | int | None = None,
) -> dict[str, Configuration]:
    """All configurations of a collection.

    Args:
      spacing_mm: (z, y, x) target spacing.
      shapes: (n, 3) sizes of the cases after resampling.
      outputs: channels of the head, background included.

    Returns: "3d_fullres" (not for single slices), "3d_lowres" where the patch sees too little of a
      volume, "2d".
    """
    median, target = np.median(shapes, 0), np.asarray(spacing_mm, float)
    voxels, found = float(median.prod() * len(shapes)), {}
    if median[0] != 1:
        full = configure("3d_fullres", target, median, voxels, outputs, preset, memory_gib)
        low = _lowres(full, target, median, len(shapes), outputs, preset, memory_gib)
        found["3d_fullres"] = dataclasses.replace(full, batch_dice=low is not None)
        if low is not None:
            found["3d_lowres"] = low
    flat = configure("2d", target[1:], median[1:], voxels, outputs, preset, memory_gib)
    return found | {"2d": dataclasses.replace(flat, batch_dice=True)}


def for_budget(
    word: str, spacing_mm: Spacing, shapes: np.ndarray, outputs: int
) -> dict[str, Configuration]:
    """The one configuration for a machine, under the word that names it.

    On a "cpu" the patch is small, and the grid is coarsened until it covers a quarter of the median
    volume: what surrounds an organ tells it from its neighbours. The others are nnU-Net's full
    resolution.

    Args:
      word: a key of `BUDGETS`. spacing_mm, shapes, outputs: see `configurations`.
    """
    if word not in BUDGETS:
        raise UsageError(f"unknown budget {word!r}", fix=did_you_mean(word, BUDGETS))
    preset, memory_gib = BUDGETS[word]
    median, target = np.median(shapes, 0), np.asarray(spacing_mm, float)
    if median[0] == 1:
        raise UsageError(
            "a budget plans volumes, and these are single slices", fix="leave out --budget"
        )
    voxels = float(median.prod() * len(shapes))
    found = configure(word, target, median, voxels, outputs, preset, memory_gib)
    if word == "cpu":
        low = _lowres(found, target, median, len(shapes), outputs, preset, memory_gib)
        found = dataclasses.replace(low, name=word) if low is not None else found
    return {word: dataclasses.replace(found, steps=PRESETS[preset].steps)}


def _lowres(full, target, median, cases, outputs, preset, memory_gib) -> Configuration | None:
    """The finest coarser grid whose patch covers a quarter of the median volume.

    None if the full grid does, or if little is saved.
    """
    low, spacing = None, target.copy()
    covered, voxels = math.prod(full.patch), float(median.prod())
    while covered / voxels < LOWRES_BELOW:
        fine = spacing.max() / spacing > 2
        spacing = np.where(fine | (not fine.any()), spacing * LOWRES_STEP, spacing)
        size = target / spacing * median
        voxels = float(size.prod())
        rounded = tuple(round(float(n)) for n in size)
        low = configure("3d_lowres", spacing, rounded, voxels * cases, outputs, preset, memory_gib)
        covered = math.prod(low.patch)
    return low if low is not None and median.prod() / voxels >= LOWRES_LEAST else None
