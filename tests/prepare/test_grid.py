"""Grids of a plan: keys of earlier plans stay, and the way to a native or fixed grid and back is
that of a direct resampling.
"""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medjax.corpora.sources import read_corpus
from medjax.errors import UsageError
from medjax.prepare import geometry, store
from medjax.prepare.fingerprint import fingerprint
from medjax.prepare.grid import Grid, typical_spacing
from medjax.prepare.intensity import Intensity
from medjax.prepare.plan import Plan, make_plan
from medjax.prepare.planner import explain, plan_experiment, prepared_shapes
from medjax.prepare.prepare import prepare
from medjax.prepare.resample import separate_axis
from medjax.scans import grid as grids
from tests.prepare.test_fingerprint import printed
from tests.prepare.test_geometry import ORIENTATIONS, affine_of, blob, volume_of
from tests.support.raw import write_corpus

SIZES = [(6, 12, 10), (3, 20, 9), (16, 5, 7)]
SPACINGS = [(1.0, 1.0, 1.0), (1.3, 0.8, 0.7), (7.0, 0.8, 0.9)]


def test_plans_of_earlier_versions_keep_their_key():
    old = Plan(
        {"A": (2.0, 1.0, 1.5)},
        {"CT": Intensity("ct", (-60.0, 90.0), 20.0, 40.0), "T1": Intensity("zscore", masked=True)},
    )
    assert old.key() == "d07fd8ccfe7a7c7f"  # as 337855a computed it
    assert set(old.to_json()) == {
        "spacing_mm",
        "intensity",
        "orientation",
        "crop",
        "transpose",
        "configurations",
        "guard",
    }
    assert old.grid_of("A").identity() == [2.0, 1.0, 1.5]
    others = [
        old,
        dataclasses.replace(old, grid="native"),
        dataclasses.replace(old, grid="size", size=(4, 5, 6)),
        dataclasses.replace(old, grid="size", size=(4, 5, 7)),
    ]
    assert len({plan.key() for plan in others}) == 4
    for plan in others:
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(
    "change",
    [
        {"grid": "free"},
        {"grid": "size"},
        {"grid": "size", "size": [4, 5]},
        {"grid": "size", "size": [4, 5, 0]},
        {"grid": "size", "size": [4, 5, 1.5]},
        {"grid": "native", "size": [4, 5, 6]},
        {"size": [4, 5, 6]},
    ],
)
def test_unusable_grids_are_refused(change):
    fields = Plan({"A": (1.0, 1.0, 1.0)}, {"CT": Intensity("zscore")}).to_json()
    with pytest.raises(UsageError, match=r"no usable plan: (unknown grid|'size')"):
        Plan.from_json(fields | change)


def test_the_typical_spacing_is_the_median_of_what_is_shown():
    spacings, shapes = [(1, 2, 3), (3, 2, 1), (2, 2, 9)], [(10, 10, 10), (20, 10, 10), (10, 20, 10)]
    assert typical_spacing(np.array(spacings), np.array(shapes)) == (2, 2, 3)
    shown = typical_spacing(np.array(spacings), np.array(shapes), (10, 20, 5))
    assert shown == (2, 1, 6)
    prints = {"A": printed(spacings, shapes)}
    native, frame = make_plan(prints, spacing="native"), make_plan(prints, size=(10, 20, 5))
    assert (native.grid, native.size, native.mean_spacing()) == ("native", None, (2, 2, 3))
    assert (frame.grid, frame.size, frame.mean_spacing()) == ("size", (10, 20, 5), (2, 1, 6))
    np.testing.assert_array_equal(prepared_shapes(prints, native), shapes)
    np.testing.assert_array_equal(prepared_shapes(prints, frame), [(10, 20, 5)] * 3)


