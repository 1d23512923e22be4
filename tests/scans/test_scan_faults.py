"""What files that are called scans do to the reader: other units, odd sizes, left-over bytes,
bombs, pipes, headers of random bytes.

Whatever the file, the outcome is a volume or one sentence, in bounded memory, at once.
"""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medjax import cli
from medjax.corpora.inputs import find_inputs
from medjax.corpora.verify import verify
from medjax.errors import DataError, MedjaxError, UsageError
from medjax.infer.cases import predict_cases
from medjax.infer.model import Model
from medjax.infer.segmenter import Segmenter
from medjax.labels import Corpus, merge
from medjax.prepare.plan import Intensity, Plan
from medjax.prompts.request import Request
from medjax.scans import content, formats, header, nifti
from tests.support.raw import write_corpus
from tests.support.run import make_run

SHAPE = (12, 11, 10)  # (x, y, z)
SIZES = (0.8, 0.9, 2.5)
CORPUS = Corpus("Liver", ((0, ()), (5, ("liver",))), channels=("MR",))
UNITS = {"mm": 1.0, "meter": 1e-3, "micron": 1e3}


def blob(shape=SHAPE):
    """(x, y, z) image: noise with a bright box."""
    array = np.random.default_rng(3).normal(100, 10, shape)
    array[3:9, 3:8, 2:8] += 200
    return array


def save(path, array=None, sizes=SIZES, unit="mm", **fields):
    """A NIfTI-1 file whose affine is in `unit`; further header fields are set as they are."""
    array = blob().astype(np.int16) if array is None else array
    affine = np.diag([*np.float64(sizes) * UNITS[unit], 1.0])
    affine[:3, 3] = np.array([-20.0, 5.0, 7.5]) * UNITS[unit]
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units(unit, "sec")
    raw = image.to_bytes()
    header = nib.Nifti1Header(raw[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    return put(path, header.binaryblock + raw[348:])


def put(path, raw):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw, 1) if path.name.endswith(".gz") else raw)
    return path


def plain(path):
    raw = path.read_bytes()
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


