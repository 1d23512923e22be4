"""Fingerprint and plan: nnU-Net v2's sampling, its spacing rule, and the pooling of CT statistics
over corpora.
"""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medjax.corpora.cases import load
from medjax.corpora.sources import read_corpus
from medjax.errors import LabelError, UsageError
from medjax.prepare.fingerprint import (
    Fingerprint,
    Statistics,
    _statistics,
    check_classes,
    fingerprint,
)
from medjax.prepare.intensity import Intensity, pooled_quantile
from medjax.prepare.plan import Plan, make_plan, target_spacing
from tests.support.raw import save, write_corpus


def printed(spacings, shapes, channels=("MRI",), intensity=(None,), axes=(0, 1, 2), name="A"):
    n = len(spacings)
    cases = tuple(f"c{i}" for i in range(n))
    spacings = tuple(tuple(float(s) for s in spacing) for spacing in spacings)
    return Fingerprint(
        name, channels, cases, spacings, tuple(shapes), (axes,) * n, (1.0,) * n, intensity
    )


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    folder = write_corpus(
        tmp_path_factory.mktemp("raw") / "CT1",
        3,
        (12, 14, 13),
        channels=("CT",),
        spacing_mm=(3, 1, 1.5),
        margin=2,
    )
    return read_corpus(folder)


def test_geometry_after_the_crop(ct):
    found = fingerprint(*ct, samples=300)
    assert found.cases == ("case_000", "case_001", "case_002") and found.corpus == "CT1"
    assert (
        found.shapes == ((8, 10, 9), (8, 11, 9), (8, 12, 9))
        and found.spacings_mm == ((3, 1, 1.5),) * 3
    )
    assert found.cropped[0] == pytest.approx(8 * 10 * 9 / (12 * 14 * 13))
    assert Fingerprint.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_statistics_are_those_of_the_foreground(ct):
    corpus, cases = ct
    pixels = []
    for case in cases:
        volume, ids = load(case, corpus)
        pixels.append(volume.array[..., 0][ids > 0])
    found = fingerprint(corpus, cases, samples=300_000).intensity[0]
    assert found.cases == 3
    assert found.mean == pytest.approx(
        np.mean([p.mean() for p in pixels]), abs=0.3
    )  # every case weighs the same
    assert found.min == min(p.min() for p in pixels) and found.max == max(p.max() for p in pixels)
    assert (
        found.quantiles[10] == found.percentile_00_5
        and found.quantiles[-11] == found.percentile_99_5
    )
    assert found.quantiles[1000] == found.median and len(found.quantiles) == 2001


def test_a_bad_case_is_left_out(tmp_path):
    folder = write_corpus(tmp_path / "A", 3, (8, 8, 8), channels=("CT",))
    corpus, cases = read_corpus(folder)
    (folder / "imagesTr" / "case_001.nii.gz").write_bytes(b"")
    found = fingerprint(corpus, cases, samples=100)
    assert (
        found.cases == ("case_000", "case_002")
        and found.failed[0]["case"] == "case_001"
        and "not NIfTI" in found.failed[0]["message"]
    )
    broken = dataclasses.replace(found, cases=(), spacings_mm=(), shapes=())
    with pytest.raises(UsageError, match=r"no readable case; the first failed with: .*not NIfTI"):
        make_plan({"A": broken})


def test_cache_lasts_until_a_source_changes(tmp_path):
    folder = write_corpus(tmp_path / "A", 2, (8, 8, 8))
    corpus, cases = read_corpus(folder)
    seen, cache = [], tmp_path / "store" / "A.json"
    first = fingerprint(corpus, cases, samples=100, cache=cache)
    again = fingerprint(corpus, cases, samples=100, cache=cache, progress=lambda *a: seen.append(a))
    assert again == first and seen == []
    os.utime(cases[0].images[0], (1, 1))
    fingerprint(corpus, cases, samples=100, cache=cache, progress=lambda *a: seen.append(a))
    assert len(seen) == 2


def test_unlabelled_cases_use_voxels_above_the_mean(tmp_path):
    corpus, cases = read_corpus(write_corpus(tmp_path / "A", 1, (10, 10, 10), channels=("CT",)))
    bare = [dataclasses.replace(cases[0], label=None)]
    image = load(bare[0], corpus)[0].array
    found = fingerprint(corpus, bare, samples=10_000).intensity[0]
    assert (
        found.min == image[image > image.mean()].min()
        and found.max == image.max()
        and found.cases == 1
    )


