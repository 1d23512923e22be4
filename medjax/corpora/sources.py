"""Reads raw data sets in any layout.

In: a folder or list in any layout of `corpora/layouts`. Out: a `Corpus` (the meaning of its label
values) and one `Case` per scan. Names and descriptions are read; label files only if no description
lists their values (see `corpora/survey.py`).
"""

import contextlib
import os
from pathlib import Path

from medjax import files
from medjax.corpora import layouts
from medjax.corpora.dataset_json import describe
from medjax.corpora.inputs import Case, find_inputs, read_json, usable
from medjax.corpora.layouts.records import scan as scan_records
from medjax.errors import LabelError, MedjaxError, UsageError
from medjax.labels import Corpus
from medjax.scans import records
from medjax.scans.paths import ENDINGS

NONSENSE = (
    AttributeError,
    IndexError,
    KeyError,
    RecursionError,
    TypeError,
    ValueError,
)  # of values with other types than described

__all__ = ["Case", "find_inputs", "read_corpus", "read_labels", "scan_corpus"]


def read_corpus(folder: str | os.PathLike, layout: str = "") -> tuple[Corpus, tuple[Case, ...]]:
    """Reads the description of a raw data set.

    Args:
      folder: in any layout (see `corpora/layouts`), or tfds:FOLDER (see
        `corpora/layouts/records.py`); a bare nnU-Net name or id is looked up in $nnUNet_raw.
      layout: name of the layout; detected by default.

    Returns: the corpus and its training cases, sorted by name.
    Raises: `UsageError` for missing or superfluous files, `LabelError` for invalid labels; each
      error names file, value and fix.
    """
    corpus, cases, problems = scan_corpus(folder, layout)
    if problems:
        first, rest = problems[0], len(problems) - 1
        message = first.message + (
            f" (and {rest} more problems; `medjax verify` lists them)" if rest else ""
        )
        raise type(first)(
            message, path=first.path, found=first.found, expected=first.expected, fix=first.fix
        )
    return corpus, cases


def read_labels(path: str | os.PathLike) -> Corpus:
    """The corpus that a dataset.json (or its folder) describes.

    Scans are only looked for if the layout has no such file.
    """
    path = Path(path)
    if path.is_dir() and not (path / "dataset.json").is_file():
        return scan_corpus(path)[0]
    return describe(path / "dataset.json" if path.is_dir() else path)[0]


def scan_corpus(
    folder: str | os.PathLike, layout: str = ""
) -> tuple[Corpus, tuple[Case, ...], list[MedjaxError]]:
    """Like `read_corpus`, but returns the problems of faulty cases instead of raising.

    Every layout, and every name that a file contains, passes through here: a corpus or case whose
    name cannot be a file or folder name is rejected (see `inputs.usable`), so that no name from a
    file becomes a path.
    """
    try:
        found = (
            scan_records(folder)
            if records.is_record(folder)
            else layouts.scan(_resolve(folder), layout)
        )
    except OSError as error:
        raise UsageError(
            f"cannot be read ({error.strerror})",
            path=error.filename or folder,
            fix="check its permissions",
        ) from error
    except NONSENSE as error:
        raise LabelError(
            f"the description of the data set cannot be understood ({type(error).__name__}: "
            f"{error})",
            path=folder,
            fix="compare it with docs/data.md",
        ) from error
    corpus, cases, problems = found
    files.check_name(corpus.name, "corpus name", path=folder, error=LabelError)
    good, unnamed = usable(cases, folder)
    return corpus, tuple(good), [*problems, *unnamed]


def layout_of(folder: str | os.PathLike, layout: str = "") -> str:
    """The name of the layout that `scan_corpus` uses; its errors."""
    if records.is_record(folder):
        return "tfds"
    path = _resolve(folder)
    found = layouts.name_of(path, layout)
    if found == "msd" and not layout and "training" not in read_json(path / "dataset.json"):
        return "nnunet"
    return found


def data_sets_in(folder: str | os.PathLike) -> list[str]:
    """The folders directly in a folder that are data sets with labels themselves, by name."""
    found = []
    for path in sorted(Path(folder).iterdir()) if os.path.isdir(folder) else ():
        if path.is_dir() and not path.name.startswith("."):
            with contextlib.suppress(MedjaxError, OSError):
                if layouts.detect(path) not in ("scans", "perclass"):
                    found.append(str(path))
    return found


def _resolve(folder: str | os.PathLike) -> Path:
    """The data set folder; bare nnU-Net names and ids are sought in $nnUNet_raw."""
    given, raw = Path(folder), os.environ.get("nnUNet_raw")
    if not given.exists() and raw and len(given.parts) == 1:
        number = f"Dataset{int(given.name):03d}_*" if given.name.isdigit() else f"{given.name}*"
        found = sorted(Path(raw).glob(number))
        given = found[0] if len(found) == 1 else given
    if given.is_file() and given.suffix == ".json":
        return given.parent if given.name == "dataset.json" else given
    if given.is_file() and given.name.endswith(ENDINGS):
        return given
    if not given.is_dir():
        raise UsageError(
            "no such data set folder",
            path=folder,
            fix="give the folder that holds dataset.json, imagesTr and labelsTr",
        )
    if not any(p for p in given.iterdir() if not p.name.startswith(".")):
        raise UsageError(
            "the data set folder is empty", path=folder, expected="dataset.json, imagesTr, labelsTr"
        )
    return given
