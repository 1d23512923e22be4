"""Reads the label of a case, in any raw form, as dense ids.

In: a `Case` with a label map (NIfTI, NRRD, MHA, array) or with binary masks per class (files,
DICOM-SEG, RTSTRUCT, sparse arrays), and the `Corpus` that defines values or sets. Out: (z, y, x)
dense ids on the grid of the case's image. Fingerprint, preparation, verification and evaluation all
use this module.
"""

import numpy as np

from medjax.corpora import label_sets
from medjax.corpora.inputs import Case
from medjax.errors import LabelError
from medjax.labels import Corpus
from medjax.scans import formats, nifti
from medjax.scans.nifti import Volume

_PIECE = 1 << 22  # voxels


def read_label(case: Case, corpus: Corpus, like: Volume | None = None) -> np.ndarray | None:
    """Dense ids (z, y, x) of a case (uint8, or uint16 from 256 ids); None without a label.

    See `read_label_volume`.
    """
    volume = read_label_volume(case, corpus, like)
    return None if volume is None else volume.array


def read_label_volume(case: Case, corpus: Corpus, like: Volume | None = None) -> Volume | None:
    """Dense ids with their geometry.

    Args:
      like: the case's image, whose grid is compared with the label's. Without it, masks are read on
        the grid of the first image, and a label map on its own grid.

    Raises: `DataError` for unreadable files or another grid than the image's; `LabelError` for
      values or overlaps that the corpus does not declare, with count and position.
    """
    label_sets.check_classes(case)
    if case.masks:
        like = like or formats.read_geometry(case.images[0])
        ids, sets = label_sets.read_sets(case, like)
        return nifti.replaced(like, label_sets.to_corpus_ids(ids, sets, corpus, case.masks[0].path))
    if case.label is None:
        return None
    raw = formats.read(case.label, "label", like=like)
    if like is not None:
        nifti.check_same_geometry(like, raw)
    return nifti.replaced(raw, to_ids(raw.array, corpus, case.label))


def value_counts(raw: np.ndarray) -> dict[int, int]:
    """Label value -> voxels, for non-negative integers."""
    if raw.size and int(raw.max()) < 1 << 16:
        counts = voxel_counts(raw, int(raw.max()) + 1)
        return {int(v): int(counts[v]) for v in np.flatnonzero(counts)}
    return {int(v): int(n) for v, n in zip(*np.unique(raw, return_counts=True), strict=True)}


def voxel_counts(ids: np.ndarray, length: int) -> np.ndarray:
    """(length,) voxels of each id from 0 on.

    Counted slice by slice: numpy's count of a whole volume needs eight times its memory.
    """
    counts = np.zeros(length, np.int64)
    for piece in ids:
        counts += np.bincount(piece.ravel(), minlength=length)
    return counts


def undeclared(
    raw: np.ndarray, counts: dict[int, int], corpus: Corpus
) -> list[tuple[int, int, tuple[int, ...]]]:
    """(value, voxels, first position (z, y, x)) of undeclared label values."""
    strange = [value for value in counts if value not in corpus.values]
    return [
        (v, counts[v], tuple(int(i) for i in np.unravel_index(int((raw == v).argmax()), raw.shape)))
        for v in strange
    ]


def to_ids(raw: np.ndarray, corpus: Corpus, path: str) -> np.ndarray:
    """Raw non-negative label values -> dense ids (uint8, or uint16 from 256 ids).

    Raises `LabelError` naming the file for undeclared values.
    """
    strange = undeclared(raw, value_counts(raw), corpus)
    if strange:
        listing = ", ".join(
            f"{value} ({count} voxels, first at {place} z, y, x)"
            for value, count, place in strange[:8]
        )
        raise LabelError(
            "undeclared label values",
            path=path,
            found=listing,
            expected=f"one of {list(corpus.values)}",
            fix=f'declare them in dataset.json, e.g. "labels": {{"name": {strange[0][0]}}}',
        )
    table = np.zeros(max(corpus.values) + 1, np.uint8 if len(corpus.values) <= 256 else np.uint16)
    table[list(corpus.values)] = range(len(corpus.values))
    return table[raw]
