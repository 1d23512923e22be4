"""Whether probabilities mean what they say, and the temperature that mends them.

In: foreground probabilities of single voxels, and whether they are foreground in the reference.
Out: a reliability table, the expected calibration error, Brier score and log-likelihood; the
temperature of the smallest negative log-likelihood.

Source: Guo et al., On Calibration of Modern Neural Networks, 2017 (equal-width bins, temperature).
Voxels may have weights: a sample that holds more of the foreground than the scan is weighted back.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize

from medjax.decision import LEAST, Sigmoid, Softmax
from medjax.errors import MetricError

BINS = 15
COLDEST, HOTTEST = 0.05, 20.0  # limits of a temperature

Voxels = Float[np.ndarray, " n"]
Truth = Bool[np.ndarray, " n"]


def reliability(
    probability: Voxels, truth: Truth, weight: Voxels | None = None, *, bins: int = BINS
) -> list[dict[str, Any]]:
    """The reliability table: voxels by their probability, in bins of equal width.

    Args:
      probability: of the foreground. truth: whether a voxel is foreground. weight: how many voxels
        each stands for; default 1.

    Returns: per bin {"low", "high", "voxels" (sum of weights), "confidence" (mean probability),
      "frequency" (share of foreground)}; the means are None in an empty bin. A probability on a
      border belongs to the upper bin, 1 to the last.
    Raises: `MetricError` for other lengths, a value outside of 0 to 1, or no bin.
    """
    weight = _checked(probability, truth, weight)
    if bins < 1:
        raise MetricError("a reliability table needs a bin", found=bins)
    p = np.asarray(probability, np.float64)
    place = np.minimum((p * bins).astype(int), bins - 1)
    total = np.bincount(place, weight, bins)
    confident, found = (np.bincount(place, weight * x, bins) for x in (p, truth))
    return [
        {
            "low": k / bins,
            "high": (k + 1) / bins,
            "voxels": float(n),
            "confidence": float(confident[k] / n) if n else None,
            "frequency": float(found[k] / n) if n else None,
        }
        for k, n in enumerate(total)
    ]


def ece(table: list[dict[str, Any]]) -> float | None:
    """Expected calibration error of a reliability table: the mean over voxels of |confidence -
    frequency| of their bin; None without a voxel.
    """
    total = sum(row["voxels"] for row in table)
    if not total:
        return None
    used = [row for row in table if row["voxels"]]
    gaps = (row["voxels"] * abs(row["confidence"] - row["frequency"]) for row in used)
    return float(sum(gaps) / total)


def brier(probability: Voxels, truth: Truth, weight: Voxels | None = None) -> float | None:
    """Mean of (probability - truth) squared (Brier, 1950); None without a voxel."""
    weight = _checked(probability, truth, weight)
    return _mean((np.asarray(probability, np.float64) - truth) ** 2, weight)


def nll(probability: Voxels, truth: Truth, weight: Voxels | None = None) -> float | None:
    """Mean negative log-likelihood in nats, finite by `decision.LEAST`; None without a voxel."""
    weight = _checked(probability, truth, weight)
    p = _inside(probability)
    return _mean(-np.log(np.where(truth, p, 1 - p)), weight)


def scaled(probability: Any, temperature: float) -> Any:
    """Foreground probabilities of any shape at a temperature, see `decision.Sigmoid.tempered`.

    1/2 stays 1/2: what is above the threshold stays above it.
    """
    return Sigmoid().tempered(np.asarray(probability, np.float64), temperature)


def scaled_together(
    probabilities: Float[np.ndarray, "n c"], temperature: float
) -> Float[np.ndarray, "n c"]:
    """Probabilities of exclusive classes at a temperature, see `decision.Softmax.tempered`: the
    background has what they leave of 1.
    """
    return Softmax().tempered(np.asarray(probabilities, np.float64), temperature)


def temperature(
    probability: Voxels, truth: Truth, weight: Voxels | None = None
) -> tuple[float, bool]:
    """The temperature of a class with the smallest negative log-likelihood, and whether the voxels
    could tell: 1 and False without foreground or without background.
    """
    weight = _checked(probability, truth, weight)
    counted = truth[weight > 0]
    if counted.all() or not counted.any():
        return 1.0, False
    return _coolest(lambda t: nll(scaled(probability, t), truth, weight)), True


def temperature_together(
    probabilities: Float[np.ndarray, "n c"],
    truth: Int[np.ndarray, " n"],
    known: Bool[np.ndarray, "n c"],
    weight: Voxels | None = None,
) -> tuple[float, bool]:
    """The one temperature of a softmax, see `temperature`.

    Args:
      truth: 0 for background, 1 + k for class k.
      known: which classes the reference of a voxel annotates. What is none of them counts as
        background, so the background has the probabilities of the others as well.
    """
    weight = np.ones(len(truth)) if weight is None else np.asarray(weight, np.float64)
    if len(np.unique(truth[weight > 0])) < 2:
        return 1.0, False

    def loss(t: float) -> float | None:
        return _mean(-np.log(_inside(likelihood(probabilities, truth, known, t))), weight)

    return _coolest(loss), True


def likelihood(
    probabilities: Float[np.ndarray, "n c"],
    truth: Int[np.ndarray, " n"],
    known: Bool[np.ndarray, "n c"],
    temperature: float,
) -> Voxels:
    """What a softmax at a temperature gives to the truth, see `temperature_together`."""
    p = scaled_together(probabilities, temperature)
    background = 1 - np.where(known, p, 0).sum(-1)
    own = np.take_along_axis(p, np.maximum(truth - 1, 0)[:, None], 1)[:, 0]
    return np.where(truth == 0, background, own)


def _coolest(loss: Callable[[float], float | None]) -> float:
    """The temperature of the smallest loss; 1 where none is better."""
    limits = tuple(np.log([COLDEST, HOTTEST]))
    found = optimize.minimize_scalar(
        lambda x: loss(float(np.exp(x))), bounds=limits, method="bounded"
    )
    best = float(np.exp(found.x))
    return best if loss(best) < loss(1.0) else 1.0


def _inside(probability: Any) -> np.ndarray:
    return np.clip(np.asarray(probability, np.float64), LEAST, 1 - LEAST)


def _mean(values: np.ndarray, weight: np.ndarray) -> float | None:
    total = weight.sum()
    return float((values * weight).sum() / total) if total else None


def _checked(probability: np.ndarray, truth: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """The weights as given, or 1 for every voxel."""
    weight = np.ones(len(probability)) if weight is None else np.asarray(weight, np.float64)
    if not len(probability) == len(truth) == len(weight):
        raise MetricError(
            "probabilities, truth and weights differ in length",
            found=(len(probability), len(truth), len(weight)),
        )
    if len(probability) and not (probability.min() >= 0 and probability.max() <= 1):
        raise MetricError("probabilities lie between 0 and 1")  # NaN fails both comparisons
    return weight
