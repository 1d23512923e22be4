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

import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import harness
from benchmarks.peers import nnunet
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
    """The same by nnU-Net, one forked process per case."""
    return nnunet.prepare(raw, out, target_mm, workers, measured)


def measured(work) -> dict:
    """Seconds and peak memory of a call, children included."""
    with harness.watched() as memory:
        turns = harness.in_turns({"": work}, 1, warm=0, clock=harness.tree_clock)
    seconds = {name: turns.median(kind)[""] for name, kind in (("s", "wall"), ("cpu_s", "cpu"))}
    gib = {"peak_gib": memory.peak / harness.GIB, "base_gib": memory.base / harness.GIB}
    return seconds | gib


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
    args = harness.parser(
        __doc__,
        shape=harness.flag((160, 256, 256), help="(z, y, x) voxels of a scan"),
        spacing=harness.flag((1.25, 0.75, 0.75), help="(z, y, x) mm"),
        target=harness.flag((1.0, 1.0, 1.0), help="(z, y, x) mm after preparation"),
        cases=2,
        workers=2,
        repeats=3,
        only=harness.flag(choices=ENGINES),
        engine=harness.flag(choices=ENGINES, help=None),
        raw=harness.flag(type=Path, help=None),
        out=harness.flag(type=Path, help=None),
    ).parse_args()
    if args.engine:
        work = run_medjax if args.engine == "medjax" else run_nnunet
        harness.show(work(args.raw, args.out, args.target, args.workers), indent=None)
        return
    engines = (args.only,) if args.only else ENGINES
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "Dataset001_Bench"
        write_scans(raw, args.shape, args.spacing, args.cases)
        marks = {engine: [] for engine in engines}
        for k in range(args.repeats):
            for engine in engines:
                place = ("--raw", raw, "--out", Path(folder) / f"{engine}_{k}")
                how = ("--workers", args.workers, "--target", *args.target)
                words = harness.script("benchmarks.prepare", "--engine", engine, *place, *how)
                marks[engine].append(harness.run_json(words))
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
            for name, key in (("ratio", "s"), ("cpu_ratio", "cpu_s")):
                report[name] = harness.ratio(*([m[key] for m in marks[e]] for e in engines))
            report |= differences(Path(folder) / "medjax_0", Path(folder) / "nnunetv2_0")
    harness.show(report | harness.machine())


if __name__ == "__main__":
    main()
