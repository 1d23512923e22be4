"""Inputs, scans: units, spacings, headers that lie, values beyond sense, names of every kind."""

import gzip
import json
import os
import shutil
import struct
import sys
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.attack import material as m
from benchmarks.attack.harness import SOME_FAILED, Seen, Site, fine, medjax, refused, row
from benchmarks.damage import patch
from medjax.labels import Corpus

SIDE = (20, 22, 24)
FLOAT_MAX = 3e38


def _control(site: Site) -> np.ndarray:
    m.scan(site.path("control", "a.nii.gz"), shape=SIDE)
    m.predict(m.run(site), site.root / "control", site.root / "control-out")
    return m.mask(site.root / "control-out" / "a.nii.gz")


def _units(path: Path, code: int, factor: float) -> None:
    """States other units; the affine holds the same lengths in them."""
    image = nib.load(path)
    affine = np.diag([factor, factor, factor, 1.0]) @ image.affine
    new = nib.Nifti1Image(np.asarray(image.dataobj), affine)
    new.set_qform(affine, 1)
    new.set_sform(affine, 1)
    new.header["xyzt_units"] = code
    nib.save(new, path)


@row("I1", "affines in metres and microns", "fail")
def units(site: Site) -> Iterator[Seen]:
    right = _control(site)
    for variant, code, factor in (("metre", 1, 1e-3), ("micron", 3, 1e3)):
        path = m.scan(site.path(variant, "a.nii.gz"), shape=SIDE)
        _units(path, code, factor)
        said = m.predict(m.run(site), path, site.root / f"{variant}-out", "--statistics")
        mask = site.root / f"{variant}-out" / "a.nii.gz"
        ok = mask.exists() and np.array_equal(m.mask(mask), right) and right.any()
        yield Seen(
            f"predict, {variant}",
            not said.raw and (ok or said.code == SOME_FAILED),
            f"{said}; the control's mask: {ok}",
        )
        if ok:
            told = json.loads((site.root / f"{variant}-out" / "a.json").read_text())["classes"][
                "organ"
            ]
            yield Seen(
                f"volume, {variant}",
                abs(told["volume_ml"] - told["voxels"] / 1000) < 1e-3,
                str(told),
            )
        data = m.corpus(site.path(f"{variant}-data", "Task01_Toy"))
        for file in data.rglob("*.nii.gz"):
            _units(file, code, factor)
        said = medjax("prepare", data, "-o", site.root / f"{variant}-store", "--workers", 1)
        cases = list((site.root / f"{variant}-store").rglob("case.json"))
        spacing = json.loads(cases[0].read_text())["spacing_mm"] if cases else []
        ok = (said.code == 0 and np.allclose(spacing, 1)) or said.code not in (0, None)
        yield Seen(f"prepare, {variant}", ok and not said.raw, f"{said}; spacing {spacing}")


@row("I2", "spacings of 1000 mm and 1 micron", "weak")
def spacings(site: Site) -> Iterator[Seen]:
    for variant, spacing in (("1000 mm", 1000.0), ("1 micron", 1e-3)):
        path = m.scan(site.path(variant, "a.nii.gz"), shape=SIDE, spacing_mm=(spacing,) * 3)
        said = m.predict(m.run(site), path, site.root / f"{variant}-out")
        yield Seen(variant, not said.raw and said.has("spacing"), str(said))


def _written(path: Path, array: np.ndarray, **header) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array.T, np.eye(4), dtype=array.dtype)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


@row("I3", "data that is longer than the header says", "weak")
def left_over(site: Site) -> Iterator[Seen]:
    good = m.scan(site.path("good.nii.gz"), shape=SIDE)
    raw = bytearray(gzip.decompress(good.read_bytes()))
    short = bytearray(raw)
    short[42:48] = struct.pack("<3h", 20, 20, 18)
    for variant, content in (
        ("header dims smaller", bytes(short)),
        ("two scans in one file", bytes(raw + raw)),
        ("1000 more", bytes(raw) + b"\7" * 1000),
    ):
        path = site.path(variant, "in", "a.nii.gz")
        path.write_bytes(gzip.compress(content, 1))
        said = m.predict(m.run(site), path, site.root / variant / "out")
        warned = (
            said.has("byte")
            or said.has("larger than its header")
            or said.has("longer than its header")
        )
        yield Seen(f"predict, {variant}", warned and not said.raw, str(said))


