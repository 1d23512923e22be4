"""The same masks through other evaluators: MONAI with subvoxels, DeepMind's definitions recomputed
from MONAI's surfels, nnU-Net.
"""

import json

import nibabel as nib
import numpy as np
import pytest

from medjax import cli
from medjax.metrics import aggregate, surface
from medjax.metrics import counts as overlap
from tests.metrics.test_surface import ball

pytestmark = pytest.mark.parity


def _shapes():
    """Name -> reference, prediction, spacing: spheres, boxes at the border, a thin sheet, scattered
    voxels, far apart.
    """
    rng = np.random.default_rng(7)
    boxes = np.zeros((2, 14, 20, 18), bool)
    boxes[0, :6, 3:15, 2:9], boxes[1, :8, 5:15, 2:11] = True, True
    sheet = np.zeros((2, 14, 20, 18), bool)
    sheet[0, 5, 2:18, 2:16], sheet[1, 6:8, 2:17, 1:16] = True, True
    far = np.zeros((2, 40, 40, 40), bool)
    far[0, 2:5, 2:5, 2:6], far[1, 33:38, 30:38, 32:37] = True, True
    spacing = (5.0, 0.8, 0.8)
    yield (
        "spheres",
        ball((16, 80, 80), (8, 40, 40), 25, spacing),
        ball((16, 80, 80), (9, 42, 40), 24, spacing),
        spacing,
    )
    yield "boxes", *boxes, (3.0, 1.0, 1.5)
    yield "sheet", *sheet, (2.5, 0.7, 0.7)
    yield "scattered", *(rng.random((2, 10, 12, 11)) < 0.3), (1.0, 2.0, 0.5)
    yield "far", *far, (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "name, reference, prediction, spacing", list(_shapes()), ids=[s[0] for s in _shapes()]
)
def test_surface_metrics_equal_deepminds_definitions_computed_from_monais_surfels(
    name, reference, prediction, spacing
):
    torch, metrics = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    from monai.metrics.utils import get_edge_surface_distance

    edges, distances, areas = get_edge_surface_distance(
        torch.as_tensor(prediction),
        torch.as_tensor(reference),
        spacing=spacing,
        use_subvoxels=True,
        symmetric=True,
    )
    distances = [np.asarray(d, np.float64).ravel() for d in distances]
    weights = [
        np.asarray(area, np.float64)[np.asarray(edge, bool)]
        for area, edge in zip(areas, edges, strict=True)
    ]
    both = list(zip(distances, weights, strict=True))

    def quantile(
        values, weights, share
    ):  # of Nikolov et al.: the first distance at which so much of the area is reached
        order = np.argsort(values)
        return values[order][np.searchsorted(np.cumsum(weights[order]) / weights.sum(), share)]

    found = surface.surface_distances(reference, prediction, spacing)
    # MONAI keeps areas and distances in single precision.
    assert surface.hausdorff(found) == pytest.approx(
        max(quantile(d, w, 0.95) for d, w in both), rel=1e-6
    )
    assert surface.directed_means(found)[::-1] == pytest.approx(
        [np.average(d, weights=w) for d, w in both], rel=1e-5
    )
    assert surface.hausdorff(found, 100.0) == pytest.approx(
        max(d.max() for d in distances), rel=1e-6
    )

    one_hot = [torch.as_tensor(np.stack([~m, m])[None]) for m in (prediction, reference)]
    for tolerance in (0.5, 1.0, 2.9):
        theirs = metrics.compute_surface_dice(
            *one_hot, [tolerance], spacing=spacing, use_subvoxels=True
        )
        assert surface.surface_dice(found, tolerance) == pytest.approx(
            float(theirs[0, 0]), abs=2e-6
        )
    counts = overlap.count(reference, prediction)
    assert counts.dice == pytest.approx(
        float(metrics.compute_dice(*one_hot, include_background=False)[0, 0]), abs=1e-6
    )
    assert counts.iou == pytest.approx(
        float(metrics.compute_iou(*one_hot, include_background=False)[0, 0]), abs=1e-6
    )


def test_where_monai_loses_a_miss_we_keep_it():
    torch, metrics = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    reference, nothing = np.zeros((2, 6, 8, 8), bool)
    reference[2:4, 2:6, 2:6] = True
    one_hot = [torch.as_tensor(np.stack([~m, m])[None]).float() for m in (nothing, reference)]
    with pytest.warns(UserWarning):
        theirs = float(metrics.compute_hausdorff_distance(*one_hot, percentile=95)[0, 0])
    assert np.isnan(theirs)  # and leaves the mean
    status, ours = aggregate.score_masks(
        reference, nothing, overlap.count(reference, nothing), (2.0, 1.0, 1.0), 1.0
    )
    assert (
        status == "missed"
        and ours["HD95"] == pytest.approx(np.linalg.norm([12, 8, 8]))
        and ours["Dice"] == 0.0
    )


def _nnunet(reference, prediction, labels):
    """(case name, label) -> Dice of nnU-Net's folder evaluation."""
    evaluation = pytest.importorskip("nnunetv2.evaluation.evaluate_predictions")
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    out = prediction.parent / "nnunet_summary.json"
    folders = (str(reference), str(prediction), str(out))
    found = evaluation.compute_metrics_on_folder(
        *folders, SimpleITKIO(), ".nii.gz", labels, num_processes=1
    )["metric_per_case"]
    by_case = {
        (case["reference_file"].rsplit("/", 1)[-1], label): case["metrics"][label]
        for case in found
        for label in labels
    }
    return by_case, json.loads(out.read_text())


@pytest.mark.data
def test_dice_of_real_masks_equals_nnunets(real_data, tmp_path):
    task = real_data / "Task04_Hippocampus"
    listed = json.loads((task / "dataset.json").read_text())["training"][:6]
    rng = np.random.default_rng(0)
    for k, item in enumerate(listed):
        label = nib.load(task / item["label"])
        array = np.asarray(label.dataobj).astype(np.uint8)
        moved = np.roll(array, int(rng.integers(-2, 3)), int(rng.integers(3)))
        moved[rng.random(moved.shape) < 0.02] = rng.integers(0, 3)
        moved[moved == 2] = 0 if k == 3 else 2  # one case without Posterior
        name = item["label"].rsplit("/", 1)[-1]
        for folder, values in (("reference", array), ("prediction", moved)):
            (tmp_path / folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(values, label.affine), tmp_path / folder / name)
    theirs, summary = _nnunet(tmp_path / "reference", tmp_path / "prediction", [1, 2])
    arguments = [
        "--reference",
        str(tmp_path / "reference"),
        "--prediction",
        str(tmp_path / "prediction"),
        "--no-report",
        "--quiet",
    ]
    assert (
        cli.main(
            [
                "evaluate",
                *arguments,
                "--labels",
                str(task / "dataset.json"),
                "-o",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    ours = json.loads((tmp_path / "out" / "summary.json").read_text())
    for case in ours["metric_per_case"]:
        for label in (1, 2):
            expected = theirs[case["reference_file"].rsplit("/", 1)[-1], label]
            assert {k: case["metrics"][str(label)][k] for k in expected} == pytest.approx(
                expected, abs=1e-9
            )
    for label in ("1", "2"):
        assert {k: ours["mean"][label][k] for k in summary["mean"][label]} == pytest.approx(
            summary["mean"][label], abs=1e-9
        )
    assert {k: ours["foreground_mean"][k] for k in summary["foreground_mean"]} == pytest.approx(
        summary["foreground_mean"], abs=1e-9
    )
