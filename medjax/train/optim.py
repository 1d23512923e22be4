"""Optimizers and schedules from plain arguments: SGD with Nesterov momentum, AdamW; poly, cosine, constant; clipping; frozen leaves.

Flows in: numbers and rule lists over parameter paths. Flows out: `Optimizer`, an optax transformation with its schedule and the mask of
trained leaves. Frozen leaves have no optimizer state, no update and no share in the clipping norm.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from medjax.errors import UsageError, did_you_mean
from medjax.train import rules as rule_lists
from medjax.train.rules import Rules

NAMES = ("sgd", "adamw")
SCHEDULES = ("poly", "cosine", "constant")
ALL_TRUE: Rules = ((".*", True),)
ALL_ONE: Rules = ((".*", 1.0),)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What the update needs.

    Attributes:
      tx: the optax transformation over the whole parameter tree.
      schedule: step (0-based, int or traced) -> learning rate.
      trained: parameters -> tree of bool, False where frozen.
    """

    tx: optax.GradientTransformation
    schedule: Callable[[Any], Any]
    trained: Callable[[Any], Any]


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
    momentum: float = 0.99,
    nesterov: bool = True,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 3e-5,
    clip_norm: float = 12.0,
    trainable: Rules = ALL_TRUE,
    lr_scale: Rules = ALL_ONE,
    decay: Rules = ALL_ONE,
) -> Optimizer:
    """Builds the optimizer; the defaults are nnU-Net's.

    Per step, over the trained leaves only: clip the gradients' global norm to `clip_norm` (0: never), then

      sgd     g += wd p;  m = momentum m + g;  u = g + momentum m (nesterov) or m          torch.optim.SGD: decay is coupled
      adamw   u = mhat / (sqrt(vhat) + eps) + wd p                                          torch.optim.AdamW: decay is decoupled

      p -= lr(step) lr_scale u          wd = weight_decay x decay

    Args:
      steps, schedule, power, steps_per_epoch, warmup_steps, final: see `make_schedule`.
      trainable: (regex, bool); False freezes.
      lr_scale: (regex, factor of the learning rate).
      decay: (regex, bool or factor of `weight_decay`).

    Raises: `UsageError` for unknown names; `TrainError` (at initialisation) for rules that do not cover the parameters.
    """
    if name not in NAMES:
        raise UsageError(f"unknown optimizer {name!r}", fix=did_you_mean(name, NAMES))
    rate = make_schedule(schedule, lr, steps, power=power, steps_per_epoch=steps_per_epoch, warmup_steps=warmup_steps, final=final)
    add_decay = _per_leaf(lambda g, p, factor: g + weight_decay * float(factor) * p, decay, "weight decay rules")
    if name == "sgd":
        core = [add_decay, optax.trace(momentum, nesterov)] if momentum else [add_decay]
    else:
        core = [optax.scale_by_adam(b1, b2, eps), add_decay]
    scale = _per_leaf(lambda g, _, factor: g * float(factor), lr_scale, "learning-rate rules")
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    chain = optax.chain(*clip, *core, scale, optax.scale_by_learning_rate(rate))

    def trained(params: Any) -> Any:
        return jax.tree.map(bool, rule_lists.assign(params, trainable, "trainable rules"))

    def groups(params: Any) -> Any:
        return jax.tree.map(lambda on: "train" if on else "freeze", trained(params))

    def init(params: Any) -> Any:
        for rules, what in ((decay, "weight decay rules"), (lr_scale, "learning-rate rules")):
            rule_lists.assign(params, rules, what)  # unmatched paths and unused rules show before training, on the whole tree
        return tx.init(params)

    tx = optax.partition({"train": chain, "freeze": optax.set_to_zero()}, groups)
    return Optimizer(optax.GradientTransformation(init, tx.update), rate, trained)


def make_schedule(
    name: str, lr: float, steps: int, *, power: float = 0.9, steps_per_epoch: int = 1, warmup_steps: int = 0, final: float = 0.0
) -> Callable[[Any], Any]:
    """step (0-based) -> learning rate.

    With t = floor(step / steps_per_epoch), W and T the warm-up and total length in the same unit:
      warm-up    lr (t + 1) / W                                        while t < W
      poly       lr (final + (1 - final) (1 - s)^power)                s = (t - W) / (T - W)
      cosine     lr (final + (1 - final) (1 + cos(pi s)) / 2)
      constant   lr

    Args:
      steps: number of updates of the whole run; later steps keep the last value.
      steps_per_epoch: 1 changes the rate at every step, more makes a staircase (nnU-Net: 250).
      warmup_steps: a multiple of `steps_per_epoch`.
      final: share of `lr` at the end.

    Raises: `UsageError` for an unknown name or a warm-up that does not fit.
    """
    if name not in SCHEDULES:
        raise UsageError(f"unknown schedule {name!r}", fix=did_you_mean(name, SCHEDULES))
    if steps < 1 or steps_per_epoch < 1 or warmup_steps % steps_per_epoch or not 0 <= warmup_steps < steps:
        raise UsageError(
            "warm-up does not fit the run", found=f"warmup_steps={warmup_steps}, steps={steps}, steps_per_epoch={steps_per_epoch}",
            fix="take a multiple of steps_per_epoch below steps",
        )  # fmt: skip
    warm, total = warmup_steps // steps_per_epoch, steps / steps_per_epoch
    shape = {
        "poly": lambda s: (1 - s) ** power,
        "cosine": lambda s: (1 + jnp.cos(jnp.pi * s)) / 2,
        "constant": jnp.ones_like,
    }[name]
    floor = 1.0 if name == "constant" else final

    def rate(step: Any) -> Any:
        t = jnp.asarray(step) // steps_per_epoch
        s = jnp.clip((t - warm) / (total - warm), 0.0, 1.0)
        rest = lr * (floor + (1 - floor) * shape(s))
        return jnp.where(t < warm, lr * (t + 1) / warm, rest) if warm else rest

    return rate


def _per_leaf(f: Callable, rules: Rules, what: str) -> optax.GradientTransformation:
    """A stateless transformation g -> f(g, p, factor), the factor taken from a rule list by the leaf's path."""

    def update(updates, state, params=None):
        factors = rule_lists.assign(updates, rules, what, all_used=False)  # only the trained leaves arrive here
        return jax.tree.map(f, updates, params, factors), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
