"""The evaluation of a run scores every class from the label map and from its own channel, and says
how many voxels two exclusive classes share.
"""

import json

import numpy as np
import pytest

from medjax.corpora.sources import scan_corpus
from medjax.metrics.counts import count
from medjax.prompts.request import Request
from medjax.runs import test, trained
from medjax.scans import nifti
from tests.support.configs import typed
from tests.support.raw import write_corpus
from tests.support.run import make_run


@pytest.fixture
def held(tmp_path):
    """(run folder, predictor, corpus and cases): random parameters, two exclusive classes."""
    labels = {"left": 1, "right": 2}
    raw = write_corpus(tmp_path / "Task01_Sides", n=2, shape=(9, 10, 11), labels=labels)
    corpus, cases, _ = scan_corpus(raw)
    run = make_run(tmp_path / "run", (corpus,), infer={"conflicts": "argmax"})
    return run, trained.load_predictor(run), {"Sides": (corpus, list(cases))}


def _scored(run, predictor, held):
    settings = typed({"evaluate": {"surface": False, "montages": 0}}).evaluate
    assert test.predict_and_score(predictor, held, run, settings, lambda what: None) == []
    return json.loads((run / "evaluation" / "summary.json").read_text())


def test_a_class_has_the_score_of_its_channel_beside_that_of_the_map(held, capsys):
    run, predictor, given = held
    summary = _scored(run, predictor, given)
    corpus, cases = given["Sides"]
    shares, expected = [], {"left": [], "right": []}
    for case in cases:
        found = predictor.segment(nifti.read(case.images[0]), Request("Sides"))
        label = nifti.read(case.label_files[0], want="label").array
        for value, name in ((1, "left"), (2, "right")):
            expected[name].append(count(label == value, found.masks[name]).dice)
        both = np.count_nonzero(found.masks["left"] & found.masks["right"])
        shares.append((both, np.count_nonzero(found.masks["left"] | found.masks["right"])))
    cells = summary["cells"]["Sides"]
    for name in corpus.classes:
        own = cells[name]["Dice_own_channel"]
        assert own["n"] == 2 and own["mean"] == pytest.approx(np.mean(expected[name]))
    assert any(cells[n]["Dice"]["mean"] != cells[n]["Dice_own_channel"]["mean"] for n in cells)
    voxels, foreground = map(sum, zip(*shares, strict=True))
    assert voxels > 0 and summary["conflicts"]["Sides"] == {
        "voxels": voxels,
        "foreground": foreground,
        "share": pytest.approx(voxels / foreground),
        "rule": "argmax",
    }
    said = capsys.readouterr().out
    table = (run / "evaluation" / "table.md").read_text()
    assert "| class | Dice | Dice (own channel) | IoU |" in table
    assert f"Sides: {100 * voxels / foreground:.2f} % of the predicted foreground holds two" in said
    assert "the label map shows the most probable" in said
    assert _scored(run, predictor, given)["cells"] == summary["cells"]  # nothing predicted again


def test_predictions_of_an_earlier_version_are_scored_without_channels(held):
    run, predictor, given = held
    _scored(run, predictor, given)
    masks = run / "predictions" / "Sides"
    for side in masks.glob("*_*.json"):
        found = json.loads(side.read_text())
        del found["channels"], found["conflicts"]
        side.write_text(json.dumps(found))
    before = {path: path.stat().st_mtime_ns for path in masks.glob("*.nii.gz")}
    summary = _scored(run, predictor, given)
    assert {path: path.stat().st_mtime_ns for path in masks.glob("*.nii.gz")} == before
    assert "Dice_own_channel" not in summary["metrics"] and "conflicts" not in summary


def test_a_reference_that_cannot_be_read_costs_its_score_only(held):
    run, predictor, given = held
    corpus, (first, second) = given["Sides"]
    (run / "broken.nii.gz").write_bytes(b"no image")
    broken = first.__class__(**{**first.__dict__, "label": str(run / "broken.nii.gz")})
    settings = typed({"evaluate": {"surface": False, "montages": 0}}).evaluate
    held = {"Sides": (corpus, [broken, second])}
    failed = test.predict_and_score(predictor, held, run, settings, lambda what: None)
    assert [entry["case"] for entry in failed] == [first.name]
    assert (run / "predictions" / "Sides" / f"{first.name}.nii.gz").is_file()
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert summary["cells"]["Sides"]["left"]["Dice_own_channel"]["n"] == 1
