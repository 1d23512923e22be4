"""A folder with a DICOM series -> one volume.

Headers are read and checked with pydicom (order, gaps, one series, one orientation), voxels with
SimpleITK, which decodes every transfer syntax. The affine comes from the slices' own positions, so
a tilted gantry shows as shear. Needs the extra `formats`.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from medjax.errors import DataError
from medjax.scans import header as headers
from medjax.scans.extras import needs
from medjax.scans.itk import LPS_TO_RAS
from medjax.scans.nifti import Volume
from medjax.scans.paths import is_dicom

OBJECTS = (
    "SEG",
    "RTSTRUCT",
    "RTPLAN",
    "RTDOSE",
    "SR",
    "PR",
    "KO",
    "REG",
    "DOC",
)  # modalities that are no images
GAP = 0.05  # tolerance of a position, as a share of the slice distance
TAGS = (
    "SOPInstanceUID",
    "SOPClassUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "PatientID",
    "SeriesDescription",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "RescaleSlope",
    "RescaleIntercept",
    "SamplesPerPixel",
    "ImageType",
    "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
    "SegmentSequence",
    "StructureSetROISequence",
)


@dataclasses.dataclass(frozen=True)
class Series:
    """The files of one DICOM series, in file order, with their headers."""

    uid: str
    modality: str
    patient: str
    description: str
    files: tuple[str, ...]
    headers: tuple


def scan(folder: str | os.PathLike) -> list[Series]:
    """Every series (images and other objects) in a folder, ordered by first file name.

    Subfolders are not searched.
    """
    pydicom = needs("pydicom", folder)
    found: dict[str, list] = {}
    for path in sorted(
        p for p in Path(folder).iterdir() if p.is_file() and not p.name.startswith(".")
    ):
        if is_dicom(path):
            header = read_header(pydicom, path)
            found.setdefault(str(header.get("SeriesInstanceUID", "")), []).append(
                (str(path), header)
            )
    series = []
    for uid, members in found.items():
        first = members[0][1]
        words = (str(first.get(tag, "")) for tag in ("Modality", "PatientID", "SeriesDescription"))
        series.append(
            Series(
                uid,
                *words,
                tuple(path for path, _ in members),
                tuple(header for _, header in members),
            )
        )
    return series


def read_header(pydicom, path: str | os.PathLike):
    """The header of a DICOM file without its pixels; `DataError` if it is damaged."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
        # values are decoded when they are asked for: all of them here, where what goes wrong has a
        # name
        for tag in TAGS:
            header.get(tag)
        return header
    except Exception as error:
        raise DataError(
            f"not a readable DICOM file ({error})", path=path, fix="obtain the file again"
        ) from error


def numbers(
    header, tag: str, count: int, path: str | os.PathLike, default: float | int | None = None
) -> tuple[float, ...]:
    """`count` finite numbers of a header; `default` if it has none.

    Raises: `DataError` naming tag and file.
    """
    value = header.get(tag)
    value = default if value is None or value == "" else value
    try:
        found = tuple(float(v) for v in (value if count > 1 else (value,)))
    except (TypeError, ValueError, OverflowError):
        found = ()
    if len(found) != count or not np.isfinite(found).all():
        expected = f"{count} finite number" + ("s" if count > 1 else "")
        raise DataError(
            f"unusable {tag}",
            path=path,
            found=repr(value)[:120],
            expected=expected,
            fix="obtain the file again",
        )
    return found


def read(path: str, *, pixels: bool = True) -> Volume:
    """Reads the one image series of a folder, or the series a single image file belongs to alone.

    Returns: `Volume`, (z, y, x) with rescale slope and intercept applied.
    Raises: `DataError` for several series, missing or doubled slices, differing orientations or
      sizes, colour.
    """
    if os.path.isdir(path):
        series = [s for s in scan(path) if s.modality not in OBJECTS]
    else:
        header = read_header(needs("pydicom", path), path)
        series = [Series("", str(header.get("Modality", "")), "", "", (path,), (header,))]
    if len(series) != 1:
        listing = (
            "; ".join(
                f"{s.description or s.uid} ({s.modality}, {len(s.files)} files)" for s in series
            )
            or "no DICOM images"
        )
        raise DataError(
            "a DICOM folder must hold one image series",
            path=path,
            found=listing,
            expected="1 series",
            fix="one folder per series",
        )
    (one,) = series
    if one.modality in OBJECTS:
        raise DataError(
            f"a DICOM {one.modality} object, not an image", path=path, fix="give it as a label"
        )
    if len(one.files) == 1 and numbers(one.headers[0], "NumberOfFrames", 1, one.files[0], 1)[0] > 1:
        return _multiframe(one.files[0], path, pixels)
    order, affine = _geometry(one, path)
    slope = {
        (*numbers(h, "RescaleSlope", 1, file, 1), *numbers(h, "RescaleIntercept", 1, file, 0))
        for file, h in zip(one.files, one.headers, strict=True)
    }
    whole = len(slope) == 1 and all(float(v).is_integer() for pair in slope for v in pair)
    first = one.headers[0]
    shape = (len(order), int(first.Rows), int(first.Columns))
    array = _pixels([one.files[i] for i in order], whole, path) if pixels else None
    if array is not None and array.shape != shape:
        raise DataError(
            "voxels do not fit the headers", path=path, found=array.shape, expected=shape
        )
    return Volume(
        array,
        affine,
        headers.new(shape, affine, np.float32 if array is None else array.dtype),
        path,
    )


