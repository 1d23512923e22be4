"""Plans of other engines as ours: v2 JSON in both layouts, v1 pickles through the restricted
reader, and what both refuse.
"""

import collections
import json
import os
import pickle

import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.labels import Corpus
from medjax.prepare.plan import Intensity, Plan
from medjax.runs import config
from medjax.weights.foreign_plans.convert import from_v1, read_plans
from medjax.weights.foreign_plans.read import read_plans_v1
from tests.support.configs import typed

STATISTICS = {
    "mean": 100.0,
    "std": 50.0,
    "percentile_00_5": -60.0,
    "percentile_99_5": 240.0,
    "median": 98.0,
    "min": -200.0,
    "max": 900.0,
}
NETWORK = {
    "n_stages": 3,
    "features_per_stage": [32, 64, 128],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "n_conv_per_stage": [2, 2, 2],
    "n_conv_per_stage_decoder": [2, 2],
}
NAMES = "dynamic_network_architectures.architectures.unet."


def v2(**changes):
    """A plan whose coarse axis is the stored second one."""
    full = {
        "batch_size": 2,
        "patch_size": [28, 256, 224],
        "median_image_size_in_voxels": [40.0, 512.0, 500.5],
        "spacing": [3.0, 0.8, 0.7],
        "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
        "use_mask_for_norm": [False, True],
        "batch_dice": True,
        "architecture": {"network_class_name": NAMES + "PlainConvUNet", "arch_kwargs": NETWORK},
    }
    return {
        "dataset_name": "Dataset007_X",
        "transpose_forward": [1, 0, 2],
        "transpose_backward": [1, 0, 2],
        "configurations": {
            "3d_fullres": full,
            "3d_lowres": {
                "inherits_from": "3d_fullres",
                "spacing": [3.0, 1.6, 1.4],
                "patch_size": [40, 192, 160],
            },
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
        "foreground_intensity_properties_per_channel": {"0": STATISTICS, "1": STATISTICS},
    } | changes


def written(folder, fields, channels=("CT", "PET")):
    (folder / "dataset.json").write_text(
        json.dumps({"channel_names": {str(c): n for c, n in enumerate(channels)}})
    )
    path = folder / "nnUNetPlans.json"
    path.write_text(json.dumps(fields))
    return path


def test_v2(tmp_path):
    plan = read_plans(written(tmp_path, v2()))
    assert (
        plan.orientation == "stored"
        and plan.transpose == (1, 0, 2)
        and plan.spacing_of("anything") == (3.0, 0.8, 0.7)
    )
    assert plan.intensity["CT"] == Intensity("ct", (-60.0, 240.0), 100.0, 50.0) and plan.intensity[
        "PET"
    ] == Intensity("zscore", masked=True)
    assert set(plan.configurations) == {"3d_fullres", "3d_lowres"}
    full, low = plan.configuration("3d_fullres"), plan.configuration("3d_lowres")
    assert (full.patch, full.batch, full.model, full.features) == (
        (28, 256, 224),
        2,
        "unet",
        (32, 64, 128),
    )
    assert (
        full.strides[1] == (1, 2, 2)
        and full.kernels[0] == (1, 3, 3)
        and low.patch == (40, 192, 160)
        and low.features == full.features
    )
    assert plan.at("3d_lowres").spacing_of("x") == (3.0, 1.6, 1.4)
    assert read_plans(path_with(tmp_path, plan)) == plan


def path_with(folder, plan):
    path = folder / "ours.json"
    path.write_text(json.dumps(plan.to_json()))
    return path


def test_v2_before_the_architecture_key(tmp_path):
    fields = v2()
    full = fields["configurations"]["3d_fullres"]
    del full["architecture"]
    full |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 32,
        "unet_max_num_features": 64,
        "pool_op_kernel_sizes": NETWORK["strides"],
        "conv_kernel_sizes": NETWORK["kernel_sizes"],
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
    }
    assert read_plans(written(tmp_path, fields)).configuration("3d_fullres").features == (
        32,
        64,
        64,
    )


def test_what_a_plan_cannot_be(tmp_path):
    path = written(tmp_path, v2())
    with pytest.raises(UsageError, match="another number of channels"):
        read_plans(path, ["CT"])
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(UsageError, match="--channels CT"):
        read_plans(path)
    strange = v2()
    strange["configurations"]["3d_fullres"]["normalization_schemes"] = [
        "CTNormalization",
        "MyNormalization",
    ]
    with pytest.raises(UsageError, match="MyNormalization"):
        read_plans(written(tmp_path, strange))
    strange["configurations"]["3d_fullres"]["architecture"] = {
        "network_class_name": "mine.Net",
        "arch_kwargs": NETWORK,
    }
    with pytest.raises(UsageError, match="network that is not known"):
        read_plans(written(tmp_path, strange))
    path.write_text("[]")
    with pytest.raises(UsageError, match="neither our plan nor"):
        read_plans(path)


