"""What a run takes over from its source beside parameters, and scans that both have."""

import dataclasses
import json

import pytest

from configs import multitalent
from configs.base import base_config
from medjax.corpora.twins import Pair, Twin
from medjax.errors import UsageError
from medjax.labels import Corpus
from medjax.registry import plain
from medjax.runs import folder as runfolder
from medjax.runs import initial, recipe, stages
from medjax.runs.start import source
from tests.support.configs import typed
from tests.support.raw import write_corpus
from tests.support.run import make_run


def _fields(folders, begun="", **init):
    fields = plain(base_config())
    fields["data"] |= {"folders": ",".join(map(str, folders)), "workers": 1}
    fields["data"]["split"]["folds"] = 3
    fields["init"] |= {"source": str(begun), **init}
    return fields


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Two corpora, and a run on the first fold of the first one."""
    root = tmp_path_factory.mktemp("overlap")
    first = write_corpus(root / "Task01_First", n=6)
    second = write_corpus(root / "Task02_Second", n=6)
    described = json.loads((second / "dataset.json").read_text())
    rule = {"corpus": "First", "cases": r"case_(\d+)", "other": r"case_\1"}
    described.setdefault("medjax", {})["twins"] = [rule]
    (second / "dataset.json").write_text(json.dumps(described))
    splits = stages.open_run(_fields([first]), root / "untrained").data.splits
    corpus = Corpus("First", ((1, ("organ",)), (2, ("tumour",))), channels=("MRI",))
    make_run(root / "old", [corpus], data={"folders": str(first)})
    runfolder.write_json(root / "old" / runfolder.SPLITS, splits)
    return root, first, second


def test_scans_of_the_source_are_found_by_rule_and_by_name(begun, tmp_path):
    root, first, second = begun
    learned = runfolder.read_json(root / "old", runfolder.SPLITS)[0]["train"]
    run = stages.open_run(_fields([second], root / "old"), tmp_path / "rule")
    pairs = source.shared(run.config, run.data, run.workdir)
    assert [pair.first for pair in pairs] == sorted(learned) and len(learned) == 4
    assert {pair.second for pair in pairs} == {n.replace("First", "Second") for n in learned}
    same = stages.open_run(_fields([first], root / "old"), tmp_path / "name")
    assert {p.why for p in source.shared(same.config, same.data, same.workdir)} == {"the same case"}
    kept = runfolder.read_json(same.workdir, source.SHARED)
    assert kept["source"] == str(root / "old") and len(kept["pairs"]) == 4
    free = stages.open_run(_fields([second]), tmp_path / "free")
    assert source.shared(free.config, free.data, free.workdir) == ()


def test_they_are_said_refused_or_left_out(begun, tmp_path, capsys):
    root, first, _ = begun
    # the second fold of the same split holds out two cases that the first one trained on
    other = _fields([first], root / "old")
    other["data"]["split"]["fold"] = 1
    run = stages.open_run(other, tmp_path / "said")
    text = capsys.readouterr().out
    assert "LEAK: 2 of 2 held-out cases were trained on by" in text
    assert len(run.data.side("First", "val")) == 2
    with pytest.raises(UsageError, match=r"2 of 2 held-out.*init\.twins=leave_out"):
        other["init"]["twins"] = "refuse"
        stages.open_run(other, tmp_path / "refused")
    other["init"]["twins"] = "leave_out"
    run = stages.open_run(other, tmp_path / "left")
    assert ": left out" in capsys.readouterr().out
    assert run.data.side("First", "val") == [] and len(run.data.side("First", "train")) == 4
    splits = runfolder.read_json(run.workdir, runfolder.SPLITS)
    assert [len(split["val"]) for split in splits] == [2, 0, 0]
    with pytest.raises(UsageError, match="did you mean report"):
        other["init"]["twins"] = "repot"
        stages.open_run(other, tmp_path / "typo")


def test_a_started_run_keeps_what_it_found(begun, tmp_path, monkeypatch):
    root, first, _ = begun
    run = stages.open_run(_fields([first], root / "old"), tmp_path / "run")
    monkeypatch.setattr(source.stepfolder, "latest_step", lambda folder: 1)
    moved = dataclasses.replace(
        run.config, init=dataclasses.replace(run.config.init, source="/nowhere")
    )
    assert len(source.shared(moved, run.data, run.workdir)) == 4
    assert source.shared(moved, run.data, tmp_path) == ()


def test_declared_corpora_speak_by_their_public_names():
    """Data set 9 of MultiTalent is BTCV_TCIA: its rule names the scans of BTCV."""
    config = typed(
        {
            "data": {
                "declared": {
                    "046_BTCV2": {
                        "source": "BTCV_TCIA",
                        "modality": "CT",
                        "channels": ("CT",),
                        "labels": {"1": ("spleen",)},
                        "twins": ({"corpus": "BTCV", "cases": r"(img\d{4})", "other": r"\1"},),
                    }
                }
            }
        }
    )
    assert source._public(config, "046_BTCV2") == "BTCV_TCIA"
    assert source._rules(config, "046_BTCV2") == (Twin("BTCV", r"(img\d{4})", r"\1"),)
    assert source._public(config, "other") == "other" and source._rules(config, "other") == ()


def test_ct_is_normalised_as_the_source_was_trained(tmp_path):
    """MultiTalent 3.9: patch, spacing and normalisation of the source plan."""
    old = make_run(tmp_path / "old")
    known = runfolder.read_plan(old).intensity_of("CT")
    raw = write_corpus(tmp_path / "Task01_Next", n=4, channels=("CT",))
    found = {}
    for word in ("", "source"):
        fields = _fields([raw], old, intensity=word)
        fields["data"]["spacing_mm"] = (1.0, 1.0, 1.0)
        fields["data"]["split"]["folds"] = 2
        run = stages.open_run(fields, tmp_path / f"run_{word}")
        stages.prepare_stage(run)
        found[word] = runfolder.read_plan(run.workdir).intensity_of("CT")
    assert found["source"] == known != found[""]
    assert source.intensity(run.config, ["MRI"], run.workdir) == {}
    wrong = _fields([raw], old, intensity="target")
    with pytest.raises(UsageError, match=r"config\.init\.intensity 'target'"):
        stages.open_run(wrong, tmp_path / "wrong")


def test_the_topology_is_the_source_s_or_its_own(tmp_path):
    old = make_run(tmp_path / "old")
    fields = _fields([], old)
    fields["model"] = {"name": "unet"}
    found = {
        word: initial.with_topology(
            typed(fields | {"init": fields["init"] | {"topology": word}}), tmp_path / "new"
        ).model.options.get("strides")
        for word in initial.TOPOLOGIES
    }
    assert found == {"source": ((1, 1, 1), (2, 2, 2)), "own": None}
    with pytest.raises(UsageError, match=r"config\.init\.topology 'mine'"):
        config = typed(fields | {"init": fields["init"] | {"topology": "mine"}})
        initial.with_topology(config, tmp_path / "new")


@pytest.mark.parametrize("variant", ["unet_softmax", "unet_finetune"])
def test_a_run_that_an_earlier_version_began_can_go_on(variant):
    """Its config names neither the pool of the Dice nor where the intensity comes from."""
    old = plain(multitalent.get_config(variant))
    del old["losses"]["softmax_dice"]["pool"]
    old["init"].pop("intensity", None)
    new = plain(multitalent.get_config(variant))
    if variant == "unet_finetune":  # the paper's loss since; docs/training.md has these flags
        assert recipe.fields(typed(new)) != recipe.fields(typed(old))
        new["losses"]["softmax_dice"]["pool"], new["init"]["intensity"] = "sample", ""
    assert recipe.fields(typed(new)) == recipe.fields(typed(old))


def test_pairs_are_kept_as_text():
    config = typed({"init": {"source": "runs/old"}})
    assert source.to_json(config, [Pair("a/1", "b/2", "why")]) == {
        "source": "runs/old",
        "pairs": [["a/1", "b/2", "why"]],
    }
