"""What the backward pass keeps: by the words of a config, in the numbers that are stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.models.parts import remat

X = jnp.linspace(0.1, 0.9, 6).reshape(2, 3)


def block(x):
    x = remat.mark(jnp.sin(x), remat.CONV)
    x = remat.mark(jnp.cos(x), remat.UNIT)
    return jnp.exp(x).sum()


KEPT = {"convs": np.sin, "units": lambda x: np.cos(np.sin(x)), "block": None}


@pytest.mark.parametrize("word", KEPT)
def test_a_block_keeps_its_input_and_what_is_marked(word):
    run = jax.checkpoint(block, policy=remat.policy(word))
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(jax.vjp(run, X)[1])]
    others = [a for a in arrays if a.shape == X.shape and not np.array_equal(a, X)]
    expected = [] if KEPT[word] is None else [KEPT[word](np.asarray(X))]
    assert len(others) == len(expected) and len(arrays) > len(others)
    assert all(map(np.allclose, others, expected))


@pytest.mark.parametrize("word", [w for w in remat.REMAT if w != "none"])
def test_the_gradient_is_the_same(word):
    found = jax.grad(jax.checkpoint(block, policy=remat.policy(word)))(X)
    x = np.asarray(X, np.float64)
    expected = -np.exp(np.cos(np.sin(x))) * np.sin(np.sin(x)) * np.cos(x)
    assert np.allclose(found, expected, rtol=1e-5)


def test_marking_changes_no_value():
    assert np.array_equal(remat.mark(X, remat.UNIT), X)
    assert remat.REMAT == ("none", "convs", "units", "block")
    with pytest.raises(KeyError):
        remat.policy("none")
