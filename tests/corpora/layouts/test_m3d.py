"""M3D-Seg: where its lists, files and frames are."""

import json

import pytest

from medjax.corpora.layouts import m3d
from medjax.errors import UsageError

LISTED = {"image": "0003/1/image.npy", "label": "0003/1/mask_(2, 4, 5, 6).npz"}


def write(tmp_path, **fields):
    folder = tmp_path / "0003"
    (folder / "1").mkdir(parents=True, exist_ok=True)
    for name in ("image.npy", "mask_(2, 4, 5, 6).npz", "seg.npy"):
        (folder / "1" / name).touch()
    spec = {"labels": {"0": "background", "1": "liver", "2": "gtv"}, "train": [LISTED]} | fields
    (folder / "0003.json").write_text(json.dumps(spec))
    return folder


def test_row_k_is_the_class_with_value_k_plus_1(tmp_path):
    folder = write(tmp_path, name="CHAOS", modality="MR")
    assert m3d.detect(folder) and m3d.detect(folder / "0003.json")
    corpus, [case], problems = m3d.scan(folder)
    assert (corpus.name, corpus.channels, corpus.modality) == ("CHAOS", ("MR",), "MR")
    assert (case.name, case.label, problems) == ("1", None, [])
    assert [(m.name, m.pick) for m in case.masks] == [("liver", "frame:0"), ("gtv", "frame:1")]
    assert corpus.classes == ("liver", "gtv")


def test_a_dense_label_and_the_modality_of_an_entry(tmp_path):
    item = {"image": "1/image.npy", "label": "1/seg.npy", "modality": "MRI-T1"}
    corpus, [case], _ = m3d.scan(write(tmp_path, training=[item], train=None))
    assert case.masks == () and case.label.endswith("1/seg.npy") and case.modality == "MR"
    assert corpus.labels == ((0, ()), (1, ("liver",)), (2, ("gtv",)))
    assert corpus.channels == ("CT",)


def test_entries_that_cannot_be_used(tmp_path):
    folder = write(tmp_path, train=[LISTED, "text", LISTED | {"label": "0003/9/none.npz"}])
    _, cases, problems = m3d.scan(folder)
    assert len(cases) == 1 and [p.message for p in problems] == [
        "entry 2 is no object",
        "label of an entry is missing",
    ]


def test_what_it_is_not(tmp_path):
    assert not m3d.detect(tmp_path)
    with pytest.raises(UsageError, match="no list of an M3D-Seg data set"):
        m3d.scan(tmp_path)
    assert not m3d.detect(write(tmp_path, train=[{"image": "a.nii.gz"}]))
    assert not m3d.detect(write(tmp_path, train=[]))
    with pytest.raises(UsageError, match="lists no labels"):
        m3d.scan(write(tmp_path, labels={"0": "background"}))
