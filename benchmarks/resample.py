"""Times our resampling against nnU-Net v2's own and prints JSON.

    python -m benchmarks.resample [--repeats 3] [--small]

Two volumes: an isotropic one, (160, 256, 256) zoomed by (1.25, 0.75, 0.75), and a CT-like
anisotropic one, (40, 256, 256) with separate z. Reference and ours run in turns; reported are the
median wall and CPU times, the medians of the paired ratios (reference / ours), the largest
difference relative to the intensity range and the share of labels that differ. Needs the `parity`
extra (nnunetv2).
"""

import argparse
import json
import os
import time

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from scipy import ndimage

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


def reference(
    array: np.ndarray, shape: tuple, spacing: tuple, new_spacing: tuple, is_seg: bool
) -> np.ndarray:
    """nnU-Net v2's resampling with its default arguments."""
    return resample_data_or_seg_to_shape(
        array[None],
        shape,
        spacing,
        new_spacing,
        is_seg=is_seg,
        order=1 if is_seg else 3,
        order_z=0,
        force_separate_z=None,
    )[0]


def clock() -> np.ndarray:
    """Wall and CPU seconds; the second is the steadier measure on a busy machine."""
    return np.array([time.perf_counter(), time.process_time()])


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
        marks = []
        for _ in range(repeats):
            start = clock()
            expected = reference(array, shape, spacing, new_spacing, kind == "label")
            middle = clock()
            found = ours(array, shape, spacing, new_spacing)
            marks.append(np.stack([middle - start, clock() - middle]))
        (theirs, theirs_cpu), (mine, mine_cpu) = np.median(marks, axis=0)
        ratio, cpu_ratio = np.median([theirs_ / ours_ for theirs_, ours_ in marks], axis=0)
        result[kind] = {
            "nnunetv2_s": round(theirs, 4),
            "medjax_s": round(mine, 4),
            "ratio": round(ratio, 1),
            "nnunetv2_cpu_s": round(theirs_cpu, 4),
            "medjax_cpu_s": round(mine_cpu, 4),
            "cpu_ratio": round(cpu_ratio, 1),
        }
        if kind == "image":
            result[kind]["max_difference_of_range"] = float(
                np.abs(expected - found).max() / np.ptp(array)
            )
        else:
            result[kind]["disagreement"] = float((expected != found).mean())
    return result


def main() -> None:
    """Runs the comparison and prints one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="interleaved runs per volume")
    parser.add_argument(
        "--small",
        action="store_true",
        help="a quarter of the size along each axis, for a check in seconds",
    )
    options = parser.parse_args()
    results = {
        name: compare(name, options.repeats, 0.25 if options.small else 1.0) for name in CASES
    }
    print(
        json.dumps(
            {
                "cores": os.cpu_count(),
                "load": os.getloadavg()[0],
                "repeats": options.repeats,
                "results": results,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
