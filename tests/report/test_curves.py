"""Panels of curves and matrices as SVG."""

import re
import xml.etree.ElementTree as tree

from medjax.report import curves

POINTS = [curves.Point(1.0, 0.9, (0.8, 1.0), "tight"), curves.Point(0.5, 0.4)]


def circles(panel):
    svg = tree.fromstring(curves.svg([panel]))
    return [
        (float(one.get("cx")), float(one.get("cy")), one[0].text)
        for one in svg.iter("{http://www.w3.org/2000/svg}circle")
    ]


def test_points_lie_where_their_values_say():
    panel = curves.lines("Boxes", {"network": POINTS}, x="IoU", y="Dice", ends=(0.0, 1.0))
    (x0, y0, low), (x1, y1, high) = circles(panel)
    assert (x1 - x0) / curves.WIDTH == 0.5 and (y0 - y1) / curves.HEIGHT == 0.5
    assert x1 == curves.LEFT + curves.WIDTH
    assert low == "network : 0.400 at 0.5" and high == "network tight: 0.900 at 1"
    text = curves.svg([panel])
    assert len(re.findall('stroke-opacity="0.6"', text)) == 1  # one of them has an interval
    outside = curves.lines("B", {"a": [curves.Point(9, 1.5)]}, x="x", y="y", ends=(0, 5))
    ((x, y, _),) = circles(outside)
    assert (x, y) == (curves.LEFT + curves.WIDTH, curves.TOP)


def test_a_matrix_leaves_out_what_is_unknown_and_names_are_text_only():
    panel = curves.matrix("A", ["liver", "<b>"], [[0.9, None], [0.2, 0.5]], row="text")
    text = curves.svg([panel, panel])
    assert text.count("<rect") == 6 and "<b>" not in text and "&lt;b&gt;" in text
    svg = tree.fromstring(text)
    assert float(svg.get("width")) == round(2 * panel.width)
    shades = [one.get("fill-opacity") for one in svg.iter("{http://www.w3.org/2000/svg}rect")]
    assert shades[:3] == ["0.900", "0.200", "0.500"]
