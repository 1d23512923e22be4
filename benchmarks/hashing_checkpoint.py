"""Cost of the hashes of a checkpoint, beside a restore and a save without them. Prints JSON.

    python -m benchmarks.hashing_checkpoint --megabytes 400 --repeats 7

State: parameters in float32 and two moments of the same size, as AdamW keeps them, of `megabytes`
in all. The variants take turns, so that whatever else the machine does hits all of them; medians of
the repeats. The files are in the page cache, which is hard on the hash: from a disk the restore is
slower, and the hash, which reads first, pays for what the restore then finds in memory.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from benchmarks import harness
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


def measure(megabytes: int, repeats: int) -> dict:
    """Medians of seconds and their ratios."""
    state = state_of(megabytes)
    where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=where), state)
    none = mock.patch.multiple(hashes, check=lambda *a, **k: None, write=lambda *a, **k: None)
    with tempfile.TemporaryDirectory() as root:
        folders = {"hashed": Path(root, "hashed"), "plain": Path(root, "plain")}
        steps = {"hashed": iter(range(1, 1 << 30)), "plain": iter(range(1, 1 << 30))}

        def save(name: str) -> None:
            with checkpoint.Checkpoints(folders[name], keep=1) as target:
                target.save(next(steps[name]), state, {})

        def restore() -> object:
            with checkpoint.Checkpoints(folders["hashed"]) as source:
                return source.restore(target)[0]

        def read() -> object:
            return checkpoint.load_params(folders["hashed"], target["params"])

        def check(*parts: str) -> None:
            step = checkpoint.latest_step(folders["hashed"])
            facts = checkpoint.read_facts(folders["hashed"], step)
            hashes.check(folders["hashed"] / str(step), facts, *parts)

        def unhashed(work: Callable[[], object]) -> Callable[[], object]:
            def run() -> object:
                with none:
                    return jax.block_until_ready(work())

            return run

        def waited(work: Callable[[], object]) -> Callable[[], object]:
            return lambda: jax.block_until_ready(work())

        calls = {
            "save, hashed": lambda: save("hashed"),
            "save, plain": unhashed(lambda: save("plain")),
        }
        for name, work in (("restore", restore), ("parameters", read)):
            calls |= {f"{name}, hashed": waited(work), f"{name}, plain": unhashed(work)}
        calls |= {
            "hashes alone": check,
            "hashes of the parameters alone": lambda: check("params"),
        }
        save("hashed")  # in every second round a restore comes before the save
        medians = harness.in_turns(calls, repeats).median()
        folder = folders["hashed"]
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
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
    given = harness.parser(__doc__, megabytes=400, repeats=7).parse_args()
    harness.show(measure(given.megabytes, given.repeats))


if __name__ == "__main__":
    main()
