"""Prediction of whole scans: seconds and peak memory of the command, beside nnU-Net v2's with the
same topology and windows. Prints JSON.

    # 60 classes at 3 mm, windows of 64^3, no mirroring, both tools in turn:
    python -m benchmarks.predict torso --image ct.nii.gz
    # 118 classes on 512 x 512 x 600, medjax alone, under --max-memory 8:
    python -m benchmarks.predict many

Weights are random, so only time and memory mean anything. Memory is the sum over all processes of a
command (proportional set size where the system reports it), sampled five times a second. The first
command of medjax compiles; the second finds the program in the cache. `torso` needs the `parity`
extra.
"""

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks import harness
from benchmarks.peers import nnunet
from medjax import topology
from medjax.labels import Corpus
from tests.support.run import make_run

measured = functools.partial(harness.run, JAX_PLATFORMS="cpu", **harness.NNUNET)


def run_folder(
    root: Path, classes: int, patch: tuple, spacing_mm: tuple, model: dict, infer: dict
) -> Path:
    corpus = Corpus(
        "Random", tuple((i, (f"class{i:03d}",)) for i in range(1, classes + 1)), channels=("CT",)
    )
    return make_run(
        root / "run", (corpus,), patch=patch, spacing_mm=spacing_mm, model=model, infer=infer
    )


def torso(image: str, classes: int = 60, edge: int = 64, base: int = 16) -> dict:
    """Both tools on one scan at its own 3 mm."""
    patch, spacing = (edge,) * 3, (3.0,) * 3
    shape = topology.topology(spacing, patch)
    stages = len(shape.strides)
    features = topology.features_per_stage(stages, base)
    found = {
        "classes": classes,
        "window": patch,
        "features": features,
        "image": nib.load(image).shape,
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "in").mkdir()
        source = nib.load(image)
        nib.save(
            nib.Nifti1Image(np.asarray(source.dataobj).astype(np.int16), source.affine),
            root / "in" / "ct_0000.nii.gz",
        )
        theirs = nnunet.write_model(
            root / "nnunet",
            classes=classes,
            patch=patch,
            spacing_mm=spacing,
            features=features,
            strides=shape.strides,
            kernels=shape.kernels,
        )
        infer = {"activation": "softmax", "average": "logit", "batch_windows": 1}
        ours = run_folder(root, classes, patch, spacing, {"base_features": base}, infer)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(root / "cache")
        program = harness.script(
            "medjax.cli", "predict", "-m", ours, "-i", root / "in", "--quiet", "-o"
        )
        for turn in ("first", "second"):
            found[f"medjax {turn}"] = measured([*program, root / f"ours_{turn}"], root / "log")
            found[f"medjax {turn}"]["parts"] = json.loads(
                (root / f"ours_{turn}" / "run.json").read_text()
            )["cases"]["ct"]["seconds"]
            found[f"nnunet {turn}"] = measured(
                nnunet.command(theirs, root / "in", root / f"theirs_{turn}"), root / "log"
            )
            shutil.rmtree(root / f"theirs_{turn}")
    return found


def many(
    shape: tuple[int, int, int] = (600, 512, 512), classes: int = 118, limit: float = 8.0
) -> dict:
    """One large scan of smooth noise through a tiny network at twice its voxel size."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rng = np.random.default_rng(0)
        coarse = rng.normal(50, 150, tuple(-(-n // 8) for n in shape)).astype(np.float32)
        array = np.rint(
            coarse.repeat(8, 0).repeat(8, 1).repeat(8, 2)[: shape[0], : shape[1], : shape[2]]
        ).astype(np.int16)
        (root / "in").mkdir()
        nib.save(
            nib.Nifti1Image(array.T, np.diag([0.8, 0.8, 0.8, 1.0])), root / "in" / "large.nii.gz"
        )
        ours = run_folder(
            root,
            classes,
            (64, 64, 64),
            (1.6, 1.6, 1.6),
            {"features": (4, 8), "strides": ((1,) * 3, (2,) * 3), "kernels": ((3,) * 3,) * 2},
            {"batch_windows": 1, "activation": "softmax"},
        )
        command = harness.script(
            "medjax.cli", "predict", "-m", ours, "-i", root / "in", "-o", root / "out"
        )
        found = {
            "shape": shape,
            "classes": classes,
            "limit_gib": limit,
            "all_scores_gib": round(np.prod(shape) * classes * 4 / harness.GIB, 1),
        }
        found["medjax"] = measured([*command, "--max-memory", limit], root / "log")
        found["said"] = (root / "log").read_text().splitlines()[:1]
        if found["medjax"]["exit"] == 0:
            manifest = json.loads((root / "out" / "run.json").read_text())
            found |= {
                "parts": manifest["cases"]["large"]["seconds"],
                "peak_rss_gib": manifest["peak_memory_gib"],
            }
    return found


def main() -> None:
    """Runs one comparison."""
    parser = harness.parser(
        __doc__,
        image="",
        shape=(600, 512, 512),
        classes=118,
        limit=harness.flag(8.0, help="GiB"),
    )
    parser.add_argument("what", choices=("torso", "many"))
    args = parser.parse_args()
    harness.show(
        torso(args.image) if args.what == "torso" else many(args.shape, args.classes, args.limit)
    )


if __name__ == "__main__":
    main()
