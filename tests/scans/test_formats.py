"""Every file format arrives as the same volume: (z, y, x) voxels and a RAS+ affine; damage that
other readers swallow does not pass.
"""

import json
import sys

import nibabel as nib
import numpy as np
import pytest
from scipy import sparse

from medjax.corpora.inputs import Case
from medjax.corpora.label_sets import combine, corpus_of
from medjax.corpora.labels_of_case import read_label, read_label_volume
from medjax.errors import DataError, LabelError, UsageError
from medjax.labels import Corpus
from medjax.scans import formats, nifti
from medjax.scans.paths import Mask
from tests.support import dicom as make_dicom
from tests.support.raw import save

SHAPE = (5, 6, 7)
OBLIQUE = np.array(
    [[0.7, 0.02, 0, 5], [-0.02, 0.8, 0.1, -7], [0, -0.05, 2.5, 11], [0, 0, 0, 1.0]]
)  # shear under 0.2: a doubtful header


def volume(dtype=np.int16, shape=SHAPE):
    return np.random.default_rng(0).integers(-900, 900, shape).astype(dtype)


def itk_image(array, affine):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return sitk, image


def rotated(degrees=12.0):
    a = np.radians(degrees)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn * (0.7, 0.8, 2.5)
    affine[:3, 3] = 5, -7, 11
    return affine


@pytest.mark.parametrize("ending", ["nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_itk_formats_are_the_nifti_volume(tmp_path, ending, compressed):
    array, affine = volume(), rotated()
    sitk, image = itk_image(array, affine)
    path = str(tmp_path / f"scan.{ending}")
    sitk.WriteImage(image, path, compressed)
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), affine), tmp_path / "scan.nii.gz")
    found, same = formats.read(path), formats.read(tmp_path / "scan.nii.gz")
    assert np.array_equal(found.array, array) and found.array.dtype == np.int16
    assert np.allclose(found.affine, affine, atol=1e-6) and np.allclose(
        found.affine, same.affine, atol=1e-5
    )
    nifti.check_same_geometry(found, same)
    assert found.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    bare = formats.read_geometry(path)
    assert (
        bare.array is None and bare.shape == SHAPE and np.allclose(bare.affine, affine, atol=1e-6)
    )
    nifti.write(
        tmp_path / "mask.nii.gz", np.ones(SHAPE, np.uint8), found
    )  # a mask for it lies where it lies
    assert np.allclose(nib.load(tmp_path / "mask.nii.gz").affine, affine, atol=1e-5)


