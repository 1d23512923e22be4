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

import tempfile
from pathlib import Path

from benchmarks import harness
from benchmarks.peers import nnunet
from benchmarks.prepare import run_medjax, run_nnunet, write_scans
from medjax.prepare import store
from medjax.sample.stream import Pool, Recipe, stream

KINDS = {"cpu": "per_core", "wall": "wall"}


def main() -> None:
    """Runs the comparison and prints one JSON object."""
    args = harness.parser(
        __doc__,
        shape=(200, 320, 320),
        cases=4,
        patch=(96, 96, 96),
        batch=2,
        batches=30,
        rounds=5,
        slices=harness.flag(
            type=int, nargs=2, metavar=("Y", "X"), help="also our 2D slices of this size"
        ),
    ).parse_args()
    patch, one = args.patch, (1.0, 1.0, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scans(root / "Dataset001_Bench", args.shape, one, args.cases)
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
        theirs = nnunet.batches(root / "theirs", patch, args.batch)
        draws = {"medjax": lambda: next(ours), "nnunetv2": lambda: next(theirs)}
        if args.slices:
            flat = stream(
                [pool],
                Recipe(tuple(args.slices), args.batch, final=tuple(args.slices), dims=2),
                threads=0,
                cache_bytes=0,
            )
            draws["medjax 2D"] = lambda: next(flat)

        def several(draw, batches):
            return lambda: [draw() for _ in range(batches)][-1]

        harness.in_turns({n: several(draw, 4) for n, draw in draws.items()}, 1, warm=0)
        found = harness.in_turns(
            {n: several(draw, args.batches) for n, draw in draws.items()}, args.rounds, warm=0
        )
        size = {
            name: sum(p.stat().st_size for p in (root / name).rglob("*") if p.is_file())
            / args.cases
            / 2**20
            for name in ("ours", "theirs")
        }
    drawn = args.batches * args.batch  # patches of a round
    rates = {
        kind: {n: round(drawn / v, 1) for n, v in found.median(kind).items()} for kind in KINDS
    }
    report = {n: {KINDS[kind]: rates[kind][n] for kind in KINDS} for n in draws}
    report |= {
        "ratio_per_core": found.ratio("nnunetv2", "medjax", "cpu"),
        "mib_per_case": size,
    }
    setting = {"patch": patch, "batch": args.batch, "shape": args.shape}
    harness.show(setting | harness.machine() | report, indent=None)


if __name__ == "__main__":
    main()
