"""Swin-Unet and M4oE: the counts of the published networks, PyTorch's function block by block, and
what the gates and heads promise.
"""

import functools
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.models import macs, swin_unet
from medjax.models.parts import window as geometry
from medjax.models.parts.attention import drop_path_rates
from medjax.models.parts.patch import (
    PatchExpanding,
    PatchMerging,
    depth_to_space,
    merge,
    merging_order,
)
from tests.support.networks import fresh

M4OE = (
    tuple(range(13)),
    (13, 14),
    tuple(range(15)),
)  # FLARE22, ATLAS23, AMOS22: 14, 3 and 16 classes with background
HEAD = 50_176 * 96  # multiply-accumulates per class of a head
SMALL = dict(width=24, heads=(1, 2, 4, 4), window=2, drop_path=0.2)  # side 64: grids 16, 8, 4, 2


def shapes(net, side=224):
    return jax.eval_shape(
        lambda key: fresh(net)(key, jnp.zeros((1, side, side, 1))), jax.random.key(0)
    )["params"]


def size(net, side=224):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes(net, side)))


def measured(net):
    """(parameters, multiply-accumulates of one 224 x 224 image with a 14-class head, leaves), all
    from one trace of `init`.
    """
    work, made = macs.macs_and_shapes(
        fresh(net), jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 1), jnp.float32)
    )
    leaves = jax.tree.leaves(made)
    return (
        sum(int(np.prod(leaf.shape)) for leaf in leaves),
        work - (net.classes - 13) * HEAD,
        len(leaves),
    )


# encoder and decoder experts, routing, parameters (heads 14, 3, 16), MACs with a 14-class head
TABLE_4 = [
    ("none", "gate", 27_171_204, 6_133_865_472),
    ("encoder", "gate", 52_276_188, 9_836_628_480),
    ("encoder", "hard", 52_267_524, 6_133_865_472),
    ("decoder", "gate", 33_381_846, 8_911_558_656),
    ("decoder", "hard", 33_377_796, 6_133_865_472),
    ("both", "hard", 58_474_116, 6_133_865_472),
    ("both", "gate", 58_486_830, 12_614_321_664),
    ("encoder", "channel_gate", 53_837_124, 10_064_452_608),
    ("decoder", "channel_gate", 33_766_212, 9_081_805_824),
    ("both", "channel_gate", 60_432_132, 13_012_392_960),
]


@pytest.mark.parametrize(
    ("place", "routing", "parameters", "products"), TABLE_4, ids=lambda v: str(v)
)
def test_every_row_of_table_4_has_its_parameters_and_products(place, routing, parameters, products):
    net = swin_unet.make(
        15, corpus_channels=M4OE, modalities=3, experts_in=place, routing=routing, dispatch="gather"
    )
    found = measured(net)
    assert found[:2] == (parameters, products)
    if (place, routing) in (("none", "gate"), ("both", "gate")):
        assert found[2] == (218 if place == "none" else 246)


@pytest.mark.parametrize(
    ("experts", "channels", "parameters"),
    [
        (1, M4OE[:1], 27_173_618),
        (2, M4OE[:2], 42_829_600),
        (4, (*M4OE, M4OE[2]), 74_144_060),
        (2, M4OE, 42_831_136),
    ],
)
def test_the_gated_network_grows_by_exactly_an_expert_and_a_head(experts, channels, parameters):
    net = swin_unet.make(15, corpus_channels=channels, experts=experts, experts_in="both")
    found = measured(net)
    assert found[0] == parameters
    if channels is M4OE:
        assert found[1] == 9_375_184_896  # the run without AMOS MRI


@pytest.mark.slow
def test_other_published_sizes():
    assert measured(swin_unet.make(8, corpus_channels=(tuple(range(8)),)))[0] == 27_168_900
    swin = functools.partial(swin_unet.make, 13, corpus_channels=M4OE[:1])
    assert measured(swin())[:2] == (27_169_380, 6_133_865_472)
    deep = dict(depths=(2, 2, 6, 2))
    assert measured(swin(**deep))[:2] == (41_381_316, 8_967_404_544)
    released = dict(experts_in="both", routing="channel_gate")
    assert measured(swin_unet.make(15, corpus_channels=M4OE, modalities=3, **deep, **released))[
        :2
    ] == (94_731_876, 19_776_519_168)
    heads_of = {
        1: ((0, 13),),
        2: ((0, 13), (13, 15)),
        4: ((0, 13), (0, 15), (13, 15), (0, 15)),
    }  # E = number of heads, as released
    sizes = {
        1: (29_127_396, 6_538_484_736),
        2: (44_779_140, 9_775_438_848),
        4: (76_085_124, 16_249_347_072),
    }
    for experts, expected in sizes.items():
        channels = tuple(tuple(range(*ends)) for ends in heads_of[experts])
        assert (
            measured(swin_unet.make(15, corpus_channels=channels, experts=experts, **released))[:2]
            == expected
        )


