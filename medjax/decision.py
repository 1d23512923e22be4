"""What the scores of a network mean: probabilities, the classes of a voxel, and how certain they
are.

In: logits of a batch, on the device; blended values of a block, on the host. Out: probabilities,
decisions and entropies of the same grid. Every method works on arrays of numpy and of jax and
returns arrays of the same library. Training validates with the same objects as prediction decides.

    decision = make("softmax", "logit")
    mask = decision.decide(decision.values(decision.class_logits(logits, classes)))
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from medjax.errors import UsageError, did_you_mean

AVERAGES = ("prob", "logit")
# stands in for the -inf of masked channels: sigmoid and exp of it are exactly 0, and it can be
# averaged
LOWEST = -1e4
# probabilities are kept this far from 0 and 1 where their logits are needed (+-13.8)
LEAST = 1e-6


@dataclasses.dataclass(frozen=True)
class Decision(abc.ABC):
    """How scores are averaged, and which classes a voxel gets.

    Attributes:
      average: what is averaged over windows, mirrors, members and networks: "prob" or "logit". In
        what follows, "values" are of this kind, and c is the number of classes.
      name: how a config names it, in `infer.activation`.
      competes: a voxel has one class at most; otherwise every class has a channel of its own.

    Raises: `UsageError` for another word.
    """

    average: str = "prob"
    name: ClassVar[str] = ""
    competes: ClassVar[bool] = False

    def __post_init__(self):
        if self.average not in AVERAGES:
            raise UsageError(
                f"unknown average {self.average!r}", fix=did_you_mean(self.average, AVERAGES)
            )

    @abc.abstractmethod
    def activated(self, logits: Any) -> Any:
        """`class_logits` (..., c) -> probabilities (..., c)."""

    @abc.abstractmethod
    def decide(self, values: Any, total: Any = None) -> Any:
        """Values (..., c) -> bool (..., c).

        Args:
          total: (...) sum over all classes, where `values` holds only some; see `narrowed`.
        """

    @abc.abstractmethod
    def entropy(self, probabilities: Any) -> Any:
        """Shannon entropy in bits (...) of class probabilities (..., c)."""

    @abc.abstractmethod
    def asked(self, names: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
        """The classes whose values are needed to decide on `names`; `classes`: all there are."""

    @abc.abstractmethod
    def completed(self, mask: Any, implied: Any) -> Any:
        """A decision on classes of a label space -> with the classes that these imply.

        Args:
          mask: (b, *vol, c) bool. implied: (b, c, c) bool, [k, j] whether a voxel of class k is of
            class j too, see `medjax.losses.parts.exclusive.implied`.
        """

    @abc.abstractmethod
    def narrowed(self, values: Any, kept: Any) -> Any:
        """The `kept` channels of values (..., c), and what else `decide` needs of the others.

        Returns: (..., k), or (..., k + 1) with the sum of all classes where probabilities compete.
        """

    @abc.abstractmethod
    def _without_background(self, logits: Any, classes: int) -> Any:
        """Logits as the network gives them -> one per class, if they can be so read."""

    @abc.abstractmethod
    def _least(self, classes: int) -> float:
        """The probability that no class decided for is below."""

    def class_logits(self, logits: Any, classes: int) -> Any:
        """One logit per class, (..., c); -inf (a masked class) becomes finite, +inf NaN.

        Args:
          logits: (..., c), or with an explicit background as channel 0 of a softmax, (..., 1 + c).

        Raises: `UsageError` for another number of channels.
        """
        numpy = logits.__array_namespace__()
        # a probability of 1 would hide an overflow
        logits = numpy.where(logits < numpy.inf, logits, numpy.nan)
        logits = self._without_background(logits, classes)
        if logits.shape[-1] != classes:
            raise UsageError(
                "the network's channels are not those of the label space",
                found=logits.shape[-1],
                expected=classes,
            )
        return numpy.maximum(logits, LOWEST)

    def values(self, logits: Any) -> Any:
        """`class_logits` (..., c) -> what is averaged."""
        return self.activated(logits) if self.average == "prob" else logits

    def probabilities(self, values: Any) -> Any:
        """Values (..., c) -> probabilities (they are such already unless logits were averaged)."""
        return values if self.average == "prob" else self.activated(values)

    def log_odds(self, values: np.ndarray) -> np.ndarray:
        """Values (..., c) -> log(p / (1 - p)) on the host; logits as they are."""
        if self.average == "logit":
            return values
        p = np.clip(values, LEAST, 1 - LEAST)
        return np.log(p) - np.log1p(-p)

    @abc.abstractmethod
    def tempered(self, probabilities: np.ndarray, temperatures: Any) -> np.ndarray:
        """Probabilities (..., c) after temperature scaling, on the host; no decision changes.

        Args:
          temperatures: a positive number, or (c,); of classes that compete all the same.
        """

    def candidates(self, values: Any) -> np.ndarray:
        """Channels of values (..., c) that may be decided for somewhere in the block, resampled or
        not; on the host.

        Interpolation stays below the largest sample, so a class that nowhere comes near what it
        needs cannot get it in between: a probability of 1/2 (sigmoid) or of a share of its rivals
        (softmax), a logit of 0.
        """
        classes = values.shape[-1]
        least = self._least(classes) if self.average == "prob" else 0.0
        return np.flatnonzero(np.asarray(values.reshape(-1, classes).max(0)) > least - 1e-4)

    def certainty(self, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Sum of the probabilities of every class over its voxels, (c,) float64, on the host.

        Args:
          values, mask: of a block, (rows, y, x, c), and what is decided for. Nothing of their size
            is made.
        """
        if self.average == "prob":
            return np.einsum("zyxc,zyxc->c", values, mask, dtype=np.float64)
        sums = np.zeros(values.shape[-1])
        for row, chosen in zip(values, mask, strict=True):
            if (inside := chosen.any(-1)).any():
                found = self.activated(row[inside])
                sums += found.sum(0, np.float64, where=chosen[inside])
        return sums

    def averaged(
        self,
        found: Sequence[Any],
        members: Sequence[int],
        spreads: Sequence[bool],
        classes: int,
    ) -> tuple[Any, Any]:
        """Values of several networks -> their mean, and the standard deviation over all members.

        Args:
          found: (..., c) of each network; its deviation follows as one more channel where
            `spreads`.
          members: of each network, which is its weight. classes: c.

        Returns: (..., c); and (...), or 0 where a network has no deviation.
        """
        if len(found) == 1:
            block = found[0]
            return (block[..., :classes], block[..., classes]) if spreads[0] else (block, 0.0)
        weights = np.array(members, np.float32)
        weights /= weights.sum()
        block = sum(w * b[..., :classes] for w, b in zip(weights, found, strict=True))
        if not all(spreads):
            return block, 0.0
        numpy = block.__array_namespace__()
        probabilities = [self.probabilities(b[..., :classes]) for b in found]
        centre = sum(w * p for w, p in zip(weights, probabilities, strict=True))
        between = sum(
            w * numpy.square(p - centre) for w, p in zip(weights, probabilities, strict=True)
        ).max(-1)
        within = sum(w * numpy.square(b[..., classes]) for w, b in zip(weights, found, strict=True))
        return block, numpy.sqrt(between + within)