def quiet(path, **options):
    """Reads; a warning is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return formats.read(path, **options)


@pytest.fixture(scope="module")
def predictor():
    plan = Plan({"Liver": (2.0, 1.0, 1.0)}, {"MR": Intensity("zscore")})
    model = Model(
        lambda p, image, context: {"logits": image - p},
        jnp.array([1.0], jnp.float32),
        plan,
        merge([CORPUS]),
        (6, 8, 8),
    )
    return Segmenter(model)


def predicted(predictor, paths, out, **options):
    """Case -> (mask, volume in ml), and the failures."""
    result = predict_cases(
        predictor,
        find_inputs([str(p) for p in paths], channels=1),
        out,
        Request("Liver"),
        **options,
    )
    masks = {}
    for name in result.ok:
        sidecar = json.loads((out / f"{name}.json").read_text())
        masks[name] = (
            np.asarray(nib.load(out / f"{name}.nii.gz").dataobj),
            sidecar["classes"]["liver"]["volume_ml"],
        )
    return masks, result.failed


# -- units and voxel sizes -------------------------------------------------------------------------


def test_one_scan_in_three_units_is_one_scan(predictor, tmp_path):
    paths = {unit: save(tmp_path / "in" / f"{unit}.nii.gz", unit=unit) for unit in UNITS}
    with pytest.warns(
        nifti.DataWarning, match="the header is in (metres|microns); converted to mm"
    ):
        masks, failed = predicted(predictor, paths.values(), tmp_path / "out")
    assert failed == [] and masks["mm"][0].sum() > 100
    expected_ml = (masks["mm"][0] > 0).sum() * np.prod(SIZES) / 1000
    for unit, (mask, volume_ml) in masks.items():
        np.testing.assert_array_equal(mask, masks["mm"][0], err_msg=unit)
        assert volume_ml == pytest.approx(expected_ml, rel=1e-6)
        before, after = (
            nib.load(paths[unit]).header,
            nib.load(tmp_path / "out" / f"{unit}.nii.gz").header,
        )
        for field in (
            "dim pixdim qform_code sform_code quatern_b qoffset_x srow_x srow_y srow_z xyzt_units"
        ).split():
            np.testing.assert_array_equal(before[field], after[field], err_msg=field)


@pytest.mark.parametrize("unit", ["meter", "micron"])
def test_image_and_label_may_differ_in_their_unit(tmp_path, unit):
    folder = write_corpus(tmp_path / "Task01_Blobs", n=1, shape=(12, 12, 12))
    (label,) = (folder / "labelsTr").glob("*.nii.gz")
    image = nib.load(label)
    array, affine = np.asarray(image.dataobj), image.affine.copy()
    affine[:3] *= UNITS[unit]
    other = nib.Nifti1Image(array, affine)
    other.set_qform(affine, 1)
    other.set_sform(affine, 1)
    other.header.set_xyzt_units(unit)
    nib.save(other, label)
    report = verify(folder)
    assert report.ok, report.text()
    assert any(
        "converted to mm" in p["what"] and p["file"].endswith(label.name) for p in report.problems
    )


def test_no_unit_means_mm_and_an_unknown_one_is_reported(tmp_path):
    assert quiet(save(tmp_path / "a.nii", xyzt_units=0)).spacing_mm == pytest.approx(SIZES[::-1])
    with pytest.warns(nifti.DataWarning, match=r"unknown unit of length \(code 5\); mm assumed"):
        formats.read(save(tmp_path / "b.nii", xyzt_units=5))


@pytest.mark.parametrize(
    "sizes,units,found",
    [
        ((1000, 1000, 1000), 2, "1000 x 1000 x 1000 mm"),
        ((0.001, 0.001, 0.001), 2, "0.001 x 0.001 x 0.001 mm"),
        (
            (0.002, 0.002, 0.002),
            0,
            "0.002 x 0.002 x 0.002 mm",
        ),  # an affine in metres of a scan of 2 mm
        ((0.8, 0.8, 2.5), 1, "800 x 800 x 2500 mm (x, y, z), given in metres"),
        ((1, 1, 1), 3, "0.001 x 0.001 x 0.001 mm (x, y, z), given in microns"),
        ((1, 1, 101), 2, "1 x 1 x 101 mm"),
        ((1, 0.009, 1), 2, "1 x 0.009 x 1 mm"),
    ],
)
def test_voxel_sizes_that_no_scan_has(predictor, tmp_path, sizes, units, found):
    path = save(tmp_path / "in" / "a.nii.gz", sizes=sizes, xyzt_units=units)
    for reader in (formats.read, formats.read_geometry):
        with pytest.raises(
            DataError, match=r"implausible spacing.*to 100 mm.*correct the voxel sizes"
        ) as error:
            reader(path)
        assert found in str(error.value) and str(path) in str(error.value)
    _, failed = predicted(predictor, [path, save(tmp_path / "in" / "b.nii.gz")], tmp_path / "out")
    assert [f["case"] for f in failed] == ["a"] and failed[0]["message"] == "implausible spacing"


@pytest.mark.parametrize(
    "sizes,unit",
    [((100, 1, 1), "mm"), ((0.01, 0.01, 0.01), "mm"), ((0.002, 0.005, 0.02), "micron")],
)
def test_voxel_sizes_at_the_limits(tmp_path, sizes, unit):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert formats.read(
            save(tmp_path / "a.nii", sizes=sizes, unit=unit)
        ).spacing_mm == pytest.approx(sizes[::-1])


def test_no_scan_is_longer_than_ten_metres(tmp_path):
    with pytest.raises(
        DataError, match=r"implausible spacing.*for 300 x 2 x 2 voxels; expected at most 10 m"
    ):
        formats.read(save(tmp_path / "a.nii", np.zeros((300, 2, 2), np.uint8), sizes=(50, 1, 1)))


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_other_formats_have_the_same_limits(tmp_path, ending):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(blob().astype(np.int16).T)
    image.SetSpacing((0.0008, 0.0009, 0.0025))
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
    with pytest.raises(DataError, match="implausible spacing"):
        formats.read(tmp_path / f"a{ending}")


@pytest.mark.parametrize(
    "affine",
    [
        np.eye(3),
        np.eye(4)[:3],
        np.zeros((4, 4)),
        np.full((4, 4), np.nan),
        np.diag([1, np.inf, 1, 1]),
        "text",
        [["1"] * 4] * 4,
        None,
        5,
        [[1, 2], [3]],
        1j * np.eye(4),
        np.array([*np.eye(4)[:3], [1, 2, 3, 4]]),
        np.diag([1, 1, 1, 2.0]),
        {"a": 1},
        np.diag([1e-5, 1, 1, 1]),
    ],
)
def test_affines_that_are_none(affine):
    with pytest.raises(DataError, match=r"affine|spacing"):
        header.check_affine(affine)


def test_an_affine_that_is_one():
    found = header.check_affine([[-1, 0, 0, 4], [0, 2, 0, 5], [0, 0, 3, 1e9], [0, 0, 0, 1]])
    assert found.dtype == np.float64 and found.shape == (4, 4) and found[2, 3] == 1e9


# -- left-over bytes -------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("extra", [b"\7" * 1000, b"\0" * 20 + b"x"])
def test_left_over_bytes_warn(tmp_path, ending, extra):
    raw = plain(save(tmp_path / "a.nii"))
    path = put(tmp_path / f"b{ending}", raw + extra)
    with pytest.warns(
        nifti.DataWarning,
        match=f"{len(extra)} bytes behind the last voxel.*left over.*expected {len(raw)} bytes",
    ):
        found = formats.read(path)
    np.testing.assert_array_equal(found.array, quiet(tmp_path / "a.nii").array)


def test_padding_with_zeros_passes(tmp_path):
    path = put(tmp_path / "a.nii.gz", plain(save(tmp_path / "b.nii")) + bytes(512))
    np.testing.assert_array_equal(quiet(path).array, quiet(tmp_path / "b.nii").array)
    split = tmp_path / "c.nii.gz"  # one image in two members, zeros behind the last
    raw = plain(tmp_path / "b.nii")
    split.write_bytes(gzip.compress(raw[:500]) + gzip.compress(raw[500:]) + bytes(100))
    np.testing.assert_array_equal(quiet(split).array, quiet(tmp_path / "b.nii").array)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_second_image_behind_the_first_is_reported(tmp_path, ending):
    raw = plain(save(tmp_path / "a.nii"))
    path = put(tmp_path / f"b{ending}", raw + raw)
    with pytest.warns(nifti.DataWarning, match="another NIfTI file, which is not read"):
        found = formats.read(path)
    np.testing.assert_array_equal(found.array, quiet(tmp_path / "a.nii").array)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_header_with_smaller_sizes_is_refused(predictor, tmp_path, ending):
    array = blob((41, 47, 42)).astype(np.int16)
    path = save(tmp_path / "in" / f"a{ending}", array, dim=[3, 35, 51, 35, 1, 1, 1, 1])
    extra, needed = 2 * (41 * 47 * 42 - 35 * 51 * 35), 352 + 2 * 35 * 51 * 35
    with pytest.raises(
        DataError,
        match=rf"more than its header says.*{extra} bytes behind.*expected {needed} bytes",
    ):
        formats.read(path)
    _, failed = predicted(predictor, [path], tmp_path / "out")
    assert "more than its header says" in failed[0]["message"]
    report = verify(tmp_path / "in")
    assert not report.ok and any("more than its header says" in p["what"] for p in report.problems)


def test_verify_reports_left_over_bytes(tmp_path):
    put(tmp_path / "in" / "a.nii.gz", plain(save(tmp_path / "b.nii")) + b"\7" * 1000)
    report = verify(tmp_path / "in")
    assert any(
        "1000 bytes behind the last voxel" in p["what"] and p["severity"] == "warning"
        for p in report.problems
    )


# -- one voxel that hides all others ---------------------------------------------------------------


@pytest.mark.parametrize(
    "value,dtype",
    [
        (3e38, np.float32),
        (-3e38, np.float32),
        (2**64 - 1, np.uint64),
        (1e12, np.float64),
        (2e9, np.int32),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_a_voxel_far_from_all_others_warns(predictor, tmp_path, value, dtype, count):
    array = blob().astype(dtype)
    array.reshape(-1)[200 : 200 + count] = value
    path = save(tmp_path / "in" / "a.nii.gz", array)
    with pytest.warns(nifti.DataWarning, match=f"{count} voxels lie far from all others"):
        predicted(predictor, [path], tmp_path / "out")
    problems = verify(tmp_path / "in").problems
    assert any("far from all others" in p["what"] and p["severity"] == "warning" for p in problems)


def test_a_bright_voxel_is_no_reason_to_warn(tmp_path):
    metal = blob().astype(np.float32)
    metal[5, 5, 5] = 30_000  # metal in a CT, contrast agent in a PET
    assert quiet(save(tmp_path / "a.nii", metal)).array.max() == 30_000
    sparse = np.zeros(SHAPE, np.float32)
    sparse[4:6, 4:6, 4:6] = 1e6  # a map that is zero nearly everywhere
    assert quiet(save(tmp_path / "b.nii", sparse)).array.sum() == 8e6
    four = np.stack([blob(), blob() * 1e9], -1).astype(np.float32)  # channels of different ranges
    assert quiet(save(tmp_path / "c.nii", four)).array.max() > 1e9


@pytest.mark.data
def test_real_scans_have_no_such_voxel(real_data):
    for task in ("Task04_Hippocampus", "Task02_Heart"):
        for path in sorted((real_data / task / "imagesTr").glob("[!.]*.nii.gz"))[:4]:
            assert quiet(path).array.std() > 0


# -- headers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0, 347, -5])
def test_offsets_that_are_none(tmp_path, value):
    path = save(tmp_path / "a.nii.gz", vox_offset=value)
    for reader in (formats.read, formats.read_geometry, nifti.label_names):
        with pytest.raises(
            DataError, match=r"broken header; found vox_offset.*expected 348 or more"
        ):
            reader(path)


@pytest.mark.parametrize(
    "code,words",
    [
        (1536, "float128 voxels.*save as float32"),
        (1, "1-bit voxels.*save as uint8"),
        (32, "complex voxels"),
        (1792, "complex voxels"),
        (2048, "complex voxels"),
        (128, "RGB voxels"),
        (2304, "RGBA voxels"),
        (777, "unknown voxels; found datatype 777"),
    ],
)
def test_types_of_voxels_have_names(tmp_path, code, words):
    path = save(tmp_path / "a.nii", datatype=code)
    for reader in (formats.read, formats.read_geometry):
        with pytest.raises(DataError, match=words):
            reader(path)


KINDS = {1: (nib.Nifti1Image, nib.Nifti1Header), 2: (nib.Nifti2Image, nib.Nifti2Header)}
SOUND = {
    version: image(blob((12, 11, 10)).astype(np.int16), np.diag([1, 1, 2, 1])).to_bytes()
    for version, (image, _) in KINDS.items()
}


@settings(
    max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(data=st.data())
@pytest.mark.slow
def test_headers_of_random_bytes_give_a_volume_or_a_sentence(tmp_path_factory, data):
    version = data.draw(st.sampled_from([1, 2]))
    raw = bytearray(SOUND[version])
    dtype = KINDS[version][1].template_dtype
    for name in data.draw(st.lists(st.sampled_from(dtype.names), min_size=1, max_size=3)):
        kind, offset = dtype.fields[name][:2]
        if data.draw(st.booleans()):
            raw[offset : offset + kind.itemsize] = data.draw(
                st.binary(min_size=kind.itemsize, max_size=kind.itemsize)
            )
            continue
        base, count = kind.base, int(np.prod(kind.shape, dtype=int))
        if base.kind == "S":
            continue
        odd = [0, 1, 2, 3, 4, -1, 7, 100, 1e9, 32767, 2**31 - 1, 2**62] + (
            [np.nan, np.inf, -np.inf, 1e38, 1e-38, 0.5] * (base.kind == "f")
        )
        values = np.frombuffer(bytes(raw[offset : offset + kind.itemsize]), base).copy()
        value = data.draw(st.sampled_from(odd))
        if base.kind != "f":
            value = int(min(max(value, np.iinfo(base).min), np.iinfo(base).max))
        with np.errstate(all="ignore"):
            values[data.draw(st.integers(0, count - 1))] = value
        raw[offset : offset + kind.itemsize] = values.tobytes()
    cut = data.draw(st.sampled_from([len(raw)] * 6 + [0, 3, 347, 352, 400]))
    ending = data.draw(st.sampled_from([".nii", ".nii.gz"]))
    path = put(tmp_path_factory.getbasetemp() / f"mutant{ending}", bytes(raw[:cut]))
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for read in (
                formats.read,
                formats.read_geometry,
                lambda p: formats.read(p, "label"),
                nifti.label_names,
            ):
                try:
                    found = read(path)
                    assert isinstance(found, nifti.Volume | dict)
                except MedjaxError as error:
                    assert str(path) in str(error)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_header_that_promises_more_than_the_file_can_hold(tmp_path):
    for ending in (".nii", ".nii.gz"):
        path = save(tmp_path / f"a{ending}", dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
        for reader in (formats.read, formats.read_geometry):
            with pytest.raises(DataError, match="truncated: shorter than its header says"):
                reader(path)


def test_a_header_that_promises_more_than_the_memory(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii.gz", np.zeros((512, 512, 300), np.uint8))
    monkeypatch.setattr(content, "free_memory", lambda: 50 << 20)
    with pytest.raises(
        DataError,
        match=r"larger than the free memory; found 0\.07 GiB of voxels.*expected at most 0\.05 GiB",
    ):
        formats.read(path)


def test_memory_that_runs_out_is_a_sentence(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii.gz")

    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(nifti.voxels, "scaled", fail)
    with pytest.raises(DataError, match="the memory does not suffice"):
        formats.read(path)


@pytest.mark.parametrize("fill", [b"\0", b"ab"])
def test_a_bomb_is_inflated_no_further_than_its_header_promises(tmp_path, fill):
    path = tmp_path / "bomb.nii.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(plain(save(tmp_path / "a.nii")))
        for _ in range(160):
            file.write(fill * (1 << 20))
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(
        DataError, match=r"more than its header says; found over [0-9]+ bytes behind.*Fix"
    ) as error:
        formats.read(path)
    assert (
        str(path) in str(error.value)
        and tracemalloc.get_traced_memory()[1] < 24 << 20
        and time.perf_counter() - started < 10
    )
    tracemalloc.stop()


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_bombs_and_promises_of_other_formats(tmp_path, ending):
    pytest.importorskip("SimpleITK")

    def header(size, compressed, stored=0):
        sizes = " ".join(map(str, size))
        if ending == ".mha":
            flag = f"CompressedData = {compressed}\nCompressedDataSize = {stored}\n"
            return (
                f"ObjectType = Image\nNDims = 3\nBinaryData = True\n{flag}ElementSpacing = 1 1 "
                f"1\nDimSize = {sizes}\n"
                "ElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
            ).encode()
        return (
            f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {sizes}\nspace: left-posterior-superior\n"
            "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n"
            f"encoding: {'gzip' if compressed else 'raw'}\n\n"
        ).encode()

    path = tmp_path / f"a{ending}"
    pack = zlib.compress if ending == ".mha" else gzip.compress
    packed = pack(bytes(range(64)))
    path.write_bytes(header((4, 4, 4), True, len(packed)) + packed)
    np.testing.assert_array_equal(formats.read(path).array.reshape(-1), np.arange(64))
    path.write_bytes(header((4, 4, 4), True) + pack(bytes(200 << 20)))
    with pytest.raises(DataError, match=r"more than its header says|cannot be read"):
        formats.read(path)
    for compressed in (True, False):
        path.write_bytes(header((30000, 30000, 3000), compressed) + pack(bytes(64)))
        with pytest.raises(DataError, match=r"shorter than its header says"):
            formats.read(path)


@pytest.mark.parametrize("size", [None, 0, 10, -5, 4000, 10**9])
@pytest.mark.parametrize("msb", ["False", "True"])
def test_voxels_that_itk_does_not_unpack_are_no_voxels(tmp_path, size, msb):
    """ITK hands out memory that it never filled where the header is wrong about the size of the
    compressed voxels.
    """
    pytest.importorskip("SimpleITK")
    values = (
        np.random.default_rng(0)
        .integers(0, 1 << 14, (16, 16, 16))
        .astype(">i2" if msb == "True" else "<i2")
    )
    packed = zlib.compress(values.tobytes())

    def write(size):
        sizes = "" if size is None else f"CompressedDataSize = {size}\n"
        text = (
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = "
            f"{msb}\nCompressedData = True\n{sizes}"
            "ElementSpacing = 1 1 1\nDimSize = 16 16 16\nElementType = MET_SHORT\nElementDataFile "
            "= LOCAL\n"
        )
        (tmp_path / "a.mha").write_bytes(text.encode() + packed)
        return tmp_path / "a.mha"

    np.testing.assert_array_equal(formats.read(write(len(packed))).array, values)
    with pytest.raises(
        DataError, match=r"damaged or truncated|not unpacked|unusable MetaImage header"
    ):
        formats.read(write(size))


WORDS = (
    b"-1",
    b"0",
    b"nan",
    b"inf",
    b"99999999",
    b"1e9",
    b"abc",
    b"",
    b"999999999999999999999",
    b"3",
    b"gzip",
    b"raw",
    b"ascii",
    b"bzip2",
    b"double",
    b"MET_FLOAT",
    b"LIST",
    b"%d.raw",
    b"True",
    b"2 2 2",
    b"(1,0,0) none (0,1,0)",
    b"x" * 5000,
    b"a\0b",
)


def fuzz_text_headers(folder, ending, compressed, count, seed=0):
    """Reads mutants of a sound file; prints how many were read and refused.

    What is no sentence is raised.
    """
    import SimpleITK as sitk

    rng, separator = np.random.default_rng(seed), b"=" if ending == ".mha" else b":"
    image = sitk.GetImageFromArray(np.arange(120, dtype=np.int16).reshape(4, 5, 6))
    path = Path(folder) / f"a{ending}"
    sitk.WriteImage(image, str(path), compressed)
    sound = path.read_bytes()
    end = (
        sound.index(b"\n\n") + 2
        if ending == ".nrrd"
        else sound.index(b"\n", sound.index(b"ElementDataFile")) + 1
    )
    outcomes = {"read": 0, "refused": 0}
    for _ in range(count):
        way, lines = rng.random(), sound[:end].split(b"\n")
        line = int(rng.integers(len(lines)))
        if way < 0.5:
            key, mark, value = lines[line].partition(separator)
            parts = value.split() or [b""]
            parts[int(rng.integers(len(parts)))] = WORDS[int(rng.integers(len(WORDS)))]
            lines[line] = key + mark + b" " + b" ".join(parts)
        elif way < 0.6:
            del lines[line]
        raw = bytearray(b"\n".join(lines) + sound[end:])
        for _ in range(int(rng.integers(1, 6)) if way > 0.6 else 0):
            raw[int(rng.integers(end if rng.random() < 0.6 else len(raw)))] = int(rng.integers(256))
        path.write_bytes(raw[: int(rng.integers(len(raw))) if way > 0.95 else None])
        for read in (formats.read_geometry, formats.read):
            try:
                read(path)
                outcomes["read"] += 1
            except MedjaxError:
                outcomes["refused"] += 1
    print(json.dumps(outcomes))


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.slow
def test_text_headers_of_random_words_crash_nothing(repository, tmp_path, ending, compressed):
    """In another process: ITK writes beyond its memory for a MetaImage header of 99999999
    dimensions.
    """
    pytest.importorskip("SimpleITK")
    call = (
        "from tests.scans.test_scan_faults import fuzz_text_headers as f; "
        f"f({str(tmp_path)!r}, {ending!r}, {compressed}, 250)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", call],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert sum(outcomes.values()) == 500 and outcomes["refused"] > 100 and outcomes["read"] > 50


@pytest.mark.parametrize(
    "field",
    [
        "NDims = 99999999",
        "NDims = 11",
        "DimSize = 4 4 4 4 4 4 4",
        "TransformMatrix = " + "1 " * 5000,
    ],
)
def test_a_metaimage_header_fits_the_memory_it_gets(tmp_path, field):
    pytest.importorskip("SimpleITK")
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "DimSize = 4 4 4",
        "ElementType = MET_UCHAR",
        "ElementDataFile = LOCAL",
    ]
    name = field.split()[0]
    kept = [line for line in lines if not line.startswith(name)]
    (tmp_path / "a.mha").write_bytes(
        "\n".join([kept[0], field, *kept[1:], ""]).encode() + bytes(64)
    )
    with pytest.raises(DataError, match=rf"unusable MetaImage header; found {name.lower()}"):
        formats.read(tmp_path / "a.mha")


@pytest.mark.parametrize(
    "tag",
    [
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "Rows",
        "RescaleSlope",
        "SliceThickness",
    ],
)
@pytest.mark.parametrize("value", ["abc", "nan", "1\\\\2\\\\3\\\\4\\\\5\\\\6\\\\7", "inf"])
def test_dicom_values_that_are_no_numbers(tag, value):
    from medjax.scans import dicom

    with pytest.raises(DataError, match=rf"unusable {tag}.*file\.dcm|file\.dcm: unusable {tag}"):
        dicom.numbers({tag: value}, tag, 1, "file.dcm")
    with pytest.raises(DataError, match=f"unusable {tag}"):
        dicom.numbers({tag: [1.0, 2.0]}, tag, 3, "file.dcm")
    assert dicom.numbers({tag: "2.5"}, tag, 1, "file.dcm") == (2.5,) and dicom.numbers(
        {}, tag, 1, "file.dcm", 1
    ) == (1.0,)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside.raw", "pipe.raw"])
def test_a_header_names_no_file_outside_its_folder(tmp_path, name):
    pytest.importorskip("SimpleITK")
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "outside.raw").write_bytes(bytes(64))
    os.mkfifo(folder / "pipe.raw")
    (folder / "a.nhdr").write_text(
        f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndata file: {name}\n"
    )
    (folder / "a.mhd").write_text(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 4 4 4\nElementType = "
        f"MET_UCHAR\nElementDataFile = {name}\n"
    )
    for file in ("a.nhdr", "a.mhd"):
        with pytest.raises(DataError, match=r"outside its folder|a pipe"):
            formats.read(folder / file)


# -- what is no file -------------------------------------------------------------------------------


def special(folder):
    """Path -> words of the sentence."""
    (folder / "folder.nii.gz").mkdir()
    os.mkfifo(folder / "fifo.nii.gz")
    (folder / "loop.nii.gz").symlink_to("loop.nii.gz")
    (folder / "one.nii.gz").symlink_to("two.nii.gz")
    (folder / "two.nii.gz").symlink_to("one.nii.gz")
    (folder / "zero.nii.gz").symlink_to("/dev/zero")
    (folder / "gone.nii.gz").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket.nii.gz"))
    return {
        "folder.nii.gz": "a folder, not a scan",
        "fifo.nii.gz": r"a pipe \(FIFO\), not a scan",
        "loop.nii.gz": "leads back to itself",
        "one.nii.gz": "leads back to itself",
        "zero.nii.gz": "a device, not a scan",
        "gone.nii.gz": "broken symbolic link",
        "socket.nii.gz": "a socket, not a scan",
        "missing.nii.gz": "file not found",
        "a\0b.nii.gz": "unusable path",
        "x" * 300 + ".nii.gz": "File name too long",
        "fifo.nii.gz/a.nii.gz": "file not found",
    }


def within(seconds, work):
    """Fails if the work blocks."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "it blocks"
    return found[0]


