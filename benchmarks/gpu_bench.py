"""Networks at paper size on one GPU: step time, compile time, peak memory and MFU of medjax' real
training step and of PyTorch's, within a given time. Writes results.jsonl and table.md.

    python -m benchmarks.gpu_bench --out build/gpu --seconds 480
    python -m benchmarks.gpu_bench --tiny --out build/gpu_tiny     # small variants on a CPU: a test

On a machine without the packages that read configs (ml_collections), the jobs are described here
and run there; 16 cores, one H200, eight minutes of a command that may take ten:

    python -m benchmarks.gpu_bench plan --plan build/plan/plan.json
    python3 -m benchmarks.gpu_bench run --plan build/plan/plan.json --out $OUT --seconds 480 --pack

(it needs jax, flax, optax, scipy, nibabel and jaxtyping, and torch for the peers). What comes back
in $OUT, put beside plan.json, lets the next call go on: finished jobs are skipped, compiled
programs and autotuning results are found again. 8 to 10 of the 16 jobs fit into a first call.

Nothing is lost on the way:
  * one process per job, in the order of importance; a job that fails or takes too long costs no
    more than its cap, which counts from the moment it holds the card;
  * a job imports, traces and lowers while another has the card; the card is held by one job alone,
    so that neither autotuning nor timing sees another, and goes to the next that is ready;
  * every stage is written to results.jsonl, synced, when it is reached (`benchmarks/gpu_job.py`);
  * parameters are filled on the host: no random program is compiled or run on the card;
  * compiled programs are kept in --cache; with --pack also as cache.tar.0 .. 2 in --out.

Work is counted: 6 x the multiply-adds of the forward pass, for both sides alike. MFU = work / (time
of a step, sent off one after another, x peak of the card).
"""

import argparse
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.gpu_job import Report
from benchmarks.networks import PEAK_TFLOPS
from benchmarks.trainings import lines

RESULTS, TABLE, PLAN = "results.jsonl", "table.md", "plan.json"
PART, PARTS = 15 << 20, 3  # bytes of a packed file, and their number
LEAST_S = 45.0  # no job begins with less time left
LAST_S = 5.0  # before the end, in which running jobs are stopped


@dataclasses.dataclass(frozen=True)
class Job:
    """A network by one side, in a variant; `cap_s` on the card."""

    network: str
    side: str
    variant: str
    cap_s: float

    @property
    def name(self) -> tuple[str, str, str]:
        """As results.jsonl has it."""
        return (self.network, self.side, self.variant)


# network -> recipe, the peer (of network_steps.NETWORKS, or m4oe), what differs in the recipe. The
# peers have neither dropout nor augmentation; that of swin is SGD on two patches.
NETWORKS: dict[str, tuple[str, str, dict]] = {
    "unet": ("multitalent:unet", "unet", {}),
    "tsfm_h": ("tsfm:h", "tsfm_h", {"model.vit_dropout": 0.0}),
    "resenc": ("multitalent:resenc", "resenc", {}),
    "swin": ("multitalent:swin", "swin", {"optim.name": "sgd", "train.batch": 2}),
    "tsfm_l": ("tsfm:l", "tsfm_l", {"model.vit_dropout": 0.0}),
    "m4oe": ("m4oe:finetune", "m4oe", {}),
}
WIDE = (32, 64, 120, 240, 320, 320)  # the U-Net's widths as multiples of 8
VARIANTS: dict[str, dict] = {  # what differs in the recipe
    "xla": {"train.conv_layout": "xla"},
    "round": {"model.features": WIDE},
    "augment": {"augment.on": True},
}
PLAIN = {"augment.on": False}
JOBS = (
    Job("unet", "medjax", "", 100),
    Job("unet", "torch", "", 90),
    Job("tsfm_h", "medjax", "", 200),
    Job("tsfm_h", "torch", "", 120),
    Job("unet", "medjax", "xla", 100),
    Job("unet", "torch", "channels_last", 60),
    Job("resenc", "medjax", "", 100),
    Job("resenc", "torch", "", 80),
    Job("swin", "medjax", "", 100),
    Job("swin", "torch", "", 80),
    Job("tsfm_l", "medjax", "", 120),
    Job("tsfm_l", "torch", "", 90),
    Job("unet", "medjax", "round", 100),
    Job("unet", "medjax", "augment", 100),
    Job("m4oe", "medjax", "", 80),
    Job("m4oe", "torch", "", 60),
)
_TSFM = {
    "model.channels": (4, 8),
    "model.strides": ((2, 2, 2),),
    "model.blocks": 1,
    "model.vit_width": 16,
    "model.vit_layers": 2,
    "model.vit_heads": 2,
    "train.patch": (8, 16, 16),
}
_FEW = {"model.features": (4, 8), "model.strides": ((1, 1, 1), (2, 2, 2))}
_FEW |= {"model.kernels": ((3, 3, 3),) * 2, "train.patch": (8, 16, 16)}
TINY: dict[str, dict] = {
    "unet": _FEW,
    "tsfm_h": _TSFM,
    "tsfm_l": _TSFM,
    "resenc": {**_FEW, "model.blocks": (1, 1)},
    "swin": {
        "model.feature_size": 12,
        "model.depths": (1, 1, 1, 1),
        "model.window": 2,
        "train.patch": (32, 32, 64),
    },
    "m4oe": {
        "model.width": 24,
        "model.heads": (1, 2),
        "model.depths": (2, 2),
        "model.window": 2,
        "model.share_heads": "corpus",
        "train.patch": (32, 32),
    },
}
TINY_PEERS = {"unet": "resenc_small", "resenc": "resenc_small", "swin": "swin_small"}
TINY_PEERS |= {"tsfm_l": "tsfm_tiny", "tsfm_h": "tsfm_tiny", "m4oe": "m4oe"}


