"""CLIP's text tower, for `medjax text`: vectors of texts.

Files: Hugging Face's layout (`text_model....`), the same inside a SegVol checkpoint
(`text_encoder.clip_text_model.text_model....`, without the projection), and OpenAI's state dict.
OpenAI's own `ViT-B-32.pt` is an archive of code, which is not read; `model.safetensors` of
clip-vit-base-patch32 has the same weights.
"""

import re
from typing import Any

import numpy as np

from medjax.errors import ModelError
from medjax.models.clip_text import ClipText
from medjax.weights import accounts
from medjax.weights.accounts import LAYOUTS, Account, Architecture, Row, Tensors

PREFIX = r"(?:.*\.)?text_model\."
_LAYER = rf"{PREFIX}encoder\.layers\.(\d+)\."


def _affine(pattern: str, path: str) -> tuple[Row, Row]:
    return (Row(rf"{pattern}\.weight", f"{path}/scale"), Row(rf"{pattern}\.bias", f"{path}/bias"))


def _linear(pattern: str, path: str) -> tuple[Row, Row]:
    return (
        Row(rf"{pattern}\.weight", f"{path}/kernel", "linear"),
        Row(rf"{pattern}\.bias", f"{path}/bias"),
    )


_TABLE = (
    Row(rf"{PREFIX}embeddings\.token_embedding\.weight", "token"),
    Row(rf"{PREFIX}embeddings\.position_embedding\.weight", "pos"),
    *_affine(rf"{_LAYER}layer_norm([12])", r"layer\1/ln\2"),
    *_linear(rf"{_LAYER}self_attn\.([qkv])_proj", r"layer\1/\2"),
    *_linear(rf"{_LAYER}self_attn\.out_proj", r"layer\1/out"),
    *_linear(rf"{_LAYER}mlp\.fc([12])", r"layer\1/fc\2"),
    *_affine(rf"{PREFIX}final_layer_norm", "ln_f"),
    Row(r"text_projection\.weight", "projection/kernel", "linear"),
)
IGNORED = (
    (r".*position_ids", "numbers of the positions, 0, 1, ..."),
    (r"(?:.*\.)?(visual|vision_model)\..*|visual_projection\..*|logit_scale", "the image tower"),
)


def tower(tensors: Tensors) -> tuple[ClipText, dict[str, Any], Account]:
    """(the tower, its parameters, the account of the file's tensors).

    Args:
      tensors: by name; a SegVol checkpoint may hold everything else as well.

    Raises: `ModelError` for files without a text tower, or with one of another make.
    """
    own = _of_the_tower(tensors)
    sizes = {name: tuple(int(n) for n in value.shape) for name, value in own.items()}
    table = next((s for n, s in sizes.items() if n.endswith("token_embedding.weight")), None)
    layers = len({m[1] for name in own if (m := re.fullmatch(rf"{_LAYER}mlp\.fc1\.bias", name))})
    if table is None or not layers:
        raise ModelError(
            "no text tower of CLIP",
            found=accounts.some(sorted(tensors)),
            expected="text_model.embeddings.token_embedding.weight and layers",
            fix="give model.safetensors of clip-vit-base-patch32, or a SegVol checkpoint",
        )
    vocabulary, width = table
    projection = sizes.get("text_projection.weight", (0,))[0]
    made = ClipText(
        vocabulary,
        next(s[0] for n, s in sizes.items() if n.endswith("position_embedding.weight")),
        width,
        layers,
        max(width // 64, 1),
        next(s[0] for n, s in sizes.items() if n.endswith("layers.0.mlp.fc1.bias")),
        projection,
    )
    params, account = accounts.convert(own, _TABLE, _shapes(made), ignored=IGNORED)
    return made, params, account


def _shapes(made: ClipText) -> Any:
    """Shapes of the tower's parameters; allocates nothing."""
    import jax

    tokens = jax.ShapeDtypeStruct((1, made.length), np.int32)
    return jax.eval_shape(made.init, jax.random.key(0), tokens)["params"]


def _of_the_tower(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tower's tensors in Hugging Face's names; all of them, if nothing else is there."""
    inside = {n: v for n, v in tensors.items() if ".clip_text_model." in n}
    if inside:
        return inside
    if "ln_final.weight" not in tensors:
        return dict(tensors)
    found: dict[str, np.ndarray] = {}
    names = {
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final.weight": "text_model.final_layer_norm.weight",
        "ln_final.bias": "text_model.final_layer_norm.bias",
    }
    inner = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for name, value in tensors.items():
        if name == "text_projection":  # used as x @ P
            found["text_projection.weight"] = LAYOUTS["linear"](value)
        elif name in names:
            found[names[name]] = value
        elif match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name):
            layer, rest = f"text_model.encoder.layers.{match[1]}.", match[2]
            if joined := re.fullmatch(r"attn\.in_proj_(weight|bias)", rest):
                for letter, part in zip("qkv", np.split(value, 3), strict=True):
                    found[f"{layer}self_attn.{letter}_proj.{joined[1]}"] = part
            else:
                owner, kind = rest.rsplit(".", 1)
                found[f"{layer}{inner.get(owner, owner)}.{kind}"] = value
        else:
            found[name] = value
    return found


def architecture(tensors: Tensors) -> Architecture:
    """Raises `ModelError`: the tower is no segmentation network."""
    raise ModelError(
        "a text tower is no segmentation network",
        found=accounts.some(sorted(tensors)),
        fix="make vectors of texts with it: medjax text --encoder FILE --names ... -o FILE",
    )


def table(tensors: Tensors) -> tuple[Row, ...]:
    """The rows; the same for every size."""
    return _TABLE
