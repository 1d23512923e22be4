"""Resampling: scipy's splines axis by axis, nnU-Net's rules around them, and (marker parity)
nnU-Net v2 itself.
"""

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medjax.errors import UsageError
from medjax.prepare import resample
from medjax.scans import nifti

ISO = (1.0, 1.0, 1.0)
CASES = {
    "up": ((14, 16, 12), ISO, (0.6, 0.55, 0.7)),
    "down": ((24, 20, 26), ISO, (1.7, 2.0, 1.3)),
    "mixed": ((20, 22, 18), (1.25, 0.75, 0.75), ISO),
    "halves": ((10, 12, 14), ISO, (0.5, 0.5, 0.5)),
    "separate z kept": ((9, 24, 22), (5.0, 1.0, 1.0), (5.0, 1.4, 0.7)),
    "separate z down": ((16, 24, 22), (4.0, 1.0, 1.0), (7.0, 1.4, 0.7)),
    "separate z up": ((9, 24, 22), (5.0, 1.0, 1.0), (2.0, 1.4, 0.7)),
    "separate y": ((24, 9, 22), (1.0, 5.0, 1.0), (1.0, 4.0, 0.7)),
    "separate x by target": ((24, 22, 20), ISO, (1.0, 1.2, 4.0)),
    "two coarse axes": ((12, 12, 30), (4.0, 4.0, 1.0), (2.0, 2.0, 2.0)),
    "one slice": ((1, 24, 22), ISO, (1.0, 0.7, 1.3)),
}


def volume(shape, seed=0):
    """Smooth plus noise, CT-like range, float32."""
    rng = np.random.default_rng(seed)
    return (
        3000 * ndimage.gaussian_filter(rng.normal(size=shape), 1.5) + 30 * rng.normal(size=shape)
    ).astype(np.float32)


def labels(shape, count=6, seed=0):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return np.clip(np.rint(smooth / smooth.std() * 2) + count // 2, 0, count).astype(np.uint8)


def zoom(array, shape, order):
    return ndimage.zoom(
        array.astype(np.float64),
        np.divide(shape, array.shape),
        order=order,
        mode="nearest",
        grid_mode=True,
    )


def expected_image(array, shape, axis, order=3):
    """The rules written down slowly with scipy alone: whole volume, or slice by slice and then the
    nearest slice.
    """
    if axis is None:
        return np.clip(zoom(array, shape, order), array.min(), array.max())
    plane = tuple(n for i, n in enumerate(shape) if i != axis)
    slices = [np.clip(zoom(s, plane, order), s.min(), s.max()) for s in np.moveaxis(array, axis, 0)]
    n_in, n_out = len(slices), shape[axis]
    index = np.clip(np.floor((np.arange(n_out) + 0.5) * n_in / n_out).astype(int), 0, n_in - 1)
    return np.moveaxis(np.stack([slices[i] for i in index]), 0, axis)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))
def test_operator_is_scipys_zoom(n_in, n_out, order):
    matrix = resample.operator(n_in, n_out, order)
    assert (
        matrix.shape == (n_out, n_in) and matrix.dtype == np.float64 and not matrix.flags.writeable
    )
    samples = np.random.default_rng(0).normal(size=n_in)
    np.testing.assert_allclose(matrix @ samples, zoom(samples, (n_out,), order), atol=1e-7)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300))
def test_nearest_is_both_of_scipys_rules(n_in, n_out):
    """zoom at order 0 (ties of labels) and map_coordinates at order 0 (the coarse axis) agree, so
    one index serves both.
    """
    found = resample.nearest(n_in, n_out)
    np.testing.assert_array_equal(found, zoom(np.arange(n_in), (n_out,), 0))
    np.testing.assert_array_equal(resample.operator(n_in, n_out, 0) @ np.arange(n_in), found)


def test_new_shape_rounds_half_to_even():
    assert resample.new_shape((5, 7, 9), ISO, (2.0, 2.0, 2.0)) == (
        2,
        4,
        4,
    )  # 2.5 -> 2, 3.5 -> 4, 4.5 -> 4
    assert resample.new_shape((160, 256, 256), (1.25, 0.75, 0.75), ISO) == (200, 192, 192)
    assert resample.new_shape((1, 4, 4), ISO, (5.0, 1.0, 1.0)) == (1, 4, 4)


