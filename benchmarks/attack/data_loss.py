"""Data loss: commands that could delete or overwrite what medjax did not write, or forget what it
did.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.attack import material as m
from benchmarks.attack.harness import USAGE, Seen, Site, fine, medjax, refused, row, train
from tests.support.raw import save


def _kept(site: Site, before: dict[str, str], *allowed: Path) -> dict:
    """For `refused`: nothing has changed outside of the allowed folders."""
    changed = site.changed(before, *allowed)
    return {"also": not changed, "seen": f"changed {changed[:4]}" if changed else ""}


@row("D1", "prepare into the parent of a data set with a folder per case", "fail")
def raw_data_as_store(site: Site) -> Iterator[Seen]:
    """The store's folder of a case would be the raw folder of that case."""
    for name, make in (("pairs", m.pairs), ("bids", m.bids), ("perclass", m.perclass)):
        data = make(site.path(name, "Kits"))
        before = site.tree()
        said = medjax("prepare", data, "-o", data.parent, "--workers", 1)
        yield refused(f"{name}: -o is the parent", said, codes=(USAGE,), **_kept(site, before))
    data = m.pairs(site.path("inside", "Kits"))
    before = site.tree()
    said = medjax("prepare", data, "-o", data / "case_000", "--workers", 1)
    yield refused("-o is the folder of a case", said, codes=(USAGE,), **_kept(site, before))
    (link := site.path("link")).symlink_to(data.parent)
    before = site.tree()
    said = medjax("prepare", data, "-o", link, "--workers", 1)
    yield refused("-o is a link to the parent", said, codes=(USAGE,), **_kept(site, before))
    foreign = site.path("store", "Kits", "case_001", "thesis.txt")
    foreign.write_text("years of work")
    before = site.tree()
    said = medjax("prepare", data, "-o", site.root / "store", "--workers", 1)
    yield refused(
        "a foreign folder has the name of a case", said, codes=(USAGE,), **_kept(site, before)
    )
    shutil.rmtree(site.root / "store")
    said = medjax("prepare", data, "-o", site.root / "store", "--workers", 1)
    yield fine("a proper store", said, also=not site.changed(before, site.root / "store"))


@row("D2", "the same through a training", "fail")
def raw_data_as_store_of_a_training(site: Site) -> Iterator[Seen]:
    data = m.pairs(site.path("d", "Kits"), 4)
    before = site.tree()
    said = train(*m.training(site, data, site.root / "run", f"--config.data.store={data.parent}"))
    allowed = (site.root / "run", site.root / "tiny.py")
    yield refused("data.store is the parent", said, codes=(USAGE,), **_kept(site, before, *allowed))
    before = site.tree()
    said = train(*m.training(site, data, data / "case_000"))
    yield refused("workdir is the folder of a case", said, codes=(USAGE,), **_kept(site, before))


@row("D3", "predict into the folder of the manual labels", "fail")
def ground_truth_as_output(site: Site) -> Iterator[Seen]:
    for i in range(2):
        m.scan(site.path("imagesTr", f"c{i}.nii.gz"), seed=i)
        save(site.path("labelsTr", f"c{i}.nii.gz"), m.image(i)[1])
    before = site.tree()
    said = m.predict(m.run(site), site.root / "imagesTr", site.root / "labelsTr")
    yield refused("labels of all scans", said, "--overwrite", codes=(USAGE,), **_kept(site, before))
    (site.root / "labelsTr" / "c0.nii.gz").unlink()
    before = site.tree()
    said = m.predict(m.run(site), site.root / "imagesTr", site.root / "labelsTr")
    yield refused("a corrected mask of one scan", said, codes=(USAGE,), **_kept(site, before))
    said = m.predict(m.run(site), site.root / "imagesTr", site.root / "labelsTr", "--continue")
    yield refused("with --continue", said, codes=(USAGE,), **_kept(site, before))
    said = m.predict(m.run(site), site.root / "imagesTr", site.root / "labelsTr", "--overwrite")
    yield fine("with --overwrite", said, also=(site.root / "labelsTr" / "c1.json").is_file())
    said = m.predict(m.run(site), site.root / "imagesTr", site.root / "labelsTr")
    yield fine("masks of medjax are replaced", said)


