"""Schemes beside nnU-Net's against numpy in float64; channels of role "mask" from file to store: 0
and 1, and without any influence on the images beside them.
"""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medjax.corpora.cases import load
from medjax.corpora.sources import read_corpus
from medjax.errors import DataError, UsageError
from medjax.prepare import intensity, normalise, store
from medjax.prepare.fingerprint import fingerprint
from medjax.prepare.intensity import Intensity
from medjax.prepare.plan import Plan, make_plan
from medjax.prepare.prepare import prepare
from tests.prepare.test_geometry import affine_of, volume_of
from tests.support.raw import save, write_corpus

WINDOW = Intensity("window", (-40.0, 60.0))


def shaped(array, spacing=(1.0, 1.0, 1.0)):
    volume = volume_of(
        np.zeros(array.shape[:3], np.float32), affine_of((0, 1, 2), (1, 1, 1), spacing[::-1])
    )
    return dataclasses.replace(volume, array=np.asarray(array))


def prepared(array, schemes, target=(1.0, 1.0, 1.0), crop="none", spacing=(1.0, 1.0, 1.0)):
    """(float32 as for prediction, int16 with its numbers, transform) of a (z, y, x, m) array."""
    names = [f"c{k}" for k in range(len(schemes))]
    plan = Plan({"A": target}, dict(zip(names, schemes, strict=True)), crop=crop)
    volume = shaped(array, spacing)
    transform = plan.fit(volume, "A", names)
    return (
        normalise.network_image(transform, volume.array, schemes),
        normalise.stored_image(transform, volume.array, schemes),
        transform,
    )


def scan(seed, shape=(6, 9, 8), low=-200, high=300):
    return np.random.default_rng(seed).integers(low, high, (*shape, 1)).astype(np.int16)


def test_window_is_monais_scale_intensity_range():
    array = scan(0)
    seen, (held, numbers), _ = prepared(array, [WINDOW])
    low, high = WINDOW.clip
    x = array.astype(np.float64)
    wanted = np.clip((x - low) / (high - low), 0.0, 1.0)  # b_min 0, b_max 1, clip
    np.testing.assert_allclose(seen, wanted, atol=1e-6)
    np.testing.assert_allclose(held * numbers["gain"][0] + numbers["bias"][0], wanted, atol=1e-9)
    assert numbers["scale"] == [1.0]  # whole numbers of a clipped range are exact in int16


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.sampled_from([(0.05, 99.95), (1.0, 99.0), (0.0, 100.0)]))
def test_foreground_is_clip_zscore_and_min_max(seed, percentiles):
    rng = np.random.default_rng(seed)
    array = (rng.normal(100, 60, (7, 9, 8, 1)) ** 2).astype(np.float32)
    own = None if percentiles == intensity.PERCENTILES else percentiles
    seen, (held, numbers), _ = prepared(array, [Intensity("foreground", percentiles=own)])
    x = array[..., 0].astype(np.float64)
    bright = x[x > x.mean()]
    low, high = np.percentile(bright, percentiles)
    z = (np.clip(x, low, high) - bright.mean()) / max(bright.std(), 1e-8)
    wanted = (z - z.min()) / (z.max() - z.min())
    np.testing.assert_allclose(seen[..., 0], wanted, atol=2e-6)
    stored = held[..., 0] * numbers["gain"][0] + numbers["bias"][0]
    np.testing.assert_allclose(stored, wanted, atol=1e-5)
    assert stored.min() >= -1e-5 and stored.max() <= 1 + 1e-5


def test_a_constant_scan_becomes_zero():
    with pytest.warns(match="constant image"):
        seen, (held, numbers), _ = prepared(np.full((4, 5, 6, 1), 7.0), [Intensity("foreground")])
    assert not seen.any() and not (held * numbers["gain"][0] + numbers["bias"][0]).any()


def test_limits_are_those_of_the_whole_scan_not_of_the_crop():
    array = np.zeros((8, 8, 8, 1), np.float32)
    array[2:6, 2:6, 2:6, 0] = np.arange(64, dtype=np.float32).reshape(4, 4, 4) + 1
    low, high = intensity.foreground_limits(array[..., 0], (0, 100))
    assert low == array[array > array.mean()].min() and high == 64
    seen, _, transform = prepared(
        array, [Intensity("foreground", percentiles=(0, 100))], crop="foreground"
    )
    inside = np.argwhere(array[..., 0] > low)
    assert transform.box == tuple(zip(inside.min(0), inside.max(0) + 1, strict=True))
    assert seen.max() == 1.0 and seen.min() == 0.0


