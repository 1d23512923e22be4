"""Which files medjax wrote itself: only those may be replaced without being asked.

In: paths. Out: whether medjax wrote them, and `UsageError` for those that it did not. What it
writes says so: JSON has a field `"medjax": {"kind": ..., "version": ...}`, pages, pictures and
Markdown carry its name, and what can carry nothing (masks, CSV) is listed in such a JSON file
beside it. The JSON files of medjax 0.1 before these marks are known by the set of their fields.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from medjax import __version__, files
from medjax.errors import MedjaxError, UsageError

MARK = "medjax"
_FIELDS = {  # of the documents of medjax 0.1 before the marks
    "prediction": {
        "case",
        "corpus",
        "labels",
        "classes",
        "maps",
        "postprocessing",
        "files",
        "images",
        "settings",
    },
    "predictions": {"cases", "versions", "device", "settings", "corpus", "failed"},
    "evaluation": {
        "metric_per_case",
        "mean",
        "foreground_mean",
        "labels",
        "descriptions",
        "versions",
        "settings",
        "cells",
        "n_failed",
    },
    "comparison": {"names", "test", "metrics", "cells", "overall", "unpaired"},
    "postprocessing": {"rules", "evidence", "basis"},
    "combination": {"metric", "sets", "classes", "mean"},
    "gates": {"modalities", "mean", "blocks", "slices"},
}
_WITH_VERSIONS = ("predictions", "evaluation")  # their "versions" name medjax
_WORDS = {  # ending -> words, and whether they stand near the end of the file
    ".html": ((b'<meta name="generator" content="medjax',), False),
    ".svg": ((b"<!-- medjax",), False),
    ".png": ((b"Software\0medjax",), False),
    ".md": ((b"Computed by medjax",), True),
}
_LOOK = 4096  # bytes that are read for them


def mark(kind: str) -> dict:
    """The field `"medjax"` of a JSON document of this kind."""
    return {MARK: {"kind": kind, "version": __version__}}


def is_of(fields: Any, kind: str) -> bool:
    """Whether a JSON value is a document of this kind that medjax wrote."""
    if not isinstance(fields, Mapping):
        return False
    found = fields.get(MARK)
    if isinstance(found, Mapping):
        return found.get("kind") == kind and isinstance(found.get("version"), str)
    if kind not in _FIELDS or not _FIELDS[kind] <= set(fields):
        return False
    versions = fields.get("versions")
    return kind not in _WITH_VERSIONS or (isinstance(versions, Mapping) and "medjax" in versions)


def document(path: str | os.PathLike, kind: str) -> dict | None:
    """The JSON document at `path` if it is of this kind and medjax wrote it, else None."""
    try:
        found = files.read_json(path) if os.path.isfile(path) else None
    except MedjaxError:
        return None
    return dict(found) if is_of(found, kind) else None


def sidecar(folder: str | os.PathLike, case: str) -> dict | None:
    """`<case>.json` if it is the sidecar that medjax wrote for this very case, else None.

    It names files of the case only.
    """
    found = document(Path(folder) / f"{case}.json", "prediction")
    if found is None or found.get("case") != case or not isinstance(found.get("files"), dict):
        return None
    found["files"] = {name: size for name, size in found["files"].items() if _belongs(name, case)}
    found["earlier"] = [
        name
        for name in found.get("earlier") or ()
        if isinstance(name, str) and _belongs(name, case)
    ]
    return found


def _belongs(name: str, case: str) -> bool:
    return (
        name.startswith((f"{case}.", f"{case}_", f"{case}/"))
        and ".." not in name.split("/")
        and "\0" not in name
    )


def is_marked(path: str | os.PathLike) -> bool:
    """Whether a page, picture or Markdown file says that medjax wrote it."""
    words, at_end = _WORDS.get(Path(path).suffix.lower(), ((), False))
    if not words:
        return False
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            if at_end:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _LOOK))
            content = file.read(_LOOK)
    except OSError:
        return False
    return any(word in content for word in words)


def refuse_foreign(
    folder: str | os.PathLike,
    names: Iterable[str],
    is_ours: Callable[[str], bool],
    *,
    overwrite: bool = False,
    what: str = "the output",
) -> None:
    """`UsageError` if writing `names` (relative, at most one folder deep) would replace what medjax
    did not write.

    Args:
      is_ours: whether an existing file of this name is medjax' own. overwrite: replace the others
        as well.

    Folders are never replaced, and links inside `folder` never followed, whatever `overwrite` says.
    """
    folder, foreign = Path(folder), []
    for name in names:
        path = folder / name
        parent = path.parent
        if (
            parent != folder
            and os.path.lexists(parent)
            and (parent.is_symlink() or not parent.is_dir())
        ):
            found = "a link" if parent.is_symlink() else "a file"
            raise UsageError(
                f"{what} needs a folder of this name",
                path=parent,
                found=found,
                fix="rename it, or choose another folder",
            )
        if not os.path.lexists(path):
            continue
        if path.is_dir() and not path.is_symlink():
            raise UsageError(
                f"{what} needs a file of this name",
                path=path,
                found="a folder",
                fix="rename it, or choose another folder",
            )
        if not overwrite and not is_ours(name):
            foreign.append(path)
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UsageError(
            f"{what} would overwrite a file that medjax did not write{more}",
            path=foreign[0],
            expected="a free name",
            fix="choose another folder or name; --overwrite (overwrite=True) replaces such files",
        )


def refuse_document(
    path: str | os.PathLike, kind: str, *, overwrite: bool = False, what: str = "the output"
) -> None:
    """`refuse_foreign` for one JSON file that a user names."""
    path = Path(path)
    refuse_foreign(
        path.parent,
        [path.name],
        lambda name: document(path, kind) is not None,
        overwrite=overwrite,
        what=what,
    )
