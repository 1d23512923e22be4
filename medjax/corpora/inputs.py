"""Cases from what a user names as input: files, folders, patterns, lists.

In: a path, a pattern or a .json/.csv list. Out: one `Case` per scan, in a fixed order. Only names
and lists are read, never voxels.
"""

import collections
import dataclasses
import glob
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from medjax import files
from medjax.corpora import lists
from medjax.corpora.words import is_label_name
from medjax.errors import MedjaxError, UsageError, did_you_mean
from medjax.scans.paths import CHANNEL, ENDINGS, Mask, image_files, is_dicom, stem

EXPECTED = "files ending in .nii.gz, .nii, .nrrd or .mha, or DICOM folders"


@dataclasses.dataclass(frozen=True)
class Case:
    """One scan: image paths (per channel, or one file), grouping, and at most one label.

    The label is a label map (`label`: a file with the corpus' raw values) or binary masks by class
    (`masks`), or absent. `labels_of_case.read_label` reads both.
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
        return tuple(
            dict.fromkeys(([self.label] if self.label else []) + [mask.path for mask in self.masks])
        )

    def files(self, *, labels: bool = True) -> list[str]:
        """Every file the case is read from, images first, label files only on request.

        A DICOM folder is replaced by the files in it.
        """
        found = []
        for path in (*self.images, *(self.label_files if labels else ())):
            inside = Path(path).iterdir() if os.path.isdir(path) else ()
            found += (
                sorted(str(p) for p in inside if p.is_file() and not p.name.startswith("."))
                if os.path.isdir(path)
                else [path]
            )
        return list(dict.fromkeys(found))


def read_json(path: Path):
    """The parsed file; a key that appears twice in one object is an error.

    The JSON parser would silently keep the last value.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise UsageError(
            f"no {path.name}",
            path=path.parent,
            expected="an MSD or nnU-Net data set folder",
            fix="see docs/data.md",
        )
    return files.read_json(path, unique=True)


def usable(cases: Iterable[Case], path: object) -> tuple[list[Case], list[MedjaxError]]:
    """The cases whose name can be a file or folder name, and a problem for every other case.

    `path` is where the names come from. Every function that makes cases from files calls this
    (`sources.scan_corpus`, `find_inputs`), so that no name becomes a path.
    """
    good, problems = [], []
    for case in cases:
        try:
            files.check_name(case.name, "case name", path=path)
            if not isinstance(case.patient, str):
                raise UsageError(
                    f"the patient of case {case.name!r} is not text",
                    path=path,
                    found=repr(case.patient)[:60],
                )
            good.append(case)
        except UsageError as problem:
            problems.append(problem)
    return good, problems


