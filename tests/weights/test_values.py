"""What the byte code of a weight file may build: plain values, or an error; nothing is called."""

from collections import OrderedDict

import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.weights.formats import values

STATE = (3, "<", None, None, None, -1, -1, 0)


class Trap:
    """A value whose methods must never be called."""

    def __hash__(self):
        raise AssertionError("hashed")

    def __repr__(self):
        raise AssertionError("printed")

    def __eq__(self, other):
        raise AssertionError("compared")


def test_a_number_type_takes_its_byte_order():
    for order, expected in (("<", "<f4"), (">", ">f4"), ("|", "=f4")):
        made = values.kind("f4", False, True).build((3, order, *STATE[2:]))
        assert made.dtype == np.dtype(expected)
    assert values.kind("i8").build((*STATE, None)).dtype == np.int64


@pytest.mark.parametrize("name", ["O", "V8", "f4,f4", "S5", 5, None, "M8"])
def test_types_that_are_no_numbers(name):
    with pytest.raises(ModelError, match="not made of numbers"):
        values.kind(name)


@pytest.mark.parametrize(
    "state",
    [
        (3, "<", None, ("a",), {"a": 1}, -1, -1, 0),
        (3, "x", None, None, None, -1, -1, 0),
        (3, "<", None, None, None, -1, -1, 63),
        (3, "<"),
        [*STATE],
        (3, "<", Trap(), None, None, -1, -1, 0),
    ],
)
def test_types_with_fields_or_objects(state):
    with pytest.raises(ModelError, match="fields or objects"):
        values.kind("f4").build(state)


def test_arrays_from_bytes():
    data = np.arange(6, dtype="<i2").tobytes()
    kind = values.kind("i2")
    assert values.filled(data, kind, (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert values.filled(data, kind, (2, 3), "F").tolist() == [[0, 2, 4], [1, 3, 5]]
    assert values.filled(data.decode("latin1"), kind, (6,)).tolist() == [*range(6)]
    assert values.unfilled().build((1, (3, 2), kind, True, data)).tolist() == [
        [0, 3],
        [1, 4],
        [2, 5],
    ]
    assert values.scalar(kind, data[2:4]) == 1


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 4), "another size than its bytes"),
        ((-1, 6), "another size"),
        ((2**62, 0), "another size"),
        ((2.0, 3), "another size"),
        ([2, 3], "not made of numbers"),
        ((1,) * 33, "not made of numbers"),
    ],
)
def test_arrays_whose_bytes_do_not_fit(shape, words):
    with pytest.raises(ModelError, match=words):
        values.filled(bytes(12), values.kind("i2"), shape)


@pytest.mark.parametrize(
    "call",
    [
        lambda: values.filled(bytes(4), "i2", (2,)),
        lambda: values.filled(Trap(), values.kind("i2"), (2,)),
        lambda: values.unfilled().build((1, 2)),
        lambda: values.scalar(values.kind("f8"), bytes(4)),
        lambda: values.scalar("f8", bytes(8)),
        lambda: values.ordered(5),
        lambda: values.ordered([(1, 2, 3)]),
        lambda: values.ordered([(Trap(), 1)]),
        lambda: values.members(5),
        lambda: values.members([[1]]),
        lambda: values.sequence("abc"),
        lambda: values.extent("a"),
        lambda: values.extent(),
    ],
)
def test_what_cannot_be_built_is_refused_without_touching_it(call):
    with pytest.raises(ModelError):
        call()


def test_containers():
    assert values.ordered([("b", 1), ["a", 2]]) == OrderedDict(b=1, a=2)
    assert list(values.ordered({"b": 1, "a": 2})) == ["b", "a"]
    assert values.members([1, "a", (1, 2)]) == {1, "a", (1, 2)}
    assert values.sequence([1, 2]) == (1, 2) and values.extent(1, None, 2) == slice(1, None, 2)


@pytest.mark.parametrize(
    "value", ["a", b"a", 1.5, None, True, (1, "a"), np.int64(3), np.float32(1)]
)
def test_keys(value):
    assert values.key(value) is value


@pytest.mark.parametrize("value", [[1], {}, (1, [2]), Trap(), (Trap(),), 1 << 60, -(1 << 61)])
def test_values_that_are_no_keys(value):
    with pytest.raises(ModelError, match="a key that is"):
        values.key(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x" * 100, repr("x" * 40)),
        (1 << 600, "int"),
        (None, "None"),
        (values.Name("os", "system", None), "os.system"),
        (([(1,)], 2), "((tuple), 2)"),
        (list(range(12)), "(0, 1, 2, 3, 4, 5, 6, 7, 8, ...)"),
        (Trap(), "Trap"),
        ({"a": 1}, "dict"),
    ],
)
def test_a_short_text_for_any_value(value, text):
    assert values.described(value) == text


def test_structures_that_are_too_large_or_hold_themselves():
    shared = [1.0] * 100
    values.check({"a": shared, "b": (shared, {3}), "c": np.ones(3)})
    loop = {}
    loop["a"] = [loop]
    with pytest.raises(ModelError, match="contains itself"):
        values.check(loop)
    deep = []
    for _ in range(values.DEPTH):
        deep = [deep]
    with pytest.raises(ModelError, match="found depth 65"):
        values.check(deep)
    values.check(deep[0])
    bomb = [0] * 10
    for _ in range(8):
        bomb = [bomb] * 10  # ten thousand million values, ninety in memory
    with pytest.raises(ModelError, match="too deep or too large"):
        values.check(bomb)
    with pytest.raises(ModelError, match="an array without numbers"):
        values.check([values.unfilled()])
