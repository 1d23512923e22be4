"""The comparison of MAST-Pro's rows: described corpora, runs that differ in their row alone, the
arithmetic of the tables.
"""

import argparse

import numpy as np
import pytest

from benchmarks import mast_pro
from medjax import main
from medjax.corpora.sources import read_corpus
from medjax.prompts import texts
from medjax.registry import plain
from tests.support.configs import typed
from tests.support.raw import write_corpus


@pytest.fixture
def given(tmp_path):
    data = tmp_path / "data"
    for folder in {folder for folder, *_ in mast_pro.TASKS.values()}:
        labels = {"a": 1, "b": 2} if "Hippocampus" in folder else {"tumour": 1}
        write_corpus(data / folder, 2, (8, 9, 8), labels=labels)
    out = tmp_path / "out"
    mast_pro.describe(data, out)
    mast_pro.write_texts(out / "tasks.text.npz")
    return argparse.Namespace(data=data, out=out, steps=3, only=())


def test_tasks_are_corpora_on_the_same_scans(given):
    found = {
        name: read_corpus(given.out / "corpora" / name)
        for name in (*mast_pro.TASKS, mast_pro.WHOLE)
    }
    first, second = (found[name] for name in mast_pro.HIPPOCAMPUS)
    assert [c.images for c in first[1]] == [c.images for c in second[1]]
    assert mast_pro.tumour_values(first[0]) == [1] and mast_pro.tumour_values(second[0]) == [2]
    assert mast_pro.tumour_values(found[mast_pro.WHOLE][0]) == [1, 2]
    assert {corpus.classes for name, (corpus, _) in found.items() if name != mast_pro.WHOLE} == {
        ("tumour",)
    }
    written = texts.read(given.out / "tasks.text.npz")
    assert written.names == tuple(mast_pro.TASKS) and written.facts["kind"] == "hash"


def test_rows_differ_in_their_row_only(given, repository, monkeypatch):
    monkeypatch.chdir(repository)
    found = mast_pro.jobs(given)
    assert set(found) == {"stage1", *mast_pro.ROWS}
    fields = {}
    for name, job in found.items():
        assert job.after == ("" if name == "stage1" else "stage1")
        (line,) = job.lines
        config = typed(plain(main.parse(line[2:]).config))
        fields[name] = config
        if name != "stage1":
            told = name in ("tp", "full", "full_tuning")  # rows that read a sentence
            assert config.text.file == (str(given.out / "tasks.text.npz") if told else "")
            assert config.data.folders.count("corpora_with_organs") == 2
    rows = [fields[row] for row in mast_pro.ROWS]
    assert all(r.train == rows[0].train and r.data == rows[0].data for r in rows)
    assert fields["stage1"].data.share == "per_corpus" and fields["stage1"].train.steps == 12
    (line,) = mast_pro.organ_job(given).lines
    assert typed(plain(main.parse(line[2:]).config)).data.split.folds == 2


def test_what_the_network_is_told():
    image = np.zeros((3, 12, 3, 2))
    image[:, 2, :, 1] = 1
    assert mast_pro.told(image, "right") is not image
    np.testing.assert_array_equal(mast_pro.told(image, "other task"), image)
    assert not mast_pro.told(image, "no organ")[..., 1].any()
    shifted = mast_pro.told(image, "shifted organ")[..., 1]
    assert shifted[:, 10].all() and shifted.sum() == 9
    late = np.roll(image, 8, axis=1)
    assert not mast_pro.told(late, "shifted organ")[
        ..., 1
    ].any()  # nothing enters on the other side


def test_numbers_of_the_tables():
    a, b = np.array([True, True, False]), np.array([True, False, False])
    assert mast_pro.dice(a, b) == pytest.approx(2 / 3) and mast_pro.dice(~a & a, ~b & b) == 1
    mean, low, high = mast_pro.interval([0.1, 0.2, 0.3, 0.4])
    assert mean == pytest.approx(0.25) and 0.1 <= low < mean < high <= 0.4
    cell = {"mean": 0.5, "interval": [0.4, 0.6], "n": 3}
    found = {
        "rows": {"full": {"SarcomaCT/tumour": cell}},
        "budgets": {"full": {"trained": 25, "frozen": 75}},
        "prompts": {"HippocampusAnterior": {c: [0.5, 0.7] for c in mast_pro.CONDITIONS}},
    }
    text = mast_pro.markdown(found)
    assert "25 (25%)" in text and "0.500 [0.400, 0.600]" in text
    assert "| HippocampusAnterior | +0.000 [+0.000, +0.000] |" in text
