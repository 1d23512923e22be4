"""Prepared arrays, statistics and plans beside nnU-Net v2's own preprocessor, fingerprint and
planner, on real and synthetic scans.
"""

import dataclasses
import json
import os

import numpy as np
import pytest

from medjax.corpora.sources import read_corpus
from medjax.prepare import store
from medjax.prepare.fingerprint import fingerprint
from medjax.prepare.plan import Intensity, Plan, make_plan
from medjax.prepare.planner import plan_experiment
from medjax.prepare.prepare import prepare
from tests.support.raw import save, write_corpus

pytestmark = pytest.mark.parity
SCHEME = {"ct": "CTNormalization", "zscore": "ZScoreNormalization", "nonorm": "NoNormalization"}


@pytest.fixture(scope="module", autouse=True)
def peer_folders(tmp_path_factory):
    """nnU-Net's three environment variables, which it reads at import."""
    pytest.importorskip("nnunetv2")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, str(tmp_path_factory.mktemp(name)))


def peers_arrays(case, corpus, plan):
    """nnU-Net's prepared image (z, y, x, m) float32 and label with -1 outside the mask, by the plan
    of ours.
    """
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    intensities = [plan.intensity_of(c) for c in corpus.channels]
    properties = {
        str(c): {
            "mean": i.mean,
            "std": i.std,
            "percentile_00_5": i.clip[0],
            "percentile_99_5": i.clip[1],
        }
        if i.clip
        else {}
        for c, i in enumerate(intensities)
    }
    common = {"order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [64] * 3,
        "architecture": {},
        "spacing": list(plan.spacing_of(corpus.store)),
        "normalization_schemes": [SCHEME[i.scheme] for i in intensities],
        "use_mask_for_norm": [i.masked for i in intensities],
        "batch_dice": False,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **common},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **common},
    }
    backward = [int(i) for i in np.argsort(plan.transpose)]
    manager = PlansManager(
        {
            "dataset_name": "Dataset001_X",
            "plans_name": "x",
            "image_reader_writer": "NibabelIO",
            "transpose_forward": list(plan.transpose),
            "transpose_backward": backward,
            "configurations": {"3d_fullres": configuration},
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": properties,
        }
    )
    described = {
        "channel_names": {str(c): n for c, n in enumerate(corpus.channels)},
        "file_ending": ".nii.gz",
        "labels": {"background": 0} | {str(v): v for v in corpus.values if v},
    }
    data, label, _ = DefaultPreprocessor(verbose=False).run_case(
        list(case.images), case.label, manager, manager.get_configuration("3d_fullres"), described
    )
    return np.moveaxis(data, 0, -1), label[0]


def check(folder, name, plan, root, *, whole_channels=True):
    """Prepares one case both ways; returns our stored case and nnU-Net's label map."""
    corpus, cases = read_corpus(folder)
    case = next(c for c in cases if c.name == name)
    assert prepare(corpus, [case], plan, root).failed == []
    ours = store.open_case(root / corpus.store / name)
    wanted, label = peers_arrays(case, corpus, plan)
    image = ours.image() * np.float32(ours.meta["gain"]) + np.float32(ours.meta["bias"])
    assert image.shape == wanted.shape
    for c in range(image.shape[-1]):
        assert np.abs(image[..., c] - wanted[..., c]).max() <= 1e-3 * np.ptp(
            wanted[..., c]
        )  # in fact about 1e-5
        assert abs(image[..., c].mean() - wanted[..., c].mean()) < 1e-4
    ids = (
        np.array([corpus.values.index(v) for v in range(max(corpus.values) + 1)])
        if max(corpus.values) < len(corpus.values)
        else None
    )
    peer_ids = np.maximum(label, 0) if ids is None else ids[np.maximum(label, 0)]
    assert (ours.label() != peer_ids).mean() < 1e-3
    return ours, label


@pytest.mark.data
@pytest.mark.parametrize(
    ("task", "name", "spacing"),
    [
        ("Task04_Hippocampus", "hippocampus_011", (1.0, 0.9, 1.2)),
        ("Task02_Heart", "la_003", (1.4, 1.25, 1.25)),
        ("Task91_SarcomaCT", "sts_026", (3.0, 1.5, 1.5)),
    ],
)
def test_real_cases(real_data, tmp_path, task, name, spacing):
    if not (real_data / task).is_dir():
        pytest.skip(f"no {task}")
    corpus, _ = read_corpus(real_data / task)
    ct = Intensity("ct", (-160.0, 240.0), 30.0, 80.0)
    plan = Plan(
        {corpus.store: spacing},
        {c: ct if c.lower() == "ct" else Intensity("zscore") for c in corpus.channels},
        "stored",
    )
    check(real_data / task, name, plan, tmp_path)


