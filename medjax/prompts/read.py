"""What a user says about the objects to segment -> points and boxes on the network's grid.

In: flags of the command, a prompts.json, Slicer markups. Out: `Prompt`s in the user's coordinates,
and `Placed` ones as voxel indices (z, y, x) of the network's grid. Coordinates are x, y, z here, as
users and viewers write them: `ras` (mm, nibabel's world), `lps` (mm, DICOM and ITK-SNAP) or `voxel`
(indices of the stored file from 0, as viewers show them).

    {"case_001": {"space": "ras", "objects": [
        {"name": "lesion", "text": "tumour", "points": [[12.5, -30, 88, 1], [20, -31, 80, 0]],
         "box": [[-10, -60, 70], [40, -5, 110]]}]}}
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax import files
from medjax.errors import UsageError, did_you_mean, shown
from medjax.prepare.geometry import Transform
from medjax.prompts.types import NEGATIVE, POSITIVE

SPACES = ("ras", "lps", "voxel")
MARKUPS = ".mrk.json"
EVERY = "*"  # stands for every case that a file does not name
NEGATIVE_WORDS = ("neg", "negative", "-", "0", "bg", "background")
POSITIVE_WORDS = ("pos", "positive", "+", "1", "fg", "foreground")
EDGE = 1e-3  # voxels that a coordinate may lie beyond the border of an image, for rounding
FIELDS = ("name", "text", "points", "box")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One object that is asked for, in the coordinates of whoever asks.

    Attributes:
      name: of the mask. text: what it is; a class that the network knows.
      points: (x, y, z) each. kinds: of every point, 1 positive or 0 negative.
      box: two opposite corners x0 y0 z0 x1 y1 z1, the lower one first.
      space: of the coordinates, a word of `SPACES`. source: where it was said, for errors.
    """

    name: str
    text: str = ""
    points: tuple[tuple[float, float, float], ...] = ()
    kinds: tuple[int, ...] = ()
    box: tuple[float, ...] | None = None
    space: str = "ras"
    source: str = ""

    def __post_init__(self):
        where = self.source or None
        if not self.name.strip():
            raise UsageError("an object without a name", path=where, fix="name it")
        if self.space not in SPACES:
            raise UsageError(
                f"unknown space of coordinates {self.space!r}",
                path=where,
                fix=did_you_mean(self.space, SPACES),
            )
        if not (self.text or self.points or self.box):
            raise UsageError(
                f"object {shown(self.name)!r} has no prompt",
                path=where,
                fix="give it a text, a point or a box",
            )
        if self.points and POSITIVE not in self.kinds and not (self.text or self.box):
            raise UsageError(
                f"object {shown(self.name)!r} has negative points only",
                path=where,
                fix="add a point inside it, a text or a box",
            )
        if self.box and any(a > b for a, b in zip(self.box[:3], self.box[3:], strict=True)):
            raise UsageError(
                f"the box of object {shown(self.name)!r} has a minimum above its maximum",
                path=where,
                found=", ".join(f"{v:g}" for v in self.box),
                expected="x0, y0, z0, x1, y1, z1 with x0 <= x1, y0 <= y1, z0 <= z1",
            )

    def settings(self) -> dict[str, Any]:
        """JSON-ready; without its source."""
        found = dataclasses.asdict(self) | {
            "points": [[float(v) for v in point] for point in self.points],
            "kinds": [int(kind) for kind in self.kinds],
            "box": self.box and [float(v) for v in self.box],
        }
        del found["source"]
        return {k: v for k, v in found.items() if v not in ("", [], None)}


