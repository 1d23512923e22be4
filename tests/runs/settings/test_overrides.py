"""Flags that set fields: how they are written, in which order they apply, what is refused."""

from collections.abc import Callable

import pytest

from configs.multitalent import get_config
from medjax.errors import UsageError
from medjax.registry import plain
from medjax.runs.settings import overrides
from medjax.runs.settings.overrides import Override


def _split(*flags):
    fields = plain(get_config("demo"))
    return overrides.split(["medjax", *flags], lambda path: overrides.is_switch(fields, path))


@pytest.mark.parametrize(
    ("flags", "path", "text"),
    [
        (["--config.optim.lr=1"], "optim.lr", "1"),
        (["-config.optim.lr=1"], "optim.lr", "1"),
        (["--config.optim.lr", "1"], "optim.lr", "1"),
        (["--config.data.folders="], "data.folders", ""),
        (["--config.data.folders=a=b"], "data.folders", "a=b"),
        (["--config.evaluate.groups.all of it=a"], "evaluate.groups.all of it", "a"),
        (["--config.data.allow_absent"], "data.allow_absent", None),
        (["--noconfig.data.allow_absent"], "data.allow_absent", "False"),
        (["--config.optim.lr=1", "--config.optim.lr=2"], "optim.lr", "2"),
    ],
)
def test_a_flag_is_written_in_several_ways(flags, path, text):
    rest, found = _split("--mode=dry", *flags, "--workdir=x")
    assert rest == ["medjax", "--mode=dry", "--workdir=x"]
    assert [(one.path, one.text) for one in found] == [(path, text)]


def test_names_that_decide_which_fields_exist_apply_first():
    flags = ["--config.model.blocks=1", "--config.model.name=resenc", "--config.model=unet"]
    _, found = _split("--config.seed=1", *flags)
    assert [one.path for one in found] == ["model", "model.name", "seed", "model.blocks"]


def test_nothing_behind_two_dashes_is_a_flag():
    rest, found = _split("--", "--config.seed=1")
    assert rest == ["medjax", "--", "--config.seed=1"] and found == []


def test_a_flag_without_a_value_is_refused():
    with pytest.raises(UsageError, match=r"--config\.optim\.lr has no value"):
        _split("--config.optim.lr")


def test_a_whole_number_is_a_number_where_the_default_is_one():
    fields = plain(get_config("demo"))
    found = overrides.value_of(fields, Override("losses.dice.weight", "2", ""))
    assert isinstance(found, float) and found == 2.0
    found = overrides.value_of(fields, Override("losses.dice.ranks", "2", ""))
    assert isinstance(found, int)


def test_a_function_cannot_be_given(monkeypatch):
    from medjax.models import unet

    def make(classes: int, *, act: Callable = len):
        """Builds a network."""

    monkeypatch.setattr(unet, "make", make)
    fields = plain(get_config("demo"))
    with pytest.raises(UsageError, match=r"config\.model\.act cannot be set in a config"):
        overrides.value_of(fields, Override("model.act", "x", ""))


def test_several_fields_of_a_section_at_once():
    fields = plain(get_config("demo"))
    found = overrides.value_of(fields, Override("data.split", '{"folds": 3, "fold": 1}', ""))
    assert found == {"file": "", "folds": 3, "fold": 1, "seed": 12345}
    found = overrides.value_of(fields, Override("model", '{"name": "resenc"}', ""))
    assert found == {"name": "resenc"}
    with pytest.raises(UsageError, match=r"config\.data\.split is a section.*folds"):
        overrides.value_of(fields, Override("data.split", "3", ""))


def test_what_a_new_name_does_not_take_is_named():
    before = plain(get_config("resenc"))
    after = before | {"model": before["model"] | {"name": "unet"}}
    with pytest.raises(UsageError, match=r"mine.py: unet does not take .* for resenc: preset"):
        overrides.check_rest(before, after, "model.name", "mine.py")
    after = before | {"model": {"name": "unet", "dtype": "bfloat16"}}
    overrides.check_rest(before, after, "model.name")