def test_window_tables_hold_the_published_numbers():
    index = geometry.relative_index((7, 7))
    assert (
        index[0, :4].tolist() == [84, 83, 82, 81]
        and index[0, 7] == 71
        and index[48, 0] == 168
        and index[0, 48] == 0
    )
    assert (
        (np.diag(index) == 84).all()
        and index.min() == 0
        and index.max() == 168
        and index.sum() == 201_684
    )
    for grid, entries, blocked in ((56, 18_240, 15), (28, 8_832, 7), (14, 4_128, 3)):
        mask = np.asarray(geometry.shift_mask(geometry.regions((grid, grid), (7, 7), (3, 3))))
        assert mask.shape == ((grid // 7) ** 2, 49, 49) and set(np.unique(mask)) == {0, -100}
        assert (
            (mask < 0).sum() == entries
            and (mask[-1] < 0).sum() == 1_776
            and (mask.min((1, 2)) < 0).sum() == blocked
        )
    shifts = [[geometry.fit((g, g), (7, 7), (s, s))[1][0] for s in (0, 3)] for g in (56, 28, 14, 7)]
    assert shifts == [[0, 3], [0, 3], [0, 3], [0, 0]]
    assert geometry.fit((7, 7), (7, 7), (3, 3), keep_shift=True)[1] == (3, 3)  # Swin-MAE
    rates = np.round(np.concatenate(drop_path_rates(0.2, (2, 2, 2, 2))), 4)
    assert rates.tolist() == [0, 0.0286, 0.0571, 0.0857, 0.1143, 0.1429, 0.1714, 0.2]
    net = swin_unet.make(1, corpus_channels=((0,),))
    assert [np.round(stage.args[2], 4).tolist() for stage in net.up] == [
        [0.1143, 0.1429],
        [0.0571, 0.0857],
        [0, 0.0286],
    ]


def test_merging_takes_rows_first_and_expanding_lays_them_out_again():
    ramp = jnp.arange(16.0).reshape(1, 4, 4, 1)
    assert merge(ramp, merging_order("fixed", 2))[0, 0, 0].tolist() == [0, 4, 1, 5]
    assert depth_to_space(jnp.arange(4.0).reshape(1, 1, 1, 4), (2, 2))[0, ..., 0].tolist() == [
        [0, 1],
        [2, 3],
    ]
    np.testing.assert_array_equal(
        depth_to_space(jnp.arange(16.0).reshape(1, 1, 1, 16), (4, 4))[0, ..., 0],
        np.arange(16).reshape(4, 4),
    )
    x = jnp.zeros((1, 4, 4, 6))
    merged = PatchMerging().init(jax.random.key(0), x)["params"]
    expanded = PatchExpanding(3, (2, 2)).init(jax.random.key(0), x)["params"]
    assert merged["reduction"]["kernel"].shape == (24, 12) and expanded["expand"][
        "kernel"
    ].shape == (6, 12)
    assert "bias" not in merged["reduction"] and "bias" not in expanded["expand"]


TWO = dict(depths=(2, 2), heads=(1, 2), width=16, window=4)  # side 32: grids 8, 4


@pytest.mark.slow
@pytest.mark.parametrize("routing", ["gate", "hard"])
def test_what_a_network_offers_and_what_it_depends_on(routing):
    net = swin_unet.make(
        4, corpus_channels=((0, 1), (2, 3)), modalities=2, experts_in="both", routing=routing, **TWO
    )
    image, corpus = jax.random.normal(jax.random.key(0), (2, 32, 32, 1)), jnp.array([0, 1])
    variables = jax.jit(fresh(net))(jax.random.key(1), image)
    run = jax.jit(
        lambda modality, order: net.apply(
            variables, image[order], {"corpus": corpus[order], "modality": modality}
        )
    )
    out = run(jnp.array([0, 1]), jnp.array([0, 1]))
    assert out["logits"].shape == (2, 32, 32, 4) and out["logits"].dtype == jnp.float32
    assert (
        np.isneginf(out["logits"][0, ..., 2:]).all()
        and np.isfinite(out["logits"][0, ..., :2]).all()
    )
    assert [out["features"][f"stage{s}"].shape for s in range(2)] == [(2, 4, 4, 32), (2, 4, 4, 32)]
    turned = run(jnp.array([1, 0]), jnp.array([1, 0]))["logits"]
    np.testing.assert_allclose(turned[::-1], out["logits"], atol=2e-6)
    other = run(jnp.array([1, 0]), jnp.array([0, 1]))["logits"]
    same = np.allclose(
        np.where(np.isfinite(other), other, 0),
        np.where(np.isfinite(out["logits"]), out["logits"], 0),
        atol=1e-7,
    )
    assert same == (routing == "gate")  # the gate never looks at the modality, hard routing does
    if routing == "gate":
        gates = out["gates"]
        assert (
            len(gates) == 6
            and gates["encoder/stage0/block1"].shape == (2, 8, 8, 2)
            and gates["decoder/up1/block0"].shape[1] == 8
        )
        np.testing.assert_allclose(
            np.concatenate([np.asarray(g).sum(-1).ravel() for g in gates.values()]), 1, atol=1e-6
        )
    else:
        assert "gates" not in out


@pytest.mark.slow
def test_training_drops_paths_remat_changes_nothing_and_no_gradient_is_nan():
    options = dict(corpus_channels=((0,), (1,)), modalities=2, experts_in="both", **TWO)
    image, context = (
        jax.random.normal(jax.random.key(0), (2, 32, 32, 1)),
        {"corpus": jnp.array([0, 1]), "modality": jnp.array([0, 1])},
    )
    values = {}
    for remat in ("none", "block"):
        net = swin_unet.make(2, remat=remat, drop_path=0.5, **options)
        params = jax.jit(fresh(net))(jax.random.key(1), image)["params"]

        def loss(p, key, net=net):
            y = net.apply({"params": p}, image, context, True, rngs={"dropout": key})["logits"]
            return jnp.where(jnp.isfinite(y), y, 0).sum()

        values[remat] = jax.jit(jax.value_and_grad(loss))(params, jax.random.key(2))
    other = jax.jit(loss)(params, jax.random.key(3))
    assert float(values["none"][0]) != float(other)
    for a, b in zip(*(jax.tree.leaves(v) for v in values.values()), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(experts_in="middle"), "experts_in"),
        (dict(routing="soft"), "routing"),
        (dict(heads=(3, 5, 12, 24)), "heads"),
        (dict(experts_in="both", routing="hard", modalities=3, experts=2), "no expert"),
        (dict(head="corpus_softmax"), "corpus_channels"),
    ],
)
def test_impossible_networks_are_refused(given, message):
    channels = None if message == "corpus_channels" else ((0,),)
    with pytest.raises(ModelError, match=message):
        swin_unet.make(1, corpus_channels=channels, **given)


