"""The supervised task: sampler batches and a network -> the weighted sum of losses.

In: the sampler's batch on the device (`sample/batch.py`). Out: one differentiable scalar with its
parts; for validation, counts of true and false positives and false negatives per class. The network
is any callable, so the task is independent of the architecture; the losses read outputs and batch
only.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from medjax import decision
from medjax.augment.spatial import centre_crop
from medjax.decision import Decision
from medjax.errors import UsageError
from medjax.losses.parts import deep, exclusive, separable, sums, targets
from medjax.models import context as contexts
from medjax.sample.batch import MOVED, dequantise, facts

PREPARED = ("table", "known", "weight", "inside")  # what `prepare` adds for the losses


@dataclasses.dataclass(frozen=True)
class Supervised:
    """See `make` for the attributes."""

    apply: Callable
    losses: tuple
    table: np.ndarray
    known: np.ndarray
    ignore_ids: np.ndarray
    augment: Callable | None
    patch: tuple[int, ...]
    mask_padding: bool
    deep_weights: Any
    decision: Decision
    names: tuple[str, ...] = ()
    reads: contexts.Spec | None = None
    tasks: tuple[int, ...] = ()
    with_inside: bool = False
    corpora: tuple[str, ...] = ()

    def loss(
        self, params: Any, batch: Mapping[str, Any], key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """The training loss of one batch, and each loss as "loss/<name>" (before its weight)."""
        return self.prepared_loss(params, self.prepare(batch, key), key)

    def prepared_loss(
        self,
        params: Any,
        prepared: Mapping[str, Any],
        key: Array,
        part: Array | None = None,
        parts: int = 1,
    ) -> tuple[Array, dict[str, Array]]:
        """`loss` of what `prepare` returns, or of one of `parts` equal micro-batches of it.

        The mean over the micro-batches is the loss of the batch, where `batch_losses` is empty.

        Args:
          key: of the step, as for `loss`. part: number of the micro-batch; its dropout differs.
        """
        outputs = self.outputs(params, prepared, key, part)
        losses = self.losses_of_part(parts)
        value, found = deep.total(losses, outputs, prepared, self.deep_weights)
        return value, {f"loss/{name}": one for name, one in found.items()}

    def outputs(
        self, params: Any, prepared: Mapping[str, Any], key: Array, part: Array | None
    ) -> dict[str, Any]:
        """What the network makes of a prepared batch in training; see `prepared_loss`."""
        key = jax.random.fold_in(key, 1)
        key = key if part is None else jax.random.fold_in(key, part)
        return self.apply(params, prepared["image"], self.context(prepared), True, key)

    def losses_of_part(self, parts: int) -> Sequence[tuple]:
        """The losses of a micro-batch: those that are sums over samples count `parts` times."""
        if parts == 1:
            return self.losses

        def scaled(f: Callable) -> Callable:
            return lambda outputs, batch: parts * f(outputs, batch)

        return tuple(
            (name, weight, scaled(f) if self._over_samples(f) == separable.SUM else f)
            for name, weight, f in self.losses
        )

    def batch_losses(self) -> tuple[str, ...]:
        """Names of the losses that are not sums or means over samples (batch Dice).

        In micro-batches their mean is taken, which is another number than the loss of the batch.
        """
        return tuple(name for name, _, f in self.losses if self._over_samples(f) == separable.BATCH)

    def _over_samples(self, loss: Callable) -> str:
        weighted = self.mask_padding or bool((self.ignore_ids >= 0).any())
        return separable.over_samples(loss, complete=bool(self.known.all()), weighted=weighted)

    def validate(self, params: Any, batch: Mapping[str, Any]) -> dict[str, Array]:
        """Voxel counts `tp`, `fp`, `fn` (c,) int32 of the decision on the central patch.

        Decision: probability > 1/2, or the largest of a softmax. A class counts only samples whose
        corpus annotates it, and only voxels that the loss would use. With several corpora that have
        names, also `corpus_tp`, `corpus_fp`, `corpus_fn` (corpora, c). Where losses have classes of
        their own, also `class_loss` (c,) f32, summed over the samples that annotate the class, and
        `class_samples` (c,), their number.
        """
        prepared = self.prepare(batch, None)
        context = self.context(prepared)
        outputs = self.apply(params, prepared["image"], context, False, None)
        logits = outputs["logits"]
        truth = targets.multi_hot(prepared["label"], prepared["table"]) > 0
        values = self.decision.class_logits(logits, truth.shape[-1])
        implied = exclusive.implied(prepared["table"])
        found = self.decision.completed(self.decision.decide(values), implied)
        axes = tuple(range(1, logits.ndim - 1))
        valid = jnp.expand_dims(prepared["known"], axes)
        if "weight" in prepared:
            valid = valid & (prepared["weight"] > 0)[..., None]

        masks = {"tp": found & truth, "fp": found & ~truth, "fn": ~found & truth}
        counts = {
            name: jnp.sum(mask & valid, axes, dtype=jnp.int32) for name, mask in masks.items()
        }
        of = {
            f"corpus_{name}": jnp.zeros((len(self.corpora), each.shape[-1]), jnp.int32)
            .at[batch["corpus"]]
            .add(each)
            for name, each in counts.items()
            if len(self.corpora) > 1
        }
        of |= {name: jnp.sum(each, 0, dtype=jnp.int32) for name, each in counts.items()}
        seen = sums.together({**outputs, "logits": values}, prepared)
        if losses := separable.by_class(self.losses, seen, prepared):
            of["class_loss"], of["class_samples"] = losses
        return of

    def prepare(self, batch: Mapping[str, Any], key: Array | None) -> dict[str, Any]:
        """The batch for the losses: normalised, augmented (with a key) or centre-cropped.

        With table and known rows, and the task of every sample. `weight` is present only if
        something can be masked: the ignore id of a corpus, or padding under `mask_padding`;
        `inside` (b, *patch), true within the image, only with `with_inside`.
        """
        axes = tuple(range(1, batch["image"].ndim - 1))
        image = dequantise(batch)
        label = batch["label"].astype(jnp.int32)
        if key is not None and self.augment is not None:
            extra = (
                {"corpus": batch["corpus"]} if getattr(self.augment, "by_corpus", False) else {}
            )  # sides of lateral classes
            if all(name in batch for name in MOVED):  # drawn by the sampler
                extra["moved"] = tuple(batch[name] for name in MOVED)
            image, label = self.augment(key, image, label, **extra)
        image, label = (
            centre_crop(image, self.patch, first=1),
            centre_crop(label, self.patch, first=1),
        )
        corpus = batch["corpus"]
        prepared = {**self._with_task(batch), "image": image, "label": jnp.maximum(label, 0)}
        prepared |= {
            "table": jnp.asarray(self.table)[corpus],
            "known": jnp.asarray(self.known)[corpus],
        }
        if self.with_inside:
            prepared["inside"] = label >= 0
        masks = []
        if (self.ignore_ids >= 0).any():
            masks.append(label == jnp.expand_dims(jnp.asarray(self.ignore_ids)[corpus], axes))
        if self.mask_padding:
            masks.append(label < 0)
        if masks:
            prepared["weight"] = 1.0 - jnp.any(jnp.stack(masks), 0).astype(jnp.float32)
        return prepared

    def facts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What is known of the samples: corpus, modality, spacing_mm, ..."""
        return {k: v for k, v in facts(batch).items() if k not in PREPARED}

    def context(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the network reads beside the image; see `models.context`."""
        if self.reads is None:
            return self.facts(batch)
        return contexts.of_batch(self.reads, self._with_task(batch))

    def _with_task(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The facts of the samples with `task` (b,), where corpora have tasks."""
        known = self.facts(batch)
        if self.tasks and "task" not in known:
            known["task"] = jnp.asarray(self.tasks, jnp.int32)[batch["corpus"]]
        return known


def make(
    apply: Callable,
    losses: Sequence[tuple],
    *,
    table: Any,
    known: Any,
    ignore_ids: Any,
    patch: Sequence[int],
    augment: Callable | None = None,
    mask_padding: bool = False,
    deep_weights: str | Sequence[float | int] = "halving",
    activation: str = "sigmoid",
    classes: Sequence[str] = (),
    reads: contexts.Spec | None = None,
    tasks: Sequence[int] = (),
    corpora: Sequence[str] = (),
) -> Supervised:
    """Builds the task.

    Args:
      apply: (params, image (b, *patch, m) f32, context dict, train bool, key or None) -> outputs
        with `logits` (b, *patch, c) and optionally `deep`.
      losses: (name, weight, f(outputs, batch) -> scalar) entries.
      table, known, ignore_ids: of the label space: (corpora, ids, c) bool, (corpora, c) bool,
        (corpora,) int, -2 for no ignore id.
      patch: spatial shape of the network's input; batches may be larger (for rotation).
      augment: (key, image (b, *vol_in, m), label (b, *vol_in)) -> the same at `patch` (or larger:
        then the centre is taken); one with a true attribute `by_corpus` is also given `corpus`
        (b,).
      mask_padding: ignore voxels outside the image instead of treating them as background
        (nnU-Net's convention).
      deep_weights: see `medjax.losses.parts.deep.weights`; empty is "halving".
      activation: decision in validation: "sigmoid" or "softmax", see `medjax.decision`.
      classes: names of the channels, which become the task's `names`: the entries of `validate`'s
        counts.
      reads: what the network reads beside the image; None: all facts of the batch.
      tasks: task of every corpus, from which the fact `task` is derived.
      corpora: names of the rows of `table`; `validate` then counts for each of them as well.

    Raises: `UsageError` for no losses or repeated names.
    """
    losses = tuple((str(name), float(weight), f) for name, weight, f in losses)
    names = [name for name, _, _ in losses]
    if not losses or len(set(names)) != len(names):
        raise UsageError(
            "losses need unique names, and there must be one",
            found=names,
            fix="rename or add a loss",
        )
    return Supervised(
        apply,
        losses,
        np.asarray(table, bool),
        np.asarray(known, bool),
        np.asarray(ignore_ids, np.int32),
        augment,
        tuple(patch),
        bool(mask_padding),
        deep_weights or "halving",
        decision.make(activation, "logit"),
        tuple(classes),
        reads,
        tuple(tasks),
        corpora=tuple(corpora),
    )
