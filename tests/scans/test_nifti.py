"""NIfTI in and out: nibabel's values, honest errors for broken files, an exact header back, never
half a file.
"""

import gzip
import hashlib
import os
import warnings

import nibabel as nib
import numpy as np
import pytest

from medjax.errors import DataError, UsageError
from medjax.scans import nifti
from medjax.scans.header import shear_of

SHAPE = (7, 6, 5)  # (x, y, z)
AFFINE = np.array([[0.8, 0, 0, -11], [0, 0.9, 0, 5.5], [0, 0, 2.5, 7], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def no_unexpected_warnings():
    """A DataWarning that a test does not ask for is a defect."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", nifti.DataWarning)
        yield


def values(shape=SHAPE, dtype=np.int16):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def save(path, array=None, affine=AFFINE, codes=(1, 1), **fields):
    """Writes a NIfTI-1 file and then sets raw header fields, without nibabel's repairs."""
    image = nib.Nifti1Image(values() if array is None else array, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, codes[0])
    if abs(np.linalg.det(affine[:3, :3])) > 0 and shear_of(affine) < 1e-4:
        image.set_qform(affine, codes[1])
    raw = image.to_bytes()
    header = nib.Nifti1Header(raw[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    raw = header.binaryblock + raw[348:]
    path.write_bytes(gzip.compress(raw, 1) if path.name.endswith(".gz") else raw)
    return path


@pytest.mark.parametrize("frame", [None, 0, 1])
@pytest.mark.parametrize("suffix, more", [(".nii", b""), (".nii", bytes(2000)), (".nii.gz", b"")])
def test_a_file_is_hashed_while_it_is_read(tmp_path, suffix, more, frame):
    path = save(tmp_path / f"a{suffix}", values((*SHAPE, 3)))
    raw = path.read_bytes()
    if suffix == ".nii.gz":  # two members and padding
        raw = gzip.decompress(raw)
        raw = gzip.compress(raw[:500]) + gzip.compress(raw[500:]) + bytes(700)
    path.write_bytes(raw + more)
    plain, hashed = nifti.read(path, frame=frame), nifti.read(path, frame=frame, hashed=True)
    assert np.array_equal(plain.array, hashed.array) and plain.hashes == {}
    assert hashed.hashes == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.parametrize(
    "dtype", ["i1", "u1", "<i2", ">i2", "<u2", ">u2", "<i4", ">f4", "<f8", ">f8"]
)
@pytest.mark.parametrize("slope,inter", [(1, 0), (0, 0), (2.5, -1024), (1, -1024)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_values_are_nibabels(tmp_path, dtype, slope, inter, suffix):
    header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(dtype)
    header.set_data_shape(SHAPE)
    header.set_sform(AFFINE, 1)
    header["pixdim"][1:4] = 0.8, 0.9, 2.5
    header["scl_slope"], header["scl_inter"], header["vox_offset"], header["magic"] = (
        slope,
        inter,
        352,
        b"n+1",
    )
    path, data = tmp_path / f"a{suffix}", values(dtype=np.dtype(dtype)).tobytes("F")
    raw = header.binaryblock + b"\0\0\0\0" + data
    path.write_bytes(gzip.compress(raw, 1) if suffix == ".nii.gz" else raw)
    expected = np.asarray(nib.load(path).dataobj)
    volume = nifti.read(path)
    assert volume.array.shape == SHAPE[::-1] and volume.array.dtype.isnative
    np.testing.assert_allclose(volume.array.transpose(2, 1, 0), expected, rtol=1e-6)
    scaled = slope not in (0, 1) or inter != 0
    assert volume.array.dtype.kind == ("f" if scaled or dtype[-2] == "f" else np.dtype(dtype).kind)
    if volume.array.dtype.kind == "f":
        assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)
    assert volume.spacing_mm == pytest.approx((2.5, 0.9, 0.8), rel=1e-6)


@pytest.mark.parametrize("cut", ["half", "last 8 bytes", "one byte"])
def test_truncated_gzip(tmp_path, cut):
    path = save(tmp_path / "a.nii.gz", values((20, 20, 20)))
    data = path.read_bytes()
    path.write_bytes(data[: {"half": len(data) // 2, "last 8 bytes": -8, "one byte": -1}[cut]])
    with pytest.raises(DataError, match="truncated gzip") as error:
        nifti.read(path)
    assert str(path) in str(error.value) and error.value.fix


def test_crc_mismatch_and_damaged_stream(tmp_path):
    path = save(tmp_path / "a.nii.gz", values((20, 20, 20)))
    data = bytearray(path.read_bytes())
    data[-7] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match="CRC"):
        nifti.read(path)
    nifti.read_geometry(path)  # a header is not the whole stream
    data[-7] ^= 0xFF
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"CRC|corrupt gzip|truncated gzip"):
        nifti.read(path)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html><html>404</html>" * 30,
        b"<html></html>",
        bytes(1000),
        gzip.compress(b"", mtime=0),
        gzip.compress(b"x" * 999, mtime=0),
    ],
    ids=["empty", "page", "short page", "zeros", "gzip of nothing", "gzip of text"],
)
def test_not_nifti(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    for reader in (nifti.read, nifti.read_geometry):
        with pytest.raises(DataError, match="not NIfTI"):
            reader(path)


def test_shorter_than_the_header_says(tmp_path):
    path = save(tmp_path / "a.nii")
    data = path.read_bytes()
    for end in (-1, 400, 352, 300, 10):
        path.write_bytes(data[:end])
        with pytest.raises(DataError, match="truncated"):
            nifti.read(path)


def test_missing_broken_link_folder_pair(tmp_path):
    with pytest.raises(DataError, match="not found"):
        nifti.read(tmp_path / "none.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    with pytest.raises(DataError, match=r"broken symbolic link.*gone\.nii\.gz"):
        nifti.read(tmp_path / "link.nii.gz")
    with pytest.raises(DataError, match="folder"):
        nifti.read(tmp_path)
    nib.save(nib.Nifti1Pair(values(), AFFINE), tmp_path / "pair.img")
    with pytest.raises(DataError, match="pair"):
        nifti.read(tmp_path / "pair.hdr")


def test_unreadable_permissions(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii.gz")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(
        "builtins.open", refuse
    )  # root, as in containers, could read a file of mode 0
    with pytest.raises(DataError, match=r"Permission denied.*check the permissions"):
        nifti.read(path)


def test_odd_names_and_content_by_magic(tmp_path):
    folder = tmp_path / "Größe $(touch x); 'q'"
    folder.mkdir()
    expected = values().transpose(2, 1, 0)
    path = save(folder / "ein Bild 肝臓.nii.gz")
    volume = nifti.read(path)
    np.testing.assert_array_equal(volume.array, expected)
    nifti.write(folder / "Maske; 肝.nii.gz", volume.array > 50, volume)
    assert sorted(os.listdir(folder)) == ["Maske; 肝.nii.gz", "ein Bild 肝臓.nii.gz"]
    (tmp_path / "packed.nii").write_bytes(path.read_bytes())
    (tmp_path / "plain.nii.gz").write_bytes(gzip.decompress(path.read_bytes()))
    for name in ("packed.nii", "plain.nii.gz"):
        np.testing.assert_array_equal(nifti.read(tmp_path / name).array, expected)


@pytest.mark.parametrize(
    "dtype,word",
    [(np.complex64, "complex"), (np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), "RGB")],
)
def test_rgb_and_complex(tmp_path, dtype, word):
    with pytest.raises(DataError, match=word):
        nifti.read(save(tmp_path / "a.nii.gz", np.zeros(SHAPE, dtype)))


def test_nonfinite_voxels_are_counted_and_placed(tmp_path):
    array = values(dtype=np.float32)
    array[4, 5, 2] = np.nan
    array[3, 0, 4] = np.inf
    path = save(tmp_path / "a.nii.gz", array)
    with pytest.raises(DataError, match=r"non-finite.*2 voxels, first nan at \(2, 5, 4\)"):
        nifti.read(path)
    with pytest.warns(nifti.DataWarning, match="2 voxels"):
        kept = nifti.read(path, allow_nonfinite=True)
    assert np.isnan(kept.array[2, 5, 4]) and np.isinf(kept.array[4, 0, 3])


def test_sform_before_qform_before_pixdim(tmp_path):
    moved = AFFINE.copy()
    moved[0, 3] += 0.3 * 0.8
    image = nib.Nifti1Image(values(), AFFINE)
    image.set_sform(AFFINE, 2)
    image.set_qform(moved, 1)
    nib.save(image, tmp_path / "both.nii.gz")
    with pytest.warns(
        nifti.DataWarning, match=r"sform \(code 2\) and qform \(code 1\).*0\.3 voxels.*sform used"
    ):
        volume = nifti.read(tmp_path / "both.nii.gz")
    np.testing.assert_allclose(volume.affine, AFFINE, rtol=1e-6)
    near = AFFINE.copy()
    near[0, 3] += 0.05  # 0.06 voxel: not worth a word
    image.set_qform(near, 1)
    nib.save(image, tmp_path / "close.nii.gz")
    nifti.read(tmp_path / "close.nii.gz")
    image.set_sform(None, 0)
    image.set_qform(moved, 1)
    nib.save(image, tmp_path / "qform.nii.gz")
    np.testing.assert_allclose(nifti.read(tmp_path / "qform.nii.gz").affine, moved, rtol=1e-6)


def test_both_codes_zero_use_pixdim(tmp_path):
    path = save(tmp_path / "a.nii.gz", codes=(0, 0), sform_code=0, qform_code=0)
    with pytest.warns(nifti.DataWarning, match="both codes 0.*pixdim used"):
        volume = nifti.read(path)
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)
    assert volume.spacing_mm == pytest.approx((2.5, 0.9, 0.8))


@pytest.mark.parametrize("value", [0.0, -0.8, np.nan, np.inf])
def test_unusable_pixdim(tmp_path, value):
    path = save(tmp_path / "a.nii.gz", pixdim=[1, value, 0.9, 2.5, 1, 1, 1, 1])
    for reader in (nifti.read, nifti.read_geometry):
        with pytest.raises(DataError, match="pixdim"):
            reader(path)


@pytest.mark.parametrize(
    "row", [[np.nan, 0, 0, 0], [0, 0, 0, 5], [0, 0.9, 0, 0], [0.8, 0, 0, np.inf]]
)
def test_unusable_affine(tmp_path, row):
    with pytest.raises(DataError, match="affine"):
        nifti.read(save(tmp_path / "a.nii.gz", qform_code=0, srow_x=row))


def test_shear(tmp_path):
    angle = np.radians(20)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )

    def sheared(amount, name):
        affine = np.eye(4)
        affine[:3, :3] = (
            turn @ (np.eye(3) + amount * np.eye(3)[:, [0]] * np.eye(3)[1]) @ np.diag([0.7, 1, 4])
        )
        assert shear_of(affine) == pytest.approx(amount, abs=1e-7)
        return save(tmp_path / name, affine=affine, qform_code=0)

    nifti.read(sheared(0, "none.nii.gz"))
    nifti.read(sheared(1e-4, "tiny.nii.gz"))
    with pytest.warns(nifti.DataWarning, match=r"0\.573 degrees"):
        nifti.read(sheared(1e-2, "small.nii.gz"))
    with pytest.raises(DataError, match=r"sheared.*11\.3 degrees"):
        nifti.read(sheared(0.2, "large.nii.gz"))


def test_two_dimensions_one_slice_and_frames(tmp_path):
    flat = nifti.read(save(tmp_path / "flat.nii.gz", values((7, 6))))
    assert flat.array.shape == (1, 6, 7) and flat.shape == (1, 6, 7)
    slice_ = nifti.read(save(tmp_path / "slice.nii.gz", values((7, 6, 1))))
    assert slice_.array.shape == (1, 6, 7)
    single = nifti.read(save(tmp_path / "single.nii.gz", values((7, 6, 5, 1))))
    assert single.array.shape == (5, 6, 7)
    for volume, shape in ((flat, (7, 6)), (slice_, (7, 6, 1)), (single, (7, 6, 5, 1))):
        nifti.write(tmp_path / "mask.nii.gz", volume.array > 50, volume)
        written = nib.load(tmp_path / "mask.nii.gz")
        assert written.shape == shape
        np.testing.assert_array_equal(
            np.asarray(written.dataobj), np.asarray(nib.load(volume.path).dataobj) > 50
        )
        np.testing.assert_array_equal(written.affine, volume.affine)


def test_four_dimensions_are_channels(tmp_path):
    array = values((7, 6, 5, 3))
    path = save(tmp_path / "a.nii.gz", array)
    volume = nifti.read(path)
    assert volume.array.shape == (5, 6, 7, 3)
    np.testing.assert_array_equal(volume.array, array.transpose(2, 1, 0, 3))
    np.testing.assert_array_equal(nifti.read(path, frame=2).array, array[..., 2].T)
    with pytest.raises(DataError, match="no such frame"):
        nifti.read(path, frame=3)
    with pytest.raises(DataError, match="several channels"):
        nifti.read(path, want="label")
    with pytest.raises(DataError, match="more than four dimensions"):
        nifti.read(save(tmp_path / "b.nii.gz", values((7, 6, 5, 3, 2))))
    nifti.write(tmp_path / "mask.nii.gz", volume.array[..., 0] > 50, volume)
    assert nib.load(tmp_path / "mask.nii.gz").shape == SHAPE
    with pytest.raises(DataError, match=r"4D file among.*3 frames.*--frame"):
        nifti.read_case([path, path])


def test_labels_are_whole_and_not_negative(tmp_path):
    array = values(dtype=np.float64)
    label = nifti.read(save(tmp_path / "a.nii.gz", array), want="label")
    assert label.array.dtype == np.uint8
    np.testing.assert_array_equal(label.array, array.T)
    array[1, 2, 3] = 1.5
    with pytest.raises(DataError, match=r"whole numbers.*1 voxels, first 1\.5 at \(3, 2, 1\)"):
        nifti.read(save(tmp_path / "a.nii.gz", array), want="label")
    array[1, 2, 3] = -1
    for dtype in (np.float32, np.int16):
        with pytest.raises(DataError, match=r"negative.*first -1 at \(3, 2, 1\)"):
            nifti.read(save(tmp_path / "a.nii.gz", array.astype(dtype)), want="label")
    with pytest.raises(UsageError, match="did you mean label"):
        nifti.read(tmp_path / "a.nii.gz", want="lable")


def test_channels_of_a_case(tmp_path):
    one, two = save(tmp_path / "c_0000.nii.gz"), save(tmp_path / "c_0001.nii.gz", 2 * values())
    case = nifti.read_case([one, two])
    assert (
        case.array.dtype == np.float32
        and case.array.shape == (5, 6, 7, 2)
        and case.path == str(one)
    )
    np.testing.assert_array_equal(case.array[..., 1], 2 * values().T)
    assert nifti.read_case([one]).array.shape == (5, 6, 7, 1)
    moved = AFFINE.copy()
    moved[1, 3] += 0.9
    save(two, affine=moved)
    with pytest.raises(DataError, match=r"c_0000.*c_0001.*0\.9 mm \(1 voxels\)"):
        nifti.read_case([one, two])
    with pytest.raises(UsageError):
        nifti.read_case([])


def test_same_geometry(tmp_path):
    image = nifti.read(save(tmp_path / "image.nii.gz"))

    def label(shift_mm=0.0, shape=SHAPE):
        affine = AFFINE.copy()
        affine[2, 3] += shift_mm
        return nifti.read(save(tmp_path / "label.nii.gz", values(shape), affine))

    nifti.check_same_geometry(image, label(1e-5))
    with pytest.warns(nifti.DataWarning, match=r"0\.25 mm \(0\.1 voxels\)"):
        nifti.check_same_geometry(image, label(0.25))
    with pytest.raises(DataError, match=r"label.*2\.5 mm \(1 voxels\)"):
        nifti.check_same_geometry(image, label(2.5))
    with pytest.raises(DataError, match=r"different shapes.*\(4, 6, 7\)"):
        nifti.check_same_geometry(image, label(shape=(7, 6, 4)))


KEPT = (
    "sizeof_hdr dim pixdim qform_code sform_code quatern_b quatern_c quatern_d"
    " qoffset_x qoffset_y qoffset_z srow_x srow_y srow_z xyzt_units"
)


@pytest.mark.parametrize("endian", "<>")
@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nii"])
def test_written_header_is_the_inputs(tmp_path, endian, name):
    header = nib.Nifti1Header(endianness=endian)
    image = nib.Nifti1Image(values(), None, header)
    angle = np.radians(12)
    affine = np.eye(4)
    affine[:3, :3] = [
        [np.cos(angle), -np.sin(angle), 0],
        [np.sin(angle), np.cos(angle), 0],
        [0, 0, 1],
    ] @ np.diag([0.4, 0.4, 10])
    affine[:3, 3] = -33.3, 1 / 3, 7
    image.set_sform(affine, 4)
    image.set_qform(affine, 2)
    image.header["xyzt_units"], image.header["pixdim"][4], image.header["cal_max"] = 2, 1.25, 3000
    path = tmp_path / "in.nii"
    path.write_bytes(image.to_bytes())
    volume = nifti.read(path)
    assert volume.header.endianness == endian
    nifti.write(tmp_path / name, (volume.array > 50).astype(np.int64), volume)
    before, after = nib.load(path).header, nib.load(tmp_path / name).header
    assert after.endianness == endian
    for field in KEPT.split():
        np.testing.assert_array_equal(before[field], after[field], err_msg=field)
    assert after.get_data_dtype() == np.uint8
    raw = (gzip.decompress if name.endswith("gz") else bytes)((tmp_path / name).read_bytes())
    disk = nib.Nifti1Header(raw[:348], check=False)
    assert (float(disk["scl_slope"]), float(disk["scl_inter"]), float(disk["cal_max"])) == (1, 0, 0)
    nifti.write(tmp_path / "wide.nii.gz", volume.array.astype(np.int64) * 500, volume)
    np.testing.assert_array_equal(
        np.asarray(nib.load(tmp_path / "wide.nii.gz").dataobj).T,
        volume.array.astype(np.int64) * 500,
    )
    again = nifti.read(tmp_path / name, want="label")
    np.testing.assert_array_equal(again.affine, volume.affine)
    np.testing.assert_array_equal(again.array, volume.array > 50)


def test_types_written(tmp_path):
    like = nifti.read(save(tmp_path / "in.nii.gz"))
    ids = values(SHAPE[::-1], np.int32)
    path = tmp_path / "out.nii.gz"
    for array, dtype in (
        (ids > 5, "u1"),
        (ids, "u1"),
        (ids * 3, "u2"),
        (ids / 100, "f4"),
        (np.float16(ids), "f4"),
    ):
        nifti.write(path, array, like)
        written = nib.load(path)
        assert written.header.get_data_dtype() == np.dtype(dtype)
        np.testing.assert_allclose(np.asarray(written.dataobj).T, array, rtol=1e-6)
    nifti.write(path, np.stack([ids / 100, ids / 50], -1), like)
    assert nifti.read(path).array.shape == (5, 6, 7, 2)
    np.testing.assert_allclose(nifti.read(path).array[..., 1], ids / 50, rtol=1e-6)
    with pytest.raises(DataError, match="out of range"):
        nifti.write(path, ids - 1000, like)
    with pytest.raises(DataError, match="differ in shape"):
        nifti.write(path, ids[1:], like)
    with pytest.raises(UsageError, match=r"\.nii"):
        nifti.write(tmp_path / "out.nrrd", ids, like)


def test_label_names_travel_in_the_header(tmp_path):
    like = nifti.read(save(tmp_path / "in.nii.gz"))
    names = {1: "liver", 2: 'vena "cava" & <portal>', 200: "Läsion"}
    mask = np.zeros(like.shape, np.uint8)
    mask[1, 2, 3] = 200
    nifti.write(tmp_path / "out.nii.gz", mask, like, labels=names)
    assert nifti.label_names(tmp_path / "out.nii.gz") == names
    assert nifti.label_names(tmp_path / "in.nii.gz") == {}
    image = nib.load(tmp_path / "out.nii.gz")
    content = image.header.extensions[0].get_content()
    assert (
        image.header.extensions[0].get_code() == 0
        and b"CaretExtension" in content
        and b"[liver]" in content
    )
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, mask)
    np.testing.assert_array_equal(nifti.read(tmp_path / "out.nii.gz", want="label").array, mask)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("boom")]
)
def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, error):
    like = nifti.read(save(tmp_path / "in.nii.gz"))
    old = b"the previous result"
    (tmp_path / "out.nii.gz").write_bytes(old)

    def fail(self, data):
        raise error

    monkeypatch.setattr(gzip.GzipFile, "write", fail)
    with pytest.raises(DataError if isinstance(error, OSError) else type(error)):
        nifti.write(tmp_path / "out.nii.gz", like.array, like)
    assert sorted(os.listdir(tmp_path)) == ["in.nii.gz", "out.nii.gz"]
    assert (tmp_path / "out.nii.gz").read_bytes() == old


