"""Trainings and models from Python: configs, the run, its model, its batches, in a notebook."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import medjax
from medjax import experiment, main, show
from medjax.errors import UsageError
from tests.support.raw import write_corpus
from tests.support.run import make_run
from tests.test_api import scan
from tests.test_main import SMALL

DEMO = "configs/multitalent.py:demo"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("experiment") / "run")


def test_the_package_offers_its_names():
    assert {"Predictor", "config", "load", "predict", "stream", "train"} <= set(dir(medjax))
    assert all(callable(getattr(medjax, name)) for name in medjax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = medjax.nothing
    assert "workdir" in inspect.signature(type(medjax.train).__call__).parameters


def test_a_config_is_changed_by_field(repository, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = medjax.config(DEMO, {"train.steps": 7, "optim.lr": 1e-3})
    assert (config.train.steps, config.optim.lr, config.name) == (7, 1e-3, "multitalent_demo")
    config.train.batch = 3
    with pytest.raises(UsageError, match=r"config.train has no field 'stepz'.*did you mean steps"):
        medjax.config(DEMO, {"train.stepz": 7})
    with pytest.raises(UsageError, match="expected a number"):
        medjax.config(DEMO, {"augment.rotation": "often"})
    config.nonsense = 1
    for wrong, message in ((config, "no field 'nonsense'"), (3, "not a config; found int")):
        with pytest.raises(UsageError, match=message):
            medjax.train(wrong, tmp_path / "x")
    with pytest.raises(UsageError, match="unknown mode 'dry'"):
        medjax.train(DEMO, tmp_path / "x", mode="dry")
    assert list(tmp_path.iterdir()) == []


def test_a_training_is_that_of_the_command(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(main, "run", lambda command: calls.append(command) or 3)
    done = medjax.train(DEMO)
    assert (done.workdir, done.code) == (Path("runs/multitalent_demo"), 3)
    medjax.train(medjax.config(DEMO), tmp_path / "r", mode="crossval", folds=(1,))
    first, second = calls
    assert (first.mode, first.recipe, first.folds) == ("train", DEMO, ())
    assert (second.mode, second.folds, second.workdir) == ("crossval", (1,), tmp_path / "r")
    monkeypatch.setenv("MEDJAX_DISTRIBUTED", "auto")
    with pytest.raises(UsageError, match="several processes train by the command"):
        medjax.train(DEMO)
    assert done.metrics == [] and done.scores == {} and "<b>Run</b>" in done._repr_html_()


def test_a_model_is_a_module_parameters_and_a_function(run):
    model = medjax.load(run)
    assert model.classes == ("organ", "tumour") == model.space.classes
    image = jnp.zeros((1, 8, 8, 8, 1))
    out = model.apply(model.params, image)["logits"]
    assert out.shape == (1, 8, 8, 8, 2)
    direct = model.module.apply({"params": model.params}, image, {}, False)["logits"]
    assert np.array_equal(out, direct)
    text = model._repr_html_()
    assert "organ, tumour" in text and f"{sum(map(np.size, jax.tree.leaves(model.params)))}" in text
    with pytest.raises(UsageError):
        medjax.load(run.parent)


def test_a_path_is_predicted_like_the_image_in_it(run, tmp_path):
    image = scan()
    image.to_filename(tmp_path / "scan.nii.gz")
    model = medjax.load(run)
    of_path, of_image = model.predict(tmp_path / "scan.nii.gz"), model.predict(image)
    assert np.array_equal(of_path.dataobj, of_image.dataobj)
    assert np.allclose(of_path.affine, image.affine, atol=1e-5)
    assert len(model._kept) == 1 and "<table>" in model.predictor()._repr_html_()
    with pytest.raises(UsageError, match="expected a path, a nibabel image"):
        model.predict(3)


def test_text_of_a_page_is_escaped(tmp_path):
    assert "<script>" not in show.table("<script>", {"<script>": "<script>"})
    assert show.plain("<b>") == "<pre>&lt;b&gt;</pre>" and show.picture(tmp_path / "x.png") == ""
    (tmp_path / "x.png").write_bytes(b"png")
    assert "base64,cG5n" in show.picture(tmp_path / "x.png")


def _flags(raw, workdir):
    flags = [f"--config={DEMO}", f"--workdir={workdir}", f"--config.data.folders={raw}", *SMALL]
    return [*flags, "--config.train.steps=3", "--config.evaluate.montages=0"]


@pytest.mark.slow
def test_a_training_in_this_process_equals_the_command(tmp_path, repository):
    """Bit by bit: parameters, record, masks. And its batches are those that `stream` gives."""
    raw = write_corpus(tmp_path / "Task01_Blobs", n=4, shape=(18, 20, 22))
    given = main.parse(["medjax", *_flags(raw, tmp_path / "own")])
    done = medjax.train(given.config, tmp_path / "own")
    environment = {**os.environ, "PYTHONPATH": str(repository), "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-m", "medjax.main", *_flags(raw, tmp_path / "other")]
    said = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (said.returncode, done.code) == (0, 0), said.stderr
    own, other = (medjax.load(tmp_path / name) for name in ("own", "other"))
    for a, b in zip(jax.tree.leaves(own.params), jax.tree.leaves(other.params), strict=True):
        assert np.array_equal(a, b)
    record, again = ((tmp_path / n / "metrics.jsonl").read_text() for n in ("own", "other"))
    assert record == again and len(done.metrics) >= 3
    masks = sorted(p.relative_to(tmp_path / "own") for p in (tmp_path / "own").rglob("*.nii.gz"))
    assert masks and all(
        (tmp_path / "own" / m).read_bytes() == (tmp_path / "other" / m).read_bytes() for m in masks
    )
    assert "mean Dice" in done._repr_html_() and done.report.is_file()
    first, second = (
        next(experiment.stream(given.config, tmp_path / name)) for name in ("own", "other")
    )
    assert set(first) == set(second) and len(first["image"]) == 2
    assert all(np.array_equal(first[name], second[name]) for name in first)
    later = next(experiment.stream(given.config, tmp_path / "own", start=2))
    assert not np.array_equal(first["image"], later["image"])
