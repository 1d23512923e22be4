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

import argparse
import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

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
    seconds = {side: [] for side in sides}
    cpu = {side: [] for side in sides}
    with turn(alone=True):
        for i in range(runs + 2):
            for side, one in running.items():
                clock, work = time.perf_counter(), time.process_time()
                one.step()
                if i > 1:
                    seconds[side].append(time.perf_counter() - clock)
                    cpu[side].append(time.process_time() - work)
    macs = running["medjax"].forward_macs if "medjax" in running else None
    for side, one in running.items():
        step = sorted(seconds[side])[len(seconds[side]) // 2]
        result[side] |= {
            "step_s": round(step, 4),
            "cpu_s": round(sorted(cpu[side])[len(cpu[side]) // 2], 4),
            "loss": round(one.loss, 4),
        }
        result[side]["memory_gib"] = one.memory()
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
    command = [
        sys.executable,
        "-m",
        "benchmarks.networks",
        name,
        "--child",
        "--sides",
        *sides,
        "--dtype",
        given.dtype,
        "--runs",
        str(given.runs),
    ]
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", help=f"of {', '.join(NETWORKS)}; default: the five large ones"
    )
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--budget-s", type=float, default=540.0)
    parser.add_argument("--each-s", type=float, default=240.0, help="limit of one network")
    parser.add_argument(
        "--streams", type=int, default=1, help="networks that are compiled at the same time"
    )
    parser.add_argument("--apart", action="store_true", help="never both sides in one process")
    parser.add_argument(
        "--peak-tflops",
        type=float,
        default=0.0,
        help="of the card; known for H100, H200, A100 in bfloat16",
    )
    parser.add_argument("--out", default="")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
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
            with open(given.out, "w") as file:
                json.dump(
                    {"device": name, "given": vars(given), "results": results}, file, indent=1
                )

    with tempfile.NamedTemporaryFile() as turns, ThreadPoolExecutor(given.streams) as streams:
        if given.streams > 1:
            os.environ[TURNS] = turns.name
        list(streams.map(run, names))
    if not given.out:
        print(json.dumps({"device": name, "results": results}))


if __name__ == "__main__":
    main()
