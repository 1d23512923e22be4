"""The changes that a run makes to its config, one by one, and configs of other versions."""

import json

import pytest

from configs import multitalent
from configs.base import base_config
from medjax import cli
from medjax.errors import UsageError
from medjax.prepare.plan import Plan
from medjax.prepare.presets import Configuration
from medjax.registry import plain
from medjax.runs import build, config, stages
from medjax.runs import folder as runfolder
from medjax.runs.exchange.export import describe
from medjax.runs.open import open_data
from medjax.runs.trained import read_model
from tests.support import old_run
from tests.support.configs import typed
from tests.support.raw import write_corpus
from tests.support.run import make_run


def test_one_field_changes_and_all_others_stay():
    given = typed(plain(base_config()) | {"model": {"name": "swin_unet", "mlp": {"kind": "dense"}}})
    for path, value in {
        "seed": 7,
        "train.patch": (4, 4),
        "data.split.file": "a.json",
        "model.mlp.experts": 3,
        "evaluate.calibrated": "ece",
        "data.tasks": {"A": "liver"},
    }.items():
        *outer, last = path.split(".")
        node = expected = given.to_json()
        for key in outer:
            node = node[key]
        node[last] = value
        changed = config.with_field(given, path, value)
        assert changed.to_json() == expected != given.to_json(), path
        assert type(changed.data.split) is type(given.data.split)
    split = config.with_field(given, "data.split", {"folds": 3}).data.split
    assert split.folds == 3 and split.fold == 0  # a section stays a section
    with pytest.raises(UsageError, match=r"no field 'stepps'.*did you mean steps"):
        config.with_field(given, "train.stepps", 3)
    with pytest.raises(UsageError, match="no section of a config"):
        config.with_field(given, "train.steps.x", 3)


def test_a_fold_has_its_number_and_the_store_of_all_folds(tmp_path):
    given = typed({"data": {"split": {"folds": 3}}})
    fold = config.with_fold(given, 2, tmp_path / "store")
    assert (fold.data.split.fold, fold.data.store) == (2, str(tmp_path / "store"))
    named = config.with_field(given, "data.store", "/somewhere")
    assert config.with_fold(named, 1, tmp_path / "store").data.store == "/somewhere"
    assert given.data.split.fold == 0 and given.data.store == ""


def test_the_config_of_a_network_that_contains_an_adapter():
    given = typed({"adapters": {"rules": ((".*", 4),), "alpha": 2.0}, "seed": 1})
    found = config.with_merged_adapter(given, "a.safetensors 1f")
    assert found.as_given() == {
        "adapters": {"rules": (), "merged": ("a.safetensors 1f",)},
        "seed": 1,
    }


def test_a_config_of_another_version_is_read_without_its_unknown_fields(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    fields = json.loads((run / runfolder.CONFIG).read_text())
    fields["train"]["former"], fields["later"] = 3, {"a": 1}
    del fields["optim"]["ema"]
    runfolder.write_json(run / runfolder.CONFIG, fields)
    found = [read_model(run).config, runfolder.read_config(run)]
    told = capsys.readouterr().err
    assert told.count("train.former, later") == told.count("\n") == 1 and str(run) in told
    assert found[0] == found[1] and found[0].optim.ema == 0.0
    assert "ema" not in found[0].optim.as_given() and "former" not in found[0].to_json()["train"]
    with pytest.raises(UsageError, match=r"config\.train has no field 'former'"):
        stages.open_run(plain(fields), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_documents_of_an_earlier_run_are_passed_on_as_they_are(tmp_path):
    run = old_run.unpack(tmp_path) / "run"
    written = json.loads((run / runfolder.CONFIG).read_text())
    passed_on = describe(read_model(run), {})["config"]
    for part in ("folders", "root", "store"):
        written["data"][part] = ""
    assert json.dumps(passed_on) == json.dumps(written)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": 5}, "unusable config.optim; found 5; expected a section"),
        ({"losses": ["dice"]}, "unusable config.losses"),
        ({"data": {"views": {"A": {"corpus": "B"}}}}, "config.data.views.A needs annotated"),
    ],
)
def test_what_is_no_section_is_refused_and_the_file_named(tmp_path, change, message):
    run = make_run(tmp_path / "run")
    fields = json.loads((run / runfolder.CONFIG).read_text()) | change
    runfolder.write_json(run / runfolder.CONFIG, fields)
    with pytest.raises(UsageError) as caught:
        read_model(run)
    assert message in str(caught.value) and "config.json" in str(caught.value)


