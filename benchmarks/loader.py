r"""Training patches per second and core from the store, beside nnU-Net v2's loader on the same
scans without augmentation.

    python -m benchmarks.loader [--shape 200 320 320] [--cases 4] [--patch 96 96 96] [--batch 2] \
      [--batches 30] [--rounds 5]

Writes synthetic CT scans, prepares them by both engines (each into its own format: zarr3 here,
blosc2 there), then draws batches in turns in one process: patches of the same size, a third of them
forced to a labelled voxel, no transforms. Per core means per second of CPU time of the whole
process, threads of the storage libraries included. Prints one JSON object; nnU-Net's side needs the
`parity` extra.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.prepare import nnunet_plans, run_medjax, run_nnunet, write_scans
from medjax.prepare import store
from medjax.sample.stream import Pool, Recipe, stream


def peers_batches(folder: Path, patch: tuple[int, ...], batch: int):
    """nnU-Net's loader over its prepared cases."""
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    labels = {"background": 0} | {f"organ {i}": i for i in range(1, 9)}
    described = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    manager = PlansManager(nnunet_plans((1.0, 1.0, 1.0), patch)).get_label_manager(described)
    data = nnUNetDatasetBlosc2(str(folder))
    return nnUNetDataLoader(
        data, batch, patch, patch, manager, oversample_foreground_percent=0.33, transforms=None
    )


def rate(draw, batches: int, batch: int) -> tuple[float, float]:
    """Patches per second of CPU time and of wall time."""
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(batches):
        draw()
    return batches * batch / (time.process_time() - cpu), batches * batch / (
        time.perf_counter() - begin
    )


def main() -> None:
    """Runs the comparison and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(200, 320, 320))
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--patch", type=int, nargs=3, default=(96, 96, 96))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--slices",
        type=int,
        nargs=2,
        default=None,
        metavar=("Y", "X"),
        help="also our 2D slices of this size",
    )
    args = parser.parse_args()
    patch, one = tuple(args.patch), (1.0, 1.0, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scans(root / "Dataset001_Bench", tuple(args.shape), one, args.cases)
        run_medjax(root / "Dataset001_Bench", root / "ours", one, 1)
        run_nnunet(root / "Dataset001_Bench", root / "theirs", one, 1)
        pool = Pool(
            0,
            str(root / "ours" / "Bench"),
            tuple(store.list_cases(root / "ours", "Bench")),
            tuple(range(1, 9)),
            0,
        )
        ours = stream([pool], Recipe(patch, args.batch, final=patch), threads=0, cache_bytes=0)
        theirs = peers_batches(root / "theirs", patch, args.batch)
        draws = {"medjax": lambda: next(ours), "nnunetv2": lambda: next(theirs)}
        if args.slices:
            flat = stream(
                [pool],
                Recipe(tuple(args.slices), args.batch, final=tuple(args.slices), dims=2),
                threads=0,
                cache_bytes=0,
            )
            draws["medjax 2D"] = lambda: next(flat)
        for draw in draws.values():
            rate(draw, 4, args.batch)
        marks = {name: [] for name in draws}
        for _ in range(args.rounds):
            for name, draw in draws.items():
                marks[name].append(rate(draw, args.batches, args.batch))
        size = {
            name: sum(p.stat().st_size for p in (root / name).rglob("*") if p.is_file())
            / args.cases
            / 2**20
            for name in ("ours", "theirs")
        }
    report = {
        name: dict(zip(("per_core", "wall"), np.median(m, 0).round(1).tolist(), strict=True))
        for name, m in marks.items()
    }
    pairs = zip(marks["medjax"], marks["nnunetv2"], strict=True)
    report |= {
        "ratio_per_core": round(float(np.median([a[0] / b[0] for a, b in pairs])), 2),
        "mib_per_case": size,
    }
    setting = {
        "patch": patch,
        "batch": args.batch,
        "shape": args.shape,
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    print(json.dumps(setting | report))


if __name__ == "__main__":
    main()
