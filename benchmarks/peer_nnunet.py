"""A trained-model folder of nnU-Net v2 with random weights, for side-by-side runs: dataset.json,
plans.json, fold_0/checkpoint_final.pth.

Needs the `parity` extra. Spacings, patches and strides are (z, y, x), as in nnU-Net's plans.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

CT = {
    "mean": 50.0,
    "std": 100.0,
    "percentile_00_5": -200.0,
    "percentile_99_5": 300.0,
    "min": -1024.0,
    "max": 3071.0,
    "median": 40.0,
}


def write_model(
    folder: Path,
    *,
    classes: int,
    patch: Sequence[int],
    spacing_mm: Sequence[float],
    features: Sequence[int],
    strides: Sequence,
    kernels: Sequence,
) -> Path:
    """Writes the folder; classes without the background, one entry of features, strides and kernels
    per stage.
    """
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    stages = len(features)
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [list(k) for k in kernels],
            "strides": [list(s) for s in strides],
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "median_image_size_in_voxels": list(patch),
        "spacing": list(spacing_mm),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": architecture,
        "batch_dice": True,
        **{
            f"resampling_fn_{what}": "resample_data_or_seg_to_shape"
            for what in ("data", "seg", "probabilities")
        },
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
    }
    plans = {
        "dataset_name": "Dataset999_Random",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(spacing_mm),
        "original_median_shape_after_transp": list(patch),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": CT},
    }
    labels = {"background": 0, **{f"class{i:03d}": i for i in range(1, classes + 1)}}
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": labels,
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    torch.manual_seed(0)
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        classes + 1,
        deep_supervision=False,
    )
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": [0, 1, 2],
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def command(model: Path, source: Path, out: Path, *more: str) -> list[str]:
    """Its prediction command on the CPU, one process each for reading and writing."""
    program = Path(sys.executable).with_name("nnUNetv2_predict_from_modelfolder")
    given = [
        "-i",
        str(source),
        "-o",
        str(out),
        "-m",
        str(model),
        "-f",
        "0",
        "-device",
        "cpu",
        "-npp",
        "1",
        "-nps",
        "1",
        "--disable_tta",
    ]
    return [str(program), *given, *more]
