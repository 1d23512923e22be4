"""The declaration of what a network reads beside the image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.models import context
from medjax.models.context import Entry

SPEC = {
    "corpus": context.CORPUS,
    "spacing_mm": context.SPACING_MM,
    "voxel_ml": Entry((), "float32", derive=lambda facts: facts["spacing_mm"].prod(-1) / 1000),
    "points": Entry((5, 3), "float32", "window"),
    "organ": Entry((2,), "float32", "voxel"),
}


def test_shapes_follow_batch_and_patch():
    found = context.abstract(SPEC, 4, (6, 7, 8))
    assert {k: (v.shape, v.dtype.name) for k, v in found.items()} == {
        "corpus": ((4,), "int32"),
        "spacing_mm": ((4, 3), "float32"),
        "voxel_ml": ((4,), "float32"),
        "points": ((4, 5, 3), "float32"),
        "organ": ((4, 6, 7, 8, 2), "float32"),
    }
    made = context.zeros(SPEC, 4, (6, 7, 8))
    assert {k: (v.shape, v.dtype) for k, v in made.items()} == {
        k: (v.shape, v.dtype) for k, v in found.items()
    }
    assert all(not np.any(v) for v in made.values())


def test_a_module_without_a_declaration_reads_the_usual_facts():
    assert context.declared(object()) == context.DEFAULT

    class Own:
        reads = SPEC

    assert context.declared(Own()) is SPEC


def test_a_batch_provides_or_derives_every_entry():
    batch = context.zeros({k: SPEC[k] for k in SPEC if k != "voxel_ml"}, 2, (3, 3, 3))
    batch["spacing_mm"] = jnp.array([[1.0, 2.0, 5.0], [10.0, 10.0, 10.0]])
    found = jax.jit(lambda b: context.of_batch(SPEC, b))(batch | {"image": jnp.zeros(2)})
    assert set(found) == set(SPEC)
    np.testing.assert_allclose(found["voxel_ml"], [0.01, 1.0], rtol=1e-6)
    del batch["organ"]
    with pytest.raises(ModelError, match="reads 'organ', which the batch lacks"):
        context.of_batch(SPEC, batch)


def test_a_request_has_no_batch_axis_and_the_declared_shapes():
    facts = {
        "corpus": 3,
        "spacing_mm": (1.0, 2.0, 5.0),
        "points": np.zeros((5, 3)),
        "organ": np.zeros((9, 9, 9, 2)),
        "unused": 1,
    }
    found = context.of_request(SPEC, facts)
    assert found["corpus"].shape == () and found["corpus"].dtype == np.int32
    np.testing.assert_allclose(found["voxel_ml"], 0.01, rtol=1e-6)
    with pytest.raises(ModelError, match="another shape"):
        context.of_request(SPEC, facts | {"points": np.zeros((4, 3))})
    with pytest.raises(ModelError, match="the request lacks"):
        context.of_request(SPEC, {"corpus": 0, "spacing_mm": (1, 1, 1)})


def test_a_window_shifts_coordinates_and_cuts_voxels():
    organ = np.random.default_rng(0).random((9, 8, 7, 2), np.float32)
    points = np.array([[4.0, 5.0, 6.0]] * 5, np.float32)
    whole = context.of_request(
        SPEC, {"corpus": 0, "spacing_mm": (1, 1, 1), "points": points, "organ": organ}
    )
    seen = context.for_window(SPEC, whole, (1, 2, 3), (4, 4, 4))
    assert set(seen) == {"points", "organ"}
    np.testing.assert_array_equal(seen["points"], points - [1, 2, 3])
    np.testing.assert_array_equal(seen["organ"], organ[1:5, 2:6, 3:7])
    assert context.for_window(context.DEFAULT, {}, (0, 0, 0), (4, 4, 4)) == {}


def test_an_unknown_movement_is_refused():
    with pytest.raises(ModelError, match="unknown movement"):
        Entry(moves="patch")


def test_an_input_per_token_follows_the_blocks_of_the_patch():
    masked = Entry((), "bool", "voxel", block=(2, 4))
    assert context.zeros({"masked": masked}, 3, (6, 8))["masked"].shape == (3, 3, 2)
    whole = {"masked": np.arange(12).reshape(3, 4) % 5 == 0}
    seen = context.for_window({"masked": masked}, whole, (2, 4), (4, 8))
    np.testing.assert_array_equal(seen["masked"], whole["masked"][1:3, 1:3])
    with pytest.raises(ModelError, match="multiples of"):
        masked.full_shape((6, 9))
    with pytest.raises(ModelError, match="voxel"):
        Entry((), block=(2, 2))


def test_what_must_be_given_are_the_facts_that_entries_are_derived_from():
    found = context.sources(SPEC)
    assert {name: entry.derive for name, entry in found.items()} == dict.fromkeys(
        ("corpus", "spacing_mm", "points", "organ")
    )
    by_task = {"late": Entry((), "int32", derive=lambda facts: facts.get("task", 0) + 1)}
    assert context.sources(by_task) == {"task": context.TASK}
    wrong = {"age": Entry((), "float32", derive=lambda facts: facts["birthday"])}
    with pytest.raises(ModelError, match="'age' is derived from a fact that samples lack"):
        context.sources(wrong)


def test_parts_that_read_one_name_must_agree():
    both = context.union({"corpus": context.CORPUS}, {"corpus": context.CORPUS}, {})
    assert both == {"corpus": context.CORPUS} and isinstance(hash(both), int)
    with pytest.raises(ModelError, match="read 'corpus' differently"):
        context.union({"corpus": context.CORPUS}, {"corpus": Entry((2,))})


def test_a_missing_entry_of_a_call_is_named():
    assert context.needed({"task": 3}, "task", "gates") == 3
    for given in (None, {"corpus": 1}):
        with pytest.raises(ModelError, match="gates need the task of every sample"):
            context.needed(given, "task", "gates")
