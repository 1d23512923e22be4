"""What the sections of a config accept follows from schema, signatures and docstrings."""

import importlib
import inspect
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from medjax import plugins
from medjax.errors import UsageError
from medjax.models.parts import sockets
from medjax.registry import known, plain
from medjax.runs.settings import accepted, schema
from medjax.runs.settings.accepted import Place


def _fields(name="multitalent", variant="demo"):
    return plain(importlib.import_module(f"configs.{name}").get_config(variant))


@pytest.mark.parametrize(
    ("package", "name"),
    [(package, name) for package in ("models", "losses", "tasks") for name in known(package)],
)
def test_every_argument_has_a_meaning(package, name):
    found = accepted.parameters(package, name)
    made = importlib.import_module(f"medjax.{package}.{name}").make
    assert bool(found) == bool(inspect.signature(made).parameters)
    assert [
        key for key, one in found.items() if len(one.meaning) < 4 and key not in accepted.FROM_DATA
    ] == []


@pytest.mark.parametrize("kind", ["nnunet", "turns", "flips"])
def test_every_setting_of_an_augmentation_has_a_meaning(kind):
    assert [key for key, one in accepted.augmentation(kind).items() if not one.meaning] == []


@pytest.mark.parametrize("name", known("models"))
def test_arguments_without_a_default_come_from_the_data(name):
    found = accepted.parameters("models", name)
    required = {key for key, one in found.items() if one.default is accepted.REQUIRED}
    assert required <= set(accepted.FROM_DATA)
    assert name.startswith("masked_") or "classes" in required


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sum.\n\nArgs:\n  a: one\n    and more.\n  b, c: two.\n\nRaises: no.", "one and more."),
        ("Args:\n  b: two. a: one and more. c: x.", "one and more."),
        ("Attributes:\n  a: one\n    and more.", "one and more."),
    ],
)
def test_meanings_are_read_from_a_docstring(text, expected):
    assert accepted.meanings(text, {"a", "b", "c"})["a"] == expected
    assert accepted.meanings("No arguments.", {"a"}) == {}


def test_a_network_of_a_plan_accepts_what_the_networks_of_plans_take():
    found = accepted.members(Place("model", schema.Model), {"name": "plan"})
    assert {"convs_per_stage", "blocks", "remat"} <= set(found)


def test_a_task_accepts_only_what_is_its_own():
    place = Place("task_options", schema.TaskOptions, "masked_image")
    assert set(accepted.members(place, {})) == {"ratio", "block", "patch_size"}
    assert accepted.members(place._replace(name="supervised"), {}) == {}


def test_every_augmentation_can_exchange_classes():
    place = Place("augment", schema.Augment)
    assert {"lateral", "mirror_axes"} <= set(accepted.members(place, {"on": True}))
    own = {"flip_axes", "swap_axis"}
    assert set(accepted.members(place, {"kind": "flips"})) == {"on", "kind", "lateral"} | own
    assert "lateral" in accepted.members(place, {"kind": "turns"})


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in sockets.KINDS.items() for kind in kinds]
)
def test_every_field_of_a_socket_has_a_meaning(name, kind):
    found = accepted.socket(name, kind)
    assert [key for key, one in found.items() if len(one.meaning) < 4] == []
    assert not set(found) & set(sockets.FACTS)


@pytest.mark.parametrize("name", ["unet", "resenc", "tsfm", "swin_unet", "swin_unetr"])
def test_a_socket_is_a_word_or_a_word_with_fields(name):
    experts = {"kind": "experts", "experts": 3, "expert_of": (0, 1)}
    fields = _fields() | {"model": {"name": name, "mlp": experts, "head": "corpus_softmax"}}
    accepted.check(fields)
    accepted.check(fields | {"model": {"name": name, "mlp": None, "bottleneck": "vit"}})
    with pytest.raises(UsageError, match=r"no field 'expert' for the kind experts.*did you mean"):
        accepted.find(fields, ("model", "mlp", "expert"))
    for words, message in (
        ("vti", r"unknown kind 'vti' of model.bottleneck. Fix: did you mean vit"),
        ({"kind": "vit", "widht": 3}, r"no field 'widht' for the kind vit.*did you mean width"),
        ({"width": 3}, r"config.model.bottleneck has no field 'width' for the kind \(none given\)"),
        (3, r"unusable config.model.bottleneck; found 3; expected a section"),
    ):
        with pytest.raises(UsageError, match=message):
            accepted.check(fields | {"model": {"name": name, "bottleneck": words}})


def test_evaluations_of_installed_packages_are_fields(monkeypatch):
    point = EntryPoint("stability", "elsewhere.stability", plugins.EVALUATIONS)
    monkeypatch.setattr(plugins, "points", lambda group: {"stability": point})
    fields = _fields()
    fields["evaluate"]["stability"] = ("any", 3)
    accepted.check(fields)
    fields["evaluate"]["stabilty"] = 3
    with pytest.raises(UsageError, match=r"no field 'stabilty'.*did you mean stability"):
        accepted.check(fields)


