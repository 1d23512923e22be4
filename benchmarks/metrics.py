"""Scoring one large pair: Dice, NSD, HD95 and ASSD here and with MONAI, interleaved in one run.
Prints JSON.

    python -m benchmarks.metrics [--shape 300 512 512] [--classes 5] [--runs 3]

A label map of organ-like bodies and a prediction whose surfaces wander by a few voxels. Ours starts
from the two label maps, as `medjax evaluate` does after reading; MONAI gets one-hot masks of each
class for nothing and computes the same four numbers with `use_subvoxels=True` where it offers that.
Quote the ratio, machines differ. Needs the `parity` extra.
"""

import argparse
import json
import resource
import statistics
import time
import warnings

import nibabel as nib
import numpy as np
from scipy import ndimage

from medjax.labels import Corpus
from medjax.metrics import counts
from medjax.metrics import side as masks
from medjax.metrics.aggregate import score_masks
from medjax.scans.nifti import Volume

SPACING = (1.5, 0.8, 0.8)
TOLERANCE_MM = 1.0


def pair(shape, classes, seed=0):
    """Two label maps (z, y, x): ellipsoids of falling size, and the same with a wavy surface."""
    rng = np.random.default_rng(seed)
    reference, prediction = np.zeros((2, *shape), np.uint8)
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    noise = ndimage.zoom(rng.normal(size=[-(-n // 8) for n in shape]), 8, order=1)[
        tuple(slice(n) for n in shape)
    ].astype(np.float32)
    for c in range(1, classes + 1):
        centre = [n * rng.uniform(0.3, 0.7) for n in shape]
        radius = [n * 0.3 / c**0.7 * rng.uniform(0.8, 1.2) for n in shape]
        distance = sum(
            (((g - m) / r) ** 2) for g, m, r in zip(grid, centre, radius, strict=True)
        ).astype(np.float32)
        reference[distance < 1] = c
        prediction[distance + noise * (2 / min(radius)) < 1] = c
    return reference, prediction


def ours(reference, prediction, classes):
    """() -> class -> scores."""
    corpus = Corpus("B", tuple((c, (str(c),)) for c in range(1, classes + 1)))

    def run():
        sides = [
            masks.LabelMap(Volume(a, np.eye(4), nib.Nifti1Header(), ""), corpus)
            for a in (reference, prediction)
        ]
        found = {}
        for name in corpus.classes:
            box = masks.join(*(side.box(name) for side in sides))
            a, b = (side.mask(name, box) for side in sides)
            found[name] = score_masks(
                a, b, counts.count(a, b), SPACING, TOLERANCE_MM, reference.shape
            )[1]
        return found

    return run


def monai(reference, prediction, classes):
    """The same four numbers from MONAI's functions."""
    import torch
    from monai import metrics

    def run():
        found = {}
        for c in range(1, classes + 1):
            a, b = (
                torch.as_tensor(np.stack([m != c, m == c])[None]) for m in (reference, prediction)
            )
            surface = {"spacing": SPACING}
            found[str(c)] = {
                "Dice": float(metrics.compute_dice(b, a, include_background=False)[0, 0]),
                "NSD": float(
                    metrics.compute_surface_dice(
                        b, a, [TOLERANCE_MM], use_subvoxels=True, **surface
                    )[0, 0]
                ),
                "HD95": float(
                    metrics.compute_hausdorff_distance(b, a, percentile=95, **surface)[0, 0]
                ),
                "ASSD": float(
                    metrics.compute_average_surface_distance(b, a, symmetric=True, **surface)[0, 0]
                ),
            }
        return found

    return run


def main() -> None:
    """Times both sides in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--shape", type=int, nargs=3, default=(300, 512, 512), metavar=("Z", "Y", "X")
    )
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    volumes = pair(tuple(args.shape), args.classes)
    sides = {"medjax": ours(*volumes, args.classes), "monai": monai(*volumes, args.classes)}
    seconds, results = {name: [] for name in sides}, {}
    peak = {}
    for _ in range(args.runs):
        for name, run in sides.items():
            start = time.perf_counter()
            results[name] = run()
            seconds[name].append(time.perf_counter() - start)
            peak.setdefault(name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    difference = {
        m: max(abs(results["medjax"][c][m] - results["monai"][c][m]) for c in results["medjax"])
        for m in ("Dice", "NSD", "HD95", "ASSD")
    }
    ratio = statistics.median(
        b / a for a, b in zip(seconds["medjax"], seconds["monai"], strict=True)
    )
    print(
        json.dumps(
            {
                "shape": args.shape,
                "classes": args.classes,
                "seconds": seconds,
                "ratio": ratio,
                "peak_gib_so_far": peak,
                "difference": difference,
                "scores": results,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
