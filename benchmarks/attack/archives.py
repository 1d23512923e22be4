"""Security, model archives: functions with flipped bytes, weights that are no numbers, members and
descriptions that lie.
"""

import random
import warnings
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.attack import material as m
from benchmarks.attack.harness import Said, Seen, Site, fine, peak, refused, row


def used(site: Site, path, *more: object) -> Said:
    """One scan through an archive."""
    scan = site.root / "scan.nii.gz"
    if not scan.exists():
        m.scan(scan)
    return m.predict(path, scan, site.root / "out" / path.name, *more)


@row("S7", "a function archive with flipped bytes and matching digests", "fail", limit=150)
def flipped_functions(site: Site) -> Iterator[Seen]:
    source, dice = m.function(site), random.Random(1)
    with zipfile.ZipFile(source) as file:
        payload = file.read("function.stablehlo")
    yield fine("as exported", used(site, source))
    places = [round(len(payload) * (i + 0.5) / 24) for i in range(24)]
    for i, place in enumerate(places):
        content = bytearray(payload)
        content[place] ^= dice.choice((0xFF, 0x01, 0x80))
        path = m.rewritten(
            source, site.path(f"f{i}.medjax"), {"function.stablehlo": bytes(content)}
        )
        said = used(site, path)
        yield refused(
            f"byte {place}", said, codes=(0, 1, 2), also=said.code == 0 or said.has(path.name)
        )
    for i, content in enumerate(
        (b"", payload[:100], payload[:-50], bytes(len(payload)), payload[::-1])
    ):
        path = m.rewritten(source, site.path(f"g{i}.medjax"), {"function.stablehlo": content})
        yield refused(f"damaged {i}", used(site, path), path.name)


def _weights(source, change: Callable[[dict], dict]) -> Callable[[bytes], bytes]:
    from safetensors.numpy import load, save

    return lambda content: save(
        {k: np.ascontiguousarray(v) for k, v in change(load(content)).items()},
        {"format": "medjax-archive"},
    )


@row("S14", "weights of another dtype", "weak")
def other_dtypes(site: Site) -> Iterator[Seen]:
    source = m.archive(site)
    for variant, change in (
        ("F32 bytes declared I32", lambda a: {k: v.view(np.int32) for k, v in a.items()}),
        ("int8 weights", lambda a: {k: v.astype(np.int8) for k, v in a.items()}),
        (
            "one leaf as uint8",
            lambda a: {
                k: v.astype(np.uint8) if i == 0 else v for i, (k, v) in enumerate(a.items())
            },
        ),
        ("bool", lambda a: {k: v > 0 for k, v in a.items()}),
    ):
        path = m.rewritten(
            source,
            site.path(f"{variant}.medjax"),
            {"weights.safetensors": _weights(source, change)},
        )
        yield refused(
            variant,
            used(site, path),
            path.name,
            also=not list((site.root / "out").rglob("scan.nii.gz")),
        )


@row("S15", "weights that are not finite", "fail")
def not_finite(site: Site) -> Iterator[Seen]:
    source = m.archive(site)
    for variant, change in (
        ("all NaN", lambda a: {k: np.full_like(v, np.nan) for k, v in a.items()}),
        (
            "one NaN",
            lambda a: {
                k: np.where(np.arange(v.size).reshape(v.shape) == 0, np.nan, v).astype(v.dtype)
                for k, v in a.items()
            },
        ),
        ("infinite", lambda a: {k: np.full_like(v, np.inf) for k, v in a.items()}),
        (
            "finite, but they overflow",
            lambda a: {k: (v * 1e36).astype(np.float32) for k, v in a.items()},
        ),
    ):
        path = m.rewritten(
            source,
            site.path(f"{variant}.medjax"),
            {"weights.safetensors": _weights(source, change)},
        )
        said = used(site, path)
        words = ("finite",)
        yield refused(
            variant, said, *words, also=not list((site.root / "out").rglob("scan.nii.gz"))
        )


@row("S16", "archives that are damaged, repeated, deep, foreign", "pass")
def damaged_archives(site: Site) -> Iterator[Seen]:
    source = m.archive(site)
    content = bytearray(source.read_bytes())
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 4
    for variant, data in (
        ("bit flip", flipped),
        ("truncated", content[:-40]),
        ("trailing garbage", content + b"x" * 70_000),
    ):
        (path := site.path(f"{variant}.medjax")).write_bytes(data)
        yield refused(variant, used(site, path), path.name)
    for variant, change, more in (
        ("JSON nested deeply", {"plan.json": b"[" * 1_000_000 + b"]" * 1_000_000}, {}),
        ("100000 digits", {"plan.json": b"1" * 100_000}, {}),
        ("digests differ", {"plan.json": b"{}"}, {"raw": True}),
        ("empty plan", {"plan.json": b"{}"}, {}),
        ("members as a list", {}, {"manifest": {"members": []}}),
        ("another kind", {}, {"manifest": {"kind": "function"}}),
        ("version as text", {}, {"manifest": {"version": "1"}}),
        ("infer missing", {"config.json": m.edited(lambda c: c.pop("infer"))}, {}),
        ("plan is null", {"plan.json": b"null"}, {}),
        ("labels as a list", {"labels.json": b"[]"}, {}),
        ("latin-1", {"plan.json": b"\xff\xfe"}, {}),
    ):
        path = m.rewritten(source, site.path(f"{variant}.medjax"), change, **more)
        yield refused(variant, used(site, path), path.name)
    for variant, name in (
        ("duplicate member", "plan.json"),
        ("name of 60000 letters", "x" * 60_000),
        ("a pickle", "weights.pkl"),
    ):
        path = m.copied(source, site.path(f"{variant}.medjax"))
        with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as file:
            warnings.simplefilter("ignore")
            file.writestr(name, "{}")
        yield refused(variant, used(site, path), path.name)


