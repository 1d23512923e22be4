"""Largest component, minimum volume, holes: hand-made masks, the repainted label map, the record,
and that nothing happens unasked.
"""

import dataclasses
import json

import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from medjax import cli
from medjax.errors import LabelError, UsageError
from medjax.infer import postprocess
from medjax.infer.model import Model
from medjax.infer.postprocess import Rules
from medjax.infer.segmenter import Segmenter
from medjax.labels import Corpus, merge
from medjax.prepare.plan import Intensity, Plan
from medjax.prompts.request import Request
from medjax.scans import nifti

CORPUS = Corpus("Liver", ((1, ("liver",)), (2, ("liver", "tumour"))), channels=("CT",))
SPACE = merge([CORPUS])
PLAN = Plan({"Liver": (2.0, 1.0, 1.0)}, {"CT": Intensity("nonorm")})


def predictor(rules=None):
    def apply(params, image, context):
        return {"logits": (image - params) * 20.0}

    return Segmenter(
        Model(apply, jnp.array([0.5, 1.5], jnp.float32), PLAN, SPACE, (6, 8, 8)), postprocess=rules
    )


@pytest.fixture
def volume(tmp_path):
    """Liver of 6 x 8 x 8 voxels with a hole of 2, an island of 12, and a tumour of 3 inside beside
    a speck of 1; 0.002 ml per voxel.
    """
    array = np.full((10, 14, 20), 0.1)
    array[2:8, 2:10, 2:10] = 1
    array[4, 5, 5:7] = 0.1
    array[2:5, 3:5, 15:17] = 1
    array[3, 3, 3:6] = 2
    array[6, 8, 8] = 2
    image = nib.Nifti1Image(
        array.T.astype(np.float32), np.diag([-1.0, 1.0, 2.0, 1.0])
    )  # stored left to right: the crop is a flipped view
    nib.save(image, tmp_path / "a.nii.gz")
    return nifti.read(tmp_path / "a.nii.gz")


def test_components_touch_by_corners_and_the_first_of_equals_stays():
    mask = np.zeros((4, 4, 6), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 4] = mask[3, 3, 5] = True
    kept, gone = postprocess.largest(mask)
    assert gone == 2 and kept[0, 0, 0] and kept[1, 1, 1] and not kept[3].any()
    kept, gone = postprocess.without_small(mask, 2)
    assert gone == 0 and np.array_equal(kept, mask)
    kept, gone = postprocess.without_small(mask, 2.5)
    assert gone == 4 and not kept.any()
    assert postprocess.largest(np.zeros((2, 2, 2), bool))[1] == 0


def test_holes_are_filled_in_space_and_in_a_single_slice():
    cube = np.zeros((7, 7, 7), bool)
    cube[1:6, 1:6, 1:6] = True
    hollow = cube.copy()
    hollow[3, 3, 3] = hollow[2, 2, 3] = False
    open_ = hollow.copy()
    open_[3, 3, 4:] = False  # a channel to the outside
    assert (
        np.array_equal(postprocess.filled(hollow)[0], cube) and postprocess.filled(hollow)[1] == 2
    )
    assert postprocess.filled(open_)[1] == 1
    assert postprocess.filled(hollow[3:4])[1] == 1


def test_nothing_happens_unless_asked_for(volume):
    found = predictor().segment(volume, Request("Liver"))
    assert found.masks.voxels == {"liver": 6 * 8 * 8 - 2 + 12, "tumour": 4} and found.changes == {}
    assert not Rules() and Segmenter(predictor().model, postprocess=Rules()).postprocess is None


