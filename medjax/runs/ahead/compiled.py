"""The training step of a config compiled for cards that are not there (`--target=h200x8`).

In: a config, a card. Out: what the compiler says: peak memory from its own buffer assignment,
seconds, kernels, FLOPs, bytes and the time that these take at least. Nothing is measured: there is
no card, and so no choice of algorithms by trying them. As a program (`python -m
medjax.runs.ahead.compiled`) it reads a JSON request and answers with JSON, in a process of its own,
because the compiler for a card is chosen when jax starts.
"""

import collections
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from medjax.errors import TrainError
from medjax.labels import LabelSpace
from medjax.runs import footprint
from medjax.runs.ahead import cards, hlo
from medjax.runs.ahead import devices as on_devices
from medjax.runs.settings.schema import Config, resolve

# Tiles of Triton's products are chosen by trying them on a card, and the untried ones may not fit:
# products go to cuBLAS, as most do after the choice.
FLAGS = "--xla_gpu_enable_triton_gemm=false"
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # no driver is there to be checked
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # such a program serves no one
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
MOST = 8  # rows of the tables


def report(config: Config, space: LabelSpace, target: str, spacing_mm: Sequence[float]) -> str:
    """`ask` in words and tables. Raises: as `ask`."""
    found = ask(config, space, target, spacing_mm)
    card, _ = cards.parse(target)
    return text(found, card)


