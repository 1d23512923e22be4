"""The evidence on prompts: which trainings and questions there are, and the tables."""

import argparse

import numpy as np
import pytest

from benchmarks import prompted
from medjax import main
from medjax.commands import prompted as verb
from medjax.corpora.sources import read_corpus
from medjax.prompts import rows
from medjax.registry import plain
from tests.support.configs import typed
from tests.support.raw import save


@pytest.fixture
def given(tmp_path):
    return argparse.Namespace(
        data=tmp_path / "data",
        out=tmp_path,
        steps=7,
        more=9,
        adapt_steps=30,
        seed=0,
        cases=4,
        draws=2,
    )


def test_adaptations_differ_in_what_is_trained_only(given, repository, monkeypatch):
    monkeypatch.chdir(repository)
    found = prompted.jobs(given)
    adapted = {f"{t}_{a}" for t in prompted.TARGETS for a in prompted.RECIPE}
    assert set(found) == {"base", "longer"} | adapted
    configs = {}
    for name, job in found.items():
        (line,) = job.lines
        configs[name] = typed(plain(main.parse(line[2:]).config))
        assert job.after == {"base": "", "longer": "base"}.get(name, "longer")
        assert configs[name].train.batch == 2 and not configs[name].evaluate.on
    assert configs["longer"].train.steps == 9 and configs["longer"].sampler.whole == 1.0
    for target in prompted.TARGETS:
        lora, full = (configs[f"{target}_{arm}"] for arm in ("lora", "full"))
        assert lora.adapters.rank == 8 and not full.adapters.kernels
        assert lora.train == full.train and lora.data == full.data
        assert lora.task_options == full.task_options and lora.init == full.init


def test_questions_are_calls_of_the_verb(given):
    parser = argparse.ArgumentParser()
    verb.add(parser.add_subparsers())
    found = prompted.questions(given)
    runs = {"base", "longer", *(f"{t}_{a}" for t in prompted.TARGETS for a in prompted.RECIPE)}
    assert {run for run, _ in found.values()} == runs
    for run, words in found.values():
        parsed = parser.parse_args(["prompted", "-m", run, *words])
        assert rows.parsed(parsed.rows)
    assert prompted.corpus_like("sarcoma_ct") == "PhantomCT"


def test_the_torso_has_its_values_as_classes(given):
    array = np.zeros((4, 5, 6), np.uint8)
    array[1], array[2] = 3, 7
    save(given.data / "example_ct" / "ct.nii.gz", array.astype(np.float32))
    save(given.data / "example_ct" / "organs.nii.gz", array)
    prompted.describe_torso(given.data, given.out)
    corpus, cases = read_corpus(given.out / prompted.TORSO)
    assert corpus.classes == ("organ 3", "organ 7") and len(cases) == 1 and cases[0].labelled


def test_the_tables_hold_rows_clicks_and_texts():
    number = {"mean": 0.5, "interval": [0.4, 0.6]}
    none = {"mean": 0.25, "interval": None}
    one = {
        "rows": {
            "text": {"dice": number},
            "box": {"dice": number, "ellipsoid": none, "minus_ellipsoid": none},
        },
        "clicks": {"clicks": {"steps": [none, number], "last": number, "gain": none}},
        "confusion": {"right_minus_wrong": number},
        "programs": 2,
        "seconds": 3.0,
    }
    table = prompted.markdown(
        {"phantoms_base": one, "sarcoma_mr_lora": one, "torso_longer": {"failed": "x"}}
    )
    assert "| phantoms | base | text | 0.500 [0.400, 0.600] | - | - |" in table
    assert "| sarcoma_mr | lora | box | 0.500 [0.400, 0.600] | 0.250 | +0.250 |" in table
    assert "clicks, 0 to 1 clicks: 0.250 0.500" in table
    assert "| sarcoma_mr_lora | +0.500 [+0.400, +0.600] | 2 | 3.0 |" in table
