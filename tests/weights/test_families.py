"""Every family: names and shapes of its files accounted for, and (marker `parity`) the same logits
as PyTorch on random weights.
"""

import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.weights import accounts
from medjax.weights.families import nnunet, stunet, swin_unetr, vit
from tests.models import test_swin_unetr as monai
from tests.support.fast import FAST

RNG = np.random.default_rng(0)


def _converted(family, tensors, model=None):
    found = family.architecture(tensors)
    found = accounts.Architecture(
        found.model,
        found.channels_out,
        found.channels_in,
        {**found.arguments, **(model or {})},
        found.sides,
    )
    tree, account = accounts.convert(
        tensors,
        family.table(tensors),
        accounts.abstract(found),
        ignored=family.IGNORED,
        absent=family.ABSENT,
    )
    return found, tree, account


def _logits(found, tree, image):
    network = importlib.import_module(f"medjax.models.{found.model}").make(
        found.channels_out, **found.arguments
    )
    out = jax.jit(lambda p, x: network.apply({"params": p}, x), compiler_options=FAST)(
        jax.tree.map(jnp.asarray, tree), jnp.asarray(image)
    )
    return [out["logits"], *out.get("deep", [])]


def _compare(theirs, ours, image):
    """Largest difference of all outputs, relative to logits of unit scale."""
    import torch

    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(np.moveaxis(image, -1, 1).copy()))
    worst = 0.0
    for a, b in zip(ours, expected, strict=True):
        b = np.moveaxis(b.numpy(), 1, -1)
        worst = max(worst, float(np.abs(np.asarray(a) - b).max()) / max(1.0, float(b.std())))
    return worst