# -- the plan --------------------------------------------------------------------------------------


def plan(tiny: bool = False, jobs: Sequence[Job] = JOBS) -> dict[str, dict]:
    """Network, or network+variant -> what `described` says of it."""
    found = {}
    for job in jobs:
        if job.side == "medjax":
            name = f"{job.network}+{job.variant}" if job.variant else job.network
            found[name] = described(job.network, job.variant, tiny)
        elif job.network not in found:
            found[job.network] = described(job.network, "", tiny)
    return found


def described(network: str, variant: str, tiny: bool) -> dict:
    """One entry of `plan`: the resolved config and the label space, JSON-ready."""
    import importlib

    import jax
    import jax.numpy as jnp

    from medjax.models import context
    from medjax.models.macs import macs
    from medjax.registry import plain
    from medjax.runs import build
    from medjax.runs import open as corpora
    from medjax.runs.settings.schema import strict

    recipe, peer, changes = NETWORKS[network]
    module, _, chosen = recipe.partition(":")
    fields = plain(importlib.import_module(f"configs.{module}").get_config(chosen))
    small = {**TINY[network], "train.batch": 2, "model.dtype": "float32"} if tiny else {}
    own = {} if tiny and variant == "round" else VARIANTS.get(variant, {})
    for name, value in {**PLAIN, **changes, **small, **own}.items():
        section, _, field = name.partition(".")
        fields[section][field] = value
    config = strict(fields)
    space = corpora.open_data(config.data, Path("none"), files=False).space
    spacing = tuple(config.data.spacing_mm) or (1.0, 1.0, 1.0)
    net = build.make_network(config, space, spacing)
    batch, params = config.train.batch, net.abstract()
    image = jax.ShapeDtypeStruct((batch, *net.patch, net.channels), jnp.float32)
    reads = context.zeros(net.reads, batch, net.patch)
    work = macs(lambda p, x: net.apply(p, x, reads, False, None)["logits"], params, image)
    return {
        "config": config.to_json(),
        "space": space.to_json(),
        "peer": TINY_PEERS[network] if tiny else peer,
        "alike": not tiny,  # both sides are the same network
        "forward_macs": work,
        "parameters": build.count(params),
    }


# -- the run ---------------------------------------------------------------------------------------


def left_to_do(jobs: Sequence[Job], done: Sequence[Mapping]) -> list[Job]:
    """The jobs that a results.jsonl does not hold to their end."""
    timed = {tuple(line["job"]) for line in done if line["stage"] == "timed"}
    return [job for job in jobs if job.name not in timed]


