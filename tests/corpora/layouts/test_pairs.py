"""Image and label map side by side: names of cases and channels, and what is incomplete."""

import json

import pytest

from medjax.corpora.layouts import pairs


def touch(folder, *names, said=None):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.nii.gz").touch()
    if said is not None:
        (folder / "medjax.json").write_text(json.dumps({"labels": {"liver": 1}} | said))


def test_one_folder(tmp_path):
    touch(tmp_path, "volume-0", "segmentation-0", "volume-1", said={})
    assert pairs.detect(tmp_path)
    _, [case], problems = pairs.scan(tmp_path)
    assert case.name == "volume-0" and case.label.endswith("segmentation-0.nii.gz")
    assert [p.message for p in problems] == ["image 'volume-1' has no label"]


def test_a_case_is_called_by_what_is_left_if_that_is_a_name(tmp_path):
    touch(tmp_path, "p1_ct", "p1_seg", "p2_ct", "p2_seg", said={})
    assert [c.name for c in pairs.scan(tmp_path)[1]] == ["p1", "p2"]


@pytest.mark.parametrize("names", [("a", "b"), ("a_seg", "b_seg")])
def test_no_labels_or_nothing_else(tmp_path, names):
    touch(tmp_path, *names)
    assert not pairs.detect(tmp_path) and not pairs.detect(tmp_path / "a.nii.gz")


def test_a_folder_per_case_with_channels(tmp_path):
    touch(tmp_path, said={})
    for name in ("BraTS_001", "BraTS_002"):
        touch(tmp_path / name, *(f"{name}_{c}" for c in ("t1", "flair", "seg")))
    assert pairs.detect(tmp_path)
    corpus, cases, problems = pairs.scan(tmp_path)
    assert (corpus.channels, corpus.modality, problems) == (("flair", "t1"), "MR", [])
    assert [c.name for c in cases] == ["BraTS_001", "BraTS_002"]
    assert cases[0].images[0].endswith("BraTS_001_flair.nii.gz")


def test_cases_that_lack_something_or_have_more(tmp_path):
    touch(tmp_path, said={})
    for name, files in {
        "a": ("a_t1", "a_t2", "a_seg"),
        "b": ("b_t1", "b_t2", "b_seg"),
        "c": ("c_t1", "c_seg"),
        "d": ("d_t1", "d_t2", "d_t3", "d_seg"),
        "e": ("e_t1", "e_t2"),
        "f": ("f_t1", "f_t2", "f_seg", "f_mask"),
    }.items():
        touch(tmp_path / name, *files)
    _, cases, problems = pairs.scan(tmp_path)
    assert [c.name for c in cases] == ["a", "b"]
    assert [p.message for p in problems] == [
        "case 'e' needs one label map and its images",
        "case 'f' needs one label map and its images",
        "case 'c' has no image 't2'",
        "case 'd' has an image more than others, 't3'",
    ]
    touch(tmp_path, said={"channels": ["t1"], "select": "_seg"})
    assert [c.name for c in pairs.scan(tmp_path)[1]] == ["a", "b", "c", "d", "f"]


@pytest.mark.parametrize(
    ("image", "channel"),
    [("ct", "CT"), ("mri", "MR"), ("imaging", "image"), ("dwi", "dwi"), ("sequence", "image")],
)
def test_the_name_of_a_single_channel(tmp_path, image, channel):
    touch(tmp_path, said={})
    touch(tmp_path / "case_1", image, "segmentation")
    assert pairs.scan(tmp_path)[0].channels == (channel,)
