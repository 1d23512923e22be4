"""SwinUNETR against MONAI: parameter counts, multiply-adds, recorded numbers, and (marker `parity`)
the network itself on random weights.

The key table below turns MONAI's state dict into our parameter tree: (regex over the key, path,
layout), every key and leaf accounted for.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.models import swin_unetr
from tests.support.fast import FAST
from tests.support.networks import fresh

KEY = jax.random.key(0)

# Layouts: "conv" (out, in, *k) -> (*k, in, out); "up", a transposed convolution whose stride is its
# kernel, (in, out, *k) -> (*k, in, out) without a flip; "linear" (out, in) -> (in, out); "head", a
# convolution of 1 voxel as a linear map, (out, in, 1, ...) -> (in, out); "same".
TABLE = (
    (r"swinViT\.patch_embed\.proj\.weight", r"swin/patch_embed/kernel", "conv"),
    (r"swinViT\.patch_embed\.proj\.bias", r"swin/patch_embed/bias", "same"),
    (
        r"swinViT\.layers(\d)\.0\.blocks\.(\d)\.norm([12])\.weight",
        r"swin/stage\1/block\2/norm\3/scale",
        "same",
    ),
    (
        r"swinViT\.layers(\d)\.0\.blocks\.(\d)\.norm([12])\.bias",
        r"swin/stage\1/block\2/norm\3/bias",
        "same",
    ),
    (
        r"swinViT\.layers(\d)\.0\.blocks\.(\d)\.attn\.relative_position_bias_table",
        r"swin/stage\1/block\2/attn/rel_bias",
        "same",
    ),
    (
        r"swinViT\.layers(\d)\.0\.blocks\.(\d)\.attn\.(qkv|proj)\.weight",
        r"swin/stage\1/block\2/attn/\3/kernel",
        "linear",
    ),
    (
        r"swinViT\.layers(\d)\.0\.blocks\.(\d)\.attn\.(qkv|proj)\.bias",
        r"swin/stage\1/block\2/attn/\3/bias",
        "same",
    ),
    (
        r"swinViT\.layers(\d)\.0\.blocks\.(\d)\.mlp\.linear([12])\.weight",
        r"swin/stage\1/block\2/mlp/fc\3/kernel",
        "linear",
    ),
    (
        r"swinViT\.layers(\d)\.0\.blocks\.(\d)\.mlp\.linear([12])\.bias",
        r"swin/stage\1/block\2/mlp/fc\3/bias",
        "same",
    ),
    (r"swinViT\.layers(\d)\.0\.downsample\.norm\.weight", r"swin/merge\1/norm/scale", "same"),
    (r"swinViT\.layers(\d)\.0\.downsample\.norm\.bias", r"swin/merge\1/norm/bias", "same"),
    (
        r"swinViT\.layers(\d)\.0\.downsample\.reduction\.weight",
        r"swin/merge\1/reduction/kernel",
        "linear",
    ),
    (
        r"swinViT\.layers(\d)c\.0\.layer\.conv([123])\.conv\.weight",
        r"swin/conv\1/conv\2/kernel",
        "conv",
    ),
    (r"encoder(\d+)\.layer\.conv([123])\.conv\.weight", r"encoder\1/conv\2/kernel", "conv"),
    (r"decoder(\d)\.transp_conv\.conv\.weight", r"decoder\1/up/kernel", "up"),
    (
        r"decoder(\d)\.conv_block\.conv([123])\.conv\.weight",
        r"decoder\1/block/conv\2/kernel",
        "conv",
    ),
    (r"out\.conv\.conv\.weight", r"out/kernel", "head"),
    (r"out\.conv\.conv\.bias", r"out/bias", "same"),
)
DROPPED = (r".*\.relative_position_index",)  # buffers, made again from the window


def arrange(layout: str, value: np.ndarray) -> np.ndarray:
    """A PyTorch tensor in our order of axes."""
    spatial = tuple(range(2, value.ndim))
    if layout == "head":
        return np.squeeze(value, spatial).T
    return np.transpose(
        value,
        {
            "conv": (*spatial, 1, 0),
            "up": (*spatial, 0, 1),
            "linear": (1, 0),
            "same": range(value.ndim),
        }[layout],
    )


def arranged_back(layout: str, shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """The PyTorch shape of one of our leaves."""
    *spatial, i, o = shape if len(shape) > 1 else (0, *shape)
    return {
        "conv": (o, i, *spatial),
        "up": (i, o, *spatial),
        "linear": (o, i),
        "head": (o, i) + (1,) * axes,
        "same": shape,
    }[layout]


def place(key: str) -> tuple[str, str] | None:
    """(path, layout) of a key, None for dropped ones; KeyError unless exactly one row fits."""
    rows = [(re.fullmatch(pattern, key), path, layout) for pattern, path, layout in TABLE]
    found = [(match.expand(path), layout) for match, path, layout in rows if match]
    if not found and any(re.fullmatch(pattern, key) for pattern in DROPPED):
        return None
    if len(found) != 1:
        raise KeyError(f"{key}: {len(found)} rows of the table fit")
    return found[0]


def convert(state: dict[str, np.ndarray], shapes) -> dict:
    """The state dict as parameters of the given (abstract) tree; KeyError for keys, leaves or
    shapes that do not meet.
    """
    leaves = {
        "/".join(k.key for k in path): leaf for path, leaf in jax.tree.leaves_with_path(shapes)
    }
    filled = {}
    for key, value in state.items():
        where = place(key)
        if where is None:
            continue
        path, layout = where
        array = arrange(layout, value)
        if path not in leaves or path in filled or array.shape != leaves[path].shape:
            raise KeyError(
                f"{key} {value.shape} -> {path}: {leaves.get(path)}, "
                f"{'filled twice' if path in filled else 'does not fit'}"
            )
        filled[path] = array.astype(leaves[path].dtype)
    if missing := set(leaves) - set(filled):
        raise KeyError(f"not filled: {sorted(missing)}")
    return jax.tree.map_with_path(lambda path, _: filled["/".join(k.key for k in path)], shapes)


# ---- helpers


def _shapes(module, sides, channels=1):
    return jax.eval_shape(
        fresh(module), KEY, jax.ShapeDtypeStruct((1, *sides, channels), jnp.float32)
    )["params"]


def _count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _apply(module, params, image):
    return jax.jit(lambda p, x: module.apply({"params": p}, x), compiler_options=FAST)(
        params, image
    )


def _recorded_image(*sides):
    n = np.arange(np.prod(sides))
    return jnp.asarray(
        (np.sin(0.013 * n) + 0.5 * np.cos(0.0007 * n)).reshape(1, *sides, 1), jnp.float32
    )


def _monai_keys(use_v2=False) -> list[str]:
    """Names of MONAI's parameters for one input channel and depths (2, 2, 2, 2), sorted."""
    pair = ("weight", "bias")
    keys = [f"{name}.{w}" for name in ("swinViT.patch_embed.proj", "out.conv.conv") for w in pair]
    for s in range(1, 5):
        for block in (f"swinViT.layers{s}.0.blocks.{b}." for b in range(2)):
            keys += [block + "attn.relative_position_bias_table"]
            keys += [
                f"{block}{m}.{w}"
                for m in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.linear1", "mlp.linear2")
                for w in pair
            ]
        keys += [
            f"swinViT.layers{s}.0.downsample.{name}"
            for name in ("norm.weight", "norm.bias", "reduction.weight")
        ]
        keys += [f"swinViT.layers{s}c.0.layer.conv{k}.conv.weight" for k in (1, 2) if use_v2]
    for e in (1, 2, 3, 4, 10):
        keys += [f"encoder{e}.layer.conv{k}.conv.weight" for k in ((1, 2, 3) if e == 1 else (1, 2))]
    for d in range(1, 6):
        keys += [f"decoder{d}.transp_conv.conv.weight"] + [
            f"decoder{d}.conv_block.conv{k}.conv.weight" for k in (1, 2, 3)
        ]
    return sorted(keys)


