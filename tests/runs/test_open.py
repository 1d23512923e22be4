"""Corpora of a config whose paired organs are split by side before they are prepared."""

import numpy as np
import pytest

from configs.base import base_config
from medjax.corpora.labels_of_case import read_label
from medjax.errors import UsageError
from medjax.prepare import store
from medjax.registry import plain
from medjax.runs import open as corpora
from medjax.runs import stages
from medjax.scans import formats
from tests.support.configs import typed
from tests.support.raw import save, write_corpus

SHAPE = (8, 10, 20)


@pytest.fixture
def config(tmp_path):
    """Two corpora with a kidney on either side, stored from left to right and the other way."""
    folders = []
    for number, orientation in enumerate(("RAS", "LAS"), 1):
        name = "AB"[number - 1]
        folder = write_corpus(
            tmp_path / f"Task0{number}_{name}", 3, SHAPE, labels={"kidney": 1}, channels=("CT",)
        )
        for path in sorted((folder / "imagesTr").glob("*.nii.gz")):
            label = np.zeros(SHAPE, np.uint8)
            label[2:6, 2:6, 3:6] = label[2:6, 2:6, 13:17] = 1
            image = np.full(SHAPE, 40.0, np.float32)
            for place, array in (("imagesTr", image), ("labelsTr", label)):
                save(folder / place / path.name, array, (2, 1, 1), orientation)
        folders.append(str(folder))
    fields = plain(base_config())
    fields["data"] |= {"folders": ",".join(folders), "sides": {"A": ["kidney"], "B": ["kidney"]}}
    fields["data"]["split"] |= {"folds": 3}
    return fields


def test_sides_are_split_once_on_the_grid_of_the_scan(config, tmp_path, capsys):
    run = tmp_path / "run"
    data = corpora.open_data(typed(config).data, run)
    assert data.space.classes == ("right kidney", "left kidney")
    assert "A: left and right of kidney" in capsys.readouterr().err
    for name in "AB":
        corpus = data.stores[data.space.corpus_index(name)]
        for case in data.cases[name]:
            assert str(run / "store_sides" / name) in case.label
            like = formats.read_geometry(case.images[0])
            found = read_label(case, corpus, like)
            right, left = (np.isin(found, corpus.ids_of(f"{s} kidney")) for s in ("right", "left"))
            assert right.sum() == 4 * 4 * 4 and left.sum() == 4 * 4 * 3
    again = corpora.open_data(typed(config).data, run)
    assert again.cases == data.cases and capsys.readouterr().err == "", "they are there"


def test_a_run_prepares_and_counts_both_sides(config, tmp_path):
    config["data"]["sides"] = {"A": ["kidney"]}
    config["data"]["folders"] = config["data"]["folders"].split(",")[0]
    run = stages.open_run(typed(config), tmp_path / "run")
    stages.prepare_stage(run)
    stored = store.list_cases(run.store, "A")
    assert len(stored) == 3
    for name in stored:
        case = store.open_case(run.store / "A" / name)
        assert {key: len(case.locations[key]) for key in case.locations} == {"1": 64, "2": 48}


def test_without_files_the_classes_are_split_and_nothing_is_written(config, tmp_path):
    data = corpora.open_data(typed(config).data, tmp_path / "run", files=False)
    assert data.space.classes == ("right kidney", "left kidney")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_split_is_refused(config, tmp_path):
    config["data"]["sides"] = {"C": ["kidney"]}
    with pytest.raises(UsageError, match="sides names an unknown corpus 'C'"):
        corpora.open_data(typed(config).data, tmp_path / "run")
    config["data"]["sides"] = {"A": ["kidny"]}
    with pytest.raises(UsageError, match="did you mean kidney"):
        corpora.open_data(typed(config).data, tmp_path / "run")