def test_slices_of_a_fixed_frame_keep_their_number():
    """M4oE 4, row 26: whole axial slices at 224 x 224, whatever the number of slices."""
    size = (-1, 8, 10)
    shapes = [(5, 16, 20), (7, 4, 5), (9, 8, 10)]
    prints = {"A": printed([(3, 1, 1), (3, 2, 2), (3, 1, 1)], shapes)}
    plan = make_plan(prints, size=size)
    assert Plan.from_json(plan.to_json()) == plan
    np.testing.assert_array_equal(
        prepared_shapes(prints, plan), [(5, 8, 10), (7, 8, 10), (9, 8, 10)]
    )
    assert plan.mean_spacing() == (3, 1, 1)  # the median of 2, 1 and 1 mm within the slices
    volume = volume_of(blob((9, 11, 13)), affine_of((0, 1, 2), (1, 1, 1), (1, 1, 3)))
    transform = plan.grid_of("A").fit(volume, crop="none")
    assert transform.shape == (9, 8, 10) and transform.target_spacing_mm[0] == 3
    assert str(plan.grid_of("A")) == "its own x8x10 voxels"
    with pytest.raises(UsageError, match="unusable target size"):
        make_plan(prints, size=(-1, -1, -1))


def test_words_of_sizes():
    prints = {"A": printed([(1, 1, 1)], [(9, 9, 9)])}
    for size in [(1, 2), (0, 4, 4), (4, 4, 4.5), (1, 1, 1 << 20)]:
        with pytest.raises(UsageError, match="unusable target size"):
            make_plan(prints, size=size)
    with pytest.raises(UsageError, match="exclude each other"):
        make_plan(prints, size=(4, 4, 4), spacing=(1, 1, 1))
    volume = volume_of(blob((4, 5, 6)), affine_of((0, 1, 2), (1, 1, 1), (1, 1, 1)))
    for more in ({"size": (4, 4)}, {"size": (4, 4, 0)}):
        with pytest.raises(UsageError, match="unusable target size"):
            geometry.fit(volume, None, **more)
    with pytest.raises(UsageError, match="unusable target size"):
        geometry.fit(volume, (1, 1, 1), size=(4, 4, 4))


def test_planned_and_explained():
    prints = {"A": printed([(1, 1, 1)] * 3, [(300, 300, 300)] * 3)}
    plan = plan_experiment(prints, 3, size=(64, 64, 48))
    assert set(plan.configurations) == {"3d_fullres", "2d"} and plan.transpose == (0, 1, 2)
    assert plan.configurations["3d_fullres"].patch == (64, 64, 48)
    text = "\n".join(explain(prints, plan, "median"))
    assert "resampled to 64x64x48 voxels, as asked" in text
    native = plan_experiment(prints, 3, spacing="native")
    assert "each case keeps its own, as asked" in "\n".join(explain(prints, native, "native"))
    assert "3d_lowres" in native.configurations and native.at("3d_lowres").grid == "spacing"
    assert "Grid for A: the spacing of each case, of the plan." in explain({}, native)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(ORIENTATIONS),
    st.sampled_from([0.0, 12.0, -12.0]),
    st.sampled_from(SPACINGS),
    st.sampled_from(SIZES),
    st.sampled_from(["nonzero", "none"]),
)
def test_a_fixed_size_and_back_is_a_direct_resampling(orientation, oblique, spacing, size, crop):
    affine = affine_of(*orientation, spacing[::-1], oblique)
    ids = blob((9, 11, 13))
    volume = volume_of(ids, affine)
    grid = Grid("size", (1.0, 1.0, 1.0), size)
    transform = grid.fit(volume, crop=crop)
    assert transform.shape == size
    axes, flips = grids.canonical_axes(volume.affine)
    turned = grids.canonical(ids, axes, flips)
    box = grids.nonzero_box(turned) if crop == "nonzero" else tuple((0, n) for n in turned.shape)
    inside = tuple(slice(*ends) for ends in box)
    extent = np.array([s * (b - a) for s, (a, b) in zip(transform.spacing_mm, box, strict=True)])
    np.testing.assert_allclose(transform.target_spacing_mm, extent / size)
    found = transform.resample_image(transform.image(ids))
    wanted = resampled(turned[inside].astype(float), size, transform.spacing_mm, 3)
    low, high = turned[inside].min(), turned[inside].max()
    np.testing.assert_allclose(found, np.clip(wanted, low, high), atol=2e-4)
    scores = np.random.default_rng(0).random((*size, 2)).astype(np.float32)
    back = transform.invert_scores(scores)
    assert back.shape == (*ids.shape, 2)
    canonical = grids.canonical(back, axes, flips)
    direct = np.stack(
        [
            resampled(
                scores[..., k],
                transform.box_shape,
                transform.target_spacing_mm,
                1,
                transform.spacing_mm,
            )
            for k in range(2)
        ],
        -1,
    )
    np.testing.assert_allclose(canonical[inside], direct, atol=2e-5)
    outside = np.ones(turned.shape, bool)
    outside[inside] = False
    assert not canonical[outside].any()


