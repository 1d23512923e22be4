"""Voxel counts, Dice, IoU and volumes of label maps. Pure numpy; one pass over the voxels serves every class.

In: two bool masks, or two dense-id volumes and the table (id, class) of what each id belongs to. Out: integer counts and ratios.
Dice = 2 TP / (2 TP + FP + FN), IoU = TP / (TP + FP + FN); both are nan where reference and prediction are empty (`aggregate` leaves
those out).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Integer

from medjax.errors import MetricError


class Counts(NamedTuple):
    """Voxel counts of one class in one case."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def n_reference(self) -> int:
        """Voxels of the reference."""
        return self.tp + self.fn

    @property
    def n_prediction(self) -> int:
        """Voxels of the prediction."""
        return self.tp + self.fp

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN), nan if both are empty."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else float("nan")

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN), nan if both are empty."""
        total = self.tp + self.fp + self.fn
        return self.tp / total if total else float("nan")


def count(
    reference: Bool[np.ndarray, "*vol"], prediction: Bool[np.ndarray, "..."], valid: Bool[np.ndarray, "*vol"] | None = None
) -> Counts:
    """Counts of two masks of equal shape, over the voxels where `valid` (default: everywhere)."""
    if reference.shape != prediction.shape:
        raise MetricError("masks of different shape", found=prediction.shape, expected=reference.shape)
    if valid is not None:
        reference, prediction = reference[valid], prediction[valid]
    tp = int(np.count_nonzero(reference & prediction))
    fn, fp = int(np.count_nonzero(reference)) - tp, int(np.count_nonzero(prediction)) - tp
    return Counts(tp, fp, fn, reference.size - tp - fp - fn)


def confusion(reference: Integer[np.ndarray, "*vol"], prediction: Integer[np.ndarray, "..."], ids: int) -> Int[np.ndarray, "ids ids"]:
    """How often each pair (reference id, prediction id) occurs; ids are 0 .. ids-1."""
    if reference.shape != prediction.shape:
        raise MetricError("label maps of different shape", found=prediction.shape, expected=reference.shape)
    table = np.zeros(ids * ids, np.int64)
    for a, b in zip(_planes(reference), _planes(prediction), strict=True):  # plane by plane: the joint index never needs a whole volume
        table += np.bincount(a.astype(np.int64).ravel() * ids + b.ravel(), minlength=ids * ids)
    return table.reshape(ids, ids)


def count_classes(table: Int[np.ndarray, "i i"], members: Bool[np.ndarray, "i c"], ignore_id: int = -1) -> list[Counts]:
    """Counts per class from a confusion table.

    Args:
      table: from `confusion`.
      members: which ids belong to each class; a class may own several ids and an id several classes.
      ignore_id: reference id whose voxels are left out altogether (negative: none).
    """
    if ignore_id >= 0:
        table = table.copy()
        table[ignore_id] = 0
    total = int(table.sum())
    counts = []
    for member in members.T:
        tp = int(table[np.ix_(member, member)].sum())
        fn, fp = int(table[member].sum()) - tp, int(table[:, member].sum()) - tp
        counts.append(Counts(tp, fp, fn, total - tp - fp - fn))
    return counts


def volume_ml(voxels: int, spacing_mm: Sequence[float]) -> float:
    """Millilitres taken by a number of voxels of the given size."""
    return float(voxels * np.prod(np.asarray(spacing_mm, float)) / 1000)


def _planes(volume: np.ndarray):
    return volume if volume.ndim > 1 else volume[None]
