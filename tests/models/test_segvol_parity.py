"""SegVol and CLIP's text tower against PyTorch on random weights.

The encoder against MONAI's ViT; prompt encoder, two-way transformer and mask decoder against a
restatement from the specification below, one query at a time with exactly the tokens that exist;
the tower against `transformers`. Weights are random tensors under the published names, read by the
families' own tables.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.models import clip_text, segvol
from medjax.models.parts import mask_decoder, prompt_encoder, two_way, vit
from medjax.prompts import bpe
from medjax.weights import accounts
from medjax.weights.families import clip
from medjax.weights.families import segvol as family
from tests.support import published_segvol as published

SIZES = published.Sizes(192, 2, 96, (1, 4, 4), (2, 4, 4), 64, 64, 64, 96, 2, 49_408)
HEADS = 2  # of the decoder: 192 / 96
SETS = ("points+text", "box+text", "text", "box", "points", "box+points")


@pytest.fixture(scope="module")
def weights():
    """(tensors by name, our network, its parameters)."""
    tensors = {n: v for n, v in published.tensors(SIZES, prefix="").items()}
    found, own = family.architecture(tensors), family.gathered(tensors)
    net = segvol.make(3, **found.arguments)
    params, _ = accounts.convert(
        own,
        family.table(own),
        accounts.abstract(found),
        ignored=family.IGNORED,
        absent=family.ABSENT,
    )
    table = np.random.default_rng(3).normal(size=(3, SIZES.text)).astype(np.float32)
    params["text"]["table"] = table
    return tensors, net, jax.tree.map(jnp.asarray, params)


def _close(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape and 0.05 < theirs.std() < 50
    difference = np.abs(ours - theirs).max() / max(1.0, theirs.std())
    assert difference < 1e-4, difference


@pytest.mark.parity
def test_t21_the_encoder_is_monais_vit(weights):
    torch = pytest.importorskip("torch")
    nets = pytest.importorskip("monai.networks.nets")
    assert issubclass(vit.PatchedEncoder, object)
    tensors, net, params = weights
    peer = nets.ViT(
        in_channels=1,
        img_size=SIZES.frame,
        patch_size=SIZES.patch,
        hidden_size=SIZES.width,
        mlp_dim=SIZES.hidden,
        num_layers=SIZES.layers,
        num_heads=3,
        proj_type="perceptron",
        classification=False,
        dropout_rate=0.0,
    ).eval()
    state = {
        name.removeprefix("image_encoder."): torch.from_numpy(value)
        for name, value in tensors.items()
        if name.startswith("image_encoder.")
    }
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert unexpected == [] and all("cross_attn" in name for name in missing)
    image = np.random.default_rng(1).normal(size=(2, 1, *SIZES.frame)).astype(np.float32)
    with torch.no_grad():
        expected = peer(torch.from_numpy(image))[0].numpy()
    found = net.apply({"params": params}, jnp.asarray(image[:, 0, ..., None]), method="encode")
    _close(np.asarray(found).reshape(expected.shape), expected)


class Restated:
    """SegVol behind its encoder, stated in PyTorch from the specification, sections 3.3 to 3.6."""

    def __init__(self, torch, tensors):
        self.torch, self.state = torch, {n: torch.from_numpy(v) for n, v in tensors.items()}

    def linear(self, x, name):
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        return self.torch.nn.functional.linear(x, weight, bias)

    def norm(self, x, name):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return self.torch.nn.functional.layer_norm(x, weight.shape, weight, bias, 1e-5)

    def features(self, c):
        torch, matrix = self.torch, "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
        angle = 2 * np.pi * ((2 * c - 1) @ self.state[matrix])
        return torch.cat([torch.sin(angle), torch.cos(angle)], -1)

    def dense_positions(self):
        """(cells, c): cells d-major, coordinates in the order (axis 1, axis 0, axis 2)."""
        torch, (d, h, w) = self.torch, SIZES.grid
        rows = [
            ((j + 0.5) / h, (i + 0.5) / d, (k + 0.5) / w)
            for i in range(d)
            for j in range(h)
            for k in range(w)
        ]
        return self.features(torch.tensor(rows))

    def tokens(self, points, kinds, box, text):
        torch, prompt, found = self.torch, "prompt_encoder.", []
        d, h, w = SIZES.frame
        scale = torch.tensor([h, d, w], dtype=torch.float32)  # of axes 0, 1, 2, as published
        empty = self.state[f"{prompt}not_a_point_embed.weight"]
        if points is not None:
            for point, kind in zip(points, kinds, strict=True):
                if kind == -1:
                    found.append(empty)
                else:
                    own = self.state[f"{prompt}point_embeddings.{kind}.weight"]
                    found.append(self.features((point + 0.5) / scale)[None] + own)
            if box is None:
                found.append(empty)
        if box is not None:
            for i in (0, 1):
                corner = self.features((box[3 * i : 3 * i + 3] + 0.5) / scale)[None]
                found.append(corner + self.state[f"{prompt}point_embeddings.{2 + i}.weight"])
        if text is not None:
            found.append(text[None])
        return torch.cat(found)

    def attention(self, q, k, v, name):
        q, k, v = (
            self.linear(x, f"{name}.{part}_proj").unflatten(-1, (HEADS, -1)).transpose(0, 1)
            for x, part in ((q, "q"), (k, "k"), (v, "v"))
        )
        weights = self.torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1)
        return self.linear((weights @ v).transpose(0, 1).flatten(1), f"{name}.out_proj")

    def two_way(self, tokens, image, positions):
        start, top = tokens, "mask_decoder.transformer"
        for i in range(2):
            layer = f"{top}.layers.{i}"
            if i == 0:
                tokens = self.attention(tokens, tokens, tokens, f"{layer}.self_attn")
            else:
                placed = tokens + start
                tokens = tokens + self.attention(placed, placed, tokens, f"{layer}.self_attn")
            tokens = self.norm(tokens, f"{layer}.norm1")
            name = f"{layer}.cross_attn_token_to_image"
            tokens = tokens + self.attention(tokens + start, image + positions, image, name)
            tokens = self.norm(tokens, f"{layer}.norm2")
            hidden = self.torch.relu(self.linear(tokens, f"{layer}.mlp.lin1"))
            tokens = self.norm(tokens + self.linear(hidden, f"{layer}.mlp.lin2"), f"{layer}.norm3")
            name = f"{layer}.cross_attn_image_to_token"
            image = image + self.attention(image + positions, tokens + start, tokens, name)
            image = self.norm(image, f"{layer}.norm4")
        name = f"{top}.final_attn_token_to_image"
        tokens = tokens + self.attention(tokens + start, image + positions, image, name)
        return self.norm(tokens, f"{top}.norm_final_attn"), image

    def layers(self, x, name):
        for j in range(3):
            x = self.linear(self.torch.relu(x) if j else x, f"{name}.layers.{j}")
        return x

    def decode(self, embedding, prompts, text):
        """(logits of all four masks at low resolution, ratings, logits of the first at full)."""
        torch, f, decoder = self.torch, self.torch.nn.functional, "mask_decoder."
        own = [self.state[f"{decoder}{n}.weight"] for n in ("iou_token", "mask_tokens")]
        image = embedding + self.state["prompt_encoder.no_mask_embed.weight"]
        tokens, image = self.two_way(torch.cat([*own, prompts]), image, self.dense_positions())
        x = image.T.reshape(1, SIZES.width, *SIZES.grid)
        up = f"{decoder}output_upscaling"
        x = f.conv_transpose3d(x, self.state[f"{up}.0.weight"], self.state[f"{up}.0.bias"], 2)
        x = f.gelu(self.norm(x, f"{up}.1"))
        x = f.conv_transpose3d(x, self.state[f"{up}.3.weight"], self.state[f"{up}.3.bias"], 2)
        x = f.gelu(x)[0]
        mlps = f"{decoder}output_hypernetworks_mlps"
        filters = torch.stack([self.layers(tokens[1 + i], f"{mlps}.{i}") for i in range(4)])
        low = torch.einsum("mc,cdhw->mdhw", filters, x)
        if text is not None:
            words = self.linear(text, f"{decoder}txt_align_upscaled_embedding")
            low = low + torch.einsum("c,cdhw->dhw", words, x)
        full = f.interpolate(low[None], SIZES.frame, mode="trilinear", align_corners=False)[0]
        return low, self.layers(tokens[0], f"{decoder}iou_prediction_head"), full


@pytest.mark.parity
@pytest.mark.parametrize("q", range(len(SETS)))
def test_t21_a_query_is_that_of_the_restatement(weights, q):
    torch = pytest.importorskip("torch")
    tensors, _, params = weights
    parts = (prompt_encoder.PromptEncoder, two_way.Attention, mask_decoder.MaskDecoder)
    assert all(part.__module__.startswith("medjax.models.parts") for part in parts)
    given = family.architecture(tensors).arguments
    net = segvol.make(3, **given, all_masks=True)
    rng, name = np.random.default_rng(q), SETS[q]
    embedding = rng.normal(size=(1, *SIZES.grid, SIZES.width)).astype(np.float32)
    points = (rng.uniform(size=(1, 1, 21, 3)) * np.array(SIZES.frame)).astype(np.float32)
    kinds = np.full((1, 1, 21), -2, np.int32)
    kinds[..., :4] = (1, 0, -1, 1)
    box = np.array([[[0, 3, 2, 1, 12, 9]]], np.float32)
    has = np.array([[["points" in name, "box" in name, "text" in name]]])
    context = {
        "prompt_points": points,
        "prompt_point_kind": kinds,
        "prompt_box": box,
        "prompt_has": has,
        "prompt_text": np.array([[2]], np.int32),
    }
    context = {n: jnp.asarray(v) for n, v in context.items()}
    image = jnp.asarray(embedding)
    found = jax.jit(lambda p: net.apply({"params": p}, image, context, method="decode"))(params)

    peer = Restated(torch, {n: v for n, v in tensors.items() if "position_ids" not in n})
    with torch.no_grad():
        text = peer.linear(
            torch.tensor(np.asarray(params["text"]["table"][2])), "text_encoder.dim_align"
        )
        prompts = peer.tokens(
            torch.from_numpy(points[0, 0, :4]) if has[0, 0, 0] else None,
            kinds[0, 0, :4].tolist(),
            torch.from_numpy(box[0, 0]) if has[0, 0, 1] else None,
            text if has[0, 0, 2] else None,
        )
        flat = torch.from_numpy(embedding.reshape(-1, SIZES.width))
        low, rating, full = peer.decode(flat, prompts, text if has[0, 0, 2] else None)
    _close(found["masks"][0, 0], low)
    _close(found["iou"][0, 0], rating)
    _close(found["logits"][0, 0], full[0])


@pytest.mark.parity
def test_t5_positions_disagree_as_published_with_the_stream_of_seed_0():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    matrix = jnp.asarray(torch.randn(3, 384).numpy())
    frame, grid = (32, 256, 256), (8, 16, 16)
    z, y, x = np.meshgrid(*(np.arange(n) for n in grid), indexing="ij")
    centres = (np.stack([z, y, x], -1) + 0.5) * np.array([4, 16, 16]) - 0.5
    points = prompt_encoder.fourier(
        prompt_encoder.of_voxels(jnp.asarray(centres, jnp.float32), frame, "release"), matrix
    ).reshape(2048, -1)
    cells = prompt_encoder.fourier(prompt_encoder.of_cells(grid), matrix).reshape(2048, -1)
    cosine = np.asarray(points @ cells.T) / 384
    assert np.diag(cosine).mean() == pytest.approx(0.017, abs=1e-3)
    assert (cosine.argmax(1) == np.arange(2048)).mean() == pytest.approx(0.031, abs=1e-3)


@pytest.mark.parity
def test_the_tower_is_that_of_transformers(monkeypatch):
    torch = pytest.importorskip("torch")
    # the tower needs no images; a torchvision of another PyTorch would stop the import
    monkeypatch.setitem(sys.modules, "torchvision", None)
    peers = pytest.importorskip("transformers")
    peers.utils.import_utils.is_torchvision_available.cache_clear()
    config = peers.CLIPTextConfig(
        vocab_size=49_408,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=64,
        hidden_act="quick_gelu",
        bos_token_id=bpe.START,
        eos_token_id=bpe.END,
    )
    torch.manual_seed(0)
    peer = peers.CLIPTextModelWithProjection(config).eval()
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(torch.randn_like(p) * (0.05 if p.ndim > 1 else 0.2))
    tokens = bpe.padded(["A computerized tomography of a liver.", "left kidney", ""])
    with torch.no_grad():
        ids = torch.from_numpy(tokens).long()
        given = peer(ids, attention_mask=torch.ones_like(ids))
        pooled = peer.text_model(ids, attention_mask=torch.ones_like(ids)).pooler_output
    state = {n: v.numpy() for n, v in peer.state_dict().items()}
    tower, params, account = clip.tower(state)
    assert isinstance(tower, clip_text.ClipText) and tower.projection == 64
    assert len(account.matched) == 2 + 3 * 16 + 2 + 1
    found = jax.jit(tower.apply)({"params": params}, jnp.asarray(tokens))
    _close(found["pooled"], pooled.numpy())
    _close(found["projected"], given.text_embeds.numpy())
