"""Entry points: what the checkout offers is found without a new installation, what other packages
offer is added, and one that cannot be loaded stops nothing.
"""

import tomllib
from importlib.metadata import EntryPoint

import pytest

from configs.base import base_config
from medjax import cli, commands, plugins
from medjax.errors import UsageError
from medjax.registry import plain
from medjax.runs import evaluations
from medjax.runs.settings import accepted, schema
from medjax.runs.settings.section import fields_of
from medjax.runs.settings.use import Evaluate
from medjax_verbs import resampled
from tests.support.configs import typed

VERB = """
def add(verbs):
    p = verbs.add_parser("shout", help="prints")
    p.add_argument("word")
    p.set_defaults(run=lambda args: print(args.word.upper()) or 0)
"""


@pytest.fixture
def installed(monkeypatch):
    """() -> what other packages offer, to be filled: group -> name -> value."""
    offered = {}

    def found(group):
        return [EntryPoint(n, v, group) for n, v in offered.get(group, {}).items()]

    monkeypatch.setattr(plugins, "entry_points", found)
    return offered


def test_the_checkouts_verbs_need_no_new_installation(installed, repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    for group, least in ((plugins.VERBS, 3), (plugins.EVALUATIONS, 1), (plugins.TRACKERS, 2)):
        offered = project["entry-points"][group]
        assert len(offered) >= least
        assert {n: point.value for n, point in plugins.points(group).items()} == offered
    names = [module.__name__ for module in commands.modules()]
    assert set(project["entry-points"][plugins.VERBS].values()) < set(names)
    assert names[0] == "medjax.commands.verify"


def test_a_verb_of_another_package(installed, tmp_path, monkeypatch, capsys):
    (tmp_path / "other_package.py").write_text(VERB)
    monkeypatch.syspath_prepend(tmp_path)
    installed[plugins.VERBS] = {"shout": "other_package", "broken": "no_such_module"}
    assert cli.main(["shout", "hello"]) == 0
    said = capsys.readouterr()
    assert said.out == "HELLO\n" and "the verb 'broken' cannot be loaded" in said.err
    installed[plugins.VERBS] = {"predict": "other_package"}
    names = [module.__name__ for module in commands.modules()]
    assert "medjax.commands.predict" in names and "other_package" not in names


def test_an_evaluation_is_checked_before_the_training(installed):
    def given(**values):
        return typed({"evaluate": plain(base_config())["evaluate"] | values}).evaluate

    assert evaluations.chosen(given()) == {}
    assert evaluations.chosen(given(resampled="released")) == {"resampled": (resampled, "released")}
    with pytest.raises(UsageError, match="unknown rule 'relased'"):
        evaluations.chosen(given(resampled="relased"))
    with pytest.raises(UsageError, match="no installed package offers the evaluation 'calibrated'"):
        evaluations.chosen(given(calibrated=True))


def test_an_evaluation_of_another_package_is_a_field(installed):
    fields = plain(base_config())
    fields["evaluate"] |= {"calibrated": "ece"}
    with pytest.raises(UsageError, match="no field 'calibrated'"):
        accepted.check(fields)
    installed[plugins.EVALUATIONS] = {"calibrated": "other_package"}
    accepted.check(fields)
    assert schema.Config.from_fields(fields).to_json()["evaluate"]["calibrated"] == "ece"


def test_the_core_knows_its_own_fields():
    offered = set(plugins.points(plugins.EVALUATIONS))
    assert set(fields_of(Evaluate)) == evaluations.CORE | offered
