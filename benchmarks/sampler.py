r"""Milliseconds per batch of the training stream and of the augmentation on this machine, beside
nnU-Net's where it is installed.

    python -m benchmarks.sampler [--final 40 56 40] [--batch 2] [--case 48 64 48] [--cases 8] \
      [--steps 40]

Writes random cases to a temporary store, reads batches of enlarged patches from it with and without
the memory for small cases, augments them, and prints one JSON object. nnU-Net's side is its own
transform chain (the `parity` extra) on the same patches, one after another. "versions" reads the
same cases by versions 2 and 3 of the stream in turns; `--only-versions` does nothing else.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import harness
from benchmarks.peers import nnunet
from medjax.augment import movement
from medjax.augment.nnunet import Augmentation, augment
from medjax.prepare import store
from medjax.sample.stream import Pool, Recipe, enlarged_patch, stream


def milliseconds(step: Callable[[int], object], steps: int) -> dict[str, float]:
    """Median and mean wall time of step(0), step(1), ..., in ms."""
    numbers = iter(range(steps))
    seconds = harness.in_turns({"": lambda: step(next(numbers))}, steps, warm=0).seconds["wall"][""]
    times = 1e3 * np.array(seconds)
    return {"median": round(float(np.median(times)), 2), "mean": round(float(np.mean(times)), 2)}


def write_cases(root: Path, shape: tuple[int, ...], cases: int) -> Pool:
    """Cases of smooth noise with three labels."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    for n in range(cases):
        folder = root / "corpus" / f"case_{n}"
        folder.mkdir(parents=True)
        smooth = gaussian_filter(rng.normal(size=shape), 2)
        label = np.digitize(smooth, np.quantile(smooth, (0.8, 0.95))).astype(np.uint8)
        image = (1000 * smooth / smooth.std() + rng.normal(0, 100, shape)).astype(np.int16)[
            ..., None
        ]
        locations = {str(i): np.argwhere(label == i)[::20].astype(np.int32) for i in (1, 2)}
        meta = {
            "shape": shape,
            "spacing_mm": (1, 1, 1),
            "gain": [1e-3],
            "bias": [0.0],
            "voxels": {str(i): 1 for i in range(3)},
        }
        store.write_case(folder, image, label, locations, meta)
    return Pool(0, str(root / "corpus"), tuple(store.list_cases(root, "corpus")), (1, 2), 0)


def time_stream(pool: Pool, recipe: Recipe, steps: int, **how) -> dict[str, float]:
    """Wall time to the next batch when nothing else is going on."""
    batches = stream([pool], recipe, **how)
    for _ in range(4 * len(pool.cases) // recipe.batch):
        next(batches)
    result = milliseconds(lambda _: next(batches), steps)
    batches.close()
    return result


def time_versions(
    pool: Pool, recipe: Recipe, steps: int, threads: int
) -> dict[str, dict[str, float] | float]:
    """Patches per second of wall and of CPU time of versions 2 and 3, read every time, in turns."""
    streams = {
        f"version {version}": stream(
            [pool],
            dataclasses.replace(recipe, version=version),
            cache_bytes=0,
            threads=threads,
            moves=movement.of(Augmentation(), recipe.final),
        )
        for version in (2, 3)
    }
    found = harness.in_turns(
        {name: lambda one=one: next(one) for name, one in streams.items()}, steps, warm=2
    )
    for one in streams.values():
        one.close()
    report: dict = {}
    for clock in ("wall", "cpu"):
        seconds = {name: float(np.sum(values)) for name, values in found.seconds[clock].items()}
        done = recipe.batch * steps
        report[f"patches per {clock} s"] = {n: round(done / s, 2) for n, s in seconds.items()}
        report[f"ratio, {clock}"] = round(seconds["version 2"] / seconds["version 3"], 2)
    return report


def time_augmentation(
    image: np.ndarray, label: np.ndarray, final: tuple[int, ...], settings: Augmentation, steps: int
) -> dict[str, float]:
    """Wall time of one jitted batch, and the seconds of its compilation."""
    import jax

    run = jax.jit(augment, static_argnums=(3, 4))
    image, label = jax.device_put((image, label))
    begin = time.perf_counter()
    jax.block_until_ready(run(jax.random.key(0), image, label, final, settings))
    compile_s = time.perf_counter() - begin
    keys = jax.random.split(jax.random.key(1), steps)
    result = milliseconds(
        lambda k: jax.block_until_ready(run(keys[k], image, label, final, settings)), steps
    )
    return result | {"compile_s": round(compile_s, 2)}


def time_peer(
    image: np.ndarray, label: np.ndarray, final: tuple[int, ...], steps: int
) -> dict[str, float] | None:
    """nnU-Net's training transforms on the same batch; None where it is not installed."""
    try:
        chain = nnunet.augmentation(final, image.shape[-1])
    except ImportError:
        return None
    chain(image, label)
    return milliseconds(lambda _: chain(image, label), steps)


def main():
    """Prints the JSON object."""
    args = harness.parser(
        __doc__,
        final=harness.flag(
            (40, 56, 40), nargs="+", help="the network's patch, (z, y, x) or (y, x)"
        ),
        batch=2,
        case=harness.flag((48, 64, 48), help="voxels of a case"),
        cases=8,
        steps=40,
        threads=harness.flag(0, help="of the versions; 0: none, so that CPU times are their own"),
        only_versions=harness.flag(False, help="only versions 2 and 3 of the stream"),
    ).parse_args()
    final = args.final
    cut = enlarged_patch(final)
    recipe = Recipe(cut, args.batch, final=final, dims=len(final))
    with tempfile.TemporaryDirectory() as folder:
        pool = write_cases(Path(folder), args.case, args.cases)
        versions = time_versions(pool, recipe, args.steps, args.threads)
        if args.only_versions:
            sizes = {"batch": args.batch, "cut": cut, "final": final, "case": args.case}
            harness.show(harness.machine() | sizes | {"versions": versions})
            return
        streams = {
            "held in memory": time_stream(pool, recipe, args.steps),
            "read every time": time_stream(pool, recipe, args.steps, cache_bytes=0),
            "read every time, one thread": time_stream(
                pool, recipe, args.steps, cache_bytes=0, threads=0
            ),
        }
        batches = stream([pool], recipe)
        batch = next(batches)
        batches.close()
    image = batch["image"].astype(np.float32) * 1e-3
    settings = {"nnU-Net's chain": Augmentation(), "centre crop": Augmentation.none()}
    ours = {
        name: time_augmentation(image, batch["label"], final, chosen, args.steps)
        for name, chosen in settings.items()
    }
    report = harness.machine() | {
        "unit": "ms per batch",
        "batch": args.batch,
        "cut": cut,
        "final": final,
        "case": args.case,
        "stream": streams,
        "versions": versions,
        "augmentation": ours,
        "nnunetv2": time_peer(image, batch["label"], final, args.steps),
    }
    harness.show(report)


if __name__ == "__main__":
    main()