def listed_path(base: Path, value: object, what: str, file: object) -> str:
    """A path from a list, relative to `base` or absolute; `UsageError` for a value that is no path.

    Lists may name files anywhere: they are only read.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise UsageError(
            f"{what} is no path",
            path=file,
            found=repr(value)[:80],
            expected='text like "imagesTr/a.nii.gz"',
        )
    return str(base / value)


def find_inputs(
    spec: str | os.PathLike | Sequence,
    channels: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Case]:
    """The scans a user names for prediction.

    Args:
      spec: a scan (NIfTI, NRRD, MetaImage, or a folder with a DICOM series), a folder of scans, a
        glob pattern, a .json list (paths, or objects with image, name, label, modality, patient;
        also under "cases", "testing" or "test"), a .csv with such columns (image, or image_0,
        image_1, ...), or several of these.
      channels: number of images per case, if known; distinguishes the channels `x_0000.nii.gz`,
        `x_0001.nii.gz` from numbered cases.
      say: is told which files of a folder are left out: label maps beside scans.

    Returns: the cases. With one channel the suffix _0000 is optional; files of the same name in
      different folders are prefixed with the folder's name.
    Raises: `UsageError` with the pattern and the folder that were searched, if nothing was found.
    """
    specs = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    try:
        cases = [case for one in specs for case in _inputs(str(one), channels, say)]
    except OSError as error:
        raise UsageError(
            f"cannot be read ({error.strerror})",
            path=error.filename,
            fix="check the path and its permissions",
        ) from error
    if not cases:
        raise UsageError(
            "no scans found", found=", ".join(map(str, specs)) or "an empty list", expected=EXPECTED
        )
    if len({c.name for c in cases}) < len(cases):
        cases = [
            dataclasses.replace(c, name=f"{_folder_of(c.images[0])}_{c.name}".lstrip("."))
            for c in cases
        ]
    _, problems = usable(cases, ", ".join(map(str, specs)))
    if problems:
        raise problems[0]
    counts = collections.Counter(c.name for c in cases)
    if twice := {n for n, count in counts.items() if count > 1}:
        raise UsageError(
            f"case name {min(twice)!r} occurs twice",
            found=", ".join(map(str, specs)),
            fix='name the cases in a .csv ("name")',
        )
    return [c if c.patient else dataclasses.replace(c, patient=c.name) for c in cases]


def _inputs(text: str, channels: int | None, say: Callable[[str], None]) -> list[Case]:
    """The cases of one specification."""
    path, expected = Path(text), EXPECTED
    if path.is_dir():
        found = _without_labels(image_files(path), path, say)
        series = [] if found else _series(path)
        if series:
            return series
        if not found and (path / "dataset.json").is_file():
            raise UsageError(
                "is a data set, not a folder of scans",
                path=path,
                fix=f"give {path / 'imagesTs'} or {path / 'imagesTr'}",
            )
        if not found:
            raise UsageError(
                "no scans in this folder",
                path=path,
                found=f"{len(list(path.iterdir()))} other entries",
                expected=expected,
            )
        return _grouped(found, channels)
    if path.suffix in (".json", ".csv") and path.is_file():
        return _listed(path)
    if path.is_file() or path.is_symlink():
        if not path.name.endswith(ENDINGS):
            raise UsageError(
                "not a scan", path=path, expected=f"{expected}, .json, .csv, a folder or a pattern"
            )
        return _grouped([path] if channels == 1 else _with_siblings(path), channels)
    if glob.has_magic(text):
        found = [
            Path(p)
            for p in sorted(glob.glob(text, recursive=True))
            if p.endswith(ENDINGS) and not os.path.basename(p).startswith(".")
        ]
        if not found:
            raise UsageError("nothing matches this pattern", path=text, expected=expected)
        return _grouped(found, channels)
    near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UsageError(
        "no such file or folder",
        path=path,
        fix=did_you_mean(path.name, near) if near else f"{path.parent} does not exist",
    )


def _without_labels(found: list[Path], folder: Path, say: Callable[[str], None]) -> list[Path]:
    """The files whose names are not those of labels; all, if every name is one."""
    labels = [file for file in found if is_label_name(stem(file))]
    if not labels or len(labels) == len(found):
        return found
    say(
        f"{folder}: {len(labels)} label maps are left out ({labels[0].name}"
        + (", ..." if len(labels) > 1 else "")
        + "); name a file itself to use it as a scan"
    )
    return [file for file in found if file not in set(labels)]


def _folder_of(path: str) -> str:
    """Name of the folder that holds a file.

    Links are not resolved, so that a circular link has a folder name too.
    """
    return os.path.basename(os.path.realpath(os.path.dirname(path) or "."))


def _series(path: Path) -> list[Case]:
    """Cases of DICOM series: the folder itself, or else every folder directly in it."""

    def holds(folder: Path) -> bool:
        members = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
        return any(is_dicom(p) for p in members[:5])

    places = (
        [path]
        if holds(path)
        else sorted(
            p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".") and holds(p)
        )
    )
    return [
        Case(_plain(os.path.basename(os.path.realpath(place))), (str(place),)) for place in places
    ]


def _with_siblings(path: Path) -> list[Path]:
    """x_0000.nii.gz -> also x_0001.nii.gz and so on, up to the first gap."""
    found, prefix = [path], stem(path).removesuffix("_0000")
    while prefix != stem(path):
        following = path.with_name(f"{prefix}_{len(found):04d}{path.name[len(stem(path)) :]}")
        if not following.is_file():
            break
        found.append(following)
    return found


def _grouped(scans: Sequence[Path], channels: int | None) -> list[Case]:
    """Files -> cases; name_0000, name_0001, ... without a gap are the channels of one case."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for file in scans:
        match = CHANNEL.match(stem(file))
        groups.setdefault((file.parent, match[1] if match else stem(file)), []).append(file)
    cases = []
    for (_, name), members in groups.items():
        numbers = [m[2] for m in map(CHANNEL.match, map(stem, members)) if m]
        together = numbers == [f"{c:04d}" for c in range(len(members))] and not (
            channels == 1 and len(members) > 1
        )
        alone = [Case(_plain(stem(m)), (str(m),)) for m in members]
        cases += [Case(_plain(name), tuple(map(str, members)))] if together else alone
    return cases


def _plain(name: str) -> str:
    """A file's name as a case name, without backslashes (they separate folders elsewhere)."""
    return name.replace("\\", "_")


def _listed(path: Path) -> list[Case]:
    """The cases of a .json or .csv list; relative paths are relative to the list."""
    cases = [_listed_case(row, where, path) for where, row in lists.rows_of(path)]
    if not any(os.path.exists(c.images[0]) for c in cases):
        raise UsageError(
            "none of the listed scans exists",
            path=path,
            found=cases[0].images[0],
            fix="give paths relative to the list",
        )
    return cases


def _listed_case(row: dict, where: str, path: Path) -> Case:
    """One entry of a list with every field checked; `where` is the entry's place in the file."""
    images = row.get("image") or []
    images = [images] if isinstance(images, str) else images
    if not images:
        fields = sorted(str(k) for k in row if k and k != "image")
        raise UsageError(
            f"{where} has no image", path=path, found=fields, expected='a field "image"'
        )
    if not isinstance(images, list):
        raise UsageError(
            f'"image" of {where} is no path',
            path=path,
            found=repr(images)[:80],
            expected="a path, or a list of paths",
        )
    said = {}
    for key in ("name", "patient", "modality"):
        value = row.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
            raise UsageError(
                f'"{key}" of {where} is not text',
                path=path,
                found=repr(value)[:80],
                expected="text",
            )
        said[key] = "" if value is None else str(value)
    images = tuple(listed_path(path.parent, p, f'"image" of {where}', path) for p in images)
    label = (
        None
        if row.get("label") in (None, "")
        else listed_path(path.parent, row["label"], f'"label" of {where}', path)
    )
    name = said["name"] or re.sub(r"_0000$", "", stem(images[0]))
    files.check_name(name, f"case name of {where}", path=path)
    return Case(name, images, label, modality=said["modality"], patient=said["patient"])