def test_a_class_that_never_occurs_is_refused(tmp_path):
    folder = write_corpus(
        tmp_path / "A", 2, (10, 12, 11), "nnunet", {"organ": [1, 2], "tumour": 2, "cyst": 3}
    )
    corpus, cases = read_corpus(folder)
    for case in cases:
        ids = load(case, corpus)[1]
        save(Path(case.label), np.where(ids == 3, 1, ids).astype(np.uint8))
    found = fingerprint(corpus, cases, samples=100)
    assert found.ids == (0, 1, 2) and found.labelled == 2
    with pytest.raises(
        LabelError, match=r"none of the 2 labelled cases.*cyst \(label 3\).*annotated"
    ):
        check_classes(corpus, found)
    check_classes(dataclasses.replace(corpus, annotated=("organ", "tumour")), found)
    check_classes(
        corpus,
        fingerprint(corpus, [dataclasses.replace(c, label=None) for c in cases], samples=100),
    )  # nothing is labelled


# ---------------------------------------------------------------- spacing


@pytest.mark.parametrize(
    ("spacings", "shapes", "expected"),
    [
        ([(3, 1, 1), (2, 1, 1), (1, 1, 1)], [(50, 60, 60)] * 3, (2, 1, 1)),  # plain median
        (
            [(10, 1, 1)] * 9 + [(5, 1, 1)] * 1,
            [(10, 200, 200)] * 10,
            (9.5, 1, 1),
        ),  # 10th percentile of the coarse axis
        (
            [(10, 1, 1)] * 9 + [(5, 1, 1)] * 1,
            [(100, 200, 200)] * 10,
            (10, 1, 1),
        ),  # enough slices: median
        ([(3, 1, 1)] * 5, [(10, 200, 200)] * 5, (3, 1, 1)),  # not more than 3 times
        (
            [(4, 1, 1)] * 6 + [(0.5, 1, 1)] * 4,
            [(10, 200, 200)] * 10,
            (1 + 1e-5, 1, 1),
        ),  # never finer than the others
    ],
)
def test_target_spacing(spacings, shapes, expected):
    assert target_spacing(np.array(spacings, float), np.array(shapes)) == pytest.approx(
        expected, abs=1e-9
    )


def test_spacing_over_corpora():
    a, b = (
        printed([(2, 1, 1)] * 3, [(40, 40, 40)] * 3),
        printed([(4, 3, 3)] * 2, [(40, 40, 40)] * 2, name="B"),
    )
    prints = {"A": a, "B": b}
    assert (
        make_plan(prints).spacing_mm
        == {"A": (2, 1, 1), "B": (2, 1, 1)}
        == make_plan(prints, spacing="median").spacing_mm
    )
    assert make_plan(prints, spacing="per_corpus").spacing_mm == {"A": (2, 1, 1), "B": (4, 3, 3)}
    assert make_plan(prints, spacing=[1.5, 1, 1]).spacing_mm == {"A": (1.5, 1, 1), "B": (1.5, 1, 1)}


def test_stored_axes():
    found = printed(
        [(1, 2, 3)], [(10, 20, 30)], axes=(2, 0, 1)
    )  # canonical z comes from stored x, y from z, x from y
    assert make_plan({"A": found}).spacing_mm["A"] == (1, 2, 3)
    assert make_plan({"A": found}, orientation="stored").spacing_mm["A"] == (2, 3, 1)


def test_fingerprint_of_turned_files(tmp_path):
    straight = write_corpus(tmp_path / "A", 1, (8, 9, 10), spacing_mm=(3, 2, 1))
    turned = write_corpus(tmp_path / "B", 1, (8, 9, 10), spacing_mm=(3, 2, 1), axcodes="SLP")
    a, b = (fingerprint(*read_corpus(f), samples=10) for f in (straight, turned))
    assert a.shapes == b.shapes == ((8, 9, 10),) and b.spacings_mm == a.spacings_mm == ((3, 2, 1),)
    assert b.grids("stored")[1].tolist() == [[9, 10, 8]] and b.grids("stored")[0].tolist() == [
        [2, 1, 3]
    ]


def test_wrong_words():
    found = {"A": printed([(1, 1, 1)], [(9, 9, 9)])}
    for arguments, words in [
        ({"spacing": "per_corpsu"}, "did you mean per_corpus"),
        ({"spacing": (1, 1)}, "three positive sizes"),
        ({"spacing": (1, 1, 0)}, "three positive sizes"),
        ({"orientation": "LPS"}, "unknown orientation"),
        ({"crop": "non-zero"}, "did you mean nonzero"),
    ]:
        with pytest.raises(UsageError, match=words):
            make_plan(found, **arguments)
    with pytest.raises(UsageError, match="at least one corpus"):
        make_plan({})


# ---------------------------------------------------------------- intensity


def sampled(values, cases=1):
    return dataclasses.replace(_statistics([np.asarray(values, np.float32)]), cases=cases)


