"""Label slices saved as pictures (PNG), one for each slice of a DICOM series, as in CHAOS.

A folder of pictures has no geometry. Picture k, by file name, belongs to file k, by file name, of
the image's DICOM folder; the position of that file in the volume is read from its header, so
head-first and feet-first series are both handled.
"""

import os
import re
from pathlib import Path

import numpy as np
from jaxtyping import UInt16

from medjax.errors import DataError
from medjax.scans.dicom import OBJECTS, scan
from medjax.scans.nifti import Volume

ENDINGS = (".png",)


def is_pictures(folder: str | os.PathLike) -> bool:
    """Whether a folder holds pictures."""
    return bool(_pictures(folder))


def read(folder: str | os.PathLike, like: Volume) -> UInt16[np.ndarray, "z y x"]:
    """The pictures' grey values on the grid of `like`, a volume from a folder of DICOM slices.

    Raises: `DataError` if the image is no DICOM folder, if the numbers of slices differ, or for a
      picture of another size or in colour.
    """
    from matplotlib import image as pictures

    files = _pictures(folder)
    if not os.path.isdir(like.path):
        raise DataError(
            "label pictures need an image that is a folder of DICOM slices",
            path=folder,
            found=like.path,
        )
    series = [s for s in scan(like.path) if s.modality not in OBJECTS]
    order = (
        sorted(
            zip(series[0].files, series[0].headers, strict=True),
            key=lambda member: _natural(member[0]),
        )
        if len(series) == 1
        else []
    )
    if len(files) != len(order) or len(order) != like.shape[0]:
        raise DataError(
            "another number of pictures than slices",
            path=folder,
            found=f"{len(files)} pictures",
            expected=f"{like.shape[0]}, as in {like.path}",
            fix="obtain the folder again",
        )
    to_voxel = np.linalg.inv(like.affine)
    out = np.zeros(like.shape, np.uint16)
    for file, (_, header) in zip(files, order, strict=True):
        x, y, z = (float(v) for v in header.ImagePositionPatient)
        index = to_voxel @ (-x, -y, z, 1.0)  # DICOM's world is LPS
        grey = pictures.imread(file)
        grey = (
            np.rint(grey * 255).astype(np.uint16)
            if grey.dtype.kind == "f"
            else grey.astype(np.uint16)
        )
        if grey.shape[2:] and (grey[..., :3] == grey[..., :1]).all():
            grey = grey[..., 0]
        if grey.shape != like.shape[1:]:
            raise DataError(
                "a picture that does not fit its slice",
                path=file,
                found=grey.shape,
                expected=f"{like.shape[1:]}, grey",
            )
        out[int(np.rint(index[2]))] = grey
    return out


def _pictures(folder: str | os.PathLike) -> list[Path]:
    if not os.path.isdir(folder):
        return []
    found = [
        p
        for p in Path(folder).iterdir()
        if p.suffix.lower() in ENDINGS and not p.name.startswith(".")
    ]
    return sorted(found, key=lambda p: _natural(p.name))


def _natural(name: str) -> list:
    """Sort key that compares numbers in a name by value: slice_9 comes before slice_10."""
    return [
        int(part) if part.isdigit() else part for part in re.split(r"(\d+)", os.path.basename(name))
    ]
