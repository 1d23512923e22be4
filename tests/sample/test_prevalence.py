"""Counts of label ids in the patches of a stream: equal to counting the stream's own batches."""

import itertools

import numpy as np
import pytest

from medjax.errors import DataError
from medjax.prepare import store
from medjax.sample import prevalence
from medjax.sample.stream import Pool, Recipe, stream
from tests.sample.test_stream import write

IDS = 5


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """Two corpora, 4 cases and 1 case, as in `tests.sample.test_stream`."""
    root = tmp_path_factory.mktemp("store")
    for n in range(4):
        write(root / "many" / f"case_{n}", n)
    write(root / "one" / "case_9", 9, ids=(1, 3))
    many = Pool(3, str(root / "many"), tuple(store.list_cases(root, "many")), (1, 2), 0)
    return many, Pool(1, str(root / "one"), ("case_9",), (1, 3), 1)


def brute_force(pools, recipe, samples, batches):
    """Per corpus (number of patches, voxels of -1, 0, ..., IDS - 1), from whole batches."""
    found = {pool.corpus: (0, np.zeros(IDS + 1, int)) for pool in pools}
    for batch in itertools.islice(stream(pools, recipe, threads=0), batches):
        for label, corpus in zip(batch["label"], batch["corpus"], strict=True):
            number, voxels = found[int(corpus)]
            if number == samples:
                continue
            start = [n // 2 - f // 2 for n, f in zip(label.shape, recipe.final, strict=True)]
            inner = label[tuple(slice(s, s + f) for s, f in zip(start, recipe.final, strict=True))]
            own = [int((inner == i).sum()) for i in range(-1, IDS)]
            found[int(corpus)] = number + 1, voxels + own
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {"patch": (6, 6, 6)},
        {"patch": (9, 8, 7), "final": (6, 6, 4)},
        {"patch": (6, 6, 6), "draw": "mix", "exponent": 1.0, "foreground": 0.5},
        {"patch": (6, 6, 6), "oversample": "probabilistic", "balance": "class", "by": "class"},
        {"patch": (7, 6), "final": (5, 6), "dims": 2, "foreground": 1.0},
        {"patch": (8, 8, 8), "final": (6, 6, 6), "whole": 0.5},
        {"patch": (16, 6, 6)},  # higher than the images
    ],
    ids=lambda fields: "-".join(map(str, fields)),
)
def test_counts_are_those_of_the_streams_own_batches(pools, fields):
    recipe = Recipe(batch=4, seed=3, **fields)
    expected = brute_force(pools, recipe, 9, 30)
    found = prevalence.count(pools, recipe, IDS, samples=9)
    assert [count.corpus for count in found] == [3, 1]
    for count in found:
        number, voxels = expected[count.corpus]
        assert count.samples == number == 9
        assert count.padding == voxels[0]
        np.testing.assert_array_equal(count.voxels, voxels[1:])
        assert count.voxels.sum() + count.padding == 9 * np.prod(recipe.final)
        assert count.padding >= 9 * 4 * 36 * (recipe.patch[0] == 16)


def test_threads_change_nothing_and_other_seeds_something(pools):
    def counted(seed, threads):
        found = prevalence.count(
            pools, Recipe((6, 6, 6), 4, seed=seed), IDS, samples=12, threads=threads
        )
        return np.concatenate([count.voxels for count in found])

    np.testing.assert_array_equal(counted(1, 0), counted(1, 4))
    assert (counted(1, 0) != counted(2, 0)).any()


def test_forced_foreground_raises_the_shares(pools):
    none, every = (
        prevalence.count(pools, Recipe((6, 6, 6), 4, foreground=share), IDS)[0]
        for share in (0.0, 1.0)
    )
    assert every.voxels[1:3].sum() > 1.5 * none.voxels[1:3].sum() > 0


def test_a_rare_corpus_is_counted_with_what_the_stream_holds_of_it(pools):
    recipe = Recipe((6, 6, 6), 4, seed=3, exponent=0.0)  # 4 of 5 samples are of the first corpus
    many, one = prevalence.count(pools, recipe, IDS, samples=40, scanned=50)
    assert many.samples >= 30 and 5 <= one.samples <= 50 - many.samples < 20
    assert (many.probability, one.probability) == pytest.approx((0.8, 0.2))
    nothing = prevalence.count(pools, recipe, IDS, samples=3, scanned=0)
    assert [(c.samples, int(c.voxels.sum())) for c in nothing] == [(0, 0), (0, 0)]


def test_a_case_that_cannot_be_read_is_named(pools, tmp_path):
    broken = Pool(0, str(tmp_path), ("gone",), (1,), 0)
    with pytest.raises(DataError, match="gone"):
        prevalence.count((broken,), Recipe((6, 6, 6), 4), IDS, samples=2, threads=2)
