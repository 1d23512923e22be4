"""`medjax prompted` and `evaluate.prompted` with a small run: files, page, other data, errors."""

import argparse
import dataclasses
import json

import pytest

from medjax import cli
from medjax.commands import prompted
from medjax.errors import UsageError
from medjax.report import prediction
from medjax.runs import evaluations, stages
from medjax.runs import folder as runfolder
from medjax.runs.settings import schema
from medjax.runs.settings.use import Evaluate, Prompted
from tests.support import toy_prompted
from tests.support.raw import write_corpus
from tests.support.run import make_run

ROWS = ("text", "box", "box@0.2", "clicks")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from medjax.corpora.sources import read_corpus

    patch = pytest.MonkeyPatch()
    toy_prompted.installed(patch)
    folder = tmp_path_factory.mktemp("prompted")
    data = write_corpus(folder / "Task01_Body", 3, (9, 12, 10), channels=("CT",))
    model = {"name": "toy_prompted", "queries": 4, "width": 4}
    corpus, cases = read_corpus(data)
    make_run(folder / "run", [corpus], model=model, data={"folders": str(data)})
    names = [f"{corpus.name}/{case.name}" for case in cases]
    splits = [{"train": names[:1], "val": names[1:]}]
    runfolder.write_json(folder / "run" / runfolder.SPLITS, splits)
    yield folder
    patch.undo()


def call(run, out, *flags):
    words = ["prompted", "-m", str(run / "run"), "-o", str(out), "--draws", "2", "--clicks", "1"]
    return cli.main([*words, "--quiet", *flags])


def with_splits(data, run):
    """A training writes the splits that it draws; here they are given."""
    path = str(run / "run" / runfolder.SPLITS)
    return dataclasses.replace(data, split=dataclasses.replace(data.split, file=path))


def numbers(out):
    return json.loads((out / "prompted.json").read_text())


def test_held_out_scans_are_asked(run, tmp_path):
    assert call(run, tmp_path, "--rows", *ROWS) == 0
    found = numbers(tmp_path)
    assert found["scans"] == 2 and found["programs"] == 2
    assert {one["case"] for one in found["cases"]} == {"case_001", "case_002"}
    assert list(found["rows"]) == ["text", "box", "box@0.2"] and list(found["clicks"]) == ["clicks"]
    assert found["settings"]["prompted"]["draws"] == 2
    assert (tmp_path / "prompted.md").is_file() and (tmp_path / "plots/prompted.svg").is_file()
    code = call(run, tmp_path / "b", "--rows", "box", "--cases", "1", "--compare", str(tmp_path))
    assert code == 0
    assert numbers(tmp_path / "b")["compared"]["rows"]["box"]["mean"] == 0


def test_other_data_may_have_classes_that_the_network_does_not_know(run, tmp_path):
    other = write_corpus(
        tmp_path / "Task02_Heart", 2, (9, 12, 10), channels=("CT",), labels={"heart": 1, "organ": 2}
    )
    out = tmp_path / "out"
    assert call(run, out, "--data", str(other), "--rows", "text", "box", "--cases", "1") == 0
    found = numbers(out)
    assert found["without_text"] == {"Heart": ["heart"]}
    by_class = {one["class"]: set(one["dice"]) for one in found["cases"]}
    assert by_class == {"heart": {"box"}, "organ": {"text", "box"}}


def test_the_flags_are_the_settings_of_a_config():
    parser = argparse.ArgumentParser()
    prompted.add(parser.add_subparsers())
    found = vars(parser.parse_args(["prompted", "-m", "x"]))
    given = dataclasses.asdict(Prompted())
    names = ("rows", "draws", "cases", "clicks", "largest", "classes", "seed")
    assert {name: found[name] for name in names} == {name: given[name] for name in names}


def test_what_cannot_be_asked_is_an_error_with_a_fix(run, tmp_path, capsys):
    assert call(run, tmp_path, "--rows", "bax") == 2
    assert "unknown row 'bax'" in capsys.readouterr().err
    assert call(run, tmp_path, "--rows", "box", "--compare", str(tmp_path)) == 2
    assert "no prompted evaluation here" in capsys.readouterr().err
    (tmp_path / "prompted.md").write_text("mine")
    assert call(run, tmp_path, "--rows", "box") == 2
    assert "did not write" in capsys.readouterr().err


def test_a_field_of_the_config_makes_it_a_part_of_the_evaluation(run, tmp_path):
    fields = schema.strict(runfolder.read_fields(run / "run"))
    fields = dataclasses.replace(fields, data=with_splits(fields.data, run))
    assert not fields.evaluate.prompted.on  # what earlier runs read
    assert "prompted" not in fields.evaluate.to_json()
    with pytest.raises(UsageError, match="unknown row"):
        evaluations.chosen(Evaluate(prompted=Prompted(on=True, rows=("bax",))))
    data = stages.corpora.open_data(fields.data, run / "run")
    asked = Prompted(on=True, rows=("text", "box"), cases=1)
    settings = dataclasses.replace(fields.evaluate, surface=False, montages=0, prompted=asked)
    opened = stages.Run(dataclasses.replace(fields, evaluate=settings), run / "run", data)
    assert stages.evaluate(opened) == 0
    folder = run / "run" / "evaluation"
    assert list(numbers(folder)["rows"]) == ["text", "box"]
    page = (folder / "report.html").read_text()
    assert 'id="prompted"' in page and "a tight box: Dice" in page
    (folder / "prompted.json").unlink()
    prediction.report(folder)
    assert 'id="prompted"' not in (folder / "report.html").read_text()
