"""Two folders, of images and of label maps: what is a channel and what belongs to what."""

from pathlib import Path

import pytest

from medjax.corpora.layouts import folders
from medjax.errors import UsageError


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def paths(*names):
    return [Path(f"{name}.nii.gz") for name in names]


def test_channels_are_numbered_from_0_without_a_gap():
    found = folders.channels_of(paths("a_0000", "a_0001", "b_0000", "c_0003", "d"))
    assert {name: [p.name[:-7] for p in files] for name, files in found.items()} == {
        "a": ["a_0000", "a_0001"],
        "b": ["b_0000"],
        "c_0003": ["c_0003"],  # a number of its own, no channel
        "d": ["d"],
    }


def test_pairs_by_equal_names_then_by_what_is_left_of_them():
    scans = dict.fromkeys(("a", "img0002", "volume-3"))
    labels = {n: Path(n) for n in ("label0002", "a", "segmentation-3")}
    pairs, problems = folders.pair(scans, labels, Path("images"), Path("labels"))
    assert problems == [] and list(pairs) == sorted(scans)
    assert {k: str(v) for k, v in pairs.items()} == {
        "a": "a",
        "img0002": "label0002",
        "volume-3": "segmentation-3",
    }


def test_files_without_or_with_several_partners():
    scans = dict.fromkeys(("img1", "volume1", "img2"))
    labels = {n: Path(n) for n in ("label1", "label3")}
    pairs, problems = folders.pair(scans, labels, Path("images"), Path("labels"))
    assert pairs == {} and [p.message for p in problems] == [
        "cannot determine which label belongs to which image ('1')",
        "image 'img2' has no label",
        "label 'label3' has no image",
    ]
    assert problems[0].found == "img1, volume1, label1"


def test_folders_are_told_by_their_names(tmp_path):
    touch(tmp_path / "CT", "x.nii.gz")
    assert not folders.detect(tmp_path)
    touch(tmp_path / "Ground-Truth", "x.nii.gz")
    touch(tmp_path / ".masks", "x.nii.gz")
    (tmp_path / "labels").mkdir()  # empty
    assert folders.detect(tmp_path) and not folders.detect(tmp_path / "CT" / "x.nii.gz")
    (tmp_path / "medjax.json").write_text('{"labels": {"liver": 1}}')
    corpus, [case], problems = folders.scan(tmp_path)
    assert (corpus.channels, case.name, problems) == (("CT",), "x", [])
    assert case.label == str(tmp_path / "Ground-Truth" / "x.nii.gz")
    touch(tmp_path / "segs", "x.nii.gz")
    with pytest.raises(UsageError, match=r"several folders could hold .* Ground-Truth, segs"):
        folders.detect(tmp_path)


def test_a_folder_is_missing(tmp_path):
    touch(tmp_path / "images", "x.nii.gz")
    with pytest.raises(UsageError, match="no pair of image and label folders"):
        folders.scan(tmp_path)
