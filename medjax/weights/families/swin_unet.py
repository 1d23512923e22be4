"""2D Swin networks: Swin-Unet, M4oE (both gates), Swin-MAE, and Swin-T by Microsoft and timm.

In: the named tensors of a checkpoint. Out: our network with its arguments, and the table of names.
Everything follows from names and shapes, except LayerNorm's epsilon and the shift of the deepest
stage, which no file holds: Swin-MAE was trained with 1e-6 and shifts there too (`keep_shift`), the
others with 1e-5 and do not.

Three things differ from a plain renaming. Experts are separate tensors in these files and one stack
here, heads are separate and one kernel here: `gathered` joins them first. Swin-MAE counts decoder
stages from the first expanding layer on, one less than Swin-Unet. In timm the merging belongs to
the following stage, and a pure encoder leaves the decoder as initialised.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from medjax.errors import ModelError
from medjax.weights.accounts import Architecture, Row, Tensors

EXPERT = re.compile(r"(.*\.mlp)\.experts\.(\d+)\.([02])\.(weight|bias)")
HEAD = re.compile(r"(?:outputs\.(\d+)|output)\.weight")
PREFIX = re.compile(r"^(swin_unet|swin|encoder)\.(?=patch_embed\.)")

IGNORED = (
    (r".*\.relative_position_index", "follows from the window"),
    (r".*\.attn_mask", "follows from grid, window and shift"),
    (r"(head|head\.fc)\.(weight|bias)", "ImageNet's classifier"),
    (r"pos_embed", "Swin-MAE stores it and never adds it"),
)
DECODER = r"(expand\d|skip\d|up\d|dec_norm|final|head)(/.*)?"


def kind_of(tensors: Tensors) -> str:
    """ "swin_unet" (with M4oE), "swin_mae", "swin" or "timm"; `ModelError` for anything else."""
    if (
        "patch_embed.proj.weight" in tensors
        and "layers.0.blocks.0.attn.relative_position_bias_table" in tensors
    ):
        if "mask_token" in tensors:
            return "swin_mae"
        if "norm_up.weight" in tensors:
            return "swin_unet"
        return "swin" if "layers.0.downsample.reduction.weight" in tensors else "timm"
    raise ModelError(
        "no Swin in two axes",
        found=sorted(tensors)[:6],
        expected="Swin-Unet, M4oE, Swin-MAE or Swin (microsoft, timm)",
        fix="choose another --family",
    )


def unprefixed(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors without the wrapper prefix that some trainers save.

    The prefix is recognised by what precedes `patch_embed`.
    """
    found = next((m[0] for name in tensors if (m := PREFIX.match(name))), "")
    return {name.removeprefix(found): value for name, value in tensors.items()}


def gathered(tensors: Tensors) -> dict[str, np.ndarray]:
    """Experts stacked, heads joined.

    Experts under "...mlp.experts.*.0.weight" (e, in, out) and biases (e, out), heads under
    "outputs.*.weight" (in, sum).

    Raises: `ModelError` if an expert or a head of a series is missing.
    """
    tensors, out, series = unprefixed(tensors), {}, {}
    for name, value in tensors.items():
        if match := EXPERT.fullmatch(name):
            part = value.T if match[4] == "weight" else value
            series.setdefault(f"{match[1]}.experts.*.{match[3]}.{match[4]}", {})[int(match[2])] = (
                part
            )
        elif match := HEAD.fullmatch(name):
            series.setdefault("outputs.*.weight", {})[int(match[1] or 0)] = value[:, :, 0, 0].T
        else:
            out[name] = value
    for name, parts in series.items():
        if sorted(parts) != list(range(len(parts))):
            raise ModelError(
                "one of a series of tensors is missing",
                path=name,
                found=sorted(parts),
                expected=f"0 to {max(parts)}",
            )
        ordered = [parts[i] for i in range(len(parts))]
        out[name] = np.concatenate(ordered, -1) if name.startswith("outputs") else np.stack(ordered)
    return out