def _recorded_weights(module, sides, use_v2=False):
    """cos(0.7 n + j) over the flat places n of tensor j, in PyTorch's names and layouts, scaled by
    kind.
    """
    shapes = _shapes(module, sides)
    leaves = {
        "/".join(k.key for k in path): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(shapes)
    }
    state = {}
    for j, key in enumerate(_monai_keys(use_v2)):
        path, layout = place(key)
        shape = arranged_back(layout, leaves[path], len(sides))
        v = np.cos(0.7 * np.arange(np.prod(shape)) + j)
        if "bias_table" in key:
            v = 0.5 * v
        elif len(shape) == 1:
            v = 1 + 0.1 * v if key.endswith("weight") else 0.1 * v
        else:
            v = v * np.sqrt(2 / (np.prod(shape) / shape[0]))
        state[key] = v.reshape(shape).astype(np.float32)
    return convert(state, shapes)


def _equations(jaxpr, branches=slice(None)):
    """Every equation of a jaxpr, those of its inner jaxprs included; of conditions (by platform)
    the given branches.
    """
    for equation in jaxpr.eqns:
        yield equation
        params = equation.params | (
            {"branches": equation.params["branches"][branches]}
            if "branches" in equation.params
            else {}
        )
        for value in jax.tree.leaves(
            list(params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner, branches)


def _forward(module, sides):
    image = jax.ShapeDtypeStruct((1, *sides, 1), jnp.float32)
    return jax.make_jaxpr(lambda p, x: module.apply({"params": p}, x)["logits"])(
        _shapes(module, sides), image
    ).jaxpr


def _multiply_adds(jaxpr) -> int:
    """Of convolutions and products, where a convolution depends on the platform as on any but a
    CPU.
    """
    total = 0
    for equation in _equations(jaxpr, slice(-1, None)):
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(
                equation.invars[0].aval.shape[a] for a in contracted
            )
        if equation.primitive.name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
            total += (
                math.prod(equation.outvars[0].aval.shape)
                * math.prod(kernel)
                // kernel[numbers.rhs_spec[0]]
            )
    return total


# ---- counts and cost, from shapes alone


@pytest.mark.parametrize(
    "expected, arguments",
    [
        (62_188_913, {"classes": 47}),
        (72_764_273, {"classes": 47, "use_v2": True}),
        (62_186_659, {"classes": 1}),
        (62_187_002, {"classes": 8}),
        (62_187_296, {"classes": 14}),
        (62_188_178, {"classes": 32}),
        (72_762_068, {"classes": 2, "use_v2": True}),
        (4_078_064, {"classes": 2, "feature_size": 12}),
        (15_703_004, {"classes": 2, "feature_size": 24}),
        (35_072_552, {"classes": 2, "feature_size": 36}),
        (97_045_472, {"classes": 2, "feature_size": 60}),
        (248_089_412, {"classes": 2, "feature_size": 96}),
    ],
)
def test_parameter_counts_are_monais(expected, arguments):
    shapes = _shapes(swin_unetr.make(**arguments), (64, 64, 64))
    assert _count(shapes) == expected
    assert _count(shapes["out"]) == (arguments.get("feature_size", 48) + 1) * arguments["classes"]
    assert len(jax.tree.leaves(shapes)) == (159 if arguments.get("use_v2") else 151)


def test_parameter_counts_of_the_parts():
    shapes = _shapes(swin_unetr.make(classes=47), (64, 64, 64))
    assert _count(shapes["out"]) == 2_303 and _count(shapes["swin"]) == 8_062_002
    swin = shapes["swin"]
    assert [_count(swin[f"stage{s}"]) + _count(swin[f"merge{s}"]) for s in range(1, 5)] == [
        107_358,
        399_036,
        1_535_352,
        6_019_824,
    ]
    assert [_count(shapes[f"encoder{e}"]) for e in (1, 2, 3, 4, 10)] == [
        63_552,
        124_416,
        497_664,
        1_990_656,
        31_850_496,
    ]
    assert [_count(shapes[f"decoder{d}"]) for d in (5, 4, 3, 2, 1)] == [
        14_598_144,
        3_649_536,
        912_384,
        228_096,
        209_664,
    ]
    assert (
        _count(_shapes(swin_unetr.make(classes=2, in_channels=4), (64, 64, 64), channels=4))
        == 62_191_892
    )


@pytest.mark.parametrize(
    "sides, classes, features, giga",
    [
        ((64, 64, 96), 2, 12, 10.254),
        ((96, 96, 96), 8, 24, 82.819),
        ((96, 96, 96), 8, 48, 318.270),
        ((96, 192, 192), 47, 48, 1276.089121536),
    ],
)
def test_multiply_adds_and_no_dilated_input(sides, classes, features, giga):
    jaxpr = _forward(swin_unetr.make(classes, feature_size=features), sides)
    assert _multiply_adds(jaxpr) / 1e9 == pytest.approx(giga, abs=5e-4)
    dilations = [
        e.params["lhs_dilation"]
        for e in _equations(jaxpr)
        if e.primitive.name == "conv_general_dilated"
    ]
    assert len(dilations) > 0 and all(set(d) == {1} for d in dilations)


def test_the_token_grids_of_a_96_patch():
    module = swin_unetr.make(8, intermediates=True, dtype="bfloat16")
    sides = (96, 96, 96)
    out = jax.eval_shape(
        module.apply,
        {"params": _shapes(module, sides)},
        jax.ShapeDtypeStruct((2, *sides, 1), jnp.float32),
    )
    assert out["logits"].shape == (2, 96, 96, 96, 8) and out["logits"].dtype == jnp.float32
    maps = {name: leaf.shape[1:] for name, leaf in out["features"].items()}
    for i, (side, width) in enumerate([(48, 48), (24, 96), (12, 192), (6, 384), (3, 768)]):
        assert maps[f"x{i}"] == (side,) * 3 + (width,)
    assert maps["deepest"] == (3, 3, 3, 768) and maps["decoded"] == (96, 96, 96, 48)
    assert out["features"]["decoded"].dtype == jnp.bfloat16


# ---- refusals


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dims": 1}, "dims"),
        ({"depths": (2, 2)}, "depths"),
        ({"heads": (5, 6, 12, 24)}, "heads"),
        ({"window": (7, 7)}, "window"),
        ({"weight_axes": "xzy"}, "weight_axes"),
        ({"dtype": "float16"}, "dtype"),
        ({"remat": "everything"}, "remat"),
        ({"merging": "v1"}, "merging order"),
        ({"bias_index": "centre"}, "bias_index"),
        ({"norm": "batch"}, "norm"),
    ],
)
def test_arguments_that_describe_no_network_are_refused(arguments, message):
    with pytest.raises(ModelError, match=message):
        swin_unetr.make(2, **arguments)


