"""The prompted task: objects of a batch, asked for by points, boxes and texts as a user would.

In: the sampler's batch on the device. Out: a loss, and for validation counts per class. Prompts are
drawn from the labels on the device, after augmentation, as a function of the step's key; the loader
knows nothing of them. Each sample is encoded once and decoded for all of its objects under every
set of prompts. A query becomes a row of its own with one class, so every loss works unchanged.

Source: SegVol (Du et al.), whose six sets of prompts are all trained in every step; their losses
are averaged over objects and summed over sets. Corrective rounds (a click into the error, with the
logits of the round before) follow the interactive protocols of today's tools.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from medjax.errors import UsageError, did_you_mean
from medjax.losses.parts import deep, separable, targets
from medjax.models import context as contexts
from medjax.prompts import draw, types
from medjax.tasks import supervised

MOST_ORGANS = 8  # objects of a sample, where all that are present are asked for
HELD_OUT = 17  # key of the prompts of a validation: the same in every one


@dataclasses.dataclass(frozen=True)
class Prompted(supervised.Supervised):
    """See `make` for the attributes."""

    methods: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    organs: int = 1
    sets: tuple[str, ...] = types.SETS
    positives: tuple[int, int] = (0, 10)
    negatives: tuple[int, int] = (0, 10)
    box_jitter: str = "fraction"
    jitter: float = 0.1
    text_only_absent: float = 0.0
    rounds: int = 0
    validate_set: str = "points+text"
    sets_of: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def prepare(self, batch: Mapping[str, Any], key: Array | None) -> dict[str, Any]:
        """As `Supervised.prepare`, with the objects of every sample and the prompts for them.

        `target` (b, organs, *patch) bool; `chosen` (b, organs) classes; `valid` (b, organs, sets)
        bool, whether a query counts; the arrays of `prompts.types` (b, organs * sets, ...), one
        query per object and set. Without a key: of a validation, with one set of prompts.
        """
        prepared = super().prepare(batch, key)
        if key is None:
            key, organs, sets = jax.random.key(HELD_OUT), self._most, (self.validate_set,)
            absent, jitter = 0.0, "none"
        else:
            key, organs, sets = jax.random.fold_in(key, 3), self.organs, self.sets
            absent, jitter = self.text_only_absent, self.box_jitter
        chosen, present, negative = self._choose(prepared, key, organs, absent)
        is_text = np.array([one == "text" for one in sets])
        valid = jnp.where(negative[..., None], is_text, present[..., None])
        if self.sets_of:
            valid = valid & self._asked(sets)[prepared["corpus"]][:, None]
        target = self._target(prepared, chosen)
        spacing = prepared.get("spacing_mm")
        drawn = self._drawn(jax.random.fold_in(key, 1), target, spacing, jitter)
        prompts = self._queries(chosen, drawn, sets)
        return prepared | {"target": target, "chosen": chosen, "valid": valid} | prompts

    def prepared_loss(
        self,
        params: Any,
        prepared: Mapping[str, Any],
        key: Array,
        part: Array | None = None,
        parts: int = 1,
    ) -> tuple[Array, dict[str, Array]]:
        """See `Supervised.prepared_loss`. With `rounds`, "loss/<name>" is the mean over them."""
        losses = self.losses_of_part(parts)
        key = jax.random.fold_in(key, 1)
        key = key if part is None else jax.random.fold_in(key, part)
        context = self.context(prepared)
        if not self.rounds:
            outputs = self.apply(params, prepared["image"], context, True, key)
            value, found = self._total(losses, outputs, prepared)
            return value, {f"loss/{name}": one for name, one in found.items()}
        own = {name: prepared[name] for name in context if name.startswith(types.PREFIX)}
        embedding = self.methods["encode"](params, prepared["image"], context, True, key)
        values, parts_of_rounds = [], []
        for number in range(self.rounds + 1):
            again = jax.random.fold_in(key, 2 + number)
            outputs = self.methods["decode"](params, embedding, context | own, True, again)
            value, found = self._total(losses, outputs, prepared)
            values.append(value)
            parts_of_rounds.append(found)
            if number < self.rounds:
                own = self._corrected(jax.random.fold_in(again, 1), own, outputs, prepared)
        mean = {
            f"loss/{name}": sum(one[name] for one in parts_of_rounds) / len(values)
            for name in parts_of_rounds[0]
        }
        return sum(values), mean | {"loss/last_round": values[-1]}

    def validate(self, params: Any, batch: Mapping[str, Any]) -> dict[str, Array]:
        """Voxel counts `tp`, `fp`, `fn` (c,) int32 of the objects that are present.

        Prompts are those of `validate_set`, drawn with the same key in every validation.
        """
        prepared = self.prepare(batch, None)
        context = self.context(prepared)
        logits = self.apply(params, prepared["image"], context, False, None)["logits"]
        truth, found = prepared["target"], logits > 0
        valid = jnp.expand_dims(prepared["valid"][..., 0], tuple(range(2, truth.ndim)))
        if "weight" in prepared:
            valid = valid & (prepared["weight"] > 0)[:, None]
        classes = self.known.shape[1]

        def count(mask: Array) -> Array:
            voxels = jnp.sum(mask & valid, tuple(range(2, mask.ndim)), dtype=jnp.int32)
            return jnp.zeros(classes, jnp.int32).at[prepared["chosen"]].add(voxels)

        return {
            "tp": count(found & truth),
            "fp": count(found & ~truth),
            "fn": count(~found & truth),
        }

    def _asked(self, sets: Sequence[str]) -> Bool[Array, "corpora sets"]:
        """Which of the sets the objects of each corpus are asked for with."""
        own = [self.sets_of.get(name, sets) for name in self.corpora]
        return jnp.array([[one in chosen for one in sets] for chosen in own])

    @property
    def _most(self) -> int:
        return min(MOST_ORGANS, self.known.shape[1])

    def _over_samples(self, loss: Callable) -> str:
        weighted = self.mask_padding or bool((self.ignore_ids >= 0).any())
        return separable.over_samples(loss, complete=False, weighted=weighted)

    def _choose(
        self, prepared: Mapping[str, Any], key: Array, organs: int, absent: float
    ) -> tuple[Int[Array, "b k"], Bool[Array, "b k"], Bool[Array, "b k"]]:
        """Classes of k objects per sample, which of them are present, which are asked for although
        they are absent.
        """
        label, table, known = (prepared[name] for name in ("label", "table", "known"))
        ids = np.arange(table.shape[1])
        counted = (label[..., None] == ids) & (
            (prepared["weight"] > 0)[..., None] if "weight" in prepared else True
        )
        voxels = counted.any(tuple(range(1, label.ndim)))  # (b, ids)
        present = (voxels[:, :, None] & table).any(1) & known

        def draw_among(allowed: Array, number: int) -> tuple[Array, Array]:
            noise = jax.random.gumbel(jax.random.fold_in(key, number), allowed.shape)
            score, index = jax.lax.top_k(jnp.where(allowed, noise, -jnp.inf), organs)
            return index, score > -jnp.inf

        chosen, there = draw_among(present, 11)
        if not absent:
            return chosen, there, jnp.zeros_like(there)
        others, able = draw_among(known & ~present, 12)
        negative = jax.random.uniform(jax.random.fold_in(key, 13), there.shape) < absent
        negative = negative & able
        return jnp.where(negative, others, chosen), there & ~negative, negative

    def _target(self, prepared: Mapping[str, Any], chosen: Array) -> Bool[Array, "b k *vol"]:
        member = jnp.take_along_axis(prepared["table"], chosen[:, None, :], axis=2)
        found = targets.multi_hot(prepared["label"], member) > 0
        return jnp.moveaxis(found, -1, 1)

    def _drawn(
        self, key: Array, target: Array, spacing_mm: Array | None, jitter: str
    ) -> tuple[Array, Array, Array]:
        """Points, their kinds and a box of every object, as one user gives them for all sets."""
        uniform = jax.random.uniform(key, (*target.shape[:2], types.SLOTS + 8))
        size = target.shape[2:]
        spacing = jnp.ones((target.shape[0], 3)) if spacing_mm is None else spacing_mm

        def one(u: Array, mask: Array, mm: Array) -> tuple[Array, Array, Array]:
            positive, negative = draw.training_counts(u[:2], self.positives, self.negatives)
            points, kind = draw.points(u[8:], mask, positive, negative)
            box = draw.jitter(u[2:8], draw.box(mask), size, jitter, self.jitter, mm)
            return points, kind, box

        return jax.vmap(lambda u, m, mm: jax.vmap(lambda v, n: one(v, n, mm))(u, m))(
            uniform, target, spacing
        )

    def _queries(
        self, chosen: Array, drawn: tuple[Array, Array, Array], sets: Sequence[str]
    ) -> dict[str, Array]:
        """The arrays that the network reads, (b, organs * sets, ...)."""
        points, kind, box = drawn
        has = np.array([types.kinds_of(one) for one in sets])
        shape = (chosen.shape[0], chosen.shape[1] * len(sets))

        def per_set(value: Array, wanted: np.ndarray, absent: float) -> Array:
            wanted = wanted.reshape(-1, *(1,) * (value.ndim - 2))
            return jnp.where(wanted, value[:, :, None], absent).reshape(*shape, *value.shape[2:])

        found = {
            types.POINTS: per_set(points, has[:, 0], -1.0),
            types.KIND: per_set(kind, has[:, 0], types.ABSENT),
            types.BOX: per_set(box, has[:, 1], -1.0),
            types.TEXT: per_set(chosen.astype(jnp.int32), has[:, 2], types.NO_TEXT),
            types.HAS: jnp.broadcast_to(has, (*chosen.shape, *has.shape)).reshape(*shape, 3),
            types.TASK: per_set(chosen.astype(jnp.int32), np.ones(len(sets), bool), 0),
        }
        leaves = types.of_spec(self.reads or {})
        empty = {
            name: jnp.full((*shape, *leaf.shape[1:]), leaf.absent, leaf.dtype)
            for name, leaf in leaves.items()
            if name not in found
        }
        return {name: value for name, value in found.items() if name in leaves} | empty

    def _total(
        self, losses: Sequence[tuple], outputs: Mapping[str, Any], prepared: Mapping[str, Any]
    ) -> tuple[Array, dict[str, Array]]:
        """The losses of all queries as rows (b * q) of one class, times the number of sets."""
        valid, target = prepared["valid"], prepared["target"]
        sets, rows = valid.shape[2], valid.size
        logits = outputs["logits"].reshape(rows, *target.shape[2:], 1)
        label = jnp.repeat(target.astype(jnp.int32), sets, axis=1).reshape(logits.shape[:-1])
        batch = {
            "label": label,
            "table": jnp.broadcast_to(jnp.array([[False], [True]]), (rows, 2, 1)),
            "known": valid.reshape(rows, 1),
        }
        if "weight" in prepared:
            batch["weight"] = jnp.repeat(prepared["weight"], rows // valid.shape[0], axis=0)
        others = {name: value for name, value in outputs.items() if name != "logits"}
        given = self.facts(prepared) | batch
        value, found = deep.total(losses, others | {"logits": logits}, given, self.deep_weights)
        return sets * value, found

    def _corrected(
        self,
        key: Array,
        own: Mapping[str, Array],
        outputs: Mapping[str, Any],
        prepared: Mapping[str, Any],
    ) -> dict[str, Array]:
        """The prompts with one more point in what is wrong, and the logits of this round."""
        sets = prepared["valid"].shape[2]
        truth = jnp.repeat(prepared["target"], sets, axis=1)
        wrong = (jax.lax.stop_gradient(outputs["logits"]) > 0) ^ truth
        uniform = jax.random.uniform(key, (*wrong.shape[:2], 1))

        def one(u: Array, wrong: Array, truth: Array, places: Array, kinds: Array) -> tuple:
            place, kind = draw.points(u, wrong, 1, 0)
            at = tuple(jnp.maximum(place[0], 0).astype(jnp.int32))
            word = jnp.where(truth[at], types.POSITIVE, types.NEGATIVE)
            free = kinds < 0
            slot = jnp.where(free.any(), jnp.argmax(free), kinds.shape[0] - 1)
            clicked = kind[0] == types.POSITIVE  # there is an error
            return (
                places.at[slot].set(jnp.where(clicked, place[0], places[slot])),
                kinds.at[slot].set(jnp.where(clicked, word, kinds[slot])),
                clicked,
            )

        places, kinds, clicked = jax.vmap(jax.vmap(one))(
            uniform, wrong, truth, own[types.POINTS], own[types.KIND]
        )
        has = own[types.HAS].at[..., 0].set(own[types.HAS][..., 0] | clicked)
        low = jax.lax.stop_gradient(outputs["low"]).astype(jnp.float32)
        return {
            **own,
            types.POINTS: places,
            types.KIND: kinds,
            types.HAS: has,
            types.MASK: low,
        }


def make(
    apply: Callable,
    losses: Sequence[tuple],
    *,
    methods: Mapping[str, Callable] = {},
    organs: int = 1,
    sets: Sequence[str] = types.SETS,
    positives: Sequence[int] = (0, 10),
    negatives: Sequence[int] = (0, 10),
    box_jitter: str = "fraction",
    jitter: float = 0.1,
    text_only_absent: float = 0.0,
    rounds: int = 0,
    validate_set: str = "points+text",
    sets_of: Mapping[str, Sequence[str]] = {},
    corpora: Sequence[str] = (),
    reads: contexts.Spec | None = None,
    **batches: Any,
) -> Prompted:
    """Builds the task.

    Args:
      apply: (params, image, context, train, key) -> outputs with `logits` (b, q, *patch), for as
        many queries q as the prompts in the context have.
      losses: as for `supervised.make`; they see rows of one class, (b * q, *patch, 1).
      methods: "encode" and "decode" of the network, (params, image or embedding, context, train,
        key); needed for `rounds`.
      organs: objects of a sample; 0: all that are present, at most 8.
      sets: the sets of prompts that every object is asked for with, e.g. "box+text".
      positives, negatives: least and most further points inside and outside, see
        `draw.training_counts`.
      box_jitter, jitter: how far boxes are from tight, see `draw.jitter`.
      text_only_absent: probability that an object is instead one that the sample annotates and does
        not have: asked for by text only, its target is empty.
      rounds: corrective clicks after the first prompts, each decoded again with the logits of the
        round before and added to the loss.
      validate_set: the set of prompts of validations.
      sets_of: corpus -> those of `sets` that its objects are asked for with, e.g. without text for
        regions that have no names (`medjax pseudo`); corpora without an entry: all.
      corpora: names of the corpora that the batches number.
      batches: further arguments of `supervised.make`.

    Raises: `UsageError` for unknown words, a network without prompts, or one that cannot go on from
      logits with `rounds`.
    """
    leaves = types.of_spec(reads or {})
    if not leaves:
        raise UsageError(
            "the task prompted needs a network that reads prompts",
            found=", ".join(reads or ()) or "no inputs",
            fix="choose config.model.name segvol, or config.task supervised",
        )
    for name in (*sets, validate_set):
        types.kinds_of(name)
    if box_jitter not in draw.JITTERS:
        raise UsageError(
            f"unknown jitter of boxes {box_jitter!r}", fix=did_you_mean(box_jitter, draw.JITTERS)
        )
    draw.training_counts(np.zeros(2), positives, negatives)
    if text_only_absent and "text" not in sets:
        raise UsageError(
            "objects that are absent are asked for by text", found=sets, fix='add the set "text"'
        )
    if rounds and (types.MASK not in leaves or not {"encode", "decode"} <= set(methods)):
        raise UsageError(
            "corrective rounds need a network that reads the logits of the round before",
            found=f"rounds {rounds}",
            fix="set model.mask_input, or rounds 0",
        )
    if not sets or organs < 0 or rounds < 0 or not 0 <= text_only_absent <= 1:
        raise UsageError(
            "unusable options of the task prompted",
            found=f"organs {organs}, rounds {rounds}, text_only_absent {text_only_absent}",
            expected="numbers from 0, a share from 0 to 1, and a set of prompts",
        )
    for name, own in sets_of.items():
        if name not in corpora:
            raise UsageError(
                f"task_options.sets_of names an unknown corpus {name!r}",
                fix=did_you_mean(name, corpora),
            )
        if not own or isinstance(own, str) or not set(own) <= set(sets):
            raise UsageError(
                f"task_options.sets_of.{name} is not a part of the sets",
                found=own,
                expected=", ".join(sets),
            )
    base = supervised.make(apply, losses, reads=reads, **batches)
    most = min(organs or MOST_ORGANS, base.known.shape[1])
    return Prompted(
        **{**vars(base), "corpora": tuple(corpora)},
        methods=dict(methods),
        organs=most,
        sets=tuple(sets),
        positives=tuple(positives),
        negatives=tuple(negatives),
        box_jitter=box_jitter,
        jitter=float(jitter),
        text_only_absent=float(text_only_absent),
        rounds=int(rounds),
        validate_set=validate_set,
        sets_of={name: tuple(own) for name, own in sets_of.items()},
    )
