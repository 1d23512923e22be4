"""Whatever reads a finished run gets all parameters: trained and frozen ones, and the moving
average if the run keeps one.
"""

import warnings

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.labels import Corpus
from medjax.prompts.request import Request
from medjax.runs import folder as runfolder
from medjax.runs import recipe, trained
from medjax.runs.exchange import export
from medjax.scans import nifti
from medjax.scans.header import DataWarning
from medjax.train import optim, sharding
from medjax.train import state as states
from medjax.train.checkpoint import Checkpoints
from tests.support.configs import typed
from tests.support.run import make_run

PART = (("^head", True), (".*", False))


def partly_frozen(folder, **infer):
    """(run whose newest checkpoint holds an average that differs from its parameters, its state)"""
    run = make_run(folder, infer=infer)
    begun = trained.read_model(run).params()
    optimizer = optim.make(steps=10, trainable=PART, ema=0.9)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    target = states.abstract(lambda key: begun, optimizer, mesh, sharding.REPLICATE)
    state = states.born(lambda key: begun, optimizer, target, 0)
    state["ema"] = jax.tree.map(lambda v: v + 1, state["ema"])
    with Checkpoints(run / "checkpoints") as checkpoints:
        checkpoints.save(8, state | {"step": jnp.asarray(8)}, {"recipe": {}})
    return run, state


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize(("infer", "average"), [({}, True), ({"ema": "off"}, False)])
def test_a_model_and_its_exports_hold_what_the_config_says(tmp_path, infer, average):
    run, state = partly_frozen(tmp_path / "run", **infer)
    expected = states.weights(state, average=average)
    assert len(jax.tree.leaves(state["frozen"])) > 2
    same(trained.read_model(run).params(), expected)
    export.export(run, tmp_path / "m.medjax")
    same(trained.read_model(tmp_path / "m.medjax").params(), expected)
    export.export(run, tmp_path / "slim", "orbax")
    same(trained.read_model(tmp_path / "slim").params(), expected)
    assert not (tmp_path / "slim" / "checkpoints" / "base").exists()


def test_a_word_that_means_nothing_is_refused(tmp_path):
    run = make_run(tmp_path / "run", infer={"ema": "on"})
    with pytest.raises(UsageError, match=r"infer.ema; found 'on'; expected auto or off"):
        trained.read_model(run)


def test_runs_without_the_field_have_the_same_recipe(tmp_path):
    fields = runfolder.read_fields(make_run(tmp_path / "run"))
    assert fields["optim"]["ema"] == 0.0 and fields["infer"]["ema"] == "auto"
    older = fields | {"optim": {k: v for k, v in fields["optim"].items() if k != "ema"}}
    averaged = fields | {"optim": fields["optim"] | {"ema": 0.9}}
    recipes = [recipe.fields(typed(f)) for f in (fields, older, averaged)]
    assert recipes[0] == recipes[1]
    assert runfolder.differences(recipes[1], recipes[2]) == ["optim.ema: was nothing, is 0.9"]


def test_mirrors_that_would_mix_left_and_right_are_left_out(tmp_path):
    kidneys = Corpus("Kidneys", ((1, ("kidney left",)), (2, ("kidney right",))))
    infer = {"mirror_axes": (1, 2)}
    run = make_run(tmp_path / "run", (kidneys,), infer=infer)
    assert trained.load_predictor(run).networks[0].mirror_axes == (1, 2)
    run = make_run(tmp_path / "auto", (kidneys,), infer=infer, augment={"lateral": "auto"})
    with pytest.warns(DataWarning, match=r"axes \[2\] are not mirrored in prediction"):
        assert trained.load_predictor(run).networks[0].mirror_axes == (1,)
    export.export(run, tmp_path / "m.medjax")
    with pytest.warns(DataWarning, match=r"m.medjax: axes \[2\]"):
        found = trained.load_predictor(tmp_path / "m.medjax", tta="mirror")
    assert found.networks[0].mirror_axes == (0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        assert trained.load_predictor(run, tta="none").networks[0].mirror_axes == ()


SIDES = Corpus("Sides", ((1, ("left",)), (2, ("right",)), (3, ("right", "cyst"))))


@pytest.mark.slow
def test_run_archive_and_function_paint_alike(tmp_path):
    """The rule for conflicts travels with the config; an older config has the old one."""
    run = make_run(tmp_path / "run", (SIDES,), infer={"conflicts": "argmax"})
    export.export(run, tmp_path / "weights.medjax")
    export.export(run, tmp_path / "function.medjax", "function", platforms=("cpu",))
    old = make_run(tmp_path / "old", (SIDES,))
    values = np.random.default_rng(0).normal(50, 100, (8, 9, 10)).astype(np.float32)
    nib.save(nib.Nifti1Image(values.T, np.eye(4)), tmp_path / "a.nii")
    volume = nifti.read(tmp_path / "a.nii")

    def painted(path, **options):
        predictor = trained.load_predictor(path, **options)
        found = predictor.segment(volume, Request("Sides"))
        return predictor.conflicts, found.masks.conflicting, found.label_map

    rule, shared, expected = painted(run)
    assert rule == "argmax" and shared > 0
    for other in (tmp_path / "weights.medjax", tmp_path / "function.medjax"):
        rule, count, label_map = painted(other)
        assert (rule, count) == ("argmax", shared)
        np.testing.assert_array_equal(label_map, expected)
    rule, count, ordered = painted(old)
    assert (rule, count) == ("ordered", shared) and (ordered != expected).any()
    np.testing.assert_array_equal(painted(run, conflicts="ordered")[2], ordered)
    np.testing.assert_array_equal(painted(old, conflicts="argmax")[2], expected)
    wrong = make_run(tmp_path / "wrong", (SIDES,), infer={"conflicts": "argmx"})
    with pytest.raises(UsageError, match=r"infer.conflicts; found 'argmx'.*ordered or argmax"):
        trained.read_model(wrong)
