"""Placement of arrays: the layout, the mesh, sharding of the state by rules, batches, prefetching.

The mesh has two axes: "data" (copies of the model) and "fsdp" (devices that share one copy).
`layout` decides how many devices a batch can use and over which axes it is split, for training and
for the rehearsal alike. The compiler keeps the global view: a sum over the batch is a sum over all
devices and processes.
"""

import contextlib
import dataclasses
import math
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


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a global batch lies on devices; see `layout`.

    Attributes:
      batch: samples of one step, of all devices and processes.
      data, fsdp: sizes of the mesh's axes: copies of the model, and devices that share one copy.
      batch_axes: the axes that the batch is split over: both, or "data" alone; then every device of
        an fsdp group computes the same samples, and only the state is split over the group.
      accumulate: micro-batches of one step, one after another.
      per_device: samples of one micro-batch on each device.
      idle: devices that take no part.
    """

    batch: int
    data: int
    fsdp: int
    batch_axes: tuple[str, ...]
    accumulate: int
    per_device: int
    idle: int

    @property
    def used(self) -> int:
        """Devices that take part."""
        return self.data * self.fsdp

    def mesh(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh over the devices that take part, equally many of every process.

        `devices`: as many as the layout was made for; default all.
        """
        devices = list(devices) if devices is not None else jax.devices()
        processes = sorted({device.process_index for device in devices})
        each = self.used // len(processes)
        chosen = [
            device
            for process in processes
            for device in [d for d in devices if d.process_index == process][:each]
        ]
        return make_mesh(self.fsdp, chosen)

    def abstract_mesh(self) -> AbstractMesh:
        """The same mesh without devices."""
        return AbstractMesh((self.data, self.fsdp), AXES, axis_types=(AxisType.Auto,) * 2)

    def sentence(self) -> str:
        """One line about the devices: their mesh, the samples of each, and which are idle."""
        many = self.used + self.idle
        text = f"{self.used if not self.idle else f'{self.used} of {many}'} devices as "
        text = "1 device" if many == 1 else f"{text}{self.data} x {self.fsdp} (data x fsdp)"
        text += f", {self.per_device} of {self.batch} samples on each"
        if self.accumulate > 1:
            text += f", in {self.accumulate} micro-batches one after another"
            text = text.replace(" on each,", " at a time on each,")
        if self.fsdp > 1 and self.batch_axes == AXES[:1]:
            text += (
                f"; the batch cannot be split over {self.used} devices, so the {self.fsdp} devices "
                "that share a copy of the model compute the same samples"
            )
        if self.idle:
            text += (
                f"; {self.idle} idle: make train.batch / train.accumulate a multiple of {many} to "
                "use all"
            )
        return text