@pytest.mark.parametrize("axcodes", ["RAS", "SLP"])
def test_anisotropic_ct(tmp_path, axcodes):
    """5 mm slices: separate z, clipping, nearest slices; also when the coarse axis is not the first
    and is put there.
    """
    folder = write_corpus(
        tmp_path / "A", 1, (14, 60, 52), channels=("CT",), spacing_mm=(5, 0.8, 0.8), axcodes=axcodes
    )
    corpus, _ = read_corpus(folder)
    coarse = {"RAS": 0, "SLP": 2}[axcodes]
    order = (coarse, *(a for a in range(3) if a != coarse))
    plan = Plan(
        {corpus.store: (4.0, 1.0, 1.1)},
        {"CT": Intensity("ct", (-90.0, 90.0), 20.0, 40.0)},
        "stored",
        transpose=order,
    )
    check(folder, "case_000", plan, tmp_path / "s")


def test_masked_z_scores(tmp_path):
    """A skull-stripped scan of two channels with a hole: statistics inside the filled mask, 0
    outside, label -1 outside.
    """
    folder = write_corpus(
        tmp_path / "Dataset001_B",
        1,
        (24, 30, 28),
        "nnunet",
        channels=("T1", "T2"),
        spacing_mm=(1.2, 1, 1),
    )
    corpus, cases = read_corpus(folder)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (24, 30, 28)], indexing="ij"))
    brain = np.linalg.norm(grid, axis=0) < 0.95
    hole = np.linalg.norm(grid - 0.2, axis=0) < 0.15
    rng = np.random.default_rng(0)
    for c, path in enumerate(cases[0].images):
        save(
            path_of(path),
            np.where(brain & ~hole, 300 + 100 * c + 40 * rng.normal(size=brain.shape), 0).astype(
                np.float32
            ),
            (1.2, 1, 1),
        )
    save(
        path_of(cases[0].label), (np.linalg.norm(grid, axis=0) < 0.5).astype(np.uint8), (1.2, 1, 1)
    )
    measured = fingerprint(corpus, cases, samples=1000)
    assert (
        measured.cropped[0] > 0.75
    )  # the box keeps most; a real skull-stripped head in a large field of view does not
    loose = dataclasses.replace(measured, cropped=(0.6,))
    assert (
        not make_plan({corpus.store: measured}).intensity["T1"].masked
        and make_plan({corpus.store: loose}).intensity["T1"].masked
    )
    plan = make_plan({corpus.store: loose}, spacing=(1.0, 1.1, 0.9), orientation="stored")
    ours, label = check(folder, "case_000", plan, tmp_path / "s")
    outside = ours.label(outside=-1) == -1
    assert (outside == (label < 0)).mean() > 0.999 and outside.mean() > 0.2
    assert "3" not in ours.meta["voxels"] and set(ours.locations) == {"1"}


def path_of(text):
    """str -> Path."""
    from pathlib import Path

    return Path(text)


@pytest.mark.data
@pytest.mark.parametrize(("task", "number"), [("Task04_Hippocampus", 40), ("Task02_Heart", 15)])
def test_statistics_and_plan_of_real_data(real_data, tmp_path, task, number):
    """Fingerprint statistics from nnU-Net's own sample, and its planner's spacing, patch, batch and
    strides.
    """
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import (
        DatasetFingerprintExtractor,
    )
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
        ExperimentPlanner,
    )
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO

    from tests.prepare.test_presets import planner_of

    corpus, cases = read_corpus(real_data / task)
    cases = cases[:number]
    ours = fingerprint(corpus, cases, samples=500 * number)
    shapes, spacings, drawn = [], [], []
    for case in cases:
        shape, spacing, pixels, _, _ = DatasetFingerprintExtractor.analyze_case(
            list(case.images), case.label, NibabelIO, num_samples=500
        )
        shapes.append(shape)
        spacings.append(spacing)
        drawn.append(pixels[0])
    pooled, found = np.concatenate(drawn), ours.intensity[0]
    wanted = [
        pooled.mean(),
        np.median(pooled),
        pooled.std(),
        pooled.min(),
        pooled.max(),
        *np.percentile(pooled, (0.5, 99.5)),
    ]
    values = [
        found.mean,
        found.median,
        found.std,
        found.min,
        found.max,
        found.percentile_00_5,
        found.percentile_99_5,
    ]
    np.testing.assert_allclose(values, wanted, rtol=1e-5)

    plan = plan_experiment({corpus.store: ours}, len(corpus.values), preset="default")
    full = plan.configuration("3d_fullres")
    theirs = planner_of(ExperimentPlanner, spacings, shapes, len(corpus.values), 1, None)[
        "configurations"
    ]["3d_fullres"]
    np.testing.assert_allclose(full.spacing_mm, theirs["spacing"], rtol=1e-6)
    assert (full.patch, full.batch) == (tuple(theirs["patch_size"]), theirs["batch_size"])
    assert full.strides == theirs["architecture"]["arch_kwargs"]["strides"]
    assert json.loads(json.dumps(plan.to_json())) == json.loads(
        json.dumps(Plan.from_json(plan.to_json()).to_json())
    )
