"""Inputs, descriptions: dataset.json and lists of scans in every state of disrepair."""

import json
import os
import shutil
from collections.abc import Callable, Iterator

from benchmarks.attack import material as m
from benchmarks.attack.harness import Said, Seen, Site, fine, medjax, refused, row

DEEP = "[" * 200_000


def _verified(
    site: Site, name: str, change: Callable[[dict], object] | bytes, command: str = "verify"
) -> Said:
    """verify or prepare of a data set whose dataset.json was changed by a function, or replaced."""
    data = m.copied(m.shared(site, "Task01_Toy", m.corpus), site.root / name / "Task01_Toy")
    path = data / "dataset.json"
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        m.edit(path, change)
    if command == "verify":
        return medjax("verify", data, "--quiet")
    return medjax("prepare", data, "-o", site.root / name / "store", "--workers", 1, "--quiet")


@row("I16", "dataset.json with odd syntax, encodings, entries", "pass")
def odd_descriptions(site: Site) -> Iterator[Seen]:
    text = (m.shared(site, "Task01_Toy", m.corpus) / "dataset.json").read_text()
    yield fine("byte-order mark", _verified(site, "bom", b"\xef\xbb\xbf" + text.encode()))
    for variant, content in (
        ("trailing comma", text.rstrip().rstrip("}").encode() + b",}"),
        ("null", b"null"),
        ("a list", b"[]"),
        ("UTF-16", text.encode("utf-16")),
        ("latin-1", text.replace("organ", "\xe9").encode("latin-1")),
        ("empty", b""),
        ("a number", b"7"),
    ):
        yield refused(variant, _verified(site, variant, content), "dataset.json")
    for variant, change in (
        ("an entry twice", lambda s: s["training"].append(s["training"][0])),
        ("labels 1.0", lambda s: s["labels"].update({"1.0": "x"})),
        ("a label that is a folder", lambda s: s["training"][0].update(label="./labelsTr")),
        ("another number of channels", lambda s: s["modality"].update({"1": "T2"})),
    ):
        said = _verified(site, variant, change)
        yield Seen(variant, not said.raw, str(said))
    yield fine(
        "non-ASCII",
        _verified(site, "umlaut", lambda s: s["labels"].update({"1": "Leberl\u00e4sion \u809d"})),
    )
    data = m.copied(m.shared(site, "Task01_Toy", m.corpus), site.root / "fifo" / "Task01_Toy")
    (data / "labelsTr" / "case_000.nii.gz").unlink()
    os.mkfifo(data / "labelsTr" / "case_000.nii.gz")
    yield refused("a label that is a FIFO", medjax("verify", data, "--quiet"), "case_000")


@row("I17", "dataset.json: labels of other types, nesting without end", "weak")
def other_types(site: Site) -> Iterator[Seen]:
    first = lambda s: s["training"][0]  # noqa: E731
    for variant, change in (
        ("label a list", lambda s: first(s).update(label=["a", "b"])),
        ("label an object", lambda s: first(s).update(label={"a": 1})),
        ("label a number", lambda s: first(s).update(label=5)),
        ("image an object", lambda s: first(s).update(image={"a": 1})),
        ("image null", lambda s: first(s).update(image=None)),
        ("entry a list", lambda s: s["training"].insert(0, [1, 2])),
        ("training an object", lambda s: s.update(training={"a": 1})),
        ("labels a list", lambda s: s.update(labels=["a"])),
        ("labels null", lambda s: s.update(labels=None)),
        ("modality a number", lambda s: s.update(modality=5)),
        ("medjax a list", lambda s: s.update(medjax=[1])),
        ("regions a list", lambda s: s.update(medjax={"regions": [1]})),
        ("NUL in a path", lambda s: first(s).update(image="a\0b")),
    ):
        for command in ("verify", "prepare"):
            codes = (
                (0, 1, 2, 3, 4) if variant == "training an object" else (1, 2, 3, 4)
            )  # then the folders say which cases there are
            yield refused(
                f"{variant}, {command}",
                _verified(site, f"{variant}-{command}", change, command),
                codes=codes,
            )
    for variant, content in (
        ("200000 lists", DEEP.encode()),
        ("200000 objects", b'{"a":' * 200_000),
    ):
        yield refused(variant, _verified(site, variant, content), "dataset.json")


