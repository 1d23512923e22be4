"""What a data set says about itself: labels, channels, classes and patients, field by field."""

import json
from pathlib import Path

import pytest

from medjax.corpora import dataset_json
from medjax.errors import LabelError, UsageError

FILE = Path("dataset.json")


def test_both_directions_of_labels_are_one_table():
    expected = ((1, ("liver",)), (3, ("gtv",))), None
    assert dataset_json.parse_labels({"0": "background", "1": "liver", "3": "gtv"}, {}, FILE) == (
        expected
    )
    assert dataset_json.parse_labels({"background": 0, "liver": "1", "gtv": 3}, {}, FILE) == (
        expected
    )


def test_regions_and_ignore():
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    table, ignore = dataset_json.parse_labels(labels, {"rim": [2]}, FILE)
    assert ignore == 4 and table == (
        (1, ("whole",)),
        (2, ("whole", "core", "rim")),
        (3, ("whole", "core", "enhancing")),
    )


@pytest.mark.parametrize(
    ("labels", "regions", "words"),
    [
        ([], {}, "must be objects"),
        ({"a": 1}, {"b": 1}, "must be objects"),
        ({"a": 70_000}, {}, "no integer value"),
        ({"a": 1}, {"ignore": [1]}, "the ignore label must be one value"),
        ({"a": 1}, {"b": [2]}, "region 'b' uses undeclared values"),
    ],
)
def test_labels_that_are_none(labels, regions, words):
    with pytest.raises(LabelError, match=words) as caught:
        dataset_json.parse_labels(labels, regions, FILE)
    assert caught.value.path == FILE


def test_channels_are_ordered_by_number():
    assert dataset_json.channel_names({"10": "d", "2": "c", "0": "a", "1": "b"}, FILE) == (*"abcd",)
    assert dataset_json.channel_names(["CT", "PET"], FILE) == ("CT", "PET")
    for wrong in (None, "CT", {}, [], {"x": "CT"}):
        with pytest.raises(UsageError, match="no usable channel names"):
            dataset_json.channel_names(wrong, FILE)
    with pytest.raises(UsageError, match="a channel name that is not text"):
        dataset_json.channel_names({"0": ["CT"]}, FILE)


def test_annotated_classes_are_known_ones():
    labels = ((1, ("liver",)), (2, ("liver", "gtv")))
    assert dataset_json.annotated_classes([], labels, FILE) == ()
    assert dataset_json.annotated_classes(["gtv"], labels, FILE) == ("gtv",)
    with pytest.raises(LabelError, match=r"unknown class 'gtw'.*did you mean gtv"):
        dataset_json.annotated_classes(["gtw"], labels, FILE)


@pytest.mark.parametrize(
    ("given", "folder", "name"),
    [
        (None, "Task07_Pancreas", "Pancreas"),
        (None, "Dataset007_Pancreas", "Pancreas"),
        ("", "Pancreas", "Pancreas"),
        ("Other", "Task07_Pancreas", "Other"),
    ],
)
def test_the_name_of_a_corpus(given, folder, name):
    assert dataset_json.corpus_name(given, Path("/data") / folder, FILE) == name


def test_names_that_cannot_be_a_folder():
    with pytest.raises(LabelError, match="corpus name"):
        dataset_json.corpus_name("../a", Path("b"), FILE)


def test_patients_by_name_and_by_expression():
    names = ["p1_a", "p1_b", "p2_a"]
    assert dataset_json.patients_of({"p1_a": 7}, names, FILE) == {
        "p1_a": "7",
        "p1_b": "p1_b",
        "p2_a": "p2_a",
    }
    expected = {"p1_a": "p1", "p1_b": "p1", "p2_a": "p2"}
    assert dataset_json.patients_of({"regex": "^(p.)_"}, names, FILE) == expected
    assert dataset_json.patients_of(r"^p\d", names, FILE) == expected  # without a group, all of it
    with pytest.raises(UsageError, match="does not match case 'p2_a'"):
        dataset_json.patients_of("p1", names, FILE)
    with pytest.raises(UsageError, match="the unknown case 'p3'"):
        dataset_json.patients_of({"p3": "x"}, names, FILE)
    with pytest.raises(UsageError, match="neither an object nor an expression"):
        dataset_json.patients_of({"p1_a": ["x"]}, names, FILE)


def test_hints_are_flat_and_of_one_file(tmp_path):
    assert dataset_json.hints(tmp_path) == ({}, tmp_path / "medjax.json")
    spec = {"modality": {"0": "CT"}, "labels": {}, "medjax": {"name": "A"}, "reference": "..."}
    (tmp_path / "dataset.json").write_text(json.dumps(spec))
    found, path = dataset_json.hints(tmp_path)
    assert path == tmp_path / "dataset.json"
    assert found == {"channel_names": {"0": "CT"}, "labels": {}, "name": "A"}
    (tmp_path / "medjax.json").write_text('{"absent": "background"}')
    assert dataset_json.hints(tmp_path)[0] == {"absent": "background"}
    (tmp_path / "medjax.json").write_text('{"absnt": "background"}')
    with pytest.raises(UsageError, match=r"unknown key 'absnt'.*did you mean absent"):
        dataset_json.hints(tmp_path)


def test_a_whole_description(tmp_path):
    path = tmp_path / "Task01_Liver" / "dataset.json"
    path.parent.mkdir()
    block = {"annotated": ["liver"], "meanings": {"liver": "with vessels"}, "licence": "CC0"}
    spec = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "gtv"},
        "medjax": block,
    }
    path.write_text(json.dumps(spec))
    corpus, whole, found = dataset_json.describe(path)
    assert (corpus.name, corpus.modality, corpus.annotated) == ("Liver", "CT", ("liver",))
    assert corpus.meanings == (("liver", "with vessels"),) and (whole, found) == (spec, block)
    path.write_text(json.dumps(spec | {"medjax": {"meanings": ["liver"]}}))
    with pytest.raises(LabelError, match='"meanings" must be an object'):
        dataset_json.describe(path)
