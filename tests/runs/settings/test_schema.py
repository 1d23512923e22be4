"""One schema knows every field: base config, old run folders and the code that reads them agree."""

import dataclasses
import importlib
import inspect
import json
from pathlib import Path

import pytest

from configs.base import base_config
from medjax.errors import UsageError
from medjax.registry import plain
from medjax.runs.settings import schema
from medjax.runs.settings.section import REQUIRED, Section, fields_of, is_section
from medjax.train import loop, optim, phases
from tests.support.old_run import extract

VARIANTS = [
    (name, variant)
    for name in ("hippocampus", "m4oe", "multitalent", "tsfm")
    for module in [importlib.import_module(f"configs.{name}")]
    for variant in getattr(module, "KNOWN", module.VARIANTS)
]


def _fields(name, variant):
    return plain(importlib.import_module(f"configs.{name}").get_config(variant))


def _sections(kind=schema.Config):
    """Every class of sections below one."""
    yield kind
    for one in fields_of(kind).values():
        for inner in (one.type, *getattr(one.type, "__args__", ())):
            if is_section(inner):
                yield from _sections(inner)


def test_the_base_config_is_the_schema():
    assert json.dumps(plain(base_config())) == json.dumps(schema.listed())


@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=lambda v: v)
def test_a_config_is_the_same_after_it_was_typed(name, variant):
    """Also the order of its fields: config.json and hashes of recipes do not change."""
    fields = _fields(name, variant)
    assert json.dumps(schema.resolve(fields).to_json()) == json.dumps(fields)


def test_the_config_of_an_earlier_run_reads_with_its_values(tmp_path):
    extract(tmp_path, "run/config.json")
    text = (tmp_path / "run" / "config.json").read_text()
    config, fields = schema.resolve(plain(json.loads(text))), json.loads(text)
    found = json.loads(json.dumps(config.to_json()))
    later = json.loads(json.dumps(schema.listed()))  # fields that came later have their defaults
    for section in ("data", "sampler", "optim", "train", "infer", "evaluate", "init"):
        assert found[section] == later[section] | fields[section]
        assert list(found[section])[: len(fields[section])] == list(fields[section])
    assert found["model"] == fields["model"] and found["losses"] == fields["losses"]
    assert list(found) == list(fields)
    assert config.train.steps == 6 and config.train.patch == (8, 8, 8) and config.train.keep == 2
    assert config.model.name == "unet" and config.model.options["features"] == (2, 3)
    assert config.losses["dice"].weight == 1.0 and config.data.split.folds == 4


def test_missing_fields_have_their_defaults_and_unknown_ones_are_left_out():
    config = schema.resolve({"train": {"steps": 3, "brandnew": 1}, "former": {}})
    assert config.train.steps == 3 and config.train.batch == 2
    assert config.to_json() == schema.listed() | {"train": schema.listed()["train"] | {"steps": 3}}


def test_fields_that_are_not_listed_are_written_where_they_are_given():
    assert "keep" not in schema.listed()["train"] and "b1" not in schema.listed()["optim"]
    config = schema.resolve({"train": {"keep": 2}, "optim": {"b1": 0.9}})  # the defaults
    assert config.to_json()["train"]["keep"] == 2 and config.to_json()["optim"]["b1"] == 0.9
    changed = dataclasses.replace(config, train=dataclasses.replace(schema.Train(), keep=5))
    assert changed.to_json()["train"]["keep"] == 5


def test_what_was_given_is_written_again_without_defaults():
    given = {"train": {"steps": 3, "patch": (4, 4, 4)}, "losses": {"dice": {"pool": True}}}
    config = schema.resolve(given)
    assert json.dumps(config.as_given()) == json.dumps(given)
    train = dataclasses.replace(config.train, batch=5, steps=4)
    changed = dataclasses.replace(config, train=train, seed=2).as_given()
    expected = given | {"train": {"steps": 4, "patch": (4, 4, 4), "batch": 5}, "seed": 2}
    assert json.dumps(changed) == json.dumps(expected)
    assert schema.Config().as_given() == {}


def test_only_new_configs_may_have_no_unknown_field():
    fields = {"train": {"brandnew": 1}, "data": {"views": {"A": {"x": 1}}}, "model": {"any": 1}}
    assert schema.unknown(fields) == ["train.brandnew", "data.views.A.x"]
    with pytest.raises(UsageError, match=r"config\.train has no field 'brandnew'"):
        schema.strict(fields)
    assert schema.strict({"model": {"any": 1}}).model.options == {"any": 1}


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        schema.Config().train.steps = 5


@pytest.mark.parametrize("section", dict.fromkeys(_sections()), ids=lambda s: s.__name__)
def test_every_field_has_a_meaning_and_every_section_a_description(section):
    assert issubclass(section, Section) and inspect.getdoc(section)
    assert [one.name for one in fields_of(section).values() if len(one.meaning) < 6] == []


def test_the_optimizer_takes_what_the_schema_lists_with_the_same_defaults():
    signature = inspect.signature(optim.make).parameters
    known = fields_of(schema.Optimizer)
    assert set(known) == set(signature) - {"steps", "restarts"}
    assert set(fields_of(schema.Optim)) == set(known) | {"phases"}
    assert set(fields_of(schema.Phase)) == set(phases.OWN)
    for name, one in known.items():
        if not one.listed:
            assert one.default == signature[name].default, name


def test_the_loop_takes_what_the_schema_lists():
    own = {f.name: f.default for f in dataclasses.fields(loop.Settings)}
    known = fields_of(schema.Train)
    # set by the run: where it writes, its seed, and `evaluate.during`
    assert set(own) - set(known) == {"seed", "tensorboard", "measure_every"}
    assert set(known) - set(own) == {
        *("batch", "patch", "accumulate", "precision", "conv_layout", "reduce"),
        *("more", "continued"),  # decided before the loop
    }
    for name in ("keep", "print_seconds", "picture"):
        assert known[name].default == own[name] and not known[name].listed


def test_required_fields_are_those_that_a_run_reads_without_a_default():
    required = {
        f"{section.__name__}.{one.name}"
        for section in dict.fromkeys(_sections())
        for one in fields_of(section).values()
        if one.default is REQUIRED
    }
    entries = {"Declared.modality", "Declared.channels", "Declared.labels"}
    assert required == entries | {"View.corpus", "View.annotated", "Phase.steps"}


def test_the_base_file_states_no_field_twice(repository):
    """A field of `base_config` beside the schema would be without type and meaning."""
    text = (Path(repository) / "configs" / "base.py").read_text()
    body = text[text.index("def base_config") : text.index("def _ordered")]
    assert "c." not in body.split('"""')[2]
