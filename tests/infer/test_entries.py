"""Inputs that a network reads beside the image, at prediction: facts of the case, coordinates and
arrays of voxels go with their window, at padded borders and in mirrors too.
"""

import itertools

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from medjax.errors import ModelError, PredictError, UsageError
from medjax.infer import entries, windows
from medjax.infer.model import Model
from medjax.infer.scorer import Scorer
from medjax.infer.segmenter import Segmenter
from medjax.labels import Corpus, merge
from medjax.models import context
from medjax.models.context import Entry
from medjax.prepare.plan import Intensity, Plan
from medjax.prompts.request import Request
from medjax.scans import nifti

CORPUS = Corpus("A", ((1, ("a",)), (2, ("b",)), (3, ("c",))), channels=("CT",))
PLAN = Plan({"A": (1.0, 2.0, 5.0)}, {"CT": Intensity("nonorm")})
SPACE = merge([CORPUS])
READS = {
    "voxel_ml": Entry((), "float32", derive=lambda facts: facts["spacing_mm"].prod(-1) / 1000),
    "points": Entry((2, 3), "float32", "window"),
    "organ": Entry((2,), "float32", "voxel"),
}
FLAT = {"point": Entry((2,), "float32", "window"), "organ": Entry((), "float32", "voxel")}


def logits_of(numpy, image, context, dims):
    """What the toy network does, for one window (*window, 1), in either library.

    a: the organ, scaled by the volume of a voxel; the same whatever the window.
    b: how far a voxel is from the second point; the same whatever the window.
    c: looks at the left neighbour within the window, and at the place of the first point in it.
    """
    axes = numpy.stack(numpy.meshgrid(*map(numpy.arange, image.shape[:-1]), indexing="ij"), -1)
    points = context.get("points", numpy.stack([context.get("point", numpy.zeros(dims))] * 2))
    organ = context["organ"] if "points" in context else context["organ"][..., None]
    a = image[..., 0] * organ[..., 0] + 10 * context.get("voxel_ml", 0.0)
    b = ((axes - points[1]) ** 2).sum(-1) / 50 - 1
    c = numpy.roll(organ[..., -1], 1, -1) - image[..., 0] / 2 + points[0].sum() / 20
    return numpy.stack([a, b, c], -1)


def apply(params, image, context):
    return {
        "logits": jax.vmap(lambda i, c: logits_of(jnp, i, c, i.ndim - 1))(image, dict(context))
        + params
    }


def model(reads=READS, window=(8, 8, 8), apply=apply):
    return Model(apply, jnp.zeros(()), PLAN, SPACE, window, len(window), reads=reads)


def volume(tmp_path, shape, seed=0):
    array = np.random.default_rng(seed).uniform(0.5, 2, shape).astype(np.float32)
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(array.T, np.diag([5.0, 2.0, 1.0, 1.0])), path)
    return nifti.read(path)


def prompts(shape, seed=1):
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, shape, (2, 3)).astype(np.float32)
    return {"points": points, "organ": rng.normal(size=(*shape, 2)).astype(np.float32)}


def flat_prompts(shape, seed=1):
    given = prompts(shape, seed)
    return {"point": given["points"][0, 1:], "organ": given["organ"][..., 0]}


