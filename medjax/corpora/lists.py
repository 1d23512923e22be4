"""Lists of scans, written by hand or exported from a spreadsheet -> rows of fields.

In: a .json or .csv file. Out: (place in the file, fields) per scan; "image" is always a list or a
text. Malformed files raise an error that names the file and the line; `inputs` interprets the
fields.
"""

import codecs
import contextlib
import csv
import io
import re
from pathlib import Path

from medjax import files
from medjax.errors import UsageError

IMAGE_COLUMN = re.compile(r"image(_\d+)?")
Rows = list[tuple[str, dict]]


def rows_of(path: Path) -> Rows:
    """The rows of a list of scans; `UsageError` for any other file."""
    rows = _of_table(path) if path.suffix == ".csv" else _of_json(path)
    if not rows:
        raise UsageError(
            "lists no cases",
            path=path,
            expected='[{"image": "scan.nii.gz"}, ...] or a .csv with a column "image"',
        )
    return rows


def _of_json(path: Path) -> Rows:
    """Entries of a JSON list, or of an object that holds one under "cases", "testing" or "test"."""
    rows = files.read_json(path, unique=True)
    if isinstance(rows, dict):
        rows = next((rows[k] for k in ("cases", "testing", "test") if rows.get(k)), [])
    if not isinstance(rows, list):
        expected = '[{"image": "scan.nii.gz"}, ...], also under "cases", "testing" or "test"'
        raise UsageError("not a list of scans", path=path, found=repr(rows)[:80], expected=expected)
    return [
        (f"entry {n}", row if isinstance(row, dict) else {"image": row})
        for n, row in enumerate(rows, 1)
    ]


def _of_table(path: Path) -> Rows:
    """Rows of a table in UTF-8 or marked UTF-16, separated by commas, semicolons or tabs."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot be read ({error.strerror})",
            path=path,
            fix="check the path and its permissions",
        ) from error
    text = decoded(content, path, fix='save the table as "CSV UTF-8"')
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UsageError(
            f"damaged table at line {line} (a NUL character)",
            path=path,
            fix='save the table as "CSV UTF-8"',
        )
    said = re.match(r"sep=(.)(\r\n|\r|\n)", text, re.IGNORECASE)  # a spreadsheet's own mark
    text = text[said.end() :] if said else text
    header = re.split(r"[\r\n]", text, maxsplit=1)[0]
    marks = [
        mark
        for mark in (said[1] if said else ",;\t")
        if any(map(IMAGE_COLUMN.fullmatch, _cells(header, mark)))
    ]
    several = [
        mark for mark in marks if len(_cells(header, mark)) > 1
    ]  # a header of one column fits every mark
    if not marks or len(several) > 1:
        raise UsageError(
            "no column of images",
            path=path,
            found=header[:80],
            expected='a column "image", or image_0, image_1, ...',
        )
    reader, rows = (
        csv.reader(io.StringIO(text, newline=""), delimiter=(several or marks)[0], strict=True),
        [],
    )
    try:
        names = [name.strip() for name in next(reader)]
        if twice := next((n for n in names if n and names.count(n) > 1), None):
            raise UsageError(f"two columns are called {twice!r}", path=path, fix="keep one of them")
        for cells in reader:
            place = f"line {reader.line_num + bool(said)}"
            if not any(cell.strip() for cell in cells):
                continue
            if any(cells[len(names) :]):
                raise UsageError(
                    f"{place} has more cells than the header",
                    path=path,
                    found=len(cells),
                    expected=len(names),
                    fix="put cells that hold a separator into quotes",
                )
            row = {
                name: cell
                for name, cell in zip(names, cells, strict=False)
                if name and cell.strip()
            }
            rows.append(
                (place, row | {"image": [row[k] for k in row if IMAGE_COLUMN.fullmatch(k)]})
            )
    except csv.Error as error:
        line = max(1, reader.line_num) + bool(said)
        raise UsageError(
            f"damaged table at line {line} ({error})", path=path, fix="save the table again"
        ) from error
    return rows


def _cells(line: str, mark: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=mark), [])]
    except csv.Error:
        return []


def decoded(content: bytes, path: object, fix: str = "save the file as UTF-8") -> str:
    """Text in UTF-8, or in UTF-16 with a byte-order mark; `UsageError` for other encodings."""
    wide = b"\0" in content[:4] or content.startswith(codecs.BOM_UTF32_LE)
    marked = content.startswith(
        (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    ) and not content.startswith(codecs.BOM_UTF32_LE)
    with contextlib.suppress(UnicodeDecodeError):
        if marked or not wide:
            return content.decode("utf-16" if marked else "utf-8-sig")
    found = (
        "damaged UTF-16"
        if marked
        else "UTF-16 without its mark, or UTF-32"
        if wide
        else "Latin-1 or another"
    )
    raise UsageError("text in another encoding than UTF-8", path=path, found=found, fix=fix)
