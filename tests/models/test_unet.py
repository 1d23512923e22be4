"""The plain U-Net: exact parameter counts, outputs, remat, precision, and parity with PyTorch's
PlainConvUNet.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.models import unet

PAPER = {"patch": (96, 192, 192), "spacing_mm": (1.5, 1.0, 1.0)}
HIPPOCAMPUS = {"patch": (40, 56, 40), "spacing_mm": (1.0, 1.0, 1.0)}
TINY = {"patch": (8, 16, 8), "spacing_mm": (1.0, 1.0, 1.0), "base_features": 4}
DEEP = {
    "features": (4, 8, 12),
    "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    "kernels": ((3, 3, 3),) * 3,
}


def _params(net, patch, channels=1):
    return jax.eval_shape(
        lambda k: net.init(k, jnp.zeros((1, *patch, channels))), jax.random.key(0)
    )["params"]


def _count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("classes", "arguments", "expected"),
    [
        (47, PAPER | {"base_features": 30, "up_bias": False, "head_bias": False}, 29_319_560),
        (47, PAPER | {"base_features": 30}, 29_320_565),
        (47, PAPER, 30_822_219),
        (48, PAPER, 30_823_024),
        (3, HIPPOCAMPUS, 5_603_177),
    ],
)
def test_parameter_counts_are_nnunets(classes, arguments, expected):
    net = unet.make(classes, **arguments)
    params = _params(net, arguments["patch"])
    assert _count(params) == expected
    if expected == 29_319_560:
        assert _count({k: v for k, v in params.items() if k.startswith("head")}) == 36_190


@pytest.mark.slow
def test_outputs_are_float32_and_coarser_by_the_strides():
    net = unet.make(
        3,
        features=(4, 8, 12),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        dtype="bfloat16",
    )
    image = jnp.ones((2, 4, 8, 4, 2))
    params = net.init(jax.random.key(0), image)
    out = net.apply(params, image)
    assert out["logits"].shape == (2, 4, 8, 4, 3) and out["logits"].dtype == jnp.float32
    assert [d.shape for d in out["deep"]] == [(2, 4, 4, 2, 3)]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert sorted(params["params"]) == [
        "decoder_0",
        "decoder_1",
        "encoder_0",
        "encoder_1",
        "encoder_2",
        "head_0",
        "head_1",
        "up_0",
        "up_1",
    ]
    assert params["params"]["encoder_0"]["conv_0"]["conv"]["kernel"].shape == (1, 3, 3, 2, 4)


@pytest.mark.slow
def test_without_deep_supervision_only_the_finest_head_exists():
    image = jnp.ones((1, 8, 16, 8, 1))
    net = unet.make(3, **DEEP | {"deep_supervision": False})
    params = net.init(jax.random.key(0), image)
    assert net.apply(params, image)["deep"] == []
    assert [k for k in params["params"] if k.startswith("head")] == ["head_0"]


@pytest.mark.slow
def test_the_prior_is_the_heads_first_answer():
    image = jnp.zeros((1, 8, 16, 8, 1))  # constant images are normalised to the norms' biases, 0
    net = unet.make(3, **TINY, prior=-2.0)
    np.testing.assert_allclose(
        net.apply(net.init(jax.random.key(0), image), image)["logits"], -2.0, atol=1e-5
    )


@pytest.mark.slow
def test_two_axes():
    assert unet.make(2, patch=(512, 512), spacing_mm=(1.0, 1.0)).features == (
        32,
        64,
        128,
        256,
        512,
        512,
        512,
        512,
    )  # nnU-Net's 2D widths
    net = unet.make(2, patch=(16, 16), spacing_mm=(1.0, 1.0), base_features=4)
    image = jnp.ones((1, 16, 16, 1))
    assert net.apply(net.init(jax.random.key(0), image), image)["logits"].shape == (1, 16, 16, 2)


@pytest.mark.parametrize(("remat", "share"), [("convs", 0.85), ("units", 0.7), ("block", 0.5)])
@pytest.mark.slow
def test_remat_changes_memory_not_numbers(remat, share):
    image = jax.random.normal(jax.random.key(1), (1, 8, 16, 8, 1))
    plain, saving = unet.make(2, **TINY), unet.make(2, **TINY, remat=remat)
    params = plain.init(jax.random.key(0), image)

    def gradient(net):
        return jax.grad(lambda p: jnp.mean(net.apply(p, image)["logits"] ** 2))(params)

    def kept(net):
        saved = jax.eval_shape(
            lambda p: jax.vjp(lambda p: net.apply(p, image)["logits"], p)[1], params
        )
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(saved))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient(plain), gradient(saving)
    )
    assert kept(saving) < share * kept(plain)


@pytest.mark.slow
def test_no_dilated_input_in_the_forward_pass():
    """XLA runs a transposed convolution with kernel = stride up to 75 times slower than the product
    that replaces it.
    """
    net = unet.make(2, **TINY)
    image = jnp.ones((1, 8, 16, 8, 1))
    text = str(
        jax.make_jaxpr(lambda p: net.apply(p, image)["logits"])(net.init(jax.random.key(0), image))
    )
    assert "conv_general_dilated" in text
    assert "lhs_dilation=(2" not in text and "lhs_dilation=(1, 2" not in text


def test_arguments_that_describe_no_network_are_refused():
    with pytest.raises(ModelError, match="did you mean block"):
        unet.make(2, **TINY, remat="blok")
    with pytest.raises(ModelError, match="topology is open"):
        unet.make(2)
    net = unet.make(2, **TINY)
    with pytest.raises(ModelError, match="multiples of"):
        net.init(jax.random.key(0), jnp.ones((1, 7, 16, 8, 1)))


@pytest.mark.parity
@pytest.mark.parametrize("axes", [2, 3])
def test_logits_and_gradients_equal_plainconvunets(axes):
    torch = pytest.importorskip("torch")
    architectures = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    patch, features = (16, 24, 16)[:axes], (4, 8, 16)
    ours = unet.make(
        3,
        features=features,
        strides=((1,) * axes, (2,) * axes, (2,) * axes),
        kernels=((3,) * axes,) * 3,
    )
    conv, norm = (
        (torch.nn.Conv3d, torch.nn.InstanceNorm3d)
        if axes == 3
        else (torch.nn.Conv2d, torch.nn.InstanceNorm2d)
    )
    torch.manual_seed(0)
    theirs = architectures.PlainConvUNet(
        1,
        3,
        features,
        conv,
        3,
        (1, 2, 2),
        2,
        3,
        2,
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(
                torch.randn_like(value) * (0.2 if value.ndim > 1 else 0.5) + (value.ndim == 1) * 0.5
            )
    image = np.random.default_rng(0).normal(size=(2, *patch, 1)).astype(np.float32)
    params = _from_torch(
        {
            k: v
            for k, v in theirs.named_parameters()
            if "decoder.encoder" not in k and "all_modules" not in k
        },
        axes,
    )
    assert jax.tree.structure(params) == jax.tree.structure(_params(ours, patch))
    expected = theirs(torch.from_numpy(np.moveaxis(image, -1, 1)))
    found = ours.apply({"params": params}, jnp.asarray(image))
    for a, b in zip([found["logits"], *found["deep"]], expected, strict=True):
        reference = np.moveaxis(b.detach().numpy(), 1, -1)
        np.testing.assert_allclose(a, reference, atol=1e-4 * max(1.0, reference.std()))
    sum((e**2).mean() for e in expected).backward()
    gradients = {
        k: v.grad
        for k, v in theirs.named_parameters()
        if "decoder.encoder" not in k and "all_modules" not in k
    }
    wanted = _from_torch(gradients, axes)

    def loss(p):
        out = ours.apply({"params": p}, jnp.asarray(image))
        return sum((o**2).mean() for o in [out["logits"], *out["deep"]])

    ours_gradients = jax.grad(loss)(params)
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * scale), ours_gradients, wanted
    )


def _from_torch(tensors, axes):
    """PlainConvUNet's names and layouts -> our tree."""
    tree = {}
    stages = 1 + max(int(k.split(".")[2]) for k in tensors if k.startswith("encoder.stages"))
    for name, tensor in tensors.items():
        parts, value = name.split("."), tensor.detach().numpy()
        leaf = {"weight": "kernel", "bias": "bias"}[parts[-1]]
        if parts[1] == "transpconvs":
            path, value = (
                (f"up_{stages - 2 - int(parts[2])}", leaf),
                np.moveaxis(value, (0, 1), (-2, -1)) if value.ndim > 1 else value,
            )
        elif parts[1] == "seg_layers":
            path = (f"head_{stages - 2 - int(parts[2])}", leaf)
            value = value.reshape(value.shape[:2]).T if value.ndim > 1 else value
        else:
            side, stage, conv, kind = parts[0], int(parts[2]), parts[-3], parts[-2]
            stage = stage if side == "encoder" else stages - 2 - stage
            if kind == "norm":
                leaf = {"weight": "scale", "bias": "bias"}[parts[-1]]
            path = (f"{side}_{stage}", f"conv_{conv}", kind, leaf)
            value = np.moveaxis(value, (0, 1), (-1, -2)) if value.ndim > 1 else value
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = jnp.asarray(value)
    return tree
