"""Memory per device for N devices, computed from shapes (no device needed).

In: a config as plain values. Out: bytes per device for each way of sharding the model, and the
compiler's report for one of them, on simulated devices. Nothing is allocated: states and batches
are shapes with shardings. As a program (`python -m medjax.runs.dry_devices`) it reads a JSON
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
from jax.sharding import AbstractMesh, AxisType

from medjax.errors import TrainError, UsageError
from medjax.labels import LabelSpace
from medjax.runs import build, footprint
from medjax.train import sharding
from medjax.train import state as states
from medjax.train import update as updates

PLATFORMS = ("cpu", "cuda", "tpu")
OPTIONS = {
    "xla_backend_optimization_level": 0
}  # the program is not run: only its buffers matter, not its instructions


def ways(devices: int, node: int = 8) -> list[int]:
    """Sizes of the "fsdp" axis to compare: a copy per device, per node, and over all."""
    return sorted({1, min(node, devices) if devices % min(node, devices) == 0 else 1, devices})


def batch_of(fields: Mapping, devices: int) -> int:
    """The config's global batch, raised to the next multiple of the devices."""
    return math.ceil(fields["train"]["batch"] / devices) * devices


def per_device(
    fields: Mapping,
    net: build.Network,
    space: LabelSpace,
    devices: int,
    fsdp: int,
    alone: Mapping | None = None,
) -> dict:
    """Bytes on each device of a mesh (devices / fsdp, fsdp).

    Parameters, optimizer, gradients, batch, values kept for the backward pass, and their sum.

    Args:
      alone: `footprint.memory` at this batch per device, if the caller has it already.
    """
    if devices % fsdp:
        raise UsageError(
            "fsdp does not divide the devices", found=f"{devices} devices, fsdp={fsdp}"
        )
    mesh = AbstractMesh((devices // fsdp, fsdp), sharding.AXES, axis_types=(AxisType.Auto,) * 2)
    target = states.abstract(net.init, build.make_optimizer(fields), mesh, _rules(fields, fsdp))
    share = batch_of(fields, devices) // devices
    local = alone or footprint.memory(_with_batch(fields, share), net, space)
    size = {part: _shard_bytes(tree) for part, tree in target.items()}
    found = {
        "parameters": size["params"] + size["frozen"],
        "optimizer": size["opt"] + size.get("ema", 0),
        "gradients": size["params"],
        "batch": local["batch"],
        "kept": local["kept for backward"],
    }
    return found | {"together": sum(found.values())}


def report(
    fields: Mapping,
    net: build.Network,
    space: LabelSpace,
    devices: Sequence[int],
    *,
    compiled: bool = True,
) -> str:
    """The table of `per_device` for every number of devices, and the result of lowering one way.

    Also of compiling it, if requested.
    """
    rows = [
        (
            "devices",
            "mesh (data x fsdp)",
            "batch",
            "parameters",
            "optimizer",
            "gradients",
            "kept for backward",
            "together, each",
        )
    ]
    notes, memories = [], {}
    for count in devices:
        share = batch_of(fields, count) // count
        memories[share] = memories.get(share) or footprint.memory(
            _with_batch(fields, share), net, space
        )
        for fsdp in ways(count):
            found = per_device(fields, net, space, count, fsdp, memories[share])
            sizes = [
                footprint.size(found[k])
                for k in ("parameters", "optimizer", "gradients", "kept", "together")
            ]
            rows.append(
                (str(count), f"{count // fsdp} x {fsdp}", str(batch_of(fields, count)), *sizes)
            )
        notes.append(
            _sentence(
                count,
                ask(
                    fields,
                    space,
                    count,
                    ways(count)[min(1, len(ways(count)) - 1)],
                    compiled=compiled,
                ),
            )
        )
    return "\n".join([footprint.table(rows), *notes])


def ask(
    fields: Mapping,
    space: LabelSpace,
    devices: int,
    fsdp: int,
    platforms: Sequence[str] = PLATFORMS,
    *,
    compiled: bool = True,
) -> dict:
    """`answer` from a process with that many simulated devices.

    Raises `TrainError` with the end of its stderr if it fails.
    """
    request = {"fields": fields, "space": space.to_json(), "devices": devices, "fsdp": fsdp}
    request |= {"platforms": list(platforms), "compiled": compiled}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-m", "medjax.runs.dry_devices"]
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

    fields, devices = plain(request["fields"]), request["devices"]
    space = LabelSpace.from_json(request["space"])
    fields = _with_batch(fields, batch_of(fields, devices))
    mesh = sharding.make_mesh(request["fsdp"], jax.devices()[:devices])
    net = build.make_network(fields, space, tuple(fields["data"]["spacing_mm"]) or (1.0, 1.0, 1.0))
    optimizer = build.make_optimizer(fields)
    target = states.abstract(net.init, optimizer, mesh, _rules(fields, request["fsdp"]))
    update, _ = updates.make(
        build.make_task(fields, space, net, mesh), optimizer, fields["seed"], mesh, target
    )
    batch = footprint.abstract_batch(fields, net) | {
        "request": jax.ShapeDtypeStruct((devices,), "int32")
    }
    batch = {
        k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding.split(mesh))
        for k, v in batch.items()
    }
    asked = batch.pop("request")
    began = time.monotonic()
    traced = update.trace(target, batch, asked)
    found = {
        "devices": devices,
        "fsdp": request["fsdp"],
        "batch": fields["train"]["batch"],
        "trace_s": time.monotonic() - began,
    }
    found |= {"lines": {}, "lower_s": {}}
    for platform in request["platforms"]:
        began = time.monotonic()
        found["lines"][platform] = (
            traced.lower(lowering_platforms=(platform,)).as_text().count("\n")
        )
        found["lower_s"][platform] = time.monotonic() - began
    if not request["compiled"]:
        return found
    began = time.monotonic()
    memory = traced.lower().compile(OPTIONS).memory_analysis()
    return found | {
        "compile_s": time.monotonic() - began,
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }


def _sentence(count: int, found: Mapping) -> str:
    lowered = ", ".join(
        f"{p} ({n:,} lines, {found['lower_s'][p]:.1f} s)" for p, n in found["lines"].items()
    )
    text = (
        f"{count} devices as {count // found['fsdp']} x {found['fsdp']}: traced in "
        f"{found['trace_s']:.1f} s, lowered for {lowered}"
    )
    if "compile_s" not in found:
        return text
    held = footprint.size(found["arguments"])
    return (
        f"{text}; compiled for {count} simulated CPU devices in {found['compile_s']:.0f} s; "
        f"each holds {held} of state and batch"
    )


def _rules(fields: Mapping, fsdp: int) -> Sequence:
    """The config's sharding rules; if they replicate everything, all leaves over "fsdp"."""
    given = fields["sharding"]["rules"]
    return (
        given if fsdp == 1 or any(kind != "replicate" for _, kind in given) else ((".*", "fsdp"),)
    )


def _shard_bytes(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )


def _with_batch(fields: Mapping, batch: int) -> dict:
    return {**fields, "train": {**fields["train"], "batch": batch}}


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
