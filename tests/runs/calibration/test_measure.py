"""Temperatures of a finished run: chosen on its validation cases, kept in its folder, used."""

import dataclasses
import json

import numpy as np
import pytest

from medjax import cli
from medjax.corpora.sources import scan_corpus
from medjax.errors import UsageError
from medjax.infer.owned import mark
from medjax.labels import Corpus, merge
from medjax.runs import folder as runfolder
from medjax.runs import stages, temperatures
from medjax.runs.calibration import measure
from medjax.runs.calibration.measure import Voxels
from medjax.runs.trained import load_predictor, read_model
from tests.support import tiny
from tests.support.raw import write_corpus
from tests.support.run import make_run

BOTH = Corpus("Both", ((1, ("organ",)), (2, ("organ", "tumour"))), channels=("CT",))
PART = Corpus("Part", ((1, ("organ",)),), channels=("CT",))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of random parameters on one corpus of four scans, two of them held out."""
    root = tmp_path_factory.mktemp("calibrated")
    raw = write_corpus(root / "Task01_Both", n=4, shape=(10, 12, 11))
    corpus, cases, _ = scan_corpus(raw)
    made = make_run(root / "run", [corpus], data={"folders": str(raw)})
    names = [f"{corpus.store}/{case.name}" for case in cases]
    runfolder.write_json(made / runfolder.SPLITS, [{"train": names[:2], "val": names[2:]}])
    return made


def drawn(position, classes, stretched, seed, n=40_000):
    """Voxels that are foreground of one class as often as sigmoid(x), of which the network says
    sigmoid(stretched * x).
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1.5, (n, classes))
    ids = (rng.random(n) < 1 / (1 + np.exp(-x[:, position]))).astype(int)
    return Voxels((1 / (1 + np.exp(-x * stretched))).astype(np.float32), ids, np.ones(n))


def test_each_class_gets_its_temperature_over_the_corpora_that_annotate_it():
    more = Corpus("More", ((1, ("organ",)),), channels=("CT",))
    space = merge([PART, Corpus("Other", ((1, ("spleen",)),), channels=("CT",)), more])
    found = {
        "Part": drawn(0, 2, 2.0, 0),
        "Other": drawn(1, 2, 0.5, 1),
        "More": drawn(0, 2, 2.0, 2),
    }
    document = measure.chosen(space, found, competes=False)
    assert document["temperatures"]["organ"] == pytest.approx(2.0, rel=0.06)
    assert document["temperatures"]["spleen"] == pytest.approx(0.5, rel=0.06)
    assert {c: list(cells) for c, cells in document["classes"].items()} == {
        "Part": ["organ"],
        "Other": ["spleen"],
        "More": ["organ"],
    }
    assert document["kept"] == [] and document["voxels"] == 120_000
    cell = document["classes"]["Part"]["organ"]
    for score in measure.SCORES:
        assert cell["after"][score] < cell["before"][score]
    assert cell["after"]["ECE"] < 0.01 < cell["before"]["ECE"]


def test_a_softmax_has_one_temperature_and_the_last_class_of_a_voxel():
    space = merge([BOTH])
    rng = np.random.default_rng(3)
    x = rng.normal(0, 2, (30_000, 3))
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    drawn = (rng.random(len(x))[:, None] > np.cumsum(p, -1)).sum(-1)  # 0, organ, tumour
    said = np.exp(3 * x) / np.exp(3 * x).sum(-1, keepdims=True)
    columns = [1 + ("organ", "tumour").index(name) for name in space.classes]
    found = {"Both": Voxels(said[:, columns].astype(np.float32), drawn, np.ones(len(x)))}
    document = measure.chosen(space, found, competes=True)
    assert set(document["temperatures"]) == {"organ", "tumour"}
    assert document["temperatures"]["organ"] == document["temperatures"]["tumour"]
    assert document["temperatures"]["organ"] == pytest.approx(3, rel=0.06)
    organ = document["classes"]["Both"]["organ"]
    assert organ["foreground"] == pytest.approx((drawn == 1).mean())
    assert organ["after"]["ECE"] < organ["before"]["ECE"]


