"""`medjax import` end to end: a checkpoint as nnU-Net v2 saves it becomes a run folder that
predicts the same and begins other runs.
"""

import json

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from medjax import cli
from medjax.errors import ModelError, UsageError
from medjax.labels import Corpus, merge
from medjax.prepare.plan import Intensity
from medjax.prompts.request import Request
from medjax.runs import build, folder, trained
from medjax.runs.exchange import imported
from medjax.scans.nifti import Volume
from medjax.train import checkpoint
from medjax.weights.foreign_plans import description
from medjax.weights.transfer import transfer

STATISTICS = {
    "mean": 40.0,
    "std": 120.0,
    "percentile_00_5": -500.0,
    "percentile_99_5": 400.0,
    "median": 30.0,
    "min": -1e3,
    "max": 2e3,
}
DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "tumour": 2},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


def _plans(forward=(0, 1, 2), patch=(8, 16, 16), spacing=(3.0, 1.0, 1.5)):
    """plans.json of nnU-Net v2, its lists in the order of its own (transposed) arrays."""
    return {
        "dataset_name": "Dataset001_Liver",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(forward),
        "transpose_backward": [forward.index(a) for a in range(3)],
        "foreground_intensity_properties_per_channel": {"0": STATISTICS},
        "configurations": {
            "3d_fullres": {
                "patch_size": list(patch),
                "spacing": list(spacing),
                "batch_size": 2,
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "architecture": {
                    "arch_kwargs": {"nonlin": "torch.nn.LeakyReLU", "dropout_op": None}
                },
            },
            "3d_lowres": {"inherits_from": "3d_fullres", "spacing": [6.0, 2.0, 3.0]},
            "2d": {
                "patch_size": [16, 16],
                "spacing": [1.0, 1.5],
                "batch_size": 12,
                "normalization_schemes": ["CTNormalization"],
            },
        },
    }


def test_plans_of_version_2_in_our_terms():
    found = description.from_v2(_plans((1, 0, 2)), "3d_fullres", DATASET, mirror_axes=(0,))
    assert found.patch == (16, 8, 16) and found.plan.spacing_of("Dataset001_Liver") == (
        1.0,
        3.0,
        1.5,
    )
    assert (
        found.mirror_axes == (1,)
        and found.average == "logit"
        and found.plan.orientation == "stored"
    )
    ct = found.plan.intensity_of("CT")
    assert (ct.scheme, ct.clip, ct.mean, ct.std) == ("ct", (-500.0, 400.0), 40.0, 120.0)
    assert found.space.classes == ("liver", "tumour") and found.space.corpora[0].values == (0, 1, 2)
    assert description.from_v2(_plans(), "3d_lowres", DATASET).plan.spacing_of(
        "Dataset001_Liver"
    ) == (6.0, 2.0, 3.0)
    with pytest.raises(ModelError, match="3D configurations"):
        description.from_v2(_plans(), "2d", DATASET)
    with pytest.raises(UsageError, match="no such configuration"):
        description.from_v2(_plans(), "3d_cascade", DATASET)


def test_z_scores_within_the_non_zero_voxels_stay_there():
    plans = _plans()
    plans["configurations"]["3d_fullres"] |= {
        "normalization_schemes": ["ZScoreNormalization", "NoNormalization"],
        "use_mask_for_norm": [True, True],
    }
    found = description.from_v2(
        plans, "3d_fullres", DATASET | {"channel_names": {"0": "T1", "1": "mask"}}
    )
    assert (
        found.plan.intensity_of("T1") == Intensity("zscore", masked=True)
        and not found.plan.intensity_of("mask").masked
    )


def test_regions_keep_the_order_of_their_channels():
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    space = description.label_space(labels, ("T1", "T2"), "brats")
    assert space.classes == ("whole", "core", "enhancing") and space.corpora[0].ignore == 4
    mask = np.zeros((4, 3), bool)
    mask[1:, 0] = mask[2:, 1] = mask[3:, 2] = True
    np.testing.assert_array_equal(space.export(mask, "brats"), [0, 1, 2, 3])


def test_plans_of_version_1_in_our_terms():
    ct = {"mean": 63.4, "sd": 175.5, "percentile_00_5": -927.0, "percentile_99_5": 275.0}
    plans = {
        "plans_per_stage": {
            0: {
                "patch_size": np.array([96, 192, 192]),
                "current_spacing": np.array([1.5, 1.0, 1.0]),
                "batch_size": 4,
            }
        },
        "transpose_forward": [0, 1, 2],
        "normalization_schemes": {0: "CT"},
        "dataset_properties": {"intensityproperties": {0: ct}},
    }
    dataset = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "tumour"}}
    found = description.from_v1(plans, dataset, "Task003_Liver")
    assert found.patch == (96, 192, 192) and found.average == "prob" and found.batch == 4
    assert found.plan.intensity_of("CT").std == 175.5 and found.space.classes == ("liver", "tumour")


