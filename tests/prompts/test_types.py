"""Names, shapes and values of prompts."""

import dataclasses

import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.models.context import Entry
from medjax.prompts import types


def entries(**kw):
    return {n: Entry(leaf.shape, leaf.dtype) for n, leaf in types.leaves(8, **kw).items()}


def test_every_array_has_an_axis_of_queries_and_a_value_for_its_absence():
    found = types.leaves(8, vector=512, mask=(4, 8, 8), task=True)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in found.items()} == {
        "prompt_points": ((8, 21, 3), "float32"),
        "prompt_point_kind": ((8, 21), "int32"),
        "prompt_box": ((8, 6), "float32"),
        "prompt_has": ((8, 3), "bool"),
        "prompt_text": ((8,), "int32"),
        "prompt_vector": ((8, 512), "float32"),
        "prompt_mask": ((8, 4, 8, 8), "float32"),
        "prompt_task": ((8,), "int32"),
    }
    assert set(types.leaves(8)) == {
        f"prompt_{n}" for n in ("points", "point_kind", "box", "has")
    } | {"prompt_text"}
    empty = found[types.KIND].empty(2)
    assert empty.shape == (2, 8, 21) and np.all(empty == types.ABSENT)


@pytest.mark.parametrize("kw", [{}, {"vector": 512}, {"mask": (4, 8, 8)}, {"task": True}])
def test_what_a_network_reads_is_recognised(kw):
    assert types.of_spec(entries(**kw) | {"corpus": Entry()}) == types.leaves(8, **kw)


def test_a_network_without_prompts_has_none():
    assert types.of_spec({"corpus": Entry()}) == {}


def test_a_network_that_reads_other_prompts_is_refused():
    spec = entries()
    spec["prompt_box"] = dataclasses.replace(spec["prompt_box"], shape=(8, 4))
    with pytest.raises(UsageError, match="other prompts"):
        types.of_spec(spec)
    with pytest.raises(UsageError, match="other prompts"):
        types.of_spec({"prompt_box": Entry((8, 6), "float32")})


def test_the_six_sets_name_their_kinds():
    assert [types.kinds_of(name) for name in types.SETS] == [
        (True, False, True),
        (False, True, True),
        (False, False, True),
        (False, True, False),
        (True, False, False),
        (True, True, False),
    ]
    with pytest.raises(UsageError, match="boks"):
        types.kinds_of("boks+text")