def test_fields_below_a_field_that_takes_a_mapping():
    """A scheme of intensities has fields of its own, which preparation checks."""
    fields = _fields()
    fields["data"]["intensity"] = {"CT": {"scheme": "window", "clip": (-175, 250)}}
    accepted.check(fields)
    assert accepted.find(fields, ("data", "intensity", "CT", "clip")).type is Any


WRONG = [  # path, value, what the message says
    ("train.stepz", 5, r"config.train has no field 'stepz'.*did you mean steps"),
    ("train.pach", (8, 8, 8), r"config.train has no field 'pach'.*did you mean patch"),
    ("data.spacingmm", (1, 1, 1), r"no field 'spacingmm'.*did you mean spacing_mm"),
    ("sampler.forground", 0.9, r"config.sampler has no field 'forground'.*did you mean foreground"),
    ("infer.overlapp", 0.9, r"config.infer has no field 'overlapp'.*did you mean overlap"),
    ("evaluate.montage", 3, r"config.evaluate has no field 'montage'.*did you mean montages"),
    ("optim.lrate", 3, r"config.optim has no field 'lrate'.*did you mean"),
    ("nonsense", 1, r"config has no field 'nonsense'"),
    ("losess", {}, r"config has no field 'losess'.*did you mean losses"),
    ("model.base_feature", 8, r"config.model has no field 'base_feature' for the network unet"),
    ("losses.dice.smoth", 1.0, r"config.losses.dice has no field 'smoth' for the loss dice"),
    ("losses.dicee.weight", 1.0, r"no losses called 'dicee'.*did you mean dice"),
    ("augment.rotaton", 0.1, r"config.augment has no field 'rotaton' for the augmentation nnunet"),
    ("task_options.ratio", 0.5, r"no field 'ratio' for the task supervised"),
    ("task", "supervise", r"no tasks called 'supervise'.*did you mean supervised"),
    ("model.name", "unett", r"no models called 'unett'.*did you mean unet"),
    ("augment.kind", "turn", r"unknown augmentation 'turn'.*did you mean turns"),
    ("data.views.X", {"corpus": "A"}, r"config.data.views.X needs annotated"),
    ("data.subset.X.cont", 3, r"config.data.subset.X has no field 'cont'.*did you mean count"),
    ("optim.phases.a", {"steps": 5, "lrr": 1.0}, r"optim.phases.a has no field 'lrr'.*mean lr"),
    ("infer.postprocess.larges", (), r"no field 'larges'.*did you mean largest"),
    ("train.steps", "5", r"unusable config.train.steps; found '5'; expected a whole number"),
    ("optim.lr", "fast", r"unusable config.optim.lr; found 'fast'; expected a number"),
    ("model.strides", 2, r"unusable config.model.strides; found 2; expected a list of lists"),
    ("data.split", 5, r"unusable config.data.split; found 5; expected a section"),
    ("data.views", ("A",), r"unusable config.data.views"),
    ("losses.dice.pool", 3, r"unusable config.losses.dice.pool; found 3; expected a text"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG, ids=[w[0] for w in WRONG])
def test_a_wrong_field_is_named_with_the_nearest_known_one(path, value, message):
    fields = _fields()
    node, (*above, last) = fields, path.split(".")
    for key in above:
        node = node.setdefault(key, {})
    node[last] = value
    with pytest.raises(UsageError, match=message) as error:
        accepted.check(fields, "mine.py")
    assert str(error.value).startswith("mine.py: ")


def test_several_wrong_fields_are_all_named():
    fields = _fields()
    fields["train"]["stepz"] = fields["infer"]["overlapp"] = 5
    with pytest.raises(UsageError, match=r"'stepz' \(also wrong: config.infer.overlapp\)"):
        accepted.check(fields)


RIGHT = [
    ("model.patch", (8, 8, 8)),  # follows from the data unless a config overrules it
    ("train.keep", 5),
    ("optim.b1", 0.5),
    ("augment.lateral", (("a", "b"),)),
    ("augment.mirror_axes", None),
    ("model.blocks", None),
    ("data.subset.046_BTCV2", {"file": "cases.txt"}),
    ("data.rename", {"A/left kidney": "kidney"}),
    ("infer.postprocess.min_ml", {"*": 1}),
    ("deep_weights", "halving_all"),
    ("train.steps", 5.0),
]


@pytest.mark.parametrize(("path", "value"), RIGHT, ids=[r[0] for r in RIGHT])
def test_a_right_field_is_accepted(path, value):
    fields = _fields("multitalent", "resenc_small")
    node, (*above, last) = fields, path.split(".")
    for key in above:
        node = node[key]
    node[last] = value
    accepted.check(fields)
    found = schema.resolve(fields).to_json()
    for key in (*above, last):
        found = found[key]
    assert plain(found) == value, "a run keeps it"


@pytest.mark.parametrize("name", ["hippocampus", "m4oe", "multitalent", "tsfm"])
def test_every_shipped_config_is_accepted(name):
    module = importlib.import_module(f"configs.{name}")
    for variant in getattr(module, "KNOWN", module.VARIANTS):
        fields = plain(module.get_config(variant))
        accepted.check(fields, variant)
        fields["train"]["stepz"] = 1
        with pytest.raises(UsageError, match="no field 'stepz'") as error:
            accepted.check(fields, variant)
        assert str(error.value).startswith(f"{variant}: ")
