"""A whole case in the frame of a patch, for networks that see a volume at once.

In: a prepared case. Out: its image and label resampled to a fixed size by the rules of a plan with
the grid "size" (`prepare/resample.py`), in the middle of a patch; or by those of
`prepare/frame.py`, which keep the shape of small volumes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from medjax.prepare import resample
from medjax.prepare.frame import IMAGES, LABELS, Frame
from medjax.sample.patches import PADDING


def stored_zero(gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """(m,) int16: the stored value that is closest to the normalised value 0."""
    limits = np.iinfo(np.int16)
    return np.clip(np.rint(-bias.astype(float) / gain), limits.min, limits.max).astype(np.int16)


IMAGE_WAYS, LABEL_WAYS = ("spline", *IMAGES), ("vote", *LABELS)


def whole(
    case: Any,
    patch: Sequence[int],
    final: Sequence[int],
    image_way: str = "spline",
    label_way: str = "vote",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The whole case resampled to `final` voxels, centred in `patch` voxels.

    Args:
      case: a `store.StoredCase`. patch, final: (z, y, x), no side of `final` larger.
      image_way: "spline", whatever the extent, or "area" or "nearest" (`prepare.frame`), where a
        volume that is smaller than `final` gets a margin. label_way: "vote", or "nearest" or "area"
        with the other ways of images.

    Returns: image (*patch, m) int16 and label (*patch) int16, outside `final` the value 0 and -1;
      spacing (3,) float32 in mm: extent / final.
    """
    meta = case.meta
    shape, spacing = tuple(meta["shape"]), np.asarray(meta["spacing_mm"], float)
    shown = spacing * np.asarray(shape) / np.asarray(final)
    gain, bias = (np.asarray(meta[name], np.float32) for name in ("gain", "bias"))
    stored, masks = case.image(tuple(slice(0, n) for n in shape)), meta.get("masks", ())
    image = np.empty((*patch, len(gain)), np.int16)
    image[...] = stored_zero(gain, bias)
    label = np.full(tuple(patch), PADDING, np.int16)
    # as a central crop takes it out again (`augment.spatial.crop_start`)
    middle = tuple(
        slice(p // 2 - f // 2, p // 2 - f // 2 + f) for p, f in zip(patch, final, strict=True)
    )
    if image_way != "spline":
        lies = Frame(shape, tuple(final), pad=True)
        zero = stored_zero(gain, bias)
        for c in range(len(gain)):
            way = "nearest" if c in masks else image_way
            image[(*middle, c)] = np.rint(lies.image(stored[..., c], way, zero[c]))
        ids = np.asarray(case.label(outside=PADDING), np.int16)
        label[middle] = lies.label(ids, label_way, PADDING)
        shown = spacing / lies.scale
        return image, label, shown.astype(np.float32)
    near = [resample.nearest(a, b) for a, b in zip(shape, final, strict=True)]
    for c in range(len(gain)):
        channel = (
            stored[..., c][np.ix_(*near)]
            if c in masks
            else np.rint(resample.resample_image(stored[..., c], final, spacing, shown))
        )
        image[(*middle, c)] = channel
    ids = np.asarray(case.label(outside=PADDING), np.int16)
    label[middle] = resample.resample_label(ids, final, spacing, shown)
    return image, label, shown.astype(np.float32)