@row("I18", "dataset.json: numTraining 999, image and label one file, 3000 regions", "weak")
def contradictions(site: Site) -> Iterator[Seen]:
    said = _verified(site, "many", lambda s: s.update(numTraining=999))
    yield Seen("numTraining 999", not said.raw and said.has("999"), str(said))
    said = _verified(
        site, "same", lambda s: s["training"][0].update(label=s["training"][0]["image"])
    )
    yield Seen("image and label are one file", not said.raw and said.has("same file"), str(said))
    regions = {f"region {i}": [1, 2] for i in range(3000)}
    said = _verified(site, "regions", lambda s: s.update(medjax={"regions": regions}))
    yield Seen(
        "3000 regions of the same values",
        not said.raw and (said.code != 0 or not said.has("0 warnings")),
        said.text[-300:],
    )


@row("I19", "CSV and JSON lists of scans", "weak")
def lists(site: Site) -> Iterator[Seen]:
    scan = m.scan(site.path("scan.nii.gz"))
    m.scan(site.path("sp\u00e4t.nii.gz"))
    good = {
        "paths.json": json.dumps([str(scan)]).encode(),
        "objects.json": json.dumps([{"image": "scan.nii.gz", "name": "n"}]).encode(),
        "cases.json": json.dumps({"cases": [{"image": "scan.nii.gz"}]}).encode(),
        "bom.json": b"\xef\xbb\xbf" + json.dumps([str(scan)]).encode(),
        "plain.csv": b"image\nscan.nii.gz\n",
        "bom.csv": b"\xef\xbb\xbfimage\nscan.nii.gz\n",
        "crlf.csv": b"image\r\nscan.nii.gz\r\n",
        "quoted.csv": b'"image","name"\n"scan.nii.gz","x"\n',
        "blank.csv": b"image\n\nscan.nii.gz\n\n",
    }
    for name, content in good.items():
        (path := site.root / name).write_bytes(content)
        yield fine(name, m.predict(m.run(site), path, site.root / f"o-{name}"))
    bad = {
        "number.json": b"[5]",
        "null.json": b"null",
        "nulls.json": b"[null]",
        "nul.json": json.dumps(["a\0b.nii.gz"]).encode(),
        "five.json": json.dumps([{"image": 5}]).encode(),
        "name.json": json.dumps([{"image": str(scan), "name": 5}]).encode(),
        "label.json": json.dumps([{"image": str(scan), "label": 5}]).encode(),
        "nested.json": json.dumps([[[str(scan)]]]).encode(),
        "deep.json": DEEP.encode(),
        "modality.json": json.dumps([{"image": str(scan), "modality": 5}]).encode(),
        "text.json": b'"x"',
        "patient.json": json.dumps([{"image": str(scan), "patient": [1]}]).encode(),
        "twice.json": b'[{"image": "a", "image": "b"}]',
        "utf16.json": json.dumps([str(scan)]).encode("utf-16"),
        "infinite.json": b"[Infinity]",
        "bytes.json": b"\xff\xfe\xfd",
        "latin.csv": "image\nsp\u00e4t.nii.gz\n".encode("latin-1"),
        "utf16.csv": "image\nscan.nii.gz\n".encode("utf-16"),
        "semicolon.csv": b"image;name\nscan.nii.gz;x\n",
        "nul.csv": b"image\na\0b.nii.gz\n",
        "empty.csv": b"",
        "header.csv": b"image\n",
        "other.csv": b"picture\nscan.nii.gz\n",
        "escape.csv": b"image,name\nscan.nii.gz,../../x\n",
        "open.csv": b'image\n"scan.nii.gz\n',
        "long.csv": b"image\n" + b"x" * 300_000 + b"\n",
        "extra.csv": b"image\nscan.nii.gz,a,b,c\n",
    }
    for name, content in bad.items():
        (path := site.root / name).write_bytes(content)
        before = site.tree()
        said = m.predict(m.run(site), path, site.root / "out" / name)
        outside = site.changed(before, site.root / "out")
        fine_too = said.code == 0 and name in (
            "semicolon.csv",
            "name.json",
            "patient.json",
            "modality.json",
            "label.json",
            "utf16.csv",
            "utf16.json",
            "latin.csv",
            "extra.csv",
            "open.csv",
        )
        yield Seen(
            name, not said.raw and not outside and (said.code in (1, 2, 3) or fine_too), str(said)
        )
    shutil.rmtree(site.root / "out", ignore_errors=True)
