"""The batch: what is stated is what the stream yields, on the host and as a rehearsal sees it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.sample import batch
from medjax.sample.stream import Pool, Recipe, Samples, stream
from tests.sample.test_stream import write


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    write(root / "A" / "case_0", 0, channels=2)
    return Pool(0, str(root / "A"), ("case_0",), (1, 2), 0)


@pytest.mark.parametrize("patch", [(6, 8, 6), (5, 7)])
@pytest.mark.parametrize("whole", [0.0, 0.5])
def test_the_stream_yields_what_is_stated(pool, patch, whole):
    if whole and len(patch) == 2:
        patch = (4, 4, 4)
    recipe = Recipe(patch, 3, channels=3, dims=len(patch), whole=whole)
    [found] = itertools.islice(stream([pool], recipe, threads=0), 1)
    stated = batch.abstract(3, patch, 3, whole=bool(whole))
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
        k: (v.shape, v.dtype) for k, v in stated.items()
    }
    assert list(Samples([pool], recipe)(0)) == list(stated)
    assert ("whole" in stated) == bool(whole)
    shapes = {k: jax.ShapeDtypeStruct(*v) for k, v in stated.items()}
    seen = jax.eval_shape(batch.dequantise, shapes)
    assert seen.shape == (3, *patch, 3) and seen.dtype == jnp.float32


def test_dequantisation_is_the_same_for_numpy_jax_and_one_sample(pool):
    [found] = itertools.islice(stream([pool], Recipe((6, 6, 6), 2)), 1)
    by_hand = found["image"] * found["gain"][:, None, None, None].astype(float)
    by_hand = by_hand + found["bias"][:, None, None, None]
    host = batch.dequantise(found)
    device = jax.jit(batch.dequantise)({k: jnp.asarray(v) for k, v in found.items()})
    assert host.dtype == np.float32
    np.testing.assert_allclose(host, by_hand, rtol=1e-6)
    np.testing.assert_allclose(device, by_hand, rtol=1e-6)
    one = batch.dequantise({k: v[1] for k, v in found.items()})
    np.testing.assert_array_equal(one, host[1])
    nothing = {name: 0 * found[name] for name in ("gain", "bias")}
    assert not batch.dequantise(found | nothing).any()


def test_facts_are_what_is_neither_image_nor_target(pool):
    [found] = itertools.islice(stream([pool], Recipe((4, 4, 4), 2, whole=1.0)), 1)
    more = batch.facts(found | {"prompts": 1})
    assert set(more) == {"corpus", "modality", "spacing_mm", "whole", "prompts"}
