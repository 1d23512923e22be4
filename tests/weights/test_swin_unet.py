"""Tables for Swin in two axes: every tensor of Swin-Unet, M4oE, Swin-MAE and Swin-T accounted for,
experts and heads where they belong.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.models import masked_swin, swin_unet
from medjax.weights import accounts
from medjax.weights.families import swin_unet as port

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

from benchmarks.peers.torch_swin_unet import SwinUnet  # noqa: E402
from tests.models.test_swin_unet import from_torch, timm_or_skip  # noqa: E402
from tests.support.networks import fresh  # noqa: E402

SMALL = dict(side=64, width=24, heads=(1, 2, 4, 4), window=2)
OURS = dict(width=24, heads=(1, 2, 4, 4), window=2)


def _peer(*heads, seed=0, **more):
    torch.manual_seed(seed)
    peer = SwinUnet(heads, **SMALL, **more).eval()
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return peer


def _arrays(state):
    return {name: value.numpy() for name, value in state.items()}


def _imported(tensors):
    found = port.architecture(tensors)
    rules = {"ignored": port.ignored(tensors), "absent": port.absent(tensors)}
    return found, *accounts.convert(
        port.gathered(tensors), port.table(tensors), accounts.abstract(found), **rules
    )


KINDS = [
    ("dense", "dense", {"experts_in": "none"}),
    ("gate", "gate", {"experts_in": "both", "routing": "gate"}),
    ("channel_gate", "channel_gate", {"experts_in": "both", "routing": "channel_gate"}),
    ("hard", "dense", {"experts_in": "encoder", "routing": "hard"}),
    ("dense", "gate", {"experts_in": "decoder", "routing": "gate"}),
]


@pytest.mark.parametrize(
    ("encoder", "decoder", "expected"), KINDS, ids=lambda v: v if isinstance(v, str) else ""
)
@pytest.mark.parametrize("prefix", ["", "swin_unet."])
def test_every_tensor_finds_its_place(encoder, decoder, expected, prefix):
    tensors = {
        prefix + k: v
        for k, v in _arrays(
            _peer(3, 4, encoder=encoder, decoder=decoder, experts=2).state_dict()
        ).items()
    }
    found, params, account = _imported(tensors)
    assert found.arguments.items() >= (expected | OURS).items() and found.arguments[
        "corpus_channels"
    ] == ((0, 1), (2, 3, 4))
    wanted = from_torch(
        {k.removeprefix(prefix): torch.from_numpy(np.asarray(v)) for k, v in tensors.items()}
    )
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    assert (
        not account.absent and sum(map(len, account.ignored.values())) == 20
    )  # 14 indices, 6 masks


def test_key_counts_are_those_of_the_published_files():
    """M4oE with 1, 2, 3 experts: 266, 323, 380 entries, 20 of them buffers; Swin-Unet 238. Ours:
    246 and 218 leaves for any number.
    """
    for experts, entries in ((1, 266), (2, 323), (3, 380)):
        state = SwinUnet(
            (2,) * experts, **SMALL, encoder="gate", decoder="gate", experts=experts
        ).state_dict()
        assert len(state) == entries
        leaves = jax.tree.leaves(accounts.abstract(port.architecture(_arrays(state))))
        assert len(leaves) == 246
    assert len(SwinUnet((2,), **SMALL).state_dict()) == 238


def _masked_autoencoder(seed=0):
    """Swin-MAE's names and shapes, from a Swin-Unet's blocks: 224 entries, its masks are not
    stored.
    """
    peer = _peer(2, seed=seed, keep_shift=True, epsilon=1e-6)
    state = {}
    for key, value in peer.state_dict().items():
        if key.startswith(("norm.", "concat", "up.", "outputs")) or key.endswith("attn_mask"):
            continue
        if key.startswith("layers_up."):
            number, rest = key.split(".", 2)[1:]
            key = (
                f"layers_up.{int(number) - 1}.{rest}"
                if number != "0"
                else f"first_patch_expanding.{rest}"
            )
        state[key] = value
    generator = torch.Generator().manual_seed(seed)
    state["mask_token"], state["pos_embed"] = (
        torch.randn(1, 1, 1, 24, generator=generator),
        torch.zeros(1, 256, 24),
    )
    state["decoder_pred.weight"], state["decoder_pred.bias"] = (
        torch.randn(48, 24, generator=generator),
        torch.randn(48, generator=generator),
    )
    return peer, state


def test_swin_maes_encoder_becomes_swin_unets_and_its_decoder_is_named_as_thrown_away():
    peer, state = _masked_autoencoder()
    assert len(state) == 224
    found, params, account = _imported(_arrays(state))
    assert (found.arguments["keep_shift"], found.arguments["epsilon"]) == (True, 1e-6)
    wanted = from_torch(peer.state_dict())
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], wanted["encoder"])
    assert set(params) == {"encoder"} and len(account.absent) == 2
    shared = sum(v.size for v in jax.tree.leaves(params))
    mlp = sum(
        v.size
        for path, v in jax.tree_util.tree_leaves_with_path(params)
        if "mlp" in jax.tree_util.keystr(path)
    )
    assert shared == sum(v.size for v in jax.tree.leaves(wanted["encoder"])) and 0 < mlp < shared


def test_the_masked_image_network_computes_swin_maes_function():
    peer, state = _masked_autoencoder()
    net = masked_swin.make(experts_in="none", keep_shift=True, epsilon=1e-6, **OURS)
    target = jax.eval_shape(fresh(net), jax.random.key(0), jnp.zeros((1, 64, 64, 1)))["params"]
    params, _ = accounts.convert(
        port.gathered(_arrays(state)), port.masked_table(), target, ignored=port.IGNORED
    )
    rng = np.random.default_rng(0)
    image, masked = (
        rng.normal(size=(2, 64, 64, 1)).astype(np.float32),
        rng.random((2, 16, 16)) < 0.75,
    )
    found = jax.jit(
        lambda p: net.apply({"params": p}, jnp.asarray(image), {"masked": jnp.asarray(masked)})[
            "pixels"
        ]
    )(params)
    with torch.no_grad():
        x = peer.patch_embed(torch.from_numpy(image).permute(0, 3, 1, 2).expand(-1, 3, -1, -1))
        x = torch.where(torch.from_numpy(masked)[..., None], state["mask_token"][0, 0, 0], x)
        for stage in peer.layers:
            x = stage(x, None)
            x = stage.downsample(x) if hasattr(stage, "downsample") else x
        x = peer.layers_up[0](x)
        for stage in peer.layers_up[1:]:
            x = stage(x, None)
            x = stage.upsample(x) if hasattr(stage, "upsample") else x
        wanted = peer.norm_up(x) @ state["decoder_pred.weight"].T + state["decoder_pred.bias"]
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-4)


def test_swin_t_of_microsoft_and_of_timm_give_the_same_encoder():
    timm = timm_or_skip()
    torch.manual_seed(0)
    peer = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False)
    tensors = _arrays(peer.state_dict())
    found, params, _ = _imported(tensors)
    assert (
        found.arguments["depths"] == (2, 2, 6, 2)
        and sum(p.numel() for p in peer.parameters()) == 28_288_354
    )
    microsoft = {}
    for name, value in tensors.items():
        if name.startswith("layers.") and ".downsample." in name:
            name = f"layers.{int(name.split('.')[1]) - 1}.{name.split('.', 2)[2]}"
        microsoft[name.replace("head.fc", "head")] = value
    assert port.kind_of(tensors) == "timm" and port.kind_of(microsoft) == "swin"
    jax.tree.map(np.testing.assert_array_equal, _imported(microsoft)[1], params)
    assert set(params) == {"encoder", "enc_norm"}


def test_what_does_not_fit_is_an_error():
    tensors = _arrays(
        _peer(3, encoder="channel_gate", decoder="channel_gate", experts=2).state_dict()
    )
    with pytest.raises(ModelError, match="missing"):
        _imported(
            {k: v for k, v in tensors.items() if k != "layers.0.blocks.0.mlp.experts.0.0.weight"}
        )
    with pytest.raises(ModelError, match="not known"):
        _imported(tensors | {"layers.0.blocks.0.extra": np.zeros(3)})
    with pytest.raises(ModelError, match="no tensor in the file"):
        _imported({k: v for k, v in tensors.items() if k != "norm.weight"})
    with pytest.raises(ModelError, match="no Swin"):
        port.kind_of({"conv.weight": np.zeros(3)})
    net = swin_unet.make(
        2, corpus_channels=((0, 1),), experts=2, experts_in="both", routing="gate", **OURS
    )
    target = jax.eval_shape(fresh(net), jax.random.key(0), jnp.zeros((1, 64, 64, 1)))["params"]
    with pytest.raises(
        ModelError, match="gate/kernel"
    ):  # a channel gate never becomes a gate over experts
        accounts.convert(port.gathered(tensors), port.table(tensors), target, ignored=port.IGNORED)