def test_rules_change_masks_label_map_and_record(volume):
    plain = predictor().segment(volume, Request("Liver"))
    rules = Rules(largest=("liver",), holes=("*",), min_ml=(("tumour", 0.005),))  # 2.5 voxels
    found = predictor(rules).segment(volume, Request("Liver"))
    assert found.changes == {"liver": {"largest": 12, "holes": 2}, "tumour": {"min_ml": 1}}
    assert found.masks.voxels == {"liver": 6 * 8 * 8, "tumour": 3}
    expected = plain.label_map.copy()
    expected[2:5, 3:5, 15:17] = 0  # the island
    expected[4, 5, 5:7] = 1
    expected[6, 8, 8] = 1  # the speck goes back to liver
    assert np.array_equal(found.label_map, expected)
    assert np.array_equal(found.masks["liver"], expected > 0)
    assert predictor(rules).settings()["postprocess"] == {
        "largest": ["liver"],
        "holes": ["liver", "tumour"],
        "min_ml": {"tumour": 0.005},
    }


def test_within_keeps_what_touches_as_many_parts_as_there_are_organs():
    organ, mask = np.zeros((12, 12, 40), bool), np.zeros((12, 12, 40), bool)
    organ[4:8, 4:8, 4:10] = organ[4:8, 4:8, 11:14] = True
    organ[5, 5, 30] = True
    mask[5, 5, 2:17] = mask[5, 5, 30] = True
    kept, gone = postprocess.within(mask, [organ])
    assert np.flatnonzero(kept[5, 5]).tolist() == list(range(2, 12)) and gone == 6
    other = np.zeros_like(organ)
    other[5, 5, 31] = True  # two organs: two parts, the gap between them closed
    kept, gone = postprocess.within(mask, [organ, other])
    assert np.flatnonzero(kept[5, 5]).tolist() == list(range(2, 16)) and gone == 2
    kept, gone = postprocess.within(mask, [np.zeros_like(organ)])
    assert gone == 0 and kept is mask, "an organ that was not found vouches for nothing"


def test_a_tumour_is_kept_within_its_organ_as_that_is_after_its_own_rules(volume):
    """The speck lies 3 voxels from the island; the tumour of 3 within the liver stays."""
    volume.array[3, 4, 16] = 2  # within the island: liver and tumour
    plain = predictor().segment(volume, Request("Liver"))
    assert plain.masks.voxels["tumour"] == 5
    rules = Rules.from_json({"inside": {"tumour": ["liver"]}})
    found = predictor(rules).segment(volume, Request("Liver"))
    assert found.changes == {"tumour": {"inside": 1}}  # the island is the second component
    assert rules == Rules.from_json(rules.to_json()) and "inside" not in Rules().to_json()
    with pytest.raises(UsageError, match="organs that no such rule changes"):
        predictor(Rules.from_json({"inside": {"tumour": ["tumour"]}}))
    with pytest.raises(LabelError, match="did you mean liver"):
        predictor(Rules.from_json({"inside": {"tumour": ["livr"]}}))
    for wrong in ({"inside": {"tumour": "liver"}}, {"inside": {"tumour": []}}):
        with pytest.raises(UsageError, match="names the organs of a class"):
            Rules.from_json(wrong)


ORGAN = Corpus("Liver", ((1, ("tumour",)),), channels=("CT", "mask"))


def _with_organ(rules, corpus=ORGAN):
    def apply(params, image, context):
        return {"logits": (image[..., :1] - params) * 20.0}

    intensity = {"CT": Intensity("nonorm"), "mask": Intensity("mask")}
    plan = Plan({"Liver": (2.0, 1.0, 1.0)}, intensity)
    model = Model(apply, jnp.array([0.5], jnp.float32), plan, merge([corpus]), (6, 8, 8))
    return Segmenter(model, postprocess=rules)


