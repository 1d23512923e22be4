"""Converts nnU-Net's plans: v2 JSON files, and the fields of v1 plans (read by `read_plans_v1`).

In: the plan's fields and the channel names (of the dataset.json beside it). Out: a `Plan` in stored
orientation with the plan's own transposition, and its configurations. nnU-Net's spacings and
patches are in transposed axes, as ours are in the network's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax.errors import UsageError
from medjax.files import read_json
from medjax.prepare.plan import ANY, Intensity, Plan
from medjax.prepare.presets import Configuration

SCHEMES = {  # v2's classes and v1's words -> ours
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "NoNormalization": "nonorm",
    "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
    "CT": "ct",
    "CT2": "ct",
    "nonCT": "zscore",
    "noNorm": "nonorm",
}
MODELS = {"PlainConvUNet": "unet", "ResidualEncoderUNet": "resenc"}
IMPORTED = "imported"


def read_plans(path: str | Path, channels: Sequence[str] | None = None) -> Plan:
    """The plan in an nnU-Net v2 plans file (nnUNetPlans.json or similar), or in a medjax plan.

    Args:
      channels: channel names; None takes them from a dataset.json in the same folder.

    Raises: `UsageError` for any other file, a normalisation that is unknown, or channel names that
      cannot be found.
    """
    path = Path(path)
    fields = read_json(path, fix="give plan.json or nnUNetPlans.json")
    if isinstance(fields, dict) and {"spacing_mm", "intensity"} & set(fields):
        return Plan.from_json(fields, path)
    if not isinstance(fields, dict) or not {"configurations", "transpose_forward"} <= set(fields):
        raise UsageError(
            "neither our plan nor nnU-Net's",
            path=path,
            expected="spacing_mm and intensity, or configurations",
        )
    return understood(lambda: from_v2(fields, channels or channel_names(path), str(path)), path)


def understood(convert: Callable[[], Any], path: object) -> Any:
    """The result of `convert` for a plan.

    `UsageError` naming the file if the plan's fields are missing or of another kind.
    """
    try:
        return convert()
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        OverflowError,
        RecursionError,
    ) as error:
        what = (
            f"the field {error} is missing"
            if isinstance(error, KeyError)
            else f"{type(error).__name__}: {str(error)[:200]}"
        )
        raise UsageError(
            f"a plan that cannot be understood ({what})",
            path=path,
            fix="give the plan as nnU-Net wrote it",
        ) from error


def channel_names(path: Path) -> tuple[str, ...]:
    """Channel names of the dataset.json beside a plan; `UsageError` without one."""
    described = path.parent / "dataset.json"
    if not described.is_file():
        raise UsageError(
            "the plan does not name its channels",
            path=path,
            fix="put dataset.json beside it, or give --channels CT",
        )
    fields = read_json(described)
    names = (
        (fields.get("channel_names") or fields.get("modality"))
        if isinstance(fields, dict)
        else None
    )
    if (
        not isinstance(names, dict)
        or not names
        or not all(k.isdecimal() and isinstance(v, str) for k, v in names.items())
    ):
        raise UsageError(
            "no channel names",
            path=described,
            found=str(names)[:80],
            expected='"channel_names": {"0": "CT"}',
        )
    return tuple(names[key] for key in sorted(names, key=int))


def from_v2(fields: Mapping, channels: Sequence[str], path: str = "") -> Plan:
    """The fields of an nnU-Net v2 plan, current or of an earlier layout."""
    found = {}
    for name in fields["configurations"]:
        merged = inherited(fields["configurations"], name, path)
        if "patch_size" in merged and "previous_stage" not in merged:
            found[name] = _configuration_v2(name, merged, path)
    if not found:
        raise UsageError(
            "a plan without a configuration", path=path, found=list(fields["configurations"])
        )
    leading = next((n for n in ("3d_fullres", "3d_lowres") if n in found), next(iter(found)))
    chosen = inherited(fields["configurations"], leading, path)
    schemes = chosen["normalization_schemes"]
    if len(channels) != len(schemes):
        raise UsageError(
            "the plan has another number of channels",
            path=path,
            found=list(channels),
            expected=f"{len(schemes)} names",
        )
    properties = fields.get("foreground_intensity_properties_per_channel", {})
    intensity = {
        channel: intensity_of(
            scheme, properties.get(str(c), properties.get(c, {})), bool(masked), path
        )
        for c, (channel, scheme, masked) in enumerate(
            zip(channels, schemes, chosen["use_mask_for_norm"], strict=True)
        )
    }
    spacing = tuple(float(s) for s in chosen["spacing"])
    if len(spacing) == 2:  # a 2D plan keeps every case's own distance between slices
        between = fields.get("original_median_spacing_after_transp", (1.0,))[0]
        spacing = (float(between), *spacing)
    return Plan(
        {ANY: spacing},
        intensity,
        "stored",
        "nonzero",
        tuple(int(a) for a in fields["transpose_forward"]),
        found,
    )


def from_v1(fields: Mapping, path: str = "") -> Plan:
    """The fields of an nnU-Net v1 plan (plans.pkl) and of the forks that keep its layout."""
    found, stages = {}, fields["plans_per_stage"]
    stages = list(stages.values()) if isinstance(stages, Mapping) else list(stages)
    for k, stage in enumerate(stages):
        flat = len(stage["patch_size"]) == 2
        name = "2d" if flat else "3d_fullres" if k == len(stages) - 1 else "3d_lowres"
        found[name] = _configuration_v1(name, stage, fields)
    leading = stages[-1]
    spacing = tuple(float(s) for s in leading["current_spacing"])
    names = fields["modalities"]
    properties = (fields.get("dataset_properties") or {}).get("intensityproperties") or {}
    intensity = {}
    for c in sorted(names, key=int):
        masked = bool(fields["use_mask_for_norm"][c])
        intensity[str(names[c])] = intensity_of(
            str(fields["normalization_schemes"][c]), properties.get(c) or {}, masked, path
        )
    transpose = tuple(int(a) for a in fields.get("transpose_forward") or (0, 1, 2))
    return Plan({ANY: spacing}, intensity, "stored", "nonzero", transpose, found)


def inherited(
    configurations: Mapping, name: str, path: str = "", seen: tuple[str, ...] = ()
) -> dict:
    """The fields of a v2 configuration with inherited ones; `UsageError` if it is missing."""
    if name not in configurations or name in seen:
        raise UsageError(
            f"no such configuration {name!r} in the plan",
            path=path,
            expected=", ".join(configurations),
        )
    fields = dict(configurations[name])
    parent = fields.pop("inherits_from", None)
    return (
        fields
        if parent is None
        else inherited(configurations, parent, path, (*seen, name)) | fields
    )


def _configuration_v2(name: str, fields: Mapping, path: str) -> Configuration:
    if "architecture" in fields:
        kind, network = (
            fields["architecture"]["network_class_name"].split(".")[-1],
            fields["architecture"]["arch_kwargs"],
        )
        features = network["features_per_stage"]
        encoder = network.get("n_conv_per_stage") or network["n_blocks_per_stage"]
        strides, kernels, decoder = (
            network["strides"],
            network["kernel_sizes"],
            network["n_conv_per_stage_decoder"],
        )
    else:  # before 2.5
        kind, strides, kernels = (
            fields["UNet_class_name"],
            fields["pool_op_kernel_sizes"],
            fields["conv_kernel_sizes"],
        )
        base, most = fields["UNet_base_num_features"], fields["unet_max_num_features"]
        features = [min(most, base * 2**s) for s in range(len(strides))]
        encoder, decoder = fields["n_conv_per_stage_encoder"], fields["n_conv_per_stage_decoder"]
    if kind not in MODELS:
        raise UsageError(
            f"configuration {name!r} has a network that is not known",
            path=path,
            found=kind,
            expected=", ".join(MODELS),
        )
    return Configuration(
        name,
        IMPORTED,
        0.0,
        tuple(float(s) for s in fields["spacing"]),
        tuple(round(n) for n in fields["median_image_size_in_voxels"]),
        _ints(fields["patch_size"]),
        int(fields["batch_size"]),
        MODELS[kind],
        tuple(map(_ints, strides)),
        tuple(map(_ints, kernels)),
        _ints(features),
        _ints(encoder),
        _ints(decoder),
        bool(fields.get("batch_dice", False)),
    )


def _configuration_v1(name: str, stage: Mapping, fields: Mapping) -> Configuration:
    """Converts a v1 configuration.

    Its poolings may include an entry for the first stage; widths double from the base up to 320
    (3D) or 480 (2D).
    """
    strides, kernels = (
        [_ints(s) for s in stage["pool_op_kernel_sizes"]],
        [_ints(k) for k in stage["conv_kernel_sizes"]],
    )
    axes = len(stage["patch_size"])
    if len(strides) == len(kernels) - 1:
        strides = [(1,) * axes, *strides]
    blocks = stage.get("num_blocks_encoder")
    base, most = int(fields["base_num_features"]), 320 if axes == 3 else 480
    features = tuple(min(most, base * 2**s) for s in range(len(kernels)))
    encoder = (
        _ints(blocks)
        if blocks is not None
        else (int(fields.get("conv_per_stage", 2)),) * len(kernels)
    )
    decoder = stage.get("num_blocks_decoder")
    decoder = (
        _ints(decoder)
        if decoder is not None
        else (int(fields.get("conv_per_stage", 2)),) * (len(kernels) - 1)
    )
    median = tuple(round(float(n)) for n in stage["median_patient_size_in_voxels"])[-axes:]
    return Configuration(
        name,
        IMPORTED,
        0.0,
        tuple(float(s) for s in stage["current_spacing"])[-axes:],
        median,
        _ints(stage["patch_size"]),
        int(stage["batch_size"]),
        "unet" if blocks is None else "resenc",
        tuple(strides),
        tuple(kernels),
        features,
        encoder,
        decoder,
        len(fields["plans_per_stage"]) > 1 and name == "3d_fullres",
    )


def intensity_of(scheme: str, properties: Mapping, masked: bool, path: str = "") -> Intensity:
    """nnU-Net's normalisation of a channel.

    `scheme` is v2's class or v1's word, `properties` the plan's statistics of that channel.

    Raises: `UsageError` for an unknown scheme, and for CT without statistics.
    """
    scheme = next((known for known in SCHEMES if known.lower() == str(scheme).lower()), scheme)
    if scheme not in SCHEMES:
        raise UsageError(
            "the plan has a normalisation that is not known",
            path=path,
            found=scheme,
            expected=", ".join(SCHEMES),
        )
    ours = SCHEMES[scheme]
    if ours != "ct":
        return Intensity(ours, masked=masked and ours == "zscore")
    std = properties.get("std", properties.get("sd"))
    values = [
        properties.get("percentile_00_5"),
        properties.get("percentile_99_5"),
        properties.get("mean"),
        std,
    ]
    if any(v is None or not math.isfinite(float(v)) for v in values):
        raise UsageError(
            "CT statistics are missing from the plan",
            path=path,
            found=sorted(map(str, properties)),
            expected="percentiles, mean, std",
        )
    low, high, mean, std = map(float, values)
    return Intensity("ct", (low, high), mean, std)


def _ints(values) -> tuple[int, ...]:
    return tuple(int(v) for v in values)