def layout(
    batch: int, devices: int, fsdp: int = 1, accumulate: int = 1, processes: int = 1
) -> Layout:
    """Decides how a global batch lies on devices.

    A micro-batch (batch / accumulate) is split over the data axis and, where it divides, over fsdp
    too; else the devices of an fsdp group compute the same samples. Of the possible sizes of the
    data axis the one with the fewest samples per device is taken, then the one that uses the most
    devices. The batch is never rounded.

    Args:
      batch: samples of one step.
      devices: of all processes together.
      fsdp: devices that share one copy of the state.
      accumulate: micro-batches of one step.
      processes: with equally many devices each. Every one of them takes part and feeds its own
        samples, or, if an fsdp group covers several processes, the samples of its group.

    Raises: `UsageError` if fsdp is larger than the number of devices, the batch cannot be divided
      into the micro-batches, or no choice gives every process something to compute.
    """
    if accumulate < 1 or batch % accumulate:
        raise UsageError(
            "the batch cannot be divided into micro-batches",
            found=f"train.batch={batch}, train.accumulate={accumulate}",
            expected=f"a divisor of {batch}",
            fix="change train.accumulate or train.batch",
        )
    if not 1 <= fsdp <= devices:
        raise UsageError(
            "sharding.fsdp asks for more devices than there are" if fsdp > 1 else "unusable fsdp",
            found=f"sharding.fsdp={fsdp}, {devices} devices",
            expected=f"1 to {devices}",
            fix="lower sharding.fsdp, or give more devices",
        )
    micro, found = batch // accumulate, []
    for data in range(1, devices // fsdp + 1):
        if micro % data or data * fsdp % processes:
            continue
        axes = AXES if micro % (data * fsdp) == 0 else AXES[:1]
        shards = data * fsdp if axes == AXES else data
        if max(shards, processes) % min(shards, processes):
            continue  # an fsdp group would begin in the middle of a process
        used = data * fsdp
        found.append(Layout(batch, data, fsdp, axes, accumulate, micro // shards, devices - used))
    if not found:
        each = f"{processes} processes with {devices // processes} devices each"
        raise UsageError(
            "the batch cannot be shared among the processes",
            found=f"{micro} samples at a time, {each}, sharding.fsdp={fsdp}",
            fix=f"make train.batch / train.accumulate a multiple of {processes}, or sharding.fsdp "
            "a multiple of the devices of one process",
        )
    return min(found, key=lambda one: (one.per_device, one.idle))


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


def split(mesh: Mesh | AbstractMesh, axes: Sequence[str] = AXES, first: int = 0) -> NamedSharding:
    """One axis spread over the devices.

    Args:
      axes: mesh axes to spread it over (`Layout.batch_axes` for batches); over the others it is
        replicated.
      first: which axis of the array; the ones before are not split.
    """
    return NamedSharding(mesh, PartitionSpec(*(None,) * first, tuple(axes)))


def shards(mesh: Mesh | AbstractMesh, axes: Sequence[str] = AXES) -> int:
    """Parts into which `split` divides an axis."""
    return math.prod(mesh.shape[axis] for axis in axes)


def share(mesh: Mesh, axes: Sequence[str] = AXES) -> tuple[int, int]:
    """(host, hosts): which part of every global batch this process feeds, of how many.

    Processes whose devices need the same samples have the same number: those that lie in one fsdp
    group if the batch is not split over "fsdp".
    """
    parts = shards(mesh, axes)
    needs: dict[int, set[int]] = {}
    for device, index in split(mesh, axes).devices_indices_map((parts,)).items():
        needs.setdefault(device.process_index, set()).add(index[0].start or 0)
    return host_of(needs, jax.process_index())


def host_of(needs: Mapping[int, set[int]], process: int) -> tuple[int, int]:
    """(host, hosts) of a process.

    Args:
      needs: process -> the parts of the batch that its devices compute.

    Raises: `TrainError` if parts of different processes overlap without being equal.
    """
    different = sorted({tuple(sorted(parts)) for parts in needs.values()})
    if len({len(parts) for parts in different}) > 1 or sum(map(len, different)) != len(
        set().union(*needs.values())
    ):
        raise TrainError(
            "the processes need parts of the batch that overlap",
            found=dict(needs),
            fix="make sharding.fsdp a divisor or a multiple of the devices of one process",
        )
    return different.index(tuple(sorted(needs[process]))), len(different)


def put(batch: Mapping[str, Any], mesh: Mesh, axes: Sequence[str] = AXES) -> dict[str, Any]:
    """Places one host batch.

    Every process gives the part that `share` names, the result is the global batch spread over the
    devices.

    Args:
      batch: arrays (possibly in nested dictionaries) whose first axis runs over this process'
        samples.
      axes: see `split`.

    Raises: `TrainError` if the global batch cannot be spread evenly.
    """
    where, parts = split(mesh, axes), shards(mesh, axes)
    own = len({str(i) for i in where.addressable_devices_indices_map((parts,)).values()})
    for name, array in zip(rule_lists.paths(batch), jax.tree.leaves(batch), strict=True):
        if len(array) % own:
            raise TrainError(
                f"batch entry {name!r} cannot be spread over the devices",
                found=f"{len(array) * parts // own} samples, {parts} devices",
                fix="choose a batch that is a multiple of the device count, or fewer devices",
            )

    def place(array: Any) -> jax.Array:
        array = np.asarray(array)
        shape = (len(array) // own * parts, *array.shape[1:])
        return jax.make_array_from_process_local_data(where, array, shape)

    return jax.tree.map(place, dict(batch))


class Placer:
    """`put` that requires every batch to have the shapes and types of the first one.

    So nothing is compiled twice.
    """

    def __init__(self, mesh: Mesh, axes: Sequence[str] = AXES):
        self.mesh, self.axes, self.first = mesh, axes, None

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
        return put(batch, self.mesh, self.axes)


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
