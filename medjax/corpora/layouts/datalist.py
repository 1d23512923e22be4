"""MONAI's datalist: one JSON that names images and labels.

    {"training": [{"image": "a.nii.gz", "label": "a_seg.nii.gz", "fold": 0},
                  {"image": ["b_t1.nii.gz", "b_t2.nii.gz"], "label": "b_seg.nii.gz"}, ...],
     "labels": {"0": "background", "1": "liver"}}

Also read: "dataroot", "modality" ("CT" or {"0": "CT"}), "label_dict", "original_label_dict" or
"class_names" for the labels, and in an entry "name", "patient" or "subject", "modality". Relative
paths start at "dataroot" or at the list.
"""

import os
import re
from pathlib import Path

from medjax.corpora.inputs import Case, listed_path, read_json
from medjax.corpora.layouts.common import UNNAMED, Found, Scan, finish
from medjax.errors import MedjaxError, UsageError
from medjax.scans.paths import stem

LABEL_KEYS = ("labels", "label_dict", "original_label_dict", "class_names")


def detect(path: Path) -> bool:
    """A JSON with a "training" list, or a folder with one such JSON and no other layout's mark."""
    return _list_of(path) is not None


def scan(path: Path) -> Scan:
    """Corpus, usable cases of "training", and the problems of the others."""
    file = _list_of(path)
    if file is None:
        raise UsageError(
            "no list of scans",
            path=path,
            expected='a JSON with "training": [{"image": ..., "label": ...}]',
        )
    spec = read_json(file)
    base = file.parent / listed_path(Path(), spec.get("dataroot") or ".", '"dataroot"', file)
    cases, problems, counts = [], [], set()
    for number, item in enumerate(spec["training"]):
        item = item if isinstance(item, dict) else {"image": item}
        images = item.get("image") or []
        try:
            images = [
                Path(listed_path(base, p, f"an image of entry {number}", file))
                for p in (images if isinstance(images, list) else [images])
            ]
            label = (
                None
                if item.get("label") in (None, "")
                else Path(listed_path(base, item["label"], f"the label of entry {number}", file))
            )
        except UsageError as problem:
            problems.append(problem)
            continue
        missing = [p for p in (*images, *([label] if label else [])) if not os.path.isfile(p)]
        if not images or missing:
            what = f"entry {number} of the list " + (
                "names a file that is not there" if missing else "has no image"
            )
            problems.append(
                UsageError(what, path=missing[0] if missing else file, fix=f"correct {file}")
            )
            continue
        counts.add(len(images))
        name = _case_name(item, images[0])
        patient = str(item.get("patient") or item.get("subject") or "")
        modality = str(item.get("modality") or "")
        cases.append(
            Case(
                name,
                tuple(map(str, images)),
                None if label is None else str(label),
                "",
                modality,
                patient,
            )
        )
    cases = _distinct(cases)
    problems += [p for p in [_uneven(counts, file)] if p]
    return finish(
        Found(
            path,
            cases,
            problems,
            _channels(spec, counts),
            _labels(spec),
            str(spec.get("name") or _name(path, file)),
        )
    )


def folds(path: Path) -> list[dict[str, list[str]]]:
    """The list's own split: per "fold" the validation and training case names, or []."""
    file = _list_of(path)
    spec = read_json(file) if file else {"training": []}
    of = {}
    for item in spec["training"]:
        if isinstance(item, dict) and "fold" in item:
            images = item.get("image")
            image = images[0] if isinstance(images, list) and images else images
            if not isinstance(image, str) or not str(item["fold"]).isdecimal():
                raise UsageError(
                    "an entry whose fold or image makes no sense",
                    path=file,
                    found=repr(item)[:80],
                    expected='"fold": 0',
                )
            of[_case_name(item, image)] = int(item["fold"])
    return [
        {
            "train": sorted(n for n, f in of.items() if f != fold),
            "val": sorted(n for n, f in of.items() if f == fold),
        }
        for fold in sorted(set(of.values()))
    ]


def _case_name(item: dict, image: str | Path) -> str:
    """The name of an entry, or of its first file; validity is checked for all layouts at once."""
    return str(item.get("name") or re.sub(r"_0000$", "", stem(image)))


def _list_of(path: Path) -> Path | None:
    files = [path] if path.suffix == ".json" and path.is_file() else []
    if path.is_dir() and not (path / "dataset.json").is_file():
        files = sorted(
            p for p in path.glob("*.json") if not p.name.startswith(".") and p.name != "medjax.json"
        )
    good = [f for f in files if _is_list(f)]
    if len(good) > 1:
        raise UsageError(
            "several lists of scans",
            path=path,
            found=", ".join(f.name for f in good),
            fix="give one of them",
        )
    return good[0] if good else None


def _is_list(file: Path) -> bool:
    try:
        spec = read_json(file)
    except MedjaxError:
        return False
    return (
        isinstance(spec, dict) and isinstance(spec.get("training"), list) and bool(spec["training"])
    )


def _channels(spec: dict, counts: set[int]) -> tuple[str, ...]:
    said = spec.get("channel_names", spec.get("modality"))
    if isinstance(said, dict) and said:
        return tuple(str(said[k]) for k in sorted(said))
    if isinstance(said, list) and said:
        return tuple(map(str, said))
    count = max(counts, default=1)
    if isinstance(said, str) and said:
        return (said,) if count == 1 else tuple(f"{said}_{i}" for i in range(count))
    return (UNNAMED,) if count == 1 else tuple(f"{UNNAMED}_{i}" for i in range(count))


def _labels(spec: dict) -> dict | None:
    said = next(
        (spec[k] for k in LABEL_KEYS if isinstance(spec.get(k), dict | list) and spec[k]), None
    )
    return {str(n): i for i, n in enumerate(said, 1)} if isinstance(said, list) else said


def _distinct(cases: list[Case]) -> list[Case]:
    """Distinct case names: files of equal name in different folders are prefixed by the folder."""
    names = [c.name for c in cases]
    if len(set(names)) == len(names):
        return cases
    return [
        Case(
            f"{Path(c.images[0]).parent.name}_{c.name}",
            c.images,
            c.label,
            "",
            c.modality,
            c.patient,
        )
        for c in cases
    ]


def _uneven(counts: set[int], file: Path) -> MedjaxError | None:
    return (
        UsageError(
            "cases with different numbers of images",
            path=file,
            found=sorted(counts),
            fix="one image per channel",
        )
        if len(counts) > 1
        else None
    )


def _name(path: Path, file: Path) -> str:
    return os.path.basename(os.path.realpath(path)) if path.is_dir() else file.stem
