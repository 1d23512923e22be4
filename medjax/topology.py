"""nnU-Net's topology rule: strides, kernels and widths of an encoder from spacing and patch.

Pure numbers, shared by planning and models. Source: nnU-Net v2 (experiment planning). Repeated
until no axis qualifies: an axis may be halved while it has at least twice `min_edge` voxels and its
spacing is below twice the finest spacing among those axes; a single remaining axis needs three
times `min_edge`. The kernel of an axis becomes 3 once its spacing is below twice the finest of all
axes, and stays 3.
"""

import dataclasses
from collections.abc import Sequence

from medjax.errors import ModelError

Sides = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Topology:
    """Strides and kernels per stage, finest first, and the padded patch.

    The stride is that of the stage's first convolution (the first is all 1); the patch is padded to
    be divisible.
    """

    strides: tuple[Sides, ...]
    kernels: tuple[Sides, ...]
    patch: Sides


def topology(
    spacing_mm: Sequence[float | int],
    patch: Sequence[int],
    min_edge: int = 4,
    max_stages: int | None = None,
) -> Topology:
    """The rule above.

    Args:
      spacing_mm, patch: of 2 or 3 axes, in array order.
      min_edge: smallest feature map edge; nnU-Net's is 4.
      max_stages: stop pooling at this many stages.

    Raises: `ModelError` for lengths that disagree or non-positive numbers.
    """
    if (
        len(spacing_mm) != len(patch)
        or len(patch) not in (2, 3)
        or min(patch) < 1
        or min(spacing_mm) <= 0
    ):
        raise ModelError(
            "spacing and patch do not describe a grid",
            found=f"spacing {tuple(spacing_mm)}, patch {tuple(patch)}",
        )
    size, spacing, kernel = (
        [float(p) for p in patch],
        [float(s) for s in spacing_mm],
        [1] * len(patch),
    )
    pools, strides, kernels = [0] * len(patch), [(1,) * len(patch)], []
    while True:
        valid = [a for a in range(len(patch)) if size[a] >= 2 * min_edge]
        finest = min((spacing[a] for a in valid), default=0.0)
        valid = [a for a in valid if spacing[a] < 2 * finest]
        stop = not valid or (len(valid) == 1 and size[valid[0]] < 3 * min_edge)
        if stop or (max_stages and len(strides) >= max_stages):
            break
        kernel = [
            3 if k == 3 or s < 2 * min(spacing) else 1 for k, s in zip(kernel, spacing, strict=True)
        ]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if a in valid else 1 for a in range(len(patch))))
        for a in valid:
            pools[a] += 1
            spacing[a] *= 2
            size[a] = -(-size[a] // 2)
    kernels.append((3,) * len(patch))
    padded = tuple(-(-p // 2**n) * 2**n for p, n in zip(patch, pools, strict=True))
    return Topology(tuple(strides), tuple(kernels), padded)


def features_per_stage(stages: int, base: int = 32, largest: int = 320) -> Sides:
    """min(largest, base * 2^stage) for every stage."""
    return tuple(min(largest, base * 2**s) for s in range(stages))
