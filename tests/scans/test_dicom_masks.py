"""Contours as masks, and the objects a folder of DICOM files holds."""

import numpy as np
import pytest

from medjax.errors import DataError
from medjax.scans import dicom_masks, formats
from medjax.scans.paths import Mask
from tests.support import dicom

SHAPE = (4, 12, 10)


def test_a_voxel_is_inside_if_its_centre_is():
    square = np.array([(0.5, 1.5), (3.5, 1.5), (3.5, 3.5), (0.5, 3.5)])
    expected = np.zeros((6, 7), bool)
    expected[2:4, 1:4] = True
    assert np.array_equal(dicom_masks.fill(square, (6, 7)), expected)
    assert np.array_equal(dicom_masks.fill(square[::-1], (6, 7)), expected)  # either way round
    bow = np.array([(0, 0), (4, 4), (4, 0), (0, 4)])  # two triangles that meet at (2, 2)
    assert dicom_masks.fill(bow, (5, 5))[1].tolist() == [True, True, False, True, True]
    assert not dicom_masks.fill(square + 50, (6, 7)).any()
    assert dicom_masks.fill(square * 10 - 20, (6, 7)).all()  # a polygon around the whole plane


def test_area_of_a_circle():
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = 30 + 20 * np.stack([np.cos(angles), np.sin(angles)], -1)
    assert dicom_masks.fill(circle, (61, 61)).sum() == pytest.approx(np.pi * 20**2, rel=0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("pydicom")
    folder = tmp_path_factory.mktemp("masks")
    files, _ = dicom.write_series(folder / "ct", np.zeros(SHAPE, np.int16))
    square = [(1.5, 1.5), (4.5, 1.5), (4.5, 4.5), (1.5, 4.5)]
    hole = [(2.5, 2.5), (3.5, 2.5), (3.5, 3.5), (2.5, 3.5)]
    dicom.write_structures(
        folder / "rt.dcm",
        files,
        {"liver": [(1, square), (1, hole)], "gtv": [(9, square)], "none": []},
    )
    return folder


def test_objects_of_a_folder_and_their_names(folder):
    assert dicom_masks.find(folder) == [
        (str(folder / "rt.dcm"), "RTSTRUCT", ("liver", "gtv", "none"))
    ]
    assert dicom_masks.names_of(folder / "rt.dcm") == ("liver", "gtv", "none")
    scan = sorted((folder / "ct").iterdir())[0]
    with pytest.raises(DataError, match="found CT; expected SEG or RTSTRUCT"):
        dicom_masks.names_of(scan)


def test_contours_by_name(folder):
    mask_of = dicom_masks.open_masks(str(folder / "rt.dcm"), formats.read(folder / "ct"))
    liver = mask_of(Mask("whatever", "", "roi:liver"))
    assert liver[1, 2:5, 2:5].sum() == liver.sum() == 8 and not liver[1, 3, 3]  # with its hole
    assert not mask_of(Mask("gtv", "", "")).any()  # a slice that the image does not have
    assert not mask_of(Mask("none", "", "")).any()
    with pytest.raises(DataError, match=r"no RTSTRUCT part called 'lver'.*did you mean liver"):
        mask_of(Mask("lver", "", ""))


def test_contours_across_slices_are_refused(folder, tmp_path):
    from pydicom import dcmread

    slanted = dcmread(folder / "rt.dcm")
    points = slanted.ROIContourSequence[0].ContourSequence[0].ContourData
    points[2] = float(points[2]) + 2 * dicom.SPACING_MM[0]
    slanted.save_as(tmp_path / "rt.dcm")
    mask_of = dicom_masks.open_masks(str(tmp_path / "rt.dcm"), formats.read(folder / "ct"))
    with pytest.raises(DataError, match="a contour across slices; found 2 slices"):
        mask_of(Mask("liver", "", ""))


def test_what_is_no_mask(folder):
    like = formats.read(folder / "ct")
    with pytest.raises(DataError, match="found a folder; expected SEG or RTSTRUCT"):
        dicom_masks.open_masks(str(folder / "ct"), like)
    with pytest.raises(DataError, match="found CT"):
        dicom_masks.open_masks(str(sorted((folder / "ct").iterdir())[0]), like)
