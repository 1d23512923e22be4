"""Scoring one large pair: Dice, NSD, HD95 and ASSD here and with MONAI, interleaved in one run.
Prints JSON.

    python -m benchmarks.metrics [--shape 300 512 512] [--classes 5] [--runs 3]

A label map of organ-like bodies and a prediction whose surfaces wander by a few voxels. Ours starts
from the two label maps, as `medjax evaluate` does after reading; MONAI gets one-hot masks of each
class for nothing and computes the same four numbers with `use_subvoxels=True` where it offers that.
Quote the ratio, machines differ. Needs the `parity` extra.
"""

import resource
import warnings

import nibabel as nib
import numpy as np
from scipy import ndimage

from benchmarks import harness
from benchmarks.peers import monai_metrics
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


def main() -> None:
    """Times both sides in turn."""
    args = harness.parser(
        __doc__,
        shape=harness.flag((300, 512, 512), metavar=("Z", "Y", "X")),
        classes=5,
        runs=3,
    ).parse_args()
    warnings.simplefilter("ignore")
    volumes, peak = pair(args.shape, args.classes), {}
    sides = {
        "medjax": ours(*volumes, args.classes),
        "monai": monai_metrics.scores(*volumes, args.classes, SPACING, TOLERANCE_MM),
    }

    def noted(name):
        found = sides[name]()
        peak.setdefault(name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return found

    turns = harness.in_turns({n: lambda n=n: noted(n) for n in sides}, args.runs, warm=0)
    results = turns.results
    difference = {
        m: max(abs(results["medjax"][c][m] - results["monai"][c][m]) for c in results["medjax"])
        for m in ("Dice", "NSD", "HD95", "ASSD")
    }
    harness.show(
        {
            "shape": args.shape,
            "classes": args.classes,
            "seconds": turns.seconds["wall"],
            "ratio": turns.ratio("monai", "medjax"),
            "peak_gib_so_far": peak,
            "difference": difference,
            "scores": results,
        }
    )


if __name__ == "__main__":
    main()