def test_a_new_modality_adds_exactly_one_expert_its_gate_columns_and_a_head():
    """15,651,456 + 4,238 + 96 n (spec 6.2); with experts on one side only 12,552,584 and 3,106,182
    for n = 16.
    """
    classes = (
        8 * 96**2 + 5 * 96,
        8 * 192**2 + 5 * 192,
        8 * 384**2 + 5 * 384,
        8 * 768**2 + 5 * 768,
    )  # of one expert per block
    assert classes == (74_208, 295_872, 1_181_568, 4_722_432)
    assert 2 * sum(classes) + 2 * sum(classes[:3]) == 15_651_456
    by_place = {place: parameters for place, routing, parameters, _ in TABLE_4 if routing == "gate"}
    assert 58_486_830 - 42_829_600 == 15_657_230 and by_place["both"] == 58_486_830
    with_two = {
        place: size(swin_unet.make(15, corpus_channels=M4OE, experts=2, experts_in=place))
        for place in ("encoder", "decoder")
    }
    assert by_place["encoder"] - with_two["encoder"] + 96 * 16 == 12_552_584
    assert by_place["decoder"] - with_two["decoder"] + 96 * 16 == 3_106_182


def test_a_patch_that_windows_cannot_fill_is_refused_with_one_that_fits():
    with pytest.raises(ModelError, match="224"):
        shapes(swin_unet.make(1, corpus_channels=((0,),)), 208)


