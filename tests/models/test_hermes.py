"""Hermes-R: exact counts (T18 of the specification), interpolation, tokens of unknown classes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.models import hermes
from medjax.models.context import initialise
from medjax.models.parts.context_priors import Exchange, heads_of
from tests.support.fast import FAST

TINY = {"base": 2, "blocks": (1, 1, 1, 1, 1), "modality_tokens": 2, "modalities": 2}


def _count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _shapes(net, sides=(32, 32, 32)):
    image = jax.ShapeDtypeStruct((1, *sides, 1), jnp.float32)
    return jax.eval_shape(functools.partial(initialise, net), jax.random.key(0), image)


@pytest.mark.slow
@pytest.mark.parametrize(("null_rows", "total"), [(2, 60_884_998), (1, 60_883_910)])
def test_t18_parameters(null_rows, total):
    net = hermes.make(71, modalities=5, null_rows=null_rows)
    tree = _shapes(net)
    assert _count(tree) == total
    if null_rows == 1:
        return
    assert {name: _count(part) for name, part in tree.items()} == {
        "stem": 56_160,
        "down1": 442_368,
        "down2": 1_769_472,
        "prior2": 809_600,
        "down3": 7_077_888,
        "prior3": 3_192_064,
        "down4": 12_718_080,
        "prior4": 9_903_680,
        "up1": 13_271_040,
        "prior5": 3_192_064,
        "up2": 3_981_312,
        "prior6": 809_600,
        "up3": 995_328,
        "up4": 248_832,
        "prototype": 1_223_968,
        "modality_head": 1_193_542,
    }
    assert len(jax.tree.leaves(tree)) == 405
    image = jax.ShapeDtypeStruct((2, 32, 32, 32, 1), jnp.float32)
    context = {n: jax.ShapeDtypeStruct((2,), jnp.int32) for n in ("corpus", "modality")}
    found = jax.eval_shape(net.apply, {"params": tree}, image, context)
    assert found["logits"].shape == (2, 32, 32, 32, 71) and found["modality"].shape == (2, 6)


def test_interpolation_keeps_corners_on_corners():
    np.testing.assert_allclose(
        hermes.corners(3, 5) @ np.array([0.0, 2.0, 6.0]), [0, 1, 2, 4, 6], atol=1e-6
    )
    assert hermes.corners(1, 4).tolist() == [[1.0]] * 4
    line = jnp.arange(12.0).reshape(1, 3, 4, 1)
    found = hermes.enlarged(line, (5, 7))
    np.testing.assert_allclose(found[0, ::2, ::2], line[0], atol=1e-5)
    np.testing.assert_allclose(found[0, 1, :, 0], 2 + np.arange(7) / 2, atol=1e-5)


@pytest.mark.slow
def test_classes_that_a_corpus_lacks_change_nothing_for_the_others():
    net = hermes.make(3, corpus_channels=((0, 2), (0, 1, 2)), **TINY)
    tree = _shapes(net, (16, 16, 16))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), tree
    )
    image = jnp.asarray(rng.normal(size=(1, 16, 16, 16, 1)), jnp.float32)

    @functools.partial(jax.jit, compiler_options=FAST)
    def run(params, corpus, modality):
        context = {"corpus": jnp.array([corpus]), "modality": jnp.array([modality])}
        return net.apply({"params": params}, image, context)

    other = jax.tree.map(lambda leaf: leaf, params)
    for k in hermes.PLACES:
        bank = params[f"prior{k}"]["task"].at[1].multiply(-1.5)
        other[f"prior{k}"] = params[f"prior{k}"] | {"task": bank}
    one, same = run(params, 0, 0)["logits"], run(other, 0, 0)["logits"]
    np.testing.assert_array_equal(one[..., ::2], same[..., ::2])
    assert float(jnp.abs(one[..., 1] - same[..., 1]).max()) > 1e-4
    whole = run(other, 1, 0)["logits"]
    assert float(jnp.abs(run(params, 1, 0)["logits"] - whole)[..., ::2].max()) > 1e-5
    unknown = run(params, 0, -1)["logits"]
    np.testing.assert_array_equal(unknown, run(params, 0, 2)["logits"])  # the row behind the last
    assert float(jnp.abs(unknown - one).max()) > 1e-5


def test_arguments_and_images_that_fit_nothing_are_refused():
    with pytest.raises(ModelError, match="priors need layers at five places"):
        hermes.make(2, blocks=(1, 1))
    with pytest.raises(ModelError, match=r"halved four times.*multiples of 16"):
        _shapes(hermes.make(2, **TINY), (16, 24, 16))
    assert heads_of(320) == 10 and heads_of(8) == 1 and Exchange(2).heads == 2
