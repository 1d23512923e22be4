"""BIDS: raw scans in sub-*/, segmentations in them or in derivatives/.

    sub-01/[ses-a/]anat/sub-01_[ses-a_]T1w.nii.gz
    derivatives/NAME/sub-01/anat/sub-01_space-orig_dseg.nii.gz      label map; class names in
                                                 sub-01_..._dseg.tsv or, for all, in dseg.tsv
    derivatives/NAME/sub-01/anat/sub-01_label-liver_mask.nii.gz     one mask per class

A segmentation belongs to the image that has all its entities except those that describe the
segmentation itself. With several images the channels must be named: "channels": ["T1w", "FLAIR"] in
medjax.json.
"""

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

from medjax.corpora.dataset_json import hints
from medjax.corpora.inputs import Case, read_json
from medjax.corpora.layouts.common import Found, Scan, finish
from medjax.corpora.lists import decoded
from medjax.errors import MedjaxError, UsageError
from medjax.scans.paths import ENDINGS, Mask, stem

OWN = (
    "space",
    "desc",
    "label",
    "res",
    "den",
    "atlas",
    "seg",
    "hemi",
    "from",
    "method",
)  # entities of a segmentation, not of its image
ENTITY = re.compile(r"^([a-zA-Z]+)-([a-zA-Z0-9+]+)$")
MASKS = ("dseg", "mask", "probseg")


def detect(folder: Path) -> bool:
    """sub-* folders with BIDS names in them."""
    return (
        folder.is_dir() and any(p.is_dir() for p in folder.glob("sub-*")) and bool(_files(folder))
    )


def scan(folder: Path) -> Scan:
    """Corpus, usable cases, and the problems of the others."""
    said, _ = hints(folder)
    images, labels = {}, []
    for file in _files(folder):
        entities, suffix = parse(stem(file))
        if suffix in MASKS:
            labels.append((file, entities, suffix))
        else:
            images.setdefault(suffix, []).append((file, entities))
    labels = [
        found
        for found in labels
        if str(said.get("select", "")) in str(found[0].relative_to(folder))
        and found[2] != "probseg"
    ]
    if not labels:
        raise UsageError(
            "no segmentations",
            path=folder,
            expected="*_dseg.nii.gz or *_label-NAME_mask.nii.gz",
            fix="see docs/data.md",
        )
    wanted = tuple(said["channels"]) if isinstance(said.get("channels"), list) else ()
    cases, problems, suffixes = _cases(images, labels, wanted, folder)
    tables = [names_of(file, folder) for file, _, suffix in labels if suffix == "dseg"]
    names = {value: name for table in tables for value, name in table.items()}
    if conflict := next(
        (v for v in names for table in tables if table.get(v, names[v]) != names[v]), None
    ):
        raise UsageError(
            f"value {conflict} has different names in different files",
            path=folder,
            fix='say "labels" in medjax.json',
        )
    patients = {
        case.name: m[0] for case in cases if (m := re.match(r"sub-[a-zA-Z0-9+]+", case.name))
    }
    return finish(
        Found(
            folder,
            cases,
            problems,
            suffixes,
            {str(v): n for v, n in names.items()} or None,
            modality=_modality(suffixes),
            patients=patients,
        )
    )


def parse(name: str) -> tuple[dict[str, str], str]:
    """sub-01_ses-a_T1w -> ({"sub": "01", "ses": "a"}, "T1w")."""
    *parts, suffix = name.split("_")
    return {m[1]: m[2] for m in map(ENTITY.match, parts) if m}, suffix


def names_of(label: Path, root: Path) -> dict[int, str]:
    """Label value -> name from the sidecar tables of a *_dseg file or of a folder above it.

    Tables are .tsv with index and name, or .json.
    """
    for folder in [label.parent, *label.parent.parents]:
        own = (
            [label.with_name(f"{stem(label)}{e}") for e in (".tsv", ".json")]
            if folder == label.parent
            else []
        )
        shared = [
            p
            for e in ("tsv", "json")
            for p in sorted(folder.glob(f"*dseg.{e}"))
            if "sub" not in parse(p.stem)[0]
        ]
        for file in [*own, *shared]:
            if file.is_file() and (found := _table(file)):
                return found
        if folder == root:
            break
    return {}


