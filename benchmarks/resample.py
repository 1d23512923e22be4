"""Times our resampling against nnU-Net v2's own and prints JSON.

    python -m benchmarks.resample [--repeats 3] [--small]

Two volumes: an isotropic one, (160, 256, 256) zoomed by (1.25, 0.75, 0.75), and a CT-like
anisotropic one, (40, 256, 256) with separate z. Reference and ours run in turns; reported are the
median wall and CPU times, the medians of the paired ratios (reference / ours), the largest
difference relative to the intensity range and the share of labels that differ. Needs the `parity`
extra (nnunetv2).
"""

import numpy as np
from scipy import ndimage

from benchmarks import harness
from benchmarks.peers import nnunet
from medjax.prepare import resample

CASES = {
    "isotropic": {
        "shape": (160, 256, 256),
        "spacing_mm": (1.25, 0.75, 0.75),
        "new_spacing_mm": (1.0, 1.0, 1.0),
    },
    "separate_z": {
        "shape": (40, 256, 256),
        "spacing_mm": (5.0, 0.75, 0.75),
        "new_spacing_mm": (4.0, 1.0, 1.0),
    },
}


def volumes(shape: tuple[int, int, int], labels: int) -> tuple[np.ndarray, np.ndarray]:
    """A smooth float32 volume of CT-like range with noise, and blobs of `labels` labels."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape).astype(np.float32), 8)
    smooth /= smooth.std()
    image = 300 * smooth + 30 * rng.normal(size=shape).astype(np.float32)
    return image.astype(np.float32), np.clip(np.rint(smooth * 2 + labels / 2), 0, labels).astype(
        np.int16
    )


def compare(name: str, repeats: int, scale: float) -> dict:
    """Times and differences of one case, image and label."""
    case = CASES[name]
    spacing, new_spacing = case["spacing_mm"], case["new_spacing_mm"]
    image, label = volumes(tuple(max(8, round(n * scale)) for n in case["shape"]), labels=8)
    shape = resample.new_shape(image.shape, spacing, new_spacing)
    resample.resample_image(
        image, shape, spacing, new_spacing
    )  # fills the cache of operators, as the first case of a corpus does
    result = {
        "shape": image.shape,
        "new_shape": shape,
        "separate_axis": resample.separate_axis(spacing, new_spacing),
    }
    for kind, array, ours in (
        ("image", image, resample.resample_image),
        ("label", label, resample.resample_label),
    ):
        sides = {
            "nnunetv2": lambda a=array, seg=kind == "label": nnunet.resample(
                a, shape, spacing, new_spacing, seg
            ),
            "medjax": lambda a=array, f=ours: f(a, shape, spacing, new_spacing),
        }
        turns = harness.in_turns(sides, repeats, warm=0)
        result[kind] = {}
        for clock, mark in (("wall", ""), ("cpu", "cpu_")):
            result[kind] |= {f"{n}_{mark}s": v for n, v in turns.median(clock).items()}
            result[kind][f"{mark}ratio"] = turns.ratio("nnunetv2", "medjax", clock, 1)
        expected, found = turns.results["nnunetv2"], turns.results["medjax"]
        if kind == "image":
            result[kind]["max_difference_of_range"] = float(
                np.abs(expected - found).max() / np.ptp(array)
            )
        else:
            result[kind]["disagreement"] = float((expected != found).mean())
    return result


def main() -> None:
    """Runs the comparison and prints one JSON object."""
    options = harness.parser(
        __doc__,
        repeats=harness.flag(3, help="interleaved runs per volume"),
        small=harness.flag(False, help="a quarter of the size along each axis, a check in seconds"),
    ).parse_args()
    results = {
        name: compare(name, options.repeats, 0.25 if options.small else 1.0) for name in CASES
    }
    harness.show(harness.machine() | {"repeats": options.repeats, "results": results})


if __name__ == "__main__":
    main()