def _mr_run(site: Site) -> Path:
    """A run whose scans are normalised by their own mean and deviation."""
    return m.make_run(site.path("mr"), (Corpus("Toy", m.ORGANS.labels, channels=("MRI",)),))


@row("I4", "one voxel beyond all others", "weak")
def outliers(site: Site) -> Iterator[Seen]:
    run = _mr_run(site)
    array = m.image(0, SIDE)[0]
    for variant, value, kind in (("3e38", FLOAT_MAX, np.float32), ("2^64-1", 2**64 - 1, np.uint64)):
        spoilt = array.astype(kind)
        spoilt[3, 3, 3] = value
        path = _written(site.path(variant, "a.nii.gz"), spoilt)
        said = m.predict(run, path, site.root / f"{variant}-out")
        yield Seen(
            variant, not said.raw and (said.has("warning") or said.code == SOME_FAILED), str(said)
        )


def _spoilt(
    site: Site, variants: dict[str, Callable[[Path], object]], *words: str
) -> Iterator[Seen]:
    """Each variant in one call with a sound scan, which must be predicted."""
    for i, (variant, change) in enumerate(variants.items()):
        m.scan(site.path(str(i), "sound.nii.gz"), shape=SIDE)
        bad = m.scan(site.path(str(i), "bad.nii.gz"), shape=SIDE)
        change(bad)
        said = m.predict(m.run(site), site.root / str(i), site.root / f"o{i}")
        sound = (site.root / f"o{i}" / "sound.nii.gz").exists()
        yield refused(variant, said, "bad", *words, codes=(SOME_FAILED,), also=sound)


@row("I5", "vox_offset that is no number", "weak")
def offsets(site: Site) -> Iterator[Seen]:
    variants = {
        str(v): (lambda p, v=v: patch(p, 108, struct.pack("<f", v)))
        for v in (float("nan"), float("inf"), -1e30, 1e30)
    }
    yield from _spoilt(site, variants)


@row("I6", "float128 and binary voxels", "weak")
def datatypes(site: Site) -> Iterator[Seen]:
    yield from _spoilt(
        site, {"float128": lambda p: patch(p, 70, struct.pack("<2h", 1536, 128))}, "128"
    )
    for seen in _spoilt(site, {"1 bit": lambda p: patch(p, 70, struct.pack("<2h", 1, 1))}):
        yield Seen(seen.variant, seen.ok and "RGB" not in seen.seen, seen.seen)


@row("I7", "a folder named x.nii.gz", "weak")
def folder_as_scan(site: Site) -> Iterator[Seen]:
    m.scan(site.path("in", "a.nii.gz"))
    (site.root / "in" / "x.nii.gz").mkdir()
    said = m.predict(m.run(site), site.root / "in", site.root / "out")
    ok = (site.root / "out" / "a.nii.gz").exists()
    yield refused("among others", said, codes=(0, SOME_FAILED), also=ok and not said.has("pydicom"))
    for variant, hidden in (("alone", {}), ("alone, without pydicom", {"pydicom": None})):
        with unittest.mock.patch.dict(sys.modules, hidden):
            said = m.predict(m.run(site), site.root / "in" / "x.nii.gz", site.root / "out2")
        yield refused(
            variant, said, "x.nii.gz", "folder", codes=(1, 2, 3), also=not said.has("pydicom")
        )


