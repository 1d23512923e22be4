"""Process: full and read-only disks, planted links, replaced scans, damaged masks, loops and bombs
among the inputs.
"""

import gzip
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.attack import material as m
from benchmarks.attack.harness import (
    SOME_FAILED,
    USAGE,
    Said,
    Seen,
    Site,
    alone,
    fine,
    medjax,
    mounted,
    peak,
    refused,
    row,
)

NO_MOUNT = "mounting is not possible here"


def _listed(folder: Path) -> str:
    return f'echo LEFT; cd "{folder}"; find . -type f'


def _left(text: str) -> list[str]:
    return sorted(line.strip() for line in text.split("LEFT")[-1].splitlines() if line.strip())


def _predict(site: Site, out: Path, *more: object, prefix: Sequence[str]) -> Said:
    """`medjax predict` of the folder "in" in a process of its own, behind the words of `prefix`."""
    model, source = m.run(site), site.root / "in"
    return alone(site, "predict", "-m", model, "-i", source, "-o", out, *more, prefix=prefix)


def _masks(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("*.nii.gz"))


@row("P1", "predict --probabilities on a full disk", "fail", limit=120)
def full_disk(site: Site) -> Iterator[Seen]:
    m.scan(site.path("in", "a.nii.gz"), shape=(48, 48, 48))
    m.scan(site.path("in", "b.nii.gz"), shape=(8, 9, 8))
    out = site.root / "out"
    for variant, options in (("60 kB", "size=60k"), ("200 kB", "size=200k")):
        if (prefix := mounted(out, options, _listed(out))) is None:
            yield Seen(variant, None, NO_MOUNT)
            continue
        more = ("--probabilities", "--no-html", "--quiet")
        said = _predict(site, out, *more, prefix=prefix)
        left = _left(said.text)
        clean = "./b.nii.gz" in left and not any(p.startswith("./.") for p in left)
        yield refused(
            variant,
            said,
            "a failed",
            "space",
            codes=(SOME_FAILED,),
            also=clean,
            seen=f"left {left}",
        )


@row("P2", "predict into an existing folder of a read-only file system", "fail")
def read_only(site: Site) -> Iterator[Seen]:
    m.scan(site.path("in", "a.nii.gz"))
    out = site.root / "out"
    if (prefix := mounted(out, "size=1m", readonly=True)) is None:
        yield Seen("read-only", None, NO_MOUNT)
        return
    said = _predict(site, out, prefix=prefix)
    yield refused("predict", said, str(out), codes=(USAGE,))
    data = m.corpus(site.path("Task01_Toy"))
    said = alone(site, "prepare", data, "-o", out, "--workers", 1, prefix=prefix)
    yield refused("prepare", said, str(out), codes=(1, 2))


@row(
    "P3",
    "no inodes, output is a file, /dev/null/x, a new folder on a read-only file system",
    "pass",
)
def no_place(site: Site) -> Iterator[Seen]:
    m.scan(site.path("in", "a.nii.gz"))
    (file := site.path("file")).write_text("mine")
    for variant, out in (
        ("a file", file),
        ("below a file", file / "x"),
        ("/dev/null/x", Path("/dev/null/x")),
    ):
        yield refused(
            variant,
            m.predict(m.run(site), site.root / "in", out),
            str(out),
            codes=(1, 2),
            also=file.read_text() == "mine",
        )
    out = site.root / "out"
    for variant, options, place, readonly in (
        ("no inodes", "size=1m,nr_inodes=2", out, False),
        ("a new folder, read-only", "size=1m", out / "new", True),
    ):
        if (prefix := mounted(out, options, readonly=readonly)) is None:
            yield Seen(variant, None, NO_MOUNT)
            continue
        said = _predict(site, place, "--no-html", prefix=prefix)
        yield refused(variant, said, str(out), codes=(1, 2, 3))


@row("P4", "prepare on a full disk", "weak")
def full_store(site: Site) -> Iterator[Seen]:
    data, out = m.corpus(site.path("Task01_Toy"), n=6), site.root / "store"
    if (prefix := mounted(out, "size=90k", _listed(out))) is None:
        yield Seen("90 kB", None, NO_MOUNT)
        return
    said = alone(site, "prepare", data, "-o", out, "--workers", 1, prefix=prefix)
    whole = [p for p in _left(said.text) if p.endswith("case.json")]
    words = (str(out), "space", "Fix:")
    yield refused(
        "90 kB",
        said,
        *words,
        codes=(SOME_FAILED,),
        also=len(whole) > 0,
        seen=f"{len(whole)} cases whole",
    )