@pytest.mark.parametrize(
    "spacing,target,axis",
    [
        ((3.0, 1.0, 1.0), ISO, None),  # the limit is exclusive
        ((3.01, 1.0, 1.0), ISO, 0),
        ((1.0, 1.0, 5.0), (5.0, 1.0, 1.0), 2),  # the original decides first
        (ISO, (1.0, 5.0, 1.0), 1),
        ((4.0, 4.0, 1.0), ISO, None),
        ((4.0, 4.0, 1.0), (9.0, 1.0, 1.0), None),  # and its verdict stands
        (ISO, ISO, None),
    ],
)
def test_separate_axis(spacing, target, axis):
    assert resample.separate_axis(spacing, target) == axis


@pytest.mark.parametrize("name", CASES)
def test_images_match_scipy(name):
    shape, spacing, target = CASES[name]
    array, new = volume(shape), resample.new_shape(shape, spacing, target)
    found = resample.resample_image(array, new, spacing, target)
    assert found.shape == new and found.dtype == np.float32
    expected = expected_image(array, new, resample.separate_axis(spacing, target))
    assert np.abs(found - expected).max() < 1e-5 * np.ptp(array)


def test_images_are_clipped_to_their_range():
    step = np.zeros((12, 12, 12), np.float32)
    step[6:] = 1000
    found = resample.resample_image(step, (31, 12, 12), ISO, (12 / 31, 1, 1))
    assert found.min() == 0 and found.max() == 1000 and zoom(step, (31, 12, 12), 3).max() > 1040
    slices = np.zeros((4, 12, 12), np.float32)
    slices[1, :, 6:] = 10
    slices[2] = 1000
    found = resample.resample_image(slices, (4, 31, 31), (5, 1, 1), (5, 12 / 31, 12 / 31))
    np.testing.assert_allclose(
        found.max((1, 2)), [0, 10, 1000, 0]
    )  # slice by slice, not over the volume


def test_channels_types_views_and_slabs(monkeypatch):
    array = np.stack([volume((10, 11, 12)), volume((10, 11, 12), 1) * 0.01], -1)
    new, spacing, target = (13, 8, 9), ISO, (10 / 13, 11 / 8, 12 / 9)
    found = resample.resample_image(array, new, spacing, target)
    for channel in range(2):
        np.testing.assert_array_equal(
            found[..., channel], resample.resample_image(array[..., channel], new, spacing, target)
        )
    integers = array[..., 0].astype(np.int16)
    whole = resample.resample_image(integers, new, spacing, target)
    np.testing.assert_allclose(whole, expected_image(integers, new, None), atol=0.02)
    view = integers.transpose(2, 1, 0)[::-1]
    turned = resample.resample_image(view.transpose(2, 1, 0)[:, :, ::-1], new, spacing, target)
    np.testing.assert_array_equal(turned, whole)
    monkeypatch.setattr(resample, "PIECE", 100)
    monkeypatch.setattr(resample, "_ROWS", 3)
    monkeypatch.setattr(resample, "_UNTHREADED", 100)
    np.testing.assert_allclose(
        resample.resample_image(integers, new, spacing, target), whole, atol=2e-3
    )


def test_unchanged_shape_is_untouched():
    array = volume((5, 6, 7))
    assert resample.resample_image(array, (5, 6, 7), ISO, (1.01, 1, 1)) is array
    ids = labels((5, 6, 7))
    assert resample.resample_label(ids, (5, 6, 7), (5, 1, 1), (5, 1, 1)) is ids


def expected_label(ids, shape, axis, tie=0.0):
    """Arg-max over one linearly resampled indicator per label; ties to the nearest neighbour if it
    takes part, else to the lowest. Scores that differ by at most `tie` are equal.
    """

    def resize(part, size):
        values = np.unique(part)
        scores = np.stack([zoom(part == v, size, 1) for v in values])
        near = zoom(part, size, 0)
        out = values[scores.argmax(0)]
        tied = (scores >= scores.max(0) - tie) & (values.reshape(-1, *[1] * part.ndim) == near)
        return np.where(tied.any(0), near, out)

    if axis is None:
        return resize(ids, shape)
    plane = tuple(n for i, n in enumerate(shape) if i != axis)
    slices = [resize(s, plane) for s in np.moveaxis(ids, axis, 0)]
    return np.moveaxis(
        np.stack([slices[i] for i in resample.nearest(len(slices), shape[axis])]), 0, axis
    )


