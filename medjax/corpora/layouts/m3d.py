"""M3D-Seg: arrays without geometry, one sparse row per class.

    CODE/CODE.json        name, labels value -> name, modality, "train" and "test" lists (also
                          "training", "validation", "testing") of {"image", "label", optional
                          "modality"}, paths relative to the folder above CODE
    CODE/1/image.npy, CODE/1/mask_(k, x, y, z).npz

Row k of a mask file is the class with value k + 1. The archive does not contain spacings; if one is
known, it is given in `image.json` beside image.npy (see `scans/arrays.py`).
"""

import os
import re
from pathlib import Path

from medjax.corpora.inputs import Case, read_json
from medjax.corpora.layouts.common import Found, Scan, finish
from medjax.errors import MedjaxError, UsageError
from medjax.scans.paths import Mask

TRAINING = ("train", "training")


def detect(folder: Path) -> bool:
    """CODE.json (or dataset.json) with a "train" list whose images are arrays."""
    path = _list_of(folder)
    if path is None:
        return False
    spec = read_json(path)
    items = next((spec[k] for k in TRAINING if isinstance(spec, dict) and spec.get(k)), [])
    return (
        isinstance(items, list)
        and bool(items)
        and isinstance(items[0], dict)
        and str(items[0].get("image", "")).endswith(".npy")
    )


def scan(folder: Path) -> Scan:
    """Corpus, usable cases of the training list, and the problems of the others."""
    path = _list_of(folder)
    if path is None:
        raise UsageError(
            "no list of an M3D-Seg data set", path=folder, expected=f"{folder.name}.json"
        )
    spec = read_json(path)
    labels = spec.get("labels")
    labels = labels if isinstance(labels, dict) else {}
    names = {
        int(v): str(n) for v, n in labels.items() if v.isdecimal() and len(v) < 9 and int(v) > 0
    }
    if not names:
        raise UsageError(
            "lists no labels", path=path, expected='"labels": {"0": "background", "1": "liver"}'
        )
    cases, problems = [], []
    for number, item in enumerate(next((spec[k] for k in TRAINING if spec.get(k)), []), 1):
        if not isinstance(item, dict):
            problems.append(
                UsageError(
                    f"entry {number} is no object",
                    path=path,
                    found=repr(item)[:80],
                    expected='{"image": ..., "label": ...}',
                )
            )
            continue
        image, label = (_find(path, item.get(key)) for key in ("image", "label"))
        lost: list[MedjaxError] = [
            UsageError(
                f"{kind} of an entry is missing",
                path=path.parent / str(item.get(kind))[:200],
                fix=f"add it, or correct {path}",
            )
            for kind, file in (("image", image), ("label", label))
            if file is None
        ]
        if lost:
            problems += lost
            continue
        masks = tuple(Mask(names[v], str(label), f"frame:{v - 1}") for v in sorted(names))
        dense = not re.match(r"mask_\(", label.name)
        case = re.sub(
            r"[^\w.-]+", "_", image.parent.name if image.name == "image.npy" else image.stem
        )
        cases.append(
            Case(
                case,
                (str(image),),
                str(label) if dense else None,
                modality=_modality(item),
                masks=() if dense else masks,
            )
        )
    channels = spec.get("modality")
    channels = (
        tuple(str(channels[k]) for k in sorted(channels))
        if isinstance(channels, dict)
        else (str(channels or "CT"),)
    )
    return finish(
        Found(
            folder,
            cases,
            problems,
            channels,
            {n: v for v, n in names.items()},
            str(spec.get("name") or ""),
            classes=tuple(names.values()),
        )
    )


def _modality(item: dict) -> str:
    word = str(item.get("modality") or "")
    return "MR" if word.upper().startswith("MR") else word


def _list_of(folder: Path) -> Path | None:
    if folder.is_file():
        return folder if folder.suffix == ".json" else None
    name = os.path.basename(os.path.realpath(folder))
    found = [folder / f"{name}.json", folder / "dataset.json", folder.parent / f"{name}.json"]
    return next((p for p in found if p.is_file()), None)


def _find(path: Path, relative: object) -> Path | None:
    """A listed file: its path is relative to the folder above the list, or to the list."""
    tried = [base / str(relative) for base in (path.parent.parent, path.parent)] if relative else []
    return next((p for p in tried if os.path.isfile(p)), None)
