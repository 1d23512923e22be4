"""A scan asked in every way, with a network that is known exactly: what is bright, in the box, near
the points, of the intensity of the text. Every number follows from where the objects are.
"""

import dataclasses

import numpy as np
import pytest

from medjax.corpora.inputs import Case
from medjax.errors import UsageError
from medjax.metrics import prompting
from medjax.metrics.prompting import Key
from medjax.prompts import rows
from medjax.prompts.request import Request
from medjax.report import prompted as report
from medjax.runs.prompted import asking, evaluation
from medjax.runs.settings.use import Prompted
from medjax.scans import nifti
from tests.infer import test_prompted as known

CLASSES = ("liver", "spleen", "kidney")
CORPUS = dataclasses.replace(
    known.CORPUS, labels=(*known.CORPUS.labels, (3, ("kidney",))), annotated=CLASSES
)
TEXTS = {"liver": "liver", "spleen": "spleen"}
KEY = Key("Body", "A", "A", "")


def ids():
    """The liver is two parts, of which the reference marks the first only; no kidney."""
    found = np.zeros(known.SHAPE, np.uint8)
    found[known.LIVER], found[known.SPLEEN] = 1, 2
    return found


@pytest.fixture(scope="module")
def network():
    return known.Counted()


@pytest.fixture(scope="module")
def segmenter(network):
    return known.made(network, points="own")


def measured(segmenter, *names, **fields):
    given = Prompted(rows=names, **{"draws": 3, "clicks": 3, **fields})
    scan = asking.Scan(segmenter, known.volume(), ids(), CORPUS, Request("Body"), TEXTS)
    record = asking.measure(scan, KEY, CLASSES, rows.parsed(names), given)
    return record, scan


def dices(record, row, name):
    return [one.dice for one in record.measured if (one.row, one.key.name) == (row, name)]


def voxels(*parts):
    return int(known.truth(*parts).sum())


def test_a_tight_box_is_answered_exactly_and_a_text_finds_both_parts(segmenter):
    record, _ = measured(segmenter, "text", "box", "box+text")
    for name in ("liver", "spleen"):
        assert dices(record, "box", name) == dices(record, "box+text", name) == [1.0]
    both = voxels(known.LIVER, known.SECOND)
    expected = 2 * voxels(known.LIVER) / (voxels(known.LIVER) + both)
    assert dices(record, "text", "liver") == [pytest.approx(expected)]
    assert dices(record, "text", "spleen") == [1.0]
    (box,) = [m for m in record.measured if (m.row, m.key.name) == ("box", "spleen")]
    share = prompting.ellipsoid(np.array([0.0, 0, 0, 3, 9, 9])).mean()
    assert (box.iou, box.filled_box) == (1.0, 1.0) and not box.empty and not box.inverted
    assert box.ellipsoid == pytest.approx(2 * share / (1 + share))
    assert not dices(record, "text", "kidney") and not record.absent  # no text for it


def test_boxes_that_move_have_their_iou_and_their_floors(segmenter):
    record, _ = measured(segmenter, "box", "box@0.3", "box@translate0.5")
    moved = [m for m in record.measured if m.row == "box@0.3" and m.key.name == "spleen"]
    assert len(moved) == 3 and len({m.iou for m in moved}) > 1
    for one in moved:
        assert 0 < one.iou < 1 and one.filled_box <= 1 and not one.inverted
        assert one.dice >= one.filled_box  # inside the box only what is bright is taken
    assert len(dices(record, "box@translate0.5", "liver")) == 3


def test_texts_are_confused_where_their_intensities_agree(segmenter):
    record, _ = measured(segmenter, "text")
    (one,) = record.confused
    assert one.names == ("liver", "spleen")
    np.testing.assert_array_equal(one.shared, np.eye(2, dtype=bool))
    assert one.dice[1, 1] == 1 and one.dice[0, 1] == one.dice[1, 0] == 0
    found = prompting.tables(record, resamples=50)["confusion"]
    assert found["right_minus_wrong"]["mean"] == pytest.approx((one.dice[0, 0] + 1) / 2)