@row("I8", "fixes named in messages: --frame, --replace-nan", "fail")
def fixes(site: Site) -> Iterator[Seen]:
    array = m.image(0, SIDE, "CT")[0]
    frames = np.stack([np.full_like(array, -100), array], -1)
    path = site.path("in", "a.nii.gz")
    m.make_raw.save(path, frames)
    said = m.predict(m.run(site), path, site.root / "o1")
    yield refused("a 4D file", said, "--frame", codes=(SOME_FAILED,))
    said = m.predict(m.run(site), path, site.root / "o2", "--frame", 1)
    m.make_raw.save(site.path("one", "a.nii.gz"), array)
    m.predict(m.run(site), site.root / "one", site.root / "o3")
    mask = site.root / "o2" / "a.nii.gz"
    right = mask.exists() and np.array_equal(
        m.mask(mask).squeeze(), m.mask(site.root / "o3" / "a.nii.gz").squeeze()
    )
    yield fine("--frame 1", said, also=right)
    yield refused("--frame 7", m.predict(m.run(site), path, site.root / "o4", "--frame", 7))
    spoilt = array.copy()
    spoilt[2, 2, 2] = np.nan
    m.make_raw.save(site.path("nan", "a.nii.gz"), spoilt)
    yield refused(
        "NaN",
        m.predict(m.run(site), site.root / "nan", site.root / "o5"),
        "--replace-nan",
        codes=(SOME_FAILED,),
    )
    said = m.predict(m.run(site), site.root / "nan", site.root / "o6", "--replace-nan", 0)
    yield fine("--replace-nan 0", said, also=(site.root / "o6" / "a.nii.gz").exists())


@row("I9", "a case name of 240 letters", "weak")
def long_name(site: Site) -> Iterator[Seen]:
    for length in (240, 248):
        name = "n" * length
        path = m.scan(site.path(str(length), "in", f"{name}.nii"[:255]), shape=SIDE)
        said = m.predict(m.run(site), path, site.root / str(length) / "out")
        yield Seen(
            f"predict, {length}", not said.raw and (said.code == 0 or length > 240), str(said)
        )
    data = m.corpus(site.path("Task01_Toy"))
    for folder in ("imagesTr", "labelsTr"):
        (data / folder / "case_000.nii.gz").rename(data / folder / f"{'n' * 240}.nii.gz")
    name = "n" * 240
    m.edit(
        data / "dataset.json",
        lambda s: s["training"][0].update(
            image=f"./imagesTr/{name}.nii.gz", label=f"./labelsTr/{name}.nii.gz"
        ),
    )
    yield fine("prepare, 240", medjax("prepare", data, "-o", site.root / "store", "--workers", 1))


@row("I10", "a file name that is not UTF-8", "weak")
def not_utf8(site: Site) -> Iterator[Seen]:
    m.scan(site.path("in", "a.nii.gz"))
    shutil.copy(site.root / "in" / "a.nii.gz", os.fsencode(site.root / "in") + b"/b\xff\xe9.nii.gz")
    said = medjax(
        "predict",
        "-m",
        m.run(site),
        "-i",
        site.root / "in",
        "-o",
        site.root / "out",
        "--statistics",
    )
    masks = list((site.root / "out").glob("*.nii.gz"))
    yield fine(
        "masks and report.html",
        said,
        also=len(masks) == 2 and (site.root / "out" / "report.html").exists(),
        seen=f"{len(masks)} masks",
    )


@row("I11", "names that shells, tables and other systems mind", "pass")
def odd_names(site: Site) -> Iterator[Seen]:
    names = ("-rf", "line\nbreak", "=cmd", "<script>", "[x]*?", "CON", "A", "a")
    for name in names:
        m.scan(site.path("in", f"{name}.nii.gz"))
    said = m.predict(m.run(site), site.root / "in", site.root / "out")
    found = {p.name for p in (site.root / "out").glob("*.nii.gz")}
    yield fine(
        "8 names", said, also=found == {f"{n}.nii.gz" for n in names}, seen=str(sorted(found))
    )


@row("I12", "equal names in two folders", "pass")
def equal_names(site: Site) -> Iterator[Seen]:
    for folder in "ab":
        m.scan(site.path(folder, "x.nii.gz"))
    words = (
        "predict",
        "-m",
        m.run(site),
        "-i",
        site.root / "a",
        site.root / "b",
        "-o",
        site.root / "out",
        "--no-html",
    )
    said = medjax(*words)
    yield fine("told apart", said, also=len(list((site.root / "out").glob("*.nii.gz"))) == 2)


