"""Image and label map side by side, distinguished by their names.

one folder:            volume-0.nii, segmentation-0.nii, volume-1.nii, ...           (LiTS)
one folder per case:   case_00000/imaging.nii.gz, case_00000/segmentation.nii.gz     (KiTS)
                       BraTS_001/BraTS_001_flair.nii.gz, ..._t1.nii.gz, ..._seg.nii.gz
                       (BraTS: the rest of the name is the channel)
"""

import itertools
import re
from pathlib import Path

from medjax.corpora.dataset_json import hints
from medjax.corpora.inputs import Case
from medjax.corpora.layouts.common import UNNAMED, Found, Scan, finish, usual
from medjax.corpora.layouts.folders import channels_of, pair
from medjax.corpora.words import is_label_name, key_of
from medjax.errors import UsageError
from medjax.scans.paths import image_files, stem


def detect(folder: Path) -> bool:
    """Files whose names say label beside files whose names do not."""
    if not folder.is_dir():
        return False
    groups = [image_files(folder), *(image_files(p) for p in _case_folders(folder)[:5])]
    return any({is_label_name(stem(f)) for f in files} == {True, False} for files in groups)


def scan(folder: Path) -> Scan:
    """Corpus, usable cases, and the problems of the others."""
    flat = image_files(folder)
    if flat:
        return _flat(folder, flat)
    said, _ = hints(folder)
    found, problems = {}, []
    for place in _case_folders(folder):
        files = image_files(place)
        labels = [
            f for f in files if is_label_name(stem(f)) and str(said.get("select", "")) in f.name
        ]
        images = [f for f in files if not is_label_name(stem(f))]
        if len(labels) != 1 or not images:
            what = f"case {place.name!r} needs one label map and its images"
            names = ", ".join(f.name for f in files) or "nothing"
            fix = 'add what is missing; of several label maps name one by "select" in medjax.json'
            problems.append(UsageError(what, path=place, found=names, fix=fix))
        else:
            found[place.name] = (_channels(place.name, images), labels[0])
    words = _common_channels(found, said)
    cases: list[Case] = []
    for name, (images, label) in found.items():
        lacking = [w for w in words if w not in images]
        more = [] if said.get("channels") else [w for w in images if w not in words]
        if lacking or more:
            what = (
                f"case {name!r} has no image {lacking[0]!r}"
                if lacking
                else f"case {name!r} has an image more than others, {more[0]!r}"
            )
            fix = "add or remove files, or choose the channels in medjax.json"
            problems.append(
                UsageError(
                    what,
                    path=folder / name,
                    found=", ".join(images),
                    expected=", ".join(words),
                    fix=fix,
                )
            )
            continue
        cases.append(Case(name, tuple(str(images[w]) for w in words), str(label)))
    return finish(
        Found(folder, cases, problems, words if len(words) > 1 else (_channel_name(words),))
    )


def _flat(folder: Path, files: list[Path]) -> Scan:
    labels = {stem(f): f for f in files if is_label_name(stem(f))}
    scans = channels_of([f for f in files if not is_label_name(stem(f))])
    pairs, problems = pair(scans, labels, folder, folder)
    named = {name: key_of(name) for name in pairs}
    plain = (
        len(set(named.values())) < len(named)
        or "" in named.values()
        or not all(re.search(r"\D", n) for n in named.values())
    )
    cases = [
        Case(name if plain else named[name], tuple(map(str, scans[name])), str(label))
        for name, label in pairs.items()
    ]
    return finish(Found(folder, cases, problems))


def _case_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _channels(case: str, images: list[Path]) -> dict[str, Path]:
    """What distinguishes the images of a case -> the file: the name without the case's own."""
    names = [stem(f) for f in images]
    shared = case if all(name.startswith(case) and name != case for name in names) else ""
    if not shared and len(names) > 1:
        letters = itertools.takewhile(
            lambda column: len(set(column)) == 1, zip(*names, strict=False)
        )
        shared = re.sub(r"[^_\-.]*$", "", "".join(column[0] for column in letters))
    return {
        name.removeprefix(shared).lstrip("_-.") or name: file
        for name, file in zip(names, images, strict=True)
    }


def _common_channels(found: dict, said: dict) -> tuple[str, ...]:
    given = said.get("channels")
    if isinstance(given, list) and given:
        return tuple(map(str, given))
    sets = [tuple(sorted(images)) for images, _ in found.values()]
    return usual(sets) if sets else (UNNAMED,)


def _channel_name(words: tuple[str, ...]) -> str:
    word = words[0].lower()
    return (
        "CT"
        if word == "ct"
        else "MR"
        if word in ("mr", "mri")
        else words[0]
        if not key_of(words[0]) == "" and len(word) < 6
        else UNNAMED
    )