def run(
    jobs: Sequence[Job],
    words: Callable[[Job], Sequence[str]],
    out: Path,
    seconds: float,
    *,
    ahead: int = 2,
    scale: float = 1.0,
    logs: Path | None = None,
    environment: Mapping[str, str] | None = None,
    after: Callable[[], None] = lambda: None,
    least_s: float = LEAST_S,
    pause_s: float = 0.2,
) -> None:
    """Runs the jobs in order, for `seconds` at most.

    Args:
      words: job -> the command of its process, which appends its stages to <out>/results.jsonl.
      ahead: jobs that prepare themselves while another has the card. scale: factor of all caps.
      logs: folder of their output; default `out`. environment: added to this process'.
      after: called when a job has ended.
    """
    began, clock, queue = time.monotonic(), time.time(), list(jobs)
    logs, running = logs or out, []
    results = out / RESULTS
    try:
        while queue or running:
            left = seconds - (time.monotonic() - began)
            while queue and len(running) <= ahead and left > least_s:
                running.append(_start(queue.pop(0), words, logs, environment or {}))
            stages = lines(results)
            for one in list(running):
                process, job, log = one
                own = [s for s in stages if tuple(s["job"]) == job.name and s["clock"] >= clock - 1]
                held = next((s["clock"] for s in reversed(own) if s["stage"] == "card"), None)
                late = held is not None and time.time() - held > job.cap_s * scale
                ended = process.poll() is not None
                if not (ended or late or left <= LAST_S):
                    continue
                if not ended:
                    _stop(process)
                    last = own[-1]["stage"] if own else "nothing"
                    why = "its time" if late else "the time of all"
                    Report(results, job.name)("stopped", why=f"{why} was over", after=last)
                elif process.returncode and not any(s["stage"] == "failed" for s in own):
                    tail = log.read_text().strip().splitlines()[-1:]
                    why = f"exit {process.returncode}: {' '.join(tail)}"[:400]
                    Report(results, job.name)("failed", why=why)
                running.remove(one)
                after()
                shown = [s for s in lines(results) if tuple(s["job"]) == job.name][-1:]
                print(f"{time.monotonic() - began:6.1f} s", *job.name, *shown, flush=True)
            if not running and left <= least_s:
                break
            time.sleep(pause_s)
    finally:
        for process, *_ in running:
            _stop(process)


def _start(job: Job, words: Callable, logs: Path, environment: Mapping[str, str]) -> tuple:
    log = logs / f"{'_'.join(filter(None, job.name))}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(word) for word in words(job)],
            cwd=harness.ROOT,
            env=os.environ | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process, job, log


def _stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # the group that `_start` made
        process.wait()


# -- what travels to the next machine --------------------------------------------------------------


def pack(cache: Path, out: Path) -> None:
    """The cache as at most `PARTS` files in `out`; jax' and the newest first, what fits."""
    files = sorted(
        (p for p in cache.rglob("*") if p.is_file() and p.suffix != ".log"),
        key=lambda p: (p.relative_to(cache).parts[0] != "jax", -p.stat().st_mtime),
    )
    buffer, room = io.BytesIO(), PART * PARTS - (2 << 20)
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for path in files:
            if buffer.tell() + path.stat().st_size <= room:  # as if it could not be compressed
                archive.add(path, path.relative_to(cache))
    data = buffer.getvalue()
    for number in range(PARTS):
        if part := data[number * PART : (number + 1) * PART]:
            (out / f"cache.tar.{number}").write_bytes(part)


def unpack(folder: Path, cache: Path) -> bool:
    """What `pack` has left in a folder, into the cache; whether there was something."""
    parts = sorted(folder.glob("cache.tar.*"))
    if not parts:
        return False
    data = io.BytesIO(b"".join(path.read_bytes() for path in parts))
    with tarfile.open(fileobj=data) as archive:
        archive.extractall(cache, filter="data")
    return True


# -- the table -------------------------------------------------------------------------------------


def table(found: Sequence[Mapping], described: Mapping[str, Mapping]) -> str:
    """Markdown, a row per job, in the order of `JOBS`."""
    order = {job.name: number for number, job in enumerate(JOBS)}
    by: dict[tuple, dict[str, Mapping]] = {}
    for line in sorted(found, key=lambda line: order.get(tuple(line["job"]), len(order))):
        by.setdefault(tuple(line["job"]), {})[line["stage"]] = line
    head = (
        *("network", "side", "step ms", "one after another ms", "compile s", "programs cached"),
        *("before it s", "peak GiB", "planned GiB", "TFLOP/s", "MFU", "note"),
    )
    rows = [_row(job, stages, described) for job, stages in by.items()]
    devices = sorted(
        {(s["timed"]["device"], s["timed"]["version"]) for s in by.values() if "timed" in s}
    )
    said = "; ".join(f"{device}, {version}" for device, version in devices) or "nothing was timed"
    return f"{harness.table(head, rows, range(2, 11))}\n\n{said}\n"


