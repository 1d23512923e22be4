"""What the layouts share: words in file names, and from cases as found to a corpus."""

import json

import pytest

from medjax.corpora.inputs import Case
from medjax.corpora.layouts.common import Found, finish, usual
from medjax.corpora.words import is_label_name, key_of
from medjax.errors import LabelError, UsageError
from medjax.scans.paths import Mask


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("img0001", "0001"),
        ("label0001", "0001"),
        ("volume-3", "3"),
        ("segmentation-3", "3"),
        ("Patient_7_CT", "patient_7"),
        ("patient_7_seg_0000", "patient_7"),
        ("mask", ""),
        ("ctx_5", "ctx_5"),  # a word counts as a whole
    ],
)
def test_what_is_left_of_a_name(name, key):
    assert key_of(name) == key


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("segmentation-3", True),
        ("BraTS_001_seg", True),
        ("mask", True),
        ("label0001", True),
        ("volume-3", False),
        ("maskless_2", False),
        ("a_seg_b", False),  # neither first nor last
    ],
)
def test_names_that_say_label(name, expected):
    assert is_label_name(name) is expected


def test_the_usual_channels_are_the_most_frequent_then_the_most():
    assert usual([("t1",), ("t1", "t2"), ("t1",)]) == ("t1",)
    assert usual([("t1",), ("t1", "t2")]) == ("t1", "t2")


def case(name, **fields):
    return Case(name, (f"{name}.nii.gz",), **fields)


def test_names_channels_and_patients_of_what_was_found(tmp_path):
    found = Found(
        tmp_path / "Task07_Liver",
        [case("b", label="b_seg.nii.gz"), case("a", label="a_seg.nii.gz", modality="MR")],
        channels=("CT",),
        labels={"liver": 1},
        patients={"a": "p1"},
    )
    corpus, cases, problems = finish(found)
    assert (corpus.name, corpus.modality, corpus.classes) == ("Liver", "CT", ("liver",))
    assert [(c.name, c.corpus, c.modality, c.patient) for c in cases] == [
        ("a", "Liver", "MR", "p1"),
        ("b", "Liver", "CT", "b"),
    ]
    assert problems == []


def test_a_description_wins_over_the_layout(tmp_path):
    said = {"name": "Lesions", "channels": ["T1w"], "labels": {"lesion": 3}, "patients": "^."}
    (tmp_path / "medjax.json").write_text(json.dumps(said))
    found = Found(tmp_path, [case("a1", label="x"), case("a2", label="y")], labels={"liver": 1})
    corpus, cases, _ = finish(found)
    assert (corpus.name, corpus.channels, corpus.modality) == ("Lesions", ("T1w",), "MR")
    assert corpus.labels == ((0, ()), (3, ("lesion",)))
    assert {c.patient for c in cases} == {"a"}


def masked(name, *classes):
    return case(name, masks=tuple(Mask(c, f"{name}/{c}.nii.gz") for c in classes))


def test_a_class_without_a_mask_is_a_fault_or_background(tmp_path):
    found = Found(tmp_path, [masked("a", "liver", "gtv"), masked("b", "liver"), case("c")])
    corpus, cases, problems = finish(found)
    assert corpus.classes == ("gtv", "liver") and [c.name for c in cases] == ["a"]
    assert [p.message for p in problems] == [
        "no mask of 'gtv' in case 'b'",
        "case 'c' has no masks",
    ]
    (tmp_path / "medjax.json").write_text(json.dumps({"absent": "background"}))
    assert [c.name for c in finish(found)[1]] == ["a", "b"]


def test_classes_are_chosen_and_renamed(tmp_path):
    said = {"classes": {"tumour": ["gtv", "GTV"]}}
    (tmp_path / "medjax.json").write_text(json.dumps(said))
    corpus, cases, _ = finish(Found(tmp_path, [masked("a", "GTV", "liver"), masked("b", "gtv")]))
    assert corpus.classes == ("tumour",)
    assert [[m.name for m in c.masks] for c in cases] == [["tumour"], ["tumour"]]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"classes": ["spleen"]}, "no mask of class 'spleen' in any case"),
        ({"classes": {"tumour": 3}}, "names no names in the files; found 3"),
        ({"classes": "liver"}, "must be a list of names"),
        ({"annotated": "liver"}, '"annotated" must be a list'),
    ],
)
def test_descriptions_of_masks_that_make_no_sense(tmp_path, said, words):
    (tmp_path / "medjax.json").write_text(json.dumps(said))
    with pytest.raises(LabelError, match=words):
        finish(Found(tmp_path, [masked("a", "liver")]))


def test_nothing_found_and_one_name_twice(tmp_path):
    with pytest.raises(UsageError, match="no cases found"):
        finish(Found(tmp_path, []))
    with pytest.raises(UsageError, match="case 'a' occurs twice"):
        finish(Found(tmp_path, [case("a"), case("a")], labels={}))
