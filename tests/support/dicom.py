"""Small DICOM objects for tests: an image series, a DICOM-SEG of overlapping segments and an
RTSTRUCT, all on one grid.

files, affine = write_series(folder, array)       # array (z, y, x) int16;
                                                  # affine (x, y, z) voxel -> RAS+ mm
write_segmentation(path, files, {"liver": mask})  # masks (z, y, x) bool
write_structures(path, files, {"liver": [...]})   # polygons: (slice, [(x, y), ...]) in voxels
"""

from pathlib import Path

import numpy as np

SPACING_MM = (2.5, 0.8, 0.7)  # (z, y, x)
ORIGIN = (-20.0, 15.0, 40.0)  # LPS mm


def write_series(
    folder: Path,
    array: np.ndarray,
    *,
    tilt: float = 0.0,
    reverse: bool = False,
    modality: str = "CT",
    slope: float = 1.0,
):
    """Writes one file per slice; file names do not follow the slices.

    `tilt` shifts each slice by so many mm along y (a tilted gantry).
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    sz, sy, sx = SPACING_MM
    files = []
    for k, plane in enumerate(array):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
            CTImageStorage,
            generate_uid(),
        )
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"IM{(k * 7) % len(array) if len(array) % 7 else k:04d}"
        d = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        d.SOPClassUID, d.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        d.SeriesInstanceUID, d.StudyInstanceUID, d.FrameOfReferenceUID = series, study, frame
        d.PatientID, d.PatientName, d.PatientBirthDate, d.PatientSex = "p1", "Test^A", "", "O"
        d.Modality, d.SeriesDescription, d.StudyID, d.StudyDate, d.StudyTime = (
            modality,
            "body",
            "1",
            "20200101",
            "120000",
        )
        d.AccessionNumber, d.ReferringPhysicianName, d.SeriesNumber, d.InstanceNumber = (
            "",
            "",
            1,
            len(array) - k if reverse else k + 1,
        )
        d.ImagePositionPatient = [ORIGIN[0], ORIGIN[1] + tilt * k, ORIGIN[2] + sz * k]
        d.ImageOrientationPatient, d.PixelSpacing, d.SliceThickness = (
            [1, 0, 0, 0, 1, 0],
            [sy, sx],
            sz,
        )
        d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = (
            *plane.shape,
            1,
            "MONOCHROME2",
        )
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1
        d.RescaleSlope, d.RescaleIntercept = slope, -1024
        d.PixelData = (plane.astype(np.int32) + 1024).astype("<i2").tobytes()
        d.save_as(path, enforce_file_format=True)
        files.append(str(path))
    affine = np.diag([-1.0, -1, 1, 1]) @ np.array(
        [[sx, 0, 0, ORIGIN[0]], [0, sy, tilt, ORIGIN[1]], [0, 0, sz, ORIGIN[2]], [0, 0, 0, 1]]
    )
    return files, affine


def write_segmentation(path: Path, files: list[str], masks: dict[str, np.ndarray]) -> None:
    """A binary DICOM-SEG with one segment per mask; frames without voxels are left out, as most
    writers do.
    """
    import highdicom as hd
    from pydicom import dcmread
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    algorithm = {"algorithm_type": hd.seg.SegmentAlgorithmTypeValues.MANUAL}
    described = [
        hd.seg.SegmentDescription(i + 1, name, codes.SCT.Organ, codes.SCT.Liver, **algorithm)
        for i, name in enumerate(masks)
    ]
    seg = hd.seg.Segmentation(
        [dcmread(f) for f in files],
        np.stack(list(masks.values()), -1).astype(np.uint8),
        hd.seg.SegmentationTypeValues.BINARY,
        described,
        generate_uid(),
        2,
        generate_uid(),
        1,
        "medjax",
        "tests",
        "1",
        "0",
    )
    seg.save_as(path)


def write_structures(
    path: Path,
    files: list[str],
    contours: dict[str, list[tuple[int, list[tuple[float, float]]]]],
    *,
    refer: bool = False,
) -> None:
    """An RTSTRUCT; polygons are given in (x, y) voxels of a slice."""
    from pydicom import dcmread
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    first = dcmread(files[0], stop_before_pixels=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        RTStructureSetStorage,
        generate_uid(),
    )
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    d.SOPClassUID, d.SOPInstanceUID, d.Modality = (
        RTStructureSetStorage,
        meta.MediaStorageSOPInstanceUID,
        "RTSTRUCT",
    )
    d.SeriesInstanceUID, d.StudyInstanceUID, d.PatientID = (
        generate_uid(),
        first.StudyInstanceUID,
        first.PatientID,
    )
    rois, drawn = [], []
    for number, (name, polygons) in enumerate(contours.items(), 5):
        roi, item = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = (
            number,
            name,
            first.FrameOfReferenceUID,
        )
        item.ReferencedROINumber, planes = number, []
        for k, polygon in polygons:
            c = Dataset()
            points = [
                (
                    ORIGIN[0] + x * SPACING_MM[2],
                    ORIGIN[1] + y * SPACING_MM[1],
                    ORIGIN[2] + k * SPACING_MM[0],
                )
                for x, y in polygon
            ]
            c.ContourGeometricType, c.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            c.ContourData = [f"{v:.6f}" for p in points for v in p]
            planes.append(c)
        item.ContourSequence = Sequence(planes)
        rois.append(roi)
        drawn.append(item)
    if refer:
        series, study, frame = Dataset(), Dataset(), Dataset()
        series.SeriesInstanceUID = first.SeriesInstanceUID
        study.RTReferencedSeriesSequence = Sequence([series])
        frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = (
            first.FrameOfReferenceUID,
            Sequence([study]),
        )
        d.ReferencedFrameOfReferenceSequence = Sequence([frame])
    d.StructureSetROISequence, d.ROIContourSequence = Sequence(rois), Sequence(drawn)
    d.save_as(path, enforce_file_format=True)