def _row(job: tuple, stages: Mapping[str, Mapping], described: Mapping[str, Mapping]) -> tuple:
    network, side, variant = job
    timed, compiled = stages.get("timed", {}), stages.get("compiled", {})
    entry = described.get(f"{network}+{variant}", described.get(network, {}))
    rate = mfu = ""
    if timed and entry and (side == "medjax" or entry["alike"]):
        done = 6 * entry["forward_macs"] / timed["pipelined_s"] / 1e12
        peak = next((v for k, v in PEAK_TFLOPS.items() if k in timed["device"]), None)
        rate, mfu = f"{done:.3g}", f"{done / peak:.3f}" if peak else ""
    before = sum(stages[s]["s"] for s in ("traced", "lowered", "built") if s in stages)
    why = ("skipped", "failed", "stopped")
    note = next((f"{s}: {stages[s]['why']}" for s in why if s in stages and not timed), "")

    def ms(key: str) -> str:
        return f"{1e3 * timed[key]:.1f}" if timed else ""

    return (
        *(network, f"{side} {variant}".strip(), ms("step_s"), ms("pipelined_s")),
        *(compiled.get("s", ""), compiled.get("cached", "")),
        f"{before:.0f}" if before else "",
        *(timed.get("peak_gib") or "", compiled.get("planned_gib", ""), rate, mfu),
        note[:160].replace("|", "/").replace("\n", " "),
    )


# -- the command -----------------------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    """The flags."""
    parser = harness.parser(
        __doc__,
        out=Path("build/gpu"),
        plan=harness.flag(type=Path, help=f"description of the jobs; default <out>/{PLAN}"),
        cache=harness.flag(type=Path, help="of compiled programs; default build/gpu_cache"),
        seconds=harness.flag(540.0, help="for all jobs"),
        each=harness.flag(4.0, help="seconds of timing, per way of timing"),
        scale=harness.flag(1.0, help="factor of the jobs' caps"),
        ahead=harness.flag(2, help="jobs that prepare themselves while another has the card"),
        only=harness.flag((), nargs="+", help=f"networks: {', '.join(NETWORKS)}"),
        sides=harness.flag(("medjax", "torch"), nargs="+"),
        tiny=harness.flag(False, help="small variants on the CPU"),
        pack=harness.flag(False, help="keep the cache as files in --out as well"),
        again=harness.flag(False, help="finished jobs, too"),
    )
    known = ("run", "plan", "table")
    parser.add_argument("what", nargs="?", choices=known, default="run")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Plans, runs, or prints the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no job outlives this process
    given = arguments().parse_args(words)
    out, file = given.out.resolve(), (given.plan or given.out / PLAN).resolve()
    if given.what == "table":
        described = json.loads(file.read_text()) if file.is_file() else {}
        print(table(lines(out / RESULTS), described))
        return
    wanted = [j for j in JOBS if (not given.only or j.network in given.only)]
    wanted = [job for job in wanted if job.side in given.sides]
    if given.what == "plan" or not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(plan(given.tiny, wanted)))
    if given.what == "run":
        _run(given, wanted, out, file)


def _run(given: argparse.Namespace, wanted: Sequence[Job], out: Path, file: Path) -> None:
    cache = (given.cache or harness.ROOT / "build" / "gpu_cache").resolve()
    for folder in (out, cache):
        folder.mkdir(parents=True, exist_ok=True)
    found = unpack(file.parent, cache)
    results, before = out / RESULTS, file.parent / RESULTS
    if before.is_file() and not results.is_file():
        results.write_bytes(before.read_bytes())
    jobs = list(wanted) if given.again else left_to_do(wanted, lines(results))
    print(f"{len(jobs)} of {len(wanted)} jobs{', with a cache' if found else ''}", flush=True)
    described, lock = json.loads(file.read_text()), cache / "card.lock"

    def command(job: Job) -> Sequence[str]:
        words = ("--job", *job.name, "--plan", file, "--out", out, "--cache", cache)
        return harness.script("benchmarks.gpu_job", *words, "--lock", lock, "--each", given.each)

    def keep() -> None:
        (out / TABLE).write_text(table(lines(results), described))
        if given.pack:
            pack(cache, out)

    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": ".95",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "PYTHONPATH": os.pathsep.join([str(harness.ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""} if given.tiny else {}
    if given.tiny:
        given.each, given.ahead = min(given.each, 0.3), min(given.ahead, 1)
    more: dict[str, Any] = {"environment": environment, "logs": cache, "after": keep}
    run(jobs, command, out, given.seconds, ahead=given.ahead, scale=given.scale, **more)
    keep()
    print((out / TABLE).read_text())


if __name__ == "__main__":
    main()
