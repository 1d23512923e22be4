"""Organ masks as a channel: from files on another grid, from labels; masks that do not belong."""

import nibabel as nib
import numpy as np
import pytest

from data_pipelines import organs as total
from medjax import cli
from medjax.commands import organs as verb
from medjax.corpora import organs
from medjax.corpora.layouts import corpus_json
from medjax.corpora.sources import read_corpus
from medjax.errors import UsageError
from medjax.scans import nifti
from tests.support.raw import save, write_corpus

SHAPE = (8, 10, 9)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("x") / "Dataset001_A"
    return write_corpus(folder, 3, SHAPE, "nnunet", channels=("CT",), vary=False)


def _masks(folder, values, names=("case_000", "case_001")):
    """Label maps in which each value is one plane of z."""
    array = np.zeros(SHAPE, np.uint8)
    for plane, value in enumerate(values):
        array[plane] = value
    for name in names:
        save(folder / f"{name}.nii.gz", array)
    return folder


def _written(out):
    described, cases, problems = corpus_json.scan(out)
    assert problems == [] and described.channels == ("CT", "mask")
    return {c.name: nifti.read(c.images[-1], want="label").array for c in cases}


def test_masks_from_files_and_what_is_missing(corpus, tmp_path, capsys):
    files = _masks(tmp_path / "total", [5, 2, 9])
    given = ["--files", str(files), "--values", "2,9", "-o", str(tmp_path / "out")]
    assert verb.__name__.endswith("organs") and cli.main(["organs", str(corpus), *given]) == 0
    assert "1 have no mask (case_002): their channel is zero" in capsys.readouterr().out
    found = _written(tmp_path / "out")
    for name in ("case_000", "case_001"):
        assert not found[name][[0, *range(3, 8)]].any() and found[name][[1, 2]].all()
    assert not found["case_002"].any()
    facts = corpus_json.facts(tmp_path / "out")
    assert facts["organ"] == "files"
    original = read_corpus(corpus)[1]
    assert [c.images[0] for c in read_corpus(tmp_path / "out")[1]] == [
        str(c.images[0]) for c in original
    ]  # the scans stay where they are


def test_masks_from_the_labels_of_the_corpus(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["organs", str(corpus), "--from-labels", "organ", "-o", str(out)]) == 0
    assert "upper bound" in capsys.readouterr().out
    cases = {c.name: nifti.read(c.label, want="label").array for c in read_corpus(corpus)[1]}
    for name, mask in _written(out).items():
        np.testing.assert_array_equal(mask > 0, cases[name] == 1)
    assert corpus_json.facts(out)["organ"] == organs.REFERENCE
    members = read_corpus(out)[1]
    (sentence,) = organs.about({"A": members, "B": read_corpus(corpus)[1], "C": ()})
    assert sentence.startswith("A: organ masks are its own labels")
    with pytest.raises(UsageError, match="has a channel 'mask' already"):
        described, members, _ = corpus_json.scan(out)
        organs.write(tmp_path / "again", described, members, lambda *_: None, "files")
    assert cli.main(["organs", str(corpus), "--from-labels", "liver", "-o", str(out)]) == 2
    assert "no class 'liver'" in capsys.readouterr().err


def test_a_mask_on_another_grid_and_one_of_another_scan(corpus, tmp_path):
    like = nifti.read_geometry(read_corpus(corpus)[1][0].images[0])
    path = tmp_path / "fine.nii.gz"
    block = np.zeros((16, 20, 18), np.uint8)
    block[4:8, 6:10, 2:6] = 3
    save(path, block, (0.5, 0.5, 0.5), "LPS", origin=(4.75, -7.25, 10.75))
    found = organs.on_scan(path, like)
    expected = np.zeros(SHAPE, bool)
    expected[2:4, 3:5, 1:3] = True
    np.testing.assert_array_equal(found, expected)
    save(path, block, (0.5, 0.5, 0.5), origin=(500, 0, 0))
    with pytest.raises(UsageError, match="belongs to another scan") as error:
        organs.on_scan(path, like)
    assert str(path) in str(error.value) and "mask of this scan" in str(error.value)
    save(path, np.zeros(SHAPE, np.uint8), origin=(500, 0, 0))
    assert not organs.on_scan(path, like).any()  # an empty mask belongs anywhere


def test_closing_and_growing_in_millimetres():
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, [2, 4, 6]] = True
    near = organs.grown(mask, (2.0, 1.0, 1.0), dilate_mm=1.0)
    assert near.sum() == 3 + 2 + 2 + 6 and not near[3].any()  # a row of 7, and 2 above and below
    slabs = np.zeros((9, 9, 9), bool)
    slabs[:, :, [2, 4, 8]] = True
    closed = organs.grown(slabs, (2.0, 1.0, 1.0), closing_mm=1.0)  # gaps of 1 and of 3 mm
    assert np.flatnonzero(closed.all((0, 1))).tolist() == [2, 3, 4, 8] and closed.sum() == 4 * 81
    edge = np.zeros((3, 3, 3), bool)
    edge[:, :, 0] = True
    np.testing.assert_array_equal(organs.grown(edge, (1.0,) * 3, closing_mm=2.0), edge)
    with pytest.raises(UsageError, match="less than 0"):
        organs.grown(mask, (1.0,) * 3, closing_mm=-1.0)


def test_ids_of_totalsegmentators_versions(corpus, tmp_path, capsys):
    """Kidneys: 2 and 3, with cysts 23 and 24 in v2 (spec 3.3); 117 occurs in v2 only."""
    second = _masks(tmp_path / "v2", [2, 3, 23, 117])
    first = _masks(tmp_path / "v1", [2, 3, 23, 104])
    for version, files, planes in ((2, second, [0, 1, 2]), (1, first, [0, 1])):
        out = tmp_path / f"out{version}"
        given = ["--files", str(files), "--version", str(version), "-o", str(out)]
        assert total.main([str(corpus), "--task", "KiTS", *given]) == 0
        found = _written(out)["case_000"]
        assert np.flatnonzero(found.any((1, 2))).tolist() == planes
        wrong = ["--files", str(files), "--version", str(3 - version), "-o", str(tmp_path / "no")]
        assert total.main([str(corpus), "--task", "KiTS", *wrong]) == 2
        said = capsys.readouterr().err
        assert f"--version {version}" in said and str(files) in said
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_read_is_refused(corpus, tmp_path, capsys):
    assert (
        cli.main(["organs", str(corpus), "--files", str(tmp_path), "-o", str(tmp_path / "o")]) == 2
    )
    assert "no organ masks here" in capsys.readouterr().err
    files = _masks(tmp_path / "f", [1])
    given = ["organs", str(corpus), "--files", str(files), "-o", str(tmp_path / "o")]
    for more, message in (
        (["--values", "liver"], "--values"),
        (["--classes", "liver"], "--classes belongs to --from-run"),
    ):
        assert cli.main([*given, *more]) == 2
        assert message in capsys.readouterr().err
    assert nib.load(files / "case_000.nii.gz").shape == SHAPE[::-1]