@pytest.mark.parametrize("name", CASES)
def test_labels_match_indicator_argmax(name):
    shape, spacing, target = CASES[name]
    for ids in (
        labels(shape),
        np.random.default_rng(0).integers(0, 4, shape).astype(np.int16),
    ):  # smooth and adversarial
        new = resample.new_shape(shape, spacing, target)
        found = resample.resample_label(ids, new, spacing, target)
        assert found.shape == new and found.dtype == ids.dtype
        np.testing.assert_array_equal(
            found, expected_label(ids, new, resample.separate_axis(spacing, target))
        )


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.integers(1, 3),
    st.integers(0, 1 << 30),
    st.integers(1, 40),
)
@example(shape=(4, 5, 6), new=(3, 8, 5), count=1, seed=1, piece=1)
@example(shape=(6, 7, 9), new=(4, 8, 5), count=2, seed=3, piece=1)
def test_labels_of_any_size(shape, new, count, seed, piece):
    ids = np.random.default_rng(seed).integers(0, count + 1, shape).astype(np.uint16) * 200
    spacing, target = ISO, tuple(a / b for a, b in zip(shape, new, strict=True))
    whole = resample.PIECE
    resample.PIECE = piece  # slabs of a row or two give the same answer
    try:
        found = resample.resample_label(ids, new, spacing, target)
    finally:
        resample.PIECE = whole
    axis = resample.separate_axis(spacing, target)
    # where two labels have half each, the order of a sum decides
    ties = (0.0, 1e-12, -1e-12)  # exact, to the nearest neighbour, to the lowest
    expected = [ids if shape == new else expected_label(ids, new, axis, tie) for tie in ties]
    assert np.any([found == one for one in expected], 0).all()
    assert set(np.unique(found)) <= set(np.unique(ids))


def test_label_ties_take_the_nearest_neighbour():
    line = np.zeros((1, 1, 4), np.uint8)
    line[..., 2:] = 7
    np.testing.assert_array_equal(
        resample.resample_label(line, (1, 1, 8), ISO, (1, 1, 0.5))[0, 0], [0, 0, 0, 0, 7, 7, 7, 7]
    )
    np.testing.assert_array_equal(
        resample.resample_label(line[..., 1:3], (1, 1, 1), ISO, (1, 1, 2))[0, 0], [7]
    )  # exactly half way


def test_label_cost_does_not_grow_with_the_number_of_labels():
    ids = labels((40, 64, 64), 6).astype(np.uint16)
    tracemalloc.start()
    resample.resample_label(ids, (60, 96, 96), ISO, (2 / 3,) * 3)
    few = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    resample.resample_label(ids * 150, (60, 96, 96), ISO, (2 / 3,) * 3)
    assert tracemalloc.get_traced_memory()[1] < 1.05 * few < 100e6
    tracemalloc.stop()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("slab", [None, 3])
def test_scores_are_linear(name, slab):
    shape, spacing, target = CASES[name]
    scores = np.random.default_rng(0).random((*shape, 3)).astype(np.float32)
    new = resample.new_shape(shape, spacing, target)
    found = resample.resample_scores(scores, new, spacing, target, slab)
    assert found.shape == (*new, 3) and found.dtype == np.float32
    axis = resample.separate_axis(spacing, target)
    for channel in range(3):
        np.testing.assert_allclose(
            found[..., channel], expected_image(scores[..., channel], new, axis, 1), atol=1e-6
        )
    for cut in range(3):
        part = resample.score_rows(scores, new, spacing, target, cut, slice(0, 1))
        np.testing.assert_allclose(part, np.take(found, [0], cut), atol=1e-6)


def test_impossible_requests():
    with pytest.raises(UsageError):
        resample.operator(4, 0, 3)
    with pytest.raises(UsageError):
        resample.operator(4, 5, 2)
    with pytest.raises(UsageError):
        resample.resample_image(np.zeros((4, 4)), (4, 4, 4), ISO, ISO)


def reference(array, shape, spacing, target, is_seg=False, order=3):
    """nnU-Net v2's resample_data_or_seg_to_shape on (channel, z, y, x), with its default plans'
    arguments.
    """
    module = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")
    keywords = {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}
    return module.resample_data_or_seg_to_shape(array, shape, spacing, target, **keywords)


