"""Sliding windows: a volume of any size through a network of one fixed input shape, with one
compiled program and bounded memory.

In: a function on window batches (already jitted) and a volume. Out: scores of every voxel, whole or
row by row. The device only ever sees a fixed number of windows; the host blends them while the
device computes the next ones. Positions and weights are nnU-Net's: windows at most (1 - overlap) of
their size apart, spread evenly; Gaussian importance with sigma = size / 8. Blending is a running
weighted mean, so a constant field comes back exactly, whatever the weights. A 2D window (y, x) is a
3D one of a single slice.
"""

import collections
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from medjax.decision import Decision
from medjax.errors import PredictError, UsageError

# window batches under way on the device while the host blends an earlier one, where memory allows
DEPTH = 2
THREADED = 1 << 20  # values per window above which blending is spread over threads


def starts(size: int, window: int, overlap: float = 0.5) -> tuple[int, ...]:
    """Window positions along one axis: n = ceil((size - window) / step) + 1 of them, at round(i
    (size - window) / (n - 1)).

    >>> starts(188, 96)
    (0, 46, 92)
    """
    if size < window or not 0 <= overlap < 1:
        raise UsageError(
            "no such windows",
            found=f"window {window} on {size} voxels, overlap {overlap}",
            expected="0 <= overlap < 1",
        )
    n = math.ceil((size - window) / max(window * (1 - overlap), 1)) + 1
    return tuple(int(np.round((size - window) / max(n - 1, 1) * i)) for i in range(n))


