"""Colours of classes: 30 that can be told apart, the same wherever a class is drawn."""

import itertools

import numpy as np

from medjax import colours


def lab(rgb):
    """sRGB -> CIELAB (D65), after IEC 61966-2-1 and CIE 15."""
    rgb = np.asarray(rgb, float)
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = linear @ np.transpose(matrix) / (0.95047, 1, 1.08883)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def test_thirty_colours_can_be_told_apart_from_each_other_and_from_grey():
    assert lab([1, 1, 1]).round(1).tolist() == [100, 0, 0]
    found = lab([colours.shade(k) for k in range(30)])
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(found, 2)]
    assert min(distances) > 25 and np.hypot(found[:, 1], found[:, 2]).min() > 25
    assert len(colours.COMMON) == len(set(colours.COMMON)) == len(colours.PALETTE) == 30
    assert set(colours.SAME.values()) <= set(colours.COMMON)


def test_a_class_has_its_colour_in_every_corpus_and_order():
    many = colours.of_classes(["liver", "spleen", "left kidney", "zzz", "liver tumour"])
    few = colours.of_classes(["zzz", "liver"])
    assert few == {name: many[name] for name in few}
    assert (
        colours.of_classes(["Esophagus"])["Esophagus"]
        == colours.of_classes(["oesophagus"])["oesophagus"]
    )


def test_no_two_classes_share_a_colour():
    names = [f"class {k}" for k in range(104)]
    assert len(set(colours.of_classes(names).values())) == 104
    thirty = colours.of_classes(names[:20] + list(colours.COMMON[:10]))
    assert set(thirty.values()) == {colours.shade(k) for k in range(30)}
    assert colours.of_classes(names) == colours.of_classes(reversed(names))
