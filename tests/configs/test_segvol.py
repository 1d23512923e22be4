"""Every variant of configs/segvol.py builds: corpora, network, adapters, optimizer and task."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from configs import segvol
from medjax.infer import zoom
from medjax.registry import plain
from medjax.runs import build
from medjax.runs import open as corpora
from medjax.runs.settings import schema
from medjax.runs.settings.use import Zoom
from medjax.sample import batch as batches
from medjax.train import rules
from medjax.weights import adapters
from medjax.weights.transfer import transfer

# counts of the spec: the network without its text tower, and G apart; adapters 142,080 r
NETWORK = 117_710_724 + 1_152
QUICK = ("segvol", "a1m", "a6", "demo")


@functools.cache
def fields(variant):
    found = plain(segvol.get_config(variant))
    if not found["data"]["declared"]:
        found["data"] |= {"phantom_cases": 4}
    return schema.strict(found)


@functools.cache
def space_of(pool):
    return corpora.open_data(fields(pool).data, None, files=False).space


def built(variant, tmp_path):
    config = fields(variant)
    space = corpora.open_data(config.data, tmp_path, files=False).space
    net = build.make_network(config, space, (3.0, 1.0, 1.0))
    return config, space, net


def counts(net):
    tree = net.abstract()
    base, own, _ = adapters.split(tree)
    rows = 0
    if "text" in base:
        rows = int(np.prod(base["text"]["table"].shape))
    return build.count(base) - rows, build.count(own)


def check(variant, tmp_path):
    config, space, net = built(variant, tmp_path)
    task = build.make_task(config, space, net)
    optimizer = build.make_optimizer(config)
    rates = [float(optimizer.schedule(config.train.steps * k // 8)) for k in range(8)]
    assert max(rates) <= config.optim.lr * (1 + 1e-6)
    assert config.name == f"segvol_{variant.replace(':', '_').replace(',', '_')}"
    assert net.patch == tuple(config.train.patch) and task.names
    if not config.adapters.kernels and not config.adapters.rules:
        trained = rules.assign(net.abstract(), config.optim.trainable, all_used=False)
        assert any(jax.tree.leaves(trained))
    return config, space, net, task


@pytest.mark.parametrize("variant", QUICK)
def test_variants_build(variant, tmp_path):
    check(variant, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [v for v in segvol.KNOWN if v not in QUICK])
def test_the_other_variants_build(variant, tmp_path):
    check(variant, tmp_path)


def test_the_section_of_a_config_has_the_settings_of_zooming():
    assert Zoom().to_json() == dataclasses.asdict(zoom.Settings())
    released = fields("release").infer.zoom.to_json()
    found = zoom.Settings(**released)
    assert (found.map_pad, found.empty, found.both, found.pad) == (False, "encode", False, False)


def test_unknown_variants_are_refused():
    for name in ("a11", "c6:5", "c3"):
        with pytest.raises(ValueError, match="unknown variant"):
            segvol.get_config(name)


def test_the_full_network_has_the_published_size_and_adapters(tmp_path):
    base, own = counts(built("a2", tmp_path)[2])  # of CT, whose corpora have one channel
    assert base == NETWORK and own == 142_080 * 16
    config, space, _ = built("a1m", tmp_path)
    assert space.modalities == ("CT", "MR") and config.adapters.expert_of == (0, 1)


def test_a_step_of_the_demo_has_the_stated_shapes(tmp_path):
    """Two objects under four sets, with a corrective round; traced, not computed."""
    config, space, net, task = check("demo", tmp_path)
    shapes = batches.abstract(config.train.batch, net.patch, net.channels, whole=True)
    batch = {name: jax.ShapeDtypeStruct(*array) for name, array in shapes.items()}
    params, key = net.abstract(), jax.eval_shape(jax.random.key, 0)
    value, parts = jax.eval_shape(task.loss, params, batch, key)
    assert value.shape == () and "loss/last_round" in parts
    found = jax.eval_shape(task.validate, params, batch)
    assert all(v.shape == (len(space.classes),) for v in found.values())
    prepared = jax.eval_shape(task.prepare, batch, key)
    assert prepared["prompt_mask"].shape[:2] == (2, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "own"),
    [
        ("small_lora", 9_344 * 8),
        ("small_lora_encoder", 4 * (4 * 128 + 2 * 640) * 8),
        ("small_moa", 9_344 * 8),
        ("small_prior", 9_344 * 8),
    ],
)
def test_small_adaptations_have_the_adapters_of_their_name(variant, own, tmp_path):
    config, _, net, _ = check(variant, tmp_path)
    assert counts(net)[1] == own and config.optim.lr == 2e-3
    assert ("prior" in config.model.options) == (variant == "small_prior")
    assert config.adapters.experts == (2 if variant == "small_moa" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", *segvol.ADAPTED])
def test_a_small_recipe_begins_from_a_network_without_adapters_and_priors(name, tmp_path):
    """By the rules of the recipe; the rows of the paper have the same rules."""
    _, _, source = built("demo", tmp_path / "source")
    config, space, net = built(name, tmp_path / "target")
    draw = np.random.default_rng(0)

    def some(abstract):
        return jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(leaf.dtype), abstract)

    fresh, begun = some(net.abstract()), some(source.abstract())
    grafted = build.adapter_settings(config)
    params, report = transfer(
        fresh,
        begun,
        heads=config.init.heads,
        source_classes=space.classes,
        target_classes=space.classes,
        named={"modalities": ((), ("CT",))},
        new="|".join(filter(None, (config.init.new, adapters.LEAF if grafted else ""))),
    )
    own = {n for n in report.fresh if not re.search(adapters.LEAF, n)}
    assert own == {n for n in report.fresh if n.startswith("prior/")}
    assert bool(own) == (name == "small_prior")
    np.testing.assert_array_equal(
        params["encoder"]["patch_embed"]["bias"], begun["encoder"]["patch_embed"]["bias"]
    )
    for row, twin in {"a1": "small_lora", "a6": "small_prior", "segvol": "small"}.items():
        assert fields(row).init.heads == fields(twin).init.heads
        assert fields(row).init.new == fields(twin).init.new
