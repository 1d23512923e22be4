"""Window scores accumulated on a device: the face of `windows.WindowScores`, the numbers too.

In: a compiled step on a device, and a volume on the host. Out: rows of blended scores. The running
mean lies in a ring of rows on the device, which the compiled blending updates in place; a block of
rows is narrowed there to the classes that may be decided for, and only these reach the host. In
float32 the values are those of the host up to rounding; in half precision the mean is stored as
float16 (each update still computed in float32).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int

from medjax.decision import Decision
from medjax.errors import UsageError
from medjax.infer.windows import WindowScores, refuse_scores

ROUND = 32  # sides of the ring are multiples, so that scans of similar sizes share programs


class DeviceScores(WindowScores):
    """`WindowScores` whose blending runs on a device.

    Args:
      rows: how many rows are asked for at once at most.
      device: that holds the ring; scores of other devices are moved there.
      half: the running mean is stored as float16. Others: see `WindowScores`.
    """

    def __init__(self, *args: Any, rows: int, device: Any, half: bool = False, **more: Any):
        super().__init__(*args, **more)
        self._most, self._device = rows, device
        self._base = 0  # padded row that is the ring's first
        sides, kind = self._sides(), jnp.float16 if half else jnp.float32
        self._mean = jnp.zeros((*sides, self.shape[-1]), kind, device=device)
        self._total = jnp.zeros(sides, jnp.float32, device=device)
        self._importance = jax.device_put(self._weight, device)

    def _sides(self) -> tuple[int, int, int]:
        """Rows of a request, those that the windows of a batch span, and a window's own; all of y
        that a window touches.
        """
        k, places = self._sent[0], self._places
        span = max(
            places[min(i + k, len(places)) - 1][0] - places[i][0] for i in range(0, len(places), k)
        )
        needed = self._most + span + self._window[0]
        self._across = min(place[1] for place in places)  # first voxel of y in the ring
        tall = max(place[1] for place in places) + self._window[1] - self._across
        return (
            _rounded(min(needed, self._image.shape[0])),
            _rounded(tall),
            _rounded(self._image.shape[2]),
        )

    def __getitem__(self, rows: slice) -> Float32[np.ndarray, "rows y x c"]:
        start, stop, _ = rows.indices(self.shape[0])
        at = self._final_at(start, stop)
        refuse_scores(*map(np.asarray, self._extremes(at, stop - start)))
        return np.array(_cut(self._mean, at, self._read_sides)[: stop - start])

    def narrowed(
        self, rows: slice, decision: Decision
    ) -> tuple[Float32[np.ndarray, "rows y x k"], Int[np.ndarray, "kept"]]:
        """See `WindowScores.narrowed`; what is left out never leaves the device."""
        start, stop, _ = rows.indices(self.shape[0])
        at = self._final_at(start, stop)
        highest, lowest = map(np.asarray, self._extremes(at, stop - start))
        refuse_scores(highest, lowest)
        kept = decision.candidates(highest)
        size = min(1 << max(len(kept) - 1, 0).bit_length(), self.shape[-1])  # few programs
        padded = np.zeros(size, np.int32)
        padded[: len(kept)] = kept
        found = _narrowed(self._mean, at, padded, self._read_sides, decision)
        block = np.asarray(found)[: stop - start]
        return np.delete(block, np.s_[len(kept) : size], -1), kept

    @property
    def _read_sides(self) -> tuple[int, int, int]:
        return (self._most, *self.shape[1:3])

    def _extremes(self, at: np.ndarray, count: int) -> tuple[Array, Array]:
        return _extremes(self._mean, at, count, self._read_sides)

    def _final_at(self, start: int, stop: int) -> Int[np.ndarray, "3"]:
        """Computes until rows are final; their place in the ring. Earlier ones are given up."""
        if stop - start > self._most:
            raise UsageError(
                "more rows than were announced", found=stop - start, expected=f"<= {self._most}"
            )
        low = self._pad[0][0] + start
        self._first = max(self._first, low)
        self._reach(start, stop)
        return np.array(
            (low - self._base, self._strip.start - self._across, self._pad[2][0]), np.int32
        )

    def _take(self, places: Sequence[tuple[int, ...]], scores: Any) -> None:
        """Blends a batch into the ring."""
        if places[-1][0] + self._window[0] > self._base + self._mean.shape[0]:
            # the first row that may still be asked for, or that this batch adds to
            base = min(self._first, places[0][0])
            self._mean, self._total = _moved(self._mean, self._total, base - self._base)
            self._base = base
        at = np.zeros((self._sent[0], 3), np.int32)
        at[: len(places)] = np.asarray(places) - (self._base, self._across, 0)
        self._mean, self._total = _blended(
            self._mean,
            self._total,
            jax.device_put(scores, self._device).reshape(
                self._sent[0], *self._window, self.shape[-1]
            ),
            at,
            len(places),
            self._importance,
        )
        self._blended += len(places)

    def _fetch(self, places: list, scores: Any) -> tuple[list, Any]:
        return places, scores

    def _send_back(self, scores: Any) -> None:
        """Nothing: they stay on the device."""


def _rounded(n: int) -> int:
    return -(-n // ROUND) * ROUND


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _blended(
    mean: Float[Array, "d y x c"],
    total: Float32[Array, "d y x"],
    scores: Float[Array, "k a b e c"],
    places: Int[Array, "k 3"],
    count: Int[Array, ""] | int,
    importance: Float32[Array, "a b e"],
) -> tuple[Array, Array]:
    """Running mean and weight with the first `count` windows, as `WindowScores` blends."""

    def one(i: Array, carried: tuple[Array, Array]) -> tuple[Array, Array]:
        mean, total = carried
        at, zero = [places[i, axis] for axis in range(3)], jnp.int32(0)
        old = lax.dynamic_slice(mean, (*at, zero), scores.shape[1:]).astype(jnp.float32)
        together = lax.dynamic_slice(total, at, importance.shape) + importance
        new = old + (scores[i] - old) * (importance / together)[..., None]
        return (
            lax.dynamic_update_slice(mean, new.astype(mean.dtype), (*at, zero)),
            lax.dynamic_update_slice(total, together, at),
        )

    return lax.fori_loop(0, count, one, (mean, total))


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _moved(mean: Array, total: Array, by: Int[Array, ""] | int) -> tuple[Array, Array]:
    """The ring `by` rows later; rows that enter are empty."""
    index = jnp.arange(mean.shape[0]) + by

    def move(array: Array) -> Array:
        entering = (index >= array.shape[0]).reshape(-1, *(1,) * (array.ndim - 1))
        return jnp.where(entering, 0, jnp.take(array, index, axis=0, mode="clip"))

    return move(mean), move(total)


def _slab(mean: Array, at: Array, sides: tuple[int, int, int]) -> Array:
    """Rows from `at` on, up to those at the end of the ring."""
    rows = lax.dynamic_slice_in_dim(mean, at[1], sides[1], 1)
    rows = lax.dynamic_slice_in_dim(rows, at[2], sides[2], 2)
    index = at[0] + jnp.arange(sides[0])
    return jnp.take(rows, index, axis=0, mode="clip").astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=3)
def _extremes(
    mean: Array, at: Array, count: Int[Array, ""] | int, sides: tuple[int, int, int]
) -> tuple[Float32[Array, "c"], Float32[Array, "c"]]:
    """Largest and smallest value per class of the first `count` rows from `at` on."""
    slab = _slab(mean, at, sides)
    wanted = (jnp.arange(sides[0]) < count).reshape(-1, 1, 1, 1)
    return (
        jnp.where(wanted, slab, -jnp.inf).max((0, 1, 2)),
        jnp.where(wanted, slab, jnp.inf).min((0, 1, 2)),
    )


@functools.partial(jax.jit, static_argnums=2)
def _cut(mean: Array, at: Array, sides: tuple[int, int, int]) -> Float32[Array, "r y x c"]:
    return _slab(mean, at, sides)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _narrowed(
    mean: Array, at: Array, kept: Array, sides: tuple[int, int, int], decision: Decision
) -> Float32[Array, "r y x k"]:
    return decision.narrowed(_slab(mean, at, sides), kept)
