"""DICOM-SEG and RTSTRUCT objects -> binary masks on the grid of the image they belong to.

In: an object file and the image's grid. Out: mask by segment or ROI name. A segmentation is placed
frame by frame at its own position (frames without voxels are usually missing from the file);
contours are filled by the even-odd rule in the plane of their slice.
"""

import functools
import os
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool

from medjax.errors import DataError, did_you_mean
from medjax.scans import grid
from medjax.scans import header as headers
from medjax.scans.dicom import OBJECTS, read_header, scan
from medjax.scans.extras import needs
from medjax.scans.itk import LPS_TO_RAS
from medjax.scans.nifti import Volume
from medjax.scans.paths import Mask

OFF_PLANE = 0.5  # voxels a contour may lie off the centre of its slice


def find(folder: str | os.PathLike) -> list[tuple[str, str, tuple[str, ...]]]:
    """(file, "SEG" or "RTSTRUCT", segment or ROI names) of every such object in a folder."""
    found = []
    for series in scan(folder):
        if series.modality in ("SEG", "RTSTRUCT"):
            found += [(file, series.modality, names_of(file)) for file in series.files]
    return found


def names_of(path: str | os.PathLike) -> tuple[str, ...]:
    """Segment labels of a DICOM-SEG or ROI names of an RTSTRUCT, in file order."""
    header = read_header(needs("pydicom"), path)
    if header.get("Modality") == "SEG":
        return tuple(str(s.SegmentLabel) for s in header.SegmentSequence)
    if header.get("Modality") == "RTSTRUCT":
        return tuple(str(r.ROIName) for r in header.StructureSetROISequence)
    raise DataError(
        "neither a DICOM-SEG nor an RTSTRUCT",
        path=path,
        found=header.get("Modality"),
        expected="SEG or RTSTRUCT",
    )


def open_masks(path: str, like: Volume) -> Callable[[Mask], np.ndarray]:
    """See `formats.open_masks`."""
    modality = (
        read_header(needs("pydicom"), path).get("Modality") if os.path.isfile(path) else "a folder"
    )
    if modality not in OBJECTS[:2]:
        raise DataError(
            "neither a DICOM-SEG nor an RTSTRUCT",
            path=path,
            found=modality,
            expected="SEG or RTSTRUCT",
        )
    names = names_of(path)
    masks = _segments(path, like) if modality == "SEG" else _contours(path, like)

    def mask_of(mask: Mask) -> np.ndarray:
        wanted = mask.pick.partition(":")[2] or mask.name
        if wanted not in names:
            raise DataError(
                f"no {modality} part called {wanted!r}", path=path, fix=did_you_mean(wanted, names)
            )
        out = np.zeros(like.shape, bool)
        for position in [i for i, name in enumerate(names) if name == wanted]:
            out |= masks(position)
        return out

    return mask_of


def _segments(path: str, like: Volume) -> Callable[[int], np.ndarray]:
    needs("pydicom")
    try:
        segmentation = needs("highdicom").seg.segread(path)
    except (AttributeError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"not a readable DICOM-SEG ({error})", path=path, fix="obtain the file again"
        ) from error

    def mask_of(position: int) -> Bool[np.ndarray, "z y x"]:
        number = int(segmentation.SegmentSequence[position].SegmentNumber)
        try:
            volume = segmentation.get_volume(segment_numbers=[number], combine_segments=False)
        except (ValueError, RuntimeError) as error:
            raise DataError(
                f"no regular volume in the DICOM-SEG ({error})",
                path=path,
                fix="convert it to NIfTI",
            ) from error
        array = np.asarray(volume.array).reshape(
            volume.spatial_shape
        )  # indexed slice, row, column: (z, y, x) of its own axes
        affine = (
            LPS_TO_RAS @ np.asarray(volume.affine, np.float64)[:, [2, 1, 0, 3]]
        )  # its columns belong to those indices
        found = Volume(
            array >= 0.5 if array.dtype.kind == "f" else array > 0,
            affine,
            headers.new(array.shape, affine, np.uint8),
            path,
        )
        return grid.place(found, like)

    return mask_of


def _contours(path: str, like: Volume) -> Callable[[int], np.ndarray]:
    pydicom = needs("pydicom")
    try:
        whole = pydicom.dcmread(path)
        by_number = {
            int(roi.ReferencedROINumber): roi.get("ContourSequence", [])
            for roi in whole.get("ROIContourSequence", [])
        }
        numbers = [int(roi.ROINumber) for roi in whole.StructureSetROISequence]
    except (AttributeError, ValueError, TypeError, OSError) as error:
        raise DataError(
            f"not a readable RTSTRUCT ({error})", path=path, fix="obtain the file again"
        ) from error
    to_voxel = np.linalg.inv(like.affine) @ LPS_TO_RAS  # mm (LPS) -> (x, y, z) voxels

    @functools.lru_cache(1)
    def mask_of(position: int) -> Bool[np.ndarray, "z y x"]:
        mask = np.zeros(like.shape, bool)
        for contour in by_number.get(numbers[position], []):
            if contour.ContourGeometricType not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
                continue  # points and open lines enclose nothing
            points = np.asarray([float(v) for v in contour.ContourData]).reshape(-1, 3)
            voxels = (to_voxel[:3, :3] @ points.T + to_voxel[:3, 3:]).T
            z = voxels[:, 2]
            if np.ptp(z) > OFF_PLANE:
                raise DataError(
                    "a contour across slices",
                    path=path,
                    found=f"{np.ptp(z):.3g} slices",
                    expected="contours in the planes of the image",
                    fix="convert the structures to masks with the tool that drew them",
                )
            plane = round(float(z.mean()))
            if 0 <= plane < like.shape[0]:
                mask[plane] ^= fill(voxels[:, :2], like.shape[1:])
        return mask

    return mask_of


def fill(points: np.ndarray, shape: tuple[int, int]) -> Bool[np.ndarray, "y x"]:
    """Voxels whose centre lies inside a closed polygon, by the even-odd rule.

    Args:
      points: (n, 2) corners as (x, y) voxel coordinates; the last joins the first.
      shape: (y, x) of the plane.
    """
    inside = np.zeros(shape, bool)
    x0, y0 = points[:, 0], points[:, 1]
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    for row in range(max(0, int(np.floor(y0.min()))), min(shape[0], int(np.ceil(y0.max())) + 1)):
        crossing = (y0 <= row) != (y1 <= row)  # half-open, so that a corner on the row counts once
        at = np.sort(
            x0[crossing] + (row - y0[crossing]) * (x1 - x0)[crossing] / (y1 - y0)[crossing]
        )
        for left, right in zip(at[::2], at[1::2], strict=True):
            inside[row, max(0, int(np.ceil(left))) : max(0, int(np.floor(right)) + 1)] ^= True
    return inside
