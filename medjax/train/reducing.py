"""The type in which devices add up their gradients.

Without more, the compiler adds them in the type in which it has computed them: float32 for biases
and norms, for kernels that of the network, and on CPUs always float32 or wider. Under `reduced`
every device runs the network on its own samples and on its own copy of the parameters, and the sum
over the copies, one all-reduce or reduce-scatter, has the type that `train.reduce` says.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from medjax.errors import TrainError, UsageError, did_you_mean
from medjax.linear import linear
from medjax.train import pinning, rules, sharding

TYPES = ("auto", "float32", "bfloat16")
MANY = 1009  # samples to ask for shapes with: no other axis is so long by chance


def reduced(
    apply: Callable, mesh: Any, axes: Sequence[str] = sharding.AXES, kind: str = "auto"
) -> Callable[..., Any]:
    """`apply` of a network for a batch that is split over the devices of a mesh.

    Args:
      apply: (params, array (b, ...), context, train, key) -> arrays (b, ...).
      mesh, axes: where the batch lies, see `sharding.Layout`.
      kind: "auto": `pinning.pinned`, the compiler chooses the type; else the type of the sum, in
        training. The random parts of the network (dropout) then differ from device to device, and
        from those of "auto".

    Raises: `UsageError` for another word, or if devices compute the same samples; when it is
      called, `TrainError` if the network computes something over the batch as a whole.
    """
    if kind not in TYPES:
        raise UsageError(
            f"unknown train.reduce {kind!r}",
            expected=" or ".join(TYPES),
            fix=did_you_mean(kind, TYPES),
        )
    pinned = pinning.pinned(apply, mesh, axes)
    if kind == "auto" or mesh is None or mesh.size == 1:
        return pinned
    parts = sharding.shards(mesh, axes)
    if parts != mesh.size:
        raise UsageError(
            f"train.reduce={kind} needs a batch that is split over all devices",
            found=f"{mesh.size} devices, {parts} parts",
            fix="make train.batch / train.accumulate a multiple of the devices, or train.reduce="
            "auto",
        )
    split, whole = PartitionSpec(tuple(axes)), PartitionSpec()
    copied = _copies(mesh, axes, parts, jnp.dtype(kind))

    def call(
        params: Any, array: Any, context: Any = None, train: bool = False, key: Any = None
    ) -> Any:
        samples = len(array)
        if not train or samples % parts:
            return pinned(params, array, context, train, key)

        def own(copies: Any, array: Any, context: Any, key: Any) -> Any:
            mine = jax.tree.map(lambda p: p[0], copies)
            key = None if key is None else jax.random.fold_in(key, lax.axis_index(tuple(axes)))
            return apply(mine, array, context, train, key)

        _check(apply, params, array, context, key)
        where = jax.tree.map(lambda a: split if _of_samples(a, samples) else whole, context)
        return jax.shard_map(
            own,
            mesh=mesh,
            in_specs=(split, split, where, whole),
            out_specs=split,
            check_vma=False,  # nothing that is differentiated is shared: each has its own copy
        )(jax.tree.map(copied, params), array, context, key)

    return call


def _copies(mesh: Any, axes: Sequence[str], parts: int, kind: Any) -> Callable[[Any], Any]:
    """leaf -> (parts, *leaf.shape), one on each device; their cotangents are added in `kind`."""
    where = sharding.split(mesh, axes)

    def spread(_: Any, leaf: Any) -> Any:
        return lax.with_sharding_constraint(jnp.broadcast_to(leaf, (parts, *leaf.shape)), where)

    def added(_: Any, each: Any) -> Any:
        each = lax.with_sharding_constraint(each, where)
        total = lax.reduce(each.astype(kind), jnp.zeros((), kind), lax.add, (0,))
        return total.astype(each.dtype)

    def copied(leaf: Any) -> Any:
        return linear(spread, added, (), leaf)

    return copied


def _of_samples(leaf: Any, samples: int) -> bool:
    return leaf.ndim > 0 and leaf.shape[0] == samples


def _check(apply: Callable, params: Any, array: Any, context: Any, key: Any) -> None:
    """`TrainError` unless every output of the network has the samples as its first axis."""
    samples = len(array)

    def many(leaf: Any) -> Any:
        shape = (MANY, *leaf.shape[1:]) if _of_samples(leaf, samples) else leaf.shape
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    given = jax.tree.map(many, (array, context))
    found = jax.eval_shape(lambda p, a, c, k: apply(p, a, c, True, k), params, *given, key)
    for name, leaf in zip(rules.paths(found), jax.tree.leaves(found), strict=True):
        if not _of_samples(leaf, MANY):
            raise TrainError(
                f"train.reduce cannot be used: the network computes {name!r} over the batch",
                found=f"shape {leaf.shape} for {MANY} samples",
                fix="--config.train.reduce=auto",
            )
