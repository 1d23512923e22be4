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
