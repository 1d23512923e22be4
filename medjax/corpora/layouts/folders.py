"""Two folders: images in one, label maps in the other, paired by their names.

Folders are recognised by the words in their names (images, imagesTr, img, volumes, ... / labels,
labelsTr, masks, segmentations, ...). File names may differ in such words (img0001 and label0001,
volume-3 and segmentation-3); `x_0000`, `x_0001` are the channels of x.
"""

import re
from pathlib import Path

from medjax.corpora.inputs import Case
from medjax.corpora.layouts.common import UNNAMED, Found, Scan, finish
from medjax.corpora.words import key_of
from medjax.errors import MedjaxError, UsageError
from medjax.scans.paths import CHANNEL, image_files, stem

IMAGES = re.compile(
    r"^(images?|imgs?|images?tr|volumes?|scans?|ct|cts|mr|mri|raw|data|input)$", re.IGNORECASE
)
LABELS = re.compile(
    r"^(labels?|labels?tr|lbls?|masks?|segs?|segmentations?|annotations?|gt|ground[-_ "
    r"]?truth|targets?)$",
    re.IGNORECASE,
)


def detect(folder: Path) -> bool:
    """One folder of images and one of label files."""
    return folder.is_dir() and all(_folders(folder))


def scan(folder: Path) -> Scan:
    """Corpus, usable cases, and the problems of files without a partner."""
    images, labels = _folders(folder)
    if images is None or labels is None:
        raise UsageError(
            "no pair of image and label folders",
            path=folder,
            expected="e.g. images/ and labels/ with files of equal names",
        )
    scans = channels_of(image_files(images))
    pairs, problems = pair(scans, {stem(p): p for p in image_files(labels)}, images, labels)
    cases = [Case(name, tuple(map(str, scans[name])), str(label)) for name, label in pairs.items()]
    count = max((len(c.images) for c in cases), default=1)
    channels = tuple(f"{UNNAMED}_{i}" for i in range(count)) if count > 1 else (_word(images),)
    return finish(Found(folder, cases, problems, channels))


def channels_of(files: list[Path]) -> dict[str, list[Path]]:
    """Case -> its files; x_0000, x_0001, ... without a gap are one case."""
    found: dict[str, list[Path]] = {}
    for file in files:
        match = CHANNEL.match(stem(file))
        found.setdefault(match[1] if match else stem(file), []).append(file)
    whole = {}
    for name, members in found.items():
        numbers = [m[2] for m in map(CHANNEL.match, map(stem, members)) if m]
        together = numbers == [f"{c:04d}" for c in range(len(members))]
        whole |= {name: members} if together else {stem(m): [m] for m in members}
    return whole


def pair(
    scans: dict, labels: dict[str, Path], where: Path, there: Path
) -> tuple[dict[str, Path], list[MedjaxError]]:
    """Image name -> label file: by equal names, then without the words for image and label."""
    pairs = {name: labels[name] for name in scans if name in labels}
    rest_scans, rest = [n for n in scans if n not in pairs], [n for n in labels if n not in pairs]
    by_key: dict[str, list[list[str]]] = {}
    for side, names in enumerate((rest_scans, rest)):
        for name in names:
            by_key.setdefault(key_of(name), [[], []])[side].append(name)
    problems: list[MedjaxError] = []
    for key, (left, right) in sorted(by_key.items()):
        if len(left) == len(right) == 1:
            pairs[left[0]] = labels[right[0]]
        elif left and right:
            what = (
                "cannot determine which label belongs to which image "
                f"({key or 'no number in the name'!r})"
            )
            problems.append(
                UsageError(
                    what,
                    path=where,
                    found=", ".join((left + right)[:6]),
                    fix="give image and label one name",
                )
            )
        else:
            for name in left:
                fix = "add it, or remove the image"
                problems.append(
                    UsageError(
                        f"image {name!r} has no label",
                        path=there,
                        expected=f"a file called {name}",
                        fix=fix,
                    )
                )
            for name in right:
                problems.append(
                    UsageError(
                        f"label {name!r} has no image",
                        path=labels[name],
                        fix=f"add the image to {where}, or remove it",
                    )
                )
    return dict(sorted(pairs.items())), problems


def _word(images: Path) -> str:
    name = images.name.lower()
    return "CT" if name in ("ct", "cts") else "MR" if name in ("mr", "mri") else UNNAMED


def _folders(folder: Path) -> tuple[Path | None, Path | None]:
    below = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    sides = []
    for pattern in (IMAGES, LABELS):
        good = [p for p in below if pattern.match(p.name) and image_files(p)]
        if len(good) > 1:
            raise UsageError(
                "several folders could hold the images or labels",
                path=folder,
                found=", ".join(p.name for p in good),
                fix="keep one of each",
            )
        sides.append(good[0] if good else None)
    return sides[0], sides[1]
