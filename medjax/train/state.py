"""The training state: {"step", "params", "opt"}, a plain dictionary, created on the devices.

In: `init(key) -> parameters`, an optimizer, a mesh and sharding rules. Out: the abstract state with
its shardings (the target of every restore), and a fresh state created directly on the devices, so
that no host ever holds a whole large model.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax.errors import TrainError
from medjax.train import rules as rule_lists
from medjax.train import sharding
from medjax.train.optim import Optimizer
from medjax.train.rules import Rules

State = dict[str, Any]


def maker(init: Callable[[jax.Array], Any], optimizer: Optimizer) -> Callable[[jax.Array], State]:
    """key -> fresh state at step 0 (int32 scalar `step`, `params`, optimizer state `opt`)."""

    def make_state(key: jax.Array) -> State:
        params = jax.tree.map(
            lambda p: p.astype(p.dtype), init(key)
        )  # no weak types: they would cause a second compilation
        return {
            "step": jnp.zeros((), jnp.int32),
            "params": params,
            "opt": optimizer.tx.init(params),
        }

    return make_state


def abstract(
    init: Callable[[jax.Array], Any],
    optimizer: Optimizer,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
    rules: Rules,
) -> State:
    """The state as `jax.ShapeDtypeStruct` leaves that carry their shardings; costs no memory."""
    shapes = jax.eval_shape(maker(init, optimizer), jax.random.key(0))
    shardings = sharding.of_state(shapes, mesh, rules)
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings
    )


def born(init: Callable[[jax.Array], Any], optimizer: Optimizer, target: State, seed: int) -> State:
    """A fresh state from `seed`, created in place with the shardings of `target`.

    On CPUs it is compiled without optimization: it runs once, and the compiler's optimizer spends
    seconds on every random draw (12.0 against 0.4 CPU seconds for one kernel).
    """
    where = shardings_of(target)
    on_cpu = all(d.platform == "cpu" for d in jax.tree.leaves(where)[0].device_set)
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    return jax.jit(maker(init, optimizer), out_shardings=where, compiler_options=options)(
        jax.random.key(seed)
    )


def shardings_of(target: State) -> State:
    """The sharding of every leaf of an abstract state."""
    return jax.tree.map(lambda leaf: leaf.sharding, target)


def with_params(state: State, params: Any) -> State:
    """The state with other parameters, placed like the old ones.

    Names and shapes must agree, else `TrainError`.
    """
    old = dict(
        zip(rule_lists.paths(state["params"]), jax.tree.leaves(state["params"]), strict=True)
    )
    new = dict(zip(rule_lists.paths(params), jax.tree.leaves(params), strict=True))
    wrong = sorted(set(old) ^ set(new)) + [
        k for k in old.keys() & new.keys() if old[k].shape != new[k].shape
    ]
    if wrong:
        raise TrainError(
            "borrowed parameters do not fit the model",
            found=wrong[:12],
            fix="return the tree that was given, leaves replaced",
        )
    placed = [_place(new[k], old[k]) for k in old]
    return state | {"params": jax.tree.unflatten(jax.tree.structure(state["params"]), placed)}


def _place(value: Any, like: Any) -> Any:
    """Places arrays like `like`.

    Numpy arrays (the same on every process) are placed; device arrays of another placing are moved.
    """
    if isinstance(value, np.ndarray):
        value = value.astype(like.dtype, copy=False)
        return jax.make_array_from_callback(value.shape, like.sharding, lambda index: value[index])
    return jax.device_put(jnp.asarray(value, like.dtype), like.sharding)
