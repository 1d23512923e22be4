"""What a user names as input -> cases: files, folders, patterns, lists.

In: a path, a pattern or a .json/.csv list. Out: one `Case` per scan, in a fixed order. Only names and lists are read, never pixels.
"""

import csv
import dataclasses
import glob
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from medjax.errors import UsageError, did_you_mean

EXPECTED = "files ending in .nii.gz, .nii, .nrrd or .mha, or DICOM folders"
NIFTI_ENDINGS, ITK_ENDINGS, ARRAY_ENDINGS = (".nii.gz", ".nii"), (".nrrd", ".nhdr", ".mha", ".mhd"), (".npy", ".npz")
ENDINGS = (*NIFTI_ENDINGS, *ITK_ENDINGS)
CHANNEL = re.compile(r"^(.+)_(\d{4})$")


@dataclasses.dataclass(frozen=True)
class Mask:
    """The voxels of one class in one case, as a binary mask that may overlap others.

    Attributes:
      name: the class.
      path: the file.
      pick: what of the file is meant. "" every voxel that is not 0 (0 and one other value), "frame:N" one frame or channel,
        "value:V" or "value:V,W" the voxels of these values, "segment:NAME" of a DICOM-SEG, "roi:NAME" of an RTSTRUCT.
    """

    name: str
    path: str
    pick: str = ""


@dataclasses.dataclass(frozen=True)
class Case:
    """One scan: image paths per channel (or one multi-channel file), what groups it, and either a label map, or masks, or neither.

    `label` is a file whose voxel values are the corpus' raw values; `masks` are binary masks by class. `annotation.read_label` reads both.
    """

    name: str
    images: tuple[str, ...]
    label: str | None = None
    corpus: str = ""
    modality: str = ""
    patient: str = ""
    masks: tuple[Mask, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether there is a label, in whatever form."""
        return self.label is not None or bool(self.masks)

    @property
    def label_files(self) -> tuple[str, ...]:
        """Every file the label is read from, once."""
        return tuple(dict.fromkeys(([self.label] if self.label else []) + [mask.path for mask in self.masks]))


def read_json(path: Path):
    """The parsed file; a key that appears twice in one object is an error, for JSON would silently keep the last."""

    def unique(pairs: list[tuple]) -> dict:
        keys = [k for k, _ in pairs]
        if twice := {k for k in keys if keys.count(k) > 1}:
            raise UsageError(f"key {min(twice)!r} appears twice", path=path, fix="keep one of them")
        return dict(pairs)

    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except FileNotFoundError:
        raise UsageError(
            f"no {path.name}", path=path.parent, expected="an MSD or nnU-Net data set folder", fix="see docs/data.md"
        ) from None
    except (ValueError, OSError) as error:
        raise UsageError(f"cannot be read as JSON: {error}", path=path) from None


def stem(path: str | os.PathLike, endings: Iterable[str] = ENDINGS) -> str:
    """File name without folder and ending."""
    name = os.path.basename(path)
    return next((name[: -len(e)] for e in endings if name.endswith(e)), name)


def image_files(folder: Path, endings: Iterable[str] = ENDINGS) -> list[Path]:
    """The scans and label files of a folder, sorted; hidden and AppleDouble files are passed over."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.endswith(tuple(endings)) and not p.name.startswith("."))


nifti_files = image_files


def is_dicom(path: str | os.PathLike) -> bool:
    """Whether the file carries DICOM's mark behind its preamble. Pipes and devices are not opened: they would block."""
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except (OSError, ValueError):
        return False


def find_inputs(spec: str | os.PathLike | Sequence, channels: int | None = None) -> list[Case]:
    """The scans a user names for prediction.

    Args:
      spec: a scan (NIfTI, NRRD, MetaImage, or a folder with a DICOM series), a folder of scans, a glob pattern, a .json list (paths, or
        objects with image, name, label, modality, patient; also under "cases", "testing" or "test"), a .csv with such columns (image, or
        image_0, image_1, ...), or several of these.
      channels: how many images make a case, if known; `x_0000.nii.gz`, `x_0001.nii.gz` are then told from cases that are numbered so.

    Returns: the cases. The suffix _0000 is optional for one channel; like-named files of different folders get the folder's name in front.
    Raises: `UsageError` saying what was searched for and where, if nothing was found.
    """
    specs = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    cases = [case for one in specs for case in _inputs(str(one), channels)]
    if not cases:
        raise UsageError("no scans found", found=", ".join(map(str, specs)) or "an empty list", expected=EXPECTED)
    names = [c.name for c in cases]
    if len(set(names)) < len(names):
        cases = [dataclasses.replace(c, name=f"{Path(c.images[0]).resolve().parent.name}_{c.name}") for c in cases]
    names = [c.name for c in cases]
    if twice := {n for n in names if names.count(n) > 1}:
        raise UsageError(
            f"case name {min(twice)!r} occurs twice", found=", ".join(map(str, specs)), fix='name the cases in a .csv ("name")'
        )
    return [c if c.patient else dataclasses.replace(c, patient=c.name) for c in cases]


def _inputs(text: str, channels: int | None) -> list[Case]:
    """The cases of one specification."""
    path, expected = Path(text), EXPECTED
    if path.is_dir():
        files = image_files(path)
        series = [] if files else _series(path)
        if series:
            return series
        if not files and (path / "dataset.json").is_file():
            raise UsageError("is a data set, not a folder of scans", path=path, fix=f"give {path / 'imagesTs'} or {path / 'imagesTr'}")
        if not files:
            raise UsageError("no scans in this folder", path=path, found=f"{len(list(path.iterdir()))} other entries", expected=expected)
        return _grouped(files, channels)
    if path.suffix in (".json", ".csv") and path.is_file():
        return _listed(path)
    if path.is_file() or path.is_symlink():
        if not path.name.endswith(ENDINGS):
            raise UsageError("not a scan", path=path, expected=f"{expected}, .json, .csv, a folder or a pattern")
        return _grouped([path] if channels == 1 else _with_siblings(path), channels)
    if glob.has_magic(text):
        files = [
            Path(p) for p in sorted(glob.glob(text, recursive=True)) if p.endswith(ENDINGS) and not os.path.basename(p).startswith(".")
        ]
        if not files:
            raise UsageError("nothing matches this pattern", path=text, expected=expected)
        return _grouped(files, channels)
    near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UsageError("no such file or folder", path=path, fix=did_you_mean(path.name, near) if near else f"{path.parent} does not exist")


def _series(path: Path) -> list[Case]:
    """The folder itself as a case if it holds DICOM files, else every folder directly in it that does."""

    def holds(folder: Path) -> bool:
        files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
        return any(is_dicom(p) for p in files[:5])

    places = [path] if holds(path) else sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".") and holds(p))
    return [Case(place.resolve().name, (str(place),)) for place in places]


