"""Plants the faults a data set can have into copies of real (or synthetic) cases, runs `medjax
verify`, and compares found with expected.

    python -m benchmarks.faults [--data FOLDER] [--table verify.md] [--clean FOLDER ...]

`--data` is a folder in a dataset.json layout whose smallest cases are copied; without it the cases
are synthetic. `--clean` names untouched data sets, in which nothing may be found. The numbers are
those of the fault list of docs/data.md. A variant that must pass is planted as well ("clean"): a
fault seen where there is none counts as much as one that is missed.
"""

import dataclasses
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks import harness
from benchmarks.damage import (
    Site,
    both,
    closed,
    crc,
    cut,
    forms,
    frames,
    image,
    label,
    link,
    moved,
    no_codes,
    oddly_named,
    on_image,
    on_label,
    packed_as_nii,
    patch,
    put,
    reoriented,
    rewrite,
    scaled,
    second,
    slices,
    sparse_values,
    stacked,
    turned,
    typed,
    unpacked,
)

CLEAN, WARNING, ERROR, EMPTY = "clean", "warning", "error", "empty"
# to root every file is readable, unless it gives that up
LIKE_A_USER = (
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if os.geteuid() == 0 and shutil.which("setpriv")
    else []
)


@dataclasses.dataclass(frozen=True)
class Fault:
    """One planted fault: where it is planted ("one", "two" channels, "sparse" values), what must
    be reported, and in which words.
    """

    number: str
    what: str
    plant: Callable[[Site], None]
    expected: str
    words: str = ""
    corpus: str = "one"


PIXDIM, NAN = 76, struct.pack("<f", float("nan"))
AXES = [a + b + c for a in "LRAPSI" for b in "LRAPSI" for c in "LRAPSI"]
ORIENTATIONS = [
    codes for codes in AXES if len({("LR" + "AP" + "SI").index(c) // 2 for c in codes}) == 3
]

FAULTS = (
    Fault("1a", "gzip cut in half", on_image(cut(0.5)), ERROR, "truncated gzip"),
    Fault("1b", "last 8 bytes of the gzip missing", on_image(cut(-8)), ERROR, "truncated gzip"),
    Fault("1c", "label cut in half", on_label(cut(0.5)), ERROR, "truncated gzip"),
    Fault("2", "wrong CRC", on_image(crc), ERROR, "CRC check failed"),
    Fault("3a", "zero length", on_image(lambda p: p.write_bytes(b"")), ERROR, "not NIfTI"),
    Fault(
        "3b",
        "a web page",
        on_image(lambda p: p.write_text("<html>moved</html>")),
        ERROR,
        "not NIfTI",
    ),
    Fault(
        "4",
        ".nii shorter than its header says",
        lambda s: (unpacked(s, ".nii"), cut(0.9)(s.image)),
        ERROR,
        "shorter than its header",
    ),
    Fault("5a", "broken link", on_image(link), ERROR, "broken symbolic link"),
    Fault("5b", "no permission to read", on_image(closed), ERROR, "cannot read"),
    Fault("6", "blanks, umlauts and shell signs in the name", oddly_named, CLEAN),
    Fault(
        "7a",
        "not compressed, named .nii.gz",
        lambda s: unpacked(s, ".nii.gz"),
        WARNING,
        "named .gz but not compressed",
    ),
    Fault("7b", "compressed, named .nii", packed_as_nii, WARNING, "a compressed file without .gz"),
    *(Fault("8", f"axes {codes}", reoriented(codes), CLEAN) for codes in ORIENTATIONS),
    Fault("9", "oblique 12 degrees", lambda s: both(s, affine=turned(12)), CLEAN),
    Fault("10a", "shear 1e-4", lambda s: both(s, affine=turned(shear=1e-4)), CLEAN),
    Fault(
        "10b",
        "shear 1e-2",
        lambda s: both(s, affine=turned(shear=1e-2)),
        WARNING,
        "sheared voxel grid, axes 0.573 degrees",
    ),
    Fault(
        "10c", "shear 0.2", lambda s: both(s, affine=turned(shear=0.2)), ERROR, "sheared voxel grid"
    ),
    Fault("11", "qform and sform differ", forms, WARNING, "disagree"),
    Fault("12", "qform and sform codes 0", no_codes, WARNING, "neither sform nor qform is set"),
    Fault("13a", "origins 1e-5 mm apart", label(affine=moved(1e-5)), CLEAN),
    Fault(
        "13b",
        "origins a voxel apart",
        lambda s: rewrite(s.label, affine=moved(spacing_of(s.label))),
        ERROR,
        "different geometry",
    ),
    Fault(
        "14", "label one slice short", label(array=lambda a: a[:, :, 1:]), ERROR, "different shapes"
    ),
    Fault(
        "15a",
        "negative voxel size",
        on_image(lambda p: patch(p, PIXDIM + 4, struct.pack("<f", -1))),
        ERROR,
        "unusable voxel size",
    ),
    Fault(
        "15b",
        "voxel size 0",
        on_image(lambda p: patch(p, PIXDIM + 4, struct.pack("<f", 0))),
        ERROR,
        "unusable voxel size",
    ),
    Fault(
        "15c", "NaN in the affine", on_image(lambda p: patch(p, 280, NAN)), ERROR, "unusable affine"
    ),
    Fault(
        "16",
        "voxels of 0.4 x 0.4 x 10 mm",
        lambda s: both(s, affine=turned(spacing=(0.4, 0.4, 10))),
        CLEAN,
    ),
    Fault(
        "17",
        "channels on different grids",
        lambda s: second(s, moved(7.0)),
        ERROR,
        "different geometry",
        "two",
    ),
    Fault("17", "channels on one grid", second, CLEAN, "", "two"),
    Fault("18a", "NaN voxel", image(array=put(np.nan, np.float32)), ERROR, "non-finite voxels"),
    Fault(
        "18b", "infinite voxel", image(array=put(np.inf, np.float32)), ERROR, "non-finite voxels"
    ),
    Fault("19", "constant image", image(array=lambda a: a * 0 + 5), WARNING, "constant image"),
    Fault("20a", "uint16 with slope and intercept", scaled("u2"), CLEAN),
    Fault("20b", "big-endian", scaled("f4", ">"), CLEAN),
    Fault("20c", "float64", scaled("f8"), CLEAN),
    Fault("20d", "int8 with slope and intercept", scaled("i1"), CLEAN),
    Fault(
        "21a",
        "RGB voxels",
        typed(np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])),
        ERROR,
        "RGB voxels",
    ),
    Fault("21b", "complex voxels", typed(np.complex64), ERROR, "complex voxels"),
    Fault("22a", "label 1.5", label(array=put(1.5, np.float32)), ERROR, "not whole numbers"),
    Fault("22b", "label -1", label(array=put(-1, np.int16)), ERROR, "negative label values"),
    Fault("23", "undeclared label 7", label(array=put(7)), ERROR, "undeclared label value 7"),
    Fault("24", "sparse values 0, 1, 5, 200", sparse_values, CLEAN, "", "sparse"),
    Fault("25", "empty label map", label(array=lambda a: a * 0), EMPTY),
    Fault(
        "26",
        "annotated class that never occurs",
        sparse_values,
        WARNING,
        "is annotated but occurs in no case",
        "sparse",
    ),
    Fault("27a", "2D", slices(True), CLEAN),
    Fault("27b", "3D with one slice", slices(False), CLEAN),
    Fault("28a", "4D time series", frames, ERROR, "a 4D image where one 3D scan is declared"),
    Fault("28b", "4D with two declared channels", stacked, CLEAN, "", "two"),
)