@dataclasses.dataclass(frozen=True)
class Placed:
    """One object on the network's grid.

    Attributes:
      name, text: as in `Prompt`.
      points: (n, 3) float64 voxel indices (z, y, x). kinds: (n,) 1 positive or 0 negative.
      box: (6,) float64 z0 y0 x0 z1 y1 x1, inclusive voxel indices, or None.
      notes: sentences about what was moved.
    """

    name: str
    text: str = ""
    points: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3)))
    kinds: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    box: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def place(
    prompt: Prompt, affine: np.ndarray, shape: Sequence[int], transform: Transform, path: str = ""
) -> Placed:
    """An object of a user on the network's grid.

    Args:
      affine: of the stored scan, (x, y, z) voxel -> RAS+ mm. shape: (z, y, x) of the stored scan.
      transform: that of the scan to the grid. path: of the scan, for errors.

    Points and boxes outside the part that was cropped away are moved to its border, with a note.

    Raises: `UsageError` naming the point or box for coordinates outside the scan.
    """
    where = f" ({prompt.source})" if prompt.source else ""
    limits = np.asarray(shape, float) - 1
    notes: list[str] = []
    grid = np.asarray(transform.shape, float)

    def inside_crop(found: np.ndarray, what: str) -> np.ndarray:
        moved = np.clip(found, 0, grid - 1)
        if np.abs(moved - found).max(initial=0) > 1:
            notes.append(f"{what} lies outside the part of the scan that is not empty: moved to it")
        return moved

    stored = _stored(np.array(prompt.points, float).reshape(-1, 3), prompt.space, affine)
    for number, (voxel, given) in enumerate(zip(stored, prompt.points, strict=True), 1):
        if np.any(voxel < -0.5 - EDGE) or np.any(voxel > limits + 0.5 + EDGE):
            raise UsageError(
                f"point {number} of object {shown(prompt.name)!r} lies outside the scan{where}",
                path=path or None,
                found=f"{_numbers(given)} ({prompt.space})",
                expected=_extent(affine, shape, prompt.space),
                fix=_fix(prompt.space),
            )
    points = transform.to_grid(stored)
    if len(points):
        points = inside_crop(points, f"a point of object {shown(prompt.name)!r}")
    box = None
    if prompt.box is not None:
        corners = list(itertools.product(*zip(prompt.box[:3], prompt.box[3:], strict=True)))
        found = _stored(np.array(corners, float), prompt.space, affine)
        low, high = found.min(0), found.max(0)
        if np.any(high < -0.5 - EDGE) or np.any(low > limits + 0.5 + EDGE):
            raise UsageError(
                f"the box of object {shown(prompt.name)!r} lies outside the scan{where}",
                path=path or None,
                found=f"{_numbers(prompt.box)} ({prompt.space})",
                expected=_extent(affine, shape, prompt.space),
                fix=_fix(prompt.space),
            )
        ends = np.array(list(itertools.product(*zip(low, high, strict=True))))
        on_grid = transform.to_grid(ends)
        what = f"the box of object {shown(prompt.name)!r}"
        low = np.clip(on_grid.min(0), 0, grid - 1)
        high = np.clip(on_grid.max(0), 0, grid - 1)
        if np.any(on_grid.max(0) < -0.5) or np.any(on_grid.min(0) > grid - 0.5):
            notes.append(f"{what} lies outside the part of the scan that is not empty: moved to it")
        box = np.concatenate([low, high])
    return Placed(
        prompt.name, prompt.text, points, np.array(prompt.kinds, np.int64), box, tuple(notes)
    )


