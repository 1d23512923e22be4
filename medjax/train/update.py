"""One training step and one validation step as compiled functions over the mesh.

  update(state, batch, request)    -> (state, scalars); the old state's buffers are donated
  validate(params, batch, request) -> the sums of the task's `validate`, and "request"

`request` (devices,) int32 carries the request of a process (nothing, save, save and stop) and is
returned as its maximum over all devices: so all processes learn of a signal at the same step,
without extra synchronisation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from medjax.train import accumulate as micro
from medjax.train import sharding
from medjax.train.optim import Optimizer
from medjax.train.state import State, shardings_of


def make(
    task: Any,
    optimizer: Optimizer,
    seed: int,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
    target: State,
    *,
    batch_axes: Sequence[str] = sharding.AXES,
    accumulate: int = 1,
) -> tuple[Callable, Callable]:
    """The jitted (update, validate).

    Args:
      task: has `loss(params, batch, key) -> (scalar, dict of scalars)` and `validate(params, batch)
        -> dict of (n,) sums`.
      optimizer: see `medjax.train.optim`.
      seed: step s uses the key fold_in(key(seed), s), s counted from 0.
      mesh, target: where the batch and the state live.
      batch_axes, accumulate: how the batch lies on the mesh, and the number of micro-batches, see
        `sharding.Layout`.

    Scalars: `loss`, the task's own, `grad_norm` (over the trained leaves, before clipping), `lr`,
    and `request`.
    """
    where, rep, every = shardings_of(target), sharding.replicated(mesh), sharding.split(mesh)
    spread = sharding.split(mesh, batch_axes)
    differentiate = micro.value_and_grad(task, accumulate, mesh, batch_axes, where=where["params"])
    counts = micro.validate(task, accumulate, mesh, batch_axes)
    trained = optimizer.trained(target["params"])

    def update(state: State, batch: dict, request: jax.Array) -> tuple[State, dict]:
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        (loss, scalars), gradients = differentiate(state["params"], None, batch, key)
        changes, opt = optimizer.tx.update(gradients, state["opt"], state["params"])
        # frozen leaves are passed on as they are: adding 0 would turn -0.0 into 0.0
        params = jax.tree.map(
            lambda p, u, on: (p + u).astype(p.dtype) if on else p, state["params"], changes, trained
        )
        step = state["step"]
        facts = {
            "loss": loss,
            "grad_norm": optimizer.norm(gradients, step),
            "lr": optimizer.schedule(step),
            "request": request.max(),
        }
        scalars = scalars | facts
        return {"step": state["step"] + 1, "params": params, "opt": opt}, scalars

    def validate(params: Any, batch: dict, request: jax.Array) -> dict:
        return {**counts(params, batch), "request": jnp.max(request)}

    return (
        jax.jit(
            update,
            in_shardings=(where, spread, every),
            out_shardings=(where, rep),
            donate_argnums=0,
        ),
        jax.jit(validate, in_shardings=(where["params"], spread, every), out_shardings=rep),
    )
