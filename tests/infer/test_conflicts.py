"""Exclusive classes in one voxel: which of them the label map shows, and what it leaves alone."""

import itertools

import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.errors import UsageError
from medjax.infer import conflicts
from medjax.infer.model import Model
from medjax.infer.postprocess import Rules
from medjax.infer.segmenter import Segmenter
from medjax.labels import Corpus, merge
from medjax.prepare.plan import Intensity, Plan
from medjax.prompts.request import Request
from medjax.scans import nifti

ABDOMEN = Corpus(
    "Abdomen",
    (
        (1, ("liver",)),
        (2, ("liver", "tumour")),
        (3, ("kidney",)),
        (4, ("spleen",)),
        (5, ("kidney", "cyst")),
    ),
)
OTHER = Corpus("Other", ((1, ("kidney", "spleen")), (2, ("kidney",)), (3, ("bone",))))
SPACE = merge([ABDOMEN, OTHER])
NAMES = ABDOMEN.classes
EXCLUDING = conflicts.excluding(SPACE, "Abdomen", NAMES)


def test_classes_exclude_each_other_where_no_label_value_holds_both():
    both = itertools.product(enumerate(NAMES), repeat=2)
    pairs = {(a, b) for (i, a), (j, b) in both if EXCLUDING[i, j]}
    together = {frozenset(p) for p in (("liver", "tumour"), ("kidney", "cyst"))}
    assert pairs == {
        (a, b) for a in NAMES for b in NAMES if a != b and frozenset((a, b)) not in together
    }
    other = conflicts.excluding(SPACE, "Other", SPACE.classes)
    names = {
        name: {SPACE.classes[j] for j in np.flatnonzero(row)}
        for name, row in zip(SPACE.classes, other, strict=True)
    }
    # spleen lies in the kidney there; the liver is not annotated there and excludes nothing
    assert names["bone"] == {"kidney", "spleen"} and names["kidney"] == names["spleen"] == {"bone"}
    assert names["liver"] == names["tumour"] == names["cyst"] == set()


def by_hand(mask, values, strength):
    """Greedy, one voxel at a time."""
    out = np.zeros_like(mask)
    for place in np.ndindex(mask.shape[:-1]):
        present = [k for k in range(mask.shape[-1]) if mask[place][k]]
        present.sort(key=lambda k: (-values[place][k], -strength.index(k)))
        for k in present:
            out[place][k] = not any(out[place][j] and EXCLUDING[k, j] for j in present)
    return out


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.9]), st.booleans())
def test_the_most_probable_class_wins_and_nested_ones_stay(seed, share, ties):
    rng = np.random.default_rng(seed)
    shape = (2, 3, 4, len(NAMES))
    mask = rng.random(shape) < share
    values = rng.integers(0, 3, shape) / 2 if ties else rng.random(shape)
    strength = rng.permutation(len(NAMES)).tolist()
    where = conflicts.overlapping(mask, EXCLUDING)
    got = conflicts.settled(mask, values.astype(np.float32), EXCLUDING, strength, where)
    np.testing.assert_array_equal(got, by_hand(mask, values, strength))
    assert not conflicts.overlapping(got, EXCLUDING).any() and not (got & ~mask).any()
    np.testing.assert_array_equal(got[~where], mask[~where])
    # the winner of a voxel is there, and a class that conflicts with none
    best = np.where(mask, values, -1).max(-1)
    assert (np.where(got, values, -1).max(-1) == best).all()
    several = (mask[..., None, :] & EXCLUDING & mask[..., :, None]).any((-1, -2))
    np.testing.assert_array_equal(where, several)


def test_a_beaten_class_returns_where_its_winner_was_removed():
    mask = np.ones((3, 1, 1, 3), bool)
    excluding = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    beaten = np.zeros_like(mask)
    beaten[..., 1:] = True  # the first class won everywhere
    changed = mask.copy()
    changed[1, ..., 0] = False  # and was removed from the second voxel
    shown = conflicts.standing(changed, beaten, excluding)
    assert shown[:, 0, 0].tolist() == [
        [True, False, False],
        [False, True, True],
        [True, False, False],
    ]
    assert conflicts.standing(mask, np.zeros_like(mask), excluding) is mask


# a network whose channels are the bands of the image: exclusive ones overlap


CORPUS = Corpus("Sides", ((1, ("left",)), (2, ("right",)), (3, ("right", "cyst"))))
PLAN = Plan({"Sides": (1.0, 1.0, 1.0)}, {"CT": Intensity("nonorm")})


def apply(params, image, context):
    """left above 1, highest at 1.4; right above 1.3, growing; cyst above 2.5."""
    x = image[..., 0]
    left = 6 * (x - 1) - 20 * jnp.maximum(x - 1.4, 0)
    return {"logits": jnp.stack([left, 4 * (x - 1.3), 8 * (x - 2.5)], -1)}


def predictor(**options):
    space = merge([CORPUS], precedence=("right", "left", "cyst"))
    return Segmenter(Model(apply, {}, PLAN, space, (4, 4, 8)), **options)


@pytest.fixture
def volume(tmp_path):
    """Steps along x: nothing, left alone, both with left above, both with right above, cyst."""
    row = np.array([0.1, 0.1, 1.2, 1.2, 1.45, 1.45, 1.45, 1.55, 1.55, 1.9, 3.0, 3.0])
    nib.save(nib.Nifti1Image(np.tile(row[:, None, None], (1, 6, 5)), np.eye(4)), tmp_path / "a.nii")
    return nifti.read(tmp_path / "a.nii")


