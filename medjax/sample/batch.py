"""What a batch of the training stream holds: names, shapes and types, stated once.

    image (b, *vol, m) int16, gain (b, m) f32, bias (b, m) f32
                                         normalised value = image * gain + bias, on the device
    label (b, *vol) int16                dense ids, -1 outside the image
    corpus (b,), modality (b,) int32     indices in the label space
    spacing_mm (b, 3) f32                (z, y, x), of what the sample shows
    case (b,) int32                      running number over all pools
    whole (b,) int32                     1: the whole case in the frame; only in streams that draw
                                         whole cases
    angles (b, 3) f32 rad, scale (b,) f32
                                         how the augmentation turns and scales the sample; only in
                                         streams that draw it on the host

The sampler fills it, tasks read it, a rehearsal needs its shapes. No jax here: shapes are
`jax.ShapeDtypeStruct`'s arguments, and `dequantise` works on numpy and jax arrays alike.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

VOXELS, CHANNELS = "voxels", "channels"  # stand for the sides of the patch and the image channels


@dataclasses.dataclass(frozen=True)
class Field:
    """One array of a batch.

    Attributes:
      axes: those of one sample; `VOXELS` and `CHANNELS` stand for numbers that a stream chooses.
      dtype: name of its type.
      consumed: becomes the network's image or its target; the others are facts of the sample, which
        networks may read.
    """

    axes: tuple[int | str, ...] = ()
    dtype: str = "int32"
    consumed: bool = False


FIELDS: Mapping[str, Field] = {
    "image": Field((VOXELS, CHANNELS), "int16", consumed=True),
    "gain": Field((CHANNELS,), "float32", consumed=True),
    "bias": Field((CHANNELS,), "float32", consumed=True),
    "label": Field((VOXELS,), "int16", consumed=True),
    "corpus": Field(),
    "modality": Field(),
    "spacing_mm": Field((3,), "float32"),
    "case": Field(consumed=True),
    "whole": Field(),
    "angles": Field((3,), "float32", consumed=True),
    "scale": Field((), "float32", consumed=True),
}
MOVED = ("angles", "scale")  # absent unless the stream draws rotation and scaling
OPTIONAL = ("whole", *MOVED)  # the former is absent unless the stream draws whole cases
CONSUMED = tuple(name for name, field in FIELDS.items() if field.consumed)


class Array(NamedTuple):
    """Shape and type of one array."""

    shape: tuple[int, ...]
    dtype: np.dtype


def abstract(
    batch: int, patch: Sequence[int], channels: int, *, whole: bool = False, moved: bool = False
) -> dict[str, Array]:
    """Shapes and types of one global batch.

    Args:
      patch: voxels that the sampler cuts, (z, y, x) or (y, x). channels: of the image.
      whole: the stream draws whole cases (`draw.Recipe.whole` above 0).
      moved: it draws rotation and scaling (the argument `moves` of `stream`).
    """
    absent = {*(() if whole else ("whole",)), *(() if moved else MOVED)}
    sides = {VOXELS: tuple(patch), CHANNELS: (channels,)}
    return {
        name: Array(
            (batch, *(n for axis in field.axes for n in sides.get(axis, (axis,)))),
            np.dtype(field.dtype),
        )
        for name, field in FIELDS.items()
        if name not in absent
    }


def facts(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a batch that do not become image or target, with whatever else it holds."""
    return {name: value for name, value in batch.items() if name not in CONSUMED}


def dequantise(batch: Mapping[str, Any]) -> Any:
    """The normalised float32 image (b, *vol, m) of a batch, or (*vol, m) of one sample.

    Args:
      batch: with image, gain and bias, of numpy or jax.
    """
    image = batch["image"]

    def spread(numbers: Any) -> Any:
        between = (1,) * (image.ndim - numbers.ndim)
        return numbers.reshape(*numbers.shape[:-1], *between, numbers.shape[-1])

    return image.astype(np.float32) * spread(batch["gain"]) + spread(batch["bias"])
