"""MONAI's SwinUNETR, and the self-supervised files of its Swin encoder alone (Tang et al.).

In: the named tensors of a checkpoint. Out: our SwinUNETR with its arguments, and the table of
names. Widths, heads, depths and window follow from the shapes. No file contains the order in which
four or eight neighbours are merged (`merging`: all published weights and MONAI before 1.5 are
"legacy", later training is "fixed") and the axis order of the training arrays (`weight_axes`: MONAI
"xyz", nnU-Net-based training "zyx"); the defaults here are those of published files and can be set
by the caller.
"""

import re
from typing import Any

from medjax.errors import ModelError
from medjax.weights.accounts import Architecture, Row, Tensors

_SWIN = r"(?:swinViT\.)?"
_BLOCK = rf"{_SWIN}layers(\d)\.0\.blocks\.(\d+)\."
_OURS = r"swin/stage\1/block\2/"
TABLE = (
    Row(rf"{_SWIN}patch_embed\.proj\.weight", "swin/patch_embed/kernel", "conv"),
    Row(rf"{_SWIN}patch_embed\.proj\.bias", "swin/patch_embed/bias"),
    Row(rf"{_BLOCK}norm([12])\.weight", rf"{_OURS}norm\3/scale"),
    Row(rf"{_BLOCK}norm([12])\.bias", rf"{_OURS}norm\3/bias"),
    Row(rf"{_BLOCK}attn\.relative_position_bias_table", rf"{_OURS}attn/rel_bias"),
    Row(rf"{_BLOCK}attn\.(qkv|proj)\.weight", rf"{_OURS}attn/\3/kernel", "linear"),
    Row(rf"{_BLOCK}attn\.(qkv|proj)\.bias", rf"{_OURS}attn/\3/bias"),
    Row(rf"{_BLOCK}mlp\.(?:linear|fc)([12])\.weight", rf"{_OURS}mlp/fc\3/kernel", "linear"),
    Row(rf"{_BLOCK}mlp\.(?:linear|fc)([12])\.bias", rf"{_OURS}mlp/fc\3/bias"),
    Row(rf"{_SWIN}layers(\d)\.0\.downsample\.norm\.weight", r"swin/merge\1/norm/scale"),
    Row(rf"{_SWIN}layers(\d)\.0\.downsample\.norm\.bias", r"swin/merge\1/norm/bias"),
    Row(
        rf"{_SWIN}layers(\d)\.0\.downsample\.reduction\.weight",
        r"swin/merge\1/reduction/kernel",
        "linear",
    ),
    Row(
        rf"{_SWIN}layers(\d)c\.0\.layer\.conv([123])\.conv\.weight",
        r"swin/conv\1/conv\2/kernel",
        "conv",
    ),
    Row(r"encoder(\d+)\.layer\.conv([123])\.conv\.weight", r"encoder\1/conv\2/kernel", "conv"),
    Row(r"decoder(\d)\.transp_conv\.conv\.weight", r"decoder\1/up/kernel", "up"),
    Row(
        r"decoder(\d)\.conv_block\.conv([123])\.conv\.weight",
        r"decoder\1/block/conv\2/kernel",
        "conv",
    ),
    Row(r"out\.conv\.conv\.weight", "out/kernel", "point"),
    Row(r"out\.conv\.conv\.bias", "out/bias"),
)
HEADS = r"out/(kernel|bias)"
IGNORED = (
    (r".*\.relative_position_index", "a buffer, made again from the window"),
    (
        r"(rotation|contrastive)_(pre|head)\..*|conv\..*|(rotation|contrast)\w*\..*|reconstruction\w*\..*",
        "heads of the self-supervised task",
    ),
    (rf"{_SWIN}norm\.(weight|bias)", "a norm after the last stage that SwinUNETR does not use"),
)
ABSENT = ((r"(encoder\d+|decoder\d|out)/.*", "not in a file of the encoder alone; starts fresh"),)


def architecture(tensors: Tensors) -> Architecture:
    """SwinUNETR with the arguments that the shapes give.

    A file of the encoder alone gives one output channel.

    Raises: `ModelError` for other networks.
    """
    short = {
        re.sub(rf"^{_SWIN}", "", name): tuple(int(n) for n in value.shape)
        for name, value in tensors.items()
    }
    embed, tables = short.get("patch_embed.proj.weight"), {}
    for name, shape in short.items():
        if m := re.fullmatch(
            r"layers(\d)\.0\.blocks\.(\d+)\.attn\.relative_position_bias_table", name
        ):
            tables[int(m[1]), int(m[2])] = shape
    if embed is None or {stage for stage, _ in tables} != {1, 2, 3, 4}:
        raise ModelError(
            "no SwinUNETR",
            found=sorted(tensors)[:6],
            expected="swinViT.patch_embed... and four stages",
            fix="another --family",
        )
    axes = len(embed) - 2
    side = round((tables[1, 0][0] ** (1 / axes) + 1) / 2)
    if (2 * side - 1) ** axes != tables[1, 0][0]:
        raise ModelError(
            "a position table of no square window",
            found=tables[1, 0],
            expected=f"(2w-1)^{axes} rows",
        )
    arguments: dict[str, Any] = {
        "in_channels": embed[1],
        "feature_size": embed[0],
        "dims": axes,
        "window": side,
        "depths": tuple(sum(stage == s for stage, _ in tables) for s in range(1, 5)),
        "heads": tuple(tables[s, 0][1] for s in range(1, 5)),
        "use_v2": "layers1c.0.layer.conv1.conv.weight" in short,
        "mlp_ratio": next(
            s[0] / embed[0]
            for n, s in short.items()
            if re.fullmatch(r"layers1\.0\.blocks\.0\.mlp\.\w+1\.weight", n)
        ),
        "merging": "legacy",
        "weight_axes": "xyz",
    }
    classes = short.get("out.conv.conv.weight", (1,))[0]
    return Architecture(
        "swin_unetr", classes, embed[1], arguments, sides=(32,) * (axes - 1) + (64,)
    )


def table(tensors: Tensors) -> tuple[Row, ...]:
    """The rows; the same for every size."""
    return TABLE
