"""Security, names: text from files that could become paths, markup, formulas, terminal codes or
endless regular expressions.
"""

import csv
import io
import itertools
import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.attack import material as m
from benchmarks.attack.harness import Seen, Site, fine, medjax, refused, row
from medjax.labels import Corpus
from tests.support.raw import save
from tests.support.run import make_run

FOLDER = "a/b/c"  # of the data, so deep that an escape stays inside of what is watched


def _escaped(site: Site, variant: str, before: dict, said, *allowed) -> Seen:
    changed = site.changed(before, *allowed)
    return refused(
        variant, said, also=not changed, seen=f"outside: {changed[:3]}" if changed else ""
    )


@row("S1", "corpus.json with a path as the corpus' name", "fail")
def corpus_name(site: Site) -> Iterator[Seen]:
    names = (
        "../../pwn_corpus",
        str(site.root / "absolute"),
        "..",
        ".hidden",
        "a/b",
        "a\\b",
        "a\0b",
        "",
        "x" * 300,
    )
    for i, name in enumerate(names):
        data, out = (
            m.described(site.path(f"v{i}", FOLDER), name),
            site.path(f"v{i}", FOLDER, "o", "store"),
        )
        before = site.tree()
        yield _escaped(
            site,
            f"prepare {name[:24]!r}",
            before,
            medjax("prepare", data, "-o", out, "--workers", 1),
            out,
        )
        if i < 4:
            yield refused(f"verify {name[:24]!r}", medjax("verify", data, "--quiet"))


@row("S2", "corpus.json whose corpus and case name a folder of others", "fail")
def victims(site: Site) -> Iterator[Seen]:
    for i, (name, case) in enumerate(
        (
            ("../../../victims", "thesis"),
            ("Toy", "../../../../victims/thesis"),
            ("Toy", ".."),
            ("Toy", "."),
        )
    ):
        data, out = (
            m.described(site.path(f"v{i}", FOLDER, "d"), name, case),
            site.path(f"v{i}", FOLDER, "o"),
        )
        victim = site.path(f"v{i}", "a", "victims", "thesis", "chapter1.txt")
        victim.write_text("years of work")
        before = site.tree()
        yield _escaped(
            site, f"{name}, {case}", before, medjax("prepare", data, "-o", out, "--workers", 1), out
        )
        before = site.tree()
        yield _escaped(
            site,
            f"--fix {name}, {case}",
            before,
            medjax("verify", data, "--fix", out / "f", "--quiet"),
            out,
        )


@row("S3", "MONAI list with a path as a case's name, --fix", "fail")
def monai_list(site: Site) -> Iterator[Seen]:
    for i, name in enumerate(("../../../pwn", str(site.root / "v1" / "abs"), "sub/x", "..")):
        folder = site.path(f"v{i}", FOLDER, "d")
        data = m.corpus(folder / "raw", 2)
        items = [
            {"image": f"raw/imagesTr/case_00{k}.nii.gz", "label": f"raw/labelsTr/case_00{k}.nii.gz"}
            for k in range(2)
        ]
        items[0]["name"] = name
        spec = {
            "training": items,
            "labels": {"0": "background", "1": "organ", "2": "tumour"},
            "modality": {"0": "MRI"},
        }
        (folder / "list.json").write_text(json.dumps(spec))
        site.path(f"v{i}", "pwn.nii.gz").write_text("mine")
        out, before = site.path(f"v{i}", FOLDER, "o", "p", "q"), site.tree()
        said = medjax("verify", folder / "list.json", "--fix", out, "--quiet")
        changed = site.changed(before, out)
        ok = not changed and not said.raw and (said.code != 0 or name == "..")
        yield Seen(f"verify --fix {name!r}", ok, f"{said}; outside {changed[:3]}")
        before = site.tree()
        said = medjax("prepare", folder / "list.json", "-o", out / "s", "--workers", 1)
        yield Seen(
            f"prepare {name!r}",
            not site.changed(before, out) and not said.raw and said.code != 0,
            str(said),
        )
        assert data.is_dir()


