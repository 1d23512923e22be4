"""The text header of a NRRD or MetaImage file, validated before ITK reads it.

In: a path. Out: its fields, and where its voxels are. ITK trusts the header: a MetaImage file with
too many dimensions, or a NRRD line of some thousand characters, overflows ITK's buffers. So
malformed fields are refused here, and files that the header names are checked like any other file.
"""

import glob
import os
import re
from pathlib import Path

from medjax import files
from medjax.errors import DataError
from medjax.scans import content

META_ENDINGS = (".mha", ".mhd")
DIMENSIONS = range(2, 5)
_HEADER = 1 << 20
_META_LINE = re.compile(r"\s*\w{1,60} ?= ?[^\x00-\x08\x0e-\x1f]{0,2000}")
_NRRD_LINE = re.compile(
    r"#.*|[\w .^-]{1,60}: "
    r"?[^\x00-\x08\x0e-\x1f]{0,500}|[^\x00-\x08\x0e-\x1f:]{1,200}:=[^\x00]{0,16000}",
    re.ASCII,
)
_VECTORS = (
    "dimsize",
    "elementspacing",
    "elementsize",
    "offset",
    "origin",
    "position",
    "centerofrotation",
)
_MATRICES = ("transformmatrix", "rotation", "orientation")
_WHOLE = {
    "elementnumberofchannels": (1, 1024),
    "headersize": (-1, 1 << 40),
    "compresseddatasize": (0, 1 << 50),
}


def is_meta(path: str) -> bool:
    """Whether a path is named like a MetaImage file; the others are NRRD."""
    return path.lower().endswith(META_ENDINGS)


def read(path: str) -> tuple[dict[str, str], list[tuple[str, int]]]:
    """Fields by lower-case name, the files of the voxels and the byte where they begin.

    Raises: `DataError` for content of another kind, malformed fields, and voxels in a file that is
      no regular one or lies outside the header's folder.
    """
    meta = is_meta(path)
    with content.open_file(path) as file:
        start = file.read(_HEADER)
    if not (re.match(rb"\s*[A-Za-z]+\s*=", start) if meta else start.startswith(b"NRRD")):
        what = "MetaImage" if meta else "NRRD"
        found = content.looks_like(start)
        raise DataError(
            f"cannot be read: no {what} file",
            path=path,
            found=found,
            expected=f"a {what} header",
            fix="obtain the file again",
        )
    text, end = _header_text(start, meta)
    fields = dict(_fields(text, meta))
    if meta:
        _check_meta(text, fields, path)
    else:
        _check_nrrd(text, path)
    named = (
        fields.get("elementdatafile", "LOCAL")
        if meta
        else fields.get("data file", fields.get("datafile", "LOCAL"))
    )
    if named.upper() == "LOCAL":
        return fields, [(path, end)]
    if named.upper().startswith("LIST"):
        names = [
            line.strip()
            for line in start[end if meta else text.rfind("LIST") :].decode("latin-1").splitlines()
        ]
        names = [name for name in names if name and not name.upper().startswith("LIST")]
    else:
        first = named.split()[0] if named.split() and "%" in named else named
        pattern = re.sub(r"%\d*d", "*", first) if "%" in first else ""
        folder = glob.escape(str(Path(path).parent))
        names = (
            sorted(glob.glob(os.path.join(folder, pattern)))
            if pattern and "/" not in pattern
            else [first]
        )
    parts = []
    for name in names:
        part = os.path.join(Path(path).parent, name)
        if "\0" in name or not files.is_within(part, Path(path).parent):
            raise DataError(
                "its voxels lie outside its folder",
                path=path,
                found=name[:200],
                expected="a file beside the header",
                fix="put the file of the voxels beside the header, and its name into the header",
            )
        content.check_file(part)
        parts.append((part, 0))
    return fields, parts


