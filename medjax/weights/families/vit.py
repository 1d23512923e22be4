"""ViT-B/16 trained on ImageNet-21k (`ViT-B_16.npz`), for TSFM's bottleneck.

Its layers fit at width 768 (variants l, h, h2). The file is in Flax' layout already. Its patch
embedding, class token and head do not fit any network here; its position table belongs to a 14x14
image and is not used either.
"""

import re
from typing import Any

from medjax.errors import ModelError
from medjax.weights.accounts import Architecture, Row, Tensors

_LAYER = r"Transformer/encoderblock_(\d+)/"
_ATTENTION = _LAYER + r"MultiHeadDotProductAttention_1/"
HEADS = r"head\d+/(kernel|bias)"
IGNORED = (
    (r"Transformer/posembed_input/.*", "positions of a 14x14 image"),
    (r"(embedding|cls|head|pre_logits)(/.*)?", "image patches and ImageNet's classes"),
)
ABSENT = (
    (
        r"(?!vit/(layer\d+|ln_f)/).*",
        "the convolutional part and the tokens' positions are not in the file; they start fresh",
    ),
)
_NAMES = {"query": "q", "key": "k", "value": "v", "out": "out"}


def architecture(tensors: Tensors) -> Architecture:
    """TSFM's transformer in the file's size; `ModelError` for other files.

    Its trunk of two channels only names the parameters.
    """
    layers = len({m[1] for name in tensors if (m := re.match(_LAYER, name))})
    name = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"
    if not layers or name not in tensors:
        raise ModelError(
            "no vision transformer in Flax' names",
            found=sorted(tensors)[:6],
            expected=name,
            fix="another --family",
        )
    width, heads, _ = (int(n) for n in tensors[name].shape)
    hidden = int(tensors["Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"].shape[1])
    arguments: dict[str, Any] = {
        "variant": "l",
        "channels": (2, 2),
        "blocks": 1,
        "strides": ((2, 2, 2),),
        "vit_width": width,
        "vit_heads": heads,
        "vit_layers": layers,
        "vit_mlp_ratio": hidden / width,
    }
    return Architecture("tsfm", 1, 1, arguments)


def table(tensors: Tensors) -> tuple[Row, ...]:
    """The rows; the same for every size."""
    rows = []
    for i, ours in ((0, "ln1"), (2, "ln2")):
        rows.append(Row(rf"{_LAYER}LayerNorm_{i}/(scale|bias)", rf"vit/layer\1/{ours}/\2"))
    for theirs, ours in _NAMES.items():
        split = "joined" if theirs == "out" else "split"
        rows += [
            Row(rf"{_ATTENTION}{theirs}/kernel", rf"vit/layer\1/{ours}/kernel", split),
            Row(
                rf"{_ATTENTION}{theirs}/bias",
                rf"vit/layer\1/{ours}/bias",
                "same" if theirs == "out" else "split",
            ),
        ]
    for i in (0, 1):
        rows.append(
            Row(rf"{_LAYER}MlpBlock_3/Dense_{i}/(kernel|bias)", rf"vit/layer\1/fc{i + 1}/\2")
        )
    rows.append(Row(r"Transformer/encoder_norm/(scale|bias)", r"vit/ln_f/\1"))
    return tuple(rows)
