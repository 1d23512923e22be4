"""Whatever reads a finished run gets all parameters: trained and frozen ones, and the moving
average if the run keeps one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.runs import folder as runfolder
from medjax.runs import stages, trained
from medjax.runs.exchange import export
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
    recipes = [stages.recipe_fields(typed(f)) for f in (fields, older, averaged)]
    assert recipes[0] == recipes[1]
    assert runfolder.differences(recipes[1], recipes[2]) == ["optim.ema: was nothing, is 0.9"]
