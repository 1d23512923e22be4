"""Optimizers and schedules from plain arguments.

SGD with Nesterov momentum, AdamW, LAMB; schedules; clipping; frozen leaves. In: numbers and rule
lists over parameter paths. Out: `Optimizer`, an optax transformation with its schedule and the mask
of trained leaves. Frozen leaves have no optimizer state, no update and do not count for the
clipping norm. For several optimizers in sequence see `train/phases.py`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medjax.errors import UsageError, did_you_mean
from medjax.train import rules as rule_lists
from medjax.train.rules import Rules

NAMES = ("sgd", "adamw", "lamb")
SCHEDULES = ("poly", "cosine", "linear", "constant")
ALL_TRUE: Rules = ((".*", True),)
ALL_ONE: Rules = ((".*", 1.0),)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer for the update.

    Attributes:
      tx: the optax transformation over the trained leaves; frozen leaves may be present and have
        no state and no change.
      schedule: step (0-based, int or traced) -> learning rate.
      trained: all parameters -> tree of bool, False where frozen (in every phase). `TrainError` for
        rules that do not cover the parameters or match none of them.
      norm: (gradients, step) -> their global norm over the leaves that are trained at that step.
      ema: decay of the moving average of the trained parameters; 0: none.
    """

    tx: optax.GradientTransformation
    schedule: Callable[[Any], Any]
    trained: Callable[[Any], Any]
    norm: Callable[[Any, Any], Any]
    ema: float = 0.0


