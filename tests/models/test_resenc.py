"""The residual-encoder U-Net: exact parameter counts, both shortcuts, remat, precision, and parity
with PyTorch's ResidualEncoderUNet.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.models import resenc
from medjax.models.parts.blocks import ResidualBlock
from tests.support.fast import FAST

PATCH = (96, 192, 192)
PLAN = {"patch": PATCH, "spacing_mm": (1.5, 1.0, 1.0)}
V2 = {
    "preset": "multitalent",
    "stem_kernel": (1, 3, 3),
    "skip": "avgpool",
}  # the paper's plan in version 2's network
TINY = {
    "features": (4, 6),
    "strides": ((1, 1, 1), (1, 2, 2)),
    "kernels": ((1, 3, 3), (3, 3, 3)),
    "blocks": (1, 2),
}


def _params(net, patch, channels=1):
    return jax.eval_shape(
        lambda k: net.init(k, jnp.zeros((1, *patch, channels))), jax.random.key(0)
    )["params"]


def _random(net, image):
    """Parameters of random numbers without compiling the initialisers."""
    rng = np.random.default_rng(0)
    abstract = jax.eval_shape(net.init, jax.random.key(0), image)["params"]
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape) + 0.2, jnp.float32), abstract
    )


def _count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("classes", "arguments", "patch", "expected"),
    [
        (47, {"preset": "multitalent"}, PATCH, 69_335_475),
        (47, V2, PATCH, 69_231_895),
        (47, V2 | {"conv_bias": True, "up_bias": True}, PATCH, 69_241_525),
        (47, PLAN, PATCH, 101_976_395),
        (48, PLAN, PATCH, 101_977_200),
        (
            48,
            {"patch": (128, 320, 256), "spacing_mm": (1.5, 1.0, 1.0)},
            (128, 320, 256),
            141_531_808,
        ),
        (3, {"patch": (40, 56, 40), "spacing_mm": (1.0, 1.0, 1.0)}, (40, 56, 40), 25_895_593),
    ],
)
def test_parameter_counts_are_nnunets(classes, arguments, patch, expected):
    params = _params(resenc.make(classes, **arguments), patch)
    assert _count(params) == expected
    if arguments == {"preset": "multitalent"}:
        assert _count({k: v for k, v in params.items() if k.startswith("head")}) == 36_425


def test_the_papers_topology_and_its_deep_outputs():
    net = resenc.make(
        47, preset="multitalent", **PLAN
    )  # the plan's topology wins over the rule that patch and spacing offer
    shapes = jax.eval_shape(
        lambda k: net.init_with_output(k, jnp.zeros((1, *PATCH, 1)))[0], jax.random.key(0)
    )
    assert [d.shape[1:4] for d in shapes["deep"]] == [
        (96, 96, 96),
        (48, 48, 48),
        (24, 24, 24),
        (12, 12, 12),
    ]
    assert shapes["logits"].shape == (1, *PATCH, 47)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [{}, {"skip": "strided_conv", "conv_bias": False, "stem_kernel": (3, 3, 3)}]
)
def test_every_parameter_that_matters_gets_a_gradient(arguments):
    net = resenc.make(2, **TINY | arguments)
    image = jax.random.normal(jax.random.key(1), (1, 2, 4, 4, 2))
    params = _random(net, image)
    gradients = jax.jit(
        jax.grad(lambda p: jnp.mean(net.apply({"params": p}, image)["logits"] ** 2)),
        compiler_options=FAST,
    )(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        taken_back = name.endswith(
            ("['conv']['bias']", "['conv1']['bias']", "['conv2']['bias']")
        )  # by the norm behind it
        assert bool(jnp.any(leaf != 0)) != taken_back, name


def test_residual_blocks_start_as_identities():
    block = ResidualBlock(4, (3, 3, 3), (1, 1, 1))
    params = block.init(jax.random.key(0), jnp.ones((1, 2, 2, 2, 4)))["params"]
    assert (
        float(jnp.abs(params["norm2"]["scale"]).max()) == 0
        and float(params["norm1"]["scale"].min()) == 1
    )


@pytest.mark.parametrize(("remat", "share"), [("convs", 0.75), ("units", 0.5), ("block", 0.4)])
@pytest.mark.slow
def test_remat_changes_memory_not_numbers(remat, share):
    image = jax.random.normal(jax.random.key(1), (1, 2, 4, 4, 1))
    plain, saving = resenc.make(2, **TINY), resenc.make(2, **TINY, remat=remat)
    params = {"params": _random(plain, image)}

    def gradient(net):
        return jax.jit(
            jax.grad(lambda p: jnp.mean(net.apply(p, image)["logits"] ** 2)), compiler_options=FAST
        )(params)

    def kept(net):
        saved = jax.eval_shape(
            lambda p: jax.vjp(lambda p: net.apply(p, image)["logits"], p)[1], params
        )
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(saved)) - _count(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(a).max())),
        gradient(plain),
        gradient(saving),
    )
    assert kept(saving) < share * kept(plain)


def test_bfloat16_and_two_axes():
    net = resenc.make(3, patch=(16, 32), spacing_mm=(1.0, 1.0), base_features=4, dtype="bfloat16")
    image = jnp.ones((2, 16, 32, 1))
    out = jax.eval_shape(net.apply, {"params": _random(net, image)}, image)
    assert out["logits"].shape == (2, 16, 32, 3) and out["logits"].dtype == jnp.float32


def test_arguments_that_describe_no_network_are_refused():
    with pytest.raises(ModelError, match="did you mean multitalent"):
        resenc.make(2, preset="multitalnt")
    with pytest.raises(ModelError, match="topology is open"):
        resenc.make(2)
    with pytest.raises(ModelError, match="did you mean avgpool"):
        resenc.make(2, **TINY, skip="avgpol")
    with pytest.raises(ModelError, match="multiples of"):
        resenc.make(2, **TINY).init(jax.random.key(0), jnp.ones((1, 2, 3, 4, 1)))
