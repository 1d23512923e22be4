"""NRRD and MetaImage files: ITK's geometry as ours, and the checks that ITK leaves out."""

import zlib

import numpy as np
import pytest

from medjax.errors import DataError
from medjax.scans import itk

pytest.importorskip("SimpleITK")
SIZE = (2, 3, 4)  # (z, y, x)


def metaimage(path, array, packed=None, **fields):
    """A MetaImage file of an int16 array; `packed` replaces its compressed bytes."""
    content = array.astype("<i2").tobytes() if packed is None else packed
    lines = {
        "NDims": array.ndim,
        "DimSize": " ".join(map(str, array.shape[::-1])),
        "ElementSpacing": " ".join(["1", "2", "3"][: array.ndim]),
        "CompressedData": packed is not None,
        **({} if packed is None else {"CompressedDataSize": len(packed)}),
        **fields,
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    }
    path.write_bytes("".join(f"{k} = {v}\n" for k, v in lines.items()).encode() + content)
    return str(path)


def voxels(shape=SIZE):
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def test_itks_geometry_becomes_a_ras_affine():
    turn = (0, -1, 0, 1, 0, 0, 0, 0, 1)  # x axis to posterior, y axis to right
    affine = itk.affine_of((1, 2, 3), (10, 20, 30), turn, "a")
    # columns are spacing times direction; LPS to RAS turns the first two rows round
    assert np.array_equal(affine, [[0, 2, 0, -10], [-1, 0, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])
    flat = itk.affine_of((1, 2), (5, 6), (1, 0, 0, 1), "a")
    assert np.array_equal(np.diag(flat), [-1, -2, 1, 1])
    with pytest.raises(DataError, match=r"a\.nrrd"):
        itk.affine_of((1, 2, 0), (0, 0, 0), tuple(np.eye(3).ravel()), "a.nrrd")


def test_a_volume_keeps_values_type_and_place(tmp_path):
    found = itk.read(metaimage(tmp_path / "a.mha", voxels(), Offset="7 8 9"))
    assert found.array.dtype == np.int16 and np.array_equal(found.array, voxels())
    assert found.spacing_mm == (3, 2, 1)
    assert np.array_equal(found.affine[:3, 3], (-7, -8, 9))
    bare = itk.read(metaimage(tmp_path / "a.mha", voxels()), pixels=False)
    assert bare.array is None and bare.shape == SIZE


def test_a_slice_is_a_volume_of_one(tmp_path):
    found = itk.read(metaimage(tmp_path / "a.mha", voxels((3, 4))))
    assert found.array.shape == (1, 3, 4) and found.array[0, 2, 1] == 9


@pytest.mark.parametrize("cut", [0, 1])
def test_fewer_bytes_than_the_header_promises(tmp_path, cut):
    path = metaimage(tmp_path / "a.mha", voxels())
    content = (tmp_path / "a.mha").read_bytes()
    (tmp_path / "a.mha").write_bytes(content[: len(content) - cut] if cut else b"")
    words = "found 47 bytes; expected 48 bytes" if cut else "zero length"
    with pytest.raises(DataError, match=words):
        itk.read(path)


def test_a_compressed_stream_is_read_to_its_checksum(tmp_path):
    content = voxels().tobytes()
    packed = zlib.compress(content)
    path = metaimage(tmp_path / "a.mha", voxels(), packed)
    assert itk.check_stream(path) == itk.check_stream(path, len(content)) == zlib.crc32(content)
    assert np.array_equal(itk.read(path).array, voxels())
    assert itk.check_stream(metaimage(tmp_path / "raw.mha", voxels())) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda packed: packed[:-4] + bytes(4), "corrupt compressed voxels"),
        (lambda packed: packed[:-4], "truncated compressed voxels; found no end of stream"),
        (lambda packed: zlib.compress(bytes(40)), "found 40 bytes; expected 48 bytes"),
    ],
)
def test_damaged_streams(tmp_path, change, words):
    path = metaimage(tmp_path / "a.mha", voxels(), change(zlib.compress(voxels().tobytes())))
    with pytest.raises(DataError, match=words):
        itk.check_stream(path, voxels().nbytes)


def test_a_stream_is_inflated_no_further_than_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(itk, "_REST", 100)
    path = metaimage(tmp_path / "a.mha", voxels(), zlib.compress(bytes(10_000)))
    with pytest.raises(DataError, match="holds more than its header says"):
        itk.check_stream(path, voxels().nbytes)
