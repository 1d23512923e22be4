"""Plots as SVG: marks where the numbers say, and names that stay text."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from medjax.report import charts

SVG = "{http://www.w3.org/2000/svg}"
EVIL = '</text><script>alert("\x1b[2J")</script>'


def parsed(text):
    """The drawing, which must be well-formed, and its size."""
    root = ET.fromstring(text)
    width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
    for circle in root.iter(f"{SVG}circle"):
        assert 0 <= float(circle.get("cx")) <= width and 0 <= float(circle.get("cy")) <= height
    return root


def places(root, tag, *names):
    return np.array([[float(e.get(n)) for n in names] for e in root.iter(SVG + tag)])


def test_a_box_holds_quartiles_median_and_whiskers():
    values = [0.1, 0.5, 0.6, 0.7, 0.8]
    root = parsed(
        charts.box_plot("Dice", {"liver": [(f"c{v}", v) for v in values]}, low=0.0, high=1.0)
    )
    dots = places(root, "circle", "cx")[:, 0]
    scale = np.polyfit(values, dots, 1)
    assert np.allclose(np.polyval(scale, values), dots, atol=0.06)  # linear, one decimal

    def at(value):
        return pytest.approx(np.polyval(scale, value), abs=0.11)

    [(x, width)] = places(root, "rect", "x", "width")
    assert x == at(0.5) and x + width == at(0.7)
    lines = places(root, "line", "x1", "x2", "y1", "y2")
    whiskers, median = lines[-2], lines[-1]
    assert median[0] == median[1] == at(0.6)
    assert whiskers[0] == at(0.5) and whiskers[1] == at(0.8)  # 0.1 lies beyond 1.5 IQR
    ticks = [e.text for e in root.iter(f"{SVG}text") if re.fullmatch(r"[\d.]+", e.text)]
    assert ticks == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    tips = [e.text for e in root.iter(f"{SVG}title")]
    assert tips[0] == "c0.1: 0.1"


def test_values_beyond_the_axis_lie_on_its_ends_and_no_case_is_said():
    root = parsed(charts.box_plot("NSD", {"a": [("x", -1), ("y", 9)], "b": []}, 0.0, 1.0))
    ends = places(root, "circle", "cx")[:, 0]
    grid = places(root, "line", "x1")[:6, 0]
    assert (ends.min(), ends.max()) == (grid.min(), grid.max())
    assert "no case" in [e.text for e in root.iter(f"{SVG}text")]


def test_an_axis_without_ends_takes_those_of_the_values():
    root = parsed(charts.box_plot("HD95", {"a": [("x", 12.0), ("y", 48.0)]}))
    ticks = [e.text for e in root.iter(f"{SVG}text") if re.fullmatch(r"\d+", e.text)]
    assert ticks == ["0", "10", "20", "30", "40"]
    assert len(parsed(charts.box_plot("empty", {"a": []})).findall(f"{SVG}circle")) == 0


@pytest.mark.parametrize("limits", [(-6.0, 10.0), None])
def test_agreement_of_volumes(limits):
    points = [("a", 100.0, 4.0), ("b", 200.0, -2.0), ("c", 150.0, 4.0)]
    root = parsed(charts.bland_altman("liver", points, 2.0, limits))
    dots = places(root, "circle", "cx", "cy")
    assert dots[0, 0] < dots[2, 0] < dots[1, 0] and dots[0, 1] == dots[2, 1] < dots[1, 1]
    lines = places(root, "line", "y1")[:, 0]
    assert len(lines) == (3 if limits else 1)
    slope, start = np.polyfit([4.0, -2.0], dots[:2, 1], 1)
    assert np.allclose(lines, [start + slope * v for v in (2.0, *(limits or ()))], atol=0.2)
    assert next(e.text for e in root.iter(f"{SVG}title")) == "a: +4 ml at 100 ml"
    assert "bias 2" in [e.text for e in root.iter(f"{SVG}text")]


def test_one_point_and_equal_volumes_can_be_drawn():
    root = parsed(charts.bland_altman("x", [("a", 0.0, 0.0)], 0.0, None))
    assert len(root.findall(f"{SVG}circle")) == 1


@pytest.mark.parametrize(
    "draw",
    [
        lambda name: charts.box_plot(name, {name: [(name, 0.5)]}),
        lambda name: charts.bland_altman(name, [(name, 1.0, 0.5)], 0.5, None),
    ],
)
def test_names_stay_text(draw):
    root = parsed(draw(EVIL))
    assert root.findall(f".//{SVG}script") == []
    assert any("\\x1b[2J" in (e.text or "") for e in root.iter())


def test_long_names_are_cut():
    root = parsed(charts.box_plot("t", {"x" * 60: [("c", 0.5)]}))
    assert "x" * 33 + "…" in [e.text for e in root.iter(f"{SVG}text")]
