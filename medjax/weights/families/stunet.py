"""STU-Net S, B, L and H (nnU-Net v1 and v2 containers).

It is TSFM's trunk in "post" order without a transformer.

In: the named tensors of a checkpoint. Out: `tsfm` with its arguments, and the table of names.
Widths and blocks follow from the shapes. Strides change no shape and are in no tensor: five times
(2, 2, 2) unless the caller gives others. u counts from the deepest: level = 4 - u.
"""

import re
from typing import Any

from medjax.errors import ModelError
from medjax.weights.accounts import Architecture, Row, Tensors

PARTS = (  # of a block: name, our name, leaf of its weight, layout
    ("conv([12])", "conv{2}", "/kernel", "conv"),
    ("norm([12])", "norm{2}", "/scale", "same"),
    ("(conv3)", "short", "/kernel", "conv"),
)
HEADS = r"head\d+/(kernel|bias)"
IGNORED: tuple[tuple[str, str], ...] = ()
ABSENT: tuple[tuple[str, str], ...] = ()


def architecture(tensors: Tensors) -> Architecture:
    """`tsfm` in STU-Net's form; `ModelError` for other networks."""
    shapes = {name: tuple(int(n) for n in value.shape) for name, value in tensors.items()}
    widths = []
    while (name := f"conv_blocks_context.{len(widths)}.0.conv1.weight") in shapes:
        widths.append(shapes[name][0])
    if len(widths) < 2 or "conv_blocks_context.0.0.conv3.weight" not in shapes:
        raise ModelError(
            "no STU-Net",
            found=sorted(tensors)[:6],
            expected="conv_blocks_context.0.0.conv1.weight, ...",
            fix="another --family",
        )

    def blocks(side: str) -> int:
        return len(
            {m[1] for name in shapes if (m := re.match(rf"conv_blocks_{side}\.0\.(\d+)\.", name))}
        )

    first = shapes["conv_blocks_context.0.0.conv1.weight"]
    axes, last = len(first) - 2, len(widths) - 2
    heads = [
        shapes[f"seg_outputs.{u}.weight"]
        for u in range(last + 1)
        if f"seg_outputs.{u}.weight" in shapes
    ]
    if not heads:
        raise ModelError(
            "an STU-Net without heads", found=sorted(tensors)[-6:], expected="seg_outputs.*"
        )
    arguments: dict[str, Any] = {
        "variant": "stunet_s",
        "channels": tuple(widths),
        "blocks": blocks("context"),
        "blocks_decoder": blocks("localization"),
        "strides": ((2,) * axes,) * (len(widths) - 1),
        "deep_supervision": len(heads) == last + 1,
    }
    return Architecture("tsfm", heads[0][0], first[1], arguments)


def table(tensors: Tensors) -> tuple[Row, ...]:
    """The rows for this file's number of levels."""
    last = max(int(m[1]) for name in tensors if (m := re.match(r"upsample_layers\.(\d+)\.", name)))

    def at(template: str, leaf: str):
        return lambda m: template.format(*m.groups(), level=last - int(m[1])) + leaf

    rows = [
        Row(r"upsample_layers\.(\d+)\.conv\.weight", at("up{level}", "/kernel"), "conv"),
        Row(r"upsample_layers\.(\d+)\.conv\.bias", at("up{level}", "/bias")),
        Row(r"seg_outputs\.(\d+)\.weight", at("head{level}", "/kernel"), "point"),
        Row(r"seg_outputs\.(\d+)\.bias", at("head{level}", "/bias")),
    ]
    for side, stage in (("context", "enc{0}"), ("localization", "dec{level}")):
        for theirs, ours, leaf, layout in PARTS:
            name = rf"conv_blocks_{side}\.(\d+)\.(\d+)\.{theirs}"
            rows += [
                Row(rf"{name}\.weight", at(f"{stage}/block{{1}}/{ours}", leaf), layout),
                Row(rf"{name}\.bias", at(f"{stage}/block{{1}}/{ours}", "/bias")),
            ]
    return tuple(rows)