def test_channel_names_choose_the_scheme():
    channels = ("Ct", "noNorm", "RESCALE_to_0_1", "T1", "zscore")
    statistics = sampled(np.arange(1001))
    plan = make_plan({"A": printed([(1, 1, 1)], [(9, 9, 9)], channels, (statistics,) * 5)})
    assert [
        plan.intensity_of(c).scheme for c in ("CT", "nonorm", "rescale_to_0_1", "t1", "ZScore")
    ] == [
        "ct",
        "nonorm",
        "rescale_to_0_1",
        "zscore",
        "zscore",
    ]
    found = plan.intensity["Ct"]
    assert (
        found.clip == pytest.approx((5, 995))
        and found.mean == pytest.approx(500)
        and found.std == pytest.approx(288.97, abs=0.01)
    )
    assert plan.intensity["T1"] == Intensity("zscore")
    with pytest.raises(UsageError, match=r"does not cover channel 'T2'.*Known: Ct, RESCALE"):
        plan.intensity_of("T2")
    with pytest.raises(UsageError, match="does not cover corpus 'B'"):
        plan.spacing_of("B")


def test_ct_needs_foreground():
    with pytest.raises(UsageError, match="no foreground voxel to take CT statistics from"):
        make_plan({"A": printed([(1, 1, 1)], [(9, 9, 9)], ("CT",), (None,))})


def test_ct_is_pooled_over_corpora():
    rng = np.random.default_rng(0)
    first, second = rng.normal(50, 20, 100_000), rng.normal(200, 60, 100_000)
    grid = ([(1, 1, 1)], [(9, 9, 9)])
    prints = {
        "A": printed(*grid, ("CT",), (sampled(first, 30),)),
        "B": printed(*grid, ("ct", "PET"), (sampled(second, 10), None)),
        "C": printed(*grid, ("CT",), (None,)),
    }
    plan = make_plan(prints)
    union = np.concatenate([np.repeat(first, 3), second])
    found = plan.intensity["CT"]
    assert found == plan.intensity["ct"] and plan.intensity["PET"].scheme == "zscore"
    assert found.mean == pytest.approx(union.mean(), abs=1e-3) and found.std == pytest.approx(
        union.std(), abs=1e-3
    )
    assert found.clip == pytest.approx(
        np.percentile(union, [0.5, 99.5]), abs=0.01 * np.ptp(union) / 10
    )


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(-20, 20), min_size=1, max_size=30), min_size=2, max_size=4),
    st.sampled_from([0.005, 0.3, 0.995]),
)
def test_pooled_quantile_lies_between(samples, level):
    parts = [sampled(s) for s in samples]
    single = [pooled_quantile([p], level) for p in parts]
    assert min(single) - 1e-6 <= pooled_quantile(parts, level) <= max(single) + 1.0 + 1e-6
    assert pooled_quantile([parts[0]] * 3, level) == pytest.approx(single[0], abs=1.0)


def test_plan_round_trip_and_key():
    statistics = Statistics(
        1.0, 2.0, 3.0, 0.0, 9.0, 0.1, 0.9, 2, tuple(np.linspace(0, 9, 2001).tolist())
    )
    plan = make_plan(
        {"A": printed([(1 / 3, 0.7, 1)], [(9, 9, 9)], ("CT", "T1"), (statistics, None))},
        crop="none",
    )
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan and again.key() == plan.key() and len(plan.key()) == 16
    assert dataclasses.replace(plan, crop="nonzero").key() != plan.key()


# ---------------------------------------------------------------- the reference


@pytest.mark.parity
def test_samples_and_spacing_equal_nnunet(tmp_path):
    extractor = pytest.importorskip(
        "nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor"
    ).DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
        ExperimentPlanner,
    )
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    from medjax.prepare.fingerprint import _measure

    folder = write_corpus(
        tmp_path / "A",
        3,
        (9, 44, 46),
        channels=("CT",),
        spacing_mm=(7, 1, 1.2),
        axcodes="LPS",
        margin=1,
    )
    corpus, cases = read_corpus(folder)
    shapes, spacings = [], []
    for case in cases:
        shape, spacing, drawn, _, relative = extractor.analyze_case(
            list(case.images), case.label, SimpleITKIO, num_samples=500
        )
        ours = _measure(case, corpus, 500)
        np.testing.assert_array_equal(ours["drawn"][0], drawn[0])
        assert ours["shape"] == tuple(shape) and ours["cropped"] == pytest.approx(relative)
        np.testing.assert_allclose(ours["spacing_mm"], spacing, rtol=1e-6)
        shapes.append(shape)
        spacings.append(spacing)
    planner = object.__new__(ExperimentPlanner)
    planner.overwrite_target_spacing, planner.anisotropy_threshold = None, 3
    planner.dataset_fingerprint = {"spacings": spacings, "shapes_after_crop": shapes}
    plan = make_plan({"A": fingerprint(corpus, cases, samples=1500)})
    np.testing.assert_allclose(
        plan.spacing_mm["A"], planner.determine_fullres_target_spacing(), rtol=1e-6
    )