def test_what_is_no_file_is_a_sentence_and_never_blocks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def outcome(read, path):
        try:
            read(path)
        except MedjaxError as error:
            return str(error)
        return "read"

    for name, words in special(tmp_path).items():
        for read in (
            formats.read,
            formats.read_geometry,
            nifti.read,
            nifti.label_names,
            lambda p: formats.read(p, "label"),
        ):
            found = within(20, lambda: outcome(read, f"{tmp_path}/{name}"))  # noqa: B023
            assert re.search(words, found), (name, found)
    for ending in (".nrrd", ".mha", ".npy", ".npz", ".dcm", ""):
        os.mkfifo(tmp_path / f"pipe{ending}")
        pipe = tmp_path / f"pipe{ending}"
        assert re.search("a pipe", within(20, lambda: outcome(formats.read, pipe))), ending  # noqa: B023


def test_special_files_among_scans_fail_alone(predictor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    names = [
        n for n in special(folder) if "loop" not in n and "one" not in n and n in os.listdir(folder)
    ]
    save(folder / "sound.nii.gz")
    masks, failed = within(
        60,
        lambda: predicted(
            predictor,
            [folder / n for n in (*names, "sound.nii.gz") if (folder / n).is_file()],
            tmp_path / "out",
        ),
    )
    assert list(masks) == ["sound"] and failed == []
    report = within(60, lambda: verify(folder))
    bad = {Path(p["file"]).name for p in report.problems if p["severity"] == "error"}
    assert {
        "folder.nii.gz",
        "fifo.nii.gz",
        "loop.nii.gz",
        "zero.nii.gz",
        "gone.nii.gz",
        "socket.nii.gz",
    } <= bad


def test_a_folder_of_dicom_slices_may_have_any_name(tmp_path):
    folder = tmp_path / "series.nii.gz"
    folder.mkdir()
    assert formats.kind_of(folder) == "nifti"
    (folder / "1.dcm").write_bytes(bytes(128) + b"DICM" + bytes(10))
    assert formats.kind_of(folder) == "series"


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha", "a.nii"])
def test_messages_do_not_show_what_a_file_holds(tmp_path, name):
    secret = b"root:$6$SECRETHASH:19000:0:99999:7:::\nuser:$6$OTHERSECRET:1\n" * 20
    (tmp_path / "shadow").write_bytes(secret)
    (tmp_path / name).symlink_to("shadow")
    with pytest.raises(MedjaxError) as error:
        formats.read(tmp_path / name, "label")
    assert "SECRET" not in str(error.value) and "root" not in str(error.value).replace(
        str(tmp_path), ""
    )
    if ".nii" in name:
        assert "found text" in str(error.value)


# -- frames and non-finite voxels ------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(
        tmp_path_factory.mktemp("runs") / "run",
        corpora=[Corpus("Organs", ((1, ("organ",)),), channels=("MR",))],
    )


