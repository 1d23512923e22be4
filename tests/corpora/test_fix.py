"""Corrected copies: what is mended, what is left out, and that nothing is changed in place."""

import hashlib
import json

import nibabel as nib
import numpy as np
import pytest

from benchmarks import faults
from medjax.cli import main
from medjax.corpora.fix import fix
from medjax.corpora.labels_of_case import read_label
from medjax.corpora.sources import read_corpus
from medjax.corpora.verify import verify
from medjax.errors import UsageError
from medjax.scans import grid, nifti
from tests.support.raw import save, write_corpus

SHAPE = (8, 12, 10)


def tree(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture
def corpus(tmp_path):
    folder = write_corpus(tmp_path / "Task01_A", 3, SHAPE, vary=False, spacing_mm=(2, 1, 1))
    return folder, folder / "imagesTr" / "case_001.nii.gz", folder / "labelsTr" / "case_001.nii.gz"


def mended(folder, out, changes=1):
    """The copy with its only change; the source is as it was, untouched files are copied byte by
    byte.
    """
    before = tree(folder)
    result = fix(folder, out)
    assert tree(folder) == before
    assert result.ok, result.text()
    assert len(result.changes) == changes and {c["case"] for c in result.changes} <= {"case_001"}
    copied = tree(out)
    for case in ("case_000", "case_002"):
        assert copied[f"imagesTr/{case}_0000.nii.gz"] == before[f"imagesTr/{case}.nii.gz"]
        assert copied[f"labelsTr/{case}.nii.gz"] == before[f"labelsTr/{case}.nii.gz"]
    return result.changes[0]["what"] if changes else "", nifti.read(
        out / "labelsTr" / "case_001.nii.gz", want="label"
    )


def test_nothing_to_mend(corpus, tmp_path):
    _, label = mended(corpus[0], tmp_path / "out", 0)
    assert np.array_equal(label.array, nifti.read(corpus[2]).array)
    old, new = read_corpus(corpus[0])[0], read_corpus(tmp_path / "out")[0]
    assert new == old


def test_label_one_slice_short_is_resampled(corpus, tmp_path):
    before = nifti.read(corpus[2]).array
    faults.rewrite(
        corpus[2],
        array=lambda a: a[:, :, 1:],
        affine=lambda a: a @ nib.affines.from_matvec(np.eye(3), [0, 0, 1]),
    )
    what, label = mended(corpus[0], tmp_path / "out")
    assert "resampled onto the image's grid (7, 12, 10) -> (8, 12, 10)" in what
    assert np.array_equal(label.array[1:], before[1:]) and not label.array[0].any()


def test_label_in_other_axes_and_spacing_is_resampled(corpus, tmp_path):
    before = nifti.read(corpus[2]).array
    stored = nib.load(corpus[2])
    image = nib.Nifti1Image(np.asanyarray(stored.dataobj), stored.affine)
    nib.save(image.as_reoriented(nib.orientations.axcodes2ornt("PSR")), corpus[2])
    what, label = mended(corpus[0], tmp_path / "out")
    assert "resampled" in what and np.array_equal(label.array, before)
    finer = np.kron(np.asanyarray(image.dataobj), np.ones((2, 2, 2), np.uint8))
    affine = image.affine @ np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] -= 0.25 * np.linalg.norm(image.affine[:3, :3], axis=0)
    nib.save(nib.Nifti1Image(finer, affine), corpus[2])
    what, label = mended(corpus[0], tmp_path / "out2")
    assert "(16, 24, 20) -> (8, 12, 10)" in what and np.array_equal(label.array, before)


def test_a_shift_is_followed_only_if_the_foreground_survives(corpus, tmp_path):
    faults.rewrite(corpus[2], affine=faults.moved(40.0))
    assert "different geometry" in verify(corpus[0]).problems[0]["what"]
    result = fix(corpus[0], tmp_path / "out")
    assert not result.ok and result.report.ok and result.report.cases == 2
    (left,) = result.left_out
    assert left["case"] == "case_001" and "do not cover the same space" in left["why"]


