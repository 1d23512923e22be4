"""Memory per device for N devices, computed from shapes (no device needed).

In: a config. Out: bytes per device for each way of sharding the model, and the
compiler's report for one of them, on simulated devices. Nothing is allocated: states and batches
are shapes with shardings. As a program (`python -m medjax.runs.ahead.devices`) it reads a JSON
request and answers with JSON; each request needs its own process, because the number of devices is
fixed when jax starts.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from medjax.errors import TrainError
from medjax.labels import LabelSpace
from medjax.runs import build, footprint
from medjax.runs.config import with_batch
from medjax.runs.settings.schema import Config, resolve
from medjax.train import sharding
from medjax.train import state as states
from medjax.train import update as updates

PLATFORMS = ("cpu", "cuda", "tpu")
OPTIONS = {
    "xla_backend_optimization_level": 0
}  # the program is not run: only its buffers matter, not its instructions


def ways(devices: int, own: int = 1, node: int = 8) -> list[int]:
    """Sizes of the "fsdp" axis to compare: a copy per device, per node, and over all.

    And the config's `own`, if there are as many devices.
    """
    found = {1, min(node, devices) if devices % min(node, devices) == 0 else 1, devices}
    return sorted(found | ({own} if own <= devices else set()))


def layout_of(config: Config, devices: int, fsdp: int) -> sharding.Layout:
    """How training would lay the config's batch on the devices; see `sharding.layout`."""
    return sharding.layout(config.train.batch, devices, fsdp, config.train.accumulate)


def per_device(
    config: Config,
    net: build.Network,
    space: LabelSpace,
    layout: sharding.Layout,
    alone: Mapping | None = None,
) -> dict:
    """Bytes on each device of a layout.

    Parameters, optimizer, gradients (of the trained leaves), batch, values kept for the backward
    pass, and their sum.

    Args:
      alone: `footprint.memory` at this batch per device, if the caller has it already.
    """
    optimizer, mesh = build.make_optimizer(config), layout.abstract_mesh()
    target = states.abstract(net.init, optimizer, mesh, _rules(config, layout.fsdp))
    local = alone or footprint.memory(_share(config, layout), net, space)
    held = {part: _shard_bytes(tree) for part, tree in target.items()}
    found = {
        "parameters": held["params"] + held["frozen"],
        "optimizer": held["opt"] + held.get("ema", 0),
        "gradients": held["params"] * min(layout.accumulate, 2),
        "batch": local["batch"],
        "kept": local["kept for backward"],
    }
    return found | {"together": sum(found.values())}


def report(
    config: Config,
    net: build.Network,
    space: LabelSpace,
    devices: Sequence[int],
    spacing_mm: Sequence[float],
    *,
    compiled: bool = True,
) -> str:
    """The table of `per_device` for every number of devices, and the result of lowering one way.

    Also of compiling it, if requested. The batch is that of the config in every row.

    Args:
      spacing_mm: for which `net` was made.
    """
    rows = [
        (
            "devices",
            "mesh (data x fsdp)",
            "samples each",
            "idle",
            "parameters",
            "optimizer",
            "gradients",
            "kept for backward",
            "together, each",
        )
    ]
    own, notes, memories = config.sharding.fsdp, [], {}
    for count in devices:
        for fsdp in ways(count, own):
            layout = layout_of(config, count, fsdp)
            share = layout.per_device
            if share not in memories:
                memories[share] = footprint.memory(_share(config, layout), net, space)
            found = per_device(config, net, space, layout, memories[share])
            sizes = [
                footprint.size(found[k])
                for k in ("parameters", "optimizer", "gradients", "kept", "together")
            ]
            mesh = f"{layout.data} x {layout.fsdp}"
            rows.append((str(count), mesh, str(share), str(layout.idle), *sizes))
        chosen = own if 1 < own <= count else ways(count)[min(1, len(ways(count)) - 1)]
        notes.append(layout_of(config, count, chosen).sentence())
        notes.append(_sentence(ask(config, space, count, chosen, spacing_mm, compiled=compiled)))
    if _rules(config, 2) != config.sharding.rules:
        notes.insert(0, 'with fsdp > 1, as if config.sharding.rules were ((".*", "fsdp"),)')
    return "\n".join([footprint.table(rows), *notes])