def predict(run, path, out, *options):
    return cli.main(
        ["predict", "-m", str(run), "-i", str(path), "-o", str(out), "--quiet", *map(str, options)]
    )


@pytest.mark.slow
def test_frame_predicts_one_frame_of_a_time_series(run, tmp_path, capsys):
    frames = np.stack([blob() * (1 + k) for k in range(3)], -1).astype(np.int16)
    frames[3:9, 3:8, 2:8, 1] = 0
    series = save(tmp_path / "series.nii.gz", frames)
    for k in range(3):
        save(tmp_path / f"single{k}.nii.gz", frames[..., k])
    assert predict(run, series, tmp_path / "all") == 3
    assert "--frame N" in capsys.readouterr().err
    for k in (0, 1, 2):
        assert (
            predict(run, series, tmp_path / f"out{k}", "--frame", k, "--statistics", "--preview")
            == 0
        )
        assert (
            predict(run, tmp_path / f"single{k}.nii.gz", tmp_path / f"out{k}", "--statistics") == 0
        )
        one, other = (
            nib.load(tmp_path / f"out{k}" / f"{name}.nii.gz") for name in ("series", f"single{k}")
        )
        assert one.shape == other.shape == SHAPE and np.array_equal(one.affine, other.affine)
        np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
        records = [
            json.loads((tmp_path / f"out{k}" / f"{name}.json").read_text())
            for name in ("series", f"single{k}")
        ]
        assert records[0]["classes"] == records[1]["classes"]
        assert records[0]["settings"]["frame"] == k and "frame" not in records[1]["settings"]
    assert predict(run, series, tmp_path / "out3", "--frame", 3) == 3
    assert "no such frame; found 3; expected 0 to 2" in capsys.readouterr().err
    assert predict(run, series, tmp_path / "out4", "--frame", -1) == 2
    assert predict(run, tmp_path / "single0.nii.gz", tmp_path / "out5", "--frame", 1) == 3
    assert "leave --frame out" in capsys.readouterr().err


