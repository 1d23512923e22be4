"""Trainings on the grids "native" and "size", with a mask channel: raw scans in, masks on their own
grids out, and prediction sees what training saw.
"""

import dataclasses
import json

import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medjax import cli, main
from medjax.corpora.sources import read_corpus
from medjax.errors import UsageError
from medjax.infer.model import Model
from medjax.infer.segmenter import Segmenter
from medjax.labels import Corpus, merge
from medjax.prepare import store
from medjax.prepare.intensity import Intensity, decide
from medjax.prepare.plan import Plan
from medjax.prepare.prepare import prepare
from medjax.prompts.request import Request
from medjax.runs import config
from medjax.runs import folder as runfolder
from medjax.runs.trained import load_predictor
from medjax.sample import draw
from medjax.sample.batch import dequantise
from medjax.scans import nifti
from medjax.train.checkpoint import Checkpoints
from tests.prepare.test_geometry import ORIENTATIONS, affine_of, volume_of
from tests.prepare.test_grid import SIZES, SPACINGS, resampled
from tests.support.configs import typed
from tests.support.raw import save, write_corpus

ORGANS = Corpus("Organs", ((1, ("liver",)),), modality="MR", channels=("MR", "organ"))
SPACE = merge([ORGANS])
SCHEMES = {"MR": Intensity("window", (0.0, 4.0)), "organ": Intensity("mask")}
CONFIG = """
from configs.base import base_config


def get_config(grid="native"):
    c = base_config()
    c.unlock()
    c.data.folders = {folders!r}
    c.data.split.folds = 2
    if grid == "native":
        c.data.spacing_rule = "native"
        c.augment.shift = c.augment.quarter = 0.5
    else:
        c.data.size = (16, 16, 16)
        c.data.crop = "foreground"
        c.sampler.whole = 0.5
    c.data.intensity = dict(MR=dict(scheme="foreground"), organ=dict(scheme="mask"))
    c.model.base_features = 4
    c.train.patch = (16, 16, 16)
    c.train.batch, c.train.steps = 2, 4
    c.train.validate_every = c.train.checkpoint_every = 2
    c.train.validation_batches = c.train.log_every = 1
    c.optim.lr = 1e-3
    c.evaluate.montages = 0
    c.evaluate.surface = False
    return c.lock()
"""


def network(params, image, context):
    """On where the first channel is above a level that the mask channel lowers."""
    level = image[..., :1] + 0.25 * image[..., 1:2]
    return {"logits": (level - 0.5) * 20.0}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(ORIENTATIONS),
    st.sampled_from([0.0, 12.0, -12.0]),
    st.sampled_from(SPACINGS),
    st.sampled_from([None, *SIZES]),
)
def test_masks_come_back_as_from_a_direct_resampling(orientation, oblique, spacing, size):
    rng = np.random.default_rng(3)
    array = np.zeros((9, 12, 11, 2), np.float32)
    array[1:8, 2:11, 1:10, 0] = rng.integers(0, 5, (7, 9, 9))
    array[1, 2, 1, 0] = array[7, 10, 9, 0] = 1.0  # the box of the crop
    array[..., 1] = rng.random(array.shape[:3]) > 0.5
    base = volume_of(array[..., 0], affine_of(*orientation, spacing[::-1], oblique))
    volume = dataclasses.replace(base, array=array)
    plan = Plan({"Organs": (1.0, 1.0, 1.0)}, SCHEMES, grid="size" if size else "native", size=size)
    model = Model(network, jnp.zeros(1), plan, SPACE, (8, 8, 8))
    predictor = Segmenter(model, average="logit")
    label_map, masks, *_ = predictor.segment(volume, Request("Organs"))
    [prepared] = predictor.prepare_all(volume, Request("Organs"))
    transform = prepared.transform
    inside = transform.image(array)
    if size is None:
        np.testing.assert_allclose(prepared.image[..., 0], inside[..., 0] / 4, atol=1e-6)
        np.testing.assert_array_equal(prepared.image[..., 1], inside[..., 1])
        wanted = inside[..., 0] / 4 + 0.25 * inside[..., 1] > 0.5
        found = transform.image(np.asarray(label_map)) == 1
        np.testing.assert_array_equal(found, wanted)
    else:
        assert prepared.image.shape == (*size, 2)
        seen = resampled(inside[..., 0].astype(float), size, transform.spacing_mm, 3)
        seen = np.clip(seen, inside[..., 0].min(), inside[..., 0].max()) / 4
        np.testing.assert_allclose(prepared.image[..., 0], seen, atol=1e-4)
        assert set(np.unique(prepared.image[..., 1])) <= {0.0, 1.0}
        logits = (seen + 0.25 * prepared.image[..., 1] - 0.5) * 20
        back = resampled(
            logits, transform.box_shape, transform.target_spacing_mm, 1, transform.spacing_mm
        )
        found = transform.image(np.asarray(label_map)) == 1
        clear = np.abs(back) > 1e-2
        np.testing.assert_array_equal(found[clear], (back > 0)[clear])
    assert label_map.shape == array.shape[:3]
    outside = np.ones(label_map.shape, bool)
    transform.image(outside)[...] = False
    assert not label_map[outside].any()
    np.testing.assert_array_equal(masks["liver"], label_map == 1)


