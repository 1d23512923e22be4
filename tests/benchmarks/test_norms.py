"""Statistics of norms in one and in two passes are those of numpy, as far as their sums allow."""

import jax
import numpy as np
import pytest

from benchmarks import norms

X = np.random.default_rng(0).standard_normal((2, 4, 5, 6, 3)).astype(np.float32) + 3


@pytest.mark.parametrize("name", norms.WAYS)
def test_ways_give_mean_and_biased_variance(name):
    mean, variance = jax.jit(norms.WAYS[name])(X)
    assert mean.shape == variance.shape == (2, 3)
    np.testing.assert_allclose(mean, X.mean((1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(variance, X.var((1, 2, 3)), rtol=1e-5)


def test_without_a_shift_a_large_mean_costs_the_digits():
    found = norms.errors((1, 8, 8, 8, 2))
    assert set(found) == set(norms.WAYS)
    for name, (_, _, _, far) in found.items():
        assert (far > 1e-3) == (name in ("one pass", "two reductions")), name


def test_every_way_is_timed_beside_two_passes():
    found = norms.timed((1, 4, 4, 4, 2), "bfloat16", 2)
    assert set(found["cpu_s"]) == {*norms.WAYS, "step"}
    assert found["over two passes"]["two passes"] == 1.0