@row("P5", "a checkpoint on a full disk", "pass")
def full_checkpoint(site: Site) -> Iterator[Seen]:
    raw, run = m.trained(site)
    shutil.rmtree(run / "checkpoints" / "4")
    shutil.move(run / "store", site.root / "store")
    place = site.root / "disk"
    fill = (
        f'cp -r "{run}" "{place}/run" && head -c 100M /dev/zero > "{place}/fill" 2>/dev/null; '
        f'truncate -s -24k "{place}/fill"; '
    )
    if (prefix := mounted(place, "size=2m", f'echo LEFT; ls "{place}/run/checkpoints"')) is None:
        yield Seen("24 kB left", None, NO_MOUNT)
        return
    for variant, more in (
        ("a checkpoint", ("--config.train.validate_every=0",)),
        ("a checkpoint and the picture of the progress", ()),
    ):
        arguments = m.training(
            site, raw, place / "run", f"--config.data.store={site.root / 'store'}", *more
        )
        said = alone(
            site, *arguments, entry="medjax.main", prefix=[*prefix, "sh", "-c", fill + '"$@"', "sh"]
        )
        kept = "2" in _left(said.text) and said.has(
            "medjax: ", str(place), "Fix:"
        )  # orbax prints a traceback of its own
        yield Seen(variant, said.code == 1 and kept, f"{said}; steps {_left(said.text)}")


@row("P11", "a scan replaced under its name, predict --continue", "fail")
def replaced_scan(site: Site) -> Iterator[Seen]:
    scan, out = site.path("in", "a.nii.gz"), site.root / "out"
    m.scan(scan, seed=1)
    m.scan(site.path("in", "b.nii.gz"), seed=2)
    m.predict(m.run(site), site.root / "in", out)
    old, times = m.mask(out / "a.nii.gz"), scan.stat()
    said = m.predict(m.run(site), site.root / "in", out, "--continue")
    yield fine("nothing changed", said, "0 predicted, 2 complete")
    m.scan(scan, seed=7)
    os.utime(scan, ns=(times.st_atime_ns, times.st_mtime_ns))
    said = m.predict(m.run(site), site.root / "in", out, "--continue")
    m.predict(m.run(site), scan, site.root / "control")
    new, right = m.mask(out / "a.nii.gz"), m.mask(site.root / "control" / "a.nii.gz")
    ok = np.array_equal(new, right) and not np.array_equal(right, old)
    yield fine("another scan", said, "1 predicted, 1 complete", also=ok)