def test_the_final_name_appears_only_complete(tmp_path, monkeypatch):
    like = nifti.read(save(tmp_path / "in.nii.gz"))
    seen = {}
    replace = os.replace

    def spy(source, target):
        seen["before"] = sorted(os.listdir(tmp_path))
        np.testing.assert_array_equal(nifti.read(source).array, like.array)
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    nifti.write(tmp_path / "out.nii.gz", like.array, like)
    assert "out.nii.gz" not in seen["before"] and any(
        str(os.getpid()) in name for name in seen["before"]
    )
    assert sorted(os.listdir(tmp_path)) == ["in.nii.gz", "out.nii.gz"]


def test_header_alone_and_nifti2(tmp_path):
    path = save(tmp_path / "a.nii.gz")
    head = nifti.read_geometry(path)
    assert head.array is None and head.shape == (5, 6, 7)
    np.testing.assert_array_equal(head.affine, nifti.read(path).affine)
    nifti.write(tmp_path / "mask.nii.gz", np.ones(head.shape, bool), head)
    nib.save(nib.Nifti2Image(values(), AFFINE), tmp_path / "two.nii.gz")
    two = nifti.read(tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(two.array, values().T)
    nifti.write(tmp_path / "two_mask.nii.gz", two.array > 5, two)
    assert isinstance(nib.load(tmp_path / "two_mask.nii.gz"), nib.Nifti2Image)
    np.testing.assert_array_equal(
        np.asarray(nib.load(tmp_path / "two_mask.nii.gz").dataobj), values() > 5
    )


@pytest.mark.data
@pytest.mark.parametrize(
    "scan",
    [
        "Task04_Hippocampus/imagesTr",
        "Task02_Heart/imagesTr",
        "Task91_SarcomaCT/imagesTr",
        "example_ct",
    ],
)
def test_real_scans(real_data, tmp_path, scan):
    path = sorted((real_data / scan).glob("[!.]*.nii.gz"))[0]
    image, volume = nib.load(path), nifti.read(path)
    np.testing.assert_array_equal(volume.array.T, np.asarray(image.dataobj))
    np.testing.assert_array_equal(volume.affine, image.affine)
    nifti.write(tmp_path / "mask.nii.gz", volume.array > 0, volume)
    written = nib.load(tmp_path / "mask.nii.gz")
    for field in KEPT.split():
        np.testing.assert_array_equal(image.header[field], written.header[field], err_msg=field)
