r"""Preparation against nnU-Net v2's own preprocessor: seconds per case, peak memory, and how far
the prepared arrays differ.

    python -m benchmarks.prepare [--shape 160 256 256] [--spacing 1.25 0.75 0.75] \
      [--target 1 1 1] [--cases 2] [--workers 2] [--repeats 3]
    python -m benchmarks.prepare --shape 1000 512 512 --spacing 0.8 0.7 0.7 --target 1 1 1 \
      --cases 1 --workers 1 --only medjax

Writes synthetic CT scans (int16, gzip) with a label map of eight structures to a temporary folder,
prepares them with the same plan by both engines in turns, each run in a process of its own whose
modules are loaded before the clock starts, and prints one JSON object. Both get `workers` cases at
a time: threads here, forked processes there. Memory is the proportional set size of the whole
process tree, polled every 20 ms. nnU-Net's side needs the `parity` extra.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from medjax.prepare.plan import Intensity, Plan

CT = Intensity("ct", (-900.0, 300.0), 60.0, 175.0)
ENGINES = ("nnunetv2", "medjax")


def write_scans(
    folder: Path, shape: tuple[int, ...], spacing_mm: tuple[float, ...], cases: int
) -> None:
    """A corpus in nnU-Net's raw layout: a body in air, smooth organs with noise, labels 0 to 8."""
    import nibabel as nib
    from scipy import ndimage

    rng = np.random.default_rng(0)
    coarse = tuple(max(4, n // 8) for n in shape)
    axes = [((np.arange(n) - n / 2) / (0.45 * n)) ** 2 for n in shape]
    for k in range(cases):
        low = ndimage.gaussian_filter(rng.normal(size=coarse).astype(np.float32), 2)
        low = ndimage.zoom(
            low / low.std(),
            (1, *(n / c for n, c in zip(shape[1:], coarse[1:], strict=True))),
            order=1,
            grid_mode=True,
            mode="nearest",
        )
        image, label = np.empty(shape, np.int16), np.empty(shape, np.uint8)
        for z in range(
            shape[0]
        ):  # slice by slice, so that large scans cost no more than themselves
            place = min(z * (coarse[0] - 1) / max(1, shape[0] - 1), coarse[0] - 1.001)
            smooth = low[int(place)] * (1 - place % 1) + low[int(place) + 1] * (place % 1)
            body = axes[0][z] + axes[1][:, None] + axes[2] < 1
            label[z] = np.where(
                body & (smooth > 0.5), np.clip(np.ceil((smooth - 0.5) / 0.25), 1, 8), 0
            )
            image[z] = np.where(body, 40 + 60 * smooth, -1000) + 12 * rng.standard_normal(
                shape[1:], np.float32
            )
        affine = np.diag([*spacing_mm[::-1], 1.0])
        for array, where in ((image, f"imagesTr/scan_{k}_0000"), (label, f"labelsTr/scan_{k}")):
            path = folder / f"{where}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), affine), path)
    labels = {"background": 0} | {f"organ {i}": i for i in range(1, 9)}
    described = {
        "channel_names": {"0": "CT"},
        "labels": labels,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(described))


class Memory(threading.Thread):
    """Polls the proportional set size of this process and its children; `peak` and `base` (at the
    start) in bytes.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.base = self.peak = self._now()
        self.done = threading.Event()

    def run(self):
        """Until `done` is set."""
        while not self.done.wait(0.02):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        total = 0
        for pid in tree():
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += next(
                    int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")
                )
            except (OSError, StopIteration):
                continue
        return total


def tree() -> list[int]:
    """This process and its children."""
    pids = [os.getpid()]
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        try:
            pids += [int(p) for p in (task / "children").read_text().split()]
        except OSError:  # a thread that has just ended
            continue
    return pids


def cpu_seconds() -> float:
    """CPU time of the process tree so far; the steadier measure on a busy machine."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in tree()]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def run_medjax(raw: Path, out: Path, target_mm: tuple[float, ...], workers: int) -> dict:
    """Prepares all scans of a raw folder."""
    import tensorstore  # noqa: F401  loaded before the clock starts

    from medjax.corpora.sources import read_corpus
    from medjax.prepare.prepare import prepare

    corpus, cases = read_corpus(raw)
    plan = Plan({corpus.store: target_mm}, {"CT": CT}, orientation="stored")

    def work():
        result = prepare(corpus, cases, plan, out, workers=workers)
        assert not result.failed, result.failed

    return measured(work)


def run_nnunet(raw: Path, out: Path, target_mm: tuple[float, ...], workers: int) -> dict:
    """The same by nnU-Net's DefaultPreprocessor, one forked process per case."""
    import multiprocessing

    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, str(out))
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    out.mkdir(parents=True)
    described = json.loads((raw / "dataset.json").read_text())
    manager = PlansManager(nnunet_plans(target_mm))
    names = [p.name.removesuffix(".nii.gz") for p in sorted((raw / "labelsTr").iterdir())]
    jobs = [
        (
            str(out / n),
            [str(raw / "imagesTr" / f"{n}_0000.nii.gz")],
            str(raw / "labelsTr" / f"{n}.nii.gz"),
            manager,
            manager.get_configuration("3d_fullres"),
            described,
        )
        for n in names
    ]
    peer = DefaultPreprocessor(verbose=False)
    if workers == 1:
        return measured(lambda: [peer.run_case_save(*job) for job in jobs])
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        pool.map(abs, range(2 * workers))
        return measured(lambda: pool.starmap(peer.run_case_save, jobs, chunksize=1))


def nnunet_plans(target_mm: tuple[float, ...], patch: tuple[int, ...] = (128, 128, 128)) -> dict:
    """nnU-Net v2 plans with the spacing, clip range and statistics of the benchmark."""
    properties = {
        "mean": CT.mean,
        "std": CT.std,
        "percentile_00_5": CT.clip[0],
        "percentile_99_5": CT.clip[1],
    }
    common = {"order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "bench",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "architecture": {},
        "spacing": list(target_mm),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **common},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **common},
    }
    return {
        "dataset_name": "Dataset001_Bench",
        "plans_name": "bench",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": properties},
    }