def test_a_class_that_is_absent_counts_what_is_found_of_it(segmenter):
    described = dataclasses.replace(CORPUS, annotated=("liver", "spleen"))
    only = np.where(ids() == 2, 0, ids())
    scan = asking.Scan(segmenter, known.volume(), only, described, Request("Body"), TEXTS)
    given = Prompted(rows=("text", "box"), clicks=1)
    record = asking.measure(scan, KEY, described.annotated, rows.parsed(given.rows), given)
    (one,) = record.absent
    millilitres = voxels(known.SPLEEN) * 1.5 * 2 * 3 / 1000
    assert one.key.name == "spleen" and one.ml == pytest.approx(millilitres)
    assert {m.key.name for m in record.measured} == {"liver"}


def test_clicks_correct_the_largest_error(segmenter):
    """The liver by its text has a second part too many, which is larger than any miss: the first
    click is negative, and this network answers nothing without a positive one. The next ones are
    positive, in what is missed now. What is right from the beginning needs no click.
    """
    record, _ = measured(segmenter, "clicks@text", "clicks")
    curves = {(one.row, one.key.name): one.dice for one in record.clicked}
    text = curves["clicks@text", "liver"]
    assert len(text) == 4 and text[1] == 0 < text[0] < text[2] < text[3]
    assert curves["clicks", "liver"] == curves["clicks", "spleen"] == (1.0,) * 4
    assert not record.measured


def test_zoom_and_region_are_switches_of_a_row(segmenter):
    record, _ = measured(segmenter, "text", "text/out", "box/out", "box/union", "box")
    assert dices(record, "text/out", "spleen")[0] < dices(record, "text", "spleen")[0]
    assert dices(record, "box/out", "spleen")[0] < dices(record, "box/union", "spleen")[0] == 1
    assert segmenter.prompter.settings.zoom == "in"  # those of the others stay


def test_a_scan_is_encoded_once_by_two_programs_for_everything(network, segmenter, monkeypatch):
    encoded = []
    before = type(segmenter.prompter)._encode

    def counted(self, scene, image, spacing):
        encoded.append(tuple(np.round(np.asarray(spacing), 3)))
        return before(self, scene, image, spacing)

    monkeypatch.setattr(type(segmenter.prompter), "_encode", counted)
    _, scan = measured(segmenter, *Prompted().rows, "box/out", draws=2)
    whole = [one for one in encoded if one != tuple(scan.transform.target_spacing_mm)]
    assert len(whole) == 1  # the others are windows at full resolution
    assert len(encoded) == 1 + len(scan.scene.windows)  # no window twice
    assert segmenter.compiled == 2
    assert network.traced.count("decode") == 1 and network.traced.count("encode") == 2


def test_draws_are_the_same_in_every_evaluation_and_differ_by_scan(segmenter):
    first, _ = measured(segmenter, "box@0.3", "points1")
    again, _ = measured(segmenter, "points1", "box@0.3", "text")
    of = [
        [(m.key, m.dice, m.iou) for m in sorted(r.measured, key=str) if m.row == "box@0.3"]
        for r in (first, again)
    ]
    assert of[0] == of[1]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("cases"), []
    for name in ("A", "B", "C"):
        scan, label = folder / f"{name}.nii.gz", folder / f"{name}_label.nii.gz"
        nifti.write(scan, known.volume().array, known.volume())
        nifti.write(label, ids(), known.volume())
        found.append(Case(name, (str(scan),), str(label), "Body"))
    (folder / "C_label.nii.gz").write_bytes(b"no scan")
    return found