def check_parity(image, ids, spacing, target):
    new = resample.new_shape(image.shape, spacing, target)
    found = resample.resample_image(image, new, spacing, target)
    expected = reference(image[None].astype(np.float32), new, spacing, target)[0]
    assert np.abs(found - expected).max() < 1e-3 * np.ptp(image)
    found = resample.resample_label(ids, new, spacing, target)
    expected = reference(ids[None].astype(np.int16), new, spacing, target, is_seg=True, order=1)[0]
    assert (found != expected).mean() < 1e-3
    return new


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_nnunet_parity(name):
    shape, spacing, target = CASES[name]
    new = check_parity(volume(shape), labels(shape), spacing, target)
    module = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")
    assert tuple(module.compute_new_shape(shape, spacing, target)) == new
    assert module.determine_do_sep_z_and_axis(None, spacing, target)[1] == resample.separate_axis(
        spacing, target
    )
    scores = np.random.default_rng(0).random((*new, 2)).astype(np.float32)
    back = resample.resample_scores(scores, shape, target, spacing)
    expected = reference(np.moveaxis(scores, -1, 0), shape, target, spacing, order=1)
    np.testing.assert_allclose(np.moveaxis(back, -1, 0), expected, atol=1e-5)


@pytest.mark.parity
@pytest.mark.data
@pytest.mark.parametrize(
    "corpus,target",
    [
        ("Task04_Hippocampus", (1.3, 0.8, 0.8)),
        ("Task91_SarcomaCT", (3.27, 2.6, 2.6)),
        ("Task02_Heart", (9.0, 2.0, 2.0)),
    ],  # the last is separate z
)
def test_nnunet_parity_on_real_scans(real_data, corpus, target):
    label_path = sorted((real_data / corpus / "labelsTr").glob("[!.]*.nii.gz"))[0]
    image = nifti.read(real_data / corpus / "imagesTr" / label_path.name)
    label = nifti.read(label_path, want="label")
    check_parity(image.array, label.array, image.spacing_mm, target)


# ---------------------------------------------------------------- in pieces


IN_PIECES = {  # shape, new shape, spacing, new spacing
    "the same grid": ((9, 6, 5), (9, 6, 5), (2, 1, 1), (2, 1, 1)),
    "only in the plane": ((9, 6, 5), (9, 9, 4), (2, 1, 1), (2, 0.67, 1.25)),
    "all axes": ((9, 6, 5), (30, 8, 7), (1, 1, 1), (0.3, 0.75, 0.72)),
    "fewer rows": ((40, 6, 5), (7, 6, 5), (1, 1, 1), (5.7, 1, 1)),
    "coarse rows": ((5, 8, 8), (11, 6, 9), (5, 1, 1), (2.3, 1.33, 0.89)),
    "coarse columns": ((8, 8, 5), (6, 9, 11), (1, 1, 5), (1.33, 0.89, 2.3)),
}


@pytest.mark.parametrize("name", IN_PIECES)
@pytest.mark.parametrize("piece", [20, 10**6])
def test_pieces_are_the_whole(name, piece, monkeypatch):
    shape, new_shape, spacing, new_spacing = IN_PIECES[name]
    whole = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    small = resample.pieces
    monkeypatch.setattr(resample, "pieces", lambda of: small(of, piece))
    monkeypatch.setattr(resample, "_ROWS", 3)
    expected = resample.resample_image(whole, new_shape, spacing, new_spacing)
    found, stop = np.full(new_shape, np.nan, np.float32), 0
    limits = (float(whole.min()), float(whole.max()))
    for rows, part in resample.image_rows(
        lambda rows: whole[rows], shape, new_shape, spacing, new_spacing, limits
    ):
        assert rows.start == stop and part.dtype == np.float32
        found[rows], stop = part, rows.stop
    assert stop == new_shape[0]
    assert np.allclose(found, expected, atol=1e-5)


def test_the_cases_are_those_of_the_module():
    assert resample.separate_axis(*IN_PIECES["coarse rows"][2:]) == 0
    assert resample.separate_axis(*IN_PIECES["coarse columns"][2:]) == 2
    assert resample.separate_axis(*IN_PIECES["all axes"][2:]) is None


def test_pieces_cover_the_first_axis_within_their_size():
    found = list(resample.pieces((10, 3, 4), 40))
    assert found == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]
    assert list(resample.pieces((2, 300, 400), 10)) == [slice(0, 1), slice(1, 2)]


def test_the_result_stays_within_the_limits():
    step = np.zeros((8, 6, 6), np.float32)
    step[4:] = 100
    parts = [
        part
        for _, part in resample.image_rows(
            lambda rows: step[rows], step.shape, (19, 6, 6), (1, 1, 1), (0.42, 1, 1), (0.0, 100.0)
        )
    ]
    found = np.concatenate(parts)
    assert found.min() == 0 and found.max() == 100 and 10 < found[9].mean() < 90