@pytest.mark.parametrize(
    ("scheme", "limit"),
    [
        (WINDOW, -40.0),
        (Intensity("ct", (-10.0, 90.0), 0.0, 1.0), -10.0),
        (Intensity("zscore"), 0.0),
        (Intensity("rescale_to_0_1"), -300.0),
    ],
)
def test_crop_to_what_is_above_the_lower_limit(scheme, limit):
    array = np.full((8, 9, 10, 1), -300, np.int16)
    array[3:6, 2:7, 4:9] = limit + 1
    _, _, transform = prepared(array, [scheme], crop="foreground")
    assert transform.box == ((3, 6), (2, 7), (4, 9))
    with pytest.warns(match="no voxel is above the lower limit"):
        _, _, transform = prepared(np.full((3, 3, 3, 1), -400.0), [WINDOW], crop="foreground")
    assert transform.box == ((0, 3),) * 3


# ---------------------------------------------------------------- masks


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 99),
    st.sampled_from([(1.0, 1.0, 1.0), (1.7, 0.6, 1.3), (5.0, 0.8, 0.9)]),
    st.sampled_from([1, 3, 0.25, 255]),
    st.sampled_from(["zscore", "masked", "ct", "foreground", "rescale_to_0_1"]),
)
def test_a_mask_is_binary_and_leaves_the_image_alone(seed, spacing, value, scheme):
    rng = np.random.default_rng(seed)
    image = np.zeros((7, 9, 8, 1), np.float32)
    image[1:6, 2:8, 1:7] = rng.normal(80, 30, (5, 6, 6, 1))
    mask = ((rng.random((7, 9, 8, 1)) > 0.6) * value).astype(np.float32)
    mask[0] = -2.0  # not above 0
    rule = {
        "masked": Intensity("zscore", masked=True),
        "ct": Intensity("ct", (0.0, 120.0), 60.0, 30.0),
    }.get(scheme) or Intensity(scheme)
    alone, (held, numbers), without = prepared(image, [rule], spacing=spacing, crop="nonzero")
    both, (stored, more), transform = prepared(
        np.concatenate([image, mask], -1),
        [rule, Intensity("mask")],
        spacing=spacing,
        crop="nonzero",
    )
    assert transform == without  # a mask takes no part in the crop
    np.testing.assert_array_equal(both[..., :1], alone)
    np.testing.assert_array_equal(stored[..., :1], held)
    assert [more[k][0] for k in more] == [numbers[k][0] for k in numbers]
    assert [more[k][1] for k in ("gain", "bias", "scale", "offset")] == [1.0, 0.0, 1.0, 0.0]
    np.testing.assert_array_equal(stored[..., 1], both[..., 1])
    assert set(np.unique(both[..., 1])) <= {0.0, 1.0}
    cropped = transform.image((mask[..., 0] > 0).astype(np.uint8))
    for z, y, x in rng.integers(0, transform.shape, (20, 3)):  # the nearest voxel's value
        source = tuple(
            int(np.clip(np.floor(n / m * (i + 0.5) + 1e-9), 0, n - 1))
            for i, n, m in zip((z, y, x), cropped.shape, transform.shape, strict=True)
        )
        near = cropped[tuple(slice(max(0, s - 1), s + 2) for s in source)]
        assert both[z, y, x, 1] in np.unique(near)


def test_full_and_empty_masks_and_those_that_are_not_finite():
    image = np.random.default_rng(0).normal(size=(4, 5, 6, 1)).astype(np.float32) + 5
    for value in (0.0, 1.0):
        both = np.concatenate([image, np.full_like(image, value)], -1)
        seen, (held, numbers), _ = prepared(both, [Intensity("zscore"), Intensity("mask")])
        assert (seen[..., 1] == value).all() and (held[..., 1] == value).all()
        assert numbers["gain"][1] == 1.0 and numbers["bias"][1] == 0.0
    both[1, 2, 3, 1] = np.nan
    with pytest.raises(DataError, match="channel 1 is a mask and holds voxels that are not finite"):
        prepared(both, [Intensity("zscore"), Intensity("mask")])


@pytest.fixture
def raw(tmp_path):
    """CT with an organ mask beside it whose box is larger than the scan's non-zero part."""
    folder = write_corpus(
        tmp_path / "Dataset001_A", 2, (10, 12, 11), "nnunet", channels=("CT", "organ"), margin=2
    )
    for path in sorted((folder / "imagesTr").glob("*_0001.nii.gz")):
        mask = np.zeros((10, 12 + int(path.name[7]), 11), np.uint8)
        mask[1:7, 1:8, 1:9] = 4
        save(path, mask)
    return folder