def measured(work) -> dict:
    """Seconds and peak memory of a call."""
    memory = Memory()
    memory.start()
    begin, cpu = time.perf_counter(), cpu_seconds()
    work()
    seconds = time.perf_counter() - begin
    cpu = cpu_seconds() - cpu
    memory.done.set()
    memory.join()
    return {
        "s": seconds,
        "cpu_s": cpu,
        "peak_gib": memory.peak / 2**30,
        "base_gib": memory.base / 2**30,
    }


def differences(ours: Path, theirs: Path) -> dict:
    """Largest image difference as a share of the range, and the share of label voxels that differ,
    over all cases.
    """
    import blosc2

    from medjax.prepare import store

    worst, wrong, voxels = 0.0, 0, 0
    for name in store.list_cases(ours, "Bench"):
        case = store.open_case(ours / "Bench" / name)
        image = case.image()[..., 0].astype(np.float32) * np.float32(
            case.meta["gain"][0]
        ) + np.float32(case.meta["bias"][0])
        peer = np.asarray(blosc2.open(str(theirs / f"{name}.b2nd"))[0])
        worst = max(worst, float(np.abs(image - peer).max() / np.ptp(peer)))
        label = np.maximum(np.asarray(blosc2.open(str(theirs / f"{name}_seg.b2nd"))[0]), 0)
        wrong, voxels = wrong + int((label != case.label()).sum()), voxels + label.size
    return {"max_difference_of_range": worst, "label_disagreement": wrong / voxels}


def main() -> None:
    """Runs the comparison and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shape", type=int, nargs=3, default=(160, 256, 256), help="(z, y, x) voxels of a scan"
    )
    parser.add_argument(
        "--spacing", type=float, nargs=3, default=(1.25, 0.75, 0.75), help="(z, y, x) mm"
    )
    parser.add_argument(
        "--target",
        type=float,
        nargs=3,
        default=(1.0, 1.0, 1.0),
        help="(z, y, x) mm after preparation",
    )
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=ENGINES)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--raw", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        work = run_medjax if args.engine == "medjax" else run_nnunet
        print(json.dumps(work(Path(args.raw), Path(args.out), tuple(args.target), args.workers)))
        return
    engines = (args.only,) if args.only else ENGINES
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "Dataset001_Bench"
        write_scans(raw, tuple(args.shape), tuple(args.spacing), args.cases)
        marks = {engine: [] for engine in engines}
        for k in range(args.repeats):
            for engine in engines:
                out = Path(folder) / f"{engine}_{k}"
                target = [str(t) for t in args.target]
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.prepare",
                    "--engine",
                    engine,
                    "--raw",
                    str(raw),
                    "--out",
                    str(out),
                ]
                done = subprocess.run(
                    [*command, "--workers", str(args.workers), "--target", *target],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                marks[engine].append(json.loads(done.stdout.splitlines()[-1]))
        report = {
            "shape": args.shape,
            "spacing_mm": args.spacing,
            "target_mm": args.target,
            "cases": args.cases,
            "workers": args.workers,
        }
        report |= {
            e: {k: round(float(np.median([m[k] for m in marks[e]])), 3) for k in marks[e][0]}
            for e in engines
        }
        if not args.only:
            report["ratio"] = round(
                float(np.median([a["s"] / b["s"] for a, b in zip(*marks.values(), strict=True)])), 2
            )
            report["cpu_ratio"] = round(
                float(
                    np.median(
                        [a["cpu_s"] / b["cpu_s"] for a, b in zip(*marks.values(), strict=True)]
                    )
                ),
                2,
            )
            report |= differences(Path(folder) / "medjax_0", Path(folder) / "nnunetv2_0")
    print(json.dumps(report | {"cpus": os.cpu_count(), "load": os.getloadavg()[0]}, indent=1))


if __name__ == "__main__":
    main()