def architecture(tensors: Tensors) -> Architecture:
    """Our network with its arguments, read from names and shapes."""
    tensors = unprefixed(tensors)
    kind, shapes = (
        kind_of(tensors),
        {name: tuple(int(n) for n in value.shape) for name, value in tensors.items()},
    )
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    depths = _depths(tensors, r"layers\.(\d+)\.blocks\.(\d+)\.norm1\.weight")
    heads = tuple(
        shapes[f"layers.{s}.blocks.0.attn.relative_position_bias_table"][1]
        for s in range(len(depths))
    )
    rows = shapes["layers.0.blocks.0.attn.relative_position_bias_table"][0]
    window = (int(np.sqrt(rows)) + 1) // 2
    given: dict[str, Any] = {
        "width": width,
        "depths": depths,
        "heads": heads,
        "window": window,
        "patch_size": patch,
        "in_channels": channels,
    }
    given |= _experts(shapes)
    sides = (patch * window * 2 ** (len(depths) - 1),) * 2
    if kind == "swin_mae":
        given |= {"keep_shift": True, "epsilon": 1e-6}
    outputs = [shapes[n][0] for n in sorted(shapes, key=_number) if HEAD.fullmatch(n)] or [2]
    first = np.cumsum([0, *(n - 1 for n in outputs)])
    given["corpus_channels"] = tuple(
        tuple(range(a, b)) for a, b in zip(first[:-1].tolist(), first[1:].tolist(), strict=True)
    )
    return Architecture("swin_unet", int(first[-1]), channels, given, sides)


def absent(tensors: Tensors) -> tuple[tuple[str, str], ...]:
    """(pattern over paths, reason): parameters that a file of this kind never holds."""
    kind = kind_of(unprefixed(tensors))
    if kind == "swin_unet":
        return ()
    rules = ((DECODER, "an encoder's file holds no segmentation decoder"),)
    return (
        (*rules, (r"enc_norm/.*", "Swin-MAE has no norm behind its encoder"))
        if kind == "swin_mae"
        else rules
    )


def ignored(tensors: Tensors) -> tuple[tuple[str, str], ...]:
    """(pattern over source names, reason): tensors that are not used."""
    if kind_of(unprefixed(tensors)) != "swin_mae":
        return IGNORED
    thrown = (
        r"(mask_token|decoder_pred\.(weight|bias)|(first_patch_expanding|layers_up|norm_up)\..*)"
    )
    return (*IGNORED, (thrown, "Swin-MAE's pixel decoder is discarded"))


def table(tensors: Tensors) -> tuple[Row, ...]:
    """The rows for gathered tensors of this kind."""
    kind = kind_of(unprefixed(tensors))
    behind = 1 if kind == "timm" else 0
    return (*_common(behind), *_up("layers_up", 0), *_swin_unet())


def masked_table() -> tuple[Row, ...]:
    """Swin-MAE with its pixel decoder, for `models.masked_swin`.

    Decoder stage j of the file is our up{j + 1}.
    """
    rows = (
        Row(r"mask_token", "mask_token", lambda a: a.reshape(-1)),
        *_expanding(r"first_patch_expanding", "expand0"),
        *_linear(r"decoder_pred", "pixels"),
        *_norm(r"norm_up", "dec_norm"),
    )
    return (*_common(0), *rows, *_up("layers_up", 1))


def _common(behind: int) -> tuple[Row, ...]:
    """The encoder; `behind`: how many stages later the merging is counted."""

    def merge(match: re.Match) -> str:
        return (
            f"encoder/merge{int(match[1]) - behind}/"
            + {"norm.weight": "norm/scale", "norm.bias": "norm/bias"}[match[2]]
        )

    return (
        Row(r"patch_embed\.proj\.weight", "encoder/patch_embed/kernel", "conv"),
        Row(r"patch_embed\.proj\.bias", "encoder/patch_embed/bias"),
        *_norm(r"patch_embed\.norm", "encoder/patch_norm"),
        Row(r"layers\.(\d+)\.downsample\.(norm\.weight|norm\.bias)", merge),
        Row(
            r"layers\.(\d+)\.downsample\.reduction\.weight",
            lambda m: f"encoder/merge{int(m[1]) - behind}/reduction/kernel",
            "linear",
        ),
        *_norm(r"norm", "enc_norm"),
        *_block(r"layers\.(\d+)\.blocks\.(\d+)", lambda m: f"encoder/stage{m[1]}/block{m[2]}"),
    )


def _swin_unet() -> tuple[Row, ...]:
    return (
        *_expanding(r"layers_up\.0", "expand0"),
        *_linear(r"concat_back_dim\.(\d+)", r"skip\1"),
        *_norm(r"norm_up", "dec_norm"),
        *_expanding(r"up", "final"),
        Row(r"outputs\.\*\.weight", "head/kernel"),
    )