def make(
    *,
    name: str = "sgd",
    lr: float = 0.01,
    steps: int,
    schedule: str = "poly",
    power: float = 0.9,
    steps_per_epoch: int = 1,
    warmup_steps: int = 0,
    final: float = 0.0,
    span: int = 0,
    shift: int = 0,
    momentum: float = 0.99,
    nesterov: bool = True,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    amsgrad: bool = False,
    weight_decay: float = 3e-5,
    clip_norm: float = 12.0,
    trainable: Rules = ALL_TRUE,
    lr_scale: Rules = ALL_ONE,
    decay: Rules = ALL_ONE,
    only: Rules = (),
    ema: float = 0.0,
    restarts: Sequence[int] = (),
) -> Optimizer:
    """Builds the optimizer; the defaults are nnU-Net's.

    Per step, over the trained leaves only: clip the gradients' global norm to `clip_norm` (0:
    never), then

      sgd     g += wd p;  m = momentum m + g;  u = g + momentum m (nesterov) or m
              torch.optim.SGD: decay is coupled
      adamw   u = mhat / (sqrt(vhat) + eps) + wd p
              torch.optim.AdamW: decay is decoupled
              with amsgrad v is replaced by its largest value so far
      lamb    r = mhat / (sqrt(vhat) + eps) + wd p;  u = r |p| / |r|, Euclidean norms of a leaf
              arXiv 1904.00962, algorithm 2; if either norm is 0, u = r

      p -= lr(step) lr_scale u          wd = weight_decay x decay

    So LAMB's ratio |p| / |r| does not cancel `lr_scale`. Of a leaf with `only`, it counts the
    slices that are trained.

    Args:
      steps, schedule, power, steps_per_epoch, warmup_steps, final, span, shift: see
        `make_schedule`.
      trainable: (regex, bool); False freezes.
      lr_scale: (regex, factor of the learning rate).
      decay: (regex, bool or factor of `weight_decay`).
      only: (regex, (axis, indices)): of these trained leaves only those slices are updated, e.g.
        one expert of a stack; others are updated as a whole.
      ema: decay d of a moving average of the trained parameters, from 0 (none) to below 1: after
        update t = 0, 1, ... average = r average + (1 - r) p with r = min(d, (1 + t) / (10 + t)), so
        that the initial parameters lose their share early (tf.train.ExponentialMovingAverage).

      restarts: steps, in order and before `steps`, after which the schedule begins again, over the
        steps to the next one or to the end; span and shift hold before the first only. Moments of
        the gradients are kept.

    Raises: `UsageError` for unknown names or a decay out of range; `TrainError` (from `trained`)
      for rules that do not cover the parameters.
    """
    if name not in NAMES:
        raise UsageError(f"unknown optimizer {name!r}", fix=did_you_mean(name, NAMES))
    if not 0 <= ema < 1:
        raise UsageError(
            "unusable decay of the moving average",
            found=f"optim.ema={ema}",
            expected="0 (no average), or a number below 1 such as 0.999",
        )
    common = dict(power=power, final=final)
    common |= dict(steps_per_epoch=steps_per_epoch, warmup_steps=warmup_steps)
    first, *further = np.diff([0, *restarts, steps]).tolist()
    rate = make_schedule(schedule, lr, first, span=span, shift=shift, **common)
    if further:
        again = [make_schedule(schedule, lr, length, **common) for length in further]
        rate = optax.join_schedules([rate, *again], list(restarts))
    slices = (*only, (".*", None))
    add_decay = _per_leaf(
        lambda g, p, factor: g + weight_decay * float(factor) * p, decay, "weight decay rules"
    )
    if name == "sgd":
        core = [add_decay, optax.trace(momentum, nesterov)] if momentum else [add_decay]
    else:
        core = [_amsgrad(b1, b2, eps) if amsgrad else optax.scale_by_adam(b1, b2, eps), add_decay]
        core += [_per_leaf(_trust, slices, "slices")] if name == "lamb" else []
    scale = _per_leaf(lambda g, _, factor: g * float(factor), lr_scale, "learning-rate rules")
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    part = [_per_leaf(lambda g, _, where: _sliced(g, where), slices, "slices")] if only else []
    chain = optax.chain(*part, *clip, *core, scale, optax.scale_by_learning_rate(rate), *part)

    def trained(params: Any) -> Any:
        if only:
            rule_lists.assign(params, slices, "slices that are trained")
        for rules, what in ((decay, "weight decay rules"), (lr_scale, "learning-rate rules")):
            rule_lists.assign(
                params, rules, what
            )  # unmatched paths and unused rules show before training, on the whole tree
        return jax.tree.map(bool, rule_lists.assign(params, trainable, "trainable rules"))

    def groups(part: Any) -> Any:
        found = rule_lists.assign(part, trainable, "trainable rules", all_used=False)
        return jax.tree.map(lambda on: "train" if on else "freeze", found)

    def norm(gradients: Any, step: Any) -> Any:
        return optax.global_norm(
            jax.tree.map(lambda g, at: g if at == "train" else None, gradients, groups(gradients))
        )

    tx = optax.partition({"train": chain, "freeze": optax.set_to_zero()}, groups)
    return Optimizer(tx, rate, trained, norm, float(ema))


