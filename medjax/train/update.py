"""One training step and one validation step as compiled functions over the mesh.

  update(state, batch, request)    -> (state, scalars); the old state's buffers are donated, except
                                      those of frozen leaves, which are handed on
  validate(params, batch, request) -> the sums of the task's `validate`, and "request"

`request` (devices,) int32 carries the request of a process (nothing, save, save and stop) and is
returned as its maximum over all devices: so all processes learn of a signal at the same step,
without extra synchronisation.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from medjax.train import accumulate as micro
from medjax.train import compiling, sharding
from medjax.train import state as states
from medjax.train.optim import Optimizer
from medjax.train.state import State


@dataclasses.dataclass(frozen=True)
class Update:
    """The compiled update: (state, batch, request) -> (state, scalars).

    Attributes:
      compiled: the jitted function of (the state without its frozen leaves, these, batch, request).
    """

    compiled: Any

    def __call__(self, state: State, batch: Any, request: Any) -> tuple[State, dict]:
        """One step; see the module."""
        changed, scalars = self.compiled(*_apart(state), batch, request)
        return changed | {"frozen": state["frozen"]}, scalars

    def trace(self, state: State, batch: Any, request: Any) -> Any:
        """`trace` of the jitted function; arguments may be abstract."""
        return self.compiled.trace(*_apart(state), batch, request)


def _apart(state: State) -> tuple[State, Any]:
    return {name: part for name, part in state.items() if name != "frozen"}, state["frozen"]


def make(
    task: Any,
    optimizer: Optimizer,
    seed: int,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
    target: State,
    *,
    batch_axes: Sequence[str] = sharding.AXES,
    accumulate: int = 1,
    conv_layout: str = "auto",
) -> tuple[Update, Callable]:
    """The jitted (update, validate).

    Args:
      task: has `loss(params, batch, key) -> (scalar, dict of scalars)` and `validate(params, batch)
        -> dict of (n,) sums`; `params` are all parameters.
      optimizer: see `medjax.train.optim`.
      seed: step s uses the key fold_in(key(seed), s), s counted from 0.
      mesh, target: where the batch and the state live.
      batch_axes, accumulate: how the batch lies on the mesh, and the number of micro-batches, see
        `sharding.Layout`.
      conv_layout: see `compiling.options`.

    Only the leaves of `state["params"]` are differentiated. Scalars: `loss`, the task's own,
    `grad_norm` (over the trained leaves, before clipping), `lr`, and `request`.
    """
    where, rep, every = (
        states.shardings_of(target),
        sharding.replicated(mesh),
        sharding.split(mesh),
    )
    changing, fixed = _apart(where)
    spread = sharding.split(mesh, batch_axes)
    differentiate = micro.value_and_grad(task, accumulate, mesh, batch_axes, where=where["params"])
    counts = micro.validate(task, accumulate, mesh, batch_axes)

    def update(state: State, frozen: Any, batch: dict, request: jax.Array) -> tuple[State, dict]:
        step, params = state["step"], state["params"]
        key = jax.random.fold_in(jax.random.key(seed), step)
        (loss, scalars), gradients = differentiate(params, frozen, batch, key)
        changes, opt = optimizer.tx.update(gradients, state["opt"], params)
        params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, changes)
        facts = {
            "loss": loss,
            "grad_norm": optimizer.norm(gradients, step),
            "lr": optimizer.schedule(step),
            "request": request.max(),
        }
        changed = {"step": step + 1, "params": params, "opt": opt}
        if optimizer.ema:
            changed["ema"] = _averaged(state["ema"], params, step, optimizer.ema)
        return changed, scalars | facts

    def validate(params: Any, batch: dict, request: jax.Array) -> dict:
        return {**counts(params, batch), "request": jnp.max(request)}

    options = compiling.options(mesh, conv_layout)
    compiled = jax.jit(
        update,
        in_shardings=(changing, fixed, spread, every),
        out_shardings=(changing, rep),
        donate_argnums=0,
        compiler_options=options,
    )
    whole = states.join(where["params"], where["frozen"])
    return (
        Update(compiled),
        jax.jit(
            validate,
            in_shardings=(whole, spread, every),
            out_shardings=rep,
            compiler_options=options,
        ),
    )


def _averaged(average: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """The moving average after update `step`; see `optim.make`."""
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(
        lambda e, p: (kept * e + (1 - kept) * p.astype(e.dtype)).astype(e.dtype), average, params
    )
