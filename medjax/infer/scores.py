"""What the scores of a network mean: probabilities, the classes of a voxel, and how certain they
are.

In: logits of a batch, on the device; blended values of a block (rows, y, x, c), on the host. Out:
probabilities, decisions and uncertainties of the same grid.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from medjax.errors import UsageError, did_you_mean

ACTIVATIONS = ("sigmoid", "softmax")
AVERAGES = ("prob", "logit")
# stands in for the -inf of masked channels: sigmoid and exp of it are exactly 0, and it can be
# averaged
LOWEST = -1e4
UNCERTAINTIES = {
    "entropy": "bits: of the averaged class probabilities with the background (softmax), or of "
    "the least certain class (sigmoid); 0 to 1 "
    "for sigmoid",
    "disagreement": "standard deviation of the probability over mirrors, folds and seeds, of the "
    "class where it is largest; 0 to 0.5",
}


@dataclasses.dataclass(frozen=True)
class Decision:
    """How scores are averaged, and which classes a voxel gets.

    Attributes:
      activation: "sigmoid": a class is where its probability is above 1/2. "softmax": a voxel gets
        the class with the largest probability, or none if the background's is larger.
      average: what is averaged over windows, mirrors, members and networks: "prob" or "logit". In
        what follows, "values" are of this kind.

    Raises: `UsageError` for other words.
    """

    activation: str = "sigmoid"
    average: str = "prob"

    def __post_init__(self):
        for word, known, what in (
            (self.average, AVERAGES, "average"),
            (self.activation, ACTIVATIONS, "activation"),
        ):
            if word not in known:
                raise UsageError(f"unknown {what} {word!r}", fix=did_you_mean(word, known))

    @property
    def exclusive(self) -> bool:
        """Whether a voxel has one class at most."""
        return self.activation == "softmax"

    def class_logits(
        self, logits: Float[Array, "k *vol c"], classes: int
    ) -> Float[Array, "k *vol d"]:
        """One logit per class, for softmax relative to the background's; -inf (a masked class)
        becomes finite, +inf NaN.

        Raises: `UsageError` for another number of channels.
        """
        logits = jnp.where(
            logits < jnp.inf, logits, jnp.nan
        )  # a probability of 1 would hide an overflow
        if self.exclusive and logits.shape[-1] == classes + 1:
            logits = logits[..., 1:] - logits[..., :1]
        if logits.shape[-1] != classes:
            raise UsageError(
                "the network's channels are not those of the label space",
                found=logits.shape[-1],
                expected=classes,
            )
        return jnp.maximum(logits, LOWEST)

    def activated(self, logits: Float[Array, "*any c"]) -> Float[Array, "*any c"]:
        """`class_logits` -> probabilities, on the device."""
        return softmax(logits, jnp) if self.exclusive else jax.nn.sigmoid(logits)

    def probabilities(self, block: np.ndarray) -> np.ndarray:
        """Values -> probabilities (they are such already unless logits were averaged)."""
        if self.average == "prob":
            return block
        if self.exclusive:
            return softmax(block, np)
        return 1 / (1 + np.exp(-np.clip(block, -80, 80)))

    def candidates(self, block: np.ndarray) -> np.ndarray:
        """Channels of values (rows, y, x, c) that may be decided for somewhere in the block,
        resampled or not.

        Interpolation stays below the largest sample, so a class that nowhere comes near what it
        needs cannot get it in between: a probability of 1/2 (sigmoid) or of a share of its rivals
        (softmax), a logit of 0.
        """
        if self.average == "logit":
            least = 0.0
        else:
            least = 1 / (block.shape[-1] + 1) if self.exclusive else 0.5
        return np.flatnonzero(block.reshape(-1, block.shape[-1]).max(0) > least - 1e-4)

    def narrowed(self, block: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """The `kept` channels, and what else `decide` needs of the others: their sum, where
        probabilities compete.
        """
        if self.exclusive and self.average == "prob":
            return np.concatenate([block[..., kept], block.sum(-1, keepdims=True)], -1)
        return block[..., kept]

    def decide(self, block: np.ndarray, total: np.ndarray | None = None) -> np.ndarray:
        """Values (rows, y, x, c) -> bool. A softmax is decided over all classes, background
        included.

        Args:
          total: (rows, y, x) sum over all classes, where `block` holds only some; see `narrowed`.
        """
        if not self.exclusive:
            return block > (0.5 if self.average == "prob" else 0.0)
        if block.shape[-1] == 0:
            return np.zeros(block.shape, bool)
        background = (
            1 - (block.sum(-1) if total is None else total) if self.average == "prob" else 0.0
        )
        winner = block.argmax(-1)
        foreground = np.take_along_axis(block, winner[..., None], -1)[..., 0] > background
        out = np.zeros(block.shape, bool)
        np.put_along_axis(out, winner[..., None], foreground[..., None], -1)
        return out

    def averaged(
        self,
        found: Sequence[np.ndarray],
        members: Sequence[int],
        spreads: Sequence[bool],
        classes: int,
    ) -> tuple[np.ndarray, np.ndarray | float]:
        """Values of several networks -> their mean, and the standard deviation over all members.

        Args:
          found: (rows, y, x, c) of each network; its deviation follows as one more channel where
            `spreads`.
          members: of each network, which is its weight. classes: c.

        Returns: (rows, y, x, c); and (rows, y, x), or 0 where a network has no deviation.
        """
        if len(found) == 1:
            block = found[0]
            return (block[..., :classes], block[..., classes]) if spreads[0] else (block, 0.0)
        weights = np.array(members, np.float32)
        weights /= weights.sum()
        block = sum(w * b[..., :classes] for w, b in zip(weights, found, strict=True))
        if not all(spreads):
            return block, 0.0
        probabilities = [self.probabilities(b[..., :classes]) for b in found]
        centre = sum(w * p for w, p in zip(weights, probabilities, strict=True))
        between = sum(
            w * np.square(p - centre) for w, p in zip(weights, probabilities, strict=True)
        ).max(-1)
        within = sum(w * np.square(b[..., classes]) for w, b in zip(weights, found, strict=True))
        return block, np.sqrt(between + within)


def softmax(logits: Any, numpy: Any) -> Any:
    """Class probabilities of a softmax with an implicit background logit of 0.

    Args:
      logits: (..., c). numpy: the library of the array, numpy or jax.numpy.
    """
    highest = numpy.maximum(logits.max(-1, keepdims=True), 0)
    exponentials = numpy.exp(logits - highest)
    return exponentials / (exponentials.sum(-1, keepdims=True) + numpy.exp(-highest))


def entropy(probabilities: np.ndarray, *, exclusive: bool) -> np.ndarray:
    """Shannon entropy in bits of (..., c) class probabilities.

    Args:
      exclusive: the classes and the background share 1 (softmax); otherwise each class is a yes or
        no of its own, and the largest of their entropies is taken: -p log2 p - (1 - p) log2 (1 -
        p).
    """

    def term(p: np.ndarray) -> np.ndarray:
        return -p * np.log2(np.maximum(p, 1e-12))

    p = np.clip(probabilities, 0, 1)
    if exclusive:
        return term(p).sum(-1) + term(np.maximum(1 - p.sum(-1), 0))
    least = np.take_along_axis(p, np.abs(p - 0.5).argmin(-1)[..., None], -1)[..., 0]
    return term(least) + term(1 - least)