def _geometry(series: Series, path: str) -> tuple[list[int], np.ndarray]:
    """Order of the files along the slice axis, and the RAS+ affine of that order."""
    for file, h in zip(series.files, series.headers, strict=True):
        missing = [
            t
            for t in (
                "ImagePositionPatient",
                "ImageOrientationPatient",
                "PixelSpacing",
                "Rows",
                "Columns",
            )
            if h.get(t) is None
        ]
        if missing:
            raise DataError(
                "a slice without geometry",
                path=file,
                found=f"no {', '.join(missing)}",
                fix="take it out of the folder",
            )
        if numbers(h, "SamplesPerPixel", 1, file, 1)[0] != 1:
            raise DataError("RGB voxels", path=file, expected="one grey value per voxel")

    def column_of(tag: str, count: int) -> np.ndarray:
        return np.array(
            [
                numbers(h, tag, count, file)
                for file, h in zip(series.files, series.headers, strict=True)
            ]
        )

    orientation, spacings = column_of("ImageOrientationPatient", 6), column_of("PixelSpacing", 2)
    planes = np.concatenate(
        [column_of("Rows", 1), column_of("Columns", 1), np.round(spacings, 4)], 1
    )
    size = {(int(rows), int(columns), *spacing) for rows, columns, *spacing in planes.tolist()}
    if np.abs(orientation - orientation[0]).max() > 1e-3 or len(size) > 1:
        raise DataError(
            "slices of different orientation or size in one series",
            path=path,
            found=f"{sorted(size)} (rows, columns, mm)",
            fix="take the localizers out of the folder",
        )
    row, column = orientation[0][:3], orientation[0][3:]
    positions = column_of("ImagePositionPatient", 3)
    along = positions @ np.cross(row, column)
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order])
    if len(steps):
        usual = float(np.median(steps))
        if usual <= 0 or (steps < GAP * usual).any():
            raise DataError(
                "several slices at one position (a time series?)",
                path=path,
                found=f"{int((steps <= GAP * max(usual, 1e-6)).sum()) + 1}",
                fix="one folder per time point or channel",
            )
        if (np.abs(steps - usual) > GAP * usual).any():
            at = int(np.argmax(np.abs(steps - usual)))
            raise DataError(
                "missing slices or uneven distances",
                path=path,
                found=f"{steps[at]:.4g} mm after slice {at + 1}",
                expected=f"{usual:.4g} mm",
                fix="obtain the missing slices",
            )
        step = (positions[order[-1]] - positions[order[0]]) / len(steps)
    else:
        step = np.cross(row, column) * (
            numbers(series.headers[0], "SliceThickness", 1, series.files[0], 1)[0] or 1
        )
    between_rows, between_columns = spacings[0]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * between_columns, column * between_rows, step
    affine[:3, 3] = positions[order[0]]
    affine = headers.check_regular(LPS_TO_RAS @ affine, path)
    headers.check_shear(affine, path)
    return [int(i) for i in order], affine


def _pixels(files: list[str], whole: bool, path: str) -> np.ndarray:
    sitk = needs("SimpleITK")
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames(files)
    if not whole:
        reader.SetOutputPixelType(sitk.sitkFloat32)
    warn = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # uneven distances are our own check
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        raise DataError(
            "cannot be read (damaged or truncated)",
            path=path,
            found=reason[:200],
            fix="obtain the files again",
        ) from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warn)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _multiframe(file: str, path: str, pixels: bool) -> Volume:
    """An enhanced multi-frame object, geometry by ITK."""
    from medjax.scans.itk import affine_of

    sitk = needs("SimpleITK")
    try:
        image = sitk.ReadImage(file)
    except RuntimeError as error:
        raise DataError(
            "cannot be read (damaged or truncated)",
            path=file,
            found=str(error)[-200:],
            fix="obtain the file again",
        ) from error
    array = sitk.GetArrayFromImage(image)
    affine = affine_of(image.GetSpacing(), image.GetOrigin(), image.GetDirection(), path)
    return Volume(
        array if pixels else None, affine, headers.new(array.shape, affine, array.dtype), path
    )
