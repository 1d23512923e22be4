"""Label slices saved as pictures beside a DICOM series: which picture belongs to which slice."""

import dataclasses

import numpy as np
import pytest
from matplotlib import image as pictures

from medjax.errors import DataError
from medjax.scans import formats, slices
from tests.support import dicom

pytest.importorskip("pydicom")
SHAPE = (3, 5, 6)


def label():
    return (np.arange(np.prod(SHAPE)) % 251).astype(np.uint8).reshape(SHAPE)


def save(path, grey):
    pictures.imsave(path, np.repeat(grey[..., None], 3, -1))


@pytest.fixture
def series(tmp_path):
    """A series of three slices; file k by name is slice k, or slice 2 - k if it runs backwards."""

    def make(backwards=False):
        files, _ = dicom.write_series(tmp_path / "ct", np.zeros(SHAPE, np.int16))
        order = [files[k] for k in ((2, 1, 0) if backwards else (0, 1, 2))]
        for number, file in zip((1, 9, 10), order, strict=True):  # numbers, not text
            (tmp_path / "ct" / file).rename(tmp_path / "ct" / f"IM_{number}")
        return formats.read(tmp_path / "ct")

    return make


@pytest.mark.parametrize("backwards", [False, True])
def test_picture_k_belongs_to_file_k(tmp_path, series, backwards):
    like = series(backwards)
    (tmp_path / "labels").mkdir()
    for k, number in enumerate((8, 9, 10)):
        grey = label()[2 - k if backwards else k]
        save(tmp_path / "labels" / f"p{number}.png", grey)
    (tmp_path / "labels" / ".hidden.png").write_text("no picture")
    found = slices.read(tmp_path / "labels", like)
    assert found.dtype == np.uint16 and np.array_equal(found, label())


def test_pictures_that_do_not_fit(tmp_path, series):
    like, folder = series(), tmp_path / "labels"
    folder.mkdir()
    save(folder / "0.png", label()[0])
    with pytest.raises(DataError, match="found 1 pictures; expected 3, as in"):
        slices.read(folder, like)
    save(folder / "1.png", label()[1])
    save(folder / "2.png", label()[2, :4])
    with pytest.raises(DataError, match=r"2.png: a picture that does not fit.*\(4, 6\)"):
        slices.read(folder, like)
    colour = np.zeros((5, 6, 3), np.uint8)
    colour[2, 2] = 255, 0, 0
    pictures.imsave(folder / "2.png", colour)
    with pytest.raises(DataError, match=r"expected .*grey"):
        slices.read(folder, like)
    with pytest.raises(DataError, match="folder of DICOM slices"):
        slices.read(folder, dataclasses.replace(like, path=str(folder / "0.png")))


def test_what_is_a_folder_of_pictures(tmp_path):
    assert not slices.is_pictures(tmp_path) and not slices.is_pictures(tmp_path / "none")
    (tmp_path / "a.PNG").write_bytes(b"")
    assert slices.is_pictures(tmp_path) and not slices.is_pictures(tmp_path / "a.PNG")