@row("I13", "odd but sound headers", "pass")
def sound_headers(site: Site) -> Iterator[Seen]:
    right = _control(site)
    good = site.root / "control" / "a.nii.gz"
    image = nib.load(good)
    array = np.asarray(image.dataobj)
    variants: dict[str, Callable[[Path], object]] = {
        "4D, one frame": lambda p: nib.save(
            nib.Nifti1Image(array[..., None], image.affine, image.header), p
        ),
        "5D, one frame": lambda p: nib.save(
            nib.Nifti1Image(array[..., None, None], image.affine, image.header), p
        ),
        "int64": lambda p: nib.save(
            nib.Nifti1Image(array.astype(np.int64), image.affine, dtype=np.int64), p
        ),
        "NIfTI-2": lambda p: nib.save(nib.Nifti2Image(array, image.affine), p),
        "slope 0": lambda p: patch(p, 112, struct.pack("<2f", 0, 5)),
        "slope NaN": lambda p: patch(p, 112, struct.pack("<2f", *[np.nan] * 2)),
        "codes 99": lambda p: patch(p, 252, struct.pack("<2h", 99, 1)),
        "NaN quaternion": lambda p: patch(p, 256, struct.pack("<3f", *[np.nan] * 3)),
        "zeros after the data": lambda p: p.write_bytes(
            gzip.compress(gzip.decompress(p.read_bytes()) + bytes(64))
        ),
        "two gzip members": lambda p: p.write_bytes(_two_members(p)),
    }
    for i, (variant, change) in enumerate(variants.items()):
        path = m.copied(good, site.path(str(i), "a.nii.gz"))
        change(path)
        said = m.predict(m.run(site), path, site.root / f"o{i}")
        mask = site.root / f"o{i}" / "a.nii.gz"
        yield fine(
            variant, said, also=mask.exists() and np.array_equal(m.mask(mask).squeeze(), right)
        )


def _two_members(path: Path) -> bytes:
    content = gzip.decompress(path.read_bytes())
    return gzip.compress(content[:5000]) + gzip.compress(content[5000:])


@row("I14", "headers that cannot be used", "pass")
def unusable_headers(site: Site) -> Iterator[Seen]:
    def dims(*values: int) -> Callable[[Path], None]:
        return lambda p: patch(p, 40, struct.pack("<8h", *values))

    yield from _spoilt(
        site,
        {
            "dims 0": dims(3, 0, 22, 20, 1, 1, 1, 1),
            "negative": dims(3, -24, 22, 20, 1, 1, 1, 1),
            "9 axes": dims(9, 24, 22, 20, 1, 1, 1, 1),
            "RGBA": lambda p: patch(p, 70, struct.pack("<2h", 2304, 32)),
            "datatype 777": lambda p: patch(p, 70, struct.pack("<2h", 777, 16)),
            "slope 3e38": lambda p: patch(p, 112, struct.pack("<2f", FLOAT_MAX, 0)),
            "gzip in gzip": lambda p: p.write_bytes(gzip.compress(p.read_bytes())),
            "empty": lambda p: p.write_bytes(b""),
            "bzip2": lambda p: p.write_bytes(b"BZh91AY&SY" + bytes(400)),
            "cut": lambda p: p.write_bytes(p.read_bytes()[:-300]),
            "magic of .hdr": lambda p: patch(p, 344, b"ni1\0"),
            "zero sform": lambda p: patch(p, 252, struct.pack("<2h", 0, 1) + bytes(72)),
        },
    )


@row("I15", "scans without contrast", "pass")
def no_contrast(site: Site) -> Iterator[Seen]:
    for variant, change in (
        ("all zero", lambda a: a * 0),
        ("all air", lambda a: a * 0 - 1000),
        ("constant", lambda a: a * 0 + 7),
    ):
        path = _written(
            site.path(variant, "a.nii.gz"), change(m.image(0, SIDE, "CT")[0]).astype(np.float32)
        )
        said = m.predict(
            _mr_run(site) if not (site.root / "mr").exists() else site.root / "mr",
            path,
            site.root / f"{variant}-out",
        )
        yield Seen(
            variant,
            not said.raw and said.has("warning") and said.code in (0, SOME_FAILED),
            str(said),
        )