def test_tiny_shear_is_removed_about_the_centre(corpus, tmp_path):
    for path in corpus[1:]:
        faults.rewrite(path, affine=faults.turned(shear=1e-2))
    assert "sheared" in verify(corpus[0]).text()
    what, label = mended(corpus[0], tmp_path / "out")
    assert "shear of 0.57 degrees removed, corners move by at most 0.0" in what
    image = nifti.read(tmp_path / "out" / "imagesTr" / "case_001_0000.nii.gz")
    assert np.array_equal(image.array, nifti.read(corpus[1]).array) and np.array_equal(
        image.affine, label.affine
    )
    columns = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    assert np.allclose(columns.T @ columns, np.eye(3), atol=1e-6)
    centre = (np.array(SHAPE[::-1]) - 1) / 2
    assert np.allclose(
        nib.affines.apply_affine(image.affine, centre),
        nib.affines.apply_affine(nifti.read(corpus[1]).affine, centre),
        atol=1e-4,
    )


def test_forms_and_codes(corpus, tmp_path):
    site = faults.Site("case_001", [corpus[1]], corpus[2])
    faults.forms(site)
    what, _ = mended(corpus[0], tmp_path / "out")
    header = nib.load(tmp_path / "out" / "imagesTr" / "case_001_0000.nii.gz").header
    assert "both written from the sform" in what and np.allclose(
        header.get_qform(), header.get_sform(), atol=1e-5
    )
    faults.no_codes(site)
    what, _ = mended(corpus[0], tmp_path / "out2")
    header = nib.load(tmp_path / "out2" / "imagesTr" / "case_001_0000.nii.gz").header
    assert (
        "neither sform nor qform was set" in what
        and int(header["sform_code"]) == int(header["qform_code"]) == 1
    )


def test_labels_stored_as_floats(corpus, tmp_path):
    before = nifti.read(corpus[2]).array
    faults.rewrite(corpus[2], array=lambda a: a * np.float32(0.99999), dtype=np.float32)
    assert "not whole numbers" in verify(corpus[0]).problems[0]["what"]
    what, label = mended(corpus[0], tmp_path / "out")
    assert (
        what == f"{np.count_nonzero(before)} voxels rounded to whole numbers (off by at most 2e-05)"
    )
    assert np.array_equal(label.array, before) and label.array.dtype == np.uint8
    faults.rewrite(corpus[2], array=lambda a: np.rint(a), dtype=np.float64)
    assert mended(corpus[0], tmp_path / "out2")[0] == "whole numbers stored as integers"
    faults.rewrite(corpus[2], array=faults.put(1.4, np.float32))
    (left,) = fix(corpus[0], tmp_path / "out3").left_out
    assert "not whole numbers" in left["why"] and "1.4" in left["why"]


def test_what_would_be_a_guess_is_left_out(corpus, tmp_path):
    faults.cut(0.5)(corpus[1])
    faults.rewrite(corpus[0] / "imagesTr" / "case_000.nii.gz", array=faults.put(np.nan, np.float32))
    faults.rewrite(corpus[0] / "labelsTr" / "case_002.nii.gz", array=faults.put(9))
    result = fix(corpus[0], tmp_path / "out")
    why = {left["case"]: left["why"] for left in result.left_out}
    assert (
        "truncated gzip" in why["case_001"]
        and "non-finite" in why["case_000"]
        and "undeclared" in why["case_002"]
    )
    assert (
        result.report is None
        and not result.ok
        and tree(tmp_path / "out").keys() == {"dataset.json"}
    )


def test_channels_and_names_of_files(tmp_path):
    folder = write_corpus(
        tmp_path / "Task01_A",
        2,
        SHAPE,
        channels=("T1", "T2"),
        medjax={"patients": {"regex": "^(case)"}, "annotated": ["organ"]},
    )
    faults.unpacked(
        faults.Site("case_001", [folder / "labelsTr" / "case_001.nii.gz"], folder), ".nii.gz"
    )
    result = fix(folder, tmp_path / "out")
    assert result.ok and {c["what"] for c in result.changes} == {
        "a 4D file split into one file per channel",
        "written as .nii.gz",
    }
    old, new = read_corpus(folder), read_corpus(tmp_path / "out")
    assert new[0] == old[0] and new[1][0].patient == "case" and len(new[1][0].images) == 2
    assert np.array_equal(
        nifti.read_case(new[1][1].images).array, nifti.read_case(old[1][1].images).array
    )


