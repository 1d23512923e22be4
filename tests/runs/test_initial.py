"""`config.init` between real runs: a U-Net begun from another run with other classes and channels,
and what is refused before training.
"""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import base_config
from medjax.errors import UsageError
from medjax.labels import Corpus, merge
from medjax.prepare.plan import Plan
from medjax.registry import plain
from medjax.runs import build, initial
from medjax.runs import folder as runfolder
from medjax.runs.config import with_field
from medjax.train import checkpoint
from tests.support.configs import typed

SPACING = (1.0, 1.0, 1.0)


def _space(name, channels, *classes):
    return merge(
        [Corpus(name, tuple((i + 1, (c,)) for i, c in enumerate(classes)), channels=channels)]
    )


def _config(**init):
    c = base_config().unlock()
    c.model.update(dict(base_features=4, max_features=8, max_stages=2, deep_supervision=True))
    c.train.patch = (8, 8, 8)
    c.init.update(init)
    return typed(plain(c))


def _some(net, seed):
    """Parameters without compiling an initialisation."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: draw.normal(size=leaf.shape).astype(leaf.dtype), net.abstract()
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run folder of a small network that knows liver and spleen on one channel; and its
    parameters.
    """
    folder, space, config = (
        tmp_path_factory.mktemp("source"),
        _space("Old", ("CT",), "liver", "spleen"),
        _config(),
    )
    net = build.make_network(config, space, SPACING)
    params = _some(net, 1)
    plan = Plan({"Old": SPACING}, {}, "RAS", "nonzero")
    for name, value in (
        (runfolder.CONFIG, config.to_json()),
        (runfolder.LABELS, space.to_json()),
        (runfolder.PLAN, plan.to_json()),
    ):
        runfolder.write_json(folder / name, value)
    with checkpoint.Checkpoints(folder / "checkpoints") as kept:
        kept.save(
            1, {"step": jnp.int32(1), "params": jax.tree.map(jnp.asarray, params), "opt": {}}, {}
        )
    return folder, params


def test_a_network_with_other_classes_and_channels_begins_from_a_run(source, tmp_path, capsys):
    folder, old = source
    config, space = _config(source=str(folder)), _space("New", ("T1", "T2"), "kidney", "liver")
    net = build.make_network(config, space, SPACING)
    fresh = _some(net, 2)
    params = initial.borrower(config, space, net, tmp_path)(fresh)
    first = old["encoder_0"]["conv_0"]["conv"]["kernel"]
    np.testing.assert_array_equal(
        params["encoder_0"]["conv_0"]["conv"]["kernel"], np.repeat(first, 2, 3)
    )
    np.testing.assert_array_equal(
        params["encoder_1"]["conv_1"]["conv"]["kernel"],
        old["encoder_1"]["conv_1"]["conv"]["kernel"],
    )
    head = np.asarray(params["head_0"]["kernel"])
    np.testing.assert_array_equal(
        head[:, 1], old["head_0"]["kernel"][:, 0], err_msg="liver is channel 0 there, 1 here"
    )
    np.testing.assert_array_equal(head[:, 0], np.asarray(fresh["head_0"]["kernel"])[:, 0])
    assert (
        "input channels  encoder_0/conv_0/conv/kernel: 1 -> 2 repeated" in capsys.readouterr().out
    )
    account = runfolder.read_json(tmp_path, initial.TRANSFER)
    assert (
        account["share"] == 1.0
        and account["classes"]["head_0/bias"] == ["liver"]
        and account["source"] == str(folder)
    )


def test_what_cannot_be_meant_is_refused_before_training(source, tmp_path):
    folder, _ = source
    space = _space("New", ("CT",), "kidney")
    for changes, message in (
        ({"source": str(tmp_path / "nothing")}, "not a run folder"),
        ({"source": str(folder), "classes": {"kidnee": "liver"}}, "kidnee"),
        ({"source": str(folder), "classes": {"kidney": "livr"}}, "livr"),
    ):
        config = _config(**changes)
        with pytest.raises(UsageError, match=message):
            initial.borrower(config, space, build.make_network(config, space, SPACING), tmp_path)
    config = _config(source=str(folder))
    with pytest.raises(UsageError, match="begin from itself"):
        initial.borrower(config, space, build.make_network(config, space, SPACING), folder)
    assert (
        initial.borrower(_config(), space, build.make_network(_config(), space, SPACING), tmp_path)
        is None
    )


FLAT = (5.0, 1.0, 1.0)  # mm: the rule would halve only the second and third axis


def test_strides_left_open_are_those_of_the_source(source, tmp_path):
    folder, _ = source
    space = _space("New", ("CT",), "kidney")
    alone = build.make_network(_config(), space, FLAT).topology
    assert alone["strides"] == ((1, 1, 1), (1, 2, 2))
    config = initial.with_topology(_config(source=str(folder)), tmp_path)
    found = build.make_network(config, space, FLAT).topology
    assert found["strides"] == ((1, 1, 1), (2, 2, 2))
    assert found["kernels"] == ((3, 3, 3), (3, 3, 3)) != alone["kernels"]
    assert initial.with_topology(_config(), tmp_path) == _config()


def test_a_trained_run_keeps_the_strides_it_started_with(source, tmp_path):
    folder, _ = source
    given = _config(source=str(folder))
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    for begun in (given, with_field(given, "model.strides", ((1, 1, 1), (1, 2, 2)))):
        runfolder.write_json(tmp_path / runfolder.CONFIG, begun.as_given())
        found = initial.with_topology(given, tmp_path)
        assert found.model.options.get("strides") == begun.model.options.get("strides")


def test_other_strides_than_the_source_s_are_shown_and_refused_with_adapters(
    source, tmp_path, capsys
):
    folder, _ = source
    space = _space("New", ("CT",), "liver", "spleen")
    config = _config(source=str(folder), fresh="^up_0/")
    config = with_field(config, "model.strides", ((1, 1, 1), (1, 2, 2)))
    net = build.make_network(config, space, SPACING)
    initial.borrower(config, space, net, tmp_path)(_some(net, 2))
    assert "strides ((1, 1, 1), (1, 2, 2)), of the source ((1, 1, 1), (2, 2, 2))" in (
        capsys.readouterr().out
    )
    config = with_field(config, "adapters.kernels", "unet")
    with pytest.raises(UsageError, match="need the network of their source"):
        initial.borrower(config, space, build.make_network(config, space, SPACING), tmp_path)
