"""Raw folders and lists -> what to train on and what to predict.

In: a data set folder in the Medical Segmentation Decathlon (MSD) or nnU-Net layout, or anything a user may name as prediction input.
Out: a `Corpus` (the meaning of its label values) and one `Case` per scan. Only names and JSON are read here, never pixels.

An optional block of dataset.json says what the common layouts cannot:

    "medjax": {"annotated": ["liver"],                  classes whose absence means background; default all
               "modality": "CT",                        default: CT if a channel is called CT, else MR
               "patients": {"case_01": "p1"},           or {"regex": "^(p\\d+)"}: cases of one patient never straddle a split
               "regions": {"liver": [1, 2]},            more classes, each a set of label values
               "name": "Liver",                         default: the folder's name without TaskXX_ or DatasetXXX_
               "meanings": {"kidney": "both, ..."},     what a class means, where the name alone may mislead
               "twins": [{"corpus": "LiTS", "cases": "liver_(\\d+)", "other": "volume-\\1"}]}   scans shared with other corpora
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from medjax.data.inputs import CHANNEL, ENDINGS, Case, find_inputs, nifti_files, read_json, stem
from medjax.errors import LabelError, MedjaxError, UsageError, did_you_mean
from medjax.labels import BACKGROUND, Corpus

__all__ = ["Case", "find_inputs", "read_corpus", "read_labels", "scan_corpus"]

BLOCK_KEYS = ("annotated", "modality", "patients", "regions", "name", "meanings", "twins", "license", "licence", "citation")


def read_corpus(folder: str | os.PathLike) -> tuple[Corpus, tuple[Case, ...]]:
    """Reads the description of a raw data set; the layout is told from what dataset.json holds.

    Args:
      folder: an MSD folder (`TaskXX_Name`: labels value -> name, a `training` list) or an nnU-Net one (`DatasetXXX_Name`: labels name ->
        value or list of values, `channel_names`, `file_ending`); a bare nnU-Net name or id is looked up in $nnUNet_raw.

    Returns: the corpus and its training cases, sorted by name.
    Raises: `UsageError` for missing or superfluous files, `LabelError` for labels that make no sense; each names file, value and fix.
    """
    corpus, cases, problems = scan_corpus(folder)
    if problems:
        first, rest = problems[0], len(problems) - 1
        message = first.message + (f" (and {rest} more problems; `medjax verify` lists them)" if rest else "")
        raise type(first)(message, path=first.path, found=first.found, expected=first.expected, fix=first.fix)
    return corpus, cases


def read_labels(path: str | os.PathLike) -> Corpus:
    """The corpus that a dataset.json (or its folder) describes; scans are not looked for."""
    path = Path(path)
    return _describe(path / "dataset.json" if path.is_dir() else path)[0]


def scan_corpus(folder: str | os.PathLike) -> tuple[Corpus, tuple[Case, ...], list[MedjaxError]]:
    """Like `read_corpus`, but returns the usable cases together with the problems of the others instead of raising for a case."""
    folder = _resolve(folder)
    path = folder / "dataset.json"
    corpus, spec, block = _describe(path)
    entries, problems = _entries(folder, spec, len(corpus.channels), bool(corpus.classes))
    patients = _patients(block.get("patients", {}), [name for name, _, _ in entries], path)
    cases = tuple(Case(name, images, label, corpus.name, corpus.modality, patients[name]) for name, images, label in entries)
    if not cases and not problems:
        raise UsageError("has no training cases", path=path, fix='list them in "training", or put scans into imagesTr and labelsTr')
    return corpus, cases, problems


def _describe(path: Path) -> tuple[Corpus, dict, dict]:
    """dataset.json -> the corpus, all fields, and the "medjax" block."""
    spec = read_json(path)
    block = spec.get("medjax", {}) if isinstance(spec, dict) else None
    if not isinstance(block, dict):
        raise UsageError('the file and its "medjax" block must be objects', path=path, found=str(spec)[:60])
    for key in set(block) - set(BLOCK_KEYS):
        raise UsageError(f'unknown key "{key}" in "medjax"', path=path, fix=did_you_mean(key, BLOCK_KEYS))
    channels = spec.get("channel_names", spec.get("modality"))
    if not isinstance(channels, dict) or not channels or not all(str(k).isdigit() for k in channels):
        expected = '"channel_names": {"0": "CT"}, or "modality" in MSD'
        raise UsageError("no usable channel names", path=path, found=channels, expected=expected)
    channels = tuple(str(channels[k]) for k in sorted(channels, key=int))
    labels, ignore = _labels(spec.get("labels", {}), block.get("regions", {}), path)
    named = {name for _, names in labels for name in names}
    annotated = block.get("annotated", [])
    if not isinstance(annotated, list):
        raise LabelError('"annotated" must be a list of class names', path=path, found=annotated, expected=f'["{annotated}"]')
    for unknown in (name for name in annotated if name not in named):
        raise LabelError(f'"annotated" names the unknown class {unknown!r}', path=path, fix=did_you_mean(unknown, named))
    name = str(block.get("name") or re.sub(r"^(Task|Dataset)\d+_", "", path.resolve().parent.name))
    if "/" in name or os.sep in name or name.startswith("."):
        raise UsageError("unusable corpus name", path=path, found=name, expected="a name that can be a folder")
    modality = str(block.get("modality") or ("CT" if any(c.lower() == "ct" for c in channels) else "MR"))
    meanings = block.get("meanings", {})
    if not isinstance(meanings, dict):
        raise LabelError('"meanings" must be an object', path=path, found=meanings, expected='{"kidney": "both kidneys"}')
    return Corpus(name, labels, tuple(annotated), modality, channels, ignore, meanings=tuple(meanings.items())), spec, block


def _resolve(folder: str | os.PathLike) -> Path:
    """The data set folder; bare nnU-Net names and ids are sought in $nnUNet_raw."""
    given, raw = Path(folder), os.environ.get("nnUNet_raw")
    if not given.exists() and raw and len(given.parts) == 1:
        number = f"Dataset{int(given.name):03d}_*" if given.name.isdigit() else f"{given.name}*"
        found = sorted(Path(raw).glob(number))
        given = found[0] if len(found) == 1 else given
    if not given.is_dir():
        raise UsageError("no such data set folder", path=folder, fix="give the folder that holds dataset.json, imagesTr and labelsTr")
    if not any(p for p in given.iterdir() if not p.name.startswith(".")):
        raise UsageError("the data set folder is empty", path=folder, expected="dataset.json, imagesTr, labelsTr")
    return given


def _labels(labels: object, regions: object, path: Path) -> tuple[tuple[tuple[int, tuple[str, ...]], ...], int | None]:
    """Either direction of `labels`, plus `regions` -> (value, class names) entries and the ignore value."""
    if not isinstance(labels, dict) or not isinstance(regions, dict):
        raise LabelError('"labels" and "regions" must be objects', path=path, found=labels, expected='{"background": 0, "liver": 1}')
    if labels and all(isinstance(v, str) for v in labels.values()):  # MSD: value -> name
        labels = [(str(name), value) for value, name in labels.items()]
    else:  # nnU-Net: name -> value or values
        labels = list(labels.items())
    declared = {_integer(v, name, path) for name, value in labels for v in (value if isinstance(value, list) else [value])}
    holders: dict[int, list[str]] = {}
    plain, ignore = {}, None
    for name, value in [*labels, *((name, list(values)) for name, values in regions.items())]:
        region = isinstance(value, list)
        values = [_integer(v, name, path) for v in (value if region else [value])]
        if name == "ignore":
            if region:
                raise LabelError("the ignore label must be one value", path=path, found=value)
            ignore = values[0]
            continue
        if values == [0] and not region:
            continue  # whatever it is called, value 0 is background and no class
        if name.lower() == BACKGROUND or 0 in values or not values:
            raise LabelError(
                f"value 0 is background and belongs to no class ({name!r})", path=path, found=value, fix="use values from 1 on"
            )
        if not region and plain.setdefault(values[0], name) != name:
            both = f"{plain[values[0]]!r} and {name!r}"
            raise LabelError(f"{both} share one value", path=path, found=value, fix="give each its own, or write one as a list (a region)")
        if stray := set(values) - declared:
            fix = f"some of {sorted(declared - {0})}"
            raise LabelError(f"region {name!r} uses undeclared values", path=path, found=sorted(stray), expected=fix)
        for v in values:
            names = holders.setdefault(v, [])
            names.extend([name] if name not in names else [])
    if ignore is not None and ignore in {0, *holders}:
        raise LabelError("the ignore value is also a label", path=path, found=ignore, fix="use a value of its own, such as the highest + 1")
    return tuple((value, tuple(holders[value])) for value in sorted(holders)), ignore


def _integer(value: object, name: str, path: Path) -> int:
    if isinstance(value, str) and value.strip().isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise LabelError(f"label {name!r} has no integer value", path=path, found=repr(value), expected="0 to 65535, or a list of those")
    return value


def _entries(folder: Path, spec: dict, n_channels: int, labelled: bool) -> tuple[list, list[MedjaxError]]:
    """(case name, image paths, label path) sorted by name, and the problems of the cases that lack something."""
    path, ending = folder / "dataset.json", spec.get("file_ending", ".nii.gz")
    if ending not in ENDINGS:
        raise UsageError(
            "unsupported file ending", path=path, found=ending, expected=" or ".join(ENDINGS), fix="convert the scans to NIfTI"
        )
    wanted: dict[str, tuple[list[Path], Path | None]] = {}
    if isinstance(spec.get("training"), list):  # MSD, and nnU-Net v1
        for item in spec["training"]:
            item = item if isinstance(item, dict) else {"image": item}
            image, label = folder / str(item.get("image", "")), item.get("label")
            if image.name.startswith("._"):
                continue
            if stem(image) in wanted:
                raise UsageError(f"case {stem(image)!r} is listed twice", path=path, fix="give every case its own file name")
            channels = [image.parent / f"{stem(image)}_{c:04d}{image.name[len(stem(image)) :]}" for c in range(n_channels)]
            split = not image.is_file() and channels[0].is_file()
            wanted[stem(image)] = (channels if split else [image], folder / label if label else None)
    elif isinstance(spec.get("dataset"), dict):  # nnU-Net's explicit list
        for name, item in spec["dataset"].items():
            wanted[name] = ([folder / p for p in item["images"]], folder / item["label"] if item.get("label") else None)
    else:
        found: dict[str, list[Path]] = {}
        for image in nifti_files(folder / "imagesTr", [ending]):
            match = CHANNEL.match(stem(image))
            found.setdefault(match[1] if match else stem(image), []).append(image)
        for name in sorted({*found, *(stem(p) for p in nifti_files(folder / "labelsTr", [ending]))}):
            images = found.get(name) or [folder / "imagesTr" / f"{name}_0000{ending}"]
            wanted[name] = (images, folder / "labelsTr" / f"{name}{ending}" if labelled else None)
    entries, problems = [], []
    for name, (images, label) in sorted(wanted.items()):
        problem = _missing(name, images, label, n_channels, labelled, path)
        if problem is None:
            entries.append((name, tuple(map(str, images)), None if label is None else str(label)))
        else:
            problems.append(problem)
    return entries, problems


def _missing(name: str, images: list[Path], label: Path | None, n_channels: int, labelled: bool, path: Path) -> MedjaxError | None:
    """What a case lacks, if anything."""
    for image in images:
        if not image.is_file():
            return UsageError(f"image of case {name!r} is missing", path=image, fix=f"add the file, or remove the case from {path}")
    if len(images) not in (1, n_channels) or (len(images) == 1 and n_channels > 1 and CHANNEL.match(stem(images[0]))):
        files = ", ".join(i.name for i in images)
        fix = "add the missing channel files, or correct the channel names"
        return UsageError(f"wrong number of channels in case {name!r}", path=path, found=files, expected=f"{n_channels} files", fix=fix)
    if label is None and labelled:
        return UsageError(f"case {name!r} has no label", path=path, fix='add "label", or remove the case from "training"')
    if label is not None and not label.is_file():
        return UsageError(f"label of case {name!r} is missing", path=label, fix=f"add the file, or remove the case from {path}")
    return None


def _patients(rule: Mapping | str, names: Sequence[str], path: Path) -> dict[str, str]:
    """Case -> patient; cases that a mapping does not name are their own patient."""
    pattern = rule if isinstance(rule, str) else rule.get("regex") if set(rule) == {"regex"} else None
    if pattern is None:
        for case in set(rule) - set(names):
            raise UsageError(f'"patients" names the unknown case {case!r}', path=path, fix=did_you_mean(case, names))
        return {name: str(rule.get(name, name)) for name in names}
    try:
        matches = {name: re.search(pattern, name) for name in names}
    except re.error as error:
        raise UsageError(f'"patients" is not a regular expression: {error}', path=path, found=pattern) from None
    for name, match in matches.items():
        if match is None:
            raise UsageError(f'the "patients" expression does not match case {name!r}', path=path, found=pattern)
    return {name: match[1] if match.re.groups else match[0] for name, match in matches.items()}