def test_slices_across_the_left_right_axis_exchange_no_sides(monkeypatch):
    """Of a plan that turns x to the front, slices are sagittal: a mirror shows the same side."""
    sizes = ((1.0, 1.0), (40, 40), (32, 32), 2, "unet", ((1, 1),), ((3, 3),), (8,), (2,), ())
    chosen = Configuration("2d", "default", 8.0, *sizes)
    fields = {
        "data": {"plan": "plan.json", "configuration": "2d"},
        "augment": {"on": True, "lateral": "auto"},
    }
    for order, lateral, options in (
        ((2, 0, 1), (), {}),
        ((0, 2, 1), "auto", {"swap_axis": 0}),
        ((0, 1, 2), "auto", {}),
    ):
        plan = Plan({}, {}, transpose=order, configurations={"2d": chosen})
        monkeypatch.setattr(config, "load", lambda given, plan=plan: plan)
        augment = config.with_plan(typed(fields)).augment
        assert augment.lateral == lateral and augment.options == options, order


def test_a_plan_for_a_budget_decides_without_being_asked_again(tmp_path):
    raw = write_corpus(tmp_path / "Task01_Thick", n=3, shape=(8, 30, 30), spacing_mm=(5, 0.8, 0.8))
    path = tmp_path / "plan.json"
    words = ["plan", str(raw), "--budget", "cpu", "--steps", "7", "-o", str(path)]
    assert cli.main(words) == 0
    given = plain(multitalent.get_config("unet_small"))
    given["data"] |= {"folders": str(raw), "plan": str(path)}
    given["data"]["split"]["folds"] = 3
    planned = json.loads(path.read_text())["configurations"]["cpu"]
    found = config.with_plan(typed(given))
    assert (found.train.steps, found.train.batch) == (7, planned["batch"])
    assert found.train.patch == tuple(planned["patch"])
    options = found.model.options
    assert options["features"] == tuple(planned["features"]) and options["head_bias"] is True
    assert "base_features" not in options
    space = open_data(found.data, tmp_path).space
    build.make_network(found, space, tuple(planned["spacing_mm"]))
    other = config.with_plan(typed(given | {"model": {"name": "resenc", "base_features": 8}}))
    assert other.model.options == {"base_features": 8}, "another network keeps its width"
    assert cli.main([*words[:-2], "-o", str(tmp_path / "x"), "--memory-gib", "4"]) == 2
    assert cli.main(["plan", str(raw), "--steps", "7", "-o", str(tmp_path / "x")]) == 2


def test_a_coarser_grid_scales_the_spacing_of_every_corpus():
    sizes = ((4.0, 2.0, 2.0), (20, 40, 40), (8, 16, 16), 2, "unet", (), (), (8,), (2,), ())
    chosen = Configuration("cpu", "cpu", 1.0, *sizes)
    apart = {"A": (1.0, 1.0, 1.0), "B": (3.0, 1.0, 1.0)}  # mean 2 x 1 x 1
    assert Plan(apart, {}, configurations={"cpu": chosen}).at("cpu").spacing_mm == {
        "A": (2.0, 2.0, 2.0),
        "B": (6.0, 2.0, 2.0),
    }
    together = {"A": (2.0, 1.0, 1.0), "B": (2.0, 1.0, 1.0)}
    found = Plan(together, {}, configurations={"cpu": chosen}).at("cpu").spacing_mm
    assert set(found.values()) == {chosen.spacing_mm}