# --------------------------------------------------------------------------------
# parity


def from_torch(state, stages=4, experts=True):
    """The PyTorch names of the public checkpoints -> our parameters (spec of the layout:
    layers_up.0 is a bare expand, k >= 1 stages).
    """
    last, out = stages - 1, {}
    outside = {
        "patch_embed.proj": "encoder/patch_embed",
        "patch_embed.norm": "encoder/patch_norm",
        "norm": "enc_norm",
        "norm_up": "dec_norm",
        "up": "final",
        "layers_up.0": "expand0",
    }
    stacked: dict[str, dict[int, np.ndarray]] = {}
    for key, value in state.items():
        value = value.detach().cpu().numpy()
        if key.endswith(("relative_position_index", "attn_mask")):
            continue
        path, leaf = key.rsplit(".", 1)
        path = re.sub(r"^layers\.(\d)\.blocks\.(\d)", r"encoder/stage\1/block\2", path)
        path = re.sub(r"^layers\.(\d)\.downsample", r"encoder/merge\1", path)
        path = re.sub(r"^layers_up\.(\d)\.blocks\.(\d)", r"up\1/block\2", path)
        path = re.sub(r"^layers_up\.([1-9])\.upsample", r"expand\1", path)
        path = re.sub(r"^concat_back_dim\.", "skip", path)
        path = re.sub(r"^outputs\.(\d)", r"head#\1", path)
        for old, new in outside.items():
            path = new + path[len(old) :] if path == old or path.startswith(old + ".") else path
        path = path.replace("gating_network", "gate").replace(".", "/")
        if match := re.fullmatch(r"(.*)/experts/(\d+)/([02])", path):
            block, expert, layer = match.groups()
            letter = "w" if leaf == "weight" else "b"
            stacked.setdefault(f"{block}/{letter}{1 + int(layer) // 2}", {})[int(expert)] = value.T
        elif path.startswith("head#"):
            stacked.setdefault("head/kernel", {})[int(path[5:])] = value[:, :, 0, 0].T
        elif leaf == "relative_position_bias_table":
            out[f"{path}/rel_bias"] = value
        elif leaf == "bias":
            out[f"{path}/bias"] = value
        elif value.ndim == 4:
            out[f"{path}/kernel"] = value.transpose(2, 3, 1, 0)
        else:
            out[f"{path}/kernel" if value.ndim == 2 else f"{path}/scale"] = value.T
    for name, parts in stacked.items():
        parts = [parts[i] for i in sorted(parts)]
        out[name] = np.concatenate(parts, -1) if name == "head/kernel" else np.stack(parts)
    assert last > 0
    tree = {}
    for name, value in out.items():
        *outer, leaf = name.split("/")
        functools.reduce(lambda node, part: node.setdefault(part, {}), outer, tree)[leaf] = (
            jnp.asarray(value)
        )
    return tree


PEERS = [
    ("dense", "none", "gate"),
    ("gate", "both", "gate"),
    ("channel_gate", "both", "channel_gate"),
    ("hard", "encoder", "hard"),
]


