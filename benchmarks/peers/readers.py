"""Programs that read the files of a data set: does one notice a fault (`benchmarks.faults_peers`)?

Each is a function folder -> None that raises where the program refuses a file.
"""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np


def nibabel(folder: Path) -> None:
    """Reads every voxel of every file."""
    for path in sorted(folder.glob("*Tr/*.nii*")):
        np.asanyarray(nib.load(path).dataobj)


def simpleitk(folder: Path) -> None:
    """Reads every file."""
    import SimpleITK

    for path in sorted(folder.glob("*Tr/*.nii*")):
        SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def monai(folder: Path) -> None:
    """LoadImage of every file."""
    from monai.transforms import LoadImage

    for path in sorted(folder.glob("*Tr/*.nii*")):
        LoadImage(image_only=True)(str(path))


def medjax(folder: Path) -> None:
    """Our check; raises if the report holds an error."""
    from medjax.corpora.verify import verify

    if not verify(folder, workers=1).ok:
        raise ValueError("not usable")


READERS: dict[str, Callable[[Path], None]] = {
    "nibabel": nibabel,
    "SimpleITK": simpleitk,
    "MONAI": monai,
    "medjax": medjax,
}