def test_continue_tells_frames_apart(run, tmp_path):
    series = save(tmp_path / "series.nii.gz", np.stack([blob()] * 2, -1).astype(np.int16))
    for frame, status in ((0, "new"), (0, "kept"), (1, "new")):
        before = os.stat(tmp_path / "out" / "series.nii.gz").st_mtime_ns if status == "kept" else 0
        assert predict(run, series, tmp_path / "out", "--frame", frame, "--continue") == 0
        record = json.loads((tmp_path / "out" / "series.json").read_text())
        assert record["settings"]["frame"] == frame
        if status == "kept":
            assert os.stat(tmp_path / "out" / "series.nii.gz").st_mtime_ns == before


def test_a_frame_takes_the_memory_of_one(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.zeros((64, 64, 64, 20), np.int16))
    tracemalloc.start()
    assert formats.read(path, frame=7).array.shape == (64, 64, 64)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20  # all of them are 10 MiB, one half a MiB
    tracemalloc.stop()
    np.testing.assert_array_equal(
        nifti.read(
            save(tmp_path / "b.nii", np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)),
            frame=3,
        ).array,
        np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)[..., 3].T,
    )


@pytest.mark.parametrize(
    "value,becomes", [("0", 0.0), ("-1024", -1024.0), ("min", None), ("1.5", 1.5)]
)
def test_non_finite_voxels_can_be_replaced(run, tmp_path, capsys, value, becomes):
    array = blob().astype(np.float32)
    array[2, 3, 4], array[0, 0, 0], array[1, 1, 1] = np.nan, np.inf, -np.inf
    path = save(tmp_path / "a.nii.gz", array)
    assert predict(run, path, tmp_path / "out") == 3
    assert "--replace-nan VALUE" in capsys.readouterr().err
    array[[2, 0, 1], [3, 0, 1], [4, 0, 1]] = (
        array[np.isfinite(array)].min() if becomes is None else becomes
    )
    save(tmp_path / "b.nii.gz", array)
    with pytest.warns(nifti.DataWarning, match="non-finite voxels replaced by .*3 voxels"):
        assert predict(run, path, tmp_path / "out", f"--replace-nan={value}") == 0
    assert predict(run, tmp_path / "b.nii.gz", tmp_path / "out") == 0
    one, other = (np.asarray(nib.load(tmp_path / "out" / f"{n}.nii.gz").dataobj) for n in "ab")
    np.testing.assert_array_equal(one, other)
    recorded = json.loads((tmp_path / "out" / "a.json").read_text())["settings"]["replace_nan"]
    assert recorded == ("min" if becomes is None else becomes)
    read = formats.read_case([path], formats.Reading(replace_nan=value)).array[..., 0]
    np.testing.assert_array_equal(read.T, array)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e39", "zero", ""])
