"""The training state, a plain dictionary, created on the devices.

    {"step": int32 scalar, "params": leaves that any phase trains, "frozen": all other leaves,
     "opt": optimizer state of `params`, "ema": moving average of `params`, if one is kept}

`params` and `frozen` are nested dictionaries with disjoint leaves; `join` makes the tree that the
network takes. If everything is trained, `frozen` is empty.

In: `init(key) -> parameters`, an optimizer, a mesh and sharding rules. Out: the abstract state with
its shardings (the target of every restore), and a fresh state created directly on the devices, so
that no host ever holds a whole large model.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax.errors import TrainError
from medjax.train import fresh, sharding
from medjax.train import rules as rule_lists
from medjax.train.optim import Optimizer
from medjax.train.rules import Rules

State = dict[str, Any]


def split(tree: Any, trained: Any) -> tuple[Any, Any]:
    """A parameter tree as (trained, frozen); branches without a leaf are left out.

    Args:
      tree: nested dictionaries; if all leaves are trained, any tree, which is returned as it is.
      trained: the same tree of bool, see `Optimizer.trained`.

    Raises: `TrainError` if a list or tuple holds trained and frozen leaves.
    """
    on = jax.tree.leaves(trained)
    if all(on) or not any(on):
        return (tree, {}) if all(on) else ({}, tree)
    if not isinstance(tree, Mapping):
        raise TrainError(
            "a list of parameters holds trained and frozen leaves",
            found=rule_lists.paths(tree)[:12],
            fix="name the parameters by nested dictionaries, or freeze the list as a whole",
        )
    parts: tuple[dict, dict] = ({}, {})
    for key in tree:
        for part, inner in zip(parts, split(tree[key], trained[key]), strict=True):
            if jax.tree.leaves(inner):
                part[key] = inner
    return parts


def join(params: Any, frozen: Any) -> Any:
    """The whole parameter tree from its trained and frozen leaves; the inverse of `split`."""
    if not jax.tree.leaves(frozen) or not jax.tree.leaves(params):
        return params if not jax.tree.leaves(frozen) else frozen
    return {
        key: join(params.get(key, {}), frozen.get(key, {})) for key in sorted({*params, *frozen})
    }


def weights(state: State, *, average: bool = True) -> Any:
    """All parameters as the network takes them.

    Those of the moving average (in the types of the trained ones) if the state keeps one and
    `average` is set.
    """
    params = state["params"]
    if average and "ema" in state:
        params = jax.tree.map(lambda e, p: e.astype(p.dtype), state["ema"], params)
    return join(params, state["frozen"])


def maker(init: Callable[[jax.Array], Any], optimizer: Optimizer) -> Callable[[jax.Array], State]:
    """key -> fresh state at step 0.

    Under `jax.eval_shape` it gives the shapes of all parts, e.g. for counting memory: gradients are
    as large as `params`.
    """

    def make_state(key: jax.Array) -> State:
        made = jax.tree.map(
            lambda p: p.astype(p.dtype), init(key)
        )  # no weak types: they would cause a second compilation
        params, frozen = split(made, optimizer.trained(made))
        state = {
            "step": jnp.zeros((), jnp.int32),
            "params": params,
            "frozen": frozen,
            "opt": optimizer.tx.init(params),
        }
        return state | ({"ema": average_of(params)} if optimizer.ema else {})

    return make_state


def average_of(params: Any) -> Any:
    """The moving average before the first step: a copy of the parameters, float32 or wider."""
    return jax.tree.map(
        lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32), copy=True), params
    )


def abstract(
    init: Callable[[jax.Array], Any],
    optimizer: Optimizer,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
    rules: Rules,
) -> State:
    """The state as `jax.ShapeDtypeStruct` leaves that carry their shardings; costs no memory."""
    shapes = jax.eval_shape(lambda: maker(init, optimizer)(jax.random.key(0)))
    whole = join(shapes["params"], shapes["frozen"])
    shardings = sharding.of_state(shapes | {"params": whole, "frozen": {}}, mesh, rules)
    parts = split(shardings["params"], optimizer.trained(whole))
    shardings |= dict(zip(("params", "frozen"), parts, strict=True))
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings
    )


def born(init: Callable[[jax.Array], Any], optimizer: Optimizer, target: State, seed: int) -> State:
    """A fresh state from `seed`, created in place with the shardings of `target`.

    The compiler's optimizer spends seconds on every random draw (12.0 against 0.4 CPU seconds for
    one kernel). So on CPUs it is compiled without optimization, as it runs once; on other devices,
    leaves are drawn together (`fresh.together`: 34.7 against 5.6 CPU seconds for the U-Net).
    """
    where = shardings_of(target)
    on_cpu = all(d.platform == "cpu" for d in jax.tree.leaves(where)[0].device_set)
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    init = init if on_cpu else fresh.together(init)
    make = jax.jit(maker(init, optimizer), out_shardings=where, compiler_options=options)
    with jax.transfer_guard("allow"):  # the seed is a number of the host, for all devices
        return make(jax.random.key(seed))


def shardings_of(target: State) -> State:
    """The sharding of every leaf of an abstract state."""
    return jax.tree.map(lambda leaf: leaf.sharding, target)


def with_params(state: State, params: Any) -> State:
    """The state with other parameters (all of them), placed like the old ones.

    A moving average begins at them. Names and shapes must agree, else `TrainError`.
    """
    before = weights(state, average=False)
    old = dict(zip(rule_lists.paths(before), jax.tree.leaves(before), strict=True))
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
    parts = {}
    for part in ("params", "frozen"):
        names = rule_lists.paths(state[part])
        placed = [_place(new[name], old[name]) for name in names]
        parts[part] = jax.tree.unflatten(jax.tree.structure(state[part]), placed)
    average = {"ema": average_of(parts["params"])} if "ema" in state else {}
    return state | parts | average


def _place(value: Any, like: Any) -> Any:
    """Places arrays like `like`.

    Numpy arrays (the same on every process) are placed; device arrays of another placing are moved.
    """
    if isinstance(value, np.ndarray):
        value = value.astype(like.dtype, copy=False)
        with jax.transfer_guard_host_to_device("allow"):  # meant, though jax calls it implicit
            return jax.make_array_from_callback(
                value.shape, like.sharding, lambda index: value[index]
            )
    return jax.device_put(jnp.asarray(value, like.dtype), like.sharding)
