"""nnU-Net's networks, versions 2 and 1.

Version 2: PlainConvUNet, ResidualEncoderUNet. Version 1: Generic_UNet, and MultiTalent's
FabiansUNet.

In: the named tensors of a checkpoint. Out: our network with its arguments, and the table of names.
Everything follows from names and shapes: stages and widths from the kernels, strides from the
transposed convolutions (kernel = stride). v1's plain U-Net is v2's under other names; the two
residual encoders differ in their shortcuts.

u counts decoder stages from the deepest in these files, our levels count from the finest: level =
last - u.
"""

import re
from collections.abc import Callable
from typing import Any

from medjax.errors import ModelError
from medjax.weights.accounts import Architecture, Row, Tensors

S, K, B, U = (rf"(?P<{letter}>\d+)" for letter in "skbu")

# Kind -> what recognises it; the first convolution of a stage; and (convolution, its path, norm,
# its path) of every layer.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {
        "sign": "encoder.stages.0.0.convs.0.conv.weight",
        "ups": "decoder.transpconvs",
        "heads": "decoder.seg_layers",
        "layers": (
            (
                rf"encoder\.stages\.{S}\.0\.convs\.{K}\.conv",
                "encoder_{s}/conv_{k}/conv",
                rf"encoder\.stages\.{S}\.0\.convs\.{K}\.norm",
            ),
            (
                rf"decoder\.stages\.{U}\.convs\.{K}\.conv",
                "decoder_{level}/conv_{k}/conv",
                rf"decoder\.stages\.{U}\.convs\.{K}\.norm",
            ),
        ),
    },
    "residual": {
        "sign": "encoder.stages.0.blocks.0.conv1.conv.weight",
        "ups": "decoder.transpconvs",
        "heads": "decoder.seg_layers",
        "layers": (
            (r"encoder\.stem\.convs\.0\.conv", "stem/conv", r"encoder\.stem\.convs\.0\.norm"),
            *(
                (
                    rf"encoder\.stages\.{S}\.blocks\.{B}\.conv{i}\.conv",
                    f"encoder_{{s}}/block_{{b}}/conv{i}",
                    rf"encoder\.stages\.{S}\.blocks\.{B}\.conv{i}\.norm",
                )
                for i in "12"
            ),
            (
                rf"encoder\.stages\.{S}\.blocks\.{B}\.skip\.[01]\.conv",
                "encoder_{s}/block_{b}/skip_conv",
                rf"encoder\.stages\.{S}\.blocks\.{B}\.skip\.[01]\.norm",
            ),
            (
                rf"decoder\.stages\.{U}\.convs\.{K}\.conv",
                "decoder_{level}/conv_{k}/conv",
                rf"decoder\.stages\.{U}\.convs\.{K}\.norm",
            ),
        ),
    },
    "plain_v1": {
        "sign": "conv_blocks_context.0.blocks.0.conv.weight",
        "ups": "tu",
        "heads": "seg_outputs",
        "layers": (
            (
                rf"conv_blocks_context\.{S}\.blocks\.{K}\.conv",
                "encoder_{s}/conv_{k}/conv",
                rf"conv_blocks_context\.{S}\.blocks\.{K}\.instnorm",
            ),
            (  # the bottleneck
                rf"conv_blocks_context\.{S}\.{K}\.blocks\.0\.conv",
                "encoder_{s}/conv_{k}/conv",
                rf"conv_blocks_context\.{S}\.{K}\.blocks\.0\.instnorm",
            ),
            (
                rf"conv_blocks_localization\.{U}\.{K}\.blocks\.0\.conv",
                "decoder_{level}/conv_{k}/conv",
                rf"conv_blocks_localization\.{U}\.{K}\.blocks\.0\.instnorm",
            ),
        ),
    },
    "residual_v1": {
        "sign": "encoder.initial_conv.weight",
        "ups": "decoder.tus",
        "heads": "decoder.deep_supervision_outputs",
        "layers": (
            (r"encoder\.initial_conv", "stem/conv", r"encoder\.initial_norm"),
            *(
                (
                    rf"encoder\.stages\.{S}\.convs\.{B}\.conv{i}",
                    f"encoder_{{s}}/block_{{b}}/conv{i}",
                    rf"encoder\.stages\.{S}\.convs\.{B}\.norm{i}",
                )
                for i in "12"
            ),
            (
                rf"encoder\.stages\.{S}\.convs\.{B}\.downsample_skip\.0",
                "encoder_{s}/block_{b}/skip_conv",
                rf"encoder\.stages\.{S}\.convs\.{B}\.downsample_skip\.1",
            ),
            (
                rf"decoder\.stages\.{U}\.convs\.{K}\.conv",
                "decoder_{level}/conv_{k}/conv",
                rf"decoder\.stages\.{U}\.convs\.{K}\.norm",
            ),
        ),
    },
}
FINEST_HEAD = r"decoder\.segmentation_output"  # of older v1 residual files
HEADS = r"head_\d+/(kernel|bias)"
IGNORED = (
    (r"decoder\.encoder\..*", "the decoder's second name for the encoder"),
    (r".*\.all_modules\..*", "a layer's second name for its parts"),
    (r"decoder\.stages\.\d+\.convs\.\d+\.all\..*", "a layer's second name for its parts"),
)
ABSENT: tuple[tuple[str, str], ...] = ()


