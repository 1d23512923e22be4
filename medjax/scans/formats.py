"""Reads any scan or label map as a `nifti.Volume`: (z, y, x[, m]) array and RAS+ affine.

    ending or content                read by
    .nii, .nii.gz                    scans/nifti.py (nibabel)
    .nrrd, .nhdr, .mha, .mhd         scans/itk.py (SimpleITK, extra `formats`)
    a folder with a DICOM series     scans/dicom.py (pydicom and SimpleITK, extra `formats`)
    a DICOM-SEG or RTSTRUCT file     scans/dicom_masks.py (highdicom, pydicom), with the image
                                     whose grid it belongs to
    a folder of mask slices          DICOM as above, or pictures by scans/slices.py, with the
                                     DICOM series they follow
    .npy, .npz                       scans/arrays.py, geometry from a sidecar
    tfds:FOLDER#N                    scans/records.py (tensorflow-datasets), a case in
                                     ArrayRecord form

Libraries of the extra are imported when a file needs them.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from medjax.errors import DataError, UsageError, did_you_mean
from medjax.scans import content, nifti, voxels
from medjax.scans.nifti import Volume
from medjax.scans.paths import ARRAY_ENDINGS, ENDINGS, ITK_ENDINGS, Mask, is_dicom

WANTED = ("image", "label")


@dataclasses.dataclass(frozen=True)
class Reading:
    """Options for reading the scans of a call.

    Attributes:
      frame: the frame of a 4D file to use, counted from 0; None: all frames are channels.
      replace_nan: replacement of non-finite voxels: a number, or "min" for the smallest finite one
        of their channel; None: they are an error.

    Raises: `UsageError` for a negative frame, and for a replacement that is no number float32
      holds.
    """

    frame: int | None = None
    replace_nan: float | str | None = None

    def __post_init__(self):
        if self.frame is not None and self.frame < 0:
            raise UsageError(
                "no such frame",
                found=f"--frame {self.frame}",
                expected="0 or more: frames are counted from 0",
            )
        if self.replace_nan in (None, voxels.MINIMUM):
            return
        try:
            number = float(self.replace_nan)
        except ValueError:
            number = math.nan
        if not abs(number) <= float(np.finfo(np.float32).max):
            raise UsageError(
                "unusable replacement of non-finite voxels",
                found=f"--replace-nan {self.replace_nan}",
                expected="a finite number, or min",
            )
        object.__setattr__(self, "replace_nan", number)

    def settings(self) -> dict:
        """JSON-ready; a finished case with other settings is not skipped.

        Empty without any option.
        """
        return {
            name: value for name, value in dataclasses.asdict(self).items() if value is not None
        }


AS_STORED = Reading()


def kind_of(path: str | os.PathLike) -> str:
    """The kind of a path: nifti, itk, array, series, dicom or record.

    series is a folder of DICOM slices, dicom one DICOM file, record a case in tensorflow-datasets.
    A folder named like a file counts as that file (and then fails), unless it holds DICOM slices.
    """
    if os.fspath(path).startswith("tfds:"):
        return "record"
    path = Path(path)
    name = path.name.lower()
    if os.path.isdir(path) and not (
        name.endswith((*ENDINGS, *ARRAY_ENDINGS)) and not _holds_dicom(path)
    ):
        return "series"
    if name.endswith(ITK_ENDINGS):
        return "itk"
    if name.endswith(ARRAY_ENDINGS):
        return "array"
    return "nifti" if name.endswith((".nii", ".nii.gz")) or not is_dicom(path) else "dicom"


def read(
    path: str | os.PathLike,
    want: str = "image",
    *,
    frame: int | None = None,
    allow_nonfinite: bool = False,
    like: Volume | None = None,
    replace_nan: float | str | None = None,
    hashed: bool = False,
) -> Volume:
    """Reads any supported file or DICOM folder.

    Args:
      path: see the table above.
      want: "image" returns float32 or the stored integers, "label" whole numbers that are not
        negative.
      frame: one frame or channel of a 4D file; None keeps all as the last axis.
      allow_nonfinite: keep NaN and infinite voxels, with a warning that counts them.
      replace_nan: put this number, or "min" for the smallest finite one, in place of NaN and
        infinite voxels of an image, with a warning.
      like: the image a label belongs to; arrays without geometry of their own take its grid.
      hashed: fill `Volume.hashes` where that needs no second reading (NIfTI).

    Returns: `nifti.Volume`; its header is a NIfTI header, so that masks can be written for it.
    Raises: `DataError` for what is missing, damaged or not a scan; `UsageError` if the format needs
      a library that is not installed.
    """
    if want not in WANTED:
        raise UsageError(f"unknown kind {want!r}", fix=did_you_mean(want, WANTED))
    kind, path = kind_of(path), os.fspath(path)
    if kind == "nifti":
        return nifti.read(
            path,
            frame=frame,
            allow_nonfinite=allow_nonfinite,
            want=want,
            replace_nan=replace_nan,
            hashed=hashed,
        )
    further = {"array": {"like": like}, "record": {"want": want}}.get(kind, {})
    if kind in ("itk", "array", "dicom"):
        content.check_file(path)
    with content.memory(path):
        volume = _reader(kind)(path, **further)
    array = volume.array
    if frame is not None:
        frames = array.shape[-1] if array.ndim == 4 else 1
        if not 0 <= frame < frames:
            fix = (
                "frames are counted from 0"
                if frames > 1
                else "it is one 3D scan: leave --frame out"
            )
            raise DataError(
                "no such frame", path=path, found=frame, expected=f"0 to {frames - 1}", fix=fix
            )
        array = array[..., frame] if array.ndim == 4 else array
    if want == "label" and array.ndim == 4:
        raise DataError(
            "a label map with several channels",
            path=path,
            found=f"{array.shape[-1]} channels",
            expected="one label map",
            fix="give one file, or say which frame is meant",
        )
    return nifti.replaced(volume, nifti.finished(array, want, path, allow_nonfinite, replace_nan))


def read_case(
    image_paths: Sequence[str | os.PathLike],
    reading: Reading = AS_STORED,
    *,
    native: bool = False,
    hashed: bool = False,
) -> Volume:
    """`nifti.read_case` for any format: the channels of one case as (z, y, x, m).

    float32, or as stored if `native`; `hashed`: see `read`.
    """
    return nifti.read_case(
        image_paths,
        reader=read,
        native=native,
        frame=reading.frame,
        replace_nan=reading.replace_nan,
        hashed=hashed,
    )


def read_geometry(path: str | os.PathLike) -> Volume:
    """Grid and header without voxels (`array` is None); only headers are read."""
    kind = kind_of(path)
    if kind == "nifti":
        return nifti.read_geometry(path)
    if kind in ("itk", "array", "dicom"):
        content.check_file(path)
    with content.memory(path):
        return _reader(kind)(os.fspath(path), pixels=False)


def open_masks(path: str | os.PathLike, like: Volume) -> Callable[[Mask], np.ndarray]:
    """Opens a file once for all the masks that are read from it.

    Args:
      path: label map, 4D file, array, DICOM-SEG or RTSTRUCT.
      like: volume whose grid the masks belong to (`array` may be None).

    Returns: mask -> (z, y, x) bool on the grid of `like`.
    Raises: `DataError` for another grid, more than one value where a binary mask is expected, or
      something that is not in the file.
    """
    path, kind = os.fspath(path), kind_of(path)
    if kind == "dicom":
        from medjax.scans import dicom_masks

        return dicom_masks.open_masks(path, like)
    whole = functools.cache(
        lambda: _label_slices(path, like) if kind == "series" else read(path, "image", like=like)
    )

    def mask_of(mask: Mask) -> np.ndarray:
        volume = whole()
        nifti.check_same_geometry(like, volume)
        rule, _, what = mask.pick.partition(":")
        array = volume.array
        if rule == "frame":
            if array.ndim != 4 or not what.isdigit() or int(what) >= array.shape[-1]:
                raise DataError(
                    "no such frame",
                    path=path,
                    found=mask.pick,
                    expected=f"shape {array.shape} (z, y, x, frame)",
                )
            array = array[..., int(what)]
        elif array.ndim == 4:
            raise DataError(
                "a mask with several frames",
                path=path,
                found=array.shape,
                expected="(z, y, x)",
                fix="say which frame is meant",
            )
        array = nifti.finished(array, "label", path)
        if rule == "value":
            return np.isin(array, [int(v) for v in what.split(",")])
        if rule not in ("", "frame"):
            raise UsageError(
                f"cannot pick {mask.pick!r}", path=path, expected='"", "frame:N" or "value:V"'
            )
        values = (
            np.flatnonzero(np.bincount(array.ravel()))
            if array.size and array.max() < 1 << 16
            else np.unique(array)
        )
        if len(set(values.tolist()) - {0}) > 1:
            raise DataError(
                f"mask of {mask.name!r} holds several values",
                path=path,
                found=values.tolist()[:8],
                expected="0 and one other value",
                fix="it looks like a label map: declare its values",
            )
        return array != 0

    return mask_of


def _label_slices(path: str, like: Volume) -> Volume:
    """A folder of mask slices: DICOM slices, or pictures in the order of the image's slices."""
    from medjax.scans import slices

    return (
        nifti.replaced(like, slices.read(path, like))
        if slices.is_pictures(path)
        else read(path, "image")
    )


def _holds_dicom(folder: Path) -> bool:
    """Whether one of the first files of a folder is DICOM."""
    try:
        files = sorted(
            p for p in folder.iterdir() if os.path.isfile(p) and not p.name.startswith(".")
        )
    except OSError:
        return False
    return any(is_dicom(p) for p in files[:5])


def _reader(kind: str) -> Callable[..., Volume]:
    if kind == "itk":
        from medjax.scans.itk import read as reader
    elif kind == "array":
        from medjax.scans.arrays import read as reader
    elif kind == "record":
        from medjax.scans.records import read as reader
    else:
        from medjax.scans.dicom import read as reader
    return reader
