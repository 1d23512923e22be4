"""The summary on the screen: one figure per class and corpus, and the mean."""

from medjax.metrics import tables
from tests.metrics.test_aggregate import row
from tests.metrics.test_compare import result


def test_the_screen_shows_dice_by_class_and_corpus():
    rows = [row("a", 0.5), row("b", 0.75)]
    rows += [row("a", 0.0, name="tumour", status="missed"), row("b", 0.5, name="tumour")]
    lines = tables.screen(result(rows)).splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["Dice", "A"],
        ["liver", "0.625"],
        ["tumour", "0.250", "(1/2", "missed)"],
        ["mean", "over", "classes", "0.438"],
    ]
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[4] == "" and lines[5].startswith("mean Dice  0.438")
    only = tables.screen(result(rows[:2])).splitlines()
    assert only[2].split() == ["tumour", "-"]