def _table(file: Path) -> dict[int, str]:
    if file.suffix == ".tsv":
        rows = io.StringIO(decoded(file.read_bytes(), file), newline="")
        try:
            found = [
                (row.get("index") or row.get("mapping"), row.get("name"))
                for row in csv.DictReader(rows, delimiter="\t")
            ]
        except csv.Error as error:
            raise UsageError(
                f"damaged table ({error})", path=file, fix="save it again as UTF-8 with tabs"
            ) from error
    else:
        said = read_json(file)
        if not isinstance(said, dict):
            return {}
        said = next(
            (said[k] for k in ("LabelMap", "Labels", "labels") if isinstance(said.get(k), dict)),
            said,
        )
        found = [
            pair if str(pair[0]).isdigit() else pair[::-1]
            for pair in said.items()
            if not isinstance(pair[1], dict | list)
        ]
    return {
        int(v): str(n)
        for v, n in found
        if n and str(v).isdecimal() and len(str(v)) < 9 and int(v) > 0
    }


def _cases(
    images: dict[str, list], labels: list, wanted: Iterable[str], folder: Path
) -> tuple[list[Case], list[MedjaxError], tuple[str, ...]]:
    groups: dict[tuple, list] = {}
    for file, entities, suffix in labels:
        key = tuple(sorted((k, v) for k, v in entities.items() if k not in OWN))
        groups.setdefault(key, []).append((file, entities, suffix))
    cases, problems, used = [], [], tuple(wanted)
    for key, members in sorted(groups.items()):
        label, masks = (
            [f for f, _, s in members if s == "dseg"],
            [(e.get("label"), f) for f, e, s in members if s == "mask"],
        )
        masks = [
            (name, file) for name, file in masks if name
        ]  # a mask without a label is a brain mask, no class
        space = next((e["space"] for f, e, _ in members if "space" in e), None)
        fits = {suffix: _fitting(files, dict(key), space) for suffix, files in images.items()}
        found = {
            suffix: files
            for suffix, files in fits.items()
            if files and (not wanted or suffix in wanted)
        }
        where = members[0][0]
        if len(label) > 1 or (label and masks):
            names = ", ".join(str(f.relative_to(folder)) for f, _, _ in members[:4])
            fix = 'choose by "select" in medjax.json, a part of the wanted file name'
            problems.append(
                UsageError("several segmentations of one scan", path=where, found=names, fix=fix)
            )
        elif not label and not masks:
            continue
        elif (
            (wanted and set(found) != set(wanted))
            or (not wanted and len(found) != 1)
            or any(len(f) > 1 for f in found.values())
        ):
            names = ", ".join(f.name for files in found.values() for f in files) or "none"
            fix = (
                'name the images by "channels": ["T1w"] in medjax.json'
                if found
                else "add the image, or remove the segmentation"
            )
            problems.append(
                UsageError(
                    "unclear which images belong to this segmentation",
                    path=where,
                    found=names,
                    fix=fix,
                )
            )
        else:
            order = tuple(wanted) or tuple(found)
            used = used or order
            if order != used:
                found_, expected = ", ".join(order), ", ".join(used)
                problems.append(
                    UsageError(
                        "another kind of image than in the first case",
                        path=where,
                        found=found_,
                        expected=expected,
                    )
                )
                continue
            name = "_".join(
                f"{k}-{v}" for k, v in parse(stem(found[order[0]][0]))[0].items() if k not in OWN
            )
            files = tuple(str(found[s][0]) for s in order)
            cases.append(
                Case(
                    name,
                    files,
                    str(label[0]) if label else None,
                    masks=tuple(Mask(n, str(f)) for n, f in sorted(masks)),
                )
            )
    return cases, problems, used or ("T1w",)


def _fitting(files: list, key: dict[str, str], space: str | None) -> list[Path]:
    """Images with all entities of the segmentation; those in its own space come before raw ones."""
    good = [(f, e) for f, e in files if all(e.get(k) == v for k, v in key.items())]
    same = [f for f, e in good if space is not None and e.get("space") == space]
    raw = [f for f, e in good if not set(e) & set(OWN)]
    exact = [f for f in raw if set(parse(stem(f))[0]) == set(key)]
    return same or exact or raw


def _modality(suffixes: tuple[str, ...]) -> str:
    return (
        "CT"
        if any(s.lower() == "ct" for s in suffixes)
        else "PET"
        if suffixes == ("pet",)
        else "MR"
    )


def _files(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.rglob("sub-*_*")
        if p.name.endswith(ENDINGS)
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