def test_sides_that_do_not_fit_are_refused_with_the_nearest_that_do():
    module = swin_unetr.make(2, feature_size=12)
    with pytest.raises(
        ModelError,
        match=r"found \(96, 100, 64\); expected multiples of 32. Fix: set the patch to \(96, 96, "
        r"64\)",
    ):
        _shapes(module, (96, 100, 64))
    with pytest.raises(ModelError, match="one voxel"):
        _shapes(module, (32, 32, 32))
    with pytest.raises(
        ModelError, match=r"found \(1, 64, 64, 64, 2\); expected \(batch, 3 sides, 1 channels\)"
    ):
        _shapes(module, (64, 64, 64), channels=2)
    with pytest.raises(ModelError, match="set dims"):
        _shapes(module, (64, 64))


# ---- numbers


def test_initial_values_are_pytorchs():
    """Uniform within 1 / sqrt(fan in); a transposed convolution counts its outputs."""
    for init, fan_in in ((swin_unetr.uniform_conv, 27 * 8), (swin_unetr.uniform_up, 27 * 16)):
        kernel = np.asarray(init(KEY, (3, 3, 3, 8, 16), jnp.float32))
        assert np.abs(kernel).max() <= fan_in**-0.5 and kernel.std() == pytest.approx(
            (3 * fan_in) ** -0.5, rel=0.03
        )
    module = swin_unetr.make(2, feature_size=12, dims=2, prior=-2.0)
    head = module.init(KEY, jnp.zeros((1, 2, 2, 12)), method=lambda network, x: network.out(x))[
        "params"
    ]["out"]
    assert (np.asarray(head["bias"]) == -2).all() and np.abs(head["kernel"]).max() <= 12**-0.5


