"""Cross-validation's folders and joint table, corpora that are left out, the fold of everything,
and groups of classes.
"""

import json
import shutil

import pytest

from configs.base import base_config
from medjax.errors import EXIT_OK, EXIT_SOME_FAILED, UsageError
from medjax.registry import plain
from medjax.runs import crossval, folder, stages, test
from medjax.runs import open as corpora
from medjax.runs.config import with_field
from tests.support.configs import typed
from tests.support.raw import write_corpus


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two small corpora of 4 and 3 cases."""
    root = tmp_path_factory.mktemp("raw")
    blobs = write_corpus(root / "Task01_Blobs", n=4, shape=(8, 10, 9))
    return (
        root,
        f"{blobs},{write_corpus(root / 'Task02_Balls', n=3, shape=(8, 10, 9), labels={'ball': 1})}",
    )


def _fields(raw, **data):
    c = base_config().unlock()
    c.data.folders = raw[1]
    c.data.split.folds = 2
    c.data.update(data)
    return plain(c)


@pytest.fixture
def without_training(monkeypatch):
    """Training does nothing; evaluation leaves the references as masks, but for `missed` cases."""
    missed = set()

    def evaluate(run):
        for corpus in run.data.space.unveiled().corpora:
            for case in run.data.cases[corpus.name]:
                if (
                    case.name in run.data.side(corpus.name, "val")
                    and f"{corpus.name}/{case.name}" not in missed
                ):
                    out = run.workdir / "predictions" / corpus.name / f"{case.name}.nii.gz"
                    out.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(case.label, out)
        folder.write_json(
            run.workdir / "evaluation" / "summary.json", {"foreground_mean": {"Dice": 1.0}}
        )
        return EXIT_OK

    monkeypatch.setattr(stages, "train", lambda run: None)
    monkeypatch.setattr(stages, "evaluate", evaluate)
    return missed


def test_every_case_is_scored_once_by_the_fold_that_held_it_out(
    raw, tmp_path, without_training, capsys
):
    fields = _fields(raw)
    assert crossval.run(typed(fields), tmp_path, (1,)) == EXIT_OK
    assert (
        "waits for folds 0" in capsys.readouterr().out and not (tmp_path / "crossval.json").exists()
    )
    assert crossval.run(typed(fields), tmp_path) == EXIT_OK
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    scored = [(c["corpus"], c["case"]) for c in summary["metric_per_case"]]
    assert sorted(scored) == [("Balls", f"case_{i:03d}") for i in range(3)] + [
        ("Blobs", f"case_{i:03d}") for i in range(4)
    ]
    assert summary["foreground_mean"]["Dice"] == 1.0
    found = json.loads((tmp_path / "crossval.json").read_text())
    assert (
        found["folds"] == {f"fold_{k}": {"Dice": 1.0} for k in range(2)}
        and found["together"]["Dice"] == 1.0
    )
    one = folder.read_config(tmp_path / "fold_1")
    assert one.data.split.fold == 1 and one.data.store == str(tmp_path / "store")


def test_folds_that_do_not_exist_are_refused(raw, tmp_path):
    with pytest.raises(UsageError, match="no fold 2; expected 0 to 1"):
        crossval.run(typed(_fields(raw)), tmp_path, (0, 2))
    with pytest.raises(UsageError, match="no folds here"):
        crossval.ensemble(tmp_path)


def test_some_corpora_are_trained_and_the_splits_stay(raw, tmp_path):
    whole, part = (
        corpora.open_data(typed(_fields(raw, only=only)).data, tmp_path) for only in ("", "Balls")
    )
    assert part.space.classes == ("ball",) and [c.name for c in part.space.corpora] == ["Balls"]
    assert part.splits == whole.splits and [c.name for c in part.stores] == ["Blobs", "Balls"]
    with pytest.raises(UsageError, match=r"unknown corpus 'Bals'.*did you mean Balls"):
        corpora.open_data(typed(_fields(raw, only="Bals")).data, tmp_path)


def test_the_fold_of_everything_holds_nothing_out(raw, tmp_path):
    fields = _fields(raw)
    fields["data"]["split"]["fold"] = corpora.EVERYTHING
    data = corpora.open_data(typed(fields).data, tmp_path)
    assert (
        len(data.side("Blobs", "train")) == 4
        and data.side("Blobs", "val") == data.side("Balls", "val") == []
    )
    fields["data"]["split"]["fold"] = 2
    with pytest.raises(UsageError, match="0 to 1, or -1 for training on every case"):
        corpora.open_data(typed(fields).data, tmp_path)


def test_groups_come_from_the_config_and_a_baseline(tmp_path):
    settings = typed({"evaluate": {"groups": {"cancer": ("Liver/liver tumour",)}}}).evaluate
    assert test.groups(settings) == {"cancer": ("Liver/liver tumour",)}
    cells = {
        "Liver": {"liver": {"Dice": {"mean": 0.95}}, "liver tumour": {"Dice": {"mean": 0.6}}},
        "Lung": {"node": {"Dice": {"mean": None}}},
    }
    folder.write_json(tmp_path / "evaluation" / "summary.json", {"cells": cells})
    found = test.groups(with_field(settings, "baseline", str(tmp_path)))
    assert found["difficult"] == ("Liver/liver tumour",)


def test_a_group_is_one_more_row_of_the_table(raw, tmp_path, without_training):
    fields = _fields(raw)
    fields["evaluate"] |= {
        "groups": {"inner": ("Blobs/tumour",), "absent": ("no such class",)},
        "montages": 0,
    }
    without_training.add("Balls/case_000")
    assert crossval.run(typed(fields), tmp_path) in (EXIT_OK, EXIT_SOME_FAILED)
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert (
        summary["groups"]["inner"]["Dice"]["mean"] == 1.0
        and summary["groups"]["inner"]["Dice"]["n_cells"] == 1
    )
    assert summary["groups"]["absent"]["Dice"]["mean"] is None
    assert len(summary["metric_per_case"]) == 6
