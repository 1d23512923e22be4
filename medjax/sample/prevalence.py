"""How often every label id occurs in the patches that a stream draws.

In: pools and the recipe of a stream. Out: counts of voxels per corpus, from the first samples of
that corpus in the stream, as the network sees them without augmentation: the central `final` voxels
of the patch that is cut. Rotation and scaling around that centre change shares little, so nothing
is augmented here.
"""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from medjax.sample.draw import VERSIONS, Pool, Recipe, corpus_probabilities
from medjax.sample.patches import PADDING
from medjax.sample.stream import choices

SAMPLES = 128  # of every corpus
SCANNED = 100_000  # samples of the stream in which they are looked for


@dataclasses.dataclass(frozen=True)
class Count:
    """Voxels of the samples of one corpus.

    Attributes:
      corpus: index in the label space.
      probability: that a sample of the stream is of this corpus.
      samples: number of patches that were counted.
      voxels: (ids,) int64, per dense id.
      padding: voxels outside the image.
    """

    corpus: int
    probability: float
    samples: int
    voxels: np.ndarray
    padding: int


def count(
    pools: Sequence[Pool],
    recipe: Recipe,
    ids: int,
    *,
    samples: int = SAMPLES,
    scanned: int = SCANNED,
    threads: int = 0,
) -> tuple[Count, ...]:
    """The counts of every pool, in their order; a pure function of the arguments but `threads`.

    Args:
      pools, recipe: of the stream.
      ids: number of dense ids to count, see `LabelSpace.table`.
      samples: number of patches of every corpus: the first ones in the stream.
      scanned: a corpus that is drawn less often than `samples` times in so many samples of the
        stream is counted with fewer patches.
      threads: that read patches; 0: the caller's.

    Raises: `DataError` naming the case for a case that cannot be read.
    """
    draw = VERSIONS[recipe.version](pools, recipe)
    chosen = _first(pools, recipe, samples, scanned)

    def one(sample: tuple[int, tuple]) -> np.ndarray:
        label = _centre(draw(*sample)["label"], recipe.final)
        return np.bincount((label.ravel() - PADDING).astype(np.int64), minlength=ids + 1)[: ids + 1]

    found = []
    shares = corpus_probabilities(
        [len(pool.cases) for pool in pools], recipe.exponent, [pool.group for pool in pools]
    )
    with ThreadPoolExecutor(max(threads, 1)) as readers:
        for pool, share, numbers in zip(pools, shares, chosen, strict=True):
            total = sum(readers.map(one, numbers), np.zeros(ids + 1, np.int64))
            found.append(Count(pool.corpus, float(share), len(numbers), total[1:], int(total[0])))
    return tuple(found)


def _first(
    pools: Sequence[Pool], recipe: Recipe, samples: int, scanned: int
) -> list[list[tuple[int, tuple]]]:
    """Per pool (number, choice) of its first samples in the stream."""
    draw, mixture = VERSIONS[recipe.version](pools, recipe, 0), choices(pools, recipe)
    found: list[list[tuple[int, tuple]]] = [[] for _ in pools]
    missing = len(pools)
    for index in range(scanned):
        choice = mixture[index]
        own = found[draw.pool_of(index, choice)]
        if len(own) < samples:
            own.append((index, choice))
            missing -= len(own) == samples
        if not missing:
            break
    return found


def _centre(label: np.ndarray, final: Sequence[int]) -> np.ndarray:
    """As `augment.spatial.centre_crop`, which training applies."""
    return label[
        tuple(
            slice(n // 2 - f // 2, n // 2 - f // 2 + f)
            for n, f in zip(label.shape, final, strict=True)
        )
    ]
