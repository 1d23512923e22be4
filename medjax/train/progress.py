"""The running numbers of a training: means of its losses, results of its validations.

In: scalars of every step, sums of every validation. Out: the values of a line of metrics.jsonl, the
words of the progress line, and whether a validation is the best so far.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

OLD, NEW = 0.9, 0.1  # moving averages of what a validation measures, as nnU-Net's of its Dice


class Progress:
    """The host's running numbers, saved with every checkpoint so that a resumed run is exact.

    Attributes:
      sums, count: scalars summed since the last line of the record.
      ema: class name -> moving average of its pseudo Dice, for classes seen so far.
      now: class name -> its pseudo Dice in the last validation.
      losses: class name -> moving average of its loss in validation, for classes seen so far.
      volumes: mean Dice of whole held-out volumes when they were last predicted; None: never.
        measured: step at which they were.
      error: mean error of the last validation, for tasks that measure one.
      best: the highest rating of a validation so far (the mean of `ema`, or the negative error).
        waited: validations since.
      validated: step of the last complete validation.
    """

    def __init__(
        self,
        names: Sequence[str],
        stored: Mapping[str, Any] | None = None,
        corpora: Sequence[str] = (),
    ):
        self.names, self.corpora = list(names), list(corpora)
        stored = stored or {"sums": {}, "count": 0, "ema": {}, "best": None, "validated": 0}
        self.sums, self.count, self.ema, self.error = (
            dict(stored["sums"]),
            stored["count"],
            dict(stored["ema"]),
            stored.get("error"),
        )
        self.now, self.volumes, self.measured = (
            dict(stored.get("now", {})),
            stored.get("volumes"),
            stored.get("measured", 0),
        )
        self.losses: dict[str, float] = dict(stored.get("losses", {}))
        self.best, self.validated, self.waited = (
            stored["best"],
            stored["validated"],
            stored.get("waited", 0),
        )

    def to_json(self) -> dict:
        """JSON-ready fields for the second argument of the constructor."""
        return {
            "sums": dict(self.sums),
            "count": self.count,
            "ema": dict(self.ema),
            "now": dict(self.now),
            "losses": dict(self.losses),
            "volumes": self.volumes,
            "measured": self.measured,
            "error": self.error,
            "best": self.best,
            "validated": self.validated,
            "waited": self.waited,
        }

    def add(self, scalars: Mapping[str, float]) -> None:
        """Adds the scalars of one step."""
        for name, value in scalars.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means since the last call; resets the sums."""
        means = {name: value / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def judge(
        self, step: int, sums: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, float | None], bool]:
        """Records one validation.

        Args:
          step: its step.
          sums: over all validation batches, one entry per name: counts `tp`, `fp`, `fn` (and
            `class_loss` with the number of `class_samples` it is a sum over), or `error` and the
            `weight` it is a sum over.

        Returns: the record, and whether its rating is the highest so far.
        """
        self.validated = step
        record, rating = self._errors(sums) if "error" in sums else self._dice(sums)
        if rating is None:
            return record, False
        improved = self.best is None or rating > self.best
        self.best, self.waited = (rating, 0) if improved else (self.best, self.waited + 1)
        return record, improved

    def _dice(
        self, counts: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, float | None], float | None]:
        """Pseudo Dice per class, and the rating: the mean of the moving averages.

        The pseudo Dice of a class is 2 TP / (2 TP + FP + FN); classes without any such voxel are
        left out of the means and keep their moving average.
        """
        tp, union = counts["tp"], 2 * counts["tp"] + counts["fp"] + counts["fn"]
        now = {
            name: 2 * float(t) / float(u)
            for name, t, u in zip(self.names, tp, union, strict=True)
            if u > 0
        }
        self.now = now
        for name, value in now.items():
            self.ema[name] = OLD * self.ema[name] + NEW * value if name in self.ema else value
        record = {f"dice/{name}": value for name, value in now.items()} | {
            f"dice_ema/{name}": value for name, value in self.ema.items()
        }
        if not self.ema:
            return record | self._of_losses(counts), None
        mean = math.fsum(self.ema.values()) / len(self.ema)
        record |= self._of_corpora(counts) | self._of_losses(counts)
        return {
            "dice": math.fsum(now.values()) / len(now) if now else None,
            "dice_ema": mean,
        } | record, mean

    def _of_corpora(self, counts: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Corpus -> mean pseudo Dice over the classes that occur in its patches."""
        found = {}
        for name in dict.fromkeys(self.corpora) if "corpus_tp" in counts else ():
            rows = [k for k, other in enumerate(self.corpora) if other == name]  # views of a store
            tp, fp, fn = (counts[f"corpus_{kind}"][rows].sum(0) for kind in ("tp", "fp", "fn"))
            union = 2 * tp + fp + fn
            if (union > 0).any():
                found[f"corpus_dice/{name}"] = float(
                    (2 * tp[union > 0] / union[union > 0].astype(float)).mean()
                )
        return found

    def _of_losses(self, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The loss of every class and its moving average; a non-finite one counts nowhere."""
        if "class_loss" not in sums:
            return {}
        pairs = zip(self.names, sums["class_loss"], sums["class_samples"], strict=True)
        means = {name: float(total) / float(count) for name, total, count in pairs if count > 0}
        now = {name: value for name, value in means.items() if math.isfinite(value)}
        for name, value in now.items():
            before = self.losses.get(name)
            self.losses[name] = value if before is None else OLD * before + NEW * value
        return {f"class_loss/{name}": value for name, value in now.items()} | {
            f"class_loss_ema/{name}": value for name, value in self.losses.items()
        }

    def _errors(
        self, sums: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, float | None], float | None]:
        """Mean error by name, and the mean over the names that have any; lower is better.

        A non-finite value is not a rating.
        """
        means = {
            name: float(e) / float(w)
            for name, e, w in zip(self.names, sums["error"], sums["weight"], strict=True)
            if w > 0
        }
        mean = math.fsum(means.values()) / len(means) if means else math.nan
        self.error = mean if math.isfinite(mean) else None
        record = {
            f"validation_loss/{name}": value if math.isfinite(value) else None
            for name, value in means.items()
        }
        return {"validation_loss": self.error} | record, None if self.error is None else -self.error

    def worst(self) -> tuple[str, float] | None:
        """The class with the highest smoothed loss, and that loss; None with fewer than two."""
        if len(self.losses) < 2:
            return None
        return max(self.losses.items(), key=lambda item: item[1])

    def text(self, short: bool = False) -> str:
        """The results of the last validation and of the last volumes, for the progress line; empty
        before the first.

        Where the losses have no classes, the class with the least Dice is named.

        Args:
          short: in fewer words, and without a class.
        """
        if self.error is not None:
            return f"validation loss {self.error:.4f}"
        found = []
        if shown := self.now or self.ema:
            name, least = min(shown.items(), key=lambda item: item[1])
            where = "" if short and self.volumes is not None else "in patches "
            found.append(f"Dice {where}{math.fsum(shown.values()) / len(shown):.3f}")
            named = len(shown) > 1 and not self.worst() and not short
            found[0] += f" (least {name} {least:.3f})" if named else ""
        if self.volumes is not None:
            found.append(f"{'' if short else 'in '}volumes {self.volumes:.3f}")
        return ", ".join(found)
