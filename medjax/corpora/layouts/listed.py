"""Layouts with a dataset.json: Medical Segmentation Decathlon (MSD) and nnU-Net raw.

    TaskXX_Name/      labels value -> name, a "training" list of {"image", "label"}; channels
                      are the last axis of a 4D file
    DatasetXXX_Name/  labels name -> value or values, channel_names, file_ending;
                      imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz

nnU-Net's explicit "dataset" lists and its v1 form (an MSD list with _0000 files) are read as well;
`_0000` is optional for one channel.
"""

import os
from pathlib import Path

from medjax.corpora.dataset_json import describe, patients_of
from medjax.corpora.inputs import Case, listed_path, read_json
from medjax.corpora.layouts.common import Scan
from medjax.errors import MedjaxError, UsageError
from medjax.scans.paths import CHANNEL, ENDINGS, image_files, stem


def detect(folder: Path) -> bool:
    """A dataset.json with a training list, an explicit list, or imagesTr beside it."""
    path = folder / "dataset.json"
    if not path.is_file():
        return False
    spec = read_json(path)
    return (
        not isinstance(spec, dict)
        or bool({"training", "dataset"} & set(spec))
        or (folder / "imagesTr").is_dir()
    )


def scan(folder: Path) -> Scan:
    """Corpus, usable cases, and the problems of the others."""
    path = folder / "dataset.json"
    corpus, spec, block = describe(path)
    entries, problems = _entries(folder, spec, len(corpus.channels), bool(corpus.classes))
    patients = patients_of(block.get("patients", {}), [name for name, _, _ in entries], path)
    cases = tuple(
        Case(name, images, label, corpus.name, corpus.modality, patients[name])
        for name, images, label in entries
    )
    if not cases and not problems:
        _refuse_ending(folder, spec.get("file_ending", ".nii.gz"))
        raise UsageError(
            "has no training cases",
            path=path,
            fix='list them in "training", or put scans into imagesTr and labelsTr',
        )
    return corpus, cases, problems


def _refuse_ending(folder: Path, ending: str) -> None:
    """`UsageError` if there are scans, but with another ending than the description says."""
    others = image_files(folder / "imagesTr")
    if others and not any(path.name.endswith(ending) for path in others):
        found = others[0].name[len(stem(others[0])) :]
        raise UsageError(
            f'"file_ending" says {ending!r}, but the scans in imagesTr end differently',
            path=folder / "dataset.json",
            found=others[0].name,
            fix=f'write "file_ending": "{found}"',
        )


def _entries(
    folder: Path, spec: dict, n_channels: int, labelled: bool
) -> tuple[list, list[MedjaxError]]:
    """(case name, image paths, label path) sorted by name, and problems of incomplete cases."""
    path, ending = folder / "dataset.json", spec.get("file_ending", ".nii.gz")
    if ending not in ENDINGS:
        raise UsageError(
            "unsupported file ending",
            path=path,
            found=ending,
            expected=" or ".join(ENDINGS),
            fix="convert the scans to NIfTI",
        )
    wanted: dict[str, tuple[list[Path], Path | None]] = {}
    entries, problems = [], []
    if isinstance(spec.get("training"), list):  # MSD, and nnU-Net v1
        for number, item in enumerate(spec["training"], 1):
            item = item if isinstance(item, dict) else {"image": item}
            try:
                image = Path(
                    listed_path(
                        folder, item.get("image"), f"the image of training entry {number}", path
                    )
                )
                label = _label(folder, item, f"training entry {number}", path)
            except UsageError as problem:
                problems.append(problem)
                continue
            if image.name.startswith("."):
                continue
            if stem(image) in wanted:
                raise UsageError(
                    f"case {stem(image)!r} is listed twice",
                    path=path,
                    fix="give every case its own file name",
                )
            channels = [
                image.parent / f"{stem(image)}_{c:04d}{image.name[len(stem(image)) :]}"
                for c in range(n_channels)
            ]
            split = not os.path.isfile(image) and os.path.isfile(channels[0])
            wanted[stem(image)] = (channels if split else [image], label)
    elif isinstance(spec.get("dataset"), dict):  # nnU-Net's explicit list
        for name, item in spec["dataset"].items():
            images = item.get("images") if isinstance(item, dict) else None
            try:
                if not isinstance(images, list) or not images:
                    raise UsageError(
                        f"case {name!r} has no list of images",
                        path=path,
                        found=repr(images)[:80],
                        expected='["a_0000.nii.gz"]',
                    )
                images = [
                    Path(listed_path(folder, p, f"an image of case {name!r}", path)) for p in images
                ]
                wanted[name] = (images, _label(folder, item, f"case {name!r}", path))
            except UsageError as problem:
                problems.append(problem)
    else:
        found: dict[str, list[Path]] = {}
        for image in image_files(folder / "imagesTr", [ending]):
            match = CHANNEL.match(stem(image))
            found.setdefault(match[1] if match else stem(image), []).append(image)
        for name in sorted(
            {*found, *(stem(p) for p in image_files(folder / "labelsTr", [ending]))}
        ):
            images = found.get(name) or [folder / "imagesTr" / f"{name}_0000{ending}"]
            wanted[name] = (images, folder / "labelsTr" / f"{name}{ending}" if labelled else None)
    for name, (images, label) in sorted(wanted.items()):
        problem = _missing(name, images, label, n_channels, labelled, path)
        if problem is None:
            entries.append((name, tuple(map(str, images)), None if label is None else str(label)))
        else:
            problems.append(problem)
    return entries, problems


def _label(folder: Path, item: dict, of: str, path: Path) -> Path | None:
    """The label that an entry of a list names, if it names one."""
    return (
        None
        if item.get("label") in (None, "")
        else Path(listed_path(folder, item["label"], f"the label of {of}", path))
    )


def _missing(
    name: str, images: list[Path], label: Path | None, n_channels: int, labelled: bool, path: Path
) -> MedjaxError | None:
    """What a case lacks, if anything."""
    for image in images:
        if what := _lacking(image):
            return UsageError(
                f"image of case {name!r} {what}",
                path=image,
                fix=f"add the file, or remove the case from {path}",
            )
    if len(images) not in (1, n_channels) or (
        len(images) == 1 and n_channels > 1 and CHANNEL.match(stem(images[0]))
    ):
        files = ", ".join(i.name for i in images)
        fix = "add the missing channel files, or correct the channel names"
        return UsageError(
            f"wrong number of channels in case {name!r}",
            path=path,
            found=files,
            expected=f"{n_channels} files",
            fix=fix,
        )
    if label is None and labelled:
        return UsageError(
            f"case {name!r} has no label",
            path=path,
            fix='add "label", or remove the case from "training"',
        )
    if label is not None and (what := _lacking(label)):
        return UsageError(
            f"label of case {name!r} {what}",
            path=label,
            fix=f"add the file, or remove the case from {path}",
        )
    return None


def _lacking(file: Path) -> str:
    """Why a listed file cannot be read, in words; empty if it can."""
    if os.path.isfile(file):
        return ""
    return (
        "is a broken symbolic link"
        if os.path.islink(file)
        else "is no file"
        if os.path.exists(file)
        else "is missing"
    )
