"""Prediction for scans whose task nobody knows: all tasks are asked, the surest answer stays.

In: a network as a function that reads `task`. Out: one that does not need to be told.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from medjax.errors import UsageError
from medjax.infer.model import Model

ALL = "all"  # in place of the name of a task
SMALLEST = 1e-6  # probability, so that logits stay finite


def asking_all(model: Model, count: int, path: object = None) -> Model:
    """A model with the task "all", see `over_all`.

    Raises: `UsageError`, naming `path`, for one that reads no task.
    """
    if "task" not in model.reads:
        raise UsageError(
            "this model reads no task", path=path, found=f"task {ALL}", fix="leave --task out"
        )
    apply = over_all(model.apply, count)
    return dataclasses.replace(model, apply=apply, tasks={**model.tasks, ALL: 0})


def over_all(apply: Callable[..., dict], count: int) -> Callable[..., dict]:
    """The network with, in every voxel, the largest of all tasks' probabilities.

    That of a task t is weighted with the share that the network gives to t when it is told t:
    softmax(category)_t, or 1 for networks without `category`.

    Args:
      apply: (params, image (k, *window, m), context) -> {"logits": (k, *window, c), optionally
        "category": (k, count)}. count: number of tasks.
    """

    def applied(params: Any, image: Any, context: Mapping[str, Any]) -> dict:
        def one(task: Any) -> Any:
            told = jnp.full(image.shape[:1], task, jnp.int32)
            outputs = apply(params, image, {**context, "task": told})
            found = jax.nn.sigmoid(outputs["logits"].astype(jnp.float32))
            if "category" not in outputs:
                return found
            share = jax.nn.softmax(outputs["category"].astype(jnp.float32), -1)[:, task]
            return found * share.reshape(-1, *(1,) * (found.ndim - 1))

        best = jax.lax.map(one, jnp.arange(count)).max(0)
        best = jnp.clip(best, SMALLEST, 1 - SMALLEST)
        return {"logits": jnp.log(best) - jnp.log1p(-best)}

    return applied
