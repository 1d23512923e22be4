"""The choice of largest components: the numbers it rests on, and the names it is recorded under."""

import json

import numpy as np
import pytest

from medjax.errors import DataError, UsageError
from medjax.files import sha256
from medjax.labels import Corpus, merge
from medjax.runs import folder, postprocess
from tests.support.raw import save
from tests.support.run import make_run

SHAPE = (4, 8, 8)
CORPUS = Corpus("Organs", ((1, ("organ",)), (2, ("organ", "tumour"))), channels=("CT",))


def write(root, masks, labels=None):
    """A folder with masks/CASE.nii.gz of every side, and a dataset.json; returns the arguments."""
    for side, arrays in masks.items():
        for case, array in arrays.items():
            save(root / side / f"{case}.nii.gz", array)
    spec = {"labels": labels or {"background": 0, "organ": [1, 2], "tumour": 2}}
    spec |= {"channel_names": {"0": "CT"}, "medjax": {"name": "Organs"}}
    (root / "dataset.json").write_text(json.dumps(spec))
    return str(root / "truth"), str(root / "found"), root / "dataset.json"


def boxes(*spans, value=1):
    array = np.zeros(SHAPE, np.uint8)
    for a, b in spans:
        array[1:3, 2:6, a:b] = value
    return array


def test_dice_by_hand():
    a, b = boxes((0, 4)) > 0, boxes((2, 6)) > 0
    assert postprocess.dice(a, b) == 0.5 and postprocess.dice(a, a) == 1
    assert postprocess.dice(a, np.zeros_like(a)) == 0


def test_a_class_is_chosen_where_the_mean_grows(tmp_path):
    """One stray component of 8 voxels beside 32: Dice 64/72, and 1 without it."""
    truth, found = boxes((0, 4)), boxes((0, 4), (6, 7))
    given = write(tmp_path, {"truth": {"a": truth, "b": truth}, "found": {"a": found, "b": truth}})
    text = postprocess.choose(*given, tmp_path / "rules.json")
    written = json.loads((tmp_path / "rules.json").read_text())
    assert written["rules"] == {"largest": ["organ"]}
    assert written["evidence"] == {
        "organ": {
            "dice_before": pytest.approx((64 / 72 + 1) / 2),
            "dice_after": 1.0,
            "cases": 2,
        },
        "tumour": {"dice_before": None, "dice_after": None, "cases": 0},  # in no mask
    }
    assert written["basis"]["masks"]["a"] == sha256(tmp_path / "found" / "a.nii.gz")
    rows = [line.split() for line in text.splitlines()]
    assert rows[1] == ["organ", "2", "0.9444", "1.0000", "yes"]
    assert rows[2] == ["tumour", "0", "-", "-"] and rows[3] == [str(tmp_path / "rules.json")]


def test_two_true_components_are_kept(tmp_path):
    both = boxes((0, 3), (5, 8))
    given = write(tmp_path, {"truth": {"a": both}, "found": {"a": both}})
    postprocess.choose(*given, tmp_path / "rules.json")
    assert json.loads((tmp_path / "rules.json").read_text())["rules"] == {"largest": []}


def test_masks_on_different_grids_are_refused(tmp_path):
    given = write(tmp_path, {"truth": {"a": boxes((0, 4))}, "found": {"a": boxes((0, 4))[:3]}})
    with pytest.raises(DataError):
        postprocess.choose(*given, tmp_path / "rules.json")
    assert not (tmp_path / "rules.json").exists()


def test_names_and_place_of_a_run(tmp_path):
    run = make_run(tmp_path / "run")
    assert postprocess.place(run) == run / "postprocess.json"
    assert postprocess.global_names(CORPUS, None) == {"organ": "organ", "tumour": "tumour"}
    space = merge([CORPUS], rename={"Organs/tumour": "lesion"})
    folder.write_json(run / folder.LABELS, space.to_json())
    assert postprocess.global_names(CORPUS, run) == {"organ": "organ", "tumour": "lesion"}
    with pytest.raises(UsageError, match=r"'Organ'.*Organs"):
        postprocess.global_names(Corpus("Organ", CORPUS.labels), run)
    with pytest.raises(UsageError, match="config"):
        postprocess.place(tmp_path)
