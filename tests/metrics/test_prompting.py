"""Numbers of a prompted evaluation, against values that are known in closed form."""

import numpy as np
import pytest

from medjax.metrics import prompting
from medjax.metrics.prompting import Absent, Clicked, Confused, Key, Measured, Record

BOX = np.array([1.0, 2, 3, 8, 13, 16])  # 8 x 12 x 14 voxels
SHAPE = (10, 20, 20)


def key(case, name="liver", corpus="A"):
    return Key(corpus, case, case, name)


def filled(box, shape=SHAPE):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(int(a), int(b) + 1) for a, b in zip(box[:3], box[3:], strict=True))] = True
    return mask


def test_an_ellipsoid_takes_pi_sixths_of_its_box():
    whole = prompting.ellipsoid(np.array([0.0, 0, 0, 59, 79, 99]))
    assert whole.mean() == pytest.approx(np.pi / 6, rel=2e-3)
    assert whole.shape == (60, 80, 100)
    np.testing.assert_array_equal(whole, whole[::-1, ::-1, ::-1])
    assert prompting.ellipsoid(np.zeros(6)).tolist() == [[[True]]]
    # three voxels of a line: their centres are at -2/3, 0, 2/3 of the half axis
    assert prompting.ellipsoid(np.array([0.0, 0, 0, 0, 0, 2])).all()


def test_floors_are_the_dice_of_what_the_prompt_alone_says():
    box, mask = BOX, filled(BOX)
    share = prompting.ellipsoid(box).mean()
    assert prompting.floors(box, mask) == pytest.approx((1.0, 2 * share / (1 + share)))
    round_ = np.zeros(SHAPE, bool)
    round_[1:9, 2:14, 3:17] = prompting.ellipsoid(box)
    assert prompting.floors(box, round_) == pytest.approx((2 * share / (1 + share), 1.0))
    # half of the box is the object
    half = mask.copy()
    half[5:] = False
    assert prompting.floors(box, half)[0] == pytest.approx(2 / 3)
    # voxels of the object outside the array are missed
    assert prompting.floors(box, mask, 2 * int(mask.sum()))[0] == pytest.approx(2 / 3)
    outside = np.array([-1.0, 2, 3, 8, 13, 16])
    assert prompting.floors(outside, mask)[0] == pytest.approx(2 * 8 / 18)
    inverted = BOX[[3, 1, 2, 0, 4, 5]]
    assert prompting.floors(inverted, mask) == (0.0, 0.0)


def test_the_area_under_clicks_is_by_trapezoids():
    assert prompting.area((0.0, 0.5, 1.0)) == pytest.approx(0.5)
    assert prompting.area((1.0,) * 6) == pytest.approx(1.0)
    assert prompting.area((0.2, 0.8)) == pytest.approx(0.5)
    assert prompting.area((0.3,)) == pytest.approx(0.3)


def test_a_summary_takes_draws_together_and_classes_evenly():
    values = [(key("a"), 0.2), (key("a"), 0.4), (key("b"), 0.5), (key("a", "spleen"), 0.8)]
    found = prompting.summary(values, resamples=200)
    assert found["mean"] == pytest.approx((0.4 + 0.8) / 2) and found["n"] == 3
    cells = found["cells"]["A"]
    assert cells["liver"]["mean"] == pytest.approx(0.4) and cells["liver"]["n"] == 2
    assert cells["liver"]["interval"] is None, "two patients"
    five = [(key(case), v) for case, v in zip("abcde", (0.2, 0.3, 0.4, 0.5, 0.6), strict=True)]
    low, high = prompting.summary(five, resamples=200)["interval"]
    assert 0.2 <= low < 0.4 < high <= 0.6


def confused(dice, shared=None):
    n = len(dice)
    shared = np.eye(n, dtype=bool) if shared is None else shared
    names = ("liver", "spleen", "kidney")[:n]
    return Confused(key("a", ""), names, np.array(dice), shared)


def test_right_minus_wrong_is_the_halved_sum_of_a_pair():
    found = dict(prompting.right_minus_wrong(confused([[0.9, 0.1], [0.3, 0.7]])))
    assert np.mean(list(found.values())) == pytest.approx((0.9 + 0.7 - 0.1 - 0.3) / 2)
    # classes that share voxels are not confused with each other
    shared = np.eye(3, dtype=bool)
    shared[0, 1] = shared[1, 0] = True
    dice = [[0.9, 0.8, 0.1], [0.8, 0.7, 0.2], [0.0, 0.4, 0.5]]
    found = dict(prompting.right_minus_wrong(confused(dice, shared)))
    assert [round(found[key("a", n)], 9) for n in ("liver", "spleen", "kidney")] == [0.8, 0.5, 0.3]
    assert prompting.right_minus_wrong(confused([[0.9]])) == []


def record():
    boxes = [
        Measured(key(case), row, d, iou, 0.5, 0.6, False, False)
        for case in ("a", "b")
        for row, d, iou in (("box", 0.9, 1.0), ("box@0.2", 0.6, 0.5), ("box@0.2", 0.8, 0.7))
    ]
    texts = [Measured(key("a"), "text", 0.4), Measured(key("b"), "text", 0.0, empty=True)]
    clicked = [
        Clicked(key(c), "clicks", (0.5, 0.5 + g, 0.6 + g)) for c, g in (("a", 0), ("b", 0.2))
    ]
    absent = [Absent(key("a", "spleen"), 0.0), Absent(key("b", "spleen"), 3.0)]
    return Record(texts + boxes, clicked, absent, [confused([[0.9, 0.1], [0.3, 0.7]])])


def test_tables_hold_rows_clicks_absent_classes_and_confusion():
    found = prompting.tables(record(), resamples=100)
    text, box, moved = (found["rows"][row] for row in ("text", "box", "box@0.2"))
    assert "iou" not in text and text["dice"]["mean"] == pytest.approx(0.2)
    assert text["empty"] == 0.5
    assert moved["iou"]["mean"] == pytest.approx(0.6) and moved["inverted"] == 0
    assert box["minus_ellipsoid"]["mean"] == pytest.approx(0.3)
    assert moved["minus_filled_box"]["mean"] == pytest.approx(0.2)
    clicks = found["clicks"]["clicks"]
    assert [step["mean"] for step in clicks["steps"]] == pytest.approx([0.5, 0.6, 0.7])
    assert clicks["gain"]["mean"] == pytest.approx(0.2)
    assert clicks["area"]["mean"] == pytest.approx((0.5 / 2 + 0.6 + 0.7 / 2) / 2)
    assert found["absent"]["A"]["spleen"] == {"n": 2, "found_in": 1, "ml": 1.5, "most": 3.0}
    matrix = found["confusion"]["corpora"]["A"]
    assert matrix["classes"] == ["liver", "spleen"] and matrix["n"] == [[1, 1], [1, 1]]
    assert found["confusion"]["right_minus_wrong"]["mean"] == pytest.approx(0.6)
    assert found["cases"][0]["dice"]["box@0.2"] == pytest.approx(0.7)
    assert found["cases"][0]["clicks"]["clicks"] == [0.5, 0.5, 0.6]


def test_two_evaluations_are_compared_object_by_object():
    first = prompting.tables(record(), resamples=100)["cases"]
    second = [one | {"dice": {k: v + 0.1 for k, v in one["dice"].items()}} for one in first[1:]]
    found = prompting.difference(first, second, "box", resamples=100)
    assert found["mean"] == pytest.approx(0.1) and found["n"] == 1
    assert prompting.difference(first, first, "text", resamples=100)["mean"] == 0