# MONAI 1.6.1, feature size 12, 2 outputs, torch 2.13: mean, std per channel; first voxel ch 0;
# middle, last voxel ch 1
RECORDED = {
    (32, 32, 64): ((0.244253, -0.435923), (1.131963, 1.248337), -0.808535, -1.117138, 0.685626),
    (64, 96): ((0.248293, -0.469421), (0.291825, 0.404869), 1.269655, -0.695215, -0.458284),
}


@pytest.mark.slow
@pytest.mark.parametrize("sides, use_v2", [((32, 32, 64), False), ((64, 96), True)])
def test_recorded_numbers_of_monai(sides, use_v2):
    """3D with padded, shifted and shrunken windows; 2D with the convolutions of V2."""
    module = swin_unetr.make(2, feature_size=12, dims=len(sides), use_v2=use_v2)
    logits = np.asarray(
        _apply(module, _recorded_weights(module, sides, use_v2), _recorded_image(*sides))["logits"][
            0
        ],
        np.float64,
    )
    axes = tuple(range(len(sides)))
    mean, std, first, middle, last = RECORDED[sides]
    np.testing.assert_allclose(logits.mean(axes), mean, atol=1e-4)
    np.testing.assert_allclose(logits.std(axes), std, atol=1e-4)
    points = [
        logits[(0,) * len(sides)][0],
        logits[tuple(s // 2 for s in sides)][1],
        logits[(-1,) * len(sides)][1],
    ]
    np.testing.assert_allclose(points, [first, middle, last], atol=1e-4)


ORACLE = {  # 64 x 64 x 96; MONAI before 1.5, from 1.5, and `mergingv2`
    "legacy": (
        (0.252770, -0.434493),
        (1.094690, 1.331937),
        (-3.222003, 0.701709, -1.573918, 0.717272),
        (0.142739, 1.291282, -1.036708),
    ),
    "fixed": (
        (0.252881, -0.434707),
        (1.094786, 1.331660),
        (-3.222486, 0.708852, -1.555728, 0.715207),
        (-0.193636, 1.419531, -0.746882),
    ),
    "v2order": (
        (0.253320, -0.435157),
        (1.094833, 1.331525),
        (-3.218180, 0.713603, -1.530516, 0.716912),
        (-1.017563, 1.281118, 0.270305),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("merging", ORACLE)
def test_the_three_merging_orders_give_their_recorded_numbers(merging):
    sides = (64, 64, 96)
    image = _recorded_image(*sides)
    assert np.asarray(image).sum(dtype=np.float64) == pytest.approx(-521.036568, abs=1e-6)
    module = swin_unetr.make(2, feature_size=12, merging=merging, intermediates=True)
    out = _apply(module, _recorded_weights(module, sides), image)
    logits = np.asarray(out["logits"][0], np.float64)
    mean, std, points, x1 = ORACLE[merging]
    np.testing.assert_allclose(logits.mean((0, 1, 2)), mean, atol=1e-4)
    np.testing.assert_allclose(logits.std((0, 1, 2)), std, atol=1e-4)
    found = [
        logits[0, 0, 0, 0],
        logits[10, 20, 30, 1],
        logits[31, 32, 47, 0],
        logits[63, 63, 95, 1],
    ]
    np.testing.assert_allclose(found, points, atol=1e-4)
    np.testing.assert_allclose(out["features"]["x1"][0, 3, 5, 7, :3], x1, atol=1e-4)
    assert np.std(np.asarray(out["features"]["deepest"], np.float64)) == pytest.approx(
        0.8251, abs=1e-4
    )


def _small(classes=2, **arguments):
    """A network in two axes with one block per stage and 64 x 64 pixels, its random parameters and
    an image.
    """
    module, sides = (
        swin_unetr.make(classes, feature_size=12, dims=2, depths=(1, 1, 1, 1), **arguments),
        (64, 64),
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, leaf.size**-0.2, leaf.shape), jnp.float32),
        _shapes(module, sides),
    )
    return module, params, jnp.asarray(rng.normal(size=(1, *sides, 1)), jnp.float32)


@pytest.mark.slow
def test_axis_reversed_weights_give_axis_reversed_maps():
    """`weight_axes="xyz"` on a turned image is the network on the image, turned; the network on the
    turned image is something else.
    """
    module, params, image = _small()
    forward = jax.jit(
        lambda x: module.apply({"params": params}, x)["logits"], compiler_options=FAST
    )
    turned = _small(weight_axes="xyz")[0]
    back = jax.jit(lambda x: turned.apply({"params": params}, x)["logits"], compiler_options=FAST)(
        jnp.swapaxes(image, 1, 2)
    )
    logits, other = forward(image), forward(jnp.swapaxes(image, 1, 2))
    np.testing.assert_allclose(jnp.swapaxes(back, 1, 2), logits, atol=1e-5)
    assert np.abs(jnp.swapaxes(other, 1, 2) - logits).max() > 0.1


@pytest.mark.slow
def test_every_parameter_gets_a_gradient():
    module, params, image = _small()
    loss = jax.grad(
        lambda p: jnp.mean(module.apply({"params": p}, image, None, True)["logits"] ** 2)
    )
    for path, leaf in jax.tree.leaves_with_path(jax.jit(loss, compiler_options=FAST)(params)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


@pytest.mark.slow
def test_heads_by_corpus_are_the_linear_map_of_each_samples_corpus():
    """A sample's logits are its corpus' columns, relative to the background's; the rest is -inf."""
    channels, corpus = ((0, 2), (1, 3)), jnp.array([1, 0])
    module, params, image = _small(
        head="corpus_softmax", corpus_channels=channels, classes=4, intermediates=True
    )
    assert params["out"]["kernel"].shape == (12, 6) and params["out"]["bias"].shape == (
        6,
    )  # a background and two classes, twice
    assert _count(params) - _count(_small(classes=4)[1]) == 2 * 13
    image = jnp.concatenate([image, image])
    found = jax.jit(
        lambda p, x: module.apply({"params": p}, x, {"corpus": corpus}), compiler_options=FAST
    )(params, image)
    raw = np.asarray(found["features"]["decoded"]) @ np.asarray(
        params["out"]["kernel"]
    ) + np.asarray(params["out"]["bias"])
    logits = found["logits"]
    for i, (first, own) in enumerate(((3, (1, 3)), (0, (0, 2)))):
        np.testing.assert_allclose(
            logits[i][..., own],
            raw[i, ..., first + 1 : first + 3] - raw[i, ..., first, None],
            atol=2e-5,
        )
        assert np.isneginf(np.delete(np.asarray(logits[i]), own, -1)).all()
    with pytest.raises(ModelError, match="corpus of every sample"):
        jax.eval_shape(module.apply, {"params": params}, image)
    with pytest.raises(ModelError, match="corpus_channels"):
        swin_unetr.make(4, feature_size=12, head="corpus_softmax")


@pytest.mark.slow
@pytest.mark.parametrize("remat, blocks", [("none", 0), ("block", 8), ("all", 8 + 5 + 5)])
def test_what_is_rematerialised(remat, blocks):
    module = swin_unetr.make(2, feature_size=12, remat=remat)
    names = [e.primitive.name for e in _equations(_forward(module, (64, 64, 64)))]
    assert sum(name in ("remat", "remat2", "checkpoint") for name in names) == blocks
    assert jax.tree.structure(_shapes(module, (64, 64, 64))) == jax.tree.structure(
        _shapes(swin_unetr.make(2, feature_size=12), (64, 64, 64))
    )


# ---- the table and the peer


def test_the_key_table_accounts_for_everything():
    module = swin_unetr.make(2, feature_size=12)
    shapes = _shapes(module, (64, 64, 64))
    assert len(_monai_keys()) == 151 and len(_monai_keys(use_v2=True)) == 159
    assert place("swinViT.layers1.0.blocks.0.attn.relative_position_index") is None
    assert place("encoder10.layer.conv2.conv.weight") == ("encoder10/conv2/kernel", "conv")
    with pytest.raises(KeyError, match="0 rows"):
        place("swinViT.layers1.0.blocks.0.mlp.fc1.weight")
    with pytest.raises(KeyError, match="not filled"):
        convert({"out.conv.conv.bias": np.zeros(2, np.float32)}, shapes)
    with pytest.raises(KeyError, match="does not fit"):
        convert({"out.conv.conv.bias": np.zeros(3, np.float32)}, shapes)


def _legacy_merging(peer, torch):
    """MONAI's merging as it was before 1.5, as a class for `downsample`."""

    class Legacy(peer.PatchMergingV2):
        def forward(self, x):
            offsets = ("000", "100", "010", "001", "101", "010", "001", "111")
            parts = [x[:, int(i) :: 2, int(j) :: 2, int(k) :: 2] for i, j, k in offsets]
            return self.reduction(self.norm(torch.cat(parts, -1)))

    return Legacy


@pytest.mark.parity
@pytest.mark.parametrize(
    "features, sides, merging, use_v2",
    [
        (
            12,
            (64, 64, 64),
            "fixed",
            False,
        ),  # grids 32, 16, 8, 4: padding, shift, shrunken windows of stage 4
        (12, (64, 64, 64), "v2order", True),
        (12, (64, 32, 96), "legacy", False),
        (12, (64, 96), "fixed", False),
        pytest.param(12, (64, 64, 64), "legacy", False, marks=pytest.mark.slow),
        *(
            pytest.param(features, (side,) * 3, merging, False, marks=pytest.mark.slow)
            for features, side in ((12, 96), (24, 64), (24, 96))
            for merging in ("fixed", "legacy")
        ),
    ],
)
def test_logits_of_random_weights_are_monais(features, sides, merging, use_v2):
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("monai.networks.nets.swin_unetr")
    torch.manual_seed(1)
    torch.set_num_threads(1)
    mode = {"fixed": "merging", "v2order": "mergingv2", "legacy": _legacy_merging(peer, torch)}[
        merging
    ]
    net = peer.SwinUNETR(
        1, 3, feature_size=features, spatial_dims=len(sides), downsample=mode, use_v2=use_v2
    ).eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "bias_table" in name or p.ndim == 1:
                p.add_(torch.randn_like(p) * (0.5 if "table" in name else 0.1))
        net.out.conv.conv.weight.mul_(4)
        image = torch.randn(2, 1, *sides)[:1]
        expected = np.moveaxis(net(image).numpy(), 1, -1)
    module = swin_unetr.make(
        3, feature_size=features, dims=len(sides), merging=merging, use_v2=use_v2
    )
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    assert len(state) == (167 if use_v2 else 159)
    params = convert(state, _shapes(module, sides))
    logits = np.asarray(
        _apply(module, params, jnp.asarray(np.moveaxis(image.numpy(), 1, -1)))["logits"]
    )
    assert 0.3 < expected.std() < 3
    difference = np.abs(logits - expected).max()
    print(
        f"feature size {features}, {sides}, {merging}{', v2' * use_v2}: {difference:.1e}, "
        f"standard deviation {expected.std():.2f}"
    )
    assert difference < 1e-4