@dataclasses.dataclass(frozen=True)
class Sigmoid(Decision):
    """Classes that may overlap: each is where its own probability is above 1/2."""

    name: ClassVar[str] = "sigmoid"

    def activated(self, logits: Any) -> Any:
        """1 / (1 + exp(-logit)), see `Decision`."""
        if isinstance(logits, np.ndarray):
            return 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
        import jax

        return jax.nn.sigmoid(logits)

    def tempered(self, probabilities: np.ndarray, temperatures: Any) -> np.ndarray:
        """sigmoid(logit(p) / T), see `Decision`."""
        odds = Sigmoid("prob").log_odds(probabilities)
        return self.activated(odds / np.asarray(temperatures, odds.dtype))

    def decide(self, values: Any, total: Any = None) -> Any:
        """Where the probability is above 1/2, or the logit above 0, see `Decision`."""
        return values > (0.5 if self.average == "prob" else 0.0)

    def entropy(self, probabilities: Any) -> Any:
        """The largest of the entropies of the classes, each a yes or no of its own, see `Decision`:
        -p log2 p - (1 - p) log2 (1 - p), between 0 and 1.
        """
        numpy = probabilities.__array_namespace__()
        p = numpy.clip(probabilities, 0, 1)
        least = numpy.take_along_axis(p, numpy.abs(p - 0.5).argmin(-1)[..., None], -1)[..., 0]
        return _term(least) + _term(1 - least)

    def asked(self, names: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
        """Those, see `Decision`."""
        return tuple(names)

    def completed(self, mask: Any, implied: Any) -> Any:
        """The mask as it is: every class has been decided on by itself, see `Decision`."""
        return mask

    def narrowed(self, values: Any, kept: Any) -> Any:
        """The `kept` channels, see `Decision`."""
        return values[..., kept]

    def _without_background(self, logits: Any, classes: int) -> Any:
        return logits

    def _least(self, classes: int) -> float:
        return 0.5


@dataclasses.dataclass(frozen=True)
class Softmax(Decision):
    """Exclusive classes: a voxel gets the class with the largest probability, or none if the
    background's is larger. The background's logit is 0; logits of classes are relative to it.
    """

    name: ClassVar[str] = "softmax"
    competes: ClassVar[bool] = True

    def activated(self, logits: Any) -> Any:
        """exp(logit) / (1 + the sum of exp over the classes), see `Decision`."""
        numpy = logits.__array_namespace__()
        highest = numpy.maximum(logits.max(-1, keepdims=True), 0)
        exponentials = numpy.exp(logits - highest)
        return exponentials / (exponentials.sum(-1, keepdims=True) + numpy.exp(-highest))

    def tempered(self, probabilities: np.ndarray, temperatures: Any) -> np.ndarray:
        """p to the power of 1 / T, also of the background, normalised, see `Decision`."""
        rest = 1 - probabilities.sum(-1, keepdims=True)
        least, most = LEAST, 1 - LEAST
        logs = np.log(np.clip(probabilities, least, most)) - np.log(np.clip(rest, least, most))
        return self.activated(logs / np.asarray(temperatures, logs.dtype))

    def decide(self, values: Any, total: Any = None) -> Any:
        """The largest class, if it is above the background, see `Decision`."""
        numpy = values.__array_namespace__()
        if values.shape[-1] == 0:
            return numpy.zeros(values.shape, bool)
        background = 0.0
        if self.average == "prob":
            background = 1 - (values.sum(-1) if total is None else total)
        winner = values.argmax(-1)
        foreground = numpy.take_along_axis(values, winner[..., None], -1)[..., 0] > background
        chosen = numpy.where(foreground, winner, -1).astype(numpy.int16)  # small: it is compared
        return chosen[..., None] == numpy.arange(values.shape[-1], dtype=numpy.int16)

    def entropy(self, probabilities: Any) -> Any:
        """-sum of p log2 p over the classes and the background, which share 1, see `Decision`."""
        numpy = probabilities.__array_namespace__()
        p = numpy.clip(probabilities, 0, 1)
        return _term(p).sum(-1) + _term(numpy.maximum(1 - p.sum(-1), 0))

    def asked(self, names: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
        """All, because they compete, see `Decision`."""
        return tuple(classes)

    def completed(self, mask: Any, implied: Any) -> Any:
        """With the regions that hold the class of a voxel (a tumour is liver too), see `Decision`.

        Source: the softmax losses train the most specific class of a voxel only.
        """
        numpy, classes = mask.__array_namespace__(), mask.shape[-1]
        rows = numpy.concatenate([numpy.zeros_like(implied[:, :1]), implied], 1)  # (b, 1 + c, c)
        chosen = numpy.where(mask.any(-1), 1 + mask.argmax(-1), 0).reshape(len(mask), -1, 1)
        return numpy.take_along_axis(rows, chosen, 1).reshape(*mask.shape[:-1], classes)

    def narrowed(self, values: Any, kept: Any) -> Any:
        """The `kept` channels; then, if they are probabilities, the sum of all, see `Decision`."""
        if self.average == "logit":
            return values[..., kept]
        total = values.sum(-1, keepdims=True)
        return values.__array_namespace__().concatenate([values[..., kept], total], -1)

    def _without_background(self, logits: Any, classes: int) -> Any:
        explicit = logits.shape[-1] == classes + 1
        return logits[..., 1:] - logits[..., :1] if explicit else logits

    def _least(self, classes: int) -> float:
        return 1 / (classes + 1)


_KINDS = {kind.name: kind for kind in (Sigmoid, Softmax)}
ACTIVATIONS = tuple(_KINDS)


def make(activation: str = "sigmoid", average: str = "prob") -> Decision:
    """The decision of a config's words `infer.activation` and `infer.average`.

    Args:
      activation: "sigmoid", see `Sigmoid`; "softmax", see `Softmax`.
      average: see `Decision`.

    Raises: `UsageError` for other words.
    """
    if activation not in _KINDS:
        raise UsageError(
            f"unknown activation {activation!r}", fix=did_you_mean(activation, ACTIVATIONS)
        )
    return _KINDS[activation](average)


def _term(p: Any) -> Any:
    numpy = p.__array_namespace__()
    return -p * numpy.log2(numpy.maximum(p, 1e-12))