def ask(
    config: Config,
    space: LabelSpace,
    devices: int,
    fsdp: int,
    spacing_mm: Sequence[float],
    platforms: Sequence[str] = PLATFORMS,
    *,
    compiled: bool = True,
) -> dict:
    """`answer` from a process with that many simulated devices.

    Raises `TrainError` with the end of its stderr if it fails.
    """
    request = {
        "fields": config.to_json(),
        "space": space.to_json(),
        "devices": devices,
        "fsdp": fsdp,
    }
    request |= {"platforms": list(platforms), "compiled": compiled}
    request |= {"spacing_mm": list(spacing_mm)}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-m", "medjax.runs.ahead.devices"]
    done = subprocess.run(
        command,
        input=json.dumps(request),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise TrainError(
            f"the step does not compile for {devices} devices",
            found=done.stderr.strip().splitlines()[-1:],
        )
    return json.loads(done.stdout.splitlines()[-1])


def answer(request: Mapping) -> dict:
    """Lowers one training step for several platforms and, on request, compiles it.

    It is compiled for this process' devices. Lowering needs no device of the platform; the
    resulting program is the one that a machine with such devices would compile.

    Returns: by platform, lines of the program and seconds of lowering; seconds of tracing; if
      compiled, its seconds and the compiler's own bytes per device (arguments, outputs that do not
      reuse argument buffers, temporaries).
    """
    from medjax.registry import plain

    config, devices = resolve(plain(request["fields"])), request["devices"]
    space = LabelSpace.from_json(request["space"])
    layout = layout_of(config, devices, request["fsdp"])
    mesh = layout.mesh(jax.devices()[:devices])
    began = time.monotonic()
    step = traced(config, space, layout, mesh, request["spacing_mm"])
    found = {
        "devices": devices,
        "mesh": f"{layout.data} x {layout.fsdp}",
        "batch": layout.batch,
        "trace_s": time.monotonic() - began,
    }
    found |= {"lines": {}, "lower_s": {}}
    for platform in request["platforms"]:
        began = time.monotonic()
        found["lines"][platform] = step.lower(lowering_platforms=(platform,)).as_text().count("\n")
        found["lower_s"][platform] = time.monotonic() - began
    if not request["compiled"]:
        return found
    began = time.monotonic()
    memory = step.lower().compile(OPTIONS).memory_analysis()
    return found | {
        "compile_s": time.monotonic() - began,
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }


def traced(
    config: Config,
    space: LabelSpace,
    layout: sharding.Layout,
    mesh: jax.sharding.Mesh,
    spacing_mm: Sequence[float],
) -> Any:
    """The training step of a config on a mesh, traced with shapes alone (`jax.stages.Traced`)."""
    axes = layout.batch_axes
    net = build.make_network(config, space, tuple(spacing_mm))
    optimizer = build.make_optimizer(config)
    target = states.abstract(net.init, optimizer, mesh, _rules(config, layout.fsdp))
    update, _ = updates.make(
        build.make_task(config, space, net, mesh, axes),
        optimizer,
        config.seed,
        mesh,
        target,
        batch_axes=axes,
        accumulate=layout.accumulate,
        conv_layout=config.train.conv_layout,
    )
    batch = {
        k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding.split(mesh, axes))
        for k, v in footprint.abstract_batch(config, net).items()
    }
    asked = jax.ShapeDtypeStruct((layout.used,), "int32", sharding=sharding.split(mesh))
    return update.trace(target, batch, asked)


def _sentence(found: Mapping) -> str:
    lowered = ", ".join(
        f"{p} ({n:,} lines, {found['lower_s'][p]:.1f} s)" for p, n in found["lines"].items()
    )
    text = (
        f"{found['devices']} devices as {found['mesh']}: traced in "
        f"{found['trace_s']:.1f} s, lowered for {lowered}"
    )
    if "compile_s" not in found:
        return text
    held = footprint.size(found["arguments"])
    return (
        f"{text}; compiled for {found['devices']} simulated CPU devices in "
        f"{found['compile_s']:.0f} s; each holds {held} of state and batch"
    )


def _rules(config: Config, fsdp: int) -> Sequence:
    """The config's sharding rules; if they replicate everything, all leaves over "fsdp"."""
    given = config.sharding.rules
    return (
        given if fsdp == 1 or any(kind != "replicate" for _, kind in given) else ((".*", "fsdp"),)
    )


def _shard_bytes(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )


def _share(config: Config, layout: sharding.Layout) -> Config:
    """The config with the part of the batch that one device computes."""
    return with_batch(config, layout.per_device * layout.accumulate)


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
