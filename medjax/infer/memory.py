"""How a case is cut so that its prediction fits into the memory allowed, and a forecast of what it
takes.

In: sizes (grids, window, classes) and a budget in bytes. Out: strips of the scan's y axis to work
through one after the other, and a `Forecast`. The number of windows under way is
reduced first, because a window that touches two strips is computed twice.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NoReturn

from medjax.errors import PredictError
from medjax.infer import windows
from medjax.infer.regrid import BLOCK

GIB = 2**30
LEAST_BLOCK = 1 << 18  # values; smaller blocks only cost time
COPIES = 5  # arrays of a block's size that exist at a time: scores, resampled, decided


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What one network takes, as far as memory is concerned.

    Attributes:
      shape: (z, y, x) of the network's grid. window: (z, y, x). channels: of image and scores.
      batch: windows per step. temporary: bytes the compiled step needs beside its inputs and
        outputs, on the host's memory; else 0. blends: scores come to the host's memory and are
        blended there.
    """

    shape: tuple[int, int, int]
    window: tuple[int, int, int]
    image_channels: int
    score_channels: int
    batch: int
    overlap: float
    temporary: int = 0
    blends: bool = True


@dataclasses.dataclass(frozen=True)
class Cut:
    """How to work through a volume: strips along the crop's y axis, window batches under way,
    values per block.
    """

    strips: tuple[slice, ...]
    depth: int
    block: int


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a case will take.

    Attributes:
      shape: (z, y, x) of the network's grid. windows: how many are computed. strips: in how many
        pieces. bytes: peak memory of the case.
    """

    shape: tuple[int, int, int]
    windows: int
    strips: int
    bytes: int


def cut(
    box_shape: Sequence[int], networks: Sequence[Footprint], held: int, budget: int, path: str = ""
) -> tuple[Cut, int]:
    """The coarsest cut that keeps within `budget`.

    Args:
      box_shape: (z, y, x) of the crop on the scan's grid. networks: of the ensemble. held:
        bytes of what is there anyway: image, label map, maps.

    Returns: the cut and its bytes in all.
    Raises: `PredictError` if not even a strip of one row of voxels fits.
    """
    height = int(box_shape[1])
    classes = max(one.score_channels for one in networks)
    for depth in range(windows.DEPTH, -1, -1):
        block = max(LEAST_BLOCK, BLOCK >> (2 * (windows.DEPTH - depth)))
        flying = sum(_flying(one, depth) for one in networks)
        for count in _strip_counts(height, 4 if depth else height):
            tall = -(-height // count)
            rows = min(max(1, block // max(1, tall * box_shape[2] * classes)), int(box_shape[0]))
            blocks = COPIES * 4 * rows * tall * box_shape[2] * classes
            total = (
                held
                + flying
                + blocks
                + sum(_blended(one, tall / height, rows / box_shape[0]) for one in networks)
            )
            if total <= budget or (depth == 0 and count == height):
                if total > budget:
                    refuse(total, budget, path)
                strips = tuple(
                    slice(start, min(start + tall, height)) for start in range(0, height, tall)
                )
                return Cut(strips, depth, block), total
    raise AssertionError("unreachable")


def refuse(needed: int, budget: int, path: str = "") -> NoReturn:
    """Raises the `PredictError` of a case that is too large."""
    raise PredictError(
        "the case does not fit into the memory allowed",
        path=path or None,
        found=f"at least {needed / GIB:.2f} GiB needed",
        expected=f"{budget / GIB:.2f} GiB",
        fix="allow more (--max-memory), a smaller --batch-windows or --window, or --fast",
    )


def is_exhausted(error: BaseException) -> bool:
    """Whether an error means that a device is out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "RESOURCE_EXHAUSTED" in type(error).__name__


def count_windows(network: Footprint, columns: Sequence[slice]) -> int:
    """Windows that are computed for strips of the network's y axis."""
    padded = [max(n, w) for n, w in zip(network.shape, network.window, strict=True)]
    z, y, x = (
        windows.starts(n, w, network.overlap) for n, w in zip(padded, network.window, strict=True)
    )
    low = windows.padding(network.shape, network.window)[1][0]
    touched = sum(
        sum(s < low + c.stop and s + network.window[1] > low + c.start for s in y) for c in columns
    )
    return len(z) * touched * len(x)


def _strip_counts(height: int, most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, ... up to `most`."""
    found, count = [], 1.0
    while count <= most:
        found.append(int(count))
        count = max(count + 1, count * 1.4)
    return [n for n in found if n <= height] + (
        [height] if most >= height and height not in found else []
    )


def _flying(network: Footprint, depth: int) -> int:
    """Window batches on their way: inputs and scores of those under way, one more being blended,
    and the step's temporaries.
    """
    window = math.prod(network.window) * network.batch
    channels = network.image_channels + network.score_channels * network.blends
    return (depth + 2) * 4 * window * channels + network.temporary


def _blended(network: Footprint, share: float, rows: float) -> int:
    """Rows that are not final yet: a window's depth, what the next windows reach beyond, and what a
    block asks for at once.
    """
    if not network.blends:
        return 0
    step = network.window[0] * (1 - network.overlap)
    alive = min(
        network.shape[0],
        network.window[0] + math.ceil(step) + math.ceil(rows * network.shape[0]) + 1,
    )
    tall = min(network.shape[1], math.ceil(share * network.shape[1]) + 2)
    return (
        alive * tall * max(network.shape[2], network.window[2]) * (network.score_channels + 1) * 4
    )
