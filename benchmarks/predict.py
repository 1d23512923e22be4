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

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks import peer_nnunet
from medjax import topology
from medjax.labels import Corpus
from tests.support.run import make_run

GIB = 2**30


def processes(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
                )
            except (OSError, IndexError):
                continue
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def memory_of(pid: int) -> int:
    """Bytes a process holds, pages shared with others counted by their share."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


def measured(command: list[str], log: Path) -> dict:
    """Runs a command: wall seconds, CPU seconds, peak GiB over its processes, exit code."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "nnUNet_raw": "/tmp",
        "nnUNet_preprocessed": "/tmp",
        "nnUNet_results": "/tmp",
    }
    before, started, peak, over = os.times(), time.perf_counter(), [0], threading.Event()
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)

        def watch() -> None:
            while not over.wait(0.2):
                peak[0] = max(peak[0], sum(memory_of(pid) for pid in processes(process.pid)))

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        over.set()
        watcher.join()
    after = os.times()
    cpu = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return {
        "exit": code,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_s": round(cpu, 1),
        "peak_gib": round(peak[0] / GIB, 2),
    }


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
        theirs = peer_nnunet.write_model(
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
        program = [
            sys.executable,
            "-m",
            "medjax.cli",
            "predict",
            "-m",
            str(ours),
            "-i",
            str(root / "in"),
            "--quiet",
            "-o",
        ]
        for turn in ("first", "second"):
            found[f"medjax {turn}"] = measured([*program, str(root / f"ours_{turn}")], root / "log")
            found[f"medjax {turn}"]["parts"] = json.loads(
                (root / f"ours_{turn}" / "run.json").read_text()
            )["cases"]["ct"]["seconds"]
            found[f"nnunet {turn}"] = measured(
                peer_nnunet.command(theirs, root / "in", root / f"theirs_{turn}"), root / "log"
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
        command = [
            sys.executable,
            "-m",
            "medjax.cli",
            "predict",
            "-m",
            str(ours),
            "-i",
            str(root / "in"),
            "-o",
            str(root / "out"),
        ]
        found = {
            "shape": shape,
            "classes": classes,
            "limit_gib": limit,
            "all_scores_gib": round(np.prod(shape) * classes * 4 / GIB, 1),
        }
        found["medjax"] = measured([*command, "--max-memory", str(limit)], root / "log")
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
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("torso", "many"))
    parser.add_argument("--image", default="")
    parser.add_argument("--shape", type=int, nargs=3, default=(600, 512, 512))
    parser.add_argument("--classes", type=int, default=118)
    parser.add_argument("--limit", type=float, default=8.0, help="GiB")
    args = parser.parse_args()
    print(
        json.dumps(
            torso(args.image)
            if args.what == "torso"
            else many(tuple(args.shape), args.classes, args.limit),
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
