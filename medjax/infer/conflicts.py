"""Exclusive classes that are predicted in one voxel: which of them the label map shows.

In: thresholded channels that may overlap, and the scores behind them. Out: the channels that are
painted. Two classes of a corpus exclude each other if no label value holds both; nested classes
(a tumour within the liver) never conflict and are painted as before.

    ordered  all are painted in the order of `LabelSpace.precedence`, the later over the earlier
             (MultiTalent's rule)
    argmax   of exclusive classes above the threshold the one with the largest probability wins
    calibrated  the same after temperature scaling: every class' log-odds are divided by its
             temperature, chosen on validation data (`medjax calibrate`)

The masks of single classes are not changed by any rule.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from medjax.decision import Decision
from medjax.labels import LabelSpace

ORDERED, ARGMAX, CALIBRATED = "ordered", "argmax", "calibrated"
RULES = (ORDERED, ARGMAX, CALIBRATED)


def excluding(space: LabelSpace, corpus: str, names: Sequence[str]) -> Bool[np.ndarray, "c c"]:
    """Whether two classes of a corpus exclude each other, for some classes of the space.

    A class that the corpus does not annotate excludes none.
    """
    k = space.corpus_index(corpus)
    table = space.table[k][:, [space.class_index(name) for name in names]]  # (id, class)
    together = table.T.astype(np.int32) @ table > 0
    annotated = np.diagonal(together)
    return annotated[:, None] & annotated[None] & ~together


def strength(space: LabelSpace, names: Sequence[str]) -> list[int]:
    """The positions of some classes by precedence, weakest first."""
    return sorted(range(len(names)), key=lambda k: space.precedence.index(names[k]))


def overlapping(
    mask: Bool[np.ndarray, "*vol c"], excluding: Bool[np.ndarray, "c c"]
) -> Bool[np.ndarray, "*vol"]:
    """Voxels in which two exclusive classes are predicted."""
    found = np.zeros(mask.shape[:-1], bool)
    places = np.flatnonzero(mask.sum(-1, dtype=np.uint16) > 1)
    if not len(places):
        return found
    rows = mask.reshape(-1, mask.shape[-1])[places]
    found.reshape(-1)[places] = (rows & _excluded(rows, excluding)).any(-1)
    return found


def settled(
    mask: Bool[np.ndarray, "*vol c"],
    values: Float[np.ndarray, "*vol c"],
    excluding: Bool[np.ndarray, "c c"],
    strength: Sequence[int],
    where: Bool[np.ndarray, "*vol"],
    scale: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Bool[np.ndarray, "*vol c"]:
    """The mask in which no two exclusive classes share a voxel.

    From the largest value down, a class stays unless it excludes one that stays; nested classes
    stay together.

    Args:
      values: probabilities or logits. strength: channels by precedence, weakest first; of equal
        values the stronger wins. where: see `overlapping`. scale: values of some voxels (n, c) ->
        what is compared, see `odds`.
    """
    places, classes = np.flatnonzero(where), mask.shape[-1]
    if not len(places):
        return mask
    rows = mask.reshape(-1, classes)[places]
    columns = np.asarray(strength)[::-1]
    compared = values.reshape(-1, classes)[places]
    scores = np.where(rows, scale(compared) if scale else compared, -np.inf)[:, columns]
    order = columns[np.argsort(-scores, -1, kind="stable")]
    kept, n = np.zeros_like(rows), np.arange(len(rows))
    for k in order.T:
        kept[n, k] = rows[n, k] & ~(kept & excluding[k]).any(-1)
    out = mask.copy()
    out.reshape(-1, classes)[places] = kept
    return out


def odds(
    decision: Decision, temperatures: Mapping[str, float], names: Sequence[str]
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Values of the classes (n, c) -> log-odds at their temperatures; None without temperatures."""
    by = np.array([temperatures.get(name, 1.0) for name in names], np.float32)
    return (lambda values: decision.log_odds(values) / by) if temperatures else None


def standing(
    mask: Bool[np.ndarray, "*vol c"],
    beaten: Bool[np.ndarray, "*vol c"],
    excluding: Bool[np.ndarray, "c c"],
) -> Bool[np.ndarray, "*vol c"]:
    """The mask without the classes that lost a voxel to one which is still there.

    For masks that were changed after `settled`: where the winner was removed, the loser is painted.
    """
    places = np.flatnonzero(beaten.any(-1))
    if not len(places):
        return mask
    classes = mask.shape[-1]
    rows, lost = mask.reshape(-1, classes)[places], beaten.reshape(-1, classes)[places]
    out = mask.copy()
    out.reshape(-1, classes)[places] = rows & ~(lost & _excluded(rows & ~lost, excluding))
    return out


def _excluded(rows: np.ndarray, excluding: np.ndarray) -> np.ndarray:
    """(n, c): whether a class is excluded by one of the row's."""
    return rows.astype(np.float32) @ excluding.astype(np.float32) > 0
