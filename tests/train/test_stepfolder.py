"""The folders of checkpoints: complete, damaged and missing steps, told apart without an array."""

import json

import pytest

from medjax.errors import TrainError
from medjax.train import stepfolder


@pytest.fixture
def folder(tmp_path):
    """checkpoints/ of a run with the complete steps 5, 10 and 20; 10 is the best."""
    root = tmp_path / "checkpoints"
    for step, metric in ((5, 0.5), (10, 0.9), (20, None)):
        write(root / str(step), {"step": step, "metric": metric})
    return root


def write(step, facts):
    step.mkdir(parents=True)
    (step / stepfolder.FACTS).write_text(json.dumps({"custom_metadata": facts}))


def test_complete_steps_in_order(folder):
    for other in ("007", "x", "30.tmp"):
        (folder / other).mkdir()
    (folder / "40").write_text("no folder")
    assert stepfolder.steps(folder) == [5, 10, 20] and stepfolder.latest_step(folder) == 20
    assert stepfolder.damaged(folder) == []
    assert stepfolder.steps(folder / "none") == [] and stepfolder.latest_step(folder / "x") is None


def test_damaged_steps_are_those_without_facts_and_those_set_aside(folder):
    for other in ("30", "4", "10.unreadable", "10.unreadable-2"):
        (folder / other).mkdir()
    assert stepfolder.damaged(folder) == ["4", "10.unreadable", "10.unreadable-2", "30"]
    assert stepfolder.steps(folder) == [5, 10, 20]


def test_the_best_is_the_highest_metric_and_the_newest_of_equals(folder):
    assert stepfolder.best_step(folder) == 10
    write(folder / "15", {"metric": 0.9})
    assert stepfolder.best_step(folder) == 15
    assert stepfolder.best_step(folder / "5") is None
    assert stepfolder.read_facts(folder, 5) == {"step": 5, "metric": 0.5}


@pytest.mark.parametrize(
    ("which", "step"), [("last", "20"), ("best", "10"), ("5", "5")], ids=lambda v: v
)
def test_a_word_names_a_checkpoint(folder, which, step):
    assert stepfolder.find(folder.parent, which) == folder / step  # the run folder
    assert stepfolder.find(folder, which) == folder / step
    assert stepfolder.find(folder / "5", which) == folder / "5"  # already a step


@pytest.mark.parametrize("which", ["7", "newest", "²"])
def test_words_that_name_none(folder, which):
    with pytest.raises(TrainError, match=r"no checkpoint '.*found \[5, 10, 20\]"):
        stepfolder.find(folder, which)


def test_a_damaged_checkpoint_is_not_passed_over(folder, caplog):
    (folder / "30").mkdir()
    for which in ("last", "30"):
        with pytest.raises(TrainError, match="damaged or partly copied") as caught:
            stepfolder.find(folder, which)
        assert caught.value.path == folder / "30"
        assert caught.value.fix.endswith("--checkpoint 20")
    assert stepfolder.find(folder, "best") == folder / "10"
    assert "30 cannot be read and are not compared" in caplog.text


def test_the_newest_that_was_saved_is_missed(folder, caplog):
    assert stepfolder.newest_saved(folder) is None
    stepfolder.saved_path(folder).write_text('{"step": 40}')
    assert stepfolder.newest_saved(folder) == 40
    assert stepfolder.find(folder) == folder / "20"
    assert "step 40 was saved here, but the newest that is left is 20" in caplog.text
    assert stepfolder.saved_path(folder / "5") is None


@pytest.mark.parametrize("content", ["[]", '{"step": "4"}', "{", "{}"])
def test_a_damaged_note_is_named(folder, content):
    stepfolder.saved_path(folder).write_text(content)
    with pytest.raises(TrainError, match=r"saved\.json") as caught:
        stepfolder.newest_saved(folder)
    assert "delete the file" in caught.value.fix


def test_a_run_without_and_one_with_lost_checkpoints(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    stepfolder.require_readable(folder)
    stepfolder.require_readable(tmp_path / "none")
    with pytest.raises(TrainError, match="no checkpoint 'last'; found no complete checkpoint"):
        stepfolder.find(folder)
    stepfolder.saved_path(folder).write_text('{"step": 40}')
    with pytest.raises(TrainError, match="missing; expected the checkpoint of step 40"):
        stepfolder.require_readable(folder)
    (folder / "40").mkdir()
    with pytest.raises(TrainError, match=r"no checkpoint can be read.*found 40"):
        stepfolder.require_readable(folder)
    write(folder / "30", {})
    stepfolder.require_readable(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"custom_metadata": 5}'])
def test_facts_that_are_none(folder, content):
    (folder / "5" / stepfolder.FACTS).write_text(content)
    with pytest.raises(TrainError) as caught:
        stepfolder.read_facts(folder, 5)
    assert str(folder / "5") in str(caught.value) and "copy the checkpoint" in caught.value.fix