def ask(
    config: Config, space: LabelSpace, target: str, spacing_mm: Sequence[float], hlo_to: str = ""
) -> dict:
    """`answer` of a process with the compiler for the target.

    Args:
      target: see `cards.parse`.
      spacing_mm: of the prepared volumes.
      hlo_to: file for the text of the compiled program; empty: nowhere.

    Raises: `UsageError` if the compiler is not installed or the batch cannot be laid on the cards,
      `TrainError` with the end of its messages if it fails.
    """
    card, count = cards.parse(target)
    cards.check(card)
    on_devices.layout_of(config, count, config.sharding.fsdp)
    request = {
        "fields": config.to_json(),
        "space": space.to_json(),
        "target": target,
        "spacing_mm": list(spacing_mm),
        "hlo_to": hlo_to,
    }
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
    done = subprocess.run(
        [sys.executable, "-m", "medjax.runs.ahead.compiled"],
        input=json.dumps(request),
        env={**os.environ, **ENVIRONMENT, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise TrainError(
            f"the step does not compile for {target}", found=done.stderr.strip().splitlines()[-1:]
        )
    return json.loads(done.stdout.splitlines()[-1])


def answer(request: Mapping) -> dict:
    """Compiles one training step; see the module.

    Returns: `trace_s`, `lower_s`, `compile_s` (wall) and `cpu_s` of compiling (with its child
      processes), bytes on each card (`arguments`, `outputs` that reuse no argument, `temporary`,
      `peak`), and what `summary` says of the kernels.
    """
    from jax.experimental import topologies

    from medjax.registry import plain

    config = resolve(plain(request["fields"]))
    card, count = cards.parse(request["target"])
    topology = topologies.get_topology_desc(
        platform=card.backend, target_config=card.description(), topology=f"1x1x{count}"
    )
    layout = on_devices.layout_of(config, count, config.sharding.fsdp)
    mesh = layout.mesh(topology.devices[:count])
    space = LabelSpace.from_json(request["space"])
    began = time.monotonic()
    traced = on_devices.traced(config, space, layout, mesh, request["spacing_mm"])
    found: dict[str, Any] = {"cards": count, "layout": layout.sentence(), "batch": layout.batch}
    found["trace_s"], began = time.monotonic() - began, time.monotonic()
    lowered = traced.lower(lowering_platforms=(card.backend,))
    found["lower_s"], began, used = time.monotonic() - began, time.monotonic(), _cpu_seconds()
    program = lowered.compile()
    found["compile_s"], found["cpu_s"] = time.monotonic() - began, _cpu_seconds() - used
    memory = program.memory_analysis()
    found |= {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
    }
    found["peak"] = found["arguments"] + found["outputs"] + found["temporary"]
    written = program.as_text()
    if request.get("hlo_to"):
        with open(request["hlo_to"], "w") as file:
            file.write(written)
    return found | summary(hlo.kernels(written), card)


def summary(found: Sequence[hlo.Kernel], card: cards.Card) -> dict:
    """Numbers of the kernels on one card, JSON-ready.

    Returns: `kernels` (launches), `convolutions` by layout, `collectives` by kind, `flops`,
      `bytes`, `floor_s`, `kinds` (kind -> launches, bytes, FLOPs, seconds at least), and `longest`,
      the kernels that take most of the floor.
    """
    kinds: dict[str, list[float]] = {}
    layouts, communication = collections.Counter(), collections.Counter()
    least = []
    for kernel in found:
        seconds = kernel.seconds(card.flops_per_s, card.bytes_per_s)
        least.append(seconds)
        row = kinds.setdefault(kernel.kind, [0, 0, 0, 0])
        values = (1, kernel.bytes, kernel.flops)
        for k, value in enumerate(values):
            row[k] += value * kernel.times
        row[3] += seconds
        if kernel.layout:
            layouts[kernel.layout] += round(kernel.times)
        if kernel.kind in hlo.COLLECTIVES:
            communication[kernel.kind] += round(kernel.times)
    order = sorted(range(len(found)), key=lambda i: -least[i])[:MOST]
    return {
        "kernels": round(sum(k.times for k in found)),
        "convolutions": dict(layouts),
        "collectives": dict(communication),
        "flops": sum(k.flops * k.times for k in found),
        "bytes": sum(k.bytes * k.times for k in found),
        "floor_s": sum(least),
        "kinds": dict(sorted(kinds.items(), key=lambda item: -item[1][3])),
        "longest": [
            [found[i].kind, found[i].times, least[i], found[i].shape, found[i].scope] for i in order
        ],
    }


def text(found: Mapping, card: cards.Card) -> str:
    """The answer for people."""
    layouts = ", ".join(f"{n} {how}" for how, n in found["convolutions"].items()) or "none"
    lines = [
        f"compiled for         {found['cards']} x {card.name}, without a card: nothing below is "
        "measured",
        f"layout               {found['layout']}",
        f"compilation          {found['compile_s']:.1f} s ({found['cpu_s']:.1f} CPU s), after "
        f"{found['trace_s']:.1f} s of tracing and {found['lower_s']:.1f} s of lowering; the choice "
        "of algorithms on a card comes on top",
        f"peak memory          {footprint.size(found['peak'])} of "
        f"{footprint.size(card.memory_bytes)} on each: arguments "
        f"{footprint.size(found['arguments'])}, temporaries {footprint.size(found['temporary'])}",
        f"kernels              {found['kernels']:,}; convolutions: {layouts}",
    ]
    if found["cards"] > 1:
        said = ", ".join(f"{n} {kind}" for kind, n in found["collectives"].items()) or "none"
        lines.append(f"communication        {said}")
    lines += [
        f"work                 {found['flops'] / 1e12:.2f} TFLOP, {found['bytes'] / 1e9:.1f} GB",
        f"floor                {1e3 * found['floor_s']:.1f} ms: every kernel at the larger of "
        f"FLOPs / {card.flops_per_s / 1e12:.0f} TFLOP/s and bytes / "
        f"{card.bytes_per_s / 1e12:.2f} TB/s ({card.rates})",
        "",
    ]
    rows = [("what dominates", "launches", "GB", "TFLOP", "ms at least")]
    for kind, (n, moved, flops, seconds) in list(found["kinds"].items())[:MOST]:
        rows.append(
            (
                kind,
                f"{n:.0f}",
                f"{moved / 1e9:.1f}",
                f"{flops / 1e12:.2f}",
                f"{1e3 * seconds:.2f}",
            )
        )
    longest = [("longest kernels", "times", "ms at least", "result", "from")]
    for kind, times, seconds, shape, scope in found["longest"]:
        longest.append((kind, f"{times:g}", f"{1e3 * seconds:.2f}", shape[:40], _end_of(scope)))
    return "\n".join([*lines, footprint.table(rows), "", footprint.table(longest)])


def _end_of(scope: str) -> str:
    return "/".join(scope.split("/")[-4:])[-70:]


def _cpu_seconds() -> float:
    """Of this process and its children (ptxas)."""
    each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in each)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    print(json.dumps(answer(json.load(sys.stdin))))
