"""Masks of organs as a further channel of a corpus: the prompt that MAST-Pro reads.

In: a corpus and its cases, and for every case a mask in a file, or none. Out: a described corpus
(`corpus.json`) whose cases have the mask as their last image; the scans themselves are not copied.
Masks are written on the grid of their scan. A case without one gets a mask of zeros.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from medjax.corpora.inputs import Case
from medjax.corpora.labels_of_case import read_label
from medjax.corpora.layouts import corpus_json
from medjax.corpora.words import some
from medjax.errors import UsageError
from medjax.labels import Corpus
from medjax.scans import formats, grid, nifti
from medjax.scans.nifti import Volume
from medjax.scans.paths import ENDINGS

CHANNEL = "mask"  # a channel of this name is a mask: see `prepare.intensity`
FOLDER = "organs"  # of the written masks, beside the description
LARGEST_V1 = 104  # structures of TotalSegmentator v1; v2 has 117
REFERENCE = "reference"  # source of masks that come from the labels of the corpus itself

MaskOf = Callable[[Case, Volume], np.ndarray | None]  # (case, its grid) -> (z, y, x) bool


@dataclasses.dataclass(frozen=True)
class Written:
    """What `write` made.

    Attributes:
      path: of the description. cases: how many there are. missing: names of those without a mask.
      empty: names of those whose mask has no voxel.
    """

    path: Path
    cases: int
    missing: tuple[str, ...]
    empty: tuple[str, ...]

    def sentence(self) -> str:
        """One line for people."""
        found = f"{self.cases} cases described in {self.path}"
        for what, names in (("have no mask", self.missing), ("have an empty one", self.empty)):
            shown = some(names)
            found += f"; {len(names)} {what} ({shown})" if names else ""
        return found + (": their channel is zero" if self.missing or self.empty else "")


def write(
    folder: str | os.PathLike,
    corpus: Corpus,
    cases: Sequence[Case],
    mask_of: MaskOf,
    source: str,
    *,
    closing_mm: float = 0.0,
    dilate_mm: float = 0.0,
    facts: Mapping | None = None,
) -> Written:
    """Writes the masks and the description of the corpus with them.

    Args:
      folder: of the description. corpus, cases: as scanned. mask_of: gives the mask of a case on
        the grid of its image, None where there is none.
      source: where the masks come from, for the description's field `organ`.
      closing_mm, dilate_mm: gaps up to twice that size are closed, the mask grows by it.
      facts: further fields of the description.

    Raises: `UsageError` for a corpus that has such a channel, or a folder that holds the corpus.
    """
    folder = Path(folder)
    if CHANNEL in (name.lower() for name in corpus.channels):
        raise UsageError(
            f"corpus {corpus.name!r} has a channel {CHANNEL!r} already",
            found=", ".join(corpus.channels),
            fix="give the corpus without organ masks",
        )
    described, missing, empty = [], [], []
    for case in cases:
        like = formats.read_geometry(case.images[0])
        mask = mask_of(case, like)
        if mask is None:
            missing.append(case.name)
            mask = np.zeros(like.shape, bool)
        elif not mask.any():
            empty.append(case.name)
        mask = grown(mask, like.spacing_mm, closing_mm, dilate_mm)
        path = folder / FOLDER / f"{case.name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nifti.write(path, mask, like, labels={1: "organ"})
        described.append(dataclasses.replace(case, images=(*case.images, str(path))))
    added = dataclasses.replace(corpus, channels=(*corpus.channels, CHANNEL))
    path = corpus_json.write(folder, added, described, {**(facts or {}), "organ": source})
    return Written(path, len(described), tuple(missing), tuple(empty))


def grown(
    mask: np.ndarray, spacing_mm: Sequence[float], closing_mm: float = 0.0, dilate_mm: float = 0.0
) -> np.ndarray:
    """The mask with gaps closed and then grown, by balls of a radius in mm (distance transforms).

    Args:
      mask: (z, y, x) bool. spacing_mm: (z, y, x).
    """
    if min(closing_mm, dilate_mm) < 0:
        raise UsageError("a mask cannot be grown by less than 0 mm")
    if not mask.any():
        return mask
    if closing_mm:
        reach = [int(np.ceil(closing_mm / s)) + 1 for s in spacing_mm]
        wide = np.pad(mask, [(n, n) for n in reach], "edge")  # nothing is known outside
        wide = ndimage.distance_transform_edt(~wide, spacing_mm) <= closing_mm
        wide = ndimage.distance_transform_edt(wide, spacing_mm) > closing_mm
        inner = tuple(slice(n, n + side) for n, side in zip(reach, mask.shape, strict=True))
        mask = mask | wide[inner]
    if dilate_mm:
        mask = ndimage.distance_transform_edt(~mask, spacing_mm) <= dilate_mm
    return mask


def on_scan(path: str | os.PathLike, like: Volume, values: Sequence[int] = ()) -> np.ndarray:
    """The mask in a file, (z, y, x) bool on the grid of a scan (nearest neighbour in world space).

    Args:
      like: the scan. values: label values that count; empty: all but 0.

    Raises: `UsageError` for a mask of which no voxel lies in the scan.
    """
    volume = formats.read(path, "label")
    array = np.asarray(volume.array)
    chosen = np.isin(array, list(values)) if values else array > 0
    placed = grid.onto(nifti.replaced(volume, chosen.astype(np.uint8)), like) > 0
    if chosen.any() and not placed.any():
        raise UsageError(
            "this organ mask belongs to another scan: none of it lies inside",
            path=path,
            found=f"a mask of {int(chosen.sum())} voxels",
            expected=f"one on the grid of {like.path}, or another grid in the same place",
            fix="give the mask of this scan",
        )
    return placed


def from_files(folder: str | os.PathLike, values: Sequence[int] = ()) -> MaskOf:
    """Masks from files called as the cases.

    Raises: `UsageError` for a folder without any mask.
    """
    files = by_name(folder)

    def mask_of(case: Case, like: Volume) -> np.ndarray | None:
        path = files.get(case.name)
        return None if path is None else on_scan(path, like, values)

    return mask_of


def by_name(folder: str | os.PathLike) -> dict[str, str]:
    """Case name -> its mask in a folder; `UsageError` if there is none."""
    folder = Path(folder)
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        ending = next((e for e in ENDINGS if path.name.endswith(e)), None)
        if ending and not path.name.startswith("."):
            found[path.name.removesuffix(ending)] = str(path)
    if not found:
        raise UsageError(
            "no organ masks here", path=folder, expected=f"CASE{ENDINGS[0]} for every case"
        )
    return found


def check_version(paths: Iterable[str | os.PathLike], version: int) -> None:
    """Refuses masks of TotalSegmentator whose ids are not those of the version.

    In v1 ids end at 104. Files of v2 hold ribs, sternum or costal cartilages above 104 wherever
    they show a chest or an upper abdomen, so a set of files without any is taken for v1.

    Raises: `UsageError` naming a file.
    """
    largest = {str(path): int(np.max(formats.read(path, "label").array)) for path in paths}
    path = max(largest, key=largest.__getitem__)
    if (largest[path] > LARGEST_V1) == (version == 2):
        return
    raise UsageError(
        f"these masks are not from version {version} of TotalSegmentator, whose ids differ",
        path=path,
        found=f"largest id {largest[path]}",
        expected=f"ids up to {LARGEST_V1}" if version == 1 else f"an id above {LARGEST_V1}",
        fix=f"give --version {3 - version}, or the ids themselves with `medjax organs --values`",
    )


def values_of(corpus: Corpus, classes: Sequence[str]) -> tuple[int, ...]:
    """Label values of a corpus that stand for any of some classes.

    Raises: `UsageError` for a class that the corpus does not have.
    """
    for name in classes:
        if name not in corpus.classes:
            raise UsageError(
                f"corpus {corpus.name!r} has no class {name!r}", expected=", ".join(corpus.classes)
            )
    return tuple(value for value, names in corpus.labels if set(names) & set(classes))


def from_labels(corpus: Corpus, classes: Sequence[str]) -> MaskOf:
    """Masks that are the union of classes of the corpus itself: an upper bound, no prediction."""
    values_of(corpus, classes)
    ids = [i for name in classes for i in corpus.ids_of(name)]

    def mask_of(case: Case, like: Volume) -> np.ndarray | None:
        label = read_label(case, corpus, like)
        return None if label is None else np.isin(label, ids)

    return mask_of


def about(cases: Mapping[str, Sequence[Case]]) -> list[str]:
    """A sentence for every corpus whose organ masks are its own labels."""
    found = []
    for name, members in cases.items():
        place = Path(members[0].images[-1]).parent if members else Path()
        if place.name == FOLDER and corpus_json.facts(place.parent).get("organ") == REFERENCE:
            found.append(f"{name}: organ masks are its own labels; scores are an upper bound")
    return found