@pytest.fixture(scope="module", params=[(0, 1, 2), (1, 0, 2)])
def saved(request, tmp_path_factory):
    """(checkpoint file, the PyTorch network, transpose_forward): random weights, saved with
    everything nnU-Net v2 puts in.
    """
    torch = pytest.importorskip("torch")
    architectures = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    torch.manual_seed(0)
    theirs = architectures.PlainConvUNet(
        1,
        2,
        (4, 6),
        torch.nn.Conv3d,
        ((1, 3, 3), (3, 3, 3)),
        ((1, 1, 1), (1, 2, 2)),
        1,
        3,
        1,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(torch.randn_like(value) * 0.4 + (value.ndim == 1) * 0.3)
    path = tmp_path_factory.mktemp("nnunet") / "checkpoint_final.pth"
    optimizer = torch.optim.SGD(theirs.parameters(), 0.01)
    torch.save(
        {
            "network_weights": theirs.state_dict(),
            "optimizer_state": optimizer.state_dict(),
            "grad_scaler_state": None,
            "logging": {"mean_fg_dice": [np.float64(0.5)], "ema_fg_dice": [np.float32(0.5)]},
            "_best_ema": np.float64(0.5),
            "current_epoch": 1000,
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": (0, 1, 2),
            "init_args": {
                "plans": _plans(request.param),
                "configuration": "3d_fullres",
                "fold": 0,
                "dataset_json": DATASET,
                "device": torch.device("cpu"),
            },
        },
        path,
    )
    return path, theirs, request.param


def _volume(array, spacing):
    image = nib.Nifti1Image(array.transpose(2, 1, 0), np.diag([*spacing[::-1], 1.0]))
    return Volume(array, image.affine, image.header, "scan.nii.gz")


@pytest.mark.parity
def test_a_checkpoint_of_version_2_predicts_the_same_and_begins_other_runs(saved, tmp_path, capsys):
    import torch

    path, theirs, forward = saved
    run = tmp_path / "run"
    assert cli.main(["import", str(path), "--family", "nnunet", "-o", str(run)]) == 0
    assert "predicts: medjax predict" in capsys.readouterr().out
    account = json.loads((run / "import.json").read_text())
    assert account["family"] == "nnunet" and not account["absent"] and len(account["matched"]) == 16
    predictor = trained.load_predictor(run, tta="none")
    side = [9, 16, 16] if forward == (0, 1, 2) else [16, 9, 16]
    rng = np.random.default_rng(0)
    array = rng.normal(40, 300, side).astype(np.float32)
    spacing = {(0, 1, 2): (3.0, 1.0, 1.5), (1, 0, 2): (1.0, 3.0, 1.5)}[forward]
    volume = _volume(array, spacing)
    image = predictor.networks[0].prepare(volume, Request("Dataset001_Liver")).image
    np.testing.assert_allclose(image[..., 0], (np.clip(array, -500, 400) - 40) / 120, atol=1e-4)

    net, params = trained.read_model(run).network, checkpoint.read_params(run)
    patch = image[tuple(slice(0, n) for n in net.patch)]
    ours = np.asarray(
        net.apply(jax.tree.map(jnp.asarray, params), jnp.asarray(patch)[None])["logits"]
    )[0]
    with torch.no_grad():
        full = theirs(torch.from_numpy(patch[..., 0].transpose(forward).copy())[None, None])[0][
            0
        ].numpy()
    full = full.transpose(0, *(1 + forward.index(a) for a in range(3)))
    np.testing.assert_allclose(
        ours, np.moveaxis(full[1:] - full[:1], 0, -1), atol=1e-4 * max(1.0, full.std())
    )

    small = _volume(array[tuple(slice(0, n) for n in net.patch)], spacing)  # one window
    with torch.no_grad():
        window = (
            predictor.networks[0]
            .prepare(small, Request("Dataset001_Liver"))
            .image[..., 0]
            .transpose(forward)
            .copy()
        )
        expected = theirs(torch.from_numpy(window)[None, None])[0][0].argmax(0).numpy()
    found = predictor.segment(small, Request("Dataset001_Liver")).label_map
    np.testing.assert_array_equal(found, expected.transpose([forward.index(a) for a in range(3)]))
    assert len(np.unique(found)) > 1

    space = merge([Corpus("new", ((1, ("tumour",)), (2, ("spleen",))))])
    target = build.make_network(folder.read_config(run), space, (3.0, 1.0, 1.5)).abstract()
    fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), target)
    _, report = transfer(
        fresh,
        params,
        heads=((r"^(head|out)_?\d*/", -1),),
        source_classes=("liver", "tumour"),
        target_classes=space.classes,
    )
    assert (
        report.classes["head_0/kernel"] == ("tumour",)
        and report.share == 1.0
        and not report.skipped
    )


@pytest.mark.parity
def test_what_does_not_fit_is_refused(saved, tmp_path):
    path, *_ = saved
    with pytest.raises(UsageError, match="did you mean nnunet"):
        imported.import_weights(path, "nnunett", tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_text("")
    with pytest.raises(UsageError, match="not empty"):
        imported.import_weights(path, "nnunet", tmp_path / "b")
    other = tmp_path / "dataset.json"
    other.write_text(
        json.dumps(
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4},
            }
        )
    )
    with pytest.raises(ModelError, match="3 channels, 4 classes"):
        imported.import_weights(path, "nnunet", tmp_path / "c", dataset=other)
    assert not (tmp_path / "c").exists()


def test_a_file_of_layers_makes_a_beginning_only(tmp_path):
    from tests.weights.test_families import _vit_tensors

    np.savez(tmp_path / "vit.npz", **_vit_tensors())
    text = imported.import_weights(tmp_path / "vit.npz", "vit", tmp_path / "run", patch=(8, 8, 16))
    assert folder.read_config(tmp_path / "run").train.patch == (8, 8, 16)
    assert (
        "cannot predict" in text and r"--config.init.fresh='^(?!(vit/layer\d+|vit/ln_f)/)'" in text
    )
    tree = checkpoint.read_params(tmp_path / "run")
    assert sorted(tree["vit"]) == ["layer0", "layer1", "ln_f"]
    assert folder.read_space(tmp_path / "run").classes == ("class_1",)