def resampled(array, shape, spacing, order, target=None):
    """scipy's zoom; along a coarse axis nearest neighbour, slice by slice as nnU-Net does."""
    target = np.array(spacing) * array.shape / np.array(shape) if target is None else target
    axis = separate_axis(spacing, target)
    factors = np.array(shape) / array.shape
    if axis is None:
        return ndimage.zoom(array, factors, order=order, mode="nearest", grid_mode=True)
    plane = [1.0 if a == axis else f for a, f in enumerate(factors)]
    out = np.stack(
        [
            ndimage.zoom(
                np.take(array, i, axis),
                np.delete(plane, axis),
                order=order,
                mode="nearest",
                grid_mode=True,
            ).clip(np.take(array, i, axis).min(), np.take(array, i, axis).max())
            for i in range(array.shape[axis])
        ],
        axis,
    )
    along = [f if a == axis else 1.0 for a, f in enumerate(factors)]
    return ndimage.zoom(out, along, order=0, mode="nearest", grid_mode=True)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(ORIENTATIONS), st.sampled_from([0.0, 12.0]), st.sampled_from(SPACINGS))
def test_native_keeps_every_voxel(orientation, oblique, spacing):
    ids = blob((7, 9, 8))
    volume = volume_of(ids, affine_of(*orientation, spacing[::-1], oblique))
    transform = Grid("native", (5.0, 5.0, 5.0)).fit(volume)
    assert transform.shape == transform.box_shape
    assert transform.target_spacing_mm == transform.spacing_mm
    np.testing.assert_array_equal(transform.invert_mask(transform.label(ids)), ids)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two cases of one corpus with different spacings."""
    folder = tmp_path_factory.mktemp("raw")
    first = write_corpus(folder / "Task01_A", 1, (10, 12, 11), spacing_mm=(2, 1, 1), margin=1)
    other = write_corpus(folder / "Task02_B", 1, (14, 9, 8), spacing_mm=(1, 1.5, 2), seed=9)
    for place in ("imagesTr", "labelsTr"):
        (other / place / "case_000.nii.gz").rename(first / place / "case_001.nii.gz")
    entry = {
        k: f"./{v}/case_001.nii.gz" for k, v in {"image": "imagesTr", "label": "labelsTr"}.items()
    }
    fields = json.loads((first / "dataset.json").read_text())
    fields["training"].append(entry)
    (first / "dataset.json").write_text(json.dumps(fields))
    return read_corpus(first)


def test_stores_of_both_grids_and_their_keys(raw, tmp_path):
    corpus, cases = raw
    found = {"A": fingerprint(corpus, cases, samples=500)}
    metas = {}
    for name, plan in {
        "spacing": make_plan(found),
        "native": make_plan(found, spacing="native"),
        "size": make_plan(found, size=(8, 10, 6)),
    }.items():
        result = prepare(corpus, cases, plan, tmp_path / name)
        assert result.failed == []
        metas[name] = [store.open_case(tmp_path / name / "A" / c.name).meta for c in cases]
    for meta, own, extent in zip(
        metas["native"], [(2, 1, 1), (1, 1.5, 2)], [(8, 10, 9), (14, 9, 8)], strict=True
    ):
        assert meta["spacing_mm"] == list(own) and meta["shape"] == list(extent)
        assert meta["inputs"]["plan"][0] == {"grid": "native"}
    for meta, own, extent in zip(
        metas["size"], [(2, 1, 1), (1, 1.5, 2)], [(8, 10, 9), (14, 9, 8)], strict=True
    ):
        assert meta["shape"] == [8, 10, 6]
        np.testing.assert_allclose(meta["spacing_mm"], np.multiply(own, extent) / (8, 10, 6))
        assert meta["inputs"]["plan"][0] == {"grid": "size", "size": [8, 10, 6]}
    assert isinstance(metas["spacing"][0]["inputs"]["plan"][0], list)
    # the typical spacing depends on the other cases, a stored case does not
    plan = make_plan(found, spacing="native")
    other = dataclasses.replace(plan, spacing_mm={"A": (9.0, 9.0, 9.0)})
    assert prepare(corpus, cases, other, tmp_path / "native").skipped == 2