def _with_siblings(path: Path) -> list[Path]:
    """x_0000.nii.gz -> also x_0001.nii.gz and so on, as far as they exist without a gap."""
    found, prefix = [path], stem(path).removesuffix("_0000")
    while prefix != stem(path):
        following = path.with_name(f"{prefix}_{len(found):04d}{path.name[len(stem(path)) :]}")
        if not following.is_file():
            break
        found.append(following)
    return found


def _grouped(files: Sequence[Path], channels: int | None) -> list[Case]:
    """Files -> cases; name_0000, name_0001, ... without a gap are the channels of one case."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for file in files:
        match = CHANNEL.match(stem(file))
        groups.setdefault((file.parent, match[1] if match else stem(file)), []).append(file)
    cases = []
    for (_, name), members in groups.items():
        numbers = [m[2] for m in map(CHANNEL.match, map(stem, members)) if m]
        together = numbers == [f"{c:04d}" for c in range(len(members))] and not (channels == 1 and len(members) > 1)
        alone = [Case(stem(m), (str(m),)) for m in members]
        cases += [Case(name, tuple(map(str, members)))] if together else alone
    return cases


def _listed(path: Path) -> list[Case]:
    """The cases of a .json or .csv list; relative paths are relative to the list."""
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            images = [row[k] for k in row if k and re.fullmatch(r"image(_\d+)?", k) and row[k]]
            row["image"] = images
    else:
        rows = read_json(path)
        if isinstance(rows, dict):
            rows = next((rows[k] for k in ("cases", "testing", "test") if rows.get(k)), [])
        rows = [row if isinstance(row, dict) else {"image": row} for row in rows]
    if not rows:
        raise UsageError("lists no cases", path=path, expected='[{"image": "scan.nii.gz"}, ...] or a .csv with a column "image"')
    cases = []
    for number, row in enumerate(rows, 1):
        images = row.get("image") or []
        images = tuple(str(path.parent / p) for p in ([images] if isinstance(images, str) else images))
        if not images:
            fields = sorted(k for k in row if k and k != "image")
            raise UsageError(f"entry {number} has no image", path=path, found=fields, expected='a field "image"')
        name = row.get("name") or (re.sub(r"_0000$", "", stem(images[0])))
        label = str(path.parent / row["label"]) if row.get("label") else None
        cases.append(Case(str(name), images, label, modality=row.get("modality") or "", patient=str(row.get("patient") or "")))
    if not any(os.path.exists(c.images[0]) for c in cases):
        raise UsageError("none of the listed scans exists", path=path, found=cases[0].images[0], fix="give paths relative to the list")
    return cases
