"""Scores of a class' own channel beside those of the label map, and the share of conflicts."""

import json

import nibabel as nib
import numpy as np
import pytest

from medjax.corpora.inputs import Case
from medjax.errors import MedjaxError
from medjax.infer.owned import mark
from medjax.labels import Corpus
from medjax.metrics import channels
from medjax.metrics.counts import Counts
from medjax.metrics.evaluate import Pair, Result, evaluate
from medjax.scans import nifti

CORPUS = Corpus("Two", ((1, ("a",)), (2, ("b",))), ignore=3)


@pytest.fixture
def case(tmp_path):
    """a in columns 0 to 3, b in 4 and 5, ignored 6, nothing in 7; the map shows a everywhere."""
    label = np.array([1, 1, 1, 1, 2, 2, 3, 0])[:, None, None] * np.ones((1, 2, 5))
    painted = np.array([1, 1, 1, 1, 1, 1, 1, 0])[:, None, None] * np.ones((1, 2, 5))
    for name, values in (("label", label), ("painted", painted)):
        nib.save(nib.Nifti1Image(values.astype(np.uint8), np.eye(4)), tmp_path / f"{name}.nii")
    paths = {name: str(tmp_path / f"{name}.nii") for name in ("label", "painted")}
    return Case("x", (paths["painted"],), paths["label"], "Two"), paths["painted"]


def column(*places):
    mask = np.zeros((5, 2, 8), bool)
    mask[..., list(places)] = True
    return mask


MASKS = {"A": column(0, 1, 2, 3, 4, 5, 6), "Two/b": column(4, 5, 6, 7)}


def test_channels_are_counted_against_the_reference(case):
    volume = nifti.read(case[1])
    names = {"a": "A", "b": "Two/b", "c": "not predicted"}
    found = channels.count(case[0], volume, MASKS, CORPUS, names)
    # 10 voxels a column; the ignored one counts nowhere
    assert found == {"a": [40, 20, 0, 10], "b": [20, 10, 0, 40]}
    wide = nifti.replaced(volume, np.zeros((5, 2, 8)))
    other = wide.__class__(**{**wide.__dict__, "affine": 2 * wide.affine})
    with pytest.raises(MedjaxError):
        channels.count(case[0], other, MASKS, CORPUS, names)


def sidecar(folder, name, **fields):
    found = mark("prediction") | {"case": name, "files": {}, "corpus": "Two"} | fields
    (folder / f"{name}.json").write_text(json.dumps(found))


def test_counts_are_read_from_the_sidecar_or_not_at_all(tmp_path):
    sidecar(tmp_path, "x", channels={"a": [1, 2, 3, 4], "b": [1, 2, -3, 4], "c": "many"})
    assert channels.read(tmp_path, "x", ("a", "b", "c", "d")) == {"a": Counts(1, 2, 3, 4)}
    sidecar(tmp_path, "y")
    assert channels.read(tmp_path, "y", ("a",)) == channels.read(tmp_path, "z", ("a",)) == {}


def test_conflicts_are_summed_over_cases(tmp_path):
    sidecar(tmp_path, "x", conflicts={"voxels": 3, "foreground": 10})
    rule = {"conflicts": "argmax"}
    sidecar(tmp_path, "y", conflicts={"voxels": 0, "foreground": 5}, settings=rule)
    sidecar(tmp_path, "z")  # of an earlier version
    both = channels.conflicts([(tmp_path, name) for name in "xyz"])
    assert both == {"voxels": 3, "foreground": 15, "share": 0.2, "rule": "ordered"}
    assert channels.conflicts([(tmp_path, "y")])["rule"] == "argmax"
    assert channels.conflicts([(tmp_path, "z")]) == {}
    sidecar(tmp_path, "e", conflicts={"voxels": 0, "foreground": 0})
    assert channels.conflicts([(tmp_path, "e")])["share"] is None


def test_a_table_shows_both_scores(case, tmp_path):
    own = {"a": Counts(40, 20, 0, 10), "b": Counts(20, 10, 0, 40)}
    pair = Pair("x", case[0].label, case[1], "x", case[0], own)
    result = evaluate([pair], CORPUS, resamples=10)
    cells = result.tables["cells"]["Two"]
    assert cells["a"]["Dice"]["mean"] == pytest.approx(80 / 100)
    assert cells["b"]["Dice"]["mean"] == 0  # painted over
    assert cells["a"]["Dice_own_channel"]["mean"] == pytest.approx(80 / 100)
    assert cells["b"]["Dice_own_channel"]["mean"] == pytest.approx(40 / 50)
    head = next(line for line in result.markdown().splitlines() if line.startswith("| class"))
    assert head.startswith("| class | Dice | Dice (own channel) | IoU |")
    result.write(tmp_path / "out")
    again = Result.load(tmp_path / "out")
    assert again.tables == result.tables and again.rows == result.rows
    without = evaluate([Pair("x", case[0].label, case[1])], CORPUS, resamples=10)
    assert "Dice_own_channel" not in without.tables["metrics"]
    assert "own channel" not in without.markdown()


def test_a_channel_alone_counts_where_the_label_map_is_empty(case):
    """Neither reference nor map hold b: no Dice of the map, 0 for a channel that is not empty."""
    empty = Corpus("Two", ((1, ("a",)), (2, ("b",)), (4, ("c",))), ignore=3)
    own = {"c": Counts(0, 5, 0, 75), "b": Counts(0, 0, 20, 40)}
    result = evaluate([Pair("x", case[0].label, case[1], channels=own)], empty, resamples=10)
    cell = result.tables["cells"]["Two"]["c"]
    assert cell["n_absent"] == 1 and cell["Dice"]["n"] == 0
    assert cell["Dice_own_channel"]["mean"] == cell["Dice_own_channel"]["mean_absent_as_one"] == 0
    assert cell["Dice"]["mean_absent_as_one"] == 1
    assert result.tables["cells"]["Two"]["b"]["Dice_own_channel"]["mean"] == 0