@pytest.mark.parametrize("size", [None, (8, 12, 10)])
def test_prediction_sees_what_the_store_holds(tmp_path, size):
    corpus, cases = read_corpus(_raw(tmp_path))
    plan = Plan(
        {corpus.store: (1.0, 1.0, 1.0)},
        {"MR": Intensity("foreground"), "organ": Intensity("mask")},
        crop="foreground",
        grid="size" if size else "native",
        size=size,
    )
    seen = []

    def apply(params, image, context):
        shown = context["spacing_mm"][:, None, None, None, :2]
        return {"logits": jnp.broadcast_to(shown, (*image.shape[:-1], 2))}

    model = Model(apply, jnp.zeros(1), plan, merge([corpus]), (8, 8, 8))
    predictor = Segmenter(model)
    assert prepare(corpus, cases, plan, tmp_path / "s").failed == []
    for case in cases:
        held = store.open_case(tmp_path / "s" / corpus.store / case.name)
        volume = nifti.read(case.images[0])
        both = [nifti.read(path).array for path in case.images]
        volume = dataclasses.replace(volume, array=np.stack(both, -1))
        [prepared] = predictor.prepare_all(volume, Request(corpus.name))
        numbers = {k: np.asarray(held.meta[k], np.float32) for k in ("gain", "bias")}
        stored = dequantise({"image": held.image()} | numbers)
        np.testing.assert_allclose(prepared.image, stored, atol=2e-5)
        assert prepared.transform.to_json() == {
            k: tuple(map(tuple, v)) if k == "box" else tuple(v)
            for k, v in held.meta["transform"].items()
        }
        scores, _ = predictor.networks[0].scores(volume, Request(corpus.name))
        spacing = np.asarray(held.meta["spacing_mm"], np.float32)
        np.testing.assert_allclose(np.log(scores / (1 - scores))[0, 0, 0], spacing[:2], rtol=1e-3)
        seen.append(tuple(spacing))
    assert len(set(seen)) == (4 if size else 2)  # the crop decides the extent of a fixed size