@pytest.mark.parity
@pytest.mark.parametrize(("mlp", "place", "routing"), PEERS, ids=lambda v: v)
def test_the_network_computes_pytorchs_function_block_by_block(mlp, place, routing):
    torch = pytest.importorskip("torch")
    from benchmarks.peers.torch_swin_unet import SwinUnet

    torch.manual_seed(0)
    sides = {"encoder": mlp, "decoder": mlp if place == "both" else "dense"}
    peer = SwinUnet(
        (3, 4), side=64, width=24, heads=(1, 2, 4, 4), window=2, experts=2, **sides
    ).eval()
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(0.05 * torch.randn_like(p))  # biases, norms and tables as well
    options = SMALL | {"experts_in": place, "routing": routing, "modalities": 2}
    net = swin_unet.make(5, corpus_channels=((0, 1), (2, 3, 4)), **options)
    params = from_torch(peer.state_dict())
    image, modality, head = (
        np.random.default_rng(0).normal(size=(2, 64, 64, 1)).astype(np.float32),
        [1, 0],
        [0, 1],
    )
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, shapes(net, 64)
    )  # every key used, every leaf filled
    context = {"corpus": jnp.array(head), "modality": jnp.array(modality)}
    out, state = jax.jit(
        lambda p, x: net.apply(
            {"params": p},
            x,
            context,
            capture_intermediates=lambda m, _: "block" in (m.name or ""),
            mutable=["intermediates"],
        )
    )(params, image)
    found, blocks = {}, {}
    for name, block in peer.named_modules():
        if type(block).__name__ == "Block":
            block.register_forward_hook(
                lambda m, i, y, name=name: found.__setitem__(name, y.numpy())
            )
    with torch.no_grad():
        wanted = peer(torch.from_numpy(image).permute(0, 3, 1, 2), torch.tensor(modality), head)
    flat = jax.tree_util.tree_flatten_with_path(
        state["intermediates"], is_leaf=lambda v: isinstance(v, tuple)
    )[0]
    for keys, value in flat:
        name = "/".join(k.key for k in keys[:-1])
        name = re.sub(
            r"^encoder/stage(\d)/block(\d)",
            r"layers.\1.blocks.\2",
            re.sub(r"^up(\d)/block(\d)", r"layers_up.\1.blocks.\2", name),
        )
        blocks[name] = np.asarray(value[0][0])
    assert blocks.keys() == found.keys() and len(found) == 14
    for name, value in found.items():
        np.testing.assert_allclose(blocks[name], value, atol=1e-4, err_msg=name)
    for i, channels in enumerate(((0, 1), (2, 3, 4))):
        raw = wanted[i].numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(
            np.asarray(out["logits"])[i][..., list(channels)],
            raw[..., 1:] - raw[..., :1],
            atol=1e-4,
        )


def timm_or_skip():
    """timm; where torchvision was built for another PyTorch, without the registrations that stop
    its import (Swin needs none of them).
    """
    pytest.importorskip("torch")
    try:
        return pytest.importorskip("timm")
    except RuntimeError:
        sys.modules["torchvision._meta_registrations"] = types.ModuleType(
            "torchvision._meta_registrations"
        )
        return pytest.importorskip("timm")


@pytest.mark.parity
def test_the_encoder_is_timms_swin_at_full_size():
    """swin_tiny with depths (2, 2, 2, 2): timm's own blocks, merging and masks; the merging belongs
    to timm's next stage.
    """
    torch, timm = pytest.importorskip("torch"), timm_or_skip()
    torch.manual_seed(0)
    peer = timm.create_model(
        "swin_tiny_patch4_window7_224", pretrained=False, depths=(2, 2, 2, 2), num_classes=0
    ).eval()
    renamed = {}
    for key, value in peer.state_dict().items():
        key = re.sub(
            r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key
        )
        renamed[key] = (
            value + 0.02 * torch.randn_like(value) if value.is_floating_point() else value
        )
    restored = {
        re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", k): v
        for k, v in renamed.items()
    }
    peer.load_state_dict(restored)
    net = swin_unet.make(1, corpus_channels=((0,),))
    params = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes(net))
    given = from_torch(renamed)
    params |= {"encoder": given["encoder"], "enc_norm": given["enc_norm"]}
    image = np.random.default_rng(0).normal(size=(1, 224, 224, 1)).astype(np.float32)
    with torch.no_grad():
        x, wanted = (
            peer.patch_embed(torch.from_numpy(image).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)),
            [],
        )
        for layer in peer.layers:
            x = layer(x)
            wanted.append(x.numpy())
    found = jax.jit(
        lambda p, x: net.apply({"params": p}, x, {"corpus": jnp.zeros(1, jnp.int32)})["features"]
    )(params, image)
    # our stage s reports its tokens after the merging, timm's before it
    merged = [np.asarray(found[f"stage{s}"]) for s in range(4)]
    with torch.no_grad():
        for s in range(3):
            np.testing.assert_allclose(
                merged[s],
                peer.layers[s + 1].downsample(torch.from_numpy(wanted[s])).numpy(),
                rtol=1e-4,
                atol=1e-4,
            )
    np.testing.assert_allclose(merged[3], wanted[3], rtol=1e-4, atol=1e-4)