def make_schedule(
    name: str,
    lr: float,
    steps: int,
    *,
    power: float = 0.9,
    steps_per_epoch: int = 1,
    warmup_steps: int = 0,
    final: float = 0.0,
    span: int = 0,
    shift: int = 0,
) -> Callable[[Any], Any]:
    """step (0-based) -> learning rate.

    With t = max(floor(step / steps_per_epoch) + shift, 0), W and T the warm-up and total length in
    the same unit:
      warm-up    lr (t + 1) / W                                        while t < W
      poly       lr (final + (1 - final) (1 - s)^power)                s = (t - W) / (T - W)
      cosine     lr (final + (1 - final) (1 + cos(pi s)) / 2)
      linear     lr (t + 1) / T, a ramp up to `lr`
      constant   lr

    Args:
      steps: number of updates of the whole run; later steps keep the last value.
      steps_per_epoch: 1 changes the rate at every step, more makes a staircase (nnU-Net: 250).
      warmup_steps: a multiple of `steps_per_epoch`.
      final: share of `lr` at the end.
      span: steps that T stands for where the schedule is longer or shorter than the run; 0:
        `steps`.
      shift: epochs by which the schedule is ahead (or, negative, late).

    Raises: `UsageError` for an unknown name or a warm-up that does not fit.
    """
    if name not in SCHEDULES:
        raise UsageError(f"unknown schedule {name!r}", fix=did_you_mean(name, SCHEDULES))
    steps = span or steps
    if (
        steps < 1
        or steps_per_epoch < 1
        or warmup_steps % steps_per_epoch
        or not 0 <= warmup_steps < steps
    ):
        raise UsageError(
            "warm-up does not fit the run",
            found=f"warmup_steps={warmup_steps}, steps={steps}, steps_per_epoch={steps_per_epoch}",
            fix="take a multiple of steps_per_epoch below steps",
        )
    warm, total = warmup_steps // steps_per_epoch, steps / steps_per_epoch
    shape = {
        "poly": lambda left: left**power,
        "cosine": lambda left: (1 - jnp.cos(jnp.pi * left)) / 2,
        "linear": lambda left: jnp.minimum(1 - left + 1 / (total - warm), 1.0),
        "constant": jnp.ones_like,
    }[name]
    floor = {"constant": 1.0, "linear": 0.0}.get(name, final)

    def rate(step: Any) -> Any:
        t = jnp.maximum(jnp.asarray(step) // steps_per_epoch + shift, 0)
        left = jnp.clip((total - t) / (total - warm), 0.0, 1.0)  # 1 - s, exact near the end
        rest = lr * (floor + (1 - floor) * shape(left))
        return jnp.where(t < warm, lr * (t + 1) / warm, rest) if warm else rest

    return rate


def _per_leaf(f: Callable, rules: Rules, what: str) -> optax.GradientTransformation:
    """A stateless transformation g -> f(g, p, factor).

    The factor is taken from a rule list by the leaf's path.
    """

    def update(updates, state, params=None):
        factors = rule_lists.assign(
            updates, rules, what, all_used=False
        )  # only the trained leaves arrive here
        return jax.tree.map(f, updates, params, factors), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _trust(update: Any, p: Any, where: Any) -> Any:
    """The update in the length of its leaf (the slices `where` of it): r |p| / |r|."""
    length, own = (jnp.sqrt(jnp.sum(jnp.square(_sliced(x, where)))) for x in (p, update))
    usable = (length > 0) & (own > 0)
    return update * jnp.where(usable, length / jnp.where(usable, own, 1), 1).astype(update.dtype)


def _sliced(x: Any, where: Any) -> Any:
    """The array with 0 outside the slices (axis, indices); None: as it is."""
    return x if where is None else x * _slices(x, *where)


def _slices(like: Any, axis: int, indices: Any) -> Any:
    """1 at the given indices of an axis, else 0, broadcast against `like`."""
    line = jnp.zeros(like.shape[axis], like.dtype).at[jnp.asarray(indices)].set(1)
    return line.reshape([-1 if k == axis % like.ndim else 1 for k in range(like.ndim)])


class _Amsgrad(NamedTuple):
    count: Any
    mu: Any
    nu: Any
    largest: Any


def _amsgrad(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """AMSGrad as in torch.optim: the largest v is kept before the bias correction.

    optax' own keeps it after the correction.
    """

    def init(params: Any) -> _Amsgrad:
        mu, nu, largest = (jax.tree.map(jnp.zeros_like, params) for _ in range(3))
        return _Amsgrad(jnp.zeros((), jnp.int32), mu, nu, largest)

    def update(g: Any, state: _Amsgrad, params: Any = None) -> tuple[Any, _Amsgrad]:
        count = state.count + 1
        mu = jax.tree.map(lambda m, x: b1 * m + (1 - b1) * x, state.mu, g)
        nu = jax.tree.map(lambda v, x: b2 * v + (1 - b2) * x**2, state.nu, g)
        largest = jax.tree.map(jnp.maximum, state.largest, nu)
        one, two = 1 - b1**count, 1 - b2**count
        return jax.tree.map(
            lambda m, v: m / one / (jnp.sqrt(v / two) + eps), mu, largest
        ), _Amsgrad(count, mu, nu, largest)

    return optax.GradientTransformation(init, update)
