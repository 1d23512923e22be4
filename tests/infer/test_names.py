"""Names of classes as parts of file names and cells of spreadsheets: safe, and distinct."""

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medjax.infer import names


def test_what_a_file_may_be_called():
    given_names = ["left kidney", "a/b", "../../etc", "...", "C+", "größe", "Liver", "liver"]
    assert names.file_stems(given_names) == [
        "left_kidney",
        "a_b",
        "etc",
        "class",
        "C+",
        "größe",
        "Liver",
        "liver_7",
    ]


@given(st.lists(st.text(min_size=0, max_size=300), max_size=6))
@example(["a_1", "a", "A"])
@example(["x" * 300, "x" * 299 + "y"])
def test_stems_are_distinct_short_and_stay_in_their_folder(given_names):
    found = names.file_stems(given_names)
    assert len({stem.casefold() for stem in found}) == len(given_names)
    for stem in found:
        assert os.path.basename(stem) == stem and stem not in ("", ".", "..")
        assert len(os.fsencode(stem)) <= names.STEM_BYTES + 10  # and a number where names are alike


def test_long_names_are_cut_and_told_apart():
    first, second = names.file_stems(["ä" * 150, "ä" * 149 + "b"])
    assert first != second and len(os.fsencode(first)) <= names.STEM_BYTES
    assert first.startswith("ä" * 93 + "_") and first[:93] == second[:93]


@pytest.mark.parametrize("name", ["=2+5", "+1", "-1", "@a", "\tx", "'quoted"])
def test_no_cell_is_a_formula(name):
    assert names.spreadsheet(name) == f"'{name}"


@given(st.text())
def test_a_cell_gives_its_name_back(name):
    assert names.from_spreadsheet(names.spreadsheet(name)) == name
