"""One binary mask per class; masks may overlap.

    CASE/ct.nii.gz,      CASE/segmentations/CLASS.nii.gz   TotalSegmentator; also masks/, labels/,
                                                           segs/, ...
    images/CASE.nii.gz,  masks/CASE/CLASS.nii.gz           `medjax predict --one-file-per-class`
    images/CASE.nii.gz,  masks/CLASS/CASE.nii.gz

Overlaps become sets of classes, see `corpora/label_sets.py`. Several images in a case folder are
its channels.
"""

from pathlib import Path

from medjax.corpora.inputs import Case
from medjax.corpora.layouts.common import UNNAMED, Found, Scan, finish, usual
from medjax.corpora.layouts.folders import IMAGES, LABELS, channels_of
from medjax.errors import MedjaxError, UsageError
from medjax.scans.paths import Mask, image_files, stem

CHANNEL_WORDS = {"ct": "CT", "mr": "MR", "mri": "MR"}


def detect(folder: Path) -> bool:
    """Detects case folders with a folder of masks, or images beside folders of masks."""
    if not folder.is_dir():
        return False
    return any(_masks_of(place) for place in _below(folder)[:20]) or _split(folder) is not None


def scan(folder: Path) -> Scan:
    """Corpus, usable cases, and the problems of the others."""
    split = _split(folder)
    cases, problems, channels = _beside(*split) if split else _inside(folder)
    return finish(Found(folder, cases, problems, channels))


def _inside(folder: Path) -> tuple[list[Case], list[MedjaxError], tuple[str, ...]]:
    found, problems = {}, []
    for place in _below(folder):
        images, masks = {stem(p): p for p in image_files(place)}, _masks_of(place)
        if images and masks:
            found[place.name] = (images, masks)
        elif images or masks:
            lacking = "masks" if images else "image"
            problems.append(
                UsageError(
                    f"case {place.name!r} has no {lacking}",
                    path=place,
                    fix=f"add the {lacking}, or remove the folder",
                )
            )
    sets = [tuple(sorted(images)) for images, _ in found.values()]
    common = usual(sets) if sets else ("",)
    cases = []
    for name, (images, masks) in found.items():
        if len(images) != len(common) or (len(common) > 1 and tuple(sorted(images)) != common):
            what = f"case {name!r} has other images than the rest"
            problems.append(
                UsageError(
                    what,
                    path=folder / name,
                    found=", ".join(sorted(images)),
                    expected=", ".join(common),
                    fix="add or remove files",
                )
            )
            continue
        cases.append(
            Case(name, tuple(str(images[k]) for k in sorted(images)), masks=_as_masks(masks))
        )
    words = tuple(CHANNEL_WORDS.get(word.lower(), word) for word in common)
    single = words if words[0] in CHANNEL_WORDS.values() else (UNNAMED,)
    return cases, problems, words if len(words) > 1 else single


def _beside(
    images: Path, masks: Path, by_class: bool
) -> tuple[list[Case], list[MedjaxError], tuple[str, ...]]:
    scans = channels_of(image_files(images))
    found: dict[str, list[tuple[str, Path]]] = {name: [] for name in scans}
    problems: list[MedjaxError] = []
    for place in _below(masks):
        for file in image_files(place):
            case, name = (stem(file), place.name) if by_class else (place.name, stem(file))
            if case in found:
                found[case].append((name, file))
            else:
                problems.append(
                    UsageError(
                        f"masks of {case!r} have no image",
                        path=file,
                        fix=f"add the image to {images}, or remove them",
                    )
                )
    cases = []
    for name, members in found.items():
        if members:
            cases.append(Case(name, tuple(map(str, scans[name])), masks=_as_masks(members)))
        else:
            problems.append(
                UsageError(
                    f"case {name!r} has no masks",
                    path=scans[name][0],
                    fix=f"add them to {masks}, or remove the image",
                )
            )
    count = max((len(c.images) for c in cases), default=1)
    return (
        cases,
        problems,
        tuple(f"{UNNAMED}_{i}" for i in range(count)) if count > 1 else (UNNAMED,),
    )


def _as_masks(members: list[tuple[str, Path]]) -> tuple[Mask, ...]:
    return tuple(Mask(name, str(path)) for name, path in sorted(members))


def _masks_of(place: Path) -> list[tuple[str, Path]]:
    """(class, file) of the masks in a case folder's folder of masks."""
    return [
        (stem(p), p)
        for below in _below(place)
        if LABELS.match(below.name)
        for p in image_files(below)
    ]


def _split(folder: Path) -> tuple[Path, Path, bool] | None:
    """(images, masks, whether masks/ is ordered by class) of a layout with separate folders."""
    images = [p for p in _below(folder) if IMAGES.match(p.name) and image_files(p)]
    masks = [
        p
        for p in _below(folder)
        if LABELS.match(p.name) and not image_files(p) and any(image_files(b) for b in _below(p))
    ]
    if len(images) != 1 or len(masks) != 1:
        return None
    names = set(channels_of(image_files(images[0])))
    by_case = len(names & {p.name for p in _below(masks[0])})
    by_class = len(names & {stem(f) for p in _below(masks[0]) for f in image_files(p)})
    return images[0], masks[0], by_class > by_case


def _below(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
