"""Windows blended on a device against those of the host: the same values, masks and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import decision
from medjax.errors import PredictError, UsageError
from medjax.infer.device import ring
from medjax.infer.device.ring import DeviceScores
from medjax.infer.scorer import Scorer, default_devices
from medjax.infer.segmenter import Segmenter
from medjax.infer.windows import WindowScores
from medjax.prompts.request import Request
from tests.infer.test_segmenter import SPACE, model, nested, scan

RAMP = np.linspace(-1, 1, 8, dtype=np.float32)


@jax.jit
def unlike(batch):
    """Scores that differ between the windows of a voxel, in three classes."""
    ramp = RAMP[: batch.shape[-2]].reshape(-1, 1)
    return jnp.tanh(batch * jnp.array([1.0, -2.0, 0.5]) + ramp)


def pair(shape, window, rows, **more):
    image = np.random.default_rng(sum(shape)).normal(size=(*shape, 1)).astype(np.float32)
    host = WindowScores(unlike, image, window, 3, **more)
    own = {"rows": rows, "device": jax.devices()[0]}
    half = DeviceScores(unlike, image, window, 3, **own, half=True, **more)
    return host, DeviceScores(unlike, image, window, 3, **own, **more), half


@pytest.mark.parametrize(
    "shape, window, more",
    [
        ((70, 20, 13), (8, 8, 8), {"batch_windows": 5}),  # the ring moves
        ((40, 40, 12), (8, 8, 8), {"columns": slice(9, 21), "overlap": 0.25}),  # a strip
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                # batches of many rows; a scan smaller than the window; slices
                ((90, 7, 9), (8, 8, 8), {"batch_windows": 7, "weighted": False}),
                ((5, 6, 30), (8, 8, 8), {"batch_windows": 2}),
                ((9, 21, 17), (8, 8), {"batch_windows": 4}),
            )
        ),
    ],
)
def test_the_values_are_those_of_the_host(shape, window, more):
    host, full, half = pair(shape, window, 4, **more)
    assert full.shape == half.shape == host.shape
    at, size = 0, shape[0]
    for start in range(0, size, 3):  # a row is asked for twice
        rows = slice(max(start - 1, 0), min(start + 3, size))
        expected = host[rows]
        np.testing.assert_allclose(full[rows], expected, atol=1e-6)
        np.testing.assert_allclose(half[rows], expected, atol=2e-3)
        at = rows.stop
    assert at == size
    if size > 64:
        assert full._mean.shape[0] < size and full._base > 0
    with pytest.raises(UsageError, match="gone"):
        full[0:1]
    with pytest.raises(UsageError, match="announced"):
        full[size - 5 : size]


@pytest.mark.parametrize("start", [0, 37])
@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_narrowed_rows_are_those_of_the_host(kind, start):
    """Also where the first rows are never asked for."""
    rule = decision.make(kind, "prob")
    host, full, _ = pair((70, 11, 9), (8, 8, 8), 5, batch_windows=3)
    counts = set()
    for first in range(start, 70, 5):
        rows = slice(first, min(first + 5, 70))
        expected, kept = host.narrowed(rows, rule)
        found, same = full.narrowed(rows, rule)
        np.testing.assert_array_equal(kept, same)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        counts.add(len(kept))
    assert max(counts) > 0


def test_nothing_left_over_by_narrowing():
    never = jax.jit(lambda batch: jnp.full((*batch.shape[:-1], 3), 0.01))
    image = np.zeros((9, 9, 9, 1), np.float32)
    scores = DeviceScores(never, image, (8, 8, 8), 3, rows=9, device=jax.devices()[0])
    block, kept = scores.narrowed(slice(0, 9), decision.make("softmax", "prob"))
    assert len(kept) == 0
    np.testing.assert_allclose(block, np.full((9, 9, 9, 1), 0.03), atol=1e-6)


def test_scores_that_are_no_numbers_are_refused():
    broken = jax.jit(lambda batch: jnp.where(batch > 0.5, jnp.nan, batch))
    image = np.zeros((20, 9, 9, 1), np.float32)
    image[15, 4, 4] = 1
    scores = DeviceScores(broken, image, (8, 8, 8), 1, rows=5, device=jax.devices()[0])
    assert not scores[0:4].any()
    with pytest.raises(PredictError, match="not finite"):
        scores.narrowed(slice(14, 18), decision.make("sigmoid", "prob"))


def test_scans_of_similar_sizes_share_the_blending(monkeypatch):
    before = ring._blended._cache_size()
    for shape in ((20, 18, 13), (23, 15, 12), (19, 20, 9)):
        _, full, _ = pair(shape, (8, 8, 8), 4, batch_windows=6)
        full[0:4]
    assert ring._blended._cache_size() <= before + 1


def same(one, other):
    assert np.array_equal(one.label_map, other.label_map)
    assert all(np.array_equal(one.masks[name], other.masks[name]) for name in one.masks.names)


@pytest.mark.parametrize(
    "options, spacing",
    [
        ({}, (2.0, 1.5, 1.5)),
        pytest.param({"average": "logit", "half": True}, (3.1, 0.9, 1.1), marks=pytest.mark.slow),
        pytest.param({"activation": "softmax"}, (3.1, 0.9, 1.1), marks=pytest.mark.slow),
    ],
)
def test_masks_are_those_of_the_host(tmp_path, options, spacing):
    volume = scan(tmp_path / "a.nii.gz", nested((40, 14, 12)), np.diag([*spacing[::-1], 1.0]))
    request = Request("Liver", SPACE.classes)
    found = {b: Segmenter(model(), backend=b, **options) for b in ("host", "device")}
    made = {b: one.segment(volume, request) for b, one in found.items()}
    assert made["host"].label_map.any()
    same(made["host"], made["device"])
    assert found["host"].settings() == {
        k: v for k, v in found["device"].settings().items() if k != "half"
    }


def test_all_devices_give_the_masks_of_one(tmp_path):
    volume = scan(tmp_path / "a.nii.gz", nested((30, 14, 12)))
    assert len(jax.devices()) == 8
    one = Segmenter(model(), backend="host").segment(volume, Request("Liver"))
    for backend in ("host", "device"):
        many = Segmenter(model(), backend=backend, devices=jax.devices(), batch_windows=1)
        assert many.networks[0].batch_windows == 8
        same(one, many.segment(volume, Request("Liver")))


@pytest.mark.slow
def test_maps_and_strips_are_those_of_the_host(tmp_path):
    volume = scan(tmp_path / "a.nii.gz", nested((20, 40, 12)), np.diag([1.1, 0.9, 3.1, 1.0]))
    options = {"uncertainty": True, "mirror_axes": (2,)}
    host, own = (Segmenter(model(), backend=b, **options) for b in ("host", "device"))
    a, b = (one.segment(volume, Request("Liver")) for one in (host, own))
    same(a, b)
    assert a.maps.keys() == b.maps.keys() and len(a.maps) == 2
    for name in a.maps:
        np.testing.assert_allclose(a.maps[name], b.maps[name], atol=1e-4)
    small = Segmenter(model(), backend="device", memory_gib=4e-4)
    plan = small.cut(small.prepare_all(volume, Request("Liver")), SPACE.classes)
    assert len(plan.strips) > 1
    same(host.segment(volume, Request("Liver")), small.segment(volume, Request("Liver")))


def test_backends_and_devices_by_default():
    assert Scorer(model()).backend == "host"  # this is a CPU
    assert Scorer(model()).device == jax.devices()[0] and len(default_devices()) == 1
    with pytest.raises(UsageError, match="unknown backend 'devise'"):
        Scorer(model(), backend="devise")


def test_a_full_device_halves_the_windows_then_blends_on_the_host(tmp_path, monkeypatch):
    volume = scan(tmp_path / "a.nii.gz", nested())
    segmenter, said = Segmenter(model(), backend="device", batch_windows=4), []
    segmenter.warn = said.append

    def full(*args, **more):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    monkeypatch.setattr("medjax.infer.scorer.DeviceScores", full)
    found = segmenter.segment(volume, Request("Liver"))
    assert [line.split("; ")[1] for line in said] == [
        "trying 2",
        "trying to blend the windows on the host (infer.backend)",
    ]
    same(found, Segmenter(model()).segment(volume, Request("Liver")))