def spacing_of(path: Path) -> float:
    """Voxel size along x in mm."""
    return float(np.linalg.norm(nib.load(path).affine[:3, 0]))


def base_cases(data: Path | None, count: int = 4) -> list[tuple[Path, Path]]:
    """(image, label) of the smallest cases of a data set with dataset.json."""
    spec = json.loads((data / "dataset.json").read_text())
    pairs = [(data / item["image"], data / item["label"]) for item in spec["training"]]
    return sorted(pairs, key=lambda pair: pair[0].stat().st_size)[:count]


def synthetic(folder: Path) -> list[tuple[Path, Path]]:
    """Two drawn cases of 24 x 36 x 40 voxels (z, y, x)."""
    rng, pairs = np.random.default_rng(0), []
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(2):
        array, mask = (
            rng.normal(100, 20, (40, 36, 24)).astype(np.int16),
            np.zeros((40, 36, 24), np.uint8),
        )
        mask[10:30, 8:28, 6:18], mask[15:22, 12:20, 9:14] = 1, 2
        for data, name in ((array + 50 * mask, "image"), (mask, "label")):
            new = nib.Nifti1Image(
                data.astype(array.dtype if name == "image" else mask.dtype),
                np.diag([0.9, 0.9, 1.5, 1]),
            )
            new.set_qform(new.affine, 1)
            new.set_sform(new.affine, 1)
            nib.save(new, folder / f"{name}{i}.nii.gz")
        pairs.append((folder / f"image{i}.nii.gz", folder / f"label{i}.nii.gz"))
    return pairs