@row("D4", "output folder = input folder with files of others", "fail")
def sidecars_of_others(site: Site) -> Iterator[Seen]:
    for name, foreign in (
        ("BIDS sidecar", "sub-01_T1w.json"),
        ("run.json", "run.json"),
        ("report.html", "report.html"),
        ("statistics.csv", "statistics.csv"),
        ("probabilities", "sub-01_T1w_prob.npz"),
        ("entropy", "sub-01_T1w_entropy.nii.gz"),
        ("picture", "sub-01_T1w_preview.png"),
    ):
        folder = site.path(name, "bids")
        m.scan(folder / "sub-01_T1w.nii")
        (folder / foreign).write_text('{"EchoTime": 0.01}')
        before = site.tree()
        more = ("--statistics", "--probabilities", "--uncertainty", "--preview", "--tta", "none")
        said = medjax(
            "predict", "-m", m.run(site), "-i", folder / "sub-01_T1w.nii", "-o", folder, *more
        )
        now = site.tree()
        gone = [n for n in before if before[n] != now.get(n)]
        ok = (
            not gone and not said.raw and (said.code == 0 or (said.code == USAGE and now == before))
        )
        yield Seen(name, ok, f"{said}; changed {gone}")
    folder = site.path("free", "scans")
    m.scan(folder / "a.nii")
    before = site.tree()
    said = m.predict(m.run(site), folder, folder)
    same = all(site.tree().get(n) == v for n, v in before.items())
    yield refused("only free names", said, codes=(0, USAGE), also=same)


@row("D5", "cases whose masks and maps have one name", "fail")
def clash_of_names(site: Site) -> Iterator[Seen]:
    for name, cases, more in (
        ("a and a_entropy", ("a", "a_entropy"), ("--uncertainty",)),
        ("run and the manifest", ("run",), ()),
        ("a_disagreement", ("a", "a_disagreement"), ("--uncertainty", "--tta", "mirror")),
    ):
        for case in cases:
            m.scan(site.path(name, "in", f"{case}.nii.gz"))
        out = site.path(name, "out")
        said = m.predict(m.run(site), site.root / name / "in", out, *more)
        yield refused(
            name,
            said,
            codes=(USAGE,),
            also=not out.exists() or not any(out.iterdir()),
            seen=f"in the folder {_names(out)}",
        )
        said = m.predict(m.run(site), site.root / name / "in", out, *more, "--continue")
        yield refused(
            f"{name}, --continue", said, codes=(USAGE,), seen=f"in the folder {_names(out)}"
        )
    m.scan(site.path("later", "1", "a_entropy.nii.gz"))
    m.scan(site.path("later", "2", "a.nii.gz"))
    out = site.root / "later" / "out"
    m.predict(m.run(site), site.root / "later" / "1", out)
    kept = m.mask(out / "a_entropy.nii.gz")
    said = m.predict(m.run(site), site.root / "later" / "2", out, "--uncertainty")
    now = m.mask(out / "a_entropy.nii.gz")
    same = now.dtype == kept.dtype and np.array_equal(now, kept)
    yield Seen(
        "a after a_entropy, in two calls",
        same and not said.raw,
        f"{said}; mask of a_entropy {'kept' if same else 'LOST'}",
    )


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


@row("D6", "a second predict into the same folder", "weak")
def earlier_masks(site: Site) -> Iterator[Seen]:
    out = site.path("out")
    for case in "ab":
        m.scan(site.path(case, f"{case}.nii.gz"))
        said = m.predict(m.run(site), site.root / case, out, "--statistics")
    told = (out / "run.json").read_text()
    digest = hashlib.sha256((site.root / "a" / "a.nii.gz").read_bytes()).hexdigest()
    yield fine(
        "run.json names both, with the hash of the first scan",
        said,
        also='"a"' in told and '"b"' in told and digest in told,
    )
    rows = (out / "statistics.csv").read_text()
    yield fine(
        "statistics.csv holds both", said, also="\na," in rows and "\nb," in rows, seen=rows[:80]
    )


@row("D7", "step folders without _CHECKPOINT_METADATA, the same training again", "fail")
def silent_restart(site: Site) -> Iterator[Seen]:
    raw, run = m.trained(site)
    for name in ("metadata", "arrays"):
        target = m.copied(run, site.path(name, "run"))
        for step in (target / "checkpoints").iterdir():
            if name == "metadata":
                (step / "_CHECKPOINT_METADATA").unlink(missing_ok=True)
            else:
                for part in ("params", "train", "state"):
                    shutil.rmtree(step / part, ignore_errors=True)
        before = site.tree()
        log = (target / "metrics.jsonl").read_bytes()
        said = m.again(site, raw, target)
        steps = sorted(p.name for p in (target / "checkpoints").iterdir())
        kept = steps == sorted(p.name for p in (run / "checkpoints").iterdir())
        lost = [n for n in before if "checkpoints" in n and before[n] != site.tree().get(n)]
        ok = log == (target / "metrics.jsonl").read_bytes() and (
            (kept and not lost) or name == "arrays"
        )
        yield refused(
            f"{name} missing: train", said, also=ok, seen=f"steps {steps}, changed {lost[:3]}"
        )
        said = m.predict(
            target, m.scan(site.path(name, "s.nii.gz")), site.root / name / "out", "--corpus", "Toy"
        )
        yield refused(f"{name} missing: predict", said, also=not said.has("train it first"))


