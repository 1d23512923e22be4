"""Classes, normalisation, spacing, patch and prediction settings from nnU-Net's plans.

In: the JSON-like structures of version 2 (contained in every checkpoint) or version 1 (plans.pkl
beside it, and the data set's dataset.json). Out: a `Description` in medjax's terms. nnU-Net may
have transposed the axes of its arrays; everything here is in the image's order (z, y, x) again, and
`in_image_order` converts the kernels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax.errors import ModelError
from medjax.labels import Corpus, LabelSpace
from medjax.prepare.plan import Plan
from medjax.weights.foreign_plans.convert import inherited, intensity_of

REORIENTING = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")


@dataclasses.dataclass(frozen=True)
class Description:
    """Description of a trained model.

    Attributes:
      space, plan: meaning of its channels; preparation of scans. None if unknown.
      patch: (z, y, x) of the network. batch: of its training.
      average: what the original software averages over windows and mirrors, "logit" or "prob".
      mirror_axes: axes of test-time mirroring.
      backward: for each axis of the image, the axis of nnU-Net's arrays.
      notes: differences in medjax.
    """

    space: LabelSpace | None = None
    plan: Plan | None = None
    patch: tuple[int, ...] = ()
    batch: int = 2
    average: str = "logit"
    mirror_axes: tuple[int, ...] = (0, 1, 2)
    backward: tuple[int, ...] = (0, 1, 2)
    notes: tuple[str, ...] = ()


def from_v2(
    plans: Mapping,
    configuration: str,
    dataset: Mapping,
    name: str = "",
    mirror_axes: Sequence[int] | None = None,
) -> Description:
    """The description in a version 2 checkpoint's `init_args` (or in plans.json and dataset.json).

    Args:
      configuration: "3d_fullres", "3d_lowres", ... name: of the corpus; default the plans' data
        set.
      mirror_axes: of nnU-Net's arrays; None: all three.

    Raises: `ModelError` for 2D and cascaded configurations and for layers medjax does not have,
      `UsageError` for a configuration or a normalisation it does not know.
    """
    chosen = inherited(plans["configurations"], configuration)
    if (
        len(chosen["patch_size"]) != 3
        or chosen.get("previous_stage")
        or chosen.get("previous_stage_name")
    ):
        raise ModelError(
            "only single 3D configurations can be imported",
            found=configuration,
            fix="import 3d_fullres or 3d_lowres",
        )
    given = chosen.get("architecture", {}).get("arch_kwargs", {})
    for key, wanted in (
        ("nonlin", "LeakyReLU"),
        ("norm_op", "InstanceNorm"),
        ("dropout_op", "None"),
    ):
        if wanted not in str(given.get(key, wanted)):
            raise ModelError(f"the plans ask for another {key}", found=given[key], expected=wanted)
    forward, backward = _transposed(plans)
    channels = _channels(dataset.get("channel_names") or dataset.get("modality") or {"0": "CT"})
    statistics, masks = (
        plans["foreground_intensity_properties_per_channel"],
        chosen.get("use_mask_for_norm", [False] * len(channels)),
    )
    intensity = {
        channel: intensity_of(scheme, statistics.get(str(i), {}), bool(masked))
        for i, (channel, scheme, masked) in enumerate(
            zip(channels, chosen["normalization_schemes"], masks, strict=True)
        )
    }
    name = name or str(plans["dataset_name"])
    orientation = "RAS" if plans.get("image_reader_writer") in REORIENTING else "stored"
    spacing = tuple(float(s) for s in _back(chosen["spacing"], backward))
    mirrored = range(3) if mirror_axes is None else mirror_axes
    return Description(
        label_space(dataset["labels"], channels, name),
        Plan({name: spacing}, intensity, orientation),
        tuple(int(n) for n in _back(chosen["patch_size"], backward)),
        int(chosen.get("batch_size", 2)),
        "logit",
        tuple(sorted(int(forward[a]) for a in mirrored)),
        backward,
    )


def from_v1(plans: Mapping, dataset: Mapping, name: str, stage: int | None = None) -> Description:
    """The description in version 1's plans.pkl (from `torch_file.read_plain`) and dataset.json.

    Args:
      stage: of the plan; None: the finest.
    """
    stages = plans["plans_per_stage"]
    chosen = stages[max(stages) if stage is None else stage]
    _, backward = _transposed(plans)
    channels = _channels(dataset.get("modality") or dataset.get("channel_names") or {"0": "CT"})
    statistics = plans["dataset_properties"].get("intensityproperties") or {}
    schemes, masks = plans["normalization_schemes"], plans.get("use_mask_for_norm") or {}
    intensity = {
        c: intensity_of(str(schemes[i]), statistics.get(i) or {}, bool(masks.get(i)))
        for i, c in enumerate(channels)
    }
    return Description(
        label_space(dataset["labels"], channels, name),
        Plan(
            {name: tuple(float(s) for s in _back(chosen["current_spacing"], backward))},
            intensity,
            "stored",
        ),
        tuple(int(n) for n in _back(chosen["patch_size"], backward)),
        int(chosen["batch_size"]),
        "prob",
        (0, 1, 2),
        backward,
        ("nnU-Net v1 resamples before it normalises, medjax after",),
    )


def label_space(
    labels: Mapping[str, Any], channels: Sequence[str], name: str, modality: str = ""
) -> LabelSpace:
    """A dataset.json's labels as a label space of one corpus.

    Labels in either direction, or regions in the order of their channels.
    """
    if labels and all(str(key).lstrip("-").isdigit() for key in labels):
        labels = {str(label): int(value) for value, label in labels.items()}
    values = {str(k): tuple(v) if isinstance(v, list | tuple) else (v,) for k, v in labels.items()}
    ignore = values.pop("ignore", (None,))[0]
    values = {k: tuple(int(i) for i in v) for k, v in values.items() if set(v) != {0}}
    if not any(len(v) > 1 for v in values.values()):
        values = dict(sorted(values.items(), key=lambda item: item[1]))
    raw = sorted({i for v in values.values() for i in v if i})
    rows = tuple((i, tuple(k for k, v in values.items() if i in v)) for i in raw)
    corpus = Corpus(
        name,
        rows,
        channels=tuple(channels),
        modality=modality or _modality(channels),
        ignore=ignore,
    )
    classes = tuple(values)
    return LabelSpace(classes, (corpus,), (tuple((k, k) for k in classes),), classes)


def in_image_order(
    tensors: Mapping[str, np.ndarray], backward: Sequence[int]
) -> dict[str, np.ndarray]:
    """Convolution kernels (out, in, *k) with spatial axes in the image's order, not nnU-Net's."""
    if tuple(backward) == (0, 1, 2):
        return dict(tensors)
    return {
        n: t.transpose(0, 1, *(2 + b for b in backward)) if t.ndim == 5 else t
        for n, t in tensors.items()
    }


def dataset_name(path: Path) -> str:
    """A corpus name for files without one: the name of the folder, or of the file."""
    found = next(
        (p.name for p in path.absolute().parents if p.name.startswith(("Dataset", "Task"))),
        path.stem,
    )
    return found.replace("/", "_")


def _transposed(plans: Mapping) -> tuple[tuple[int, ...], tuple[int, ...]]:
    forward = tuple(int(a) for a in plans.get("transpose_forward", (0, 1, 2)))
    return forward, tuple(forward.index(a) for a in range(3))


def _back(values: Any, backward: Sequence[int]) -> list:
    return [values[b] for b in backward]


def _channels(named: Mapping) -> tuple[str, ...]:
    names = [str(named[key]) for key in sorted(named, key=int)]
    return tuple(n if names.count(n) == 1 else f"{n}_{i}" for i, n in enumerate(names))


def _modality(channels: Sequence[str]) -> str:
    return "CT" if all(c.lower().startswith("ct") for c in channels) else "MR"