def window_by_window(image, given, window, mirror_axes=(), overlap=0.5):
    """Logits (z, y, x, c): every window cut, mirrored, computed and blended one by one, in float64.

    2D windows are those of one slice.
    """
    dims, whole = len(window), (1, *window) if len(window) == 2 else window
    pad = windows.padding(image.shape[:3], whole)
    padded = np.pad(image, [*pad, (0, 0)]).astype(np.float64)
    organ = np.pad(given["organ"], pad + [(0, 0)] * (given["organ"].ndim - 3))
    low = np.array([before for before, _ in pad])
    total, weight = np.zeros((*padded.shape[:3], 3)), np.zeros(padded.shape[:3])
    importance = windows.gaussian(whole)
    places = itertools.product(
        *(windows.starts(n, w, overlap) for n, w in zip(padded.shape[:3], whole, strict=True))
    )
    for place in places:
        cut = tuple(slice(p, p + w) for p, w in zip(place, whole, strict=True))
        seen = np.array(place) - low  # the first voxel, counted in the scan
        mean = 0
        for flips in itertools.product((False, True), repeat=len(mirror_axes)):
            flipped = [a for a, yes in zip(mirror_axes, flips, strict=True) if yes]
            facts = {"voxel_ml": 0.01} if "points" in given else {}
            part, cover = padded[cut], organ[cut]
            if dims == 2:
                part, cover = part[0], cover[0]
            facts["organ"] = np.flip(cover, flipped)
            for name in given.keys() & {"points", "point"}:
                at = given[name] - seen[3 - dims :]
                for axis in flipped:
                    at[..., axis] = window[axis] - 1 - at[..., axis]
                facts[name] = at
            mean = mean + np.flip(logits_of(np, np.flip(part, flipped), facts, dims), flipped)
        total[cut] += importance[..., None] * mean.reshape(*whole, 3) / 2 ** len(mirror_axes)
        weight[cut] += importance
    found = total / weight[..., None]
    return found[tuple(slice(b, b + n) for b, n in zip(low, image.shape[:3], strict=True))]


SHAPES = [(12, 14, 11), (5, 13, 7), (3, 4, 5)]  # larger than the window, partly padded, all padded


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axes", [(), (2,), (0, 1, 2)])
def test_predictions_equal_those_window_by_window(tmp_path, shape, axes):
    scan, given = volume(tmp_path, shape), prompts(shape)
    scorer = Scorer(model(), average="logit", mirror_axes=axes, batch_windows=3)
    found, _ = scorer.scores(scan, Request("A", prompts=given))
    expected = window_by_window(scan.array[..., None], given, (8, 8, 8), axes)
    assert np.allclose(found, special.expit(expected), atol=2e-5)
    moved, _ = scorer.scores(scan, Request("A", prompts=given | {"points": given["points"] + 1}))
    assert scorer.compiled == 1 and np.abs(moved - found).max() > 0.01


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axes", [(), (0, 1)])
def test_what_no_window_changes_equals_the_whole_volume(tmp_path, shape, axes):
    """Classes a and b need nothing of the window: blended, they are what the scan at once gives."""
    scan, given = volume(tmp_path, shape), prompts(shape)
    found, _ = Scorer(model(), average="logit", mirror_axes=axes).scores(
        scan, Request("A", ("a", "b"), prompts=given)
    )
    whole = logits_of(np, scan.array[..., None], given | {"voxel_ml": 0.01}, 3)
    assert np.allclose(found, special.expit(whole[..., :2]), atol=2e-5)


@pytest.mark.parametrize("axes", [(), (0, 1)])
def test_slices(tmp_path, axes):
    shape = (3, 5, 19)
    scan, given = volume(tmp_path, shape), flat_prompts(shape)
    scorer = Scorer(model(FLAT, (8, 8)), average="logit", mirror_axes=axes, batch_windows=4)
    found, _ = scorer.scores(scan, Request("A", prompts=given))
    expected = window_by_window(scan.array[..., None], given, (8, 8), axes)
    assert np.allclose(found, special.expit(expected), atol=2e-5)


def test_strips_members_and_devices_get_the_same_inputs(tmp_path):
    shape = (9, 30, 11)
    scan, asked = volume(tmp_path, shape), Request("A", prompts=prompts(shape))
    plain = Segmenter(model(), mirror_axes=(1,)).segment(scan, asked)
    assert len(np.unique(plain.label_map)) > 2
    devices = jax.local_devices()[:2]
    shared = Segmenter(
        model(), mirror_axes=(1,), ensemble=[jnp.zeros(())], devices=devices, batch_windows=1
    )
    low = Segmenter(model(), mirror_axes=(1,))
    prepared = low.prepare_all(scan, asked)
    low.limit = 1 << 21
    while len(low.cut(prepared, SPACE.classes).strips) < 3:
        low.limit = int(low.limit * 0.95)
    for other in (shared, low):
        assert np.array_equal(other.segment(scan, asked).label_map, plain.label_map)