def test_masks_and_other_formats_become_one_layout(tmp_path):
    organ, tumour = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    organ[1:6, 2:9, 2:8], tumour[3:7, 4:7, 4:6] = True, True
    for name, array in {"organ": organ, "tumour": tumour}.items():
        save(tmp_path / "M" / "s1" / "segmentations" / f"{name}.nii.gz", array.astype(np.uint8))
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(
        sitk.GetImageFromArray(np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)),
        str(tmp_path / "M" / "s1" / "ct.mha"),
    )
    for path in (tmp_path / "M" / "s1" / "segmentations").iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), np.diag([-1.0, -1, 1, 1])), path)
    result = fix(tmp_path / "M", tmp_path / "out")
    assert result.ok and sorted(c["what"] for c in result.changes) == [
        "2 masks of this case became one label map of class sets",
        "written as .nii.gz",
    ]
    corpus, (case,) = read_corpus(tmp_path / "out")
    assert corpus.classes == ("organ", "tumour") and corpus.modality == "CT"
    ids = read_label(case, corpus)
    assert np.array_equal(np.isin(ids, corpus.ids_of("tumour")), tumour) and np.array_equal(
        np.isin(ids, corpus.ids_of("organ")), organ
    )


def test_never_in_place(corpus, tmp_path):
    for out in (corpus[0], corpus[0] / "fixed"):
        with pytest.raises(UsageError, match="outside of the data set"):
            fix(corpus[0], out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UsageError, match="not empty"):
        fix(corpus[0], tmp_path / "full")


def test_command(corpus, tmp_path, capsys):
    faults.rewrite(corpus[2], array=lambda a: a * np.float32(0.99999), dtype=np.float32)

    def run(*arguments):
        code = main(["verify", str(corpus[0]), "--quiet", *arguments])
        return code, capsys.readouterr().out

    code, out = run("--json")
    assert code == 4 and json.loads(out)[0]["ok"] is False
    code, out = run("--fix", str(tmp_path / "out"), "--layout", "msd")
    assert (
        code == 0
        and f"FIXED {corpus[2]}: " in out
        and "3 cases written to" in out
        and "verified, 0 errors" in out
    )
    code, out = run("--json", "--fix", str(tmp_path / "out2"))
    assert code == 0 and json.loads(out)[0]["fix"]["report"]["cases"] == 3


def test_onto_follows_world_space():
    """Random rotated grids: a voxel of the target holds what lies at its centre."""
    rng = np.random.default_rng(0)
    source = rng.integers(0, 5, (7, 8, 9)).astype(np.uint8)
    a = np.radians(20)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    one, other = np.eye(4), np.eye(4)
    one[:3, :3], one[:3, 3] = turn * (0.7, 0.9, 1.3), (3, -2, 1)
    other[:3, :3], other[:3, 3] = np.eye(3) * (1.1, 0.8, 1.0), (2, -1, 1)
    header = nib.Nifti1Header()
    header.set_data_shape((9, 8, 7))
    target = nib.Nifti1Header()
    target.set_data_shape((6, 7, 8))
    moved = grid.onto(
        nifti.Volume(source, one, header, "a"), nifti.Volume(None, other, target, "b")
    )
    for z, y, x in np.ndindex(8, 7, 6):
        at = np.linalg.inv(one) @ other @ (x, y, z, 1)
        i, j, k = np.floor(at[:3] + 0.5).astype(int)
        inside = 0 <= i < 9 and 0 <= j < 8 and 0 <= k < 7
        assert moved[z, y, x] == (source[k, j, i] if inside else 0)


@pytest.mark.data
def test_a_real_label_survives_a_detour(real_data, tmp_path):
    """A real label stored in other axes comes back voxel by voxel."""
    source = real_data / "Task04_Hippocampus"
    spec = json.loads((source / "dataset.json").read_text())
    spec["training"] = spec["training"][:2]
    for item in spec["training"]:
        for path in item.values():
            (tmp_path / "Task04_Hippocampus" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "Task04_Hippocampus" / path).write_bytes((source / path).read_bytes())
    (tmp_path / "Task04_Hippocampus" / "dataset.json").write_text(json.dumps(spec))
    path = tmp_path / "Task04_Hippocampus" / spec["training"][0]["label"]
    before = nifti.read(path).array
    image = nib.load(path)
    nib.save(image.as_reoriented(nib.orientations.axcodes2ornt("SLP")), path)
    result = fix(tmp_path / "Task04_Hippocampus", tmp_path / "out")
    said = [c["what"] for c in result.changes if "001" in c["file"]]
    assert result.ok and len(said) == 1 and "resampled" in said[0]
    assert np.array_equal(nifti.read(tmp_path / "out" / "labelsTr" / path.name).array, before)
