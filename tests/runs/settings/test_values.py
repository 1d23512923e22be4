"""Texts of flags become values of the type of their field, or an error says what is expected."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medjax.runs.settings import values

PARSED = [
    ("12", int, 12),
    ("0x10", int, 16),
    ("1e-3", float, 1e-3),
    ("2", float, 2.0),
    ("true", bool, True),
    ("False", bool, False),
    ("1", bool, True),
    ("a,b", str, "a,b"),
    ("", str, ""),
    ("1,2", tuple[int, ...], (1, 2)),
    ("(1,2)", Sequence[int], (1, 2)),
    ("[1, 2]", Sequence[int], (1, 2)),
    ("64", Sequence[int], (64,)),
    ("", tuple[int, ...], ()),
    ("1.5,1,1", Sequence[float | int], (1.5, 1, 1)),
    ("a,b", tuple[str, ...], ("a", "b")),
    ("left kidney, liver", tuple[str, ...], ("left kidney", "liver")),
    ('"a, b","c"', tuple[str, ...], ("a, b", "c")),
    ("('liver',)", tuple[str, ...], ("liver",)),
    ("1,2", tuple[str, ...], ("1", "2")),
    ("name,", tuple[str, ...], ("name",)),
    ("(1,2,2),(2,2,2)", Sequence[Sequence[int]], ((1, 2, 2), (2, 2, 2))),
    ("(1,2,2)", Sequence[Sequence[int]], ((1, 2, 2),)),
    ("1,2", Sequence[Sequence[int]], ((1, 2),)),
    ('(".*", "fsdp")', Sequence[tuple[str, Any]], ((".*", "fsdp"),)),
    ("none", int | None, None),
    ("3", int | None, 3),
    ("7", int | Sequence[int], 7),
    ("7,7,5", int | Sequence[int], (7, 7, 5)),
    ("corpus", str | Sequence[int], "corpus"),
    ("0,0,1", str | Sequence[int], (0, 0, 1)),
    ("('a','b'),('c','d')", str | tuple[tuple[str, str], ...], (("a", "b"), ("c", "d"))),
    ("auto", str | tuple[tuple[str, str], ...], "auto"),
    ('{"a/b": "c"}', Mapping[str, str], {"a/b": "c"}),
    ('{"kind": "vit"}', str | Mapping[str, Any], {"kind": "vit"}),
    ("vit", str | Mapping[str, Any], "vit"),
    ("3", Any, 3),
    ("gate", Any, "gate"),
    ("high", Literal["high", "low"], "high"),
]


@pytest.mark.parametrize(("text", "kind", "expected"), PARSED, ids=str)
def test_a_text_becomes_a_value(text, kind, expected):
    found = values.parse(text, kind)
    assert found == expected and type(found) is type(expected)
    assert values.fits(found, kind)


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("1e3", int, "a whole number"),
        ("2.5", int, "a whole number"),
        ("abc", float, "a number"),
        ("nan", float, "a number"),
        ("7", bool, "True or False"),
        ("32x64x64", tuple[int, ...], "a list of whole numbers like 1,2"),
        ("8 8 8", tuple[int, ...], "a list of whole numbers like 1,2"),
        ("1,a", Sequence[float | int], "a list of numbers like 1,2"),
        ("a", Sequence[int] | None, "a list of whole numbers like 1,2, or None"),
        ("a", Sequence[Sequence[int]], "a list of lists like (1,2,2),(1,2,2)"),
        ("a", Mapping[str, str], 'fields like {"name": value}'),
        ("mid", Literal["high", "low"], "high or low"),
        ("x", Callable, "a value"),
    ],
    ids=str,
)
def test_a_wrong_text_is_refused_with_what_is_expected(text, kind, expected):
    with pytest.raises(ValueError) as error:
        values.parse(text, kind)
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("value", "kind", "good"),
    [
        (5, int, True),
        (5.0, int, True),
        (5.5, int, False),
        ("5", int, False),
        (True, int, False),
        (1, float, True),
        ("1", float, False),
        (True, bool, True),
        (2, bool, False),
        ("True", bool, False),
        ([1, 2], tuple[int, ...], True),
        ((1, "a"), tuple[int, ...], False),
        (((".*", True),), tuple[tuple[str, Any], ...], True),
        (((".*", True, 1),), tuple[tuple[str, Any], ...], False),
        (None, int, True),
        ({"a": "b"}, Mapping[str, str], True),
        ({"a": 1}, Mapping[str, str], False),
        ("vit", Mapping[str, Any], False),
        (len, Callable, True),
        ("len", Callable, False),
    ],
    ids=str,
)
def test_a_value_fits_its_type_or_not(value, kind, good):
    assert values.fits(value, kind) == good


@given(st.lists(st.integers(-1000, 1000), max_size=5).map(tuple))
def test_what_python_prints_is_read_again(numbers):
    assert values.parse(repr(numbers), tuple[int, ...]) == numbers
    assert values.parse(",".join(map(str, numbers)), tuple[int, ...]) == numbers


@given(st.text(max_size=20))
def test_any_text_is_a_value_or_a_value_error(text):
    for kind in (int, float, bool, tuple[int, ...], Sequence[Sequence[int]], Mapping[str, int]):
        try:
            assert values.fits(values.parse(text, kind), kind)
        except ValueError:
            pass


def test_functions_cannot_be_written():
    assert not values.is_writable(Callable) and not values.is_writable(type(len) | None)
    assert values.is_writable(int | None) and values.is_writable(Sequence[int])
