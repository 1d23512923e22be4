"""DICOM folders: where files are looked for, names of cases, and objects that belong nowhere."""

import numpy as np
import pytest

from medjax.corpora.layouts import dicoms
from tests.support import dicom

pytest.importorskip("pydicom")
SHAPE = (2, 6, 5)
SQUARE = [(1.5, 1.5), (3.5, 1.5), (3.5, 3.5), (1.5, 3.5)]


def series(folder):
    return dicom.write_series(folder, np.zeros(SHAPE, np.int16))[0]


def test_files_are_found_four_levels_down(tmp_path):
    (tmp_path / "note.txt").write_text("text")
    series(tmp_path / "0" / "1" / "2" / "3" / "4")
    assert not dicoms.detect(tmp_path) and not dicoms.detect(tmp_path / "note.txt")
    assert dicoms.detect(tmp_path / "0")


def test_a_patient_with_one_scan_gives_its_name(tmp_path):
    series(tmp_path / "x")
    corpus, [case], problems = dicoms.scan(tmp_path)
    assert (case.name, case.patient, case.modality, problems) == ("p1", "p1", "CT", [])
    assert case.images == (str(tmp_path / "x"),) and case.masks == ()
    assert (corpus.channels, corpus.classes) == (("CT",), ())


def test_an_object_belongs_to_the_series_it_names(tmp_path):
    files = series(tmp_path / "first")
    series(tmp_path / "second")
    (tmp_path / "rt").mkdir()
    dicom.write_structures(
        tmp_path / "rt" / "a.dcm", files, {"liver": [(0, SQUARE)], "gtv ": []}, refer=True
    )
    _, cases, problems = dicoms.scan(tmp_path)
    assert [c.name for c in cases] == ["first"] and cases[0].patient == "p1"
    assert [(m.name, m.pick.strip()) for m in cases[0].masks] == [
        ("liver", "roi:liver"),
        ("gtv", "roi:gtv"),
    ]
    assert [p.message for p in problems] == ["no DICOM-SEG or RTSTRUCT belongs to case 'second'"]


def test_an_object_that_names_none_of_several(tmp_path):
    files = series(tmp_path / "first")
    series(tmp_path / "second")
    (tmp_path / "rt").mkdir()
    dicom.write_structures(tmp_path / "rt" / "a.dcm", files, {"liver": [(0, SQUARE)]})
    _, cases, problems = dicoms.scan(tmp_path)
    assert cases == () and "cannot determine the series that this RTSTRUCT belongs to" in [
        p.message for p in problems
    ]


def test_several_series_in_one_folder(tmp_path):
    series(tmp_path / "a")
    for number, file in enumerate(series(tmp_path / "b")):
        (tmp_path / "a" / f"other{number}").write_bytes(open(file, "rb").read())
    _, [case], [problem] = dicoms.scan(tmp_path)
    assert problem.message == "several image series in one folder"
    assert case.images == (str(tmp_path / "b"),)