@row("D8", "labelled voxels outside the non-zero crop", "fail")
def labels_outside_the_crop(site: Site) -> Iterator[Seen]:
    data = m.corpus(site.path("Task01_Toy"))
    for i in range(2):
        array, label = m.image(i)
        array[: len(array) // 2] = 0
        save(data / "imagesTr" / f"case_{i:03d}.nii.gz", array)
        save(data / "labelsTr" / f"case_{i:03d}.nii.gz", label)
    checked = medjax("verify", data, "--json", "--quiet")
    prepared = medjax("prepare", data, "-o", site.root / "store", "--workers", 1)
    words = ("crop", "outside", "non-zero", "nonzero", "cut off", "lost")
    found = [
        p["what"]
        for r in json.loads(checked.text[checked.text.index("[") :])
        for p in r["problems"]
    ]
    said = [
        t
        for t in [*found, *prepared.text.splitlines()]
        if "label" in t.lower() and any(w in t.lower() for w in words)
    ]
    yield Seen(
        "verify or prepare warns",
        bool(said) and not checked.raw and not prepared.raw,
        f"{said[:1] or found[:2]}",
    )


@row(
    "D9",
    "a training into a folder that holds files of somebody else under names of a run",
    "fail",
    limit=240,
)
def foreign_run(site: Site) -> Iterator[Seen]:
    data = m.corpus(site.path("Task01_Toy"), n=4)
    for name in ("config.json", "plan.json", "metrics.jsonl", "checkpoints/weights.bin"):
        folder = site.root / name.replace("/", "-")
        site.path(folder.name, name).write_text('{"mine": 1}')
        m.config(site)
        before = site.tree()
        said = train(*m.training(site, data, folder))
        words = (str(folder), name.split("/")[0], "did not write", "--workdir")
        yield refused(name, said, *words, codes=(USAGE,), **_kept(site, before))
    raw, run = m.trained(site)
    site.path("trained", "run", "notes.txt").write_text("mine")
    said = m.again(site, raw, run)
    kept = (run / "notes.txt").read_text() == "mine"
    yield fine("a run beside other files goes on", said, also=kept)


@row("D10", "a folder of somebody else named as run, store or result", "fail")
def opened_as_ours(site: Site) -> Iterator[Seen]:
    """Nothing in it may change, and every command must say that it is none of ours."""
    data = m.corpus(site.path("Task01_Toy"), n=4)
    mine = site.path("mine", "config.json").parent
    site.path("mine", "config.json").write_text('{"learning_rate": 0.1}')
    site.path("mine", "Toy", "case_000", "thesis.txt").write_text("years of work")
    scan, model = m.scan(site.path("in", "a.nii.gz")), m.run(site)
    m.config(site)
    before = site.tree()
    commands = {
        "predict -m": ("predict", "-m", mine, "-i", scan, "-o", site.root / "out"),
        "export": ("export", mine, "-o", site.root / "out.medjax"),
        "info --accept": ("info", mine, "--accept"),
        "prepare -o": ("prepare", data, "-o", mine, "--workers", 1),
        "evaluate -o": (
            *("evaluate", "--reference", data, "--prediction", data / "labelsTr"),
            *("-o", mine / "config.json", "--quiet"),
        ),
    }
    allowed = (site.root / "out", site.root / "out.medjax")
    for variant, words in commands.items():
        said = medjax(*words)
        yield refused(variant, said, "mine", codes=(1, USAGE), **_kept(site, before, *allowed))
    for variant, flag in (
        ("data.store", f"--config.data.store={mine}"),
        ("init.source", f"--config.init.source={mine}"),
    ):
        said = train(*m.training(site, data, site.root / "run", flag))
        run = (*allowed, site.root / "run")
        yield refused(variant, said, "mine", codes=(1, USAGE), **_kept(site, before, *run))
    said = medjax("predict", "-m", model, "-i", scan, "-o", mine, "--no-html")
    kept = site.changed(before, mine / "a.nii.gz", mine / "a.json", mine / "run.json", *run)
    yield fine("predict -o writes beside", said, also=not kept, seen=str(kept[:3]))