def plant_all(
    root: Path, pairs: Sequence[tuple[Path, Path]], faults: Sequence[Fault] = FAULTS
) -> dict[str, dict[str, Fault]]:
    """Writes the corpora "one", "two" and "sparse" with one case per fault; returns corpus -> case
    -> fault.
    """
    values = sorted(
        {int(v) for _, label in pairs for v in np.unique(np.asanyarray(nib.load(label).dataobj))}
        - {0}
    )
    labels = {"0": "background", **{str(v): f"class {v}" for v in values}}
    planted: dict[str, dict[str, Fault]] = {}
    for corpus, channels, names in (
        ("one", {"0": "MRI"}, labels),
        ("two", {"0": "T1", "1": "T2"}, labels),
        ("sparse", {"0": "MRI"}, {"0": "background", "1": "a", "5": "never", "200": "c"}),
    ):
        folder, items = root / corpus, {}
        (folder / "imagesTr").mkdir(parents=True)
        (folder / "labelsTr").mkdir()
        for i, fault in enumerate(f for f in faults if f.corpus == corpus):
            name = f"f{fault.number}-{i:02d}"
            source = pairs[i % len(pairs)]
            several = fault.corpus == "two" and fault.plant is not stacked
            site = Site(
                name,
                [folder / "imagesTr" / f"{name}{'_0000' if several else ''}.nii.gz"],
                folder / "labelsTr" / f"{name}.nii.gz",
            )
            shutil.copy(source[0], site.image)
            shutil.copy(source[1], site.label)
            fault.plant(site)
            items[name] = {
                "images": [str(p.relative_to(folder)) for p in site.images],
                "label": str(site.label.relative_to(folder)),
            }
            planted.setdefault(corpus, {})[name] = fault
        for hidden in ("imagesTr/._f1.nii.gz", "labelsTr/._f1.nii.gz", "imagesTr/.DS_Store"):
            (folder / hidden).write_bytes(b"\0\5\x16\7")
        spec = {
            "channel_names": channels,
            "labels": {n: int(v) for v, n in names.items()},
            "file_ending": ".nii.gz",
            "dataset": items,
        }
        (folder / "dataset.json").write_text(json.dumps(spec))
    return planted


def judge(case: str, fault: Fault, report: dict) -> tuple[bool, str]:
    """Whether the report says of a case what is expected and nothing else, and the line that says
    it.
    """

    def concerns(problem: dict) -> bool:
        return f"{case}" in problem["file"] or (fault.number == "26" and "never" in problem["what"])

    found = [p for p in report["problems"] if concerns(p)]
    lines = "; ".join(dict.fromkeys(f"{p['severity']}: {p['what']}" for p in found))
    if fault.expected == CLEAN:
        return not found, lines or "nothing found"
    if fault.expected == EMPTY:
        return not found and case in report["empty"], "listed as empty" if case in report[
            "empty"
        ] else lines
    good = (
        bool(found)
        and all(p["severity"] == fault.expected for p in found)
        and any(fault.words in p["what"] for p in found)
    )
    return good, lines or "nothing found"


def run_verify(folders: Sequence[Path], *extra: str) -> tuple[list[dict], int, float]:
    """`medjax verify --json` in its own process: reports, exit code, seconds."""
    started = time.perf_counter()
    command = harness.script("medjax.cli", "verify", *folders, "--json", "--quiet", *extra)
    done = subprocess.run([*LIKE_A_USER, *command], capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout), done.returncode, time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> int:
    """Plants, verifies, prints the table; 1 if anything differs from what is expected."""
    args = harness.parser(
        __doc__,
        data=harness.flag(type=Path),
        table=harness.flag(type=Path),
        clean=harness.flag((), type=Path, nargs="*"),
    ).parse_args(argv)
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as root:
        pairs = base_cases(args.data) if args.data else synthetic(Path(root) / "base")
        planted = plant_all(Path(root) / "planted", pairs)
        reports, code, seconds = run_verify([Path(root) / "planted" / corpus for corpus in planted])
        for report, cases in zip(reports, planted.values(), strict=True):
            for case, fault in cases.items():
                good, said = judge(case, fault, report)
                wrong += not good
                rows.append((fault, good, said))
    rows.sort(
        key=lambda row: (int("".join(c for c in row[0].number if c.isdigit())), row[0].number)
    )
    turned_ = [row for row in rows if row[0].number == "8"]
    shown = [row for row in rows if row[0].number != "8"]
    shown.append(
        (
            Fault("8", f"all {len(turned_)} axis orders", None, CLEAN),
            all(g for _, g, _ in turned_),
            "nothing found",
        )
    )
    shown.sort(
        key=lambda row: (int("".join(c for c in row[0].number if c.isdigit())), row[0].number)
    )
    cells = [
        [f.number, f.what, f.expected, "yes" if good else "**NO**", said] for f, good, said in shown
    ]
    lines = [harness.table(["no.", "planted", "expected", "as expected", "report"], cells)]
    total = (
        f"{len(rows) - wrong} of {len(rows)} planted variants as expected, exit code {code}, "
        f"{seconds:.1f} s"
    )
    lines += ["", total]
    if args.clean:
        clean, code, seconds = run_verify(args.clean)
        cells = []
        for report in clean:
            counts = [sum(p["severity"] == s for p in report["problems"]) for s in (ERROR, WARNING)]
            wrong += sum(counts)
            cells.append([report["corpus"], report["cases"], *counts])
        lines += ["", harness.table(["untouched data set", "cases", "errors", "warnings"], cells)]
        lines += ["", f"exit code {code}, {seconds:.1f} s"]
    print("\n".join(lines))
    if args.table:
        args.table.write_text("\n".join(lines) + "\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
