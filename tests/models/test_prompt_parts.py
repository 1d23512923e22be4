"""Parts of promptable networks: positions, tokens of prompts, the two-way transformer, priors; and
CLIP's text tower. T numbers are those of the specification.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.models.clip_text import ClipText
from medjax.models.parts import prompt_encoder
from medjax.models.parts.priors import Priors
from medjax.models.parts.prompt_encoder import PromptEncoder, fourier, of_cells, of_voxels
from medjax.models.parts.vit import Layer
from tests.support.fast import FAST

FRAME, GRID = (32, 256, 256), (8, 16, 16)
SETS = ("points+text", "box+text", "text", "box", "points", "box+points")


def _init(module, *given):
    return jax.jit(module.init, compiler_options=FAST)(jax.random.key(0), *given)


def _count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("seed", [0, 1])
def test_t5_positions_of_points_and_cells(seed):
    matrix = jnp.asarray(np.random.default_rng(seed).normal(size=(3, 384)), jnp.float32)
    z, y, x = np.meshgrid(*(np.arange(n) for n in GRID), indexing="ij")
    centres = (np.stack([z, y, x], -1) + 0.5) * np.array([4, 16, 16]) - 0.5
    centres = jnp.asarray(centres, jnp.float32)
    cells = fourier(of_cells(GRID), matrix).reshape(2048, -1)
    np.testing.assert_allclose(jnp.linalg.norm(cells, axis=1), 384**0.5, rtol=1e-4)
    for order, cosine, right in (("consistent", 1.0, 1.0), ("release", 0.0, 0.0)):
        points = fourier(of_voxels(centres, FRAME, order), matrix).reshape(2048, -1)
        found = np.asarray(points @ cells.T) / 384
        assert np.diag(found).mean() == pytest.approx(cosine, abs=1e-4 if cosine else 0.05)
        assert (found.argmax(1) == np.arange(2048)).mean() == pytest.approx(
            right, abs=0 if right else 0.05
        )
    published = of_voxels(centres, FRAME, "release")  # measured range at the centres
    low, high = published.min((0, 1, 2)), published.max((0, 1, 2))
    np.testing.assert_allclose(low[:2], [0.0078, 0.25], atol=1e-4)
    np.testing.assert_allclose(high[:2], [0.1172, 7.75], atol=1e-4)


def _prompt(kind, sets=SETS, frame=(8, 16, 16), width=24):
    """(module, its variables, arguments) of a query for every set."""
    rng, q = np.random.default_rng(0), len(sets)
    given = (
        rng.uniform(0, 8, (1, q, 21, 3)).astype(np.float32),
        np.broadcast_to(np.asarray(kind, np.int32), (1, q, 21)),
        rng.uniform(0, 8, (1, q, 6)).astype(np.float32),
        np.array([[["points" in s, "box" in s, "text" in s] for s in sets]]),
        rng.normal(size=(1, q, width)).astype(np.float32),
        np.array([["text" in s for s in sets]]),
    )
    module = PromptEncoder(width, frame, (4, 4, 4))
    arguments = tuple(jnp.asarray(value) for value in given)
    variables = _init(module, *arguments)
    return module, variables, arguments


@pytest.mark.slow
def test_t4_numbers_of_tokens():
    module, variables, given = _prompt([1] * 3 + [0] * 2 + [-1] * 16)
    tokens, exists = module.apply(variables, *given)
    assert tokens.shape == (1, 6, 25, 24) and exists.dtype == bool
    # 21 points and a pad, two corners, a text
    assert exists.sum(-1).tolist() == [[23, 3, 1, 2, 22, 23]]
    few = (given[0], given[1].at[..., 5:].set(-2), *given[2:])
    assert module.apply(variables, *few)[1].sum(-1).tolist() == [[7, 3, 1, 2, 6, 7]]


def test_tokens_are_positions_and_learned_vectors():
    module, variables, given = _prompt([1, 0, -1] + [-2] * 18)
    tokens, _ = module.apply(variables, *given)
    own, first = variables["params"], tokens[0, 0]
    place = fourier(of_voxels(given[0][0, 0], (8, 16, 16), "consistent"), own["gaussian"])
    np.testing.assert_allclose(first[0], place[0] + own["points"][1], atol=1e-5)  # positive
    np.testing.assert_allclose(first[1], place[1] + own["points"][0], atol=1e-5)
    np.testing.assert_array_equal(first[2], own["not_a_point"])
    np.testing.assert_array_equal(first[21], own["not_a_point"])
    corner = fourier(of_voxels(given[2][0, 0, 3:], (8, 16, 16), "consistent"), own["gaussian"])
    np.testing.assert_allclose(first[23], corner + own["points"][3], atol=1e-5)
    np.testing.assert_array_equal(first[24], given[4][0, 0])
    assert (prompt_encoder.POSITIVE, prompt_encoder.ABSENT) == (1, -2)


def test_t16_the_released_prior_doubles_the_image():
    """Without gates, a map of unit scale is added to one of unit scale."""
    module = Priors(3, 2, unknown=False, gate=False)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(1, 2, 4, 4, 96)), jnp.float32)
    task, modality = jnp.array([[0, 2]]), jnp.array([1])
    variables = _init(module, image, task, modality)
    changed, added, prototype = jax.jit(module.apply, compiler_options=FAST)(
        variables, image, task, modality
    )
    assert changed.shape == (1, 2, 2, 4, 4, 96) and added.shape == (1, 2, 4, 96)
    assert prototype is None
    difference = np.asarray(changed[:, 0] - image).ravel()
    plain, whole = np.asarray(image).ravel(), np.asarray(changed[:, 0]).ravel()
    assert np.linalg.norm(difference) / np.linalg.norm(plain) == pytest.approx(1.0, abs=0.05)
    cosine = plain @ whole / np.linalg.norm(plain) / np.linalg.norm(whole)
    assert cosine == pytest.approx(0.993, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "posterior", "leaves"),
    [
        ("additive_token", "learned", {"posterior1", "posterior2", "scale"}),
        ("additive_token", "off", set()),
        ("inner_product", "additive", {"prototype1", "prototype2"}),
        ("inner_product", "replace", {"prototype1", "prototype2"}),
    ],
)
def test_forms_of_the_posterior(kind, posterior, leaves):
    module = Priors(3, 2, kind=kind, posterior=posterior)
    image = jnp.ones((2, 1, 2, 2, 16))
    given = (image, jnp.array([[0], [1]]), jnp.array([0, 1]))
    variables = _init(module, *given)
    own = {"posterior1", "posterior2", "scale", "prototype1", "prototype2"}
    assert set(variables["params"]) & own == leaves
    _, added, prototype = module.apply(variables, *given)
    assert (added is not None) == (posterior == "learned")
    assert (prototype is not None) == (kind == "inner_product")
    if posterior == "additive":  # behind a closed gate
        assert not np.any(np.asarray(prototype))
    if posterior == "replace":
        assert prototype.shape == (2, 1, 2) and np.any(np.asarray(prototype))


@pytest.mark.slow
def test_unknown_tasks_are_learned_by_hiding_known_ones():
    module = Priors(2, 2, unknown_drop=0.5)
    image, task = jnp.zeros((8, 1, 1, 1, 8)).at[..., 0].set(1), jnp.zeros((8, 64), jnp.int32)
    given = (image, task, jnp.zeros(8, jnp.int32))
    variables = _init(module, *given)
    params = variables["params"] | {
        "task": jnp.ones((2, 8)),
        "unknown": jnp.arange(16.0).reshape(2, 8),
        "gate": jnp.ones(2),
    }
    made = functools.partial(module.apply, {"params": params})
    plain = made(*given)[0].reshape(512, -1)
    assert np.ptp(plain, axis=0).max() < 1e-5
    hidden = made(*given, True, rngs={"dropout": jax.random.key(1)})[0].reshape(512, -1)
    moved = np.abs(hidden - plain[:1]).max(-1) > 1e-6
    assert 0.35 < moved.mean() < 0.8  # half of the tasks, and half of the modalities
    with pytest.raises(ModelError, match="heads do not divide the width"):
        jax.eval_shape(Priors(2, 2, heads=3).init, jax.random.key(0), *given)


def test_parameters_of_the_text_tower():
    tower = ClipText()
    tokens = jax.ShapeDtypeStruct((3, 77), jnp.int32)
    out, variables = jax.eval_shape(tower.init_with_output, jax.random.key(0), tokens)
    assert out["pooled"].shape == out["projected"].shape == (3, 512)
    params = variables["params"]
    assert _count(params) - _count(params["projection"]) == 63_165_952
    assert _count(params["projection"]) == 262_144
    without = jax.eval_shape(ClipText(projection=0).init, jax.random.key(0), tokens)["params"]
    assert "projection" not in without


@pytest.mark.slow
def test_a_text_depends_on_its_own_tokens_only():
    """Causal attention: what stands behind the first end token changes nothing."""
    tower = ClipText(50, 8, 16, 2, 2, 32, 4)
    tokens = jnp.array([[48, 3, 9, 49, 49, 49, 49, 49], [48, 3, 9, 49, 1, 2, 5, 7]])
    variables = _init(tower, tokens)
    found = jax.jit(tower.apply, compiler_options=FAST)(variables, tokens)
    np.testing.assert_allclose(found["pooled"][0], found["pooled"][1], atol=1e-6)
    other = jax.jit(tower.apply)(variables, tokens.at[:, 2].set(4))
    assert float(jnp.abs(other["pooled"] - found["pooled"]).max()) > 1e-4


@pytest.mark.slow
def test_a_fused_layer_is_one_of_three_maps():
    """Joined columns of q, k, v, without biases, give the same numbers."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 12)), jnp.float32)
    split = Layer(3, 24, 0.0, qkv_bias=False, epsilon=1e-5)
    params = _init(split, x)["params"]
    assert set(params["q"]) == {"kernel"}
    joined = {k: v for k, v in params.items() if k not in "qkv"}
    joined["qkv"] = {"kernel": jnp.concatenate([params[n]["kernel"] for n in "qkv"], -1)}
    fused = Layer(3, 24, 0.0, fused=True, qkv_bias=False, epsilon=1e-5)
    one, other = split.apply({"params": params}, x), fused.apply({"params": joined}, x)
    np.testing.assert_allclose(one, other, atol=1e-6)
    quick = Layer(3, 24, 0.0, qkv_bias=False, epsilon=1e-5, activation="quick_gelu")
    assert 1e-4 < float(jnp.abs(quick.apply({"params": params}, x) - one).max()) < 0.1