@row("S17", "an archive whose JSON needs gigabytes", "weak", limit=40)
def swelling_json(site: Site) -> Iterator[Seen]:
    big = b"[" + b"[]," * 20_000_000 + b"[]]"
    members = {name: big for name in ("environment.json", "summary.json", "splits_final.json")}
    path = m.rewritten(m.archive(site), site.path("big.medjax"), members)
    del big, members
    with peak() as more:
        said = used(site, path)
        gib = more()
    yield Seen(
        "3 members of 60 MB",
        not said.raw and gib < 1 and said.seconds < 20,
        f"{said}; {gib:.1f} GiB, {said.seconds:.0f} s",
    )


@row("S18", "a shell script before the zip", "weak")
def polyglot(site: Site) -> Iterator[Seen]:
    for variant, before in (
        ("shell script", b"#!/bin/sh\necho owned\n"),
        ("one byte", b"\0"),
        ("a program", b"\x7fELF" + bytes(300)),
    ):
        (path := site.path(f"{variant}.medjax")).write_bytes(before + m.archive(site).read_bytes())
        yield refused(variant, used(site, path), path.name)


def _described(
    site: Site,
    variants: dict[str, Callable[[dict], object]],
    member: str = "config.json",
    named: bool = True,
) -> Iterator[Seen]:
    source = m.archive(site)
    for i, (variant, change) in enumerate(variants.items()):
        path = m.rewritten(source, site.path(f"c{i}.medjax"), {member: m.edited(change)})
        yield refused(variant, used(site, path), *([path.name] if named else []))


@row("S19", "descriptions in archives that end in raw errors", "weak")
def raw_descriptions(site: Site) -> Iterator[Seen]:
    yield from _described(
        site,
        {
            "model name ../../x": lambda c: c["model"].update(name="../../x"),
            "overlap NaN": lambda c: c["infer"].update(overlap=float("nan")),
        },
    )
    yield from _described(
        site,
        {
            "spacing 1e-9": lambda p: p.update(spacing_mm={k: [1e-9] * 3 for k in p["spacing_mm"]}),
            "spacing NaN": lambda p: p.update(
                spacing_mm={k: [float("nan")] * 3 for k in p["spacing_mm"]}
            ),
            "spacing of a corpus missing": lambda p: p.update(spacing_mm={}),
        },
        "plan.json",
    )


@row("S20", "descriptions in archives that ask for too much or for nonsense", "pass")
def nonsense(site: Site) -> Iterator[Seen]:
    yield from _described(
        site,
        {
            "name os": lambda c: c["model"].update(name="os"),
            "name __init__": lambda c: c["model"].update(name="__init__"),
            "activation os.system": lambda c: c["infer"].update(activation="os.system"),
            "patch 0": lambda c: c["train"].update(patch=[0, 0, 0]),
            "overlap 1": lambda c: c["infer"].update(overlap=1.0),
            "overlap -5": lambda c: c["infer"].update(overlap=-5),
            "mirror axis 99": lambda c: c["infer"].update(mirror_axes=[99]),
            "features 1e7": lambda c: c["model"].update(features=[10_000_000, 10_000_000]),
            "postprocess": lambda c: c["infer"].update(
                postprocess={"largest": [7], "holes": 3, "min_ml": {"x": "y"}}
            ),
        },
        named=False,
    )
    yield from _described(
        site,
        {
            "crop": lambda p: p.update(crop="everything"),
            "orientation": lambda p: p.update(orientation="XYZ"),
            "spacing 0": lambda p: p.update(spacing_mm={k: [0, 1, 1] for k in p["spacing_mm"]}),
            "spacing -1": lambda p: p.update(spacing_mm={k: [-1, 1, 1] for k in p["spacing_mm"]}),
            "spacing abc": lambda p: p.update(spacing_mm={k: "abc" for k in p["spacing_mm"]}),
        },
        "plan.json",
        named=False,
    )


@row("S21", "an archive that names a path as its fast companion", "weak")
def fast_companion(site: Site) -> Iterator[Seen]:
    secret = site.path("elsewhere", "secret.medjax")
    m.copied(m.archive(site), secret)
    for variant, path in (
        ("another folder", "../elsewhere/secret.medjax"),
        ("absolute", str(secret)),
        ("/etc/passwd", "../../../../../etc/passwd"),
    ):
        target = site.path("models", f"{len(variant)}.medjax")
        m.rewritten(
            m.archive(site),
            target,
            {"config.json": m.edited(lambda c, path=path: c["infer"].update(fast=path))},
        )
        said = used(site, target, "--fast")
        opened = said.code == 0 or said.has("readable model archive") or said.has("no such model")
        yield refused(variant, said, also=not opened)
