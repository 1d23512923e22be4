"""Masks of all classes of a case, from a label map or from one file per class.

In: a path and what its values mean. Out: per class a bounding box and a bool mask within any box,
so that scoring works on small crops. Classes may overlap: a label value may belong to several
classes, and files of a folder are independent.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from medjax.corpora.inputs import Case
from medjax.corpora.labels_of_case import read_label_volume, to_ids
from medjax.errors import MetricError, did_you_mean
from medjax.labels import Corpus
from medjax.scans import formats, nifti
from medjax.scans.grid import nonzero_box
from medjax.scans.paths import image_files, stem

Box = tuple[slice, slice, slice]


class LabelMap:
    """Masks of a label map; `volume.array` holds dense ids of the corpus."""

    def __init__(self, volume: nifti.Volume, corpus: Corpus):
        self.volume, self._corpus = volume, corpus
        self._boxes = [None, *ndimage.find_objects(volume.array, max_label=len(corpus.values) - 1)]

    def box(self, name: str) -> Box | None:
        """Bounding box of a class, None where it does not occur."""
        return join(*(self._boxes[i] for i in self._corpus.ids_of(name)))

    def mask(self, name: str, box: Box) -> np.ndarray:
        """(z, y, x) bool within a box."""
        table = np.zeros(len(self._corpus.values), bool)
        table[list(self._corpus.ids_of(name))] = True
        return table[self.volume.array[box]]

    def valid(self, box: Box) -> np.ndarray | None:
        """Where the voxels count; None without an ignore value."""
        return (
            None
            if self._corpus.ignore is None
            else self.volume.array[box] != self._corpus.ignore_id
        )


class ClassFiles:
    """Masks of a folder with one binary file per class; one mask is kept in memory at a time."""

    def __init__(self, folder: str | os.PathLike, corpus: Corpus):
        from medjax.infer.write import file_names  # imports jax, which label maps do not need

        self._folder, self._held = Path(folder), ("", None)
        self._files = {stem(path): path for path in image_files(self._folder)}
        if not self._files:
            raise MetricError(
                "no masks in this folder", path=folder, expected="one <class>.nii.gz per class"
            )
        self._names = dict(
            zip(corpus.classes, (stem(name) for name in file_names(corpus.classes)), strict=True)
        )
        self.volume = formats.read_geometry(next(iter(self._files.values())))

    def box(self, name: str) -> Box | None:
        """Bounding box of a class, None where it does not occur."""
        found = nonzero_box(self._read(name))
        return None if found is None else tuple(slice(*ends) for ends in found)

    def mask(self, name: str, box: Box) -> np.ndarray:
        """(z, y, x) bool within a box."""
        return self._read(name)[box]

    def valid(self, box: Box) -> np.ndarray | None:
        """Every voxel of a folder of masks counts."""
        return None

    def _read(self, name: str) -> np.ndarray:
        if self._held[0] != name:
            path = self._files.get(self._names[name], self._files.get(name))
            if path is None:
                raise MetricError(
                    f"no mask of class {name!r}",
                    path=self._folder,
                    fix=did_you_mean(self._names[name], self._files),
                )
            volume = formats.read(path, "label", like=self.volume)
            nifti.check_same_geometry(self.volume, volume)
            self._held = (name, volume.array > 0)
        return self._held[1]


def open_masks(
    path: str | os.PathLike,
    corpus: Corpus,
    source: Case | None = None,
    like: nifti.Volume | None = None,
) -> LabelMap | ClassFiles:
    """The masks at a path: a label map with the corpus' values, or a folder with a file per class.

    Args:
      source: the case; if `path` is one of its masks per class, all of them are read as for
        training.
      like: provides the grid for formats without one.

    Raises: `DataError` for an unreadable file, `LabelError` for undeclared values, `MetricError`
      for a folder without masks.
    """
    if source is not None and os.fspath(path) in {mask.path for mask in source.masks}:
        return LabelMap(read_label_volume(source, corpus), corpus)
    if os.path.isdir(path) and image_files(Path(path)):
        return ClassFiles(path, corpus)
    volume = formats.read(path, "label", like=like)
    return LabelMap(nifti.replaced(volume, to_ids(volume.array, corpus, volume.path)), corpus)


def value_names(corpus: Corpus) -> dict[int, str]:
    """Label value -> its most specific class, for legends."""
    from medjax.infer.write import label_names

    return label_names(corpus)


def label_map(
    path: str | os.PathLike,
    corpus: Corpus,
    source: Case | None = None,
    like: nifti.Volume | None = None,
) -> nifti.Volume:
    """One volume of label values for display; of overlapping masks the smaller is on top."""
    found = open_masks(path, corpus, source, like)
    if isinstance(found, LabelMap):
        return nifti.replaced(found.volume, corpus.to_raw(found.volume.array))
    value = {
        name: min((len(names), v) for v, names in corpus.labels if name in names)[1]
        for name in corpus.classes
    }
    drawn = np.zeros(found.volume.shape, np.uint16)
    layers = [
        (int(np.count_nonzero(found.mask(name, box))), name, box)
        for name in corpus.classes
        if (box := found.box(name))
    ]
    for _, name, box in sorted(layers, key=lambda layer: -layer[0]):
        drawn[box][found.mask(name, box)] = value[name]
    return nifti.replaced(found.volume, drawn)


def join(*boxes: Box | None) -> Box | None:
    """The smallest box around all given ones."""
    given: Sequence[Box] = [box for box in boxes if box is not None]
    return (
        tuple(
            slice(min(b[k].start for b in given), max(b[k].stop for b in given)) for k in range(3)
        )
        if given
        else None
    )
