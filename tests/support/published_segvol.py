"""The names and shapes of SegVol's published file, 475 tensors, in any size; written from the
specification, independently of `medjax.weights.families.segvol`.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a file; the defaults are the published ones."""

    width: int = 768
    layers: int = 12
    hidden: int = 3072
    patch: tuple[int, int, int] = (4, 16, 16)
    grid: tuple[int, int, int] = (8, 16, 16)
    decoder_hidden: int = 2048
    rating: int = 256
    text: int = 512
    text_hidden: int = 2048
    text_layers: int = 12
    vocabulary: int = 49_408

    @property
    def frame(self) -> tuple[int, ...]:
        return tuple(g * p for g, p in zip(self.grid, self.patch, strict=True))


# targets of the adaptation: 46 linear maps at full size
ADAPTED = (
    r"^image_encoder\.blocks\.\d+\.(mlp\.linear[12]|attn\.qkv)\.weight$"
    r"|^mask_decoder\.transformer\.(layers\.\d+\.(self_attn|cross_attn_image_to_token)"
    r"|final_attn_token_to_image)\.[qv]_proj\.weight$"
)


def adapted_linears(s: Sizes = Sizes()) -> int:
    """How many there are: three per layer of the encoder, ten in the decoder."""
    return 3 * s.layers + 10


SMALL = Sizes(24, 12, 48, (1, 4, 4), (2, 4, 4), 24, 8, 8, 16)


def shapes(s: Sizes = Sizes()) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    c, cells = s.width, int(np.prod(s.grid))
    found: dict[str, tuple[int, ...]] = {}

    def linear(name, out, inputs, bias=True):
        found[f"{name}.weight"] = (out, inputs)
        if bias:
            found[f"{name}.bias"] = (out,)

    def norm(name, width):
        found[f"{name}.weight"] = found[f"{name}.bias"] = (width,)

    linear("image_encoder.patch_embedding.patch_embeddings.1", c, int(np.prod(s.patch)))
    found["image_encoder.patch_embedding.position_embeddings"] = (1, cells, c)
    for i in range(s.layers):
        block = f"image_encoder.blocks.{i}"
        norm(f"{block}.norm1", c)
        norm(f"{block}.norm2", c)
        linear(f"{block}.attn.qkv", 3 * c, c, bias=False)
        linear(f"{block}.attn.out_proj", c, c)
        linear(f"{block}.mlp.linear1", s.hidden, c)
        linear(f"{block}.mlp.linear2", c, s.hidden)
    norm("image_encoder.norm", c)
    prompt = "prompt_encoder."
    found[f"{prompt}pe_layer.positional_encoding_gaussian_matrix"] = (3, c // 2)
    for i in range(4):
        found[f"{prompt}point_embeddings.{i}.weight"] = (1, c)
    found[f"{prompt}not_a_point_embed.weight"] = found[f"{prompt}no_mask_embed.weight"] = (1, c)
    branch = {0: (4, 1, 2, 2), 1: (4,), 3: (16, 4, 2, 2), 4: (16,), 6: (c, 16, 1, 1)}
    for i, shape in branch.items():
        found[f"{prompt}mask_downscaling.{i}.weight"] = shape
        found[f"{prompt}mask_downscaling.{i}.bias"] = shape[:1]
    decoder = "mask_decoder."

    def attention(name, inner):
        for part in "qkv":
            linear(f"{name}.{part}_proj", inner, c)
        linear(f"{name}.out_proj", c, inner)

    for i in range(2):
        layer = f"{decoder}transformer.layers.{i}"
        attention(f"{layer}.self_attn", c)
        attention(f"{layer}.cross_attn_token_to_image", c // 2)
        attention(f"{layer}.cross_attn_image_to_token", c // 2)
        linear(f"{layer}.mlp.lin1", s.decoder_hidden, c)
        linear(f"{layer}.mlp.lin2", c, s.decoder_hidden)
        for j in range(1, 5):
            norm(f"{layer}.norm{j}", c)
    attention(f"{decoder}transformer.final_attn_token_to_image", c // 2)
    norm(f"{decoder}transformer.norm_final_attn", c)
    found[f"{decoder}iou_token.weight"] = (1, c)
    found[f"{decoder}mask_tokens.weight"] = (4, c)
    finer = (c // 4, *(2 * n for n in s.grid))
    up = f"{decoder}output_upscaling"
    found |= {f"{up}.0.weight": (c, c // 4, 2, 2, 2), f"{up}.0.bias": (c // 4,)}
    found |= {f"{up}.1.weight": finer, f"{up}.1.bias": finer}
    found |= {f"{up}.3.weight": (c // 4, c // 8, 2, 2, 2), f"{up}.3.bias": (c // 8,)}
    for i in range(4):
        for j, out in enumerate((c, c, c // 8)):
            linear(f"{decoder}output_hypernetworks_mlps.{i}.layers.{j}", out, c)
    for j, (out, inputs) in enumerate(((s.rating, c), (s.rating, s.rating), (4, s.rating))):
        linear(f"{decoder}iou_prediction_head.layers.{j}", out, inputs)
    linear(f"{decoder}txt_align_upscaled_embedding", c // 8, c)
    linear("text_encoder.dim_align", c, s.text)
    return found | {
        f"text_encoder.clip_text_model.{n}": shape for n, shape in tower_shapes(s).items()
    }


def tower_shapes(s: Sizes = Sizes()) -> dict[str, tuple[int, ...]]:
    """Name -> shape of CLIP's text tower in Hugging Face's layout, position numbers included."""
    w, text = s.text, "text_model."
    found = {
        f"{text}embeddings.position_ids": (1, 77),
        f"{text}embeddings.token_embedding.weight": (s.vocabulary, w),
        f"{text}embeddings.position_embedding.weight": (77, w),
    }
    for i in range(s.text_layers):
        layer = f"{text}encoder.layers.{i}"
        maps = {f"self_attn.{p}_proj": (w, w) for p in ("q", "k", "v", "out")}
        maps |= {"mlp.fc1": (s.text_hidden, w), "mlp.fc2": (w, s.text_hidden)}
        for name, shape in maps.items():
            found |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for name in ("layer_norm1", "layer_norm2"):
            found |= {f"{layer}.{name}.weight": (w,), f"{layer}.{name}.bias": (w,)}
    last = f"{text}final_layer_norm"
    return found | {f"{last}.weight": (w,), f"{last}.bias": (w,)}


def tensors(s: Sizes = SMALL, seed: int = 0, prefix: str = "model.") -> dict[str, np.ndarray]:
    """Random tensors of these names: matrices of gain about 1, norms around 1."""
    rng, found = np.random.default_rng(seed), {}
    for name, shape in shapes(s).items():
        if name.endswith("position_ids"):
            value = np.arange(77, dtype=np.int64)[None]
        else:
            fan = np.prod(shape[1:]) if len(shape) > 1 and "embed" not in name else 4
            value = rng.normal(size=shape) / np.sqrt(fan)
            if ("norm" in name and name.endswith("weight")) or "upscaling.1.weight" in name:
                value = 1 + 0.2 * value
        found[prefix + name] = value if value.dtype == np.int64 else value.astype(np.float32)
    return found