def test_a_network_is_given_what_it_declares_and_nothing_else(tmp_path):
    seen = []

    def looks(params, image, context):
        seen.append({name: (x.shape, x.dtype.name) for name, x in context.items()})
        return {"logits": jnp.repeat(image, 3, -1)}

    scan = volume(tmp_path, (8, 8, 8))
    for reads in ({}, {"task": context.TASK}, context.DEFAULT):
        Segmenter(model(reads, apply=looks)).segment(scan, Request("A"))
    assert seen == [
        {},
        {"task": ((2,), "int32")},
        {
            "corpus": ((2,), "int32"),
            "modality": ((2,), "int32"),
            "spacing_mm": ((2, 3), "float32"),
        },
    ]


def test_nothing_is_cut_for_a_network_without_moving_inputs(tmp_path, monkeypatch):
    cut, scan = [], volume(tmp_path, (8, 8, 8))

    class Counted(entries.Moving):
        def __init__(self, spec, *facts):
            cut.append(set(spec))
            super().__init__(spec, *facts)

    monkeypatch.setattr(entries, "Moving", Counted)
    plain = model(apply=lambda p, image, c: {"logits": jnp.repeat(image, 3, -1)}, reads={})
    Segmenter(plain).segment(scan, Request("A"))
    assert cut == []
    Segmenter(model()).segment(scan, Request("A", prompts=prompts((8, 8, 8))))
    assert cut == [set(READS)]


def test_arrays_of_voxels_count_as_channels_of_the_image():
    """In the forecast of memory."""
    shape = (32, 32, 32)
    with_organ = Scorer(model()).footprint(shape, 3)
    assert with_organ.image_channels == 3 and entries.floats(FLAT) == 1


def test_missing_and_misplaced_inputs_are_refused(tmp_path):
    scan, given = volume(tmp_path, (5, 13, 7)), prompts((5, 13, 7))
    made = Segmenter(model())
    with pytest.raises(ModelError, match="reads 'points', which the request lacks"):
        made.segment(scan, Request("A"))
    with pytest.raises(ModelError, match="input 'points' has another shape"):
        made.segment(scan, Request("A", prompts=given | {"points": np.zeros((3, 3))}))
    with pytest.raises(PredictError, match="'organ' lies on another grid than the scan"):
        made.segment(scan, Request("A", prompts=given | {"organ": np.zeros((5, 13, 8, 2))}))
    for window, shape in (((8, 8), (2, 3)), ((8, 8, 8), (3, 2)), ((8, 8, 8), ())):
        with pytest.raises(UsageError, match="'points' holds no coordinates of its windows"):
            Scorer(model({"points": Entry(shape, "float32", "window")}, window))


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.integers(1, 7)] * 3),
    st.integers(0, 1 << 20),
)
def test_cut_and_shifted_as_the_image_is(shape, window, seed):
    """An array that holds every voxel's own coordinates, cut, minus a point: the same number in
    every window.
    """
    spec = {"at": Entry((3,), "float32", "voxel"), "point": Entry((3,), "float32", "window")}
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).astype(np.float32)
    point = np.random.default_rng(seed).integers(0, shape).astype(np.float32)
    moving = entries.Moving(spec, {"at": grid, "point": point}, shape, window)
    pad = windows.padding(shape, window)
    sizes = [n + sum(p) for n, p in zip(shape, pad, strict=True)]
    places = list(
        itertools.product(*(windows.starts(n, w) for n, w in zip(sizes, window, strict=True)))
    )
    found = moving(places, len(places) + 2)
    inside = np.pad(np.ones(shape, bool), pad)
    for i, place in enumerate(places):
        cut = tuple(slice(p, p + w) for p, w in zip(place, window, strict=True))
        local = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij"), -1)
        from_point = (local - found["point"][i])[inside[cut]]
        assert np.array_equal(from_point, (found["at"][i] - point)[inside[cut]])
        assert not found["at"][i][~inside[cut]].any()
    assert not any(values[len(places) :].any() for values in found.values())