def test_a_class_that_is_not_there_keeps_its_probabilities():
    space = merge([PART])
    one = Voxels(np.full((10, 1), 0.2, np.float32), np.zeros(10, int), np.ones(10))
    document = measure.chosen(space, {"Part": one}, competes=False)
    assert document["temperatures"] == {"organ": 1.0} and document["kept"] == ["organ"]
    before = document["classes"]["Part"]["organ"]["before"]
    assert before["ECE"] == pytest.approx(0.2) and before["Brier"] == pytest.approx(0.04)
    text = measure.report(document | {"cases": {"Part": ["a"]}, "failed": []})
    assert "1.000 (kept)" in text and "10 voxels of 1 validation cases" in text


def test_calibrate_predict_and_refuse(run, tmp_path, capsys):
    """The verb writes what calibrated conflicts read; other parameters are refused."""
    with pytest.raises(UsageError, match=r"calibrated conflicts need a calibration.json.*medjax "):
        load_predictor(run, conflicts="calibrated")
    assert cli.main(["calibrate", str(run), "--voxels", "300"]) == 0
    said = capsys.readouterr().out
    assert "ECE before, after" in said and "calibration.json" in said
    document = json.loads((run / temperatures.FILE).read_text())
    assert document["voxels"] == 600 and len(document["cases"]) == 1
    for cells in document["classes"].values():
        for cell in cells.values():
            assert cell["after"]["NLL"] <= cell["before"]["NLL"] + 1e-12
    found = load_predictor(run, conflicts="calibrated")
    assert found.temperatures == document["temperatures"]
    settings = found.settings()
    assert settings["conflicts"] == "calibrated" and settings["weights"] == document["weights"]
    assert "temperatures" not in load_predictor(run).settings()
    with pytest.raises(UsageError, match=r"chosen for one model.*argmax"):
        load_predictor([run, run], conflicts="calibrated")
    with pytest.raises(UsageError, match=r"chosen for other parameters"):
        temperatures.read(run, "xxh3:0")
    measured = []
    measure.ensure(run, "calibrated", "cpu", measured.append)
    measure.ensure(run, "argmax", "cpu", measured.append)
    assert measured == []  # nothing to do
    # a file of somebody else is not overwritten
    (run / temperatures.FILE).write_text("{}")
    assert cli.main(["calibrate", str(run), "--voxels", "300"]) == 2
    assert (run / temperatures.FILE).read_text() == "{}"
    (run / temperatures.FILE).unlink()


@pytest.mark.parametrize("wrong", [{"organ": 0}, {"organ": "hot"}, {"organ": True}, [1.0]])
def test_unusable_temperatures_are_refused(tmp_path, wrong):
    text = json.dumps(mark(temperatures.KIND) | {"temperatures": wrong})
    (tmp_path / temperatures.FILE).write_text(text)
    with pytest.raises(UsageError, match=r"unusable calibration.json.*medjax calibrate"):
        temperatures.read(tmp_path)


def test_an_archive_and_a_run_without_validation_cases_are_refused(tmp_path):
    archive = tmp_path / "x.medjax"
    archive.write_bytes(b"")
    with pytest.raises(UsageError, match=r"archive, which holds none.*run folder"):
        temperatures.read(archive)
    bare = make_run(tmp_path / "run")
    with pytest.raises(UsageError, match="no validation cases"):
        measure.calibrate(bare)
    with pytest.raises(UsageError, match="--voxels must be at least 2"):
        measure.calibrate(bare, voxels=1)
    assert not (bare / temperatures.FILE).exists()
    # parameters of a training in progress: its own channels are scored
    one = read_model(bare)
    current = dataclasses.replace(one, current={})
    assert temperatures.rule([current], "calibrated", "") == {"conflicts": "calibrated"}


@pytest.mark.slow
def test_a_run_trained_with_calibrated_conflicts_is_calibrated_and_evaluated(tmp_path):
    fields = tiny.fields(tiny.write(tmp_path / "raw"))
    fields["infer"] |= {"conflicts": "calibrated"}
    fields["evaluate"] |= {"surface": False, "montages": 0, "during": 2}
    opened = stages.open_run(fields, tmp_path / "run")
    stages.train(opened)
    assert stages.evaluate(opened) == 0
    document = json.loads((tmp_path / "run" / temperatures.FILE).read_text())
    assert set(document["temperatures"]) == {"organ", "tumour"}
    summary = json.loads((tmp_path / "run" / "evaluation" / "summary.json").read_text())
    assert {found["rule"] for found in summary["conflicts"].values()} == {"calibrated"}
    side = next((tmp_path / "run" / "predictions" / "Both").glob("*_*.json"))
    assert json.loads(side.read_text())["settings"]["temperatures"] == document["temperatures"]