def is_compressed(fields: dict[str, str], meta: bool) -> bool:
    """Whether the voxels are a zlib or gzip stream."""
    return (
        fields.get("compresseddata", "").lower() == "true"
        if meta
        else fields.get("encoding", "") in ("gzip", "gz")
    )


def is_big_endian(fields: dict[str, str]) -> bool:
    """Whether a MetaImage file says that its most significant byte comes first."""
    return "true" in (
        fields.get(name, "").lower() for name in ("binarydatabyteordermsb", "elementbyteordermsb")
    )


def _check_meta(text: str, fields: dict[str, str], path: str) -> None:
    """`DataError` for a MetaImage header with malformed fields."""

    def refuse(name: str, expected: str) -> None:
        raise DataError(
            "cannot be read: unusable MetaImage header",
            path=path,
            found=f"{name} = {fields.get(name, '')[:60]!r}",
            expected=expected,
            fix="obtain the file again",
        )

    lines = [line for line in text.split("\n") if line.strip()]
    names = [line.partition("=")[0].strip().lower() for line in lines]
    for name, line in zip(names, lines, strict=True):
        if not _META_LINE.fullmatch(line.rstrip("\r")) or names.count(name) > 1:
            refuse(re.sub(r"\W", "?", name)[:60], "one line 'name = value' for each field")
    if fields.get("ndims", "") not in map(str, DIMENSIONS):
        refuse("ndims", "2, 3 or 4")
    dimensions = int(fields["ndims"])
    for name in (*_VECTORS, *_MATRICES):
        if name in fields:
            count = dimensions if name in _VECTORS else dimensions**2
            form = r"\d{1,9}" if name == "dimsize" else r"[-+]?[\d.]{1,40}(?:[eE][-+]?\d{1,3})?"
            values = fields[name].split()
            if len(values) != count or not all(re.fullmatch(form, value) for value in values):
                refuse(name, f"{count} " + ("sizes" if name == "dimsize" else "numbers"))
    if "dimsize" not in fields or "0" in fields["dimsize"].split():
        refuse("dimsize", f"{dimensions} positive sizes")
    for name, (low, high) in _WHOLE.items():
        value = fields.get(name, str(low))
        if not re.fullmatch(r"-?\d{1,16}", value) or not low <= int(value) <= high:
            refuse(name, f"a whole number from {low}")


def _check_nrrd(text: str, path: str) -> None:
    """`DataError` for lines that no NRRD header has: ITK's line buffers are small."""
    magic, *lines = text.split("\n") or [""]
    listed = next(
        (i for i, line in enumerate(lines) if re.match(r"data ?file: *LIST", line, re.IGNORECASE)),
        len(lines),
    )
    for number, line in enumerate(lines[: listed + 1], 2):
        if line.strip() and not _NRRD_LINE.fullmatch(line.rstrip("\r")):
            raise DataError(
                "cannot be read: unusable NRRD header",
                path=path,
                found=f"line {number} of {len(line)} characters",
                expected="a comment, 'field: value' or 'key:=value'",
                fix="obtain the file again",
            )
    if not re.fullmatch(r"NRRD000\d", magic.strip()):
        raise DataError(
            "cannot be read: unusable NRRD header",
            path=path,
            expected="NRRD0001 to NRRD0005 as its first line",
        )


def _header_text(start: bytes, meta: bool) -> tuple[str, int]:
    """The text header and the byte behind it."""
    if meta:
        at = start.find(b"ElementDataFile")
        end = start.find(b"\n", at) + 1 if at >= 0 else len(start)
    else:
        blank = [(i, len(mark)) for mark in (b"\n\n", b"\r\n\r\n") if (i := start.find(mark)) >= 0]
        end = sum(min(blank)) if blank else len(start)
    return start[:end].decode("latin-1"), end


def _fields(text: str, meta: bool):
    for line in text.split("\n"):
        key, mark, value = line.partition("=" if meta else ":")
        if mark and not line.startswith("#"):
            yield key.strip().lower(), value.strip().lstrip("=").strip()