def kind_of(tensors: Tensors) -> str:
    """Which of the four networks the names belong to; `ModelError` for none."""
    for kind, described in KINDS.items():
        if described["sign"] in tensors:
            return kind
    raise ModelError(
        "no network of nnU-Net",
        found=sorted(tensors)[:6],
        expected="PlainConvUNet, ResidualEncoderUNet, Generic_UNet or FabiansUNet",
        fix="choose another --family",
    )


def architecture(tensors: Tensors) -> Architecture:
    """Our network with its arguments, from names and shapes; `ModelError` for other networks."""
    kind = kind_of(tensors)
    ups, heads = KINDS[kind]["ups"], KINDS[kind]["heads"]
    shapes = {name: tuple(int(n) for n in value.shape) for name, value in tensors.items()}
    layers = {}  # our path of every convolution -> shape of its kernel
    for pattern, path, _ in KINDS[kind]["layers"]:
        layers |= {
            path.format(**{**m.groupdict(), "level": m.groupdict().get("u")}): shape
            for name, shape in shapes.items()
            if (m := re.fullmatch(rf"{pattern}\.weight", name))
        }
    first = "encoder_{}/conv_0/conv" if kind.startswith("plain") else "encoder_{}/block_0/conv1"
    stages = sum(first.format(s) in layers for s in range(100))
    firsts = [layers[first.format(s)] for s in range(stages)]
    kernels = [
        shapes[name]
        for name in shapes
        if re.fullmatch(rf"({re.escape(heads)}\.\d+|{FINEST_HEAD})\.weight", name)
    ]
    if (
        stages < 2
        or not kernels
        or any(f"{ups}.{u}.weight" not in shapes for u in range(stages - 1))
    ):
        raise ModelError(
            "a network of nnU-Net without all its stages",
            found=f"{stages} encoder stages, {len(kernels)} heads",
        )
    arguments: dict[str, Any] = {
        "features": tuple(f[0] for f in firsts),
        "strides": (
            (1,) * (len(firsts[0]) - 2),
            *(shapes[f"{ups}.{stages - 2 - s}.weight"][2:] for s in range(stages - 1)),
        ),
        "kernels": tuple(f[2:] for f in firsts),
        "convs_per_stage_decoder": sum(f"decoder_0/conv_{k}/conv" in layers for k in range(100)),
        "deep_supervision": len(kernels) == stages - 1,
        "up_bias": f"{ups}.0.bias" in shapes,
        "head_bias": any(
            re.fullmatch(rf"({re.escape(heads)}\.\d+|{FINEST_HEAD})\.bias", name) for name in shapes
        ),
    }
    if kind.startswith("plain"):
        arguments["convs_per_stage"] = sum(f"encoder_0/conv_{k}/conv" in layers for k in range(100))
        return Architecture("unet", kernels[0][0], firsts[0][1], arguments)
    arguments |= {
        "blocks": tuple(
            sum(f"encoder_{s}/block_{b}/conv1" in layers for b in range(100)) for s in range(stages)
        ),
        "stem_kernel": layers["stem/conv"][2:],
        "conv_bias": KINDS[kind]["sign"].replace(".weight", ".bias") in shapes,
        "skip": "avgpool" if kind == "residual" else "strided_conv",
    }
    return Architecture("resenc", kernels[0][0], layers["stem/conv"][1], arguments)


def table(tensors: Tensors) -> tuple[Row, ...]:
    """The rows for this file's kind of network and number of stages."""
    kind = kind_of(tensors)
    ups, heads = (re.escape(KINDS[kind][part]) for part in ("ups", "heads"))
    last = max(int(m[1]) for name in tensors if (m := re.match(rf"{ups}\.(\d+)\.", name)))

    def at(template: str) -> Callable[[re.Match], str]:
        def path(match: re.Match) -> str:
            groups = match.groupdict()
            return template.format(**groups, level=last - int(groups.get("u") or 0))

        return path

    rows = [
        Row(rf"{ups}\.{U}\.weight", at("up_{level}/kernel"), "up"),
        Row(rf"{ups}\.{U}\.bias", at("up_{level}/bias")),
        Row(rf"{heads}\.{U}\.weight", at("head_{level}/kernel"), "point"),
        Row(rf"{heads}\.{U}\.bias", at("head_{level}/bias")),
        Row(rf"{FINEST_HEAD}\.weight", "head_0/kernel", "point"),
        Row(rf"{FINEST_HEAD}\.bias", "head_0/bias"),
    ]
    for conv, path, norm in KINDS[kind]["layers"]:
        normed = re.sub(r"conv(\d?)$", r"norm\1", path)
        rows += [
            Row(rf"{conv}\.weight", at(f"{path}/kernel"), "conv"),
            Row(rf"{conv}\.bias", at(f"{path}/bias")),
            Row(rf"{norm}\.weight", at(f"{normed}/scale")),
            Row(rf"{norm}\.bias", at(f"{normed}/bias")),
        ]
    return tuple(rows)
