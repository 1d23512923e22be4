"""One job of `benchmarks.gpu_bench` in a process of its own: the training step of one network, by
medjax or by PyTorch, compiled and timed on the first device.

Stages are appended to a file of JSON lines, synced when they are reached: {"job": [network, side,
variant], "stage", "s" (seconds since the stage before), "clock" (time.time()), facts}. A job ends
with "timed", "skipped" (a package is missing) or "failed".

Everything that needs no card (import, trace, lowering) is done before the card is asked for: one
job holds it at a time, until it ends.
"""

import argparse
import fcntl
import gzip
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import harness

TEXTS = ("unet", "tsfm_h")  # networks whose compiled program is kept, in its default variant


class Report:
    """Appends stages of one job to a file."""

    def __init__(self, path: Path, job: tuple[str, ...]):
        self.path, self.job, self.at = path, tuple(job), time.perf_counter()

    def __call__(self, stage: str, **facts: Any) -> None:
        now = time.perf_counter()
        line = {"job": self.job, "stage": stage, "s": round(now - self.at, 2)}
        line |= {"clock": round(time.time(), 1), **facts}
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.at = time.perf_counter()


def card(lock: Path) -> Any:
    """Waits for the card; it is held until the returned file is closed or the process ends."""
    file = open(lock, "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def timed(step: Callable[[], Any], wait: Callable[[Any], Any], seconds: float) -> dict:
    """Seconds of a step: each waited for, and sent off one after another as a training does.

    Args:
      step: sends one step. wait: for what it returns. seconds: of each of the two ways.
    """
    for _ in range(2):
        wait(step())
    single, began = [], time.perf_counter()
    while len(single) < 3 or (time.perf_counter() - began < seconds and len(single) < 30):
        at = time.perf_counter()
        wait(step())
        single.append(time.perf_counter() - at)
    count = max(3, min(20, int(seconds / statistics.median(single))))
    at = time.perf_counter()
    for _ in range(count):
        last = step()
    wait(last)
    pipelined = (time.perf_counter() - at) / count
    return {
        "step_s": round(statistics.median(single), 5),
        "fastest_s": round(min(single), 5),
        "steps": len(single) + count,
        "pipelined_s": round(pipelined, 5),
    }


def gib(size: int | None) -> float | None:
    """Bytes as GiB."""
    return None if size is None else round(size / harness.GIB, 3)


# -- medjax ----------------------------------------------------------------------------------------


def ours(entry: dict, given: argparse.Namespace, report: Report) -> None:
    """The update of a training, on a batch of noise."""
    import jax
    import numpy as np

    heard: list[str] = []
    jax.monitoring.register_event_listener(
        lambda event, **_: heard.append(event) if "cache_hit" in event else None
    )
    jax.config.update("jax_compilation_cache_dir", str(given.cache / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "all")
    from medjax.labels import LabelSpace
    from medjax.registry import plain
    from medjax.runs import build
    from medjax.runs.ahead import devices as on_devices
    from medjax.runs.settings.schema import resolve
    from medjax.train import sharding
    from medjax.train import state as states

    config, space = resolve(plain(entry["config"])), LabelSpace.from_json(entry["space"])
    spacing = tuple(config.data.spacing_mm) or (1.0, 1.0, 1.0)
    layout = on_devices.layout_of(config, 1, 1)
    mesh = layout.mesh(jax.devices()[:1])
    traced = on_devices.traced(config, space, layout, mesh, spacing)
    net = build.make_network(config, space, spacing)
    optimizer = build.make_optimizer(config)
    target = states.abstract(net.init, optimizer, mesh, config.sharding.rules)
    report("traced", parameters=build.count(net.abstract()))
    lowered = traced.lower()
    report("lowered", lines=lowered.as_text().count("\n"))
    held = card(given.lock)
    report("card")
    compiled = lowered.compile()
    sizes = compiled.memory_analysis()
    planned = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes
    report("compiled", cached=len(heard), planned_gib=gib(planned))
    state, frozen = filled(target, sharding.replicated(mesh))
    every = sharding.split(mesh)
    batch = jax.device_put(batch_of(config, net, space), every)
    request = jax.device_put(np.zeros(1, np.int32), every)
    box = [state]

    def step() -> Any:
        box[0], scalars = compiled(box[0], frozen, batch, request)
        return scalars["loss"]

    jax.block_until_ready(batch)
    report("placed")
    loss = float(step())
    report("first", loss=loss)
    facts = timed(step, jax.block_until_ready, given.each)
    device = jax.devices()[0]
    seen = (device.memory_stats() or {}).get("peak_bytes_in_use")
    facts |= {"peak_gib": gib(seen), "device": device.device_kind, "version": jax.__version__}
    report("timed", **facts)
    network, _, variant = given.job
    if network in TEXTS and not variant:  # with the algorithms that were chosen
        with gzip.open(given.out / f"{network}.hlo.gz", "wt", 5) as file:
            file.write(compiled.as_text())
    held.close()


def filled(target: dict, where: Any) -> tuple[dict, Any]:
    """(state without its frozen leaves, these): numbers of one random block, scaled by fan-in.

    Made on the host: nothing is compiled or drawn on the card.
    """
    import jax
    import numpy as np

    noise = np.random.default_rng(0).standard_normal(1 << 20, np.float32)

    def weights(path: Any, leaf: Any) -> Any:
        if leaf.ndim < 2:
            value = np.full(leaf.shape, "scale" in jax.tree_util.keystr(path), leaf.dtype)
        else:
            fan = math.prod(leaf.shape[:-1])
            value = np.resize(noise, leaf.size) * np.float32((2 / fan) ** 0.5)
            value = value.astype(leaf.dtype).reshape(leaf.shape)
        return jax.device_put(value, where)

    def zeros(leaf: Any) -> Any:
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), where)

    def made(name: str) -> Any:
        if name in ("params", "frozen", "ema"):
            return jax.tree_util.tree_map_with_path(weights, target[name])
        return jax.tree.map(zeros, target[name])

    return {name: made(name) for name in target if name != "frozen"}, made("frozen")


