"""Memory per device by arithmetic over shards, and the compiler's view from a process with
simulated devices.
"""

import math

import jax
import pytest

from configs.multitalent import get_config
from medjax.errors import UsageError
from medjax.registry import plain
from medjax.runs import build, hosts
from medjax.runs import open as corpora
from medjax.runs.ahead import devices as on_devices
from medjax.runs.config import with_field
from medjax.train import rules
from tests.support.configs import typed

SPACING = (5.0, 4.0, 4.0)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small U-Net on the phantoms' label space, SGD with momentum."""
    c = get_config("demo").unlock()
    c.model.update(dict(base_features=8, max_features=16, max_stages=2))
    c.train.patch = (8, 8, 8)
    c.augment.on = False
    c.optim.name = "sgd"
    config = typed(plain(c))
    space = corpora.open_data(config.data, tmp_path_factory.mktemp("x"), files=False).space
    return config, space, build.make_network(config, space, SPACING)


def test_ways_to_share_a_model():
    assert (
        on_devices.ways(1) == [1]
        and on_devices.ways(8) == [1, 8]
        and on_devices.ways(64) == [1, 8, 64]
        and on_devices.ways(12) == [1, 12]
    )
    assert on_devices.ways(8, 4) == [1, 4, 8] and on_devices.ways(4, 8) == [1, 4]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("batch", "count", "fsdp"), [(2, 8, 8), (12, 8, 1), (6, 8, 2), (4, 4, 4)])
def test_the_rehearsal_has_the_layout_and_the_batch_of_the_training(
    small, monkeypatch, batch, count, fsdp, accumulate
):
    config = _changed(small[0], batch, accumulate=accumulate)
    config = with_field(config, "sharding.fsdp", fsdp)
    monkeypatch.setattr(jax, "devices", lambda *_: [None] * count)
    assert on_devices.layout_of(config, count, fsdp) == hosts.layout(config)
    assert hosts.layout(config).batch == batch


def test_an_old_run_folder_has_one_micro_batch(small):
    older = _changed(small[0], 4).to_json()
    del older["train"]["accumulate"]
    config = typed(older)
    assert on_devices.layout_of(config, 2, 1).accumulate == hosts.layout(config).accumulate == 1


def _changed(config, batch, **train):
    for name, value in {"batch": batch, **train}.items():
        config = with_field(config, f"train.{name}", value)
    return config


def test_bytes_per_device_are_those_of_the_shards(small):
    config, space, net = small
    kept = {"batch": 1000, "kept for backward": 5000}
    alone, shared = (
        on_devices.per_device(config, net, space, on_devices.layout_of(config, 8, fsdp), kept)
        for fsdp in (1, 8)
    )
    leaves = jax.tree.leaves(net.abstract())
    whole = sum(leaf.size for leaf in leaves) * 4
    split = (
        sum(
            leaf.size / (8 if leaf.size >= 1024 and any(n % 8 == 0 for n in leaf.shape) else 1)
            for leaf in leaves
        )
        * 4
    )
    assert (
        alone["parameters"] == alone["gradients"] == whole
        and shared["parameters"] == split < whole / 2
    )
    assert alone["optimizer"] - whole == shared["optimizer"] - split < 100, (
        "one momentum per parameter, and counters"
    )
    assert shared["together"] == 3 * split + (shared["optimizer"] - split) + 6000
    with pytest.raises(UsageError, match="fsdp=9, 8 devices"):
        on_devices.layout_of(config, 8, 9)


def test_only_trained_leaves_have_gradients_and_one_micro_batch_has_activations(small):
    config, space, net = small
    layout = on_devices.layout_of(_changed(config, 4), 2, 1)
    whole = on_devices.per_device(_changed(config, 4), net, space, layout)
    head = (("head", True), (".*", False))
    frozen = with_field(_changed(config, 4), "optim.trainable", head)
    found = on_devices.per_device(frozen, net, space, layout)
    heads = sum(
        leaf.size
        for path, leaf in zip(
            rules.paths(net.abstract()), jax.tree.leaves(net.abstract()), strict=True
        )
        if "head" in path
    )
    assert found["gradients"] == 4 * heads < whole["gradients"] == found["parameters"]
    assert found["optimizer"] - 4 * heads < 100 and found["kept"] < 0.7 * whole["kept"]
    divided = _changed(config, 4, accumulate=2)
    parts = on_devices.per_device(divided, net, space, on_devices.layout_of(divided, 2, 1))
    assert parts["gradients"] == 2 * whole["gradients"], "the sum and one micro-batch's"
    assert parts["kept"] == pytest.approx(whole["kept"] / 2, rel=0.1)
    assert parts["batch"] > whole["batch"], "as cut and as augmented"


def test_a_step_is_lowered_for_gpus_that_are_not_there(small):
    """The program for CUDA is another one than the CPU's (whose convolutions are planar), and is
    split over the devices asked for.
    """
    config, space, _ = small
    request = {
        "fields": config.to_json(),
        "space": space.to_json(),
        "spacing_mm": SPACING,
        "devices": 4,
        "fsdp": 2,
        "platforms": ["cpu", "cuda"],
        "compiled": False,
    }
    found = on_devices.answer(request)
    assert (
        (found["batch"], found["mesh"]) == (2, "2 x 2")
        and 500 < found["lines"]["cuda"] < found["lines"]["cpu"]
        and "compile_s" not in found
    )
    assert on_devices._sentence(found).startswith("4 devices as 2 x 2: traced in ")
    assert jax.default_backend() == "cpu" and set(found["lower_s"]) == {"cpu", "cuda"}


@pytest.mark.slow
def test_a_step_is_lowered_for_every_platform_and_compiled_for_four_devices(small):
    config, space, net = small
    found = on_devices.ask(config, space, 4, 4, SPACING)
    assert (
        (found["batch"], found["mesh"]) == (2, "1 x 4")
        and set(found["lines"]) == {"cpu", "cuda", "tpu"}
        and min(found["lines"].values()) > 100
    )
    layout = on_devices.layout_of(config, 4, 4)
    state = on_devices.per_device(config, net, space, layout, {"batch": 0, "kept for backward": 0})
    assert found["arguments"] == pytest.approx(state["parameters"] + state["optimizer"], rel=0.2)
    assert math.isfinite(found["compile_s"])
    text = on_devices.report(config, net, space, (1, 4), SPACING, compiled=False)
    assert (
        "4        1 x 4               2             0" in text
        and "4        2 x 1               1             2" in text
        and "the 4 devices that share a copy of the model compute the same samples" in text
        and "as if config.sharding.rules were" in text
        and text.count("lowered for cpu") == 2
        and "compiled" not in text
    )