def _up(name: str, late: int) -> tuple[Row, ...]:
    def number(match: re.Match) -> int:
        return int(match[1]) + late

    norms = {"norm.weight": "norm/scale", "norm.bias": "norm/bias"}
    return (
        *_block(rf"{name}\.(\d+)\.blocks\.(\d+)", lambda m: f"up{number(m)}/block{m[2]}"),
        Row(
            rf"{name}\.(\d+)\.upsample\.expand\.weight",
            lambda m: f"expand{number(m)}/expand/kernel",
            "linear",
        ),
        Row(
            rf"{name}\.(\d+)\.upsample\.(norm\.weight|norm\.bias)",
            lambda m: f"expand{number(m)}/{norms[m[2]]}",
        ),
    )


def _block(name: str, path: Any) -> tuple[Row, ...]:
    ends = {
        r"norm([12])\.weight": (lambda m: f"norm{m[3]}/scale", "same"),
        r"norm([12])\.bias": (lambda m: f"norm{m[3]}/bias", "same"),
        r"attn\.(qkv|proj)\.weight": (lambda m: f"attn/{m[3]}/kernel", "linear"),
        r"attn\.(qkv|proj)\.bias": (lambda m: f"attn/{m[3]}/bias", "same"),
        r"attn\.relative_position_bias_table": (lambda m: "attn/rel_bias", "same"),
        r"mlp\.(fc[12])\.weight": (lambda m: f"mlp/{m[3]}/kernel", "linear"),
        r"mlp\.(fc[12])\.bias": (lambda m: f"mlp/{m[3]}/bias", "same"),
        r"mlp\.experts\.\*\.([02])\.weight": (lambda m: f"mlp/w{1 + int(m[3]) // 2}", "same"),
        r"mlp\.experts\.\*\.([02])\.bias": (lambda m: f"mlp/b{1 + int(m[3]) // 2}", "same"),
        r"mlp\.gating_network\.weight": (lambda m: "mlp/gate/kernel", "linear"),
        r"mlp\.gating_network\.bias": (lambda m: "mlp/gate/bias", "same"),
    }
    return tuple(
        Row(rf"{name}\.{end}", lambda m, own=own: f"{path(m)}/{own(m)}", layout)
        for end, (own, layout) in ends.items()
    )


def _norm(name: str, path: str) -> tuple[Row, ...]:
    return Row(rf"{name}\.weight", f"{path}/scale"), Row(rf"{name}\.bias", f"{path}/bias")


def _linear(name: str, path: str) -> tuple[Row, ...]:
    return Row(rf"{name}\.weight", f"{path}/kernel", "linear"), Row(
        rf"{name}\.bias", f"{path}/bias"
    )


def _expanding(name: str, path: str) -> tuple[Row, ...]:
    return Row(rf"{name}\.expand\.weight", f"{path}/expand/kernel", "linear"), *_norm(
        rf"{name}\.norm", f"{path}/norm"
    )


def _experts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Places and number of experts, and their gate."""
    found = [m for name in shapes if (m := EXPERT.fullmatch(name))]
    if not found:
        return {"experts_in": "none"}
    inside = any(m[1].startswith("layers.") for m in found)
    outside = any(m[1].startswith("layers_up.") for m in found)
    count = 1 + max(int(m[2]) for m in found)
    gate = next(
        (shape for name, shape in shapes.items() if name.endswith("gating_network.weight")), None
    )
    routing = (
        "hard"
        if gate is None
        else "gate"
        if gate[0] == count and gate[0] != gate[1]
        else "channel_gate"
    )
    place = "both" if inside and outside else "encoder" if inside else "decoder"
    return {"experts_in": place, "experts": count, "routing": routing, "modalities": count}


def _depths(tensors: Tensors, pattern: str) -> tuple[int, ...]:
    blocks = [(int(m[1]), int(m[2])) for name in tensors if (m := re.fullmatch(pattern, name))]
    return tuple(
        1 + max(b for s, b in blocks if s == stage)
        for stage in range(1 + max(s for s, _ in blocks))
    )


def _number(name: str) -> int:
    match = HEAD.fullmatch(name)
    return int(match[1] or 0) if match else -1