def test_masks_from_fingerprint_to_store(raw, tmp_path):
    corpus, cases = read_corpus(raw)
    said = {"organ": {"scheme": "mask"}}
    found = fingerprint(corpus, cases, samples=4000, intensity=said)
    assert found.intensity[1] is None and found.shapes[0] == (6, 8, 7)
    alone, single = read_corpus(_without_mask(raw, tmp_path))
    other = fingerprint(alone, single, samples=4000)
    assert found.intensity[0] == other.intensity[0] and found.cropped == other.cropped
    plan = make_plan({"A": found}, intensity=said, spacing=(1.3, 0.8, 1.0))
    assert plan.intensity["organ"] == Intensity("mask") and "organ" not in plan.guard.intensity
    assert plan.intensity["CT"] == make_plan({"A": other}).intensity["CT"]
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    prepare(corpus, cases, plan, tmp_path / "s")
    case = store.open_case(tmp_path / "s" / "A" / "case_000")
    assert case.meta["masks"] == [1] and case.meta["gain"][1] == 1 and case.meta["bias"][1] == 0
    assert set(np.unique(case.image()[..., 1])) == {0, 1}
    mask = load(cases[0], corpus)[0].array[..., 1] > 0
    share = mask[2:8, 2:10, 2:9].mean()
    assert case.image()[..., 1].mean() == pytest.approx(share, abs=0.15)


def _without_mask(raw, tmp_path):
    folder = tmp_path / "alone" / "Dataset001_A"
    for path in raw.rglob("*.nii.gz"):
        if not path.name.endswith("_0001.nii.gz"):
            (folder / path.relative_to(raw)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(raw)).write_bytes(path.read_bytes())
    fields = json.loads((raw / "dataset.json").read_text())
    fields["channel_names"] = {"0": "CT"}
    (folder / "dataset.json").write_text(json.dumps(fields))
    return folder


# ---------------------------------------------------------------- words


def test_the_name_mask_is_enough():
    assert intensity.scheme_of("MASK") == "mask" and intensity.scheme_of("noNorm") == "nonorm"
    assert intensity.masks_of(("CT", "mask", "Organ"), {"organ": {"scheme": "mask"}}) == (1, 2)
    assert intensity.masks_of(("mask",), {"mask": {"scheme": "zscore"}}) == ()
    assert Intensity("NoNormalization").role == "image"


def test_what_a_user_may_say():
    assert intensity.parse(["CT=window:-175,250", "MR=foreground", "T2=foreground:1,99"]) == {
        "CT": {"scheme": "window", "clip": (-175.0, 250.0)},
        "MR": {"scheme": "foreground"},
        "T2": {"scheme": "foreground", "percentiles": (1.0, 99.0)},
    }
    for text in (
        "CT",
        "=mask",
        "CT=window:1",
        "CT=window:a,b",
        "organ=mask:0,1",
        "CT=window:1,2,3",
    ):
        with pytest.raises(UsageError, match="unusable intensity scheme"):
            intensity.parse([text])
    with pytest.raises(UsageError, match="unknown intensity scheme 'windwo'"):
        intensity.parse(["CT=windwo:1,2"])


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"scheme": "window"}, "'clip' of channel 'CT'"),
        ({"scheme": "window", "clip": (5, 5)}, "'clip' of channel 'CT'"),
        ({"scheme": "window", "clip": (5, float("nan"))}, "'clip' of channel 'CT'"),
        ({"scheme": "foreground", "percentiles": (60, 40)}, "'percentiles' of channel 'CT'"),
        ({"scheme": "foreground", "percentiles": (-1, 40)}, "'percentiles' of channel 'CT'"),
        ({"scheme": "mask", "clip": (0, 1)}, "no option 'clip'"),
        ({"scheme": "zscore", "percentiles": (1, 2)}, "no option 'percentiles'"),
        ("window", "unusable intensity of channel 'CT'"),
        ({"scheme": "ct", "clip": (1, 2), "mean": 1, "std": 0}, "mean and std of channel"),
    ],
)
def test_unusable_schemes_are_refused(said, words):
    with pytest.raises(UsageError, match=words):
        intensity.decide("CT", {}, {"ct": said})


def test_unknown_channels_are_refused(raw):
    found = fingerprint(*read_corpus(raw), samples=500)
    with pytest.raises(UsageError, match=r"unknown channel 'orgna'.*did you mean organ"):
        make_plan({"A": found}, intensity={"orgna": {"scheme": "mask"}})


@pytest.mark.parametrize(
    "change",
    [
        {"scheme": "window", "clip": [3.0, 1.0]},
        {"scheme": "foreground", "percentiles": [3.0]},
        {"scheme": "foreground", "percentiles": "all"},
    ],
)
def test_a_plan_with_unusable_schemes_is_refused(change):
    fields = Plan({"A": (1.0, 1.0, 1.0)}, {"CT": WINDOW}).to_json()
    with pytest.raises(UsageError, match="no usable plan"):
        Plan.from_json(fields | {"intensity": {"CT": change}})
