"""Cost of the hashes of a checkpoint, beside a restore and a save without them. Prints JSON.

    python -m benchmarks.hashing_checkpoint --megabytes 400 --repeats 7

State: parameters in float32 and two moments of the same size, as AdamW keeps them, of `megabytes`
in all. The variants take turns, so that whatever else the machine does hits all of them; medians of
the repeats. The files are in the page cache, which is hard on the hash: from a disk the restore is
slower, and the hash, which reads first, pays for what the restore then finds in memory.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from medjax.train import checkpoint, hashes


def state_of(megabytes: int) -> dict:
    """Parameters of random numbers in leaves of 8 MB, and moments."""
    rng, leaves = np.random.default_rng(0), max(1, megabytes // 3 // 8)
    part = {
        f"layer_{i}": {"kernel": jax.numpy.asarray(rng.standard_normal((1024, 2048), np.float32))}
        for i in range(leaves)
    }
    return {
        "params": part,
        "opt": {
            "mu": jax.tree.map(lambda v: v * 0.5, part),
            "nu": jax.tree.map(lambda v: v * v, part),
        },
    }


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call, until all arrays are there."""
    began = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - began


def measure(megabytes: int, repeats: int) -> dict:
    """Medians of seconds and their ratios."""
    state = state_of(megabytes)
    where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=where), state)
    none = mock.patch.multiple(hashes, check=lambda *a, **k: None, write=lambda *a, **k: None)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as root:
        folders = {"hashed": Path(root, "hashed"), "plain": Path(root, "plain")}

        def save(name: str, step: int) -> None:
            with checkpoint.Checkpoints(folders[name], keep=1) as target:
                target.save(step, state, {})

        def restore() -> object:
            with checkpoint.Checkpoints(folders["hashed"]) as source:
                return source.restore(target)[0]

        def read() -> object:
            return checkpoint.load_params(folders["hashed"], target["params"])

        for step in range(1, repeats + 2):  # the first round warms up
            found = {"save, hashed": seconds(lambda step=step: save("hashed", step))}
            with none:
                found["save, plain"] = seconds(lambda step=step: save("plain", step))
            for name, work in (("restore", restore), ("parameters", read)):
                found[f"{name}, hashed"] = seconds(work)
                with none:
                    found[f"{name}, plain"] = seconds(work)
            folder = folders["hashed"] / str(step)
            facts = checkpoint.read_facts(folders["hashed"], step)
            found["hashes alone"] = seconds(
                lambda folder=folder, facts=facts: hashes.check(folder, facts)
            )
            found["hashes of the parameters alone"] = seconds(
                lambda folder=folder, facts=facts: hashes.check(folder, facts, "params")
            )
            for name, value in found.items() if step > 1 else ():
                times.setdefault(name, []).append(value)
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        name: medians[f"{name}, hashed"] / medians[f"{name}, plain"]
        for name in ("save", "restore", "parameters")
    }
    ratios["hashes alone / restore"] = medians["hashes alone"] / medians["restore, plain"]
    ratios["hashes of the parameters alone / parameters"] = (
        medians["hashes of the parameters alone"] / medians["parameters, plain"]
    )
    return {
        "megabytes on disk": size / 1e6,
        "repeats": repeats,
        "seconds": medians,
        "ratios": ratios,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    print(json.dumps(measure(given.megabytes, given.repeats), indent=1))


if __name__ == "__main__":
    main()
