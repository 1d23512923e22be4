"""Placement of arrays: the mesh, the sharding of the state by rules, batches, prefetching.

The mesh has two axes: "data" (copies of the model) and "fsdp" (devices that share one copy). A
batch is split over both. The compiler keeps the global view: a sum over the batch is a sum over all
devices and processes.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from medjax.errors import TrainError, UsageError, did_you_mean
from medjax.train import rules as rule_lists
from medjax.train.rules import Rules

AXES = ("data", "fsdp")
KINDS = ("replicate", "fsdp")
REPLICATE: Rules = ((".*", "replicate"),)
SMALL = 1024  # leaves with fewer elements are cheaper to copy than to gather


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh ("data", "fsdp") over all devices, or the given ones.

    `fsdp` devices share one copy of the state. Axes are `Auto` on purpose: the compiler chooses the
    communication (`jax.make_mesh` would default to explicit axes).
    """
    devices = list(devices) if devices is not None else jax.devices()
    if fsdp < 1 or len(devices) % fsdp:
        raise UsageError(
            "the devices cannot be split",
            found=f"{len(devices)} devices, fsdp={fsdp}",
            fix="choose a divisor of the device count",
        )
    return jax.make_mesh(
        (len(devices) // fsdp, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def spec(shape: Sequence[int], kind: str, size: int, small: int = SMALL) -> PartitionSpec:
    """How one leaf is split.

    Args:
      shape: of the leaf.
      kind: "replicate", or "fsdp": its largest axis that `size` divides is split over the "fsdp"
        axis (the last one among equals); leaves of fewer than `small` elements, or without such an
        axis, are replicated.
      size: of the "fsdp" axis.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown sharding {kind!r}", fix=did_you_mean(kind, KINDS))
    fits = [(n, axis) for axis, n in enumerate(shape) if n % size == 0 and n >= size]
    if kind == "replicate" or size == 1 or not fits or np.prod(shape) < small:
        return PartitionSpec()
    _, chosen = max(fits)
    return PartitionSpec(*("fsdp" if axis == chosen else None for axis in range(len(shape))))


def of_state(
    state: Mapping[str, Any], mesh: Mesh | AbstractMesh, rules: Rules, small: int = SMALL
) -> dict[str, Any]:
    """The sharding of every leaf of an abstract state {"step", "params", "opt"}.

    Parameters follow the rules (regex over the parameter path, "replicate" or "fsdp"). An optimizer
    leaf follows the parameter whose path ends its own path and whose shape it has (moments repeat
    the parameter tree); all others are replicated.
    """
    params, size = state["params"], mesh.shape["fsdp"]
    kinds = rule_lists.assign(params, rules, "sharding rules")
    named = jax.tree.map(
        lambda leaf, kind: NamedSharding(mesh, spec(leaf.shape, kind, size, small)), params, kinds
    )
    leaves = zip(
        rule_lists.paths(params), jax.tree.leaves(params), jax.tree.leaves(named), strict=True
    )
    by_path = {path: (leaf.shape, where) for path, leaf, where in leaves}

    def follow(keys: Sequence[Any], leaf: Any) -> NamedSharding:
        parts = rule_lists.path_name(keys).split("/")
        for start in range(len(parts)):  # the longest suffix first
            shape, where = by_path.get("/".join(parts[start:]), (None, None))
            if shape == leaf.shape:
                return where
        return replicated(mesh)

    return {
        **{k: jax.tree_util.tree_map_with_path(follow, v) for k, v in state.items()},
        "params": named,
    }


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The leading axis spread over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def put(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Places one host batch.

    Every process gives its own part, the result is the global batch spread over all devices.

    Args:
      batch: arrays (possibly in nested dictionaries) whose first axis runs over this process'
        samples.

    Raises: `TrainError` if the global batch cannot be spread evenly.
    """
    count = jax.process_count()
    for name, array in zip(rule_lists.paths(batch), jax.tree.leaves(batch), strict=True):
        if (len(array) * count) % mesh.size:
            raise TrainError(
                f"batch entry {name!r} cannot be spread over the devices",
                found=f"{len(array) * count} samples, {mesh.size} devices",
                fix="choose a batch that is a multiple of the device count, or fewer devices",
            )
    where = split(mesh)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(where, np.asarray(array)), dict(batch)
    )


class Placer:
    """`put` that requires every batch to have the shapes and types of the first one.

    So nothing is compiled twice.
    """

    def __init__(self, mesh: Mesh):
        self.mesh, self.first = mesh, None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The placed batch; `TrainError` if names, shapes or types differ from the first."""
        leaves = zip(rule_lists.paths(batch), jax.tree.leaves(batch), strict=True)
        described = {name: (tuple(a.shape), str(a.dtype)) for name, a in leaves}
        self.first = self.first or described
        if described != self.first:
            wrong = {
                k: v for k, v in described.items() if self.first.get(k) != v
            } or "missing entries"
            raise TrainError(
                "a batch differs from the first one",
                found=wrong,
                expected=self.first,
                fix="deliver one patch shape and one type",
            )
        return put(batch, self.mesh)


@contextlib.contextmanager
def prefetch(
    items: Iterable[Any], place: Callable[[Any], Any], depth: int = 2
) -> Iterator[Iterator[Any]]:
    """Context whose value iterates over `place(item)`, kept `depth` ahead by one thread.

    An exception of the stream or of `place` is raised, with its own traceback, where the item would
    have been delivered.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    closed, end = threading.Event(), object()

    def offer(entry: tuple[Any, BaseException | None]) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(entry, timeout=0.1)

    def work() -> None:
        try:
            for item in items:
                offer((place(item), None))
                if closed.is_set():
                    return
            offer((end, None))
        except BaseException as error:
            offer((end, error))

    def deliver() -> Iterator[Any]:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item

    thread = threading.Thread(target=work, name="medjax-prefetch", daemon=True)
    thread.start()
    try:
        yield deliver()
    finally:
        closed.set()
        thread.join(timeout=10)
