"""The training stream, with random access from (seed, sample number).

In: pools of prepared cases (`prepare/store.py`) and a recipe. Out: numpy batches as
`sample/batch.py` describes them.

Every sample is a function of (recipe, pools, sample number), so the position in the stream *is* the
training step: resuming means slicing, and the number of threads, worker processes and hosts does
not matter. A changed recipe or changed pools give another stream: keep both with the run.
"""

import functools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from medjax.errors import UsageError
from medjax.sample.draw import (
    CACHE_BYTES,
    VERSIONS,
    Moves,
    Pool,
    Recipe,
    Samples,
    case_probabilities,
    corpus_probabilities,
    forced_positions,
)
from medjax.sample.patches import enlarged_patch

__all__ = [
    "Pool",
    "Recipe",
    "Samples",
    "case_probabilities",
    "corpus_probabilities",
    "dataset",
    "enlarged_patch",
    "forced_positions",
    "stream",
]


class _Epochs:
    """The cases of one pool as an endless grain source, shuffled in every epoch.

    grain's own shuffle takes milliseconds per element for small corpora.
    """

    def __init__(self, pool: int, cases: int, seed: int):
        self.pool, self.cases, self.seed = pool, cases, seed

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        epoch, position = divmod(int(index), self.cases)
        return self.pool, int(_order(self.seed, self.pool, epoch, self.cases)[position])


@functools.lru_cache(maxsize=256)
def _order(seed: int, pool: int, epoch: int, cases: int) -> np.ndarray:
    return np.random.default_rng((seed, pool, epoch)).permutation(cases)


class _Cases:
    """The cases of one pool as an endless grain source, drawn with replacement."""

    def __init__(self, pool: int, cases: int, seed: int):
        self.pool, self.cases, self.seed = pool, cases, seed

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        rng = np.random.default_rng((self.seed, self.pool, int(index), 2))
        return self.pool, int(rng.integers(self.cases))


class _ShuffledBatches:
    """A mixture whose elements are permuted within every batch.

    The mixture's pattern repeats: without this, a corpus could always fall on the places of a batch
    that are forced to hold foreground, and another one never.
    """

    def __init__(self, mixture: Any, batch: int, seed: int):
        self.mixture, self.batch, self.seed = mixture, batch, seed

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        number, place = divmod(int(index), self.batch)
        order = _order(self.seed, -1 % (1 << 32), number, self.batch)
        return self.mixture[number * self.batch + int(order[place])]


class _Endless:
    """A grain source without a choice: the sample's number determines an i.i.d. sample.

    (None would be an omitted element.)
    """

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[()]:
        return ()


def dataset(
    pools: Sequence[Pool],
    recipe: Recipe,
    *,
    host: int = 0,
    hosts: int = 1,
    cache_bytes: int = CACHE_BYTES,
    moves: Moves | None = None,
):
    """The stream as a random-access `grain.MapDataset`.

    Element k is this host's share of global batch k. Host h takes samples h, h + hosts, ... of the
    one global stream, batch // hosts of them per batch.
    """
    _check(pools, recipe, host, hosts)
    samples = VERSIONS[recipe.version](pools, recipe, cache_bytes, moves)
    return (
        choices(pools, recipe)
        .map_with_index(samples)[host::hosts]
        .batch(recipe.batch // hosts, drop_remainder=True)
    )


def choices(pools: Sequence[Pool], recipe: Recipe):
    """Number of a sample -> what the mixture draws for it, as an endless `grain.MapDataset`.

    (pool, case), or () where the samples draw for themselves: with the draw "iid" in version 1, and
    where cases are weighed by their slices.
    """
    import grain

    mixed = recipe.version > 1 and recipe.weigh == "cases"
    if recipe.draw == "iid" and not mixed:
        return grain.MapDataset.source(_Endless())
    source = _Cases if recipe.draw == "iid" else _Epochs
    parts = [
        grain.MapDataset.source(source(k, len(pool.cases), recipe.seed))
        for k, pool in enumerate(pools)
    ]
    shares = corpus_probabilities(
        [len(pool.cases) for pool in pools], recipe.exponent, [pool.group for pool in pools]
    )
    mixture = grain.MapDataset.mix(parts, shares.tolist())
    if not mixed:
        return mixture
    return grain.MapDataset.source(_ShuffledBatches(mixture, recipe.batch, recipe.seed))


def stream(
    pools: Sequence[Pool],
    recipe: Recipe,
    *,
    start: int = 0,
    threads: int = 2,
    workers: int = 0,
    host: int = 0,
    hosts: int = 1,
    cache_bytes: int = CACHE_BYTES,
    moves: Moves | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless iterator over this host's batches, from global batch `start` on.

    Args:
      pools, recipe: what is drawn and how; see `Recipe`.
      start: training step to continue from.
      threads: batches read ahead at once in this process (each worker has as many); 0 reads in the
        caller's thread.
      workers: extra processes; only useful if profiling shows that the threads are too slow.
        Scripts then need a `__main__` guard.
      host, hosts: which share of each batch.
      cache_bytes: memory for small cases, over all workers.
      moves: draws rotation and scaling of every sample, see `Samples`; picklable if there are
        workers.

    Raises: `UsageError` at once for impossible arguments; `DataError` naming the case, when it is
      drawn, for a case that cannot be read.
    """
    import grain

    if start < 0 or threads < 0 or workers < 0:
        raise UsageError(
            "start, threads and workers cannot be negative", found=(start, threads, workers)
        )
    batches = dataset(
        pools,
        recipe,
        host=host,
        hosts=hosts,
        cache_bytes=cache_bytes // max(1, workers),
        moves=moves,
    )[start:]
    batches = batches.to_iter_dataset(
        grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=max(2, threads) if threads else 0
        )
    )
    if workers:
        from absl import flags

        if (
            not flags.FLAGS.is_parsed()
        ):  # grain's workers read absl flags, which plain scripts do not parse
            flags.FLAGS.mark_as_parsed()
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1),
            _start_worker,
        )
    return _iterate(batches)


def _start_worker(worker: int, workers: int):
    """Keeps accelerators out of the worker processes."""
    os.environ["JAX_PLATFORMS"] = "cpu"


def _iterate(batches: Any) -> Iterator[dict[str, np.ndarray]]:
    iterator = iter(batches)
    try:
        yield from iterator
    finally:
        iterator.close()


def _check(pools: Sequence[Pool], recipe: Recipe, host: int, hosts: int):
    if not pools:
        raise UsageError("there is nothing to draw from: no pools")
    for pool in pools:
        if not pool.cases:
            raise UsageError(
                "a pool without cases",
                path=pool.folder,
                fix="check the split: every corpus needs at least one training case",
            )
    if not 0 <= host < hosts:
        raise UsageError("no such host", found=host, expected=f"0 to {hosts - 1}")
    if recipe.batch % hosts:
        raise UsageError(
            "the global batch must divide among the hosts",
            found=recipe.batch,
            expected=f"a multiple of {hosts}",
        )