def test_an_evaluation_goes_on_after_a_case_that_fails_and_is_written(segmenter, cases, tmp_path):
    held = {"Body": (CORPUS, cases)}
    given = Prompted(rows=("text", "box", "box@0.2", "clicks@points1"), draws=2, clicks=2)
    done = []
    found = evaluation.evaluate(
        segmenter, held, given, progress=lambda *a: done.append(a), resamples=50
    )
    assert done[-1] == (3, 3, "C", "failed") and [f["case"] for f in found["failed"]] == ["C"]
    assert found["scans"] == 2 and found["programs"] == 2
    assert found["without_text"] == {"Body": ["kidney"]}
    assert found["rows"]["box"]["dice"]["mean"] == 1
    gain = found["rows"]["box"]["minus_ellipsoid"]
    assert gain["mean"] > 0 and gain["interval"] is None, "two patients"
    lines = evaluation.write(found, tmp_path)
    (said,) = [line for line in lines if "above the ellipsoid" in line]
    assert "NOT" not in said and "too few patients for an interval" in said
    assert report.read(tmp_path)["rows"].keys() == found["rows"].keys()
    table = (tmp_path / "prompted.md").read_text()
    assert "| box@0.2 |" in table and "nothing found" in table
    drawn = (tmp_path / "plots" / "prompted.svg").read_text()
    assert drawn.startswith("<!-- medjax") and "Corrections" in drawn and "ellipsoid" in drawn
    page = report.section(tmp_path)
    assert "<svg" in page and "no text for kidney" in page
    again = evaluation.evaluate(segmenter, held, given, resamples=50)
    evaluation.write(again, tmp_path)  # its own files may be replaced
    assert again["cases"] == found["cases"]
    other = evaluation.compared(evaluation.earlier(tmp_path), again, "before")
    assert {row["mean"] for row in other["rows"].values()} == {0}
    (tmp_path / "prompted.json").write_text("{}")
    with pytest.raises(UsageError, match="did not write"):
        evaluation.write(found, tmp_path)


def test_cases_classes_and_sizes_can_be_chosen(segmenter, cases):
    held = {"Body": (CORPUS, cases)}
    given = Prompted(rows=("box",), cases=1, largest=1)
    found = evaluation.evaluate(segmenter, held, given, resamples=50)
    assert [(one["case"], one["class"]) for one in found["cases"]] == [("A", "liver")]
    given = Prompted(rows=("box",), cases=1, classes=("spleen",))
    found = evaluation.evaluate(segmenter, held, given, resamples=50)
    assert [one["class"] for one in found["cases"]] == ["spleen"]
    with pytest.raises(UsageError, match="nothing to ask for"):
        none = Prompted(rows=("box",), cases=1, classes=("heart",))
        evaluation.evaluate(segmenter, held, none)


def test_unusable_settings_are_refused_before_anything_is_read():
    for given, message in (
        (Prompted(rows=("bax",)), "unknown row"),
        (Prompted(draws=0), "unusable numbers"),
        (Prompted(clicks=-1), "unusable numbers"),
        (Prompted(clicks=22), "more clicks"),
        (Prompted(rows=("clicks@points5+-",), clicks=12), "more clicks"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluation.check(given)
    with pytest.raises(UsageError, match="reads no prompts"):
        evaluation.check(Prompted(), {})
    with pytest.raises(UsageError, match="reads no prompts"):
        evaluation.evaluate(object(), {}, Prompted())


def test_a_tight_box_that_does_not_beat_the_ellipsoid_is_said():
    key = Key("A", "a", "a", "liver")
    for values, word in (
        ((0.2, 0.3, 0.2, 0.3, 0.1), "BELOW"),
        ((0.5, 0.9, 0.4, 0.7, 0.5), "NOT clearly above"),
        ((0.7, 0.9, 0.8, 0.7, 0.9), "above"),
    ):
        record = prompting.Record(
            [
                prompting.Measured(key._replace(case=c, patient=c), "box", d, 1.0, 0.5, 0.6)
                for c, d in zip("abcde", values, strict=True)
            ]
        )
        (said,) = report.sentences(prompting.tables(record, resamples=100))
        assert f"{word} the ellipsoid" in said
