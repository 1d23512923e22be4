"""Paths of scans and masks: endings, channels, kinds of files, and one class within a file.

In: paths. Out: facts from names and first bytes; no voxel is read.
"""

import dataclasses
import os
import re
from collections.abc import Iterable
from pathlib import Path

NIFTI_ENDINGS, ITK_ENDINGS, ARRAY_ENDINGS = (
    (".nii.gz", ".nii"),
    (".nrrd", ".nhdr", ".mha", ".mhd"),
    (".npy", ".npz"),
)
ENDINGS = (*NIFTI_ENDINGS, *ITK_ENDINGS)
CHANNEL = re.compile(r"^(.+)_(\d{4})$")


@dataclasses.dataclass(frozen=True)
class Mask:
    """The voxels of one class in one case, as a binary mask that may overlap others.

    Attributes:
      name: the class.
      path: the file.
      pick: which voxels of the file. "" every voxel that is not 0 (0 and one other value),
        "frame:N" one frame or channel, "value:V" or "value:V,W" the voxels of these values,
        "segment:NAME" of a DICOM-SEG, "roi:NAME" of an RTSTRUCT.
    """

    name: str
    path: str
    pick: str = ""


def stem(path: str | os.PathLike, endings: Iterable[str] = ENDINGS) -> str:
    """File name without folder and ending."""
    name = os.path.basename(path)
    return next((name[: -len(e)] for e in endings if name.endswith(e)), name)


def image_files(folder: Path, endings: Iterable[str] = ENDINGS) -> list[Path]:
    """The scans and label files of a folder, sorted, without hidden and AppleDouble files."""
    if not folder.is_dir():
        return []
    return sorted(
        p
        for p in folder.iterdir()
        if p.name.endswith(tuple(endings)) and not p.name.startswith(".")
    )


def is_dicom(path: str | os.PathLike) -> bool:
    """Whether the file has DICOM's mark behind its preamble.

    Pipes and devices are not opened: they would block.
    """
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except (OSError, ValueError):
        return False
