"""nnU-Net v2 for side-by-side runs: a trained-model folder with random weights, its prediction,
preparation, loader, augmentation, resampling and U-Net.

Needs the `parity` extra. Spacings, patches and strides are (z, y, x), as in nnU-Net's plans.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import harness

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


def plain_unet(
    features: Sequence[int], strides: Sequence, kernels: Sequence, classes: int, channels: int = 1
):
    """nnU-Net's PlainConvUNet with deep supervision, as a PyTorch module."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    torch.manual_seed(0)
    return PlainConvUNet(
        channels,
        len(strides),
        features,
        torch.nn.Conv3d,
        kernels,
        strides,
        2,
        classes,
        2,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


def plans(target_mm: tuple[float, ...], patch: tuple[int, ...] = (128, 128, 128)) -> dict:
    """Plans with a spacing, and the clip range and statistics of `benchmarks.prepare`."""
    properties = {"mean": 60.0, "std": 175.0, "percentile_00_5": -900.0, "percentile_99_5": 300.0}
    common = {"order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "bench",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "architecture": {},
        "spacing": list(target_mm),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **common},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **common},
    }
    return {
        "dataset_name": "Dataset001_Bench",
        "plans_name": "bench",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": properties},
    }


def prepare(
    raw: Path, out: Path, target_mm: tuple[float, ...], workers: int, measured: Callable
) -> object:
    """Prepares all scans of a raw folder by DefaultPreprocessor, one forked process per case.

    Args:
      measured: calls the work it is given and returns what is returned here.
    """
    import multiprocessing

    for name in harness.NNUNET:
        os.environ.setdefault(name, str(out))
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    out.mkdir(parents=True)
    described = json.loads((raw / "dataset.json").read_text())
    manager = PlansManager(plans(target_mm))
    jobs = [
        (
            str(out / name),
            [str(raw / "imagesTr" / f"{name}_0000.nii.gz")],
            str(raw / "labelsTr" / f"{name}.nii.gz"),
            manager,
            manager.get_configuration("3d_fullres"),
            described,
        )
        for name in sorted(p.name.removesuffix(".nii.gz") for p in (raw / "labelsTr").iterdir())
    ]
    peer = DefaultPreprocessor(verbose=False)
    if workers == 1:
        return measured(lambda: [peer.run_case_save(*job) for job in jobs])
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        pool.map(abs, range(2 * workers))
        return measured(lambda: pool.starmap(peer.run_case_save, jobs, chunksize=1))


def batches(folder: Path, patch: tuple[int, ...], batch: int):
    """The loader over prepared cases of `benchmarks.prepare`: a third of the patches forced to a
    labelled voxel, no transforms.
    """
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    labels = {"background": 0} | {f"organ {i}": i for i in range(1, 9)}
    described = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    manager = PlansManager(plans((1.0, 1.0, 1.0), patch)).get_label_manager(described)
    data = nnUNetDatasetBlosc2(str(folder))
    return nnUNetDataLoader(
        data, batch, patch, patch, manager, oversample_foreground_percent=0.33, transforms=None
    )


def augmentation(final: tuple[int, ...], channels: int) -> Callable[[np.ndarray, np.ndarray], None]:
    """(images (b, *cut, m), labels (b, *cut)) -> None: the training transforms, one sample after
    another.
    """
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from medjax.sample.patches import is_anisotropic, rotation_limit

    limit = rotation_limit(final)
    chain = nnUNetTrainer.get_training_transforms(
        np.array(final),
        (-limit, limit),
        None,
        tuple(range(len(final))),
        is_anisotropic(final),
        [False] * channels,
    )

    def step(image: np.ndarray, label: np.ndarray) -> None:
        for x, y in zip(image, label, strict=True):
            chain(
                image=torch.from_numpy(np.moveaxis(x, -1, 0).copy()),
                segmentation=torch.from_numpy(y[None].copy()),
            )

    return step


def resample(
    array: np.ndarray, shape: tuple, spacing: tuple, new_spacing: tuple, is_seg: bool
) -> np.ndarray:
    """Resampling with the default arguments."""
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    return resample_data_or_seg_to_shape(
        array[None],
        shape,
        spacing,
        new_spacing,
        is_seg=is_seg,
        order=1 if is_seg else 3,
        order_z=0,
        force_separate_z=None,
    )[0]
