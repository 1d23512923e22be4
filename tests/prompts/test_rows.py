"""Rows of a prompted evaluation: their names, and prompts drawn from a mask."""

import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.prompts import draw, rows
from medjax.prompts.types import NEGATIVE, POSITIVE

JITTERS = ("translate0.1", "scale.5", "5mm", "3voxels", "translate3voxels")
MASK = np.zeros((6, 9, 11), bool)
MASK[2:4, 3:8, 1:7] = True
MASK[2, 3, 1] = False


def test_names_say_what_is_asked():
    row = rows.parse("box+text@0.2/out/union")
    assert (row.text, row.box, row.positives) == (True, True, 0)
    assert (row.jitter, row.amount, row.changes) == (
        "fraction",
        0.2,
        {"zoom": "out", "roi": "union"},
    )
    row = rows.parse("points3+-+text")
    assert (row.positives, row.negatives, row.text, row.box) == (3, 3, True, False)
    assert rows.parse("points").positives == 5 and rows.parse("points").negatives == 0
    found = [rows.parse(f"box@{word}") for word in JITTERS]
    assert [(one.jitter, one.amount) for one in found] == [
        ("translate", 0.1),
        ("scale", 0.5),
        ("mm", 5.0),
        ("voxels", 3.0),
        ("shift", 3.0),
    ]
    assert rows.parse("clicks").clicks and rows.parse("clicks").box
    row = rows.parse("clicks@points1")
    assert row.clicks and row.positives == 1 and not row.box
    assert [rows.parse(n).drawn for n in ("text", "box", "points1", "box@0.1")] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "name",
    ["", "bax", "text@0.1", "box@", "box@translate5mm", "box@1@2", "box/up", "box/in/out"],
)
def test_other_names_are_refused(name):
    with pytest.raises(UsageError, match="unknown row"):
        rows.parse(name)


def test_unusable_numbers_of_points_and_repeated_rows_are_refused():
    for name in ("points0", "points11+-", "points22"):
        with pytest.raises(UsageError, match="number of points"):
            rows.parse(name)
    for names in ((), ("box", "box")):
        with pytest.raises(UsageError, match="none, or come twice"):
            rows.parsed(names)


def test_points_are_those_of_the_training():
    """Draws at ranks, without arrays of the mask's size: equal to the draw on the device."""
    uniform = np.random.default_rng(3).random(21)
    found, kinds = rows.Object(MASK, (1.0, 1.0, 1.0)).points(uniform, 9, 12)
    places, expected = draw.points(uniform, MASK, 9, 12)
    np.testing.assert_array_equal(found, places)
    np.testing.assert_array_equal(kinds, expected)
    inside = MASK[tuple(found.astype(int).T)]
    assert inside[kinds == POSITIVE].all() and not inside[kinds == NEGATIVE].any()


def test_rows_of_one_state_share_their_random_numbers():
    one = rows.Object(MASK, (2.0, 1.0, 1.0))
    np.testing.assert_array_equal(one.tight, [2, 3, 1, 3, 7, 6])
    drawn = {
        name: one.asked(rows.parse(name), np.random.default_rng(5))
        for name in ("box", "box@0.5", "points1", "points5", "box+points5+-", "text")
    }
    np.testing.assert_array_equal(drawn["box"].box, one.tight)
    np.testing.assert_array_equal(drawn["points1"].points[0], drawn["points5"].points[0])
    np.testing.assert_array_equal(drawn["points5"].points, drawn["box+points5+-"].points[:5])
    assert drawn["text"].box is None and not len(drawn["text"].points)
    moved = drawn["box@0.5"].box
    assert (moved != one.tight).any() and np.all(moved[:3] <= moved[3:])
    whole = rows.Object(np.ones((2, 2, 2), bool), (1.0, 1.0, 1.0))
    assert whole.asked(rows.parse("points2+-"), np.random.default_rng(0)).kinds.tolist() == [1, 1]
