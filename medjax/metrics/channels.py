"""Scores of the classes' own channels, beside those of the label map that is painted from them.

In: the masks of a prediction, which may overlap, and the reference. Out: voxel counts for the
sidecar of the prediction, and, read from there, for its evaluation. A label map has one value per
voxel: of exclusive classes that share voxels it hides all but one, so its scores mix what a channel
knows with the rule that paints (`infer.conflicts`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax.corpora.inputs import Case
from medjax.infer import owned
from medjax.infer.conflicts import ORDERED
from medjax.labels import Corpus
from medjax.metrics import counts as overlap
from medjax.metrics import side
from medjax.metrics.aggregate import OWN_CHANNEL
from medjax.scans import nifti

FIELD = "channels"  # of the sidecar: class -> [TP, FP, FN, TN]


def count(
    case: Case,
    volume: nifti.Volume,
    masks: Mapping[str, np.ndarray],
    corpus: Corpus,
    channel_of: Mapping[str, str],
) -> dict[str, list[int]]:
    """Class -> TP, FP, FN, TN of its own channel; voxels of the ignore value are left out.

    Args:
      case: with the reference. volume: the grid of the scan and the masks. masks: channel -> (z, y,
        x) bool. channel_of: class of the corpus -> channel.

    Raises: `MedjaxError` for a reference that cannot be read, or on another grid.
    """
    reference = side.open_masks(case.label_files[0], corpus, case, like=volume)
    nifti.check_same_geometry(reference.volume, volume)
    whole = tuple(slice(0, n) for n in reference.volume.shape)
    valid = reference.valid(whole)
    return {
        name: list(overlap.count(reference.mask(name, whole), masks[channel], valid))
        for name, channel in channel_of.items()
        if channel in masks
    }


def read(folder: Path, case: str, names: Sequence[str]) -> dict[str, overlap.Counts]:
    """What the sidecar of a prediction holds of `count`; nothing for one without it."""
    found = (owned.sidecar(folder, case) or {}).get(FIELD)
    if not isinstance(found, Mapping):
        return {}
    return {
        name: overlap.Counts(*found[name])
        for name in names
        if isinstance(found.get(name), list)
        and len(found[name]) == 4
        and all(type(n) is int and n >= 0 for n in found[name])
    }


def scores(counts: overlap.Counts | None) -> dict[str, float]:
    """The row's score of a channel; none where reference and channel are empty."""
    if counts is None or not counts.n_reference + counts.n_prediction:
        return {}
    return {OWN_CHANNEL: counts.dice}


def conflicts(predictions: Sequence[tuple[Path, str]]) -> dict[str, Any]:
    """Predicted foreground voxels, and how many of them hold two exclusive classes.

    Args:
      predictions: (folder, case) of every prediction.

    Returns: {"voxels", "foreground", "share", "rule"}; share is None without foreground, the rule
      one of `infer.conflicts.RULES`. Empty if no sidecar counts them.
    """
    sides = [owned.sidecar(folder, case) or {} for folder, case in predictions]
    counted = [(side["conflicts"], side) for side in sides if _is_counted(side.get("conflicts"))]
    if not counted:
        return {}
    voxels, foreground = (
        sum(entry[key] for entry, _ in counted) for key in ("voxels", "foreground")
    )
    share = voxels / foreground if foreground else None
    rule = (counted[0][1].get("settings") or {}).get("conflicts", ORDERED)
    return {"voxels": voxels, "foreground": foreground, "share": share, "rule": rule}


def _is_counted(entry: Any) -> bool:
    return isinstance(entry, Mapping) and all(
        type(entry.get(key)) is int for key in ("voxels", "foreground")
    )