ORDERED = [0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 3, 3]
ARGMAX = [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3]


def rows(segmentation):
    """The one row of labels of a volume of equal rows."""
    assert (segmentation.label_map == segmentation.label_map[:1, :1]).all()
    return segmentation.label_map[0, 0].tolist()


@pytest.mark.parametrize("average", ["prob", "logit"])
def test_the_label_map_follows_the_rule_and_the_masks_do_not(volume, average):
    request = Request("Sides")
    ordered = predictor(average=average).segment(volume, request)
    settled = predictor(average=average, conflicts="argmax").segment(volume, request)
    assert rows(ordered) == ORDERED and rows(settled) == ARGMAX
    for name, along in (("left", range(2, 9)), ("right", range(4, 12)), ("cyst", (10, 11))):
        for found in (ordered, settled):
            np.testing.assert_array_equal(np.flatnonzero(found.masks[name][0, 0]), list(along))
    for found in (ordered, settled):  # 5 of 10 columns of foreground hold left and right
        assert (found.masks.conflicting, found.masks.foreground) == (5 * 30, 10 * 30)
    assert ordered.masks.beaten is None and settled.masks.beaten.voxels["left"] == 2 * 30


@pytest.mark.parametrize("rule", conflicts.RULES)
def test_a_scan_in_which_nothing_is_found_has_no_conflict(tmp_path, rule):
    """Not even a candidate: the blocks hold no channel at all."""
    nib.save(nib.Nifti1Image(np.full((12, 6, 5), -9.0), np.eye(4)), tmp_path / "b.nii")
    found = predictor(conflicts=rule).segment(nifti.read(tmp_path / "b.nii"), Request("Sides"))
    assert not found.label_map.any() and not any(found.masks.voxels.values())
    assert (found.masks.conflicting, found.masks.foreground) == (0, 0)
    none = conflicts.overlapping(np.zeros((2, 3, 0), bool), np.zeros((0, 0), bool))
    assert none.shape == (2, 3) and not none.any()


def test_the_rule_holds_in_strips_and_ensembles(volume):
    whole = predictor(conflicts="argmax")
    need = whole.forecast(volume, Request("Sides")).bytes
    strips = predictor(conflicts="argmax", memory_gib=0.6 * need / 2**30)
    for found in (strips, predictor(conflicts="argmax", others=[whole])):
        np.testing.assert_array_equal(
            found.segment(volume, Request("Sides")).label_map,
            whole.segment(volume, Request("Sides")).label_map,
        )


def test_postprocessing_paints_by_the_same_rule(volume):
    left = Rules(min_ml=(("left", 1.0),)).checked(predictor().model.space)  # all of left goes
    found = predictor(conflicts="argmax", postprocess=left).segment(volume, Request("Sides"))
    assert rows(found) == [0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 3, 3]  # right returns
    cyst = Rules(min_ml=(("cyst", 1.0),)).checked(predictor().model.space)
    found = predictor(conflicts="argmax", postprocess=cyst).segment(volume, Request("Sides"))
    assert rows(found) == [*ARGMAX[:-2], 2, 2]  # and left does not return where right stays


def test_only_another_rule_than_the_old_one_is_part_of_the_settings():
    assert "conflicts" not in predictor().settings()
    assert predictor(conflicts="argmax").settings()["conflicts"] == "argmax"
    with pytest.raises(UsageError, match=r"unknown rule for conflicts 'argmx'.*argmax"):
        predictor(conflicts="argmx")


CALIBRATED = [0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3]  # right wins wherever it is found


@pytest.mark.parametrize("average", ["prob", "logit"])
def test_calibrated_conflicts_compare_probabilities_at_their_temperatures(volume, average):
    """At 1.45 left has log-odds 1.7 and right 0.6: at a temperature of 4, left has 0.4."""
    options = {"average": average, "conflicts": "calibrated"}
    hot = predictor(temperatures={"left": 4.0}, **options)
    found = hot.segment(volume, Request("Sides"))
    assert rows(found) == CALIBRATED
    assert found.masks.beaten.voxels["left"] == 5 * 30
    np.testing.assert_array_equal(  # no mask changes
        np.flatnonzero(found.masks["left"][0, 0]), list(range(2, 9))
    )
    for even in ({}, {"left": 1.0}, {"left": 2.5, "right": 2.5}):
        same = predictor(temperatures=even, **options).segment(volume, Request("Sides"))
        assert rows(same) == ARGMAX
    assert hot.settings()["temperatures"] == {"left": 4.0}
    assert "temperatures" not in predictor(conflicts="argmax").settings()


@pytest.mark.parametrize("average", ["prob", "logit"])
def test_probabilities_are_handed_on_at_their_temperatures(volume, average):
    def taken(**options):
        blocks = []
        chosen = predictor(average=average, **options)
        request = Request("Sides", classes=("left", "right"))
        chosen.segment(volume, request, on_scores=lambda t, region, n, v: blocks.append(v))
        return np.concatenate(blocks)

    plain, cool = taken(), taken(conflicts="calibrated", temperatures={"left": 4.0})
    np.testing.assert_allclose(cool[..., 1], plain[..., 1], atol=2e-6)
    left = np.clip(plain[..., 0].astype(float), 1e-6, 1 - 1e-6)
    expected = 1 / (1 + (1 / left - 1) ** (1 / 4))
    np.testing.assert_allclose(cool[..., 0], expected, atol=1e-4)
    assert np.abs(cool[..., 0] - plain[..., 0]).max() > 0.1
