r"""Seconds per scan of one network for all corpora, of one network per corpus one after the other,
and of an ensemble of folds. Prints JSON.

    python -m benchmarks.ensemble        # a synthetic scan, small networks: seconds
    python -m benchmarks.ensemble --data FOLDER --variant unet --patch 96 192 192 \
      --spacing 1.5 1 1 --mirror --rounds 5

All three give the masks of every class of MultiTalent's corpora (13 corpora, 47 classes) for the
same scan, on its grid, through `medjax.infer`: one network once, one network per corpus with that
corpus' classes, and the joint network of `--folds` folds as an ensemble. Weights are random, which
changes no work: every window is computed whatever it shows; only painting depends on what is found.
A first round compiles; the others are interleaved. Times are wall and process CPU seconds; quote
the ratios, machines differ.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from configs import multitalent
from medjax.infer.model import Model
from medjax.infer.segmenter import Segmenter
from medjax.labels import LabelSpace, merge
from medjax.prepare.plan import Intensity, Plan
from medjax.prompts.request import Request
from medjax.registry import plain
from medjax.runs import build
from medjax.runs import open as corpora
from medjax.scans import nifti
from tests.support.run import random_params

CT = Intensity("ct", (-927.0, 275.0), 63.4, 175.5)


def predictor(
    fields: dict, space: LabelSpace, spacing_mm: tuple, members: int, settings: dict
) -> Segmenter:
    """An ensemble of `members` networks of the config with random parameters; one is a network
    alone.
    """
    net = build.make_network(fields, space, spacing_mm)
    first, *others = (random_params(net.abstract(), seed) for seed in range(members))
    plan = Plan(
        {corpus.store: spacing_mm for corpus in space.corpora},
        {c: CT for corpus in space.corpora for c in corpus.channels},
    )
    return Segmenter(Model(net.apply, first, plan, space, net.patch), ensemble=others, **settings)


def contenders(
    fields: dict, space: LabelSpace, spacing_mm: tuple, folds: int, settings: dict
) -> dict[str, Callable[[nifti.Volume], int]]:
    """Name -> scan -> number of masks; each call does all of the work, preparation included."""
    joint, ensemble = (
        predictor(fields, space, spacing_mm, members, settings) for members in (1, folds)
    )
    alone = {c.name: predictor(fields, merge((c,)), spacing_mm, 1, settings) for c in space.corpora}
    first = space.corpora[0].name

    def together(made: Segmenter) -> Callable[[nifti.Volume], int]:
        return lambda volume: len(made.segment(volume, Request(first, space.classes)).masks.names)

    def one_by_one(volume: nifti.Volume) -> int:
        return sum(
            len(made.segment(volume, Request(name)).masks.names) for name, made in alone.items()
        )

    return {
        "joint": together(joint),
        "per corpus": one_by_one,
        f"{folds} folds": together(ensemble),
    }


def compare(calls: dict[str, Callable], volume: nifti.Volume, rounds: int) -> dict:
    """Seconds of every contender: its first call, then in turn; the ratio to the joint network is
    the median over rounds.
    """
    found = {name: {"first_s": 0.0, "masks": 0, "wall_s": [], "cpu_s": []} for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            found[name]["masks"] = call(volume)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn == 0:
                found[name]["first_s"] = round(wall, 2)
            else:
                found[name]["wall_s"].append(round(wall, 3))
                found[name]["cpu_s"].append(round(cpu, 3))
    for rows in found.values():
        for clock in ("wall_s", "cpu_s"):
            ratios = [a / b for a, b in zip(rows[clock], found["joint"][clock], strict=True)]
            rows[f"{clock[:-2]}_ratio"] = round(statistics.median(ratios), 2)
    return found


def synthetic(shape: Sequence[int], spacing_mm: Sequence[float], folder: Path) -> Path:
    """Smooth noise as a CT scan, (z, y, x) voxels."""
    coarse = np.random.default_rng(0).normal(50, 150, [-(-n // 4) for n in shape])
    array = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)[: shape[0], : shape[1], : shape[2]]
    nib.save(
        nib.Nifti1Image(np.rint(array).astype(np.int16).T, np.diag([*spacing_mm[::-1], 1.0])),
        folder / "synthetic.nii.gz",
    )
    return folder / "synthetic.nii.gz"


def main() -> None:
    """Compares on every scan."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of NIfTI scans (CT, one channel); default: a synthetic one",
    )
    parser.add_argument(
        "--variant", default="unet_small", help="of configs/multitalent.py: the network"
    )
    parser.add_argument(
        "--arguments",
        type=json.loads,
        default={"base_features": 8},
        help="further arguments of the network, JSON",
    )
    parser.add_argument("--patch", type=int, nargs=3, default=(16, 32, 32))
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        default=(3.0, 2.0, 2.0),
        help="of the networks' grid, mm (z, y, x)",
    )
    parser.add_argument(
        "--shape", type=int, nargs=3, default=(24, 48, 48), help="of the synthetic scan"
    )
    parser.add_argument("--corpora", type=int, default=13, help="how many of the 13 corpora")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument(
        "--mirror", action="store_true", help="average over the eight mirror images"
    )
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    fields, spacing = plain(multitalent.get_config(args.variant)), tuple(args.spacing)
    fields["model"] |= args.arguments
    fields["train"]["patch"] = tuple(args.patch)
    pool = plain(multitalent.get_config("unet"))["data"]
    space = merge(
        corpora.open_data(pool, Path(), files=False).space.corpora[: args.corpora], "per_corpus"
    )
    settings = {
        "mirror_axes": (0, 1, 2) if args.mirror else (),
        "activation": fields["infer"]["activation"],
    }
    calls = contenders(fields, space, spacing, args.folds, settings)
    with tempfile.TemporaryDirectory() as folder:
        scans = (
            [p for p in sorted(args.data.iterdir()) if p.name.endswith((".nii", ".nii.gz"))]
            if args.data
            else []
        )
        for scan in scans or [synthetic(args.shape, spacing, Path(folder))]:
            volume = nifti.read(scan)
            described = {
                "scan": scan.name,
                "shape": volume.shape,
                "corpora": len(space.corpora),
                "classes": len(space.classes),
            }
            print(
                json.dumps(
                    described
                    | {"patch": args.patch, "network": fields["model"]}
                    | compare(calls, volume, args.rounds),
                    indent=1,
                )
            )


if __name__ == "__main__":
    main()
