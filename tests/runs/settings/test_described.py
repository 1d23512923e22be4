"""The help of a config lists every field that it accepts, with value and meaning."""

import importlib
import re

import pytest

from medjax.registry import known, plain
from medjax.runs.settings import accepted, described, schema
from medjax.runs.settings.accepted import Place
from medjax.runs.settings.section import fields_of, is_section


def _text(name, variant):
    fields = plain(importlib.import_module(f"configs.{name}").get_config(variant))
    return fields, described.text(fields, f"configs/{name}.py:{variant}")


def _flags(text):
    return dict(re.findall(r"^  --config\.([^=]+)=(.*?)(?:  .*)?$", text, re.M))


@pytest.mark.parametrize(
    ("name", "variant"),
    [("tsfm", "h"), ("m4oe", "pretrain"), ("m4oe", "release"), ("multitalent", "unet_finetune")],
)
def test_every_field_is_listed_with_its_value(name, variant):
    fields, text = _text(name, variant)
    flags = _flags(text)
    for section in ("train", "infer", "sampler", "optim", "init", "evaluate", "data"):
        for one in fields_of(getattr(schema, section.capitalize())).values():
            path = f"{section}.{one.name}"
            assert path in flags or any(flag.startswith(f"{path}.") for flag in flags), path
    for one in accepted.members(Place("model", schema.Model), fields["model"]).values():
        if one.name not in accepted.FROM_DATA:
            assert f"model.{one.name}" in flags or not accepted.values.is_writable(one.type)
    assert flags["train.steps"] == str(fields["train"]["steps"])
    assert flags["model.name"] == fields["model"]["name"]
    for loss in fields["losses"]:
        assert float(flags[f"losses.{loss}.weight"]) == fields["losses"][loss]["weight"]


def test_meanings_and_entries_are_shown():
    _, text = _text("tsfm", "h")
    assert re.search(r"--config\.train\.steps=250000 +number of updates", text)
    assert re.search(r'--config\.model\.order=None +"pre" \(norm, act, conv\)', text)
    assert "--config.data.views.NAME.corpus=..." in text
    assert "--config.evaluate.groups.NAME=..." in text
    flat = " ".join(text.split())
    others = [name for name in known("losses") if name not in ("cross_entropy", "dice")]
    assert len(others) > 2 and f"adds a loss: {', '.join(others)}" in flat
    assert "--config.data.declared.MSD_Liver=" in text
    _, text = _text("m4oe", "pretrain")
    assert "--config.task_options.ratio=0.75" in text
    assert "--config.augment.flip_axes=(1,)" in text


def test_lines_stay_short():
    _, text = _text("tsfm", "h")
    long = [line for line in text.splitlines() if len(line) > 130]
    assert long == []


def test_sections_have_their_descriptions():
    _, text = _text("multitalent", "demo")
    for one in fields_of(schema.Config).values():
        if is_section(one.type):
            assert f"\n{one.name}: {one.meaning}\n" in text