def v1(poolings):
    """The paper's plan in small: one stage, statistics under `sd`, poolings with or without the
    first stage.
    """
    stage = {
        "batch_size": 4,
        "num_pool_per_axis": [4, 5, 5],
        "patch_size": np.array([96, 192, 192]),
        "do_dummy_2D_data_aug": False,
        "current_spacing": np.array([1.5, 1.0, 1.0]),
        "median_patient_size_in_voxels": np.array([188, 411, 411]),
        "pool_op_kernel_sizes": poolings,
        "conv_kernel_sizes": [[3, 3, 3]] * 6,
    }
    properties = {
        "mean": np.float64(63.436882),
        "sd": np.float32(175.48094),
        "percentile_00_5": -927.0,
        "percentile_99_5": 275.0,
    }
    return {
        "modalities": {0: "CT"},
        "normalization_schemes": collections.OrderedDict({0: "CT"}),
        "transpose_forward": [0, 1, 2],
        "use_mask_for_norm": collections.OrderedDict({0: False}),
        "base_num_features": 30,
        "conv_per_stage": 2,
        "dataset_properties": {"intensityproperties": collections.OrderedDict({0: properties})},
        "plans_per_stage": {0: stage},
    }


POOLS = [[2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]


@pytest.mark.parametrize("poolings", [POOLS, [[1, 1, 1], *POOLS]], ids=["U-Net", "residual"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_v1(tmp_path, poolings, protocol):
    path = tmp_path / "plans.pkl"
    path.write_bytes(pickle.dumps(v1(poolings), protocol))
    plan = read_plans_v1(path)
    full = plan.configuration("3d_fullres")
    assert plan.spacing_of("x") == (1.5, 1.0, 1.0) and (full.patch, full.batch) == (
        (96, 192, 192),
        4,
    )
    assert (
        full.strides == ((1, 1, 1), *map(tuple, POOLS))
        and len(full.kernels) == 6
        and full.features == (30, 60, 120, 240, 320, 320)
    )
    found = plan.intensity["CT"]
    assert (
        found.clip == (-927.0, 275.0)
        and found.mean == pytest.approx(63.436882)
        and found.std == pytest.approx(175.48094)
    )
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan == from_v1(v1(poolings))


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    "payload",
    [Evil(), {"plans_per_stage": [Evil()]}, collections.Counter("a"), np.array([Evil()], object)],
)
def test_nothing_in_a_pickle_runs(tmp_path, monkeypatch, payload):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plans.pkl"
    path.write_bytes(pickle.dumps(payload))
    with pytest.raises(UsageError, match=r"plans\.pkl.*v1 plan"):
        read_plans_v1(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", pickle.dumps({"a": 1}), pickle.dumps([1])]
)
def test_damaged_pickles(tmp_path, content):
    path = tmp_path / "plans.pkl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="v1 plan"):
        read_plans_v1(path)


def test_a_config_takes_what_its_plan_says(tmp_path):
    path = written(tmp_path, v2())
    fields = {
        "data": {"plan": str(path), "configuration": "3d_fullres"},
        "model": {"name": "plan", "dtype": "bfloat16"},
        "train": {"patch": (1, 1, 1), "batch": 1, "steps": 5},
        "augment": {"on": True},
    }
    given = typed(fields)
    found = config.with_plan(given)
    assert found.train.as_given() == {"patch": (28, 256, 224), "batch": 2, "steps": 5}
    assert given.train.batch == 1
    assert found.model.name == "unet"
    assert found.model.options["strides"][1] == (1, 2, 2)
    assert found.model.options["dtype"] == "bfloat16"
    corpora = [
        Corpus("A", ((1, ("x",)),), channels=("CT", "PET")),
        Corpus("B", ((1, ("x",)),), channels=("PET",)),
    ]
    plan = config.load(given)
    masked = config.with_masks(typed(found), plan, corpora).augment
    assert masked.as_given() == {"on": True, "mask_channels": (0, 1)}
    alone = config.with_masks(typed(found), plan, corpora[:1])
    expected = found.as_given() | {"augment": {"on": True, "mask_channels": (1,)}}
    assert alone.as_given() == expected
    off = config.with_field(found, "augment", {"on": False})
    assert config.with_masks(off, plan, corpora).augment.as_given() == {"on": False}
    for kind, options in (("nnunet", {"swap_axis": 2}), ("turns", {})):  # the plan swaps y and z
        sided = typed(fields | {"augment": {"on": True, "kind": kind, "lateral": "auto"}})
        assert config.with_plan(sided).augment.options == options
    other = config.with_plan(typed(fields | {"model": {"name": "swin_unetr"}})).model
    assert other.as_given() == {"name": "swin_unetr"}
    with pytest.raises(UsageError, match="has no configuration '3d_ful'"):
        config.with_plan(typed(fields | {"data": {"plan": str(path), "configuration": "3d_ful"}}))
    with pytest.raises(UsageError, match="names no plan"):
        config.with_plan(typed(fields | {"data": {"plan": "", "configuration": ""}}))
