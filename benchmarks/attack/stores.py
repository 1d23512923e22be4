"""Models and stores: damage, edits and races in run folders, checkpoints, prepared volumes and
exports.
"""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.attack import material as m
from benchmarks.attack.harness import (
    USAGE,
    Seen,
    Site,
    alone,
    fine,
    medjax,
    mounted,
    refused,
    row,
    start,
    train,
    wait,
)
from tests.support.raw import save

LIMIT_OF_LOCK = 20


def _flip(path: Path, place: int | None = None, count: int = 2) -> None:
    content = bytearray(path.read_bytes())
    place = len(content) // 2 if place is None else place
    for i in range(place, min(place + count, len(content))):
        content[i] ^= 0x55
    path.write_bytes(content)


def _arrays(run: Path) -> list[Path]:
    """Files with the numbers of the parameters of the newest step."""
    step = max(
        (p for p in (run / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name)
    )
    found = [p for p in (step / "params").rglob("*") if p.is_file() and p.parent.name == "d"]
    return sorted(found, key=lambda p: -p.stat().st_size)


@row("M1", "flipped bytes in a checkpoint's arrays", "fail")
def flipped_checkpoint(site: Site) -> Iterator[Seen]:
    m.scan(site.path("in", "a.nii.gz"))
    m.predict(m.run(site), site.root / "in", site.root / "control")
    control, dice = m.mask(site.root / "control" / "a.nii.gz"), random.Random(0)
    for i in range(8):
        run = m.copied(m.run(site), site.path(f"r{i}"))
        for path in _arrays(run):
            _flip(path, dice.randrange(path.stat().st_size - 2))
        said = m.predict(run, site.root / "in", site.root / f"o{i}")
        mask = site.root / f"o{i}" / "a.nii.gz"
        same = said.code == 0 and mask.exists() and np.array_equal(m.mask(mask), control)
        yield refused(f"two bytes, {i}", said, codes=(0, 1, 2), also=same or said.code != 0)
    source = m.copied(m.run(site), site.path("edited"))
    _rewrite_params(source)
    yield refused(
        "other arrays of the same shapes", m.predict(source, site.root / "in", site.root / "oe")
    )


def _rewrite_params(run: Path) -> None:
    """Puts the arrays of another checkpoint under the facts of this one."""
    other = m.make_run(run.with_name("other"), seed=11)
    step = next(p.name for p in (run / "checkpoints").iterdir() if p.name.isdigit())
    shutil.rmtree(run / "checkpoints" / step / "params")
    shutil.copytree(other / "checkpoints" / step / "params", run / "checkpoints" / step / "params")


@row("M2", "damaged volumes of a store", "fail")
def damaged_store(site: Site) -> Iterator[Seen]:
    raw, run = m.trained(site)

    def label(case: Path) -> None:
        file = next((case / "label.zarr" / "c").rglob("0/0/0"))
        content = bytearray(file.read_bytes())
        content[::3] = b"\xc8" * len(content[::3])
        file.write_bytes(content)

    def image(case: Path) -> None:
        file = next((case / "image.zarr" / "c").rglob("0/0/0/0"))
        file.write_bytes(os.urandom(file.stat().st_size))

    def byte(case: Path) -> None:
        _flip(next((case / "image.zarr" / "c").rglob("0/0/0/0")), count=1)

    for variant, damage in (
        ("every third label is 200", label),
        ("random image", image),
        ("one byte", byte),
    ):
        store = m.copied(run / "store", site.path(variant, "store"))
        for case in (store / "Toy").iterdir():
            damage(case)
        said = m.again(site, raw, site.root / variant / "new", f"--config.data.store={store}")
        again = said.code == 0 and said.has("prepared again")
        yield refused(variant, said, codes=(0, 1, 2, 3), also=again or said.code != 0)


@row("M3", "flips and removals beside the arrays of a checkpoint", "pass")
def damaged_facts(site: Site) -> Iterator[Seen]:
    m.scan(site.path("in", "a.nii.gz"))
    m.predict(m.run(site), site.root / "in", site.root / "control")
    control = m.mask(site.root / "control" / "a.nii.gz")
    names = ("manifest.ocdbt", "_METADATA", "array_metadatas", "_CHECKPOINT_METADATA", "_sharding")
    for i, name in enumerate(names):
        for kind in ("flip", "remove"):
            run = m.copied(m.run(site), site.path(f"{kind}{i}"))
            for path in [p for p in (run / "checkpoints").rglob(name)]:
                if kind == "remove":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                else:
                    for file in (
                        [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
                    ):
                        _flip(file)
            said = m.predict(run, site.root / "in", site.root / f"o{kind}{i}")
            mask = site.root / f"o{kind}{i}" / "a.nii.gz"
            same = said.code == 0 and np.array_equal(m.mask(mask), control)
            found = refused(
                f"{kind} {name}", said, codes=(1, 2)
            )  # or harmless, whatever orbax logs of it
            yield dataclasses.replace(found, ok=same or found.ok)


def _documents(
    site: Site, base: Path, variants: dict[str, Callable[[Path], object]]
) -> Iterator[Seen]:
    m.scan(site.path("in", "a.nii.gz"))
    for i, (variant, change) in enumerate(variants.items()):
        change(run := m.copied(base, site.path(f"run{i}")))
        yield refused(variant, m.predict(run, site.root / "in", site.root / f"o{i}"))


@row("M4", "documents of a run that do not fit its weights", "pass")
def unfitting_documents(site: Site) -> Iterator[Seen]:
    more = {"names": lambda s: s["corpora"][0]["labels"].append([3, ["liver"]])}

    def class_too_many(run: Path) -> None:
        def add(space: dict) -> None:
            space["classes"].append("liver")
            space["precedence"].append("liver")
            more["names"](space)
            space["corpora"][0]["annotated"].append("liver")
            space["names"][0]["liver"] = "liver"

        m.edit(run / "labels.json", add)

    yield from _documents(
        site,
        m.run(site),
        {
            "another width": lambda r: m.edit(
                r / "config.json", lambda c: c["model"].update(features=[4, 6])
            ),
            "an unknown argument": lambda r: m.edit(
                r / "config.json", lambda c: c["model"].update(colour="red")
            ),
            "truncated": lambda r: (r / "config.json").write_bytes(
                (r / "config.json").read_bytes()[:200]
            ),
            "a class too many": class_too_many,
        },
    )


@row("M5", "documents of a run that are empty", "weak")
def empty_documents(site: Site) -> Iterator[Seen]:
    variants = {}
    for name in ("config.json", "labels.json", "plan.json"):
        for content in ("{}", "[]", "null", '{"train": 5}', "[" * 100_000, "\xff"):
            variants[f"{name} = {content[:12]}"] = lambda r, name=name, content=content: (
                r / name
            ).write_bytes(content.encode("latin-1"))
    yield from _documents(site, m.run(site), variants)


@row("M6", "edited documents of a trained run", "weak")
def edited_documents(site: Site) -> Iterator[Seen]:
    _, run = m.trained(site)

    def swapped(path: Path) -> None:
        text = path.read_text()
        path.write_text(
            text.replace("organ", "\0").replace("tumour", "organ").replace("\0", "tumour")
        )

    def coarser(plan: dict) -> None:
        plan["spacing_mm"] = {k: [3.0, 3.0, 3.0] for k in plan["spacing_mm"]}

    yield from _documents(
        site,
        run,
        {
            "names swapped": lambda r: swapped(r / "labels.json"),
            "spacing of 3 mm": lambda r: m.edit(r / "plan.json", coarser),
            "softmax": lambda r: m.edit(
                r / "config.json", lambda c: c["infer"].update(activation="softmax")
            ),
        },
    )
    yield fine("as trained", m.predict(run, site.root / "in", site.root / "whole"))


@row("M7", "an unknown way to normalise in plan.json", "weak")
def unknown_scheme(site: Site) -> Iterator[Seen]:
    data = m.corpus(site.path("Task01_Toy"))
    medjax("plan", data, "-o", site.root / "plan.json", "--quiet", "--workers", 1)
    scan = m.scan(site.path("in", "a.nii.gz"))
    maps, scales = {}, {}
    for scheme in ("nonorm", "noNorm", "zzz", "", "z-score", 5):

        def change(plan: dict, scheme=scheme) -> None:
            for intensity in plan["intensity"].values():
                intensity["scheme"] = scheme

        plan = m.copied(site.root / "plan.json", site.root / f"plan-{scheme!r}.json")
        m.edit(plan, change)
        store, out = site.root / f"s{scheme!r}", site.root / f"o{scheme!r}"
        said = medjax("prepare", data, "-o", store, "--plan", plan, "--workers", 1, "--quiet")
        path = m.rewritten(
            m.archive(site), site.path(f"x{scheme}.medjax"), {"plan.json": m.edited(change)}
        )
        used = m.predict(path, scan, out)
        if (
            str(scheme).lower() == "nonorm" and said.code == used.code == 0
        ):  # in any case of letters it may be honoured
            case = json.loads((store / "Toy" / "case_000" / "case.json").read_text())
            scales[scheme], maps[scheme] = (case["scale"], case["offset"]), m.mask(out / "a.nii.gz")
            same = scales[scheme] == scales["nonorm"] and np.array_equal(
                maps[scheme], maps["nonorm"]
            )
            yield Seen(f"{scheme!r} is honoured", same, f"scale and offset {scales[scheme]}")
            continue
        yield refused(f"prepare, {scheme!r}", said, str(scheme))
        yield refused(f"archive, {scheme!r}", used, str(scheme), path.name)


@row("M8", "a learning rate of a million", "pass")
def exploding(site: Site) -> Iterator[Seen]:
    data, steps = (
        m.corpus(site.path("Task01_Toy"), n=4),
        ("--config.train.steps=12", "--config.train.validate_every=0"),
    )
    said = train(
        *m.training(
            site,
            data,
            site.root / "run",
            "--config.optim.lr=1e12",
            "--config.optim.clip_norm=0.0",
            *steps,
        )
    )
    yield refused("lr 1e12 without clipping", said, "nan", "learning rate")


@row("M9", "two trainings of one run folder, two preparations of one store", "weak")
def two_trainings(site: Site) -> Iterator[Seen]:
    data, run, log = m.corpus(site.path("Task01_Toy"), n=4), site.root / "run", site.path("log.txt")
    steps = (
        "--config.train.steps=1000000",
        "--config.train.checkpoint_every=1000000",
        "--config.train.validate_every=0",
    )
    arguments = m.training(site, data, run, *steps)
    first = start(*arguments, entry="medjax.main", log=log)
    try:
        ends = time.monotonic() + 60
        while (
            not (run / "metrics.jsonl").exists()
            and first.poll() is None
            and time.monotonic() < ends
        ):
            time.sleep(0.1)
        said = alone(site, *arguments, entry="medjax.main", limit=25)
        yield refused(
            "the second training", said, str(first.pid), codes=(USAGE,), also=first.poll() is None
        )
    finally:
        first.send_signal(signal.SIGTERM)
        said = wait(first, log, 30)
    yield refused("the first training after SIGTERM", said, codes=(75,))
    left = [p.name for p in run.iterdir() if "lock" in p.name]
    yield Seen("no lock is left", not left, str(left))
    yield from _waiting(site, data)
    yield from _stale(site, data)


def _waiting(site: Site, data: Path) -> Iterator[Seen]:
    """A preparation of a store that this process holds."""
    from medjax import locks

    (held_folder := (store := site.root / "store") / "Toy").mkdir(
        parents=True
    )  # the lock is that of the corpus' folder
    log = site.path("prepare.txt")
    with contextlib.ExitStack() as held:
        held.enter_context(locks.lock(held_folder, "an attack"))
        process = start("prepare", data, "-o", store, "--workers", 1, log=log)
        ends = time.monotonic() + LIMIT_OF_LOCK
        while (
            b"waiting" not in log.read_bytes()
            and process.poll() is None
            and time.monotonic() < ends
        ):
            time.sleep(0.05)
        told = b"waiting" in log.read_bytes()
    said = wait(process, log, 30)
    yield fine(
        "a preparation waits for a store in use", said, "waiting", str(os.getpid()), also=told
    )


def _stale(site: Site, data: Path) -> Iterator[Seen]:
    """Locks of processes that have ended."""
    from medjax import locks

    path = site.root / "store" / "Toy" / locks.LOCK
    with locks.lock(site.root / "store" / "Toy", "an attack"):
        mine = path.read_text()
    holder = json.loads(mine)
    for variant, change in (
        ("an ended process", {"pid": 2**22 - 7}),
        ("another boot", {"boot": "x"}),
    ):
        path.write_text(json.dumps(holder | change))
        said = medjax("prepare", data, "-o", site.root / "store", "--workers", 1, "--quiet")
        yield fine(f"the lock of {variant}", said, also=not path.exists())


@row("M10", "a raw image replaced after the training, train again", "pass")
def replaced_raw(site: Site) -> Iterator[Seen]:
    raw, run = m.trained(site)
    shutil.rmtree(run / "checkpoints" / "4")  # so that the training would go on
    before = (run / "metrics.jsonl").read_bytes()
    name = json.loads((run / "splits_final.json").read_text())[0]["train"][0].rpartition("/")[2]
    save(raw / "imagesTr" / f"{name}.nii.gz", m.image(9, (10, 11, 12))[0])
    said = m.again(site, raw, run)
    yield refused(
        "an image of another shape", said, name, also=(run / "metrics.jsonl").read_bytes() == before
    )
    yield fine(
        "the run still predicts", m.predict(run, m.scan(site.path("a.nii.gz")), site.root / "o")
    )


@row("M11", "raw data gone, evaluate", "pass")
def raw_gone(site: Site) -> Iterator[Seen]:
    raw, run = m.trained(site)
    shutil.rmtree(raw)
    yield refused(
        "--mode=evaluate", m.again(site, raw, run, "--mode=evaluate"), str(raw), codes=(USAGE,)
    )


@row("M12", "a raw label changed with the same size and time", "weak")
def unseen_change(site: Site) -> Iterator[Seen]:
    data = m.corpus(site.path("Task01_Toy"))
    path = data / "labelsTr" / "case_000.nii"
    nib.save(nib.load(data / "labelsTr" / "case_000.nii.gz"), path)
    m.edit(
        data / "dataset.json", lambda s: s["training"][0].update(label="./labelsTr/case_000.nii")
    )
    arguments = ("prepare", data, "-o", site.root / "store", "--workers", 1, "--quiet")
    medjax(*arguments)
    times, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:352] + content[352:].replace(b"\x02", b"\x01"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    said = medjax(*arguments)
    voxels = json.loads((site.root / "store" / "Toy" / "case_000" / "case.json").read_text())[
        "voxels"
    ]
    from benchmarks.attack.harness import REPOSITORY

    page = (REPOSITORY / "docs" / "prepare.md").read_text().lower()
    documented = "--force" in page and (
        "same size" in page or "size and time" in page or "size and modification time" in page
    )
    yield fine(
        "found, or documented with --force",
        said,
        also=not voxels.get("2") or documented,
        seen=f"voxels {voxels}",
    )
    said = medjax(*arguments, "--force")
    voxels = json.loads((site.root / "store" / "Toy" / "case_000" / "case.json").read_text())[
        "voxels"
    ]
    yield fine("--force", said, also=not voxels.get("2"))


@row("M13", "files of the year 2040", "pass")
def clock_skew(site: Site) -> Iterator[Seen]:
    data = m.corpus(site.path("Task01_Toy"))
    arguments = ("prepare", data, "-o", site.root / "store", "--workers", 1, "--quiet")
    medjax(*arguments)
    for path in data.rglob("*.nii.gz"):
        os.utime(path, (2_208_988_800, 2_208_988_800))
    medjax(*arguments)
    yield fine("the third call", medjax(*arguments), "0 prepared, 2 already there")


@row("M14", "exports that must not be written", "pass")
def exports(site: Site) -> Iterator[Seen]:
    run = m.copied(m.run(site), site.path("run"))
    (there := site.path("there.medjax")).write_text("mine")
    before = site.tree()
    for variant, *words in (
        ("an existing file", there),
        ("into the run", run, "--orbax"),
        ("a wrong ending", site.path("x.zip")),
    ):
        yield refused(
            variant, medjax("export", run, "-o", *words), codes=(USAGE,), also=site.tree() == before
        )
    folder = site.root / "small"
    prefix = mounted(folder, "size=4k", f'echo LEFT; ls -A "{folder}"')
    if prefix is None:
        yield Seen("a full disk", None, "mounting is not possible here")
        return
    said = alone(site, "export", run, "-o", folder / "x.medjax", prefix=prefix)
    yield refused(
        "a full disk",
        said,
        "x.medjax",
        "space",
        codes=(1,),
        also=not said.text.split("LEFT")[-1].strip(),
    )