def _raw(folder):
    """MR with an organ mask, two cases at different spacings in each of two corpora."""
    raw = write_corpus(
        folder / "Dataset001_A", 4, (18, 20, 17), "nnunet", channels=("MR", "organ"), margin=1
    )
    for k in range(4):
        spacing = (2.0, 1.0, 1.5) if k % 2 else (1.0, 1.2, 0.9)
        image = nib.load(raw / "imagesTr" / f"case_{k:03d}_0000.nii.gz")
        label = nib.load(raw / "labelsTr" / f"case_{k:03d}.nii.gz")
        ids = np.asarray(label.dataobj).T
        for name, array in {
            f"imagesTr/case_{k:03d}_0000.nii.gz": np.asarray(image.dataobj).T,
            f"imagesTr/case_{k:03d}_0001.nii.gz": (ids > 0).astype(np.uint8),
            f"labelsTr/case_{k:03d}.nii.gz": ids,
        }.items():
            save(raw / name, array, spacing)
    return raw


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["native", "size"])
def test_a_training_on_the_grid_and_its_predictions(tmp_path, grid):
    raw = _raw(tmp_path / "raw")
    (tmp_path / "grids.py").write_text(CONFIG.format(folders=str(raw)))
    run = tmp_path / "run"
    flags = [f"--config={tmp_path / 'grids.py'}:{grid}", f"--workdir={run}"]
    assert main.main(flags) == 0
    fields = json.loads((run / runfolder.CONFIG).read_text())
    assert fields["sampler"]["version"] == max(draw.VERSIONS)
    plan = runfolder.read_plan(run)
    assert plan.grid == grid and plan.size == ((16, 16, 16) if grid == "size" else None)
    assert plan.intensity["organ"].role == "mask"
    metas = [store.open_case(run / "store" / "A" / f"case_{k:03d}").meta for k in range(4)]
    spacings = {tuple(np.round(meta["spacing_mm"], 5).tolist()) for meta in metas}
    if grid == "native":
        assert spacings == {(2.0, 1.0, 1.5), (1.0, 1.2, 0.9)}
    else:
        assert all(meta["shape"] == [16, 16, 16] for meta in metas) and len(spacings) > 1
    out = tmp_path / "out"
    given_ = ["-m", str(run), "-i", str(raw / "imagesTr"), "-o", str(out), "--quiet"]
    assert cli.main(["predict", *given_]) == 0
    for k in range(4):
        found = nib.load(next(out.glob(f"case_{k:03d}*.nii.gz")))
        scan = nib.load(raw / "imagesTr" / f"case_{k:03d}_0000.nii.gz")
        assert found.shape == scan.shape and np.allclose(found.affine, scan.affine)
    trained = load_predictor(run).networks[0].model
    assert trained.plan == plan
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses and np.isfinite(losses).all()


def test_masks_have_one_position_in_all_corpora():
    other = Corpus("B", ((1, ("liver",)),), modality="MR", channels=("organ", "MR"))
    plan = Plan({"*": (1.0, 1.0, 1.0)}, SCHEMES)
    fields = typed({"augment": {"on": True}})
    found = config.with_masks(fields, plan, [ORGANS])
    assert found.augment.as_given() == {"on": True, "spare_channels": (1,)}
    turned = typed({"augment": {"on": True, "kind": "turns"}})
    turned = config.with_masks(turned, plan, [ORGANS])
    assert turned.augment.options["spare_channels"] == (1,)
    for same in ({"on": False}, {"on": True, "kind": "flips"}):
        unchanged = config.with_masks(typed({"augment": same}), plan, [ORGANS])
        assert unchanged.augment.as_given() == same
    with pytest.raises(UsageError, match=r"channel 0 is an image.*Organs/MR and B/organ"):
        config.with_masks(fields, plan, [ORGANS, other])


def test_a_trained_run_keeps_its_scheme_of_a_channel_called_mask(tmp_path):
    fields = {"data": {"intensity": {"MR": {"scheme": "foreground"}}}}
    old = {"mask": Intensity("zscore", masked=True), "MR": Intensity("zscore")}
    runfolder.write_json(tmp_path / runfolder.PLAN, Plan({"*": (1.0, 1.0, 1.0)}, old).to_json())
    assert config.schemes(typed(fields), tmp_path) == fields["data"]["intensity"]  # not trained yet
    with Checkpoints(tmp_path / "checkpoints") as target:
        target.save(3, {"params": {"a": np.ones(2, np.float32)}}, {"recipe": {}})
    kept = config.schemes(typed(fields), tmp_path)
    assert kept == {
        "MR": {"scheme": "foreground"},
        "mask": {"scheme": "zscore", "masked": True},
    }
    assert decide("mask", {}, kept) == old["mask"] and decide("mask", {}).role == "mask"
    assert config.schemes(typed({"data": {}}), tmp_path) == {"mask": kept["mask"]}


def test_a_plan_file_decides_size_and_intensity(tmp_path):
    runfolder.write_json(tmp_path / "plan.json", Plan({"*": (1.0, 1.0, 1.0)}, SCHEMES).to_json())
    data = {"plan": str(tmp_path / "plan.json")}
    assert config.load(typed({"data": data})).intensity == SCHEMES
    for name, value in {"size": (4, 4, 4), "intensity": {"MR": {"scheme": "zscore"}}}.items():
        with pytest.raises(UsageError, match=f"config.data.{name} is decided by config.data.plan"):
            config.load(typed({"data": data | {name: value}}))