@row("S4", "nnU-Net's explicit list with a path as a case's name, --fix", "fail")
def explicit_list(site: Site) -> Iterator[Seen]:
    for i, name in enumerate(("../../../pwn", str(site.root / "abs"), "a/b")):
        data = m.corpus(site.path(f"v{i}", FOLDER, "d", "Dataset001_Toy"), 2, layout="nnunet")
        items = {
            n: {
                "images": [f"imagesTr/case_00{k}_0000.nii.gz"],
                "label": f"labelsTr/case_00{k}.nii.gz",
            }
            for k, n in enumerate((name, "good"))
        }
        m.edit(data / "dataset.json", lambda spec, items=items: spec.update(dataset=items))
        out, before = site.path(f"v{i}", FOLDER, "o"), site.tree()
        yield _escaped(
            site,
            f"verify --fix {name!r}",
            before,
            medjax("verify", data, "--fix", out / "f", "--quiet"),
            out,
        )
        before = site.tree()
        yield _escaped(
            site,
            f"prepare {name!r}",
            before,
            medjax("prepare", data, "-o", out / "s", "--workers", 1),
            out,
        )


def _listed_as(data: Path, name: str) -> None:
    entry = {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
    m.edit(data / "dataset.json", lambda spec: spec["training"][0].update(entry))


@row("S8", "regular expressions that never end", "weak", limit=45)
def endless_expression(site: Site) -> Iterator[Seen]:
    for i, expression in enumerate(("^(a+)+$|^hip", "(a|aa)+$", "^(([a-z])+.)+[A-Z]([a-z])+$")):
        data = m.corpus(
            site.path(f"v{i}", "Task01_Toy"), medjax={"patients": {"regex": expression}}
        )
        name = "a" * 40 + "!"
        for folder in ("imagesTr", "labelsTr"):
            (data / folder / "case_000.nii.gz").rename(data / folder / f"{name}.nii.gz")
        _listed_as(data, name)
        said = medjax("verify", data, "--quiet")
        yield Seen(expression, said.seconds < 20 and not said.raw, f"{said.seconds:.1f} s, {said}")


CLASSES = (
    "<script>alert(1)</script>",
    "]]></Label><x>",
    "=cmd|' /C calc'!A1",
    "\x1b[2Jclear",
    "../../../../pwn_class",
)


def hostile_run(site: Site, name: str, classes: Sequence[str]):
    """A run whose classes have these names."""
    space = Corpus("Toy", tuple((i + 1, (c,)) for i, c in enumerate(classes)), channels=("CT",))
    return make_run(site.path(name, "run"), (space,))


@row("S22", "markup in the names of classes and cases: pages, pictures, label tables", "pass")
def markup(site: Site) -> Iterator[Seen]:
    run, case = hostile_run(site, "h", CLASSES[:2]), "<img src=x onerror=alert(2)>"
    m.scan(site.path("in", f"{case}.nii.gz"))
    said = medjax("predict", "-m", run, "-i", site.root / "in", "-o", site.root / "out")
    page = (
        (site.root / "out" / "report.html").read_text()
        if (site.root / "out" / "report.html").exists()
        else ""
    )
    yield fine(
        "report.html", said, also=bool(page) and "<script>alert(1)" not in page and case not in page
    )
    mask = (site.root / "out" / f"{case}.nii.gz").read_bytes()
    import gzip

    yield Seen(
        "label table",
        b"]]></Label><x>" not in gzip.decompress(mask),
        "the XML of the mask's extension",
    )
    yield from _evaluation(site, case)


def _scored(site: Site, case: str, classes: Sequence[str]):
    """An evaluation of one case with hostile names; what was said and the folder."""
    label = m.image(0)[1]
    save(site.path("ref", "labels", f"{case}.nii.gz"), label)
    save(site.path("pred", f"{case}.nii.gz"), label)
    labels = {
        "labels": {"background": 0} | {c: i + 1 for i, c in enumerate(classes)},
        "channel_names": {"0": "CT"},
        "file_ending": ".nii.gz",
    }
    (site.root / "ref" / "dataset.json").write_text(json.dumps(labels))
    reference, prediction, out = (
        site.root / "ref" / "labels",
        site.root / "pred",
        site.root / "scored",
    )
    said = medjax(
        "evaluate",
        "--reference",
        reference,
        "--prediction",
        prediction,
        "-o",
        out,
        "--resamples",
        20,
        "--quiet",
    )
    return said, out


def _evaluation(site: Site, case: str) -> Iterator[Seen]:
    said, out = _scored(site, case, CLASSES[:2])
    texts = [p.read_text(errors="replace") for p in out.rglob("*") if p.suffix in (".html", ".svg")]
    raw = sum(t.count("<script>alert(1)") + t.count("<img src=x onerror") for t in texts)
    yield fine(
        "page and plots of an evaluation",
        said,
        also=bool(texts) and not raw,
        seen=f"{raw} raw occurrences in {len(texts)} files",
    )


@row("S23", "markup in table.md", "weak")
def markdown(site: Site) -> Iterator[Seen]:
    said, out = _scored(site, "c|d <script>", (CLASSES[0], "a|b"))
    table = (out / "table.md").read_text() if (out / "table.md").exists() else "<script>"
    yield fine("class <script>", said, also="<script>" not in table, seen=table[:80])
    lines = [
        line.replace("\\|", "").count("|") if line.startswith("|") else 0
        for line in table.splitlines()
    ]
    torn = [(a, b) for a, b in itertools.pairwise(lines) if a and b and a != b]
    yield Seen(
        "columns stay columns", bool(lines) and not torn, f"neighbouring rows with {torn} bars"
    )


@row("S24", "formulas in CSV files", "weak")
def formulas(site: Site) -> Iterator[Seen]:
    for i, name in enumerate((CLASSES[2], "+1+1", "-1+1", "@SUM(A1)", "\tx")):
        run = hostile_run(site, f"v{i}", (name, "other"))
        m.scan(site.path(f"v{i}", "in", "=2+5.nii.gz"))
        said = m.predict(
            run, site.root / f"v{i}" / "in", site.root / f"v{i}" / "out", "--statistics"
        )
        yield _no_formula(
            f"statistics.csv, class {name!r}", said, site.root / f"v{i}" / "out" / "statistics.csv"
        )
    said, out = _scored(site, "=2+5", (CLASSES[2], "organ"))
    yield _no_formula("cases.csv", said, out / "cases.csv")


def _no_formula(variant: str, said, path) -> Seen:
    if said.code == 2 and not said.raw:
        return Seen(variant, True, str(said))
    cells = (
        [c for line in csv.reader(io.StringIO(path.read_text())) for c in line]
        if path.exists()
        else ["=missing"]
    )
    bad = [c for c in cells if c and (c[0] in "=+@\t\r" or (c[0] == "-" and not _is_number(c)))]
    return Seen(variant, said.code == 0 and not said.raw and not bad, f"{said}; cells {bad[:2]}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@row("S25", "a class that is a path: masks per class, members of the probabilities", "weak")
def class_paths(site: Site) -> Iterator[Seen]:
    for i, name in enumerate((CLASSES[4], "/etc/pwn", "..", "a\\..\\b", "organ.npy", "a\0b")):
        run = hostile_run(site, f"v{i}", (name, "other"))
        m.scan(site.path(f"v{i}", "in", "a.nii.gz"))
        out, before = site.root / f"v{i}" / "out", site.tree()
        said = m.predict(
            run, site.root / f"v{i}" / "in", out, "--one-file-per-class", "--probabilities"
        )
        members = (
            zipfile.ZipFile(out / "a_prob.npz").namelist() if (out / "a_prob.npz").exists() else []
        )
        bad = [n for n in members if "/" in n or "\\" in n or n.startswith(".") or "\0" in n]
        ok = (
            not site.changed(before, out)
            and not bad
            and not said.raw
            and (said.code == 2 or len(set(members)) == 2)
        )
        yield Seen(repr(name), ok, f"{said}; members {members}")


@row("S26", "terminal codes and newlines in names", "weak")
def terminal_codes(site: Site) -> Iterator[Seen]:
    name = "a\x1b[2J\nb"
    run = hostile_run(site, "run\x1b[31m", ("\x1b[2Jclear", "line\nbreak"))
    m.scan(site.path("in", f"{name}.nii.gz"))
    (site.path("in", f"{name}x.nii.gz")).write_bytes(b"no scan")
    data = m.corpus(site.path("Task01_Toy"), labels={"\x1b[2Jclear": 1, "b": 2})
    for folder in ("imagesTr", "labelsTr"):
        (data / folder / "case_000.nii.gz").rename(data / folder / f"{name}.nii.gz")
    (data / "labelsTr" / f"{name}.nii.gz").write_bytes(b"no label")
    _listed_as(data, name)
    for variant, said in (
        ("verify", medjax("verify", data)),
        ("prepare", medjax("prepare", data, "-o", site.root / "store", "--workers", 1)),
        (
            "predict",
            medjax(
                "predict",
                "-m",
                run,
                "-i",
                site.root / "in",
                "-o",
                site.root / "out",
                "--statistics",
            ),
        ),
        ("info", medjax("info", run)),
    ):
        yield Seen(
            variant,
            "\x1b" not in said.text and not said.raw,
            f"{said.text.count(chr(27))} escapes; {said}",
        )


@row("S27", "a run path with blanks and shell signs", "pass")
def shell_signs(site: Site) -> Iterator[Seen]:
    run = m.copied(m.run(site), site.path("a b;$(touch PWNED5)`touch PWNED6`"))
    m.scan(site.path("in", "a.nii.gz"))
    said = medjax(
        "predict", "-m", run, "-i", site.root / "in", "-o", site.path("o ;$(touch PWNED7)")
    )
    planted = [n for n in site.tree() if n.rsplit("/", 1)[-1].startswith("PWNED")]
    yield fine("predict", said, also=not planted)


@row("S28", "--config is a Python file of others", "pass")
def foreign_config(site: Site) -> Iterator[Seen]:
    from benchmarks.attack.harness import REPOSITORY

    text = (REPOSITORY / "SECURITY.md").read_text().lower()
    yield Seen(
        "SECURITY.md says that a config is code", "config" in text and "code" in text, "SECURITY.md"
    )
    (path := site.path("c.py")).write_text("raise ValueError('broken config')")
    said = medjax(f"--config={path}", f"--workdir={site.root / 'w'}", entry="medjax.main")
    yield refused("a config that raises", said, "broken config")


@row("S29", "paths of others in dataset.json", "pass")
def foreign_paths(site: Site) -> Iterator[Seen]:
    secret = site.path("secret.txt")
    secret.write_text("root:x:0:0:" + "SECRETSECRETSECRET" * 4)
    for field, value in (
        ("image", "../secret.txt"),
        ("label", str(secret)),
        ("image", "/etc/passwd"),
    ):
        data = m.corpus(site.path(f"{field}{len(value)}", "Task01_Toy"))
        shutil.copy(secret, data.parent / "secret.txt")
        m.edit(
            data / "dataset.json",
            lambda s, field=field, value=value: s["training"][0].update({field: value}),
        )
        said = medjax("verify", data, "--quiet")
        yield refused(
            f"{field} {value[-14:]}", said, also="SECRETSECRETSECRETSECRET" not in said.text
        )