@row("P12", "a finished mask damaged, predict --continue", "weak")
def damaged_mask(site: Site) -> Iterator[Seen]:
    scan, out = m.scan(site.path("in", "a.nii.gz")), site.root / "out"
    more = ("--one-file-per-class", "--probabilities")
    m.predict(m.run(site), scan, out, *more)
    for name in ("a.nii.gz", "a/organ.nii.gz", "a_prob.npz"):
        whole = (out / name).read_bytes()
        content = bytearray(whole)
        content[len(content) // 2] ^= 0xFF
        (out / name).write_bytes(content)
        said = m.predict(m.run(site), scan, out, *more, "--continue")
        yield fine(f"one byte of {name}", said, also=(out / name).read_bytes() == whole)


@row("P13", "links planted under temporary names", "weak")
def planted_links(site: Site) -> Iterator[Seen]:
    victim, out, pid = site.path("victim.txt"), site.path("out", "x").parent, os.getpid()
    out.mkdir(exist_ok=True)
    m.scan(site.path("in", "a.nii.gz"))
    names = (
        "report.html",
        "run.json",
        "statistics.csv",
        "summary.json",
        "cases.csv",
        "table.md",
        "m.medjax",
        "a.json",
        "config.json",
    )

    def plant(folder: Path) -> None:
        victim.write_text("mine")
        for name in names:
            for text in (
                f".{name}.{pid}.tmp",
                f".{name}.{pid}",
                f"{name}.{pid}.tmp",
                f".{name}.{pid}.png",
            ):
                with_link = folder / text
                with_link.unlink(missing_ok=True)
                with_link.symlink_to(victim)

    plant(out)
    said = medjax("predict", "-m", m.run(site), "-i", site.root / "in", "-o", out, "--statistics")
    yield fine("predict", said, also=victim.read_bytes() == b"mine")
    plant(out)
    yield fine(
        "export",
        medjax("export", m.run(site), "-o", out / "m.medjax"),
        also=victim.read_bytes() == b"mine",
    )
    plant(scored := site.path("scored", "x").parent)
    masks = site.path("masks", "a.nii.gz")
    m.make_raw.save(masks, m.image(0)[1])
    (site.root / "masks" / "dataset.json").write_text(
        '{"labels": {"background": 0, "organ": 1, "tumour": 2}, "channel_names": {"0": "CT"}}'
    )
    arguments = (
        "--labels",
        site.root / "masks" / "dataset.json",
        "-o",
        scored,
        "--resamples",
        20,
        "--quiet",
    )
    said = medjax("evaluate", "--reference", masks.parent, "--prediction", masks.parent, *arguments)
    yield Seen("evaluate", victim.read_bytes() == b"mine" and not said.raw, str(said))
    plant(run := site.path("run", "x").parent)
    m.make_run(run)
    yield Seen("documents of a run", victim.read_bytes() == b"mine", repr(victim.read_bytes()[:40]))


@row("P14", "links that lead to themselves among the inputs", "fail")
def loops(site: Site) -> Iterator[Seen]:
    for case in "ac":
        m.scan(site.path("in", f"{case}.nii.gz"))
    (site.root / "in" / "b.nii.gz").symlink_to("b.nii.gz")
    said = m.predict(m.run(site), site.root / "in", site.root / "out")
    masks = _masks(site.root / "out")
    yield refused(
        "a link to itself",
        said,
        "b",
        codes=(SOME_FAILED,),
        also=masks == ["a.nii.gz", "c.nii.gz"],
        seen=str(masks),
    )
    (site.root / "in" / "b.nii.gz").unlink()
    (site.root / "in" / "d.nii.gz").symlink_to("e.nii.gz")
    (site.root / "in" / "e.nii.gz").symlink_to("d.nii.gz")
    (site.root / "in" / "f.nii.gz").symlink_to("gone.nii.gz")
    said = m.predict(m.run(site), site.root / "in", site.root / "out2")
    masks = _masks(site.root / "out2")
    yield refused(
        "two links in a circle, a broken one",
        said,
        codes=(SOME_FAILED,),
        also=masks == ["a.nii.gz", "c.nii.gz"],
        seen=str(masks),
    )


@row("P15", "a gzip bomb among the inputs", "weak")
def gzip_bomb(site: Site) -> Iterator[Seen]:
    m.scan(site.path("in", "a.nii.gz"))
    header = nib.Nifti1Header()
    header.set_data_shape((20, 20, 20))
    header.set_data_dtype(np.int16)
    header.set_sform(np.eye(4), 1)
    head = bytes(header.binaryblock) + bytes(4)
    head = head[:108] + struct.pack("<f", 352.0) + head[112:344] + b"n+1\0" + bytes(4)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    body = first + piece * 3000 + packer.flush(zlib.Z_FINISH)
    bomb = site.path("in", "b.nii.gz")
    bomb.write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + body + bytes(8))
    with peak() as used:
        said = m.predict(m.run(site), site.root / "in", site.root / "out")
        gib = used()
    ok = gib < 1 and (site.root / "out" / "a.nii.gz").exists()
    yield refused(
        "3 GB behind a small header",
        said,
        str(bomb),
        codes=(SOME_FAILED,),
        also=ok,
        seen=f"{gib:.1f} GiB, {said.seconds:.0f} s",
    )
    whole = gzip.compress(
        head[:40] + struct.pack("<8h", 3, 20000, 20000, 20000, 1, 1, 1, 1) + head[56:], 1
    )
    bomb.write_bytes(whole)
    with peak() as used:
        said = m.predict(m.run(site), site.root / "in", site.root / "out2")
        gib = used()
    yield refused(
        "a header of 15 TB",
        said,
        str(bomb),
        codes=(SOME_FAILED,),
        also=gib < 1,
        seen=f"{gib:.1f} GiB",
    )


@row("P16", "few open files, small files", "pass")
def limits(site: Site) -> Iterator[Seen]:
    m.scan(site.path("in", "a.nii.gz"))
    for i, limit in enumerate(("ulimit -n 24", "ulimit -f 2000")):
        prefix = ["sh", "-c", f'{limit}; exec "$@"', "sh"]
        out = site.root / f"out{i}"
        said = _predict(site, out, "--no-html", prefix=prefix)
        yield fine(limit, said, also=(out / "a.nii.gz").exists())