def _random(network):
    """Weights of unit-scale outputs, norms and biases away from their initial values."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for value in network.parameters():
            fan = value[0].numel() if value.ndim > 1 else 1
            value.copy_(
                torch.randn_like(value) * ((2 / fan) ** 0.5 if value.ndim > 1 else 0.2)
                + (value.ndim == 1) * 0.4
            )
    return {name: value.detach().numpy() for name, value in network.state_dict().items()}


# ---- nnU-Net


def _v1_names(features, kernels, strides, classes=47):
    """Names and shapes of a Generic_UNet of nnU-Net v1, from its published key patterns."""
    shapes, last, i = {}, len(features) - 1, 1

    def layer(name, i, o, k):
        shapes.update({f"{name}.conv.weight": (o, i, *k), f"{name}.conv.bias": (o,)})
        shapes.update({f"{name}.instnorm.weight": (o,), f"{name}.instnorm.bias": (o,)})

    for s, (f, k) in enumerate(zip(features, kernels, strict=True)):
        for c in range(2):
            layer(
                f"conv_blocks_context.{s}.{c}.blocks.0"
                if s == last
                else f"conv_blocks_context.{s}.blocks.{c}",
                i,
                f,
                k,
            )
            i = f
    for u in range(last):
        level = last - 1 - u
        f = features[level]
        shapes[f"tu.{u}.weight"] = (features[level + 1], f, *strides[level + 1])
        layer(f"conv_blocks_localization.{u}.0.blocks.0", 2 * f, f, kernels[level])
        layer(f"conv_blocks_localization.{u}.1.blocks.0", f, f, kernels[level])
        shapes[f"seg_outputs.{u}.weight"] = (classes, f, 1, 1, 1)
    return shapes


def test_the_plain_network_of_version_1():
    features, strides = (30, 60, 120, 240, 320, 320), ((1, 1, 1),) + ((2, 2, 2),) * 4 + ((1, 2, 2),)
    shapes = _v1_names(features, ((3, 3, 3),) * 6, strides)
    tensors = {name: np.broadcast_to(np.float32(1), shape) for name, shape in shapes.items()}
    assert len(tensors) == 98
    found, tree, _ = _converted(nnunet, tensors)
    assert (
        found.model == "unet"
        and found.arguments["strides"] == strides
        and found.arguments["features"] == features
    )
    assert (
        not found.arguments["up_bias"]
        and not found.arguments["head_bias"]
        and found.channels_out == 47
    )
    assert (
        sum(int(np.prod(s)) for s in accounts.shapes_of(tree).values()) == 29_319_560
    )  # MultiTalent's U-Net


def test_the_residual_network_of_version_1():
    features, blocks = (30, 60, 120, 240, 320, 320), (1, 2, 3, 4, 4, 4)
    strides, kernels = ((1, 1, 1), (1, 2, 2)) + ((2, 2, 2),) * 4, ((1, 3, 3),) + ((3, 3, 3),) * 5
    shapes = {
        "encoder.initial_conv.weight": (30, 1, 3, 3, 3),
        "encoder.initial_norm.weight": (30,),
        "encoder.initial_norm.bias": (30,),
    }
    i = 30
    for s, (f, n, k) in enumerate(zip(features, blocks, kernels, strict=True)):
        for b in range(n):
            name = f"encoder.stages.{s}.convs.{b}."
            shapes |= {f"{name}conv1.weight": (f, i, *k), f"{name}conv2.weight": (f, f, *k)}
            shapes |= {f"{name}norm{j}.{w}": (f,) for j in "12" for w in ("weight", "bias")}
            if s and b == 0:
                shapes |= {f"{name}downsample_skip.0.weight": (f, i, 1, 1, 1)} | {
                    f"{name}downsample_skip.1.{w}": (f,) for w in ("weight", "bias")
                }
            i = f
    for u in range(5):
        level = 4 - u
        f, name = features[level], f"decoder.stages.{u}.convs.0."
        shapes[f"decoder.tus.{u}.weight"] = (features[level + 1], f, *strides[level + 1])
        for part in (name, f"{name}all.0." if u else name):
            shapes |= {
                f"{part}conv.weight": (f, 2 * f, *kernels[level]),
                f"{part}norm.weight": (f,),
                f"{part}norm.bias": (f,),
            }
        head = (
            "decoder.segmentation_output" if u == 4 else f"decoder.deep_supervision_outputs.{u}"
        )  # as older files name the finest
        shapes |= {f"{head}.weight": (47, f, 1, 1, 1), f"{head}.bias": (47,)}
    tensors = {name: np.broadcast_to(np.float32(1), shape) for name, shape in shapes.items()}
    found, tree, account = _converted(nnunet, tensors)
    assert sum(int(np.prod(s)) for s in accounts.shapes_of(tree).values()) == 69_335_475
    assert (
        len(account.matched) == 156
        and found.arguments["blocks"] == blocks
        and found.arguments["skip"] == "strided_conv"
    )


def test_other_networks_are_refused():
    for family in (nnunet, stunet, swin_unetr, vit):
        with pytest.raises(ModelError, match="another --family"):
            family.architecture({"features.0.weight": np.ones((4, 3, 3, 3))})


@pytest.mark.parity
@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_networks_of_version_2_give_the_same_logits(name):
    torch = pytest.importorskip("torch")
    architectures = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    features, strides, kernels = (
        (8, 12, 16),
        ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    )
    convs = ((1, 2, 3), (1, 1)) if name.startswith("Res") else (2, 2)
    theirs = getattr(architectures, name)(
        2,
        3,
        features,
        torch.nn.Conv3d,
        kernels,
        strides,
        convs[0],
        3,
        convs[1],
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    found, tree, account = _converted(nnunet, _random(theirs.train()))
    theirs.decoder.deep_supervision = True
    image = RNG.normal(size=(1, 8, 16, 16, 2)).astype(np.float32)
    assert _compare(theirs, _logits(found, tree, image), image) < 1e-4
    assert "second name" in " ".join(account.ignored) and not account.absent


# ---- STU-Net


@pytest.mark.parity
@pytest.mark.parametrize(
    "strides", [((2, 2, 2),) * 4 + ((1, 2, 2),), ((2, 2, 2),) * 3 + ((1, 2, 2), (1, 1, 1))]
)
def test_stunet_s_gives_the_same_five_outputs(strides):
    pytest.importorskip("torch")
    from benchmarks.peers.torch_networks import (
        Trunk,
    )  # written from the specification of STU-Net's files, with their names

    theirs = Trunk(105, (16, 32, 64, 128, 256, 256), strides, 1)
    tensors = _random(theirs)
    assert len(tensors) == 130
    found, tree, account = _converted(stunet, tensors, {"strides": strides})
    assert (
        sum(int(np.prod(s)) for s in accounts.shapes_of(tree).values()) == 14_596_941
        and len(account.matched) == 130
    )
    image = RNG.normal(size=(1, 32, 32, 64, 1)).astype(np.float32)
    outputs = _logits(found, tree, image)
    assert len(outputs) == 5
    assert _compare(theirs, outputs, image) < 1e-4


# ---- SwinUNETR


def _swin_tensors(feature_size=12, classes=14):
    network = monai.swin_unetr.make(classes, feature_size=feature_size)
    leaves = accounts.shapes_of(monai._shapes(network, (32, 32, 64)))
    tensors = {}
    for key in monai._monai_keys():
        path, layout = monai.place(key)
        tensors[key] = RNG.normal(size=monai.arranged_back(layout, leaves[path], 3)).astype(
            np.float32
        )
    return tensors


def test_monais_names_give_the_tree_of_the_tested_table():
    tensors = _swin_tensors()
    buffers = {
        k.replace("bias_table", "index"): np.zeros((343, 343))
        for k in tensors
        if k.endswith("bias_table")
    }
    found, tree, account = _converted(swin_unetr, tensors | buffers)
    assert (
        len(tensors | buffers) == 159
        and len(account.ignored["a buffer, made again from the window"]) == 8
    )
    assert (
        found.arguments["feature_size"] == 12
        and found.arguments["window"] == 7
        and found.arguments["heads"] == (3, 6, 12, 24)
    )
    assert (
        found.arguments["merging"] == "legacy" and found.arguments["weight_axes"] == "xyz"
    )  # published files
    expected = monai.convert(
        tensors, monai._shapes(monai.swin_unetr.make(14, feature_size=12), (32, 32, 64))
    )
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_the_self_supervised_encoder_alone():
    encoder = {name: value for name, value in _swin_tensors().items() if "swinViT" in name}
    tensors = {
        re.sub(r"linear(\d)", r"fc\1", name.replace("swinViT.", "module.")): value
        for name, value in encoder.items()
    }
    tensors |= {
        "module.rotation_head.weight": np.ones((4, 192)),
        "module.contrastive_head.bias": np.ones(512),
    }
    found, tree, account = _converted(swin_unetr, accounts.tensors_of({"state_dict": tensors}))
    assert list(tree) == ["swin"] and found.channels_out == 1
    assert len(account.ignored["heads of the self-supervised task"]) == 2
    assert all(
        not path.startswith("swin/")
        for path in account.absent["not in a file of the encoder alone; starts fresh"]
    )


# ---- ViT-B/16


def _vit_tensors(width=12, heads=3, layers=2):
    shapes = {}
    for i in range(layers):
        at = f"Transformer/encoderblock_{i}/"
        shapes |= {f"{at}LayerNorm_{n}/{w}": (width,) for n in (0, 2) for w in ("scale", "bias")}
        for name in ("query", "key", "value"):
            shapes |= {
                f"{at}MultiHeadDotProductAttention_1/{name}/kernel": (width, heads, width // heads)
            }
            shapes |= {f"{at}MultiHeadDotProductAttention_1/{name}/bias": (heads, width // heads)}
        shapes |= {f"{at}MultiHeadDotProductAttention_1/out/kernel": (heads, width // heads, width)}
        shapes |= {f"{at}MultiHeadDotProductAttention_1/out/bias": (width,)}
        shapes |= {
            f"{at}MlpBlock_3/Dense_0/kernel": (width, 4 * width),
            f"{at}MlpBlock_3/Dense_0/bias": (4 * width,),
        }
        shapes |= {
            f"{at}MlpBlock_3/Dense_1/kernel": (4 * width, width),
            f"{at}MlpBlock_3/Dense_1/bias": (width,),
        }
    shapes |= {f"Transformer/encoder_norm/{w}": (width,) for w in ("scale", "bias")}
    shapes |= {"Transformer/posembed_input/pos_embedding": (1, 197, width), "cls": (1, 1, width)}
    shapes |= {
        "embedding/kernel": (16, 16, 3, width),
        "embedding/bias": (width,),
        "head/kernel": (width, 9),
        "head/bias": (9,),
    }
    return {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_imagenets_layers_go_into_the_bottleneck():
    tensors = _vit_tensors()
    found, tree, account = _converted(vit, tensors)
    assert (
        found.arguments["vit_width"] == 12
        and found.arguments["vit_layers"] == 2
        and found.arguments["vit_mlp_ratio"] == 4
    )
    assert list(tree) == ["vit"] and sorted(tree["vit"]) == ["layer0", "layer1", "ln_f"]
    assert account.ignored["positions of a 14x14 image"] == (
        "Transformer/posembed_input/pos_embedding",
    )
    np.testing.assert_array_equal(
        tree["vit"]["layer1"]["q"]["kernel"],
        tensors["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel"].reshape(
            12, 12
        ),
    )


@pytest.mark.parity
def test_one_layer_of_the_transformer_equals_pytorchs():
    torch = pytest.importorskip("torch")
    from benchmarks.peers.torch_networks import VitLayer
    from medjax.models.parts.vit import Layer

    tree = _converted(vit, _vit_tensors())[1]["vit"]["layer0"]
    theirs, state = VitLayer(12, 3), {}
    for name, part in tree.items():
        state[f"{name}.weight"] = torch.from_numpy(
            np.ascontiguousarray(part["kernel"].T if "kernel" in part else part["scale"])
        )
        state[f"{name}.bias"] = torch.from_numpy(part["bias"])
    theirs.load_state_dict(state)
    x = RNG.normal(size=(2, 5, 12)).astype(np.float32)
    ours = Layer(3, 48).apply({"params": jax.tree.map(jnp.asarray, tree)}, jnp.asarray(x))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4 * max(1.0, expected.std()))
