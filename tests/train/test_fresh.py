"""Leaves drawn together have the values of leaves drawn one by one."""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import initializers

from medjax.labels import Corpus, merge
from medjax.registry import plain
from medjax.runs import build
from medjax.train import fresh
from tests.support.configs import typed


class Mixed(nn.Module):
    """Kernels of several distributions and sizes, some in a loop."""

    @nn.compact
    def __call__(self, x):
        kinds = (
            initializers.normal(0.02),
            initializers.lecun_normal(),
            initializers.xavier_uniform(),
            initializers.truncated_normal(0.02),
        )
        for kind in kinds:
            x = nn.Dense(5, kernel_init=kind)(x)
            x = nn.Dense(7, kernel_init=kind)(x)
        loop = nn.scan(
            lambda module, x, _: (module(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return loop(nn.Dense(7, name="inner"), x, None)[0]


def init(key):
    return Mixed().init(key, jnp.zeros((1, 6)))["params"]


def compiled(function, key):
    lowered = jax.jit(function).lower(key)
    return lowered.compile({"xla_backend_optimization_level": 0})(key)


def draws(function):
    return str(jax.make_jaxpr(function)(jax.random.key(0))).count("random_bits")


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_the_same_bits_in_fewer_draws():
    key = jax.random.key(3)
    same(compiled(init, key), compiled(fresh.together(init), key))
    assert draws(fresh.together(init)) <= 3 < draws(init)  # 16 and 64 numbers, and the loop's


def test_other_generators_are_left_alone():
    made = jax.jit(fresh.together(lambda key: jax.random.normal(key, (3,))))
    key = jax.random.key(1, impl="rbg")
    np.testing.assert_array_equal(made(key), jax.random.normal(key, (3,)))
    with jax.threefry_partitionable(False):
        key = jax.random.key(1)
        expected = jax.random.normal(key, (5,))
        found = jax.jit(fresh.together(lambda key: jax.random.normal(key, (5,))))(key)
    np.testing.assert_array_equal(found, expected)


def test_longer_draws_begin_with_the_shorter_ones():
    assert [fresh._length(n) for n in (1, 2, 4, 5, 16, 17)] == [1, 4, 4, 16, 16, 64]
    assert fresh._length(fresh.LARGE + 3) == fresh.LARGE + 3
    key = jax.random.key(9)
    for kind in (jnp.uint32, jnp.uint16, jnp.uint8):
        long = jax.random.bits(key, (64,), kind)
        np.testing.assert_array_equal(jax.random.bits(key, (5, 7), kind).ravel(), long[:35])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multitalent:unet", "multitalent:swin", "tsfm:t"])
def test_networks_begin_with_the_same_values(name):
    paper, _, variant = name.partition(":")
    module = importlib.import_module(f"configs.{paper}")
    corpus = Corpus("A", ((1, ("a",)), (2, ("b",))), modality="CT", channels=("CT",))
    net = build.make_network(
        typed(plain(module.get_config(variant))), merge([corpus]), (1.0, 1.0, 1.0)
    )
    key = jax.random.key(12345)
    same(compiled(net.init, key), compiled(fresh.together(net.init), key))