@pytest.mark.parametrize("ending", ["nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("keep", [0.5, -4])
def test_itk_formats_cut_short(tmp_path, ending, compressed, keep):
    sitk, image = itk_image(volume(shape=(20, 30, 24)), rotated())
    path = tmp_path / f"scan.{ending}"
    sitk.WriteImage(image, str(path), compressed)
    (data,) = [p for p in tmp_path.iterdir() if p.suffix not in (".nhdr", ".mhd")]
    content = data.read_bytes()
    start = 700 if data == path else 0  # the voxels, not the text
    data.write_bytes(
        content[: start + int((len(content) - start) * keep)] if keep > 0 else content[:keep]
    )
    with pytest.raises(DataError, match="truncated") as caught:
        formats.read(path)
    assert str(tmp_path / "scan") in str(caught.value.path)


def test_itk_wrong_checksum(tmp_path):
    sitk, image = itk_image(volume(shape=(20, 30, 24)), rotated())
    path = tmp_path / "scan.nrrd"
    sitk.WriteImage(image, str(path), True)
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged or truncated"):
        formats.read(path)
    content[-6] ^= 0xFF
    path.write_bytes(content[:-4])  # the end is missing: ITK reads on, we do not
    assert sitk.ReadImage(str(path)).GetSize() == (24, 30, 20)
    with pytest.raises(DataError, match="truncated compressed voxels"):
        formats.read(path)


def test_itk_values_channels_and_refusals(tmp_path):
    array = volume(np.float64)
    array[1, 2, 3] = np.nan
    sitk, image = itk_image(array, rotated())
    sitk.WriteImage(image, str(tmp_path / "nan.nrrd"))
    with pytest.raises(
        DataError, match="non-finite voxels; found 1 voxels, first nan at \\(1, 2, 3\\)"
    ):
        formats.read(tmp_path / "nan.nrrd")
    two = np.stack([volume(), volume() + 1], -1)
    sitk.WriteImage(itk_image(two, rotated())[1], str(tmp_path / "two.mha"))
    assert np.array_equal(formats.read(tmp_path / "two.mha").array, two)
    assert np.array_equal(formats.read(tmp_path / "two.mha", frame=1).array, two[..., 1])
    with pytest.raises(DataError, match="no such frame"):
        formats.read(tmp_path / "two.mha", frame=2)
    sitk.WriteImage(
        itk_image(np.zeros((*SHAPE, 3), np.uint8), rotated())[1], str(tmp_path / "rgb.nrrd")
    )
    with pytest.raises(DataError, match="RGB voxels"):
        formats.read(tmp_path / "rgb.nrrd")
    with pytest.raises(DataError, match="file not found"):
        formats.read(tmp_path / "none.mha")
    (tmp_path / "empty.mha").touch()
    with pytest.raises(DataError, match="zero length"):
        formats.read(tmp_path / "empty.mha")
    (tmp_path / "page.nrrd").write_text("<html>not found</html>")
    with pytest.raises(DataError, match="cannot be read"):
        formats.read(tmp_path / "page.nrrd")
    with pytest.raises(UsageError, match="did you mean label"):
        formats.read(tmp_path / "two.mha", "labels")


def test_a_missing_library_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    (tmp_path / "a.mha").write_text("x")
    with pytest.raises(
        UsageError,
        match=r'needs SimpleITK, which is not installed. Fix: pip install "medjax\[formats\]"',
    ):
        formats.read(tmp_path / "a.mha")


def test_arrays_and_their_sidecars(tmp_path):
    array = volume()
    np.save(tmp_path / "a.npy", array)
    with pytest.warns(nifti.DataWarning, match="1 mm voxels assumed"):
        assert formats.read(tmp_path / "a.npy").spacing_mm == (1, 1, 1)
    (tmp_path / "a.json").write_text(json.dumps({"spacing_mm": [5, 0.8, 0.7]}))
    found = formats.read(tmp_path / "a.npy")
    assert np.array_equal(found.array, array) and found.spacing_mm == pytest.approx((5, 0.8, 0.7))
    np.save(tmp_path / "b.npy", array.transpose(2, 1, 0)[None].astype(np.float64))
    (tmp_path / "b.json").write_text(json.dumps({"axes": "cxyz", "affine": rotated().tolist()}))
    found = formats.read(tmp_path / "b.npy")
    assert (
        np.array_equal(found.array, array)
        and found.array.dtype == np.float32
        and np.array_equal(found.affine, rotated())
    )
    (tmp_path / "b.json").write_text(json.dumps({"axes": "xyz"}))
    with pytest.raises(DataError, match="axes and array do not fit"):
        formats.read(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match="object arrays are refused"):
        formats.read(tmp_path / "c.npy")
    (tmp_path / "d.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:200])
    with pytest.raises(DataError, match="not a readable array"):
        formats.read(tmp_path / "d.npy")


def test_m3d_arrays(tmp_path):
    image, masks = volume(np.float32), np.random.default_rng(1).random((2, *SHAPE)) < 0.3
    np.save(tmp_path / "image.npy", image.transpose(2, 1, 0)[None])
    path = tmp_path / f"mask_(2, {', '.join(map(str, SHAPE[::-1]))}).npz"
    sparse.save_npz(
        path, sparse.csr_matrix(masks.transpose(0, 3, 2, 1).reshape(2, -1).astype(np.int32))
    )
    with pytest.warns(nifti.DataWarning, match="position unknown"):
        scan = formats.read(tmp_path / "image.npy")
    assert np.array_equal(scan.array, image)
    mask_of = formats.open_masks(path, scan)
    for k in range(2):
        assert np.array_equal(mask_of(Mask("x", str(path), f"frame:{k}")), masks[k])
    with pytest.raises(DataError, match="no such frame"):
        mask_of(Mask("x", str(path), "frame:2"))


@pytest.fixture(scope="module")
def dicom(tmp_path_factory):
    pytest.importorskip("highdicom")
    array = volume(shape=(9, 20, 18))
    folder = tmp_path_factory.mktemp("dicom")
    files, affine = make_dicom.write_series(folder / "ct", array)
    return folder, files, array, affine


def test_dicom_series(dicom, tmp_path):
    folder, _, array, affine = dicom
    found = formats.read(folder / "ct")
    assert (
        np.array_equal(found.array, array)
        and np.allclose(found.affine, affine)
        and found.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    )
    assert formats.read_geometry(folder / "ct").shape == array.shape
    make_dicom.write_series(tmp_path / "half", array, slope=0.5, reverse=True)
    assert np.allclose(formats.read(tmp_path / "half").array, (array + 1024.0) * 0.5 - 1024)
    make_dicom.write_series(tmp_path / "tilted", array, tilt=0.1)
    with pytest.warns(nifti.DataWarning, match="sheared voxel grid"):
        formats.read(tmp_path / "tilted")
    make_dicom.write_series(tmp_path / "steep", array, tilt=1.0)
    with pytest.raises(DataError, match="sheared voxel grid"):
        formats.read(tmp_path / "steep")


def test_dicom_series_with_faults(dicom, tmp_path):
    import pathlib
    import shutil

    _, _, array, _ = dicom
    files, _ = make_dicom.write_series(tmp_path / "gap", array)
    pathlib.Path(files[4]).unlink()
    with pytest.raises(DataError, match="uneven distances; found 5 mm after slice 4; expected"):
        formats.read(tmp_path / "gap")
    files, _ = make_dicom.write_series(tmp_path / "twice", array)
    shutil.copy(files[2], tmp_path / "twice" / "again")
    with pytest.raises(DataError, match="several slices at one position"):
        formats.read(tmp_path / "twice")
    make_dicom.write_series(tmp_path / "two", array)
    files, _ = make_dicom.write_series(tmp_path / "other", array)
    for f in files:
        shutil.copy(f, tmp_path / "two" / ("x" + pathlib.Path(f).name))
    with pytest.raises(DataError, match="must hold one image series"):
        formats.read(tmp_path / "two")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no DICOM images"):
        formats.read(tmp_path / "none")


def test_dicom_segmentation_and_structures(dicom):
    folder, files, array, _ = dicom
    liver, tumour = np.zeros(array.shape, bool), np.zeros(array.shape, bool)
    liver[2:6, 4:15, 3:12], tumour[3:7, 8:17, 6:9] = True, True
    make_dicom.write_segmentation(folder / "seg.dcm", files, {"liver": liver, "tumour": tumour})
    square = [(2.5, 3.5), (10.5, 3.5), (10.5, 9.5), (2.5, 9.5)]  # voxels 3..10 by 4..9
    hole = [(4.5, 5.5), (6.5, 5.5), (6.5, 7.5), (4.5, 7.5)]
    make_dicom.write_structures(
        folder / "rt.dcm",
        files,
        {"liver": [(2, square), (2, hole), (3, square)], "tumour": [(8, hole)]},
    )
    like = formats.read(folder / "ct")
    segments = formats.open_masks(folder / "seg.dcm", like)
    assert np.array_equal(segments(Mask("liver", "", "segment:liver")), liver)
    assert np.array_equal(segments(Mask("tumour", "", "")), tumour)
    with pytest.raises(DataError, match="Fix: did you mean liver"):
        segments(Mask("x", "", "segment:livr"))
    expected = np.zeros(array.shape, bool)
    expected[2:4, 4:10, 3:11] = True
    expected[2, 6:8, 5:7] = False
    assert np.array_equal(
        formats.open_masks(folder / "rt.dcm", like)(Mask("liver", "", "roi:liver")), expected
    )
    # read as a case: {liver}, {tumour}, {liver, tumour}
    masks = tuple(Mask(n, str(folder / "seg.dcm"), f"segment:{n}") for n in ("liver", "tumour"))
    corpus = corpus_of("S", ["liver", "tumour"], [["liver", "tumour"]])
    ids = read_label(Case("a", (str(folder / "ct"),), masks=masks), corpus)
    assert np.array_equal(ids, liver * 1 + tumour * 2)


def test_overlapping_masks_become_sets():
    rng = np.random.default_rng(0)
    masks = {f"c{k}": rng.random(SHAPE) < 0.4 for k in range(5)}
    ids, sets = combine(masks.items(), SHAPE)
    assert (
        sets[0] == frozenset() and len(set(sets)) == len(sets) and len(np.unique(ids)) == len(sets)
    )
    for name, mask in masks.items():
        assert np.array_equal(np.array([name in members for members in sets])[ids], mask)


def test_masks_through_the_label_space(tmp_path):
    """The multi-hot target of every voxel is the masks, for nested and crossing ones, with 200
    classes as well.
    """
    liver, tumour, vessel = (np.zeros(SHAPE, bool) for _ in range(3))
    liver[1:4, 1:5], tumour[2:3, 2:4, 2:6], vessel[0:3, 3:6, 1:3] = True, True, True
    case_masks = []
    for name, mask in {"liver": liver, "tumour": tumour, "vessel": vessel}.items():
        save(tmp_path / f"{name}.nii.gz", mask.astype(np.uint8) * 255)
        case_masks.append(Mask(name, str(tmp_path / f"{name}.nii.gz")))
    save(tmp_path / "ct.nii.gz", volume())
    case = Case("a", (str(tmp_path / "ct.nii.gz"),), masks=tuple(case_masks))
    _, sets = combine([(m.name, formats.read(m.path).array > 0) for m in case_masks], SHAPE)
    corpus = corpus_of("M", ["liver", "tumour", "vessel"], sets, modality="CT", channels=("CT",))
    assert corpus.labels[1:4] == ((1, ("liver",)), (2, ("tumour",)), (3, ("vessel",)))
    ids = read_label(case, corpus)
    for name, mask in {"liver": liver, "tumour": tumour, "vessel": vessel}.items():
        assert np.array_equal(np.isin(ids, corpus.ids_of(name)), mask)
    assert ids.dtype == np.uint8 and read_label_volume(case, corpus).spacing_mm == (1, 1, 1)
    narrow = corpus_of("M", ["liver", "tumour", "vessel"], [["liver", "tumour"]])
    with pytest.raises(
        LabelError, match="an overlap of liver, vessel that the corpus' table does not know; found"
    ):
        read_label(case, narrow)
    many = [(f"c{k}", np.arange(np.prod(SHAPE)).reshape(SHAPE) % 200 >= k) for k in range(200)]
    ids, sets = combine(many, SHAPE)
    assert (
        len(sets) == 201
        and len(sets[int(ids.max())]) == max(map(len, sets))
        and all(len(sets[i]) == v + 1 for v, i in enumerate(ids.ravel()[:200]))
    )


def test_masks_that_do_not_fit(tmp_path):
    save(tmp_path / "ct.nii.gz", volume())
    save(tmp_path / "map.nii.gz", np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.uint8) % 3)
    save(tmp_path / "off.nii.gz", np.ones(SHAPE, np.uint8), origin=(6, -7, 11))
    corpus = corpus_of("M", ["a"], [])

    def read(path, pick=""):
        return read_label(
            Case(
                "a", (str(tmp_path / "ct.nii.gz"),), masks=(Mask("a", str(tmp_path / path), pick),)
            ),
            corpus,
        )

    with pytest.raises(DataError, match="mask of 'a' holds several values; found \\[0, 1, 2\\]"):
        read("map.nii.gz")
    assert np.array_equal(
        read("map.nii.gz", "value:1,2"), formats.read(tmp_path / "map.nii.gz").array > 0
    )
    with pytest.raises(DataError, match="different geometry"):
        read("off.nii.gz")
    with pytest.raises(UsageError, match="a label map and masks"):
        read_label(Case("a", ("x",), "y", masks=(Mask("a", "z"),)), corpus)
    assert read_label(Case("a", ("x",)), Corpus("E", ())) is None