def batch_of(config: Any, net: Any, space: Any) -> dict:
    """A batch of the sampler's shapes: noise, and labels that every corpus has."""
    import numpy as np

    from medjax.runs import footprint

    rng, found = np.random.default_rng(0), {}
    ids = min(len(corpus.labels) for corpus in space.corpora)
    for name, array in footprint.abstract_batch(config, net).items():
        count = math.prod(array.shape)
        if name in ("image", "label"):
            bounds = (-3000, 3000) if name == "image" else (0, ids)
            value = np.resize(rng.integers(*bounds, 1 << 18), count)
        elif name == "corpus":
            value = np.arange(count) % len(space.corpora)
        else:
            value = np.full(count, {"gain": 1e-3, "spacing_mm": 1.0, "scale": 1.0}.get(name, 0))
        found[name] = value.astype(array.dtype).reshape(array.shape)
    return found


# -- PyTorch ---------------------------------------------------------------------------------------


def theirs(entry: dict, given: argparse.Namespace, report: Report) -> None:
    """The peer's step; its compilation cannot be separated from the card."""
    import torch

    cuda = torch.cuda.is_available()
    held = card(given.lock)
    report("card")
    one = peer(entry, "bfloat16" if cuda else "float32", cuda)
    if given.job[2] == "channels_last":
        one.net.to(memory_format=torch.channels_last_3d)
    report("built", parameters=one.parameters)
    one.compile()  # inductor, and cuDNN's choice of algorithms; resets the peak of memory
    report("compiled")
    wait = (lambda _: torch.cuda.synchronize()) if cuda else (lambda _: None)
    facts = timed(one.send, wait, given.each)
    facts |= {"peak_gib": gib(torch.cuda.max_memory_allocated() if cuda else None)}
    facts |= {"device": torch.cuda.get_device_name() if cuda else "cpu"}
    report("timed", **facts, version=f"torch {torch.__version__}")
    held.close()


def peer(entry: dict, dtype: str, cuda: bool) -> Any:
    """A step of `benchmarks.training_step.Theirs`."""
    from benchmarks import m4oe_step, network_steps

    if entry["peer"] != "m4oe":
        return network_steps.theirs(network_steps.NETWORKS[entry["peer"]], dtype)
    config = entry["config"]
    size = {"batch": config["train"]["batch"], "side": config["train"]["patch"][0]}
    size |= {"width": config["model"]["width"], "window": config["model"]["window"]}
    more = {"dtype": dtype, "compile": cuda}
    return m4oe_step.theirs(argparse.Namespace(**size, **more), "soft")


SIDES = {"medjax": ours, "torch": theirs}


def main() -> None:
    """Runs the job."""
    parser = harness.parser(
        __doc__,
        job=harness.flag(nargs=3, required=True),
        plan=harness.flag(type=Path, required=True, help="of `benchmarks.gpu_bench plan`"),
        out=harness.flag(type=Path, required=True, help="folder of results.jsonl"),
        cache=harness.flag(type=Path, required=True, help="of compiled programs"),
        lock=harness.flag(type=Path, required=True, help="file that stands for the card"),
        each=harness.flag(4.0, help="seconds of timing, per way of timing"),
    )
    given = parser.parse_args()
    network, side, variant = given.job
    plan = json.loads(given.plan.read_text())
    entry = plan[f"{network}+{variant}" if f"{network}+{variant}" in plan else network]
    report = Report(given.out / "results.jsonl", given.job)
    try:
        SIDES[side](entry, given, report)
    except Exception as error:
        if side == "torch" and isinstance(error, ModuleNotFoundError):
            report("skipped", why=f"{error.name} is not installed")
            return
        report("failed", why=f"{type(error).__name__}: {error}"[:600])
        raise


if __name__ == "__main__":
    sys.exit(main())
