"""Windows, shift masks, relative positions, merging and expanding against brute force; attention
against its formula; the sockets.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.errors import ModelError
from medjax.models.parts import attention, patch, window
from tests.support.fast import FAST

KEY = jax.random.key(0)


def _random(*shape):
    return jnp.asarray(np.random.default_rng(7).normal(size=shape), jnp.float32)


def _count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _params(module, *inputs, seed=0):
    """Random parameters of a module, made with numpy (cheaper than compiling its initialisers)."""
    shapes = jax.eval_shape(module.init, KEY, *inputs)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes
    )


def _apply(module, params, *inputs, **kw):
    return np.asarray(
        jax.jit(lambda p, *a: module.apply({"params": p}, *a, **kw), compiler_options=FAST)(
            params, *inputs
        ),
        np.float32,
    )


def _paths(params) -> set[str]:
    return {
        "/".join(k.key for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)
    }


# ---- windows


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3))
def test_reverse_undoes_partition(axes):
    grid, size = [n * w for n, w in axes], [w for _, w in axes]
    x = np.arange(2 * np.prod(grid) * 3).reshape(2, *grid, 3)
    windows = window.partition(x, size)
    assert windows.shape == (2, np.prod(grid) // np.prod(size), np.prod(size), 3)
    np.testing.assert_array_equal(window.reverse(windows, size, grid), x)


def test_windows_and_their_tokens_run_with_the_first_axis_slowest():
    x = np.arange(4 * 6).reshape(1, 4, 6, 1)
    windows = window.partition(x, (2, 3))[0, :, :, 0]
    np.testing.assert_array_equal(windows[0], [0, 1, 2, 6, 7, 8])
    np.testing.assert_array_equal(windows[:, 0], [0, 3, 12, 15])
    with pytest.raises(ModelError, match="whole windows"):
        window.partition(x, (3, 3))


def test_padding_and_rolling():
    x = jnp.arange(1.0, 6).reshape(1, 5, 1)
    padded = window.pad_to_windows(x, (4,))
    np.testing.assert_array_equal(padded[0, :, 0], [1, 2, 3, 4, 5, 0, 0, 0])
    np.testing.assert_array_equal(window.roll(padded, (2,))[0, :, 0], [3, 4, 5, 0, 0, 0, 1, 2])
    np.testing.assert_array_equal(window.roll(window.roll(padded, (2,)), (-2,)), padded)


def test_small_axes_shrink_the_window_and_lose_the_shift():
    assert window.fit((48, 7, 6), (7, 7, 7), (3, 3, 3)) == ((7, 7, 6), (3, 0, 0))
    assert window.fit((7, 2), (7, 7), (3, 3), keep_shift=True) == ((7, 2), (3, 1))
    assert window.fit((7, 14), (7, 7), (0, 0), keep_shift=True) == ((7, 7), (0, 0))


# ---- shift mask


def _neighbours(padded, size, shift):
    """(w, n, n) bool by walking over the tokens: equal image side of every wrap-around, found from
    the coordinates before rolling.
    """
    origin = np.stack(np.meshgrid(*(np.arange(p) for p in padded), indexing="ij"), -1)[None]
    rolled = np.roll(origin, [-s for s in shift], tuple(range(1, len(padded) + 1)))
    tokens = window.partition(rolled, size)[0]
    # Tokens of one rolled window lie within one window's length of each other in the image unless
    # the roll joined the two ends of an axis.
    near = np.abs(tokens[:, :, None] - tokens[:, None]) < np.array(size)
    return near.all(-1)


@pytest.mark.parametrize(
    "padded, size, shift",
    [
        ((8, 8), (4, 4), (2, 2)),
        ((14, 21), (7, 7), (3, 3)),
        ((6, 6, 9), (3, 3, 3), (1, 1, 1)),
        ((4, 8, 8), (4, 4, 4), (0, 2, 2)),
        ((12,), (4,), (1,)),
    ],
)
def test_the_mask_blocks_exactly_the_pairs_that_the_shift_joined(padded, size, shift):
    mask = np.asarray(window.shift_mask(window.regions(padded, size, shift)))
    np.testing.assert_array_equal(mask, np.where(_neighbours(padded, size, shift), 0.0, -100.0))


@pytest.mark.parametrize(
    "side, windows, blocked, touched", [(56, 64, 18240, 15), (28, 16, 8832, 7), (14, 4, 4128, 3)]
)
def test_mask_counts_of_swin_t(side, windows, blocked, touched):
    mask = np.asarray(window.shift_mask(window.regions((side, side), (7, 7), (3, 3))))
    assert mask.shape == (windows, 49, 49)
    assert int((mask == -100).sum()) == blocked and int((mask[-1] == -100).sum()) == 1776
    assert int((mask != 0).any((1, 2)).sum()) == touched


def test_mask_regions_of_swin_unetr_follow_the_slabs():
    number = window.regions((49, 49, 49), (7, 7, 7), (3, 3, 3))
    assert number.shape == (343, 343) and len(np.unique(number)) == 27
    assert [len(np.unique(number[w])) for w in (0, 6, 48, 342)] == [1, 2, 4, 8]


# ---- relative positions


def test_relative_index_numbers():
    index = window.relative_index((7, 7))
    np.testing.assert_array_equal(index[0, :4], [84, 83, 82, 81])
    assert (
        index[0, 7],
        index[48, 0],
        index[0, 48],
        index.min(),
        index.max(),
        int(index.sum()),
    ) == (71, 168, 0, 0, 168, 201684)
    assert (np.diag(index) == 84).all()


def test_relative_index_in_three_axes_is_the_formula():
    index = window.relative_index((7, 7, 7))
    z, y, x = np.indices((7, 7, 7)).reshape(3, -1)
    d = [(c[:, None] - c[None] + 6) for c in (z, y, x)]
    np.testing.assert_array_equal(index, d[0] * 169 + d[1] * 13 + d[2])


def test_bias_of_shrunken_windows():
    full = window.relative_index((7, 7, 7))
    np.testing.assert_array_equal(window.bias_index((7, 7, 7), (6, 6, 6)), full[:216, :216])
    # geometric: pairs with the same difference share a row, and it is the row of that difference in
    # the full window
    right = window.bias_index((7, 7, 7), (2, 3, 4), "geometric")
    for (i, a), (j, b) in itertools.product(enumerate(np.ndindex(2, 3, 4)), repeat=2):
        d = np.array(a) - np.array(b) + 6
        assert right[i, j] == d[0] * 169 + d[1] * 13 + d[2]
    # the corner is right if only the first axis shrinks
    np.testing.assert_array_equal(
        window.bias_index((7, 7, 7), (4, 7, 7)),
        window.bias_index((7, 7, 7), (4, 7, 7), "geometric"),
    )
    with pytest.raises(ModelError, match="corner or geometric"):
        window.bias_index((7, 7), (7, 7), "nearest")


# ---- merging, embedding, expanding


@pytest.mark.parametrize(
    "name, offsets",
    [
        ("fixed", "000 100 010 001 110 101 011 111"),
        ("legacy", "000 100 010 001 101 010 001 111"),
        ("v2order", "000 001 010 011 100 101 110 111"),
    ],
)
def test_merging_orders_in_three_axes(name, offsets):
    x = np.arange(4 * 4 * 4).reshape(1, 4, 4, 4, 1)
    merged = patch.merge(jnp.asarray(x), patch.merging_order(name, 3))
    assert merged.shape == (1, 2, 2, 2, 8)
    for channel, offset in enumerate(offsets.split()):
        o, p, q = (int(digit) for digit in offset)
        np.testing.assert_array_equal(merged[0, ..., channel], x[0, o::2, p::2, q::2, 0])


def test_merging_in_two_axes_is_swins_for_every_name():
    x = jnp.arange(16).reshape(1, 4, 4, 1)
    for name in patch.MERGING:
        np.testing.assert_array_equal(
            patch.merge(x, patch.merging_order(name, 2))[0, 0, 0], [0, 4, 1, 5]
        )


def test_what_cannot_be_merged_or_cut_is_refused():
    with pytest.raises(ModelError, match="did you mean legacy"):
        patch.merging_order("legasy", 3)
    with pytest.raises(ModelError, match="odd grid"):
        patch.merge(jnp.zeros((1, 4, 3, 1)), patch.PLANE)
    with pytest.raises(ModelError, match="whole patches"):
        patch.space_to_depth(jnp.zeros((1, 4, 3, 1)), (2, 2))


def test_space_to_depth_and_back():
    x = np.arange(2 * 4 * 6 * 2 * 3).reshape(2, 4, 6, 2, 3)
    tokens = patch.space_to_depth(jnp.asarray(x), (2, 3, 1))
    assert tokens.shape == (2, 2, 2, 2, 18)
    np.testing.assert_array_equal(tokens[1, 1, 0, 1], x[1, 2:4, 0:3, 1:2].reshape(-1))
    np.testing.assert_array_equal(patch.depth_to_space(tokens, (2, 3, 1)), x)
    np.testing.assert_array_equal(
        patch.depth_to_space(jnp.arange(4).reshape(1, 1, 1, 4), (2, 2))[0, ..., 0], [[0, 1], [2, 3]]
    )
    np.testing.assert_array_equal(
        patch.depth_to_space(jnp.arange(16).reshape(1, 1, 1, 16), (4, 4))[0, ..., 0],
        np.arange(16).reshape(4, 4),
    )


def test_patch_embedding_is_a_strided_convolution():
    x = _random(2, 4, 8, 6, 3)
    module = patch.PatchEmbed(5, (2, 2, 2))
    p = _params(module, x)
    assert p["kernel"].shape == (2, 2, 2, 3, 5)
    expected = (
        jax.lax.conv_general_dilated(
            x, p["kernel"], (2, 2, 2), "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
        + p["bias"]
    )
    np.testing.assert_allclose(_apply(module, p, x), expected, atol=1e-5)


@pytest.mark.parametrize("axes", [2, 3])
def test_merging_and_expanding_modules(axes):
    x = _random(1, *[4] * axes, 12)
    merging, expanding = patch.PatchMerging(), patch.PatchExpanding(6, (2,) * axes)
    p, q = _params(merging, x), _params(expanding, x)
    cells = 2**axes
    assert _count(p) == 2 * cells * 12 + cells * 12 * 24 and _paths(p) == {
        "norm/scale",
        "norm/bias",
        "reduction/kernel",
    }
    assert _count(q) == 12 * cells * 6 + 2 * 6 and _paths(q) == {
        "expand/kernel",
        "norm/scale",
        "norm/bias",
    }
    y = np.asarray(patch.merge(x, patch.merging_order("fixed", axes)), np.float64)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5) * p["norm"][
        "scale"
    ] + p["norm"]["bias"]
    np.testing.assert_allclose(_apply(merging, p, x), y @ p["reduction"]["kernel"], atol=1e-4)
    y = np.asarray(patch.depth_to_space(x @ q["expand"]["kernel"], (2,) * axes), np.float64)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5) * q["norm"][
        "scale"
    ] + q["norm"]["bias"]
    np.testing.assert_allclose(_apply(expanding, q, x), y, atol=1e-4)


# ---- attention and the block


def _attention_by_hand(p, x, size, shift, heads, index):
    """Window attention of one sample, token pair by token pair's mask, in float64 numpy."""
    x, p = np.asarray(x, np.float64), jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    grid, c = x.shape[:-1], x.shape[-1]
    padded = [-(-g // w) * w for g, w in zip(grid, size, strict=True)]
    canvas = np.zeros((*padded, c))
    canvas[tuple(slice(g) for g in grid)] = x
    axes = tuple(range(len(grid)))
    canvas = np.roll(canvas, [-s for s in shift], axes)
    neighbours = _neighbours(padded, size, shift) if any(shift) else None
    out = []
    for w, tokens in enumerate(window.partition(canvas[None], size)[0]):
        qkv = tokens @ p["qkv"]["kernel"] + p["qkv"]["bias"]
        q, k, v = (part.reshape(len(tokens), heads, c // heads) for part in np.split(qkv, 3, -1))
        joined = np.zeros((len(tokens), heads, c // heads))
        for h in range(heads):
            scores = q[:, h] @ k[:, h].T / np.sqrt(c // heads) + p["rel_bias"][index, h]
            if neighbours is not None:
                scores = scores - 100.0 * ~neighbours[w]
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            joined[:, h] = weights / weights.sum(-1, keepdims=True) @ v[:, h]
        out.append(joined.reshape(len(tokens), c) @ p["proj"]["kernel"] + p["proj"]["bias"])
    out = np.roll(window.reverse(np.stack(out)[None], size, padded)[0], shift, axes)
    return out[tuple(slice(g) for g in grid)]


@pytest.mark.parametrize(
    "grid, size, shift",
    [
        ((5, 8), (4, 4), (0, 0)),
        ((5, 8), (4, 4), (2, 2)),
        ((3, 5, 6), (3, 3, 3), (1, 1, 1)),
        ((2, 2, 2), (3, 3, 3), (1, 1, 1)),
    ],
)
def test_window_attention_is_its_formula(grid, size, shift):
    x = _random(2, *grid, 8)
    module = attention.WindowAttention(2, size, shift)
    p = _params(module, x)
    assert {k: v.shape for k, v in p["qkv"].items()} == {"kernel": (8, 24), "bias": (24,)}
    assert p["rel_bias"].shape == (np.prod([2 * w - 1 for w in size]), 2)
    out = _apply(module, p, x)
    used, shift = window.fit(grid, size, shift)
    for sample in range(2):
        expected = _attention_by_hand(p, x[sample], used, shift, 2, window.bias_index(size, used))
        np.testing.assert_allclose(out[sample], expected, atol=2e-5)


def test_head_count_must_divide_the_width():
    with pytest.raises(ModelError, match="heads do not divide"):
        attention.WindowAttention(3, (2, 2), (0, 0)).init(KEY, jnp.zeros((1, 2, 2, 8)))


def test_block_parameters_are_swins():
    """4c norms, 4c^2 + 4c attention, 169 heads bias rows, 8c^2 + 5c MLP."""
    block = attention.SwinBlock(3, (7, 7), (3, 3))
    p = jax.eval_shape(block.init, KEY, jax.ShapeDtypeStruct((1, 14, 14, 96), jnp.float32))[
        "params"
    ]
    c = 96
    assert _count(p) == 4 * c + 4 * c * c + 4 * c + 169 * 3 + 8 * c * c + 5 * c
    assert _paths(p) == {
        *(f"{n}/{w}" for n in ("norm1", "norm2") for w in ("scale", "bias")),
        *(
            f"{n}/{w}"
            for n in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
            for w in ("kernel", "bias")
        ),
        "attn/rel_bias",
    }


@pytest.mark.parametrize("kind, spread", [("torch", 1 / np.sqrt(3 * 64)), ("swin", 0.02)])
def test_initial_values(kind, spread):
    p = jax.jit(attention.Mlp(256, initial=kind).init)(KEY, jnp.zeros((1, 64)))["params"]
    assert np.std(p["fc1"]["kernel"]) == pytest.approx(spread, rel=0.03)
    assert np.std(p["fc1"]["bias"]) == pytest.approx(spread if kind == "torch" else 0.0, rel=0.15)
    with pytest.raises(ModelError, match="swin or xavier or torch"):
        attention.linear_init("kaiming", 3)


def test_drop_path_drops_whole_samples_in_training_only():
    x = jnp.ones((400, 2, 3))
    y = np.asarray(attention.drop_path(x, 0.25, KEY))
    per_sample = y.reshape(400, -1)
    assert (per_sample == per_sample[:, :1]).all() and set(np.unique(y)) == {
        0.0,
        np.float32(1 / 0.75),
    }
    assert 0.68 < (per_sample[:, 0] > 0).mean() < 0.82
    block = attention.SwinBlock(2, (2, 2), (1, 1), drop_path=0.5)
    x = _random(64, 2, 2, 4)
    p = jax.tree.map(jnp.zeros_like, _params(block, x))
    p["mlp"]["fc2"]["bias"] = p["mlp"]["fc2"]["bias"] + 1.0  # attention adds 0, the MLP 1
    np.testing.assert_array_equal(_apply(block, p, x), x + 1)
    moved = np.round(_apply(block, p, x, train=True, rngs={"dropout": KEY}) - x, 4)
    assert (
        set(np.unique(moved)) == {0.0, 2.0} and len(np.unique(moved.reshape(64, -1), axis=1).T) <= 2
    )


def test_bfloat16_computes_close_to_float32():
    x = _random(1, 4, 4, 6)
    exact, rough = (
        attention.SwinBlock(3, (2, 2), (1, 1), dtype=d) for d in (jnp.float32, jnp.bfloat16)
    )
    p = _params(rough, x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(p))
    assert jax.eval_shape(rough.apply, {"params": p}, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    difference = np.abs(_apply(rough, p, x.astype(jnp.bfloat16)) - _apply(exact, p, x)).max()
    assert 0 < difference < 0.1


@pytest.mark.slow
def test_a_stage_alternates_its_shifts_and_rematerialises_to_the_same_gradients():
    x = _random(1, 4, 4, 4)
    plain, remat = (
        attention.SwinStage(2, (2, 2), (0.0, 0.1), block)
        for block in (attention.SwinBlock, attention.rematerialised())
    )
    p = _params(plain, x)
    assert set(p) == {"block0", "block1"} and jax.tree.structure(p) == jax.tree.structure(
        _params(remat, x)
    )
    first, second = attention.SwinBlock(2, (2, 2), (0, 0)), attention.SwinBlock(2, (2, 2), (1, 1))
    expected = _apply(second, p["block1"], _apply(first, p["block0"], x))
    np.testing.assert_allclose(_apply(plain, p, x), expected, atol=1e-5)
    losses = [lambda q, m=m: jnp.mean(m.apply({"params": q}, x) ** 2) for m in (plain, remat)]
    gradients = [jax.jit(jax.grad(loss), compiler_options=FAST)(p) for loss in losses]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * float(np.abs(a).max())),
        *gradients,
    )


def test_drop_path_rates_grow_over_all_blocks():
    rates = attention.drop_path_rates(0.2, (2, 2, 2, 2))
    assert [len(r) for r in rates] == [2, 2, 2, 2]
    np.testing.assert_allclose(
        sum(rates, ()), [0, 0.0286, 0.0571, 0.0857, 0.1143, 0.1429, 0.1714, 0.2], atol=5e-5
    )