def gaussian(window: Sequence[int], share: float = 1 / 8) -> Float[np.ndarray, "*window"]:
    """Importance of each voxel of a window: float64, 1 at voxel size // 2, standard deviation
    `share` of the size along each axis.
    """
    axes = [np.exp(-0.5 * ((np.arange(n) - n // 2) / (n * share)) ** 2) for n in window]
    return functools.reduce(np.multiply.outer, axes)


def padding(shape: Sequence[int], window: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) per axis so that the window fits: centred, an odd voxel goes to the high
    side.
    """
    missing = [max(0, w - n) for n, w in zip(shape, window, strict=True)]
    return [(m // 2, m - m // 2) for m in missing]


class WindowScores:
    """Scores of a volume, computed when rows along z are asked for. Rows must be asked for in
    ascending order; earlier ones are forgotten.

    Only about one window's extent of rows is in memory, so many classes of a large volume fit.
    `scores[a:b]` is a (b - a, y, x, c) array. Where even that is too much, a strip of the y axis is
    asked for at a time: each voxel gets the same windows in the same order, and only the windows
    that touch two strips are computed twice. Scores that are not finite are a `PredictError`:
    compared with a threshold they would all be background.

    Args:
      function: jitted; (k, *window, m) float32 -> (k, *window, c). With `beside`, what that returns
        is its second argument.
      image: (z, y, x, m).
      window: (z, y, x), or (y, x) for a network on slices.
      classes: c.
      overlap: share of a window that the next one covers at least.
      batch_windows: k; the last batch is filled up with zeros.
      beside: (places, k) -> further inputs of k windows; places are the first voxels (z, y, x) of
        at most k windows in the image after `padding`.
      weighted: Gaussian importance; otherwise every voxel of a window counts alike.
      columns: the strip [start, stop) of the y axis that is wanted; default all.
      depth: window batches under way on the device at a time.
    """

    def __init__(
        self,
        function: Callable,
        image: Float32[np.ndarray, "z y x m"],
        window: Sequence[int],
        classes: int,
        *,
        overlap: float = 0.5,
        batch_windows: int = 2,
        weighted: bool = True,
        columns: slice = slice(None),
        depth: int = DEPTH,
        beside: Callable[[Sequence[tuple[int, ...]], int], Any] | None = None,
    ):
        if len(window) not in (2, 3) or min(window) < 1 or batch_windows < 1:
            raise UsageError(
                "unusable window",
                found=f"{tuple(window)}, batches of {batch_windows}",
                expected="(z, y, x) or (y, x) sizes >= 1",
            )
        first, last, _ = columns.indices(image.shape[1])
        self.shape = (image.shape[0], last - first, image.shape[2], classes)
        self._function, self._sent = function, (batch_windows, *window, image.shape[-1])
        self._window = (1, *window) if len(window) == 2 else tuple(window)
        self._pad = padding(image.shape[:3], self._window)
        self._image = np.pad(image, [*self._pad, (0, 0)]) if any(map(any, self._pad)) else image
        self._strip = slice(self._pad[1][0] + first, self._pad[1][0] + last)
        self._depth, self._beside = depth, beside
        self._weight = (gaussian(self._window) if weighted else np.ones(self._window)).astype(
            np.float32
        )
        grid = [
            starts(n, w, overlap) for n, w in zip(self._image.shape[:3], self._window, strict=True)
        ]
        grid[1] = tuple(
            y for y in grid[1] if y < self._strip.stop and y + self._window[1] > self._strip.start
        )
        self._places = list(itertools.product(*grid))
        self._rows: dict[
            int, tuple[np.ndarray, np.ndarray]
        ] = {}  # padded z -> running mean (y, x, c) and its weight (y, x)
        self._results = self._compute()
        self._blended, self._first = 0, 0

    def __getitem__(self, rows: slice) -> Float32[np.ndarray, "rows y x c"]:
        start, stop, _ = rows.indices(self.shape[0])
        low = self._pad[0][0]
        self._reach(start, stop)
        left = self._pad[2][0]
        out = np.stack(
            [
                self._rows[row][0][:, left : left + self.shape[2]]
                for row in range(low + start, low + stop)
            ]
        )
        refuse_scores(out.max(initial=0), out.min(initial=0))
        self._first = low + start
        for row in [row for row in self._rows if row < self._first]:
            del self._rows[row]
        return out

    def narrowed(
        self, rows: slice, decision: Decision
    ) -> tuple[Float32[np.ndarray, "rows y x k"], np.ndarray]:
        """Rows with what is needed to decide: the channels that may be decided for, and which.

        See `Decision.candidates` and `Decision.narrowed`.
        """
        block = self[rows]
        kept = decision.candidates(block)
        return decision.narrowed(block, kept), kept

    def _reach(self, start: int, stop: int) -> None:
        """Computes and blends until the rows are final; `UsageError` if they are gone."""
        low = self._pad[0][0]
        if low + start < self._first:
            raise UsageError(
                "rows that were given out before are gone",
                found=start,
                expected=f">= {self._first - low}",
            )
        while self._final() < low + stop:
            self._take(*next(self._results))

    def _take(self, places: Sequence[tuple[int, ...]], scores: Any) -> None:
        """Blends a batch; what fills up the last one has no place."""
        for place, window in zip(places, scores, strict=False):
            self._blend(place, window)
            self._blended += 1

    def _final(self) -> int:
        """Rows below this one get no more windows."""
        return (
            self._image.shape[0]
            if self._blended == len(self._places)
            else self._places[self._blended][0]
        )

    def _compute(self) -> Iterator[tuple[list[tuple[int, ...]], np.ndarray]]:
        """Batches of places with their scores; while the caller blends one, the device works on the
        next.
        """
        pending = collections.deque()
        for first in range(0, len(self._places), self._sent[0]):
            places = self._places[first : first + self._sent[0]]
            batch = np.zeros((self._sent[0], *self._window, self._sent[-1]), np.float32)
            for i, place in enumerate(places):
                batch[i] = self._image[self._region(place)]
            further = (self._beside(places, self._sent[0]),) if self._beside else ()
            scores = self._function(batch.reshape(self._sent), *further)
            self._send_back(scores)
            pending.append((places, scores))
            if len(pending) > self._depth:
                yield self._fetch(*pending.popleft())
        while pending:
            yield self._fetch(*pending.popleft())

    def _send_back(self, scores: Any) -> None:
        if hasattr(scores, "copy_to_host_async"):
            scores.copy_to_host_async()

    def _fetch(self, places: list, scores) -> tuple[list, np.ndarray]:
        return places, np.asarray(scores).reshape(self._sent[0], *self._window, self.shape[-1])

    def _region(self, place: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(slice(start, start + n) for start, n in zip(place, self._window, strict=True))

    def _blend(self, place: tuple[int, ...], scores: np.ndarray) -> None:
        _, across, along = self._region(place)
        first, last = max(across.start, self._strip.start), min(across.stop, self._strip.stop)
        inner = slice(first - self._strip.start, last - self._strip.start), along
        part = slice(first - across.start, last - across.start)  # of the window
        for row in range(place[0], place[0] + self._window[0]):
            if row not in self._rows:
                plane = self.shape[1], self._image.shape[2]
                self._rows[row] = (
                    np.zeros((*plane, self.shape[-1]), np.float32),
                    np.zeros(plane, np.float32),
                )

        def blend_row(offset: int) -> None:
            mean, weight = self._rows[place[0] + offset]
            own = self._weight[offset, part]
            total = weight[inner] + own
            step = scores[offset, part] - mean[inner]
            step *= (own / total)[..., None]
            mean[inner] += step
            weight[inner] = total

        if scores.size < THREADED:
            for offset in range(self._window[0]):
                blend_row(offset)
        else:  # rows do not share memory and numpy lets other threads run
            list(_threads().map(blend_row, range(self._window[0])))


def refuse_scores(highest: Any, lowest: Any) -> None:
    """`PredictError` if the largest or smallest scores are no finite numbers; both hand on NaN."""
    if np.isfinite(highest).all() and np.isfinite(lowest).all():
        return
    raise PredictError(
        "the network gives scores that are not finite numbers",
        found="NaN or infinity",
        expected="finite scores",
        fix="check the model on another scan: its weights are damaged or overflow, or this scan's "
        "values are absurd",
    )


def sliding_window(
    function: Callable,
    image: Float32[np.ndarray, "z y x m"],
    window: Sequence[int],
    classes: int,
    *,
    overlap: float = 0.5,
    batch_windows: int = 2,
    weighted: bool = True,
) -> Float32[np.ndarray, "z y x c"]:
    """Scores (z, y, x, c) of a whole volume; the arguments are those of `WindowScores`."""
    scores = WindowScores(
        function,
        image,
        window,
        classes,
        overlap=overlap,
        batch_windows=batch_windows,
        weighted=weighted,
    )
    out = np.empty(scores.shape, np.float32)
    for row in range(out.shape[0]):
        out[row] = scores[row : row + 1][0]
    return out


@functools.lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="medjax-blend")
