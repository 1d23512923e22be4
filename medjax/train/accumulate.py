"""Gradients of a large batch from micro-batches, one after another inside the compiled step.

In: a task, and the number of micro-batches. Out: functions with the arguments and results of
`jax.value_and_grad(task.loss, has_aux=True)` and of `task.validate`, whose memory for activations
is that of one micro-batch.

The batch is the one that a step without micro-batches has (same stream, same samples). If the task
offers `prepare` and `prepared_loss`, the whole batch is augmented at once, so every sample gets the
same augmentation (and hidden tokens) as without micro-batches. Random parts of the network
(dropout, stochastic depth) are drawn for a batch as a whole; micro-batch i uses the network's key
folded by i, so they differ from those of the undivided batch, but not from run to run.

Losses that are means or sums over samples give the gradient of the undivided batch. For others
(batch Dice), which `task.batch_losses()` names, it is the gradient of the mean of the losses of the
micro-batches.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from medjax.train import sharding, state

Mesh = jax.sharding.Mesh | jax.sharding.AbstractMesh


def value_and_grad(
    task: Any,
    parts: int,
    mesh: Mesh,
    axes: Sequence[str] = sharding.AXES,
    *,
    where: Any = None,
    join: Callable[[Any, Any], Any] = state.join,
) -> Callable[[Any, Any, Any, jax.Array], tuple[tuple[Any, dict], Any]]:
    """(params, frozen, batch, key) -> ((loss, scalars), gradients with respect to `params`).

    Args:
      task: `loss(tree, batch, key)`, and optionally `prepare(batch, key)` and
        `prepared_loss(tree, prepared, key, part, parts)`, as `tasks.supervised` has them.
      parts: micro-batches; 1 is `jax.value_and_grad` itself. Must divide the batch, and every
        micro-batch the devices (`sharding.layout` checks both).
      mesh, axes: what the batch is split over; every micro-batch is split likewise, and takes its
        samples from those that a device has anyway.
      where: sharding of every gradient (that of its parameter).
      join: (params, frozen) -> tree for the task.

    Loss and scalars are means over the micro-batches, as float32.
    """
    if parts == 1:

        def whole(params: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple:
            return jax.value_and_grad(
                lambda p: task.loss(join(p, frozen), batch, key), has_aux=True
            )(params)

        return whole

    prepares = hasattr(task, "prepared_loss")

    def loss(params: Any, frozen: Any, batch: Any, key: jax.Array, part: jax.Array) -> tuple:
        tree = join(params, frozen)
        if prepares:
            return task.prepared_loss(tree, batch, key, part, parts)
        return task.loss(tree, batch, jax.random.fold_in(key, part))

    def accumulated(params: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple:
        batch = task.prepare(batch, key) if prepares else batch
        batches = divided(batch, parts, mesh, axes)
        one = jax.value_and_grad(loss, has_aux=True)

        def add(total: Any, numbered: tuple) -> tuple:
            part, batch = numbered
            found = jax.tree.map(
                lambda v: v.astype(jnp.promote_types(v.dtype, jnp.float32)),
                one(params, frozen, batch, key, part),
            )
            return constrained(jax.tree.map(jnp.add, total, found)), None

        def constrained(found: tuple) -> tuple:
            value, gradients = found
            if where is not None:
                gradients = jax.lax.with_sharding_constraint(gradients, where)
            return value, gradients

        first = jax.tree.map(lambda a: a[0], batches)
        shapes = jax.eval_shape(one, params, frozen, first, key, jnp.zeros((), jnp.int32))
        zero = jax.tree.map(
            lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), shapes
        )
        total, _ = jax.lax.scan(add, constrained(zero), (jnp.arange(parts), batches))
        value, gradients = jax.tree.map(lambda v: v / parts, total)
        return value, jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, params)

    return accumulated


def validate(
    task: Any, parts: int, mesh: Mesh, axes: Sequence[str] = sharding.AXES
) -> Callable[[Any, Any], dict]:
    """(tree, batch) -> `task.validate`'s sums, computed in micro-batches.

    Random choices of a task's validation (hidden tokens) are the same in every micro-batch.
    """
    if parts == 1:
        return task.validate

    def summed(tree: Any, batch: Any) -> dict:
        batches = divided(batch, parts, mesh, axes)
        found = jax.lax.map(lambda batch: task.validate(tree, batch), batches)
        return jax.tree.map(lambda v: v.sum(0, dtype=v.dtype), found)

    return summed


def divided(batch: Any, parts: int, mesh: Mesh, axes: Sequence[str] = sharding.AXES) -> Any:
    """Leaves (b, ...) -> (parts, b / parts, ...), the second axis split over the devices.

    Micro-batch i holds the i-th share of the samples of every device, so no sample moves.
    """
    devices, where = sharding.shards(mesh, axes), sharding.split(mesh, axes, first=1)

    def one(leaf: jax.Array) -> jax.Array:
        apart = leaf.reshape(devices, parts, -1, *leaf.shape[1:]).swapaxes(0, 1)
        together = apart.reshape(parts, -1, *leaf.shape[1:])
        return jax.lax.with_sharding_constraint(together, where)

    return jax.tree.map(one, batch)


def sentence(task: Any, parts: int) -> str:
    """One line about losses whose gradient is not that of the undivided batch; "" without any."""
    named = task.batch_losses() if parts > 1 and hasattr(task, "batch_losses") else ()
    if not named:
        return ""
    return (
        f"train.accumulate={parts}: {', '.join(named)} are no sums over samples: their gradient is "
        f"that of the mean of {parts} micro-batches, not of the whole batch"
    )
