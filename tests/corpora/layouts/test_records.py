"""Corpora in tensorflow-datasets' form: what the description and the records say."""

import json

import pytest

from medjax.corpora.layouts import records as layout
from medjax.errors import LabelError, UsageError
from medjax.labels import Corpus
from medjax.scans import records

CORPUS = Corpus("Kidneys", ((1, ("kidney",)),), modality="CT", channels=("CT",))


@pytest.fixture
def location(tmp_path, monkeypatch):
    """A folder with a description, and two records whose other features are never decoded."""
    rows = [{"case": b"k2", "patient": b"p"}, {"case": "k1", "patient": "p"}]

    def source(location, features):
        assert location == str(tmp_path) and features == ("case", "patient")
        return rows

    monkeypatch.setattr(records, "source", source)
    (tmp_path / "dataset_info.json").write_text("{}")
    said = {"format": 1, "corpus": CORPUS.to_json(), "licence": "CC0"}
    (tmp_path / records.DESCRIPTION).write_text(json.dumps(said))
    records.local_folder.cache_clear()
    return tmp_path


def test_cases_are_records_by_number(location):
    corpus, cases, problems = layout.scan(f"tfds:{location}/")
    assert corpus == CORPUS and problems == []
    assert [(c.name, c.images, c.label, c.corpus, c.modality, c.patient) for c in cases] == [
        (name, (place := f"tfds:{location}#{number}",), place, "Kidneys", "CT", "p")
        for name, number in (("k1", 1), ("k2", 0))
    ]


def test_facts_are_the_other_fields(location):
    assert layout.facts(location) == {"licence": "CC0"}


@pytest.mark.parametrize("content", ["{}", "[]", '{"corpus": 5}', "nothing"])
def test_descriptions_that_are_none(location, content):
    (location / records.DESCRIPTION).write_text(content)
    with pytest.raises(UsageError) as caught:
        layout.scan(location)
    assert str(location) in str(caught.value) and caught.value.fix


@pytest.mark.parametrize(
    ("change", "words"),
    [({"labels": None}, "no usable corpus"), ({"annotated": ["liver"]}, "liver")],
)
def test_a_corpus_that_makes_no_sense_names_the_file(location, change, words):
    (location / records.DESCRIPTION).write_text(json.dumps({"corpus": CORPUS.to_json() | change}))
    with pytest.raises(LabelError, match=words) as caught:
        layout.scan(location)
    assert caught.value.path == location / records.DESCRIPTION


def test_no_data_set_there(tmp_path):
    with pytest.raises(UsageError, match=r"no data set of tensorflow-datasets here"):
        layout.scan(tmp_path)
