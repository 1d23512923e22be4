"""Patch, batch and topology from a memory budget: published plans, the proxy by hand, and nnU-Net's
own planners side by side.
"""

import json
import shutil

import numpy as np
import pytest

from medjax.commands.plan import BUDGETS as WORDS
from medjax.errors import UsageError
from medjax.prepare import presets
from medjax.prepare.presets import PRESETS, Configuration, configurations, configure, conv_values
from medjax.topology import topology


def test_the_proxy_by_hand():
    found = topology((1, 1, 1), (16, 16, 16))
    assert found.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2)) and found.patch == (16, 16, 16)
    n = 16**3
    plain = 2 * (32 * n + 64 * n // 8 + 128 * n // 64) + 3 * (32 * n + 64 * n // 8) + 3 * n
    assert conv_values(found.patch, found, (32, 64, 128), PRESETS["default"], 3) == plain
    residual = (
        32 * n
        + 2 * 32 * n
        + 7 * 64 * n // 8
        + 9 * 128 * n // 64
        + 2 * (32 * n + 64 * n // 8)
        + 3 * n
    )
    assert conv_values(found.patch, found, (32, 64, 128), PRESETS["resenc_m"], 3) == residual


def test_hippocampus_as_nnunet_plans_it():
    """nnU-Net's plan for Task04: median size 36x50x35 at 1 mm, 3 outputs -> patch 40x56x40, batch
    9, four stages (spec, chapter 9).
    """
    found = configurations((1, 1, 1), np.tile((36, 50, 35), (260, 1)), 3)
    full = found["3d_fullres"]
    assert (full.patch, full.batch, full.features) == ((40, 56, 40), 9, (32, 64, 128, 256))
    assert (
        "3d_lowres" not in found
        and not full.batch_dice
        and found["2d"].batch_dice
        and len(found["2d"].patch) == 2
    )


def test_more_memory_means_more():
    shapes = np.tile((300, 500, 500), (100, 1))
    small, large = (
        configurations((1, 0.8, 0.8), shapes, 14, "resenc_l", gib)["3d_fullres"] for gib in (12, 48)
    )
    assert np.prod(small.patch) < np.prod(large.patch) and small.budget * 4 == large.budget
    assert all(p % d == 0 for p, d in zip(small.patch, np.prod(small.strides, 0), strict=True))
    assert Configuration.from_json(json.loads(json.dumps(small.to_json()))) == small


def test_small_collections_get_small_batches():
    few = configure("3d_fullres", (1, 1, 1), (64, 64, 64), 10 * 64**3, 2)
    many = configure("3d_fullres", (1, 1, 1), (64, 64, 64), 1000 * 64**3, 2)
    assert few.batch == 2 < many.batch  # 5 % of ten volumes is less than one patch; never below two
    assert (
        configure("3d_fullres", (1, 1, 1), (64, 64, 64), 10 * 64**3, 2, "resenc_m").batch > 2
    )  # these presets may see it all


def test_single_slices_have_no_3d():
    assert set(configurations((5, 1, 1), np.tile((1, 300, 300), (9, 1)), 2)) == {"2d"}


def test_what_cannot_be_planned():
    with pytest.raises(UsageError, match="did you mean resenc_l"):
        configure("3d_fullres", (1, 1, 1), (64, 64, 64), 1e8, 2, "resenc_ll")
    with pytest.raises(UsageError, match="positive number of GiB"):
        configure("3d_fullres", (1, 1, 1), (64, 64, 64), 1e8, 2, memory_gib=-1)


COLLECTIONS = {
    "isotropic MR": ((1.0, 1.0, 1.0), (36, 50, 35), 3, 1),
    "abdominal CT": ((3.0, 0.78, 0.78), (110, 512, 512), 14, 1),
    "fine CT": ((1.0, 0.7, 0.7), (420, 500, 500), 5, 1),
    "cardiac cine": ((9.5, 1.5, 1.5), (10, 237, 208), 4, 1),
    "brain MR": ((1.0, 1.0, 1.0), (138, 170, 138), 4, 4),
}


ABDOMEN = (np.tile((60, 320, 320), (12, 1)), (5.0, 1.25, 1.25))  # CT of an abdomen


def test_a_cpu_sees_a_quarter_of_the_body():
    shapes, spacing = ABDOMEN
    assert tuple(presets.BUDGETS) == WORDS
    (found,) = presets.for_budget("cpu", spacing, shapes, 14).values()
    size = np.array(spacing) / found.spacing_mm * np.median(shapes, 0)
    assert np.prod(found.patch) / np.prod(size) >= presets.LOWRES_BELOW
    fits = PRESETS["cpu"].values_3d
    shape = topology(found.spacing_mm, found.patch)
    assert conv_values(found.patch, shape, found.features, PRESETS["cpu"], 14) <= fits
    assert found.features[0] == 16 and max(found.features) <= 128
    assert (found.name, found.batch, found.steps) == ("cpu", 2, 3000)
    assert all(mm >= own for mm, own in zip(found.spacing_mm, spacing, strict=True))
    assert Configuration.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_small_volume_keeps_its_grid():
    """A hippocampus crop fits into the patch."""
    (found,) = presets.for_budget(
        "cpu", (1.0, 1.0, 1.0), np.tile((36, 50, 35), (20, 1)), 3
    ).values()
    assert found.spacing_mm == (1.0, 1.0, 1.0) and found.name == "cpu"


@pytest.mark.parametrize("word", ["8gb", "24gb", "80gb"])
def test_a_gpu_gets_the_full_resolution_of_its_preset(word):
    shapes, spacing = ABDOMEN
    preset, gib = presets.BUDGETS[word]
    (found,) = presets.for_budget(word, spacing, shapes, 14).values()
    full = configurations(spacing, shapes, 14, preset, gib)["3d_fullres"]
    assert (found.patch, found.batch, found.features) == (full.patch, full.batch, full.features)
    assert found.steps == 250_000 and full.steps == 0
    assert "steps" not in full.to_json(), "plans of earlier versions stay as they are"


def test_unknown_budgets_and_slices_are_refused():
    shapes, spacing = ABDOMEN
    with pytest.raises(UsageError, match=r"unknown budget 'cpus'.*cpu"):
        presets.for_budget("cpus", spacing, shapes, 3)
    with pytest.raises(UsageError, match="single slices"):
        presets.for_budget("cpu", spacing, np.tile((1, 64, 64), (3, 1)), 3)


def planner_of(peer, spacings, shapes, labels, channels, memory):
    """nnU-Net's planner for a collection of cases, without files."""
    from nnunetv2.experiment_planning.experiment_planners import (
        default_experiment_planner as module,
    )

    described = {
        "channel_names": {str(c): "MRI" for c in range(channels)},
        "labels": {str(i): i for i in range(labels)},
        "numTraining": len(shapes),
    }
    prints = {
        "spacings": [list(s) for s in spacings],
        "shapes_after_crop": [list(s) for s in shapes],
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "nnUNet_raw", "raw")
        patch.setattr(module, "nnUNet_preprocessed", "preprocessed")
        patch.setattr(
            module,
            "load_json",
            lambda path: prints if path.endswith("fingerprint.json") else described,
        )
        patch.setattr(module, "isfile", lambda path: path.endswith("fingerprint.json"))
        patch.setattr(module, "maybe_convert_to_dataset_name", lambda name: "Dataset001_X")
        patch.setattr(module, "get_filenames_of_train_images_and_targets", lambda *a: {})
        planner = peer("Dataset001_X", **({"gpu_memory_target_in_gb": memory} if memory else {}))
    planner.determine_reader_writer = lambda: dict
    planner.save_plans = lambda plans: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "nnUNet_raw", "raw")
        patch.setattr(module, "nnUNet_preprocessed", "preprocessed")
        patch.setattr(shutil, "copy", lambda *a: None)
        return planner.plan_experiment()


PAIRS = [
    ("isotropic MR", "default"),
    ("cardiac cine", "default"),
    ("cardiac cine", "resenc_l"),
    ("brain MR", "default"),
]
LONG = [
    (name, preset)
    for name in COLLECTIONS
    for preset in PRESETS
    if (name, preset) not in PAIRS and preset != "cpu"  # ours
]  # minutes: nnU-Net builds every network


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "preset"), [*PAIRS, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in LONG)]
)
def test_parity_with_nnunets_planners(name, preset):
    pytest.importorskip("nnunetv2")
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as plain
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import (
        residual_encoder_unet_planners as residual,
    )

    peer = {
        "default": plain.ExperimentPlanner,
        "resenc_m": residual.nnUNetPlannerResEncM,
        "resenc_l": residual.nnUNetPlannerResEncL,
        "resenc_xl": residual.nnUNetPlannerResEncXL,
    }[preset]
    spacing, shape, labels, channels = COLLECTIONS[name]
    wanted = planner_of(peer, [spacing] * 40, [shape] * 40, labels, channels, None)[
        "configurations"
    ]
    found = configurations(spacing, np.tile(shape, (40, 1)), labels, preset)
    assert set(found) == set(wanted) - {"3d_cascade_fullres"}
    for key, ours in found.items():
        theirs, network = wanted[key], wanted[key]["architecture"]["arch_kwargs"]
        assert (ours.patch, ours.batch, ours.batch_dice) == (
            tuple(theirs["patch_size"]),
            theirs["batch_size"],
            theirs["batch_dice"],
        ), key
        assert (ours.strides, ours.kernels) == (network["strides"], network["kernel_sizes"])
        assert ours.features == network["features_per_stage"] and ours.decoder == tuple(
            network["n_conv_per_stage_decoder"]
        )
        assert ours.encoder == tuple(
            network.get("n_conv_per_stage", network.get("n_blocks_per_stage"))
        )
        np.testing.assert_allclose(ours.spacing_mm, theirs["spacing"])
