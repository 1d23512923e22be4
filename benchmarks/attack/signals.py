"""Process, signals: every verb interrupted, terminated or killed, and the same command again."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.attack import material as m
from benchmarks.attack.harness import (
    Said,
    Seen,
    Site,
    fine,
    medjax,
    refused,
    row,
    start,
    told,
    wait,
)

LONG = (90, 100, 90)  # of a scan that takes a while


def _temporary(folder: Path) -> list[str]:
    """Left-overs: hidden or unfinished files."""
    found = [p for p in folder.rglob("*") if p.is_file()]
    return [
        str(p.relative_to(folder))
        for p in found
        if p.name.startswith(".") or p.name.endswith(".tmp") or ".medjax-tmp" in str(p)
    ]


def _long_prepare(site: Site, n: int = 14) -> Path:
    return m.make_raw.write_corpus(site.path("Task01_Long"), n=n, shape=(50, 60, 50))


def _stopped(
    site: Site, number: int, when, *words: object, entry: str = "medjax.cli"
) -> tuple[Said, int]:
    """A command stopped by a signal when `when` holds: what it printed, and its process id."""
    log = site.path(f"log-{time.monotonic_ns()}.txt")
    process = start(*words, log=log, entry=entry)
    return told(process, log, when, number), process.pid


def _after(seconds: float) -> Callable[[], bool]:
    ends = time.monotonic() + seconds
    return lambda: time.monotonic() > ends


@row("P6", "kill -9 in prepare, then again", "pass")
def killed_prepare(site: Site) -> Iterator[Seen]:
    data, store = _long_prepare(site), site.root / "store"
    words = ("prepare", data, "-o", store, "--workers", 1)
    said, _ = _stopped(site, signal.SIGKILL, lambda: any(store.glob("*/*/case.json")), *words)
    made = len(list(store.glob("*/*/case.json")))
    yield Seen(
        "it was killed in the middle", (None if said.code == 0 else True), f"{made} of 14 made"
    )
    said = medjax(*words)
    left = _temporary(store)
    left = [name for name in left if ".fingerprints" not in name and "lock" not in name]
    hidden = [p.name for p in (store / "Long").iterdir() if p.name.startswith(".")]
    ok = len(list(store.glob("*/*/case.json"))) == 14 and not hidden
    yield fine(
        "the same again",
        said,
        f"{14 - made} prepared, {made} already there",
        also=ok,
        seen=f"left {left[:3]} {hidden[:3]}",
    )


def _predicting(site: Site, n: int = 4) -> tuple[tuple, Path]:
    for i in range(n):
        m.scan(site.path("in", f"c{i}.nii.gz"), seed=i, shape=LONG)
    out = site.root / "out"
    words = (
        "predict",
        "-m",
        m.run(site),
        "-i",
        site.root / "in",
        "-o",
        out,
        "--probabilities",
        "--no-html",
        "--batch-windows",
        2,
    )
    return words, out


@row("P7", "kill -9 and SIGTERM in predict --probabilities, then --continue", "weak", limit=150)
def killed_predict(site: Site) -> Iterator[Seen]:
    words, out = _predicting(site)
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        before = {p.name for p in out.glob(".*")}
        said, _ = _stopped(
            site,
            number,
            lambda old=before: any(
                p.name not in old for p in out.glob(".*") if "lock" not in p.name
            ),
            *words,
        )
        yield Seen(
            f"{number.name}",
            said.code == code if said.code else None,
            f"{said}; left {_temporary(out)[:3]}",
        )
        if number == signal.SIGTERM:
            yield Seen("nothing is left", not _temporary(out), str(_temporary(out)[:3]))
        else:
            yield Seen(
                "killed with work under way",
                True if _temporary(out) else None,
                str(_temporary(out)[:2]),
            )
        words = (*words, "--continue") if "--continue" not in words else words
    said = medjax(*words)
    masks = sorted(p.name for p in out.glob("c?.nii.gz"))
    ok = len(masks) == 4 and not _temporary(out)
    yield fine("--continue", said, also=ok, seen=f"{masks}; left {_temporary(out)[:3]}")


@row("P8", "SIGINT and SIGTERM in prepare, predict and evaluate", "weak", limit=200)
def interrupted(site: Site) -> Iterator[Seen]:
    data = _long_prepare(site)
    predicting, out = _predicting(site, 8)
    labels = site.path("ref", "dataset.json")
    labels.write_text(
        '{"labels": {"background": 0, "organ": 1, "tumour": 2}, "channel_names": {"0": "CT"}, '
        '"file_ending": ".nii.gz"}'
    )
    m.make_raw.save(site.path("ref", "l", "c0.nii.gz"), m.image(0, (80, 90, 80))[1])
    for i in range(1, 250):
        m.copied(site.root / "ref" / "l" / "c0.nii.gz", site.path("ref", "l", f"c{i}.nii.gz"))
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        store, scored = site.root / f"store{code}", site.root / f"scored{code}"
        words = ("prepare", data, "-o", store, "--workers", 1)
        said, _ = _stopped(
            site, number, lambda store=store: any(store.glob("*/*/case.json")), *words
        )
        yield _ended(f"prepare, {number.name}", said, code, store)
        for moment in (
            "the first sidecar",
            "the second case",
        ):  # the first: while the next case is compiled, loaded and computed
            masks = site.root / f"out{code}-{moment}"
            words = tuple(masks if w == out else w for w in predicting)
            said, _ = _stopped(site, number, lambda f=masks, m=moment: _reached(f, m), *words)
            whole = sorted(masks.glob("c*_prob.npz"), key=lambda p: p.stat().st_mtime)[
                :-1
            ]  # the last one may have been under way
            manifest = (masks / "run.json").read_text() if (masks / "run.json").exists() else ""
            told_of = all(f'"{p.name.removesuffix("_prob.npz")}"' in manifest for p in whole)
            yield _ended(
                f"predict, {number.name} at {moment}",
                said,
                code,
                masks,
                also=bool(manifest) and told_of,
            )
        words = (
            "evaluate",
            "--reference",
            labels.parent / "l",
            "--prediction",
            labels.parent / "l",
            "-o",
            scored,
            "--workers",
            1,
        )
        said, _ = _stopped(site, number, _after(4), *words, "--labels", labels)
        yield _ended(f"evaluate, {number.name}", said, code, scored)


def _reached(folder: Path, moment: str) -> bool:
    return (
        any(folder.glob("c*.json"))
        if moment == "the first sidecar"
        else len(list(folder.glob("c*_prob.npz"))) > 1
    )


def _ended(variant: str, said: Said, code: int, folder: Path, also: bool = True) -> Seen:
    """A sentence, the documented code, no temporary files; a command that was faster than the
    signal cannot be judged.
    """
    left = [
        name
        for name in (_temporary(folder) if folder.exists() else [])
        if ".fingerprints" not in name
    ]
    if said.code == 0 and said.seconds > 3:
        return Seen(
            variant,
            False,
            f"the signal was lost: it went on for {said.seconds:.0f} s, {said.text[-160:]!r}",
        )
    if said.code == 0:
        return Seen(variant, None, "it was done before the signal came")
    word = "interrupted" if code == 130 else "SIGTERM"
    return refused(
        variant,
        said,
        "medjax:",
        word,
        codes=(code,),
        also=also and not left,
        seen=f"left {left[:3]}",
    )


@row("P9", "SIGTERM in export; SIGTERM and kill -9 in evaluate", "pass")
def stopped_writers(site: Site) -> Iterator[Seen]:
    folder = site.path("export", "x").parent
    log = site.path("export.txt")
    process = start("export", m.run(site), "-o", folder / "x.medjax", "--stablehlo", log=log)
    said = told(process, log, _after(3.5), signal.SIGTERM)
    files = [p.name for p in folder.iterdir()]
    whole = files in ([], ["x.medjax"])
    if "x.medjax" in files:
        from medjax.weights.formats import archive

        archive.read(folder / "x.medjax")
    yield Seen("export, SIGTERM", whole and not (said.raw and said.code != -15), f"{said}; {files}")
    (labels := site.path("ref", "dataset.json")).write_text(
        '{"labels": {"background": 0, "organ": 1, "tumour": 2}, "channel_names": {"0": "CT"}}'
    )
    for i in range(40):
        m.make_raw.save(site.path("ref", "l", f"c{i}.nii.gz"), m.image(i % 4, (50, 60, 50))[1])
    scored, log = site.root / "scored", site.path("evaluate.txt")
    words = (
        "evaluate",
        "--reference",
        labels.parent / "l",
        "--prediction",
        labels.parent / "l",
        "-o",
        scored,
        "--labels",
        labels,
    )
    process = start(*words, "--workers", 1, log=log)
    told(process, log, _after(4), signal.SIGKILL)
    half = (
        [
            p
            for p in scored.rglob("*.json")
            if p.stat().st_size and not p.read_text().rstrip().endswith("}")
        ]
        if scored.exists()
        else []
    )
    yield Seen("evaluate, SIGKILL", not half, str(half))


@row("P10", "SIGINT and SIGTERM in a training", "pass", limit=150)
def stopped_training(site: Site) -> Iterator[Seen]:
    data = m.corpus(site.path("Task01_Toy"), n=4)
    steps = (
        "--config.train.steps=100000",
        "--config.train.checkpoint_every=100000",
        "--config.train.validate_every=0",
    )
    run = site.root / "run"
    words = m.training(site, data, run, *steps)
    for number in (signal.SIGINT, signal.SIGTERM):
        log = site.path(f"{number.name}.txt")
        process = start(*words, log=log, entry="medjax.main")
        ends = time.monotonic() + 60
        while (
            b"step " not in log.read_bytes() and process.poll() is None and time.monotonic() < ends
        ):
            time.sleep(0.05)
        process.send_signal(number)
        said = wait(process, log, 45)
        saved = [p.name for p in (run / "checkpoints").iterdir() if p.name.isdigit()]
        yield refused(
            number.name,
            said,
            "start the same command again",
            codes=(75,),
            also=bool(saved),
            seen=f"steps {saved}",
        )