def test_the_organ_filter_keeps_components_that_touch_the_given_mask(volume):
    """The island goes, its 12 voxels counted; the other component touches and stays whole."""
    rules = Rules.from_json({"organ_filter": ["*"]})
    organ = np.zeros_like(volume.array)
    organ[2:8, 2:4, 2:4] = 1  # of 8 x 8 columns; grown by 2 it does not reach the island
    given = dataclasses.replace(volume, array=np.stack([volume.array, organ], -1))
    plain = _with_organ(None).segment(given, Request("Liver"))
    found = _with_organ(rules).segment(given, Request("Liver"))
    assert found.changes == {"tumour": {"organ_filter": 12}} and found.notes == ()
    expected = plain.label_map.copy()
    expected[2:5, 3:5, 15:17] = 0
    assert np.array_equal(found.label_map, expected) and found.masks.voxels["tumour"] == 382
    near = np.zeros_like(organ)
    near[3, 3, 18] = 1  # grown by two voxels it touches the island alone
    given = dataclasses.replace(volume, array=np.stack([volume.array, near], -1))
    assert _with_organ(rules).segment(given, Request("Liver")).masks.voxels == {"tumour": 12}
    assert _with_organ(rules).settings()["postprocess"]["organ_filter"] == ["tumour"]
    with pytest.raises(LabelError, match="did you mean tumour"):
        _with_organ(Rules(organ_filter=("tumor",)))


@pytest.mark.parametrize("channels", [("CT", "mask"), ("CT",)])
def test_without_an_organ_mask_the_filter_removes_nothing_and_says_so(volume, channels):
    rules = Rules.from_json({"organ_filter": ["tumour"]})
    network = _with_organ(rules, dataclasses.replace(ORGAN, channels=channels))
    empty = np.stack([volume.array, np.zeros_like(volume.array)], -1)[..., : len(channels)]
    found = network.segment(dataclasses.replace(volume, array=empty), Request("Liver"))
    assert found.changes == {} and found.masks.voxels["tumour"] == 394
    assert "no organ mask" in found.notes[0]


def test_rules_from_json_name_what_is_wrong():
    assert Rules.from_json({"largest": ["a"], "min_ml": {"b": 2}}) == Rules(("a",), (), (("b", 2),))
    with pytest.raises(UsageError, match="did you mean largest"):
        Rules.from_json({"larges": ["a"]})
    with pytest.raises(UsageError, match="positive"):
        Rules.from_json({"min_ml": {"a": 0}})
    with pytest.raises(LabelError, match="did you mean liver"):
        predictor(Rules(largest=("livr",)))


def test_the_choice_on_validation_masks_rests_on_dice(tmp_path, capsys):
    """Class 1: an island far off the reference lowers Dice (100/(100+60)...); class 2: two true
    parts, of which one would be lost.
    """
    reference, wrong = np.zeros((12, 12, 12), np.uint8), np.zeros((12, 12, 12), np.uint8)
    reference[1:6, 1:6, 1:5] = wrong[1:6, 1:6, 1:5] = 1
    wrong[9:11, 9:11, 9:11] = 1
    reference[1:3, 8:10, 1:3] = reference[9:11, 1:3, 1:3] = wrong[1:3, 8:10, 1:3] = wrong[
        9:11, 1:3, 1:3
    ] = 2
    for folder, array in (("labelsTr", reference), ("predicted", wrong)):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(array.T, np.eye(4)), tmp_path / folder / "case.nii.gz")
    labels = {
        "labels": {"background": 0, "a": 1, "b": 2, "c": 3},
        "channel_names": {"0": "CT"},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(labels))
    out = tmp_path / "rules.json"
    given = [
        "postprocess",
        "--reference",
        str(tmp_path / "labelsTr"),
        "--prediction",
        str(tmp_path / "predicted"),
    ]
    assert cli.main([*given, "-o", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["rules"] == {"largest": ["a"]}
    assert found["evidence"]["a"] == {
        "dice_before": pytest.approx(200 / 208),
        "dice_after": 1.0,
        "cases": 1,
    }
    assert found["evidence"]["b"] == {
        "dice_before": 1.0,
        "dice_after": pytest.approx(2 * 8 / 24),
        "cases": 1,
    }
    assert found["evidence"]["c"]["cases"] == 0 and "yes" in capsys.readouterr().out
    assert cli.main(given) == 2 and "no place for the choice" in capsys.readouterr().err