def test_replacements_that_are_none_exit_2(tmp_path, value):
    with pytest.raises(UsageError, match="--replace-nan"):
        formats.Reading(replace_nan=value)
    assert (
        predict(
            tmp_path / "no run", tmp_path / "a.nii.gz", tmp_path / "out", f"--replace-nan={value}"
        )
        == 2
    )


def test_labels_are_never_repaired(tmp_path):
    array = np.ones(SHAPE, np.float32)
    array[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="non-finite"):
        formats.read(save(tmp_path / "a.nii.gz", array), "label", replace_nan=0.0)
    array[...] = np.nan
    with pytest.raises(DataError, match="no finite voxel"):
        formats.read(save(tmp_path / "a.nii.gz", array), replace_nan="min")
    array[...] = 1e30
    with pytest.raises(DataError, match="too large"):
        formats.read(save(tmp_path / "a.nii.gz", array), "label")


# -- writing ---------------------------------------------------------------------------------------


def test_long_names_and_links_when_a_mask_is_written(tmp_path):
    volume = formats.read(save(tmp_path / "a.nii.gz"))
    path = tmp_path / ("x" * 248 + ".nii.gz")
    nifti.write(path, volume.array > 200, volume)
    assert nib.load(path).shape == SHAPE
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "link.nii.gz").symlink_to("precious")
    nifti.write(tmp_path / "link.nii.gz", volume.array > 200, volume)
    assert (tmp_path / "precious").read_text() == "mine" and not (
        tmp_path / "link.nii.gz"
    ).is_symlink()
    assert [n for n in os.listdir(tmp_path) if n.startswith(".")] == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    volume = formats.read(save(tmp_path / "a.nii.gz"))

    def full(name):
        return open("/dev/full", "wb", buffering=0)

    monkeypatch.setattr(nifti.files, "create", full)
    with pytest.raises(
        DataError, match=r"cannot write \(No space left on device\).*free some space"
    ) as error:
        nifti.write(tmp_path / "out.nii.gz", volume.array, volume)
    assert (
        str(tmp_path / "out.nii.gz") in str(error.value) and not (tmp_path / "out.nii.gz").exists()
    )


def test_label_tables_of_hostile_headers_take_no_time():
    from medjax.scans.label_table import parse

    for text in (
        '<Label Key="1"><![CDATA[' * 40_000,
        "<Label " * 100_000,
        '<Label Key="' + "9" * 100_000 + '"><![CDATA[a]]>',
    ):
        started = time.perf_counter()
        assert parse(text) == {}
        assert time.perf_counter() - started < 5
