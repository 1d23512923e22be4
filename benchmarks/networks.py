"""Compile time, step time, memory and MFU of the networks: medjax and PyTorch (torch.compile on a
GPU), side by side. Prints JSON.

    # a GPU, the papers' patches, bfloat16:
    python -m benchmarks.networks [unet resenc swin tsfm_l tsfm_h] [--out FILE] [--budget-s 540]
    # a CPU:
    python -m benchmarks.networks unet_small resenc_small swin_small tsfm_t --dtype float32

One step: forward, backward, clipping to norm 12, SGD with Nesterov momentum and coupled weight
decay; sigmoid cross-entropy and soft Dice at every resolution with nnU-Net's weights. Every network
runs in a process of its own, so that one that fails (out of memory, out of time) says so and the
next one goes on. Within it the steps of both sides alternate; where both do not fit together they
run one after the other.

With `--streams 2` two networks are built and compiled at the same time, but a step is timed only
while nothing else runs on the card.

Work is counted, not measured: 2 x multiply-adds of convolutions and products in the forward pass of
the finest and deep logits, times 3 for forward and backward, for both sides alike; recomputation
counts nothing. MFU = work / (step time x peak of the card).
"""

import contextlib
import fcntl
import json
import os
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import harness
from benchmarks.network_steps import NETWORKS, SIDES

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}  # dense bfloat16, as published
TURNS = "MEDJAX_BENCHMARK_TURNS"  # a file to lock: shared to compile, alone to time


@contextlib.contextmanager
def turn(alone):
    """Waits until no other stream times (and, if `alone`, until none compiles)."""
    if not os.environ.get(TURNS):
        yield
        return
    with open(os.environ[TURNS]) as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def measure(name, sides, dtype, runs, peak):
    """One network in this process; returns the JSON-ready result."""
    entry = NETWORKS[name]
    result = {
        "network": name,
        "patch": entry["patch"],
        "batch": entry["batch"],
        "classes": entry["classes"],
        "dtype": dtype,
        "together": len(sides) > 1,
    }
    running = {}
    for side in sides:
        with turn(alone=False):
            started = time.perf_counter()
            running[side] = one = SIDES[side](entry, dtype)
            built, work = time.perf_counter(), time.process_time()
            one.compile()
        result[side] = {
            "parameters": one.parameters,
            "build_s": round(built - started, 2),
            "first_steps_s": round(time.perf_counter() - built, 2),
            "first_steps_cpu_s": round(time.process_time() - work, 2),
        }
    with turn(alone=True):
        found = harness.in_turns({side: one.step for side, one in running.items()}, runs, warm=2)
    macs = running["medjax"].forward_macs if "medjax" in running else None
    for side, one in running.items():
        result[side] |= {
            "step_s": found.median()[side],
            "cpu_s": found.median("cpu")[side],
            "loss": round(one.loss, 4),
            "memory_gib": one.memory(),
        }
    result["forward_macs"] = macs
    result["peak_tflops"] = peak
    return result


def rate(result, macs, peak):
    """Adds TFLOP/s and MFU to the sides of a result."""
    for side in SIDES:
        if macs and result.get(side, {}).get("step_s"):
            done = 6 * macs / result[side]["step_s"] / 1e12
            result[side] |= {
                "tflops": round(done, 3),
                "mfu": round(done / peak, 4) if peak else None,
            }
    if all(result.get(side, {}).get("step_s") for side in SIDES):
        result["medjax over torch"] = round(
            result["medjax"]["step_s"] / result["torch"]["step_s"], 3
        )


def child(name, sides, given, limit):
    """`measure` in a process of its own -> its result, or {"failed": why}."""
    more = ("--dtype", given.dtype, "--runs", given.runs)
    command = harness.script("benchmarks.networks", name, "--child", "--sides", *sides, *more)
    alone = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": ".95" if len(sides) == 1 else ".60",
    }
    environment = {**os.environ, **{k: v for k, v in alone.items() if k not in os.environ}}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=max(limit, 1),
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done within {limit:.0f} s"}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    return {"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:400]}


def one_network(network, given, end):
    """Both sides in one process, or, where that fails, one after the other; never past `end` on the
    monotonic clock.
    """
    left = min(end - time.monotonic(), given.each_s)
    if left < 10:
        return {"network": network, "failed": "no time left"}
    found = {"failed": "apart"} if given.apart else child(network, given.sides, given, left)
    if "failed" not in found or len(given.sides) == 1:
        return found
    parts = {}
    for side in given.sides:
        left = min(end - time.monotonic(), given.each_s)
        parts[side] = (
            child(network, [side], given, left) if left >= 10 else {"failed": "no time left"}
        )
    whole = next((p for p in parts.values() if "failed" not in p), {"network": network})
    macs = next((p["forward_macs"] for p in parts.values() if p.get("forward_macs")), None)
    sides = {side: part.get(side) or {"failed": part["failed"]} for side, part in parts.items()}
    return {
        **whole,
        **sides,
        "together": False,
        "together_failed": found["failed"],
        "forward_macs": macs,
    }


def card():
    """Name of the accelerator, without starting a framework here."""
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        return subprocess.run(
            query, capture_output=True, text=True, check=True
        ).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "cpu"


def main():
    """Measures and prints."""
    parser = harness.parser(
        __doc__,
        sides=harness.flag(tuple(SIDES), nargs="+", choices=list(SIDES)),
        dtype=harness.flag("bfloat16", choices=("bfloat16", "float32")),
        runs=5,
        budget_s=540.0,
        each_s=harness.flag(240.0, help="limit of one network"),
        streams=harness.flag(1, help="networks that are compiled at the same time"),
        apart=harness.flag(False, help="never both sides in one process"),
        peak_tflops=harness.flag(0.0, help="of the card; known for H100, H200, A100 in bfloat16"),
        out="",
        child=harness.flag(False, help=None),
    )
    parser.add_argument(
        "names", nargs="*", help=f"of {', '.join(NETWORKS)}; default: the five large ones"
    )
    given = parser.parse_args()
    names = given.names or ["unet", "resenc", "swin", "tsfm_l", "tsfm_h"]
    if unknown := [n for n in names if n not in NETWORKS]:
        parser.error(f"unknown networks {unknown}; known: {', '.join(NETWORKS)}")
    name = card()
    peak = given.peak_tflops or (
        next((v for k, v in PEAK_TFLOPS.items() if k in name), 0.0)
        if given.dtype == "bfloat16"
        else 0.0
    )
    if given.child:
        print(json.dumps(measure(names[0], given.sides, given.dtype, given.runs, peak)), flush=True)
        return
    end, results = time.monotonic() + given.budget_s, []

    def run(network):
        found = one_network(network, given, end)
        rate(found, found.get("forward_macs"), peak)
        results.append(found)
        print(json.dumps(found), flush=True)
        if given.out:
            whole = {"device": name, "given": vars(given), "results": results}
            Path(given.out).write_text(json.dumps(whole, indent=1))

    with tempfile.NamedTemporaryFile() as turns, ThreadPoolExecutor(given.streams) as streams:
        if given.streams > 1:
            os.environ[TURNS] = turns.name
        list(streams.map(run, names))
    if not given.out:
        print(json.dumps({"device": name, "results": results}))


if __name__ == "__main__":
    main()
