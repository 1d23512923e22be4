"""Voxel counts, Dice, IoU and volumes of masks. Pure numpy.

In: two bool masks. Out: integer counts and ratios.
Dice = 2 TP / (2 TP + FP + FN), IoU = TP / (TP + FP + FN); both are nan where reference and
prediction are empty (`aggregate` leaves those out).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

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
    reference: Bool[np.ndarray, "*vol"],
    prediction: Bool[np.ndarray, "..."],
    valid: Bool[np.ndarray, "*vol"] | None = None,
) -> Counts:
    """Counts of two masks of equal shape, over the voxels where `valid` (default: everywhere)."""
    if reference.shape != prediction.shape:
        raise MetricError(
            "masks of different shape", found=prediction.shape, expected=reference.shape
        )
    if valid is not None:
        reference, prediction = reference[valid], prediction[valid]
    tp = int(np.count_nonzero(reference & prediction))
    fn, fp = int(np.count_nonzero(reference)) - tp, int(np.count_nonzero(prediction)) - tp
    return Counts(tp, fp, fn, reference.size - tp - fp - fn)


def volume_ml(voxels: int, spacing_mm: Sequence[float]) -> float:
    """Millilitres taken by a number of voxels of the given size."""
    return float(voxels * np.prod(np.asarray(spacing_mm, float)) / 1000)