def _stored(points: np.ndarray, space: str, affine: np.ndarray) -> np.ndarray:
    """(n, 3) x, y, z of a space -> voxel indices (z, y, x) of the stored file."""
    if space == "lps":
        points = points * np.array([-1.0, -1.0, 1.0])
    if space != "voxel":
        points = (points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    return points[:, ::-1]


def _extent(affine: np.ndarray, shape: Sequence[int], space: str) -> str:
    """The range of a scan's coordinates in a space, for errors."""
    ends = np.array(list(itertools.product(*((0, n - 1) for n in shape[::-1]))), float)
    if space != "voxel":
        ends = ends @ affine[:3, :3].T + affine[:3, 3]
    if space == "lps":
        ends = ends * np.array([-1.0, -1.0, 1.0])
    pairs = zip("xyz", ends.min(0), ends.max(0), strict=True)
    return ", ".join(f"{axis} {low:.5g} to {high:.5g}" for axis, low, high in pairs)


def _fix(space: str) -> str:
    return f"check the scan, and whether the coordinates are {space} (--space)"


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{v:g}" for v in values)


def of_flags(flags: Sequence[tuple[str, str]], space: str = "ras") -> tuple[Prompt, ...]:
    """The objects of a command line.

    Args:
      flags: (flag, value) in the order given, with the flags "object", "text", "point" and "box".
        "object" begins an object; flags behind it belong to it. A text before any object is an
        object of its own of that name; points and a box before any object make one called object.

    >>> [p.name for p in of_flags([("text", "liver"), ("object", "lesion"), ("point", "1,2,3")])]
    ['liver', 'lesion']

    Raises: `UsageError` for values that are no coordinates, and names that come twice.
    """
    open_: dict[str, Any] = {}
    found: list[Prompt] = []

    def close() -> None:
        if open_:
            found.append(Prompt(**open_, space=space, source=f"--object {open_['name']}"))
            open_.clear()

    named = False
    for flag, value in flags:
        if flag == "object":
            close()
            open_["name"], named = value, True
        elif flag == "text":
            if named:
                open_["text"] = value
            else:
                close()
                found.append(Prompt(value, text=value, space=space, source=f"--text {value}"))
        else:
            open_.setdefault("name", "object")
            if flag == "point":
                point, kind = point_of(value)
                open_["points"] = (*open_.get("points", ()), point)
                open_["kinds"] = (*open_.get("kinds", ()), kind)
            else:
                open_["box"] = box_of(value)
    close()
    return distinct(found)


def distinct(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The objects; `UsageError` if two of them have one name."""
    names = [prompt.name for prompt in prompts]
    for prompt in prompts:
        if names.count(prompt.name) > 1:
            raise UsageError(
                f"two objects are called {shown(prompt.name)!r}",
                path=prompt.source or None,
                fix="name each object differently (--object NAME)",
            )
    return tuple(prompts)


def point_of(value: str) -> tuple[tuple[float, float, float], int]:
    """ "x,y,z" or "x,y,z,neg" as ((x, y, z), kind).

    >>> point_of("12.5,-30,88,neg")
    ((12.5, -30.0, 88.0), 0)
    """
    parts = [part.strip() for part in value.split(",")]
    word = parts.pop().lower() if len(parts) == 4 else POSITIVE_WORDS[0]
    numbers = _floats(parts)
    if numbers is None or len(numbers) != 3 or word not in POSITIVE_WORDS + NEGATIVE_WORDS:
        raise UsageError(
            "unusable point", found=value, expected="x,y,z or x,y,z,neg, e.g. 12.5,-30,88"
        )
    return numbers, NEGATIVE if word in NEGATIVE_WORDS else POSITIVE


def box_of(value: str) -> tuple[float, ...]:
    """ "x0,y0,z0,x1,y1,z1" as six numbers."""
    numbers = _floats(value.split(","))
    if numbers is None or len(numbers) != 6:
        raise UsageError(
            "unusable box", found=value, expected="x0,y0,z0,x1,y1,z1, e.g. -10,-60,70,40,-5,110"
        )
    return numbers


def _floats(parts: Sequence[Any]) -> tuple[float, ...] | None:
    try:
        found = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        return None
    return found if all(map(math.isfinite, found)) else None


def of_file(path: Path | str, space: str = "") -> dict[str, tuple[Prompt, ...]]:
    """Case name (or "*" for every case) -> the objects that a file asks for.

    Args:
      path: a prompts.json, or Slicer markups (`.mrk.json`: points, or a ROI as a box), whose object
        has the name of the file. space: in place of "ras" where a prompts.json says none.

    Raises: `UsageError` naming the file, case and object for anything it cannot use.
    """
    path = Path(path)
    content = files.read_json(path, fix="give a prompts.json or a Slicer .mrk.json")
    if isinstance(content, Mapping) and "markups" in content:
        return {EVERY: (_of_markups(path, content["markups"]),)}
    if not isinstance(content, Mapping) or not content:
        raise UsageError(
            "no prompts in it",
            path=path,
            found=type(content).__name__,
            expected='{"CASE": {"space": "ras", "objects": [{"name": ..., "points": ...}]}}',
        )
    cases = {EVERY: content} if "objects" in content else content
    return {str(case): _of_case(path, str(case), fields, space) for case, fields in cases.items()}


def _of_case(path: Path, case: str, fields: Any, space: str) -> tuple[Prompt, ...]:
    where = f"{path}, case {shown(case)}"
    objects = fields.get("objects") if isinstance(fields, Mapping) else None
    if not isinstance(objects, list) or not objects:
        raise UsageError(
            "no objects", path=where, expected='{"space": "ras", "objects": [{"name": ...}, ...]}'
        )
    given = str(fields.get("space", space or "ras")).lower()
    return distinct([_of_object(where, one, given) for one in objects])


def _of_object(where: str, fields: Any, space: str) -> Prompt:
    if not isinstance(fields, Mapping):
        raise UsageError("an object is no mapping", path=where, found=type(fields).__name__)
    for name in fields:
        if name not in FIELDS:
            raise UsageError(
                f"an object has no field {shown(name)!r}",
                path=where,
                fix=did_you_mean(name, FIELDS),
            )
    name = str(fields.get("name") or fields.get("text") or "")
    points, kinds = [], []
    listed = fields.get("points") or []
    for number, given in enumerate(listed if isinstance(listed, list) else [listed], 1):
        numbers = _floats(given) if isinstance(given, list) else None
        if (
            numbers is None
            or len(numbers) not in (3, 4)
            or (numbers[3:] or (1,))[0] not in (-1, 0, 1)
        ):
            raise UsageError(
                f"unusable point {number} of object {shown(name)!r}",
                path=where,
                found=given,
                expected="[x, y, z] or [x, y, z, 1], with 0 for a negative point",
            )
        points.append(numbers[:3])
        kinds.append(POSITIVE if (numbers[3:] or (1,))[0] > 0 else NEGATIVE)
    box = fields.get("box")
    if box is not None:
        numbers = _floats(_flat(box))
        if numbers is None or len(numbers) != 6:
            raise UsageError(
                f"unusable box of object {shown(name)!r}",
                path=where,
                found=box,
                expected="[[x0, y0, z0], [x1, y1, z1]]",
            )
        box = numbers
    text = str(fields.get("text") or "")
    return Prompt(name, text, tuple(points), tuple(kinds), box, space, source=where)


def _flat(box: Any) -> list:
    """Two corners or six numbers as a flat list; what is neither becomes unusable."""
    if not isinstance(box, list):
        return [None]
    return [v for part in box for v in (part if isinstance(part, list) else [part])]


def _of_markups(path: Path, markups: Any) -> Prompt:
    """The points and the box of a Slicer file; each markup has its own coordinate system."""
    points: list[tuple[float, ...]] = []
    kinds: list[int] = []
    box: tuple[float, ...] | None = None
    refused = UsageError(
        "unusable Slicer markups",
        path=path,
        expected="points (Fiducial) with positions, or one ROI with centre and size",
    )
    for one in markups if isinstance(markups, list) else ():
        kind = str(one.get("type", "")) if isinstance(one, Mapping) else ""
        system = str(one.get("coordinateSystem", "LPS")).upper() if kind else ""
        flip = np.array([1.0, 1.0, 1.0] if system in ("RAS", "0") else [-1.0, -1.0, 1.0])
        if kind == "Fiducial":
            for point in one.get("controlPoints") or ():
                if point.get("positionStatus", "defined") != "defined":
                    continue
                numbers = _floats(point.get("position") or ())
                if numbers is None or len(numbers) != 3:
                    raise refused
                points.append(tuple(np.array(numbers) * flip))
                words = f"{point.get('label', '')} {point.get('description', '')}".lower().split()
                kinds.append(NEGATIVE if set(words) & {"neg", "negative"} else POSITIVE)
        elif kind == "ROI":
            centre, size = (_floats(one.get(name) or ()) for name in ("center", "size"))
            turn = _floats(one.get("orientation") or (1, 0, 0, 0, 1, 0, 0, 0, 1))
            if not (centre and size and turn and len(centre) == len(size) == 3 and len(turn) == 9):
                raise refused
            if box is not None:
                raise UsageError("several boxes in one file", path=path, fix="keep one ROI")
            half = np.abs(np.array(turn).reshape(3, 3)) @ (np.array(size) / 2)
            middle = np.array(centre) * flip
            box = tuple(map(float, (*(middle - half), *(middle + half))))
        else:
            raise refused
    if not points and box is None:
        raise refused
    name = path.name.removesuffix(MARKUPS)
    found = tuple((float(x), float(y), float(z)) for x, y, z in points)
    return Prompt(name, "", found, tuple(kinds), box, "ras", source=str(path))


def by_case(
    found: Mapping[str, tuple[Prompt, ...]], cases: Sequence[str], path: Path | str
) -> dict[str, tuple[Prompt, ...]]:
    """Case -> its objects, from what `of_file` returned.

    Raises: `UsageError` if the file names a case that is not among `cases`, or has nothing for one
      of them.
    """
    for name in found:
        if name != EVERY and name not in cases:
            raise UsageError(
                f"the prompts are for a scan that is not given: {shown(name)}",
                path=path,
                fix=did_you_mean(name, cases),
            )
    for name in cases:
        if name not in found and EVERY not in found:
            raise UsageError(
                f"no prompts for scan {shown(name)}", path=path, fix=did_you_mean(name, found)
            )
    return {name: found.get(name, found.get(EVERY, ())) for name in cases}


def row_of(text: str, names: Sequence[str]) -> int:
    """The row of a text in the network's table, by its name (upper and lower case are equal).

    Raises: `UsageError` with the nearest names for another text.
    """
    lower = [name.lower() for name in names]
    if text.strip().lower() in lower:
        return lower.index(text.strip().lower())
    raise UsageError(
        f"the network knows no text {shown(text)!r}",
        fix=f"{did_you_mean(text, names)}; or give a point or a box",
    )
