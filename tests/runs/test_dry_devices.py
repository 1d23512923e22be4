"""Memory per device by arithmetic over shards, and the compiler's view from a process with
simulated devices.
"""

import math

import jax
import pytest

from configs.multitalent import get_config
from medjax.errors import UsageError
from medjax.registry import plain
from medjax.runs import build, dry_devices
from medjax.runs import open as corpora

SPACING = (5.0, 4.0, 4.0)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small U-Net on the phantoms' label space, SGD with momentum."""
    c = get_config("demo").unlock()
    c.model.update(dict(base_features=8, max_features=16, max_stages=2))
    c.train.patch = (8, 8, 8)
    c.augment.on = False
    c.optim.name = "sgd"
    fields = plain(c)
    space = corpora.open_data(fields["data"], tmp_path_factory.mktemp("x"), files=False).space
    return fields, space, build.make_network(fields, space, SPACING)


def test_ways_to_share_a_model():
    assert (
        dry_devices.ways(1) == [1]
        and dry_devices.ways(8) == [1, 8]
        and dry_devices.ways(64) == [1, 8, 64]
        and dry_devices.ways(12) == [1, 12]
    )
    assert (
        dry_devices.batch_of({"train": {"batch": 2}}, 8) == 8
        and dry_devices.batch_of({"train": {"batch": 12}}, 8) == 16
    )


def test_bytes_per_device_are_those_of_the_shards(small):
    fields, space, net = small
    kept = {"batch": 1000, "kept for backward": 5000}
    alone = dry_devices.per_device(fields, net, space, 8, 1, kept)
    shared = dry_devices.per_device(fields, net, space, 8, 8, kept)
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
    with pytest.raises(UsageError, match="8 devices, fsdp=3"):
        dry_devices.per_device(fields, net, space, 8, 3, kept)


def test_a_step_is_lowered_for_gpus_that_are_not_there(small):
    """The program for CUDA is another one than the CPU's (whose convolutions are planar), and is
    split over the devices asked for.
    """
    fields, space, _ = small
    request = {
        "fields": fields,
        "space": space.to_json(),
        "devices": 4,
        "fsdp": 2,
        "platforms": ["cpu", "cuda"],
        "compiled": False,
    }
    found = dry_devices.answer(request)
    assert (
        found["batch"] == 4
        and 500 < found["lines"]["cuda"] < found["lines"]["cpu"]
        and "compile_s" not in found
    )
    assert dry_devices._sentence(4, found).startswith("4 devices as 2 x 2: traced in ")
    assert jax.default_backend() == "cpu" and set(found["lower_s"]) == {"cpu", "cuda"}


@pytest.mark.slow
def test_a_step_is_lowered_for_every_platform_and_compiled_for_four_devices(small):
    fields, space, net = small
    found = dry_devices.ask(fields, space, 4, 4)
    assert (
        found["batch"] == 4
        and set(found["lines"]) == {"cpu", "cuda", "tpu"}
        and min(found["lines"].values()) > 100
    )
    state = dry_devices.per_device(fields, net, space, 4, 4, {"batch": 0, "kept for backward": 0})
    assert found["arguments"] == pytest.approx(state["parameters"] + state["optimizer"], rel=0.2)
    assert math.isfinite(found["compile_s"])
    text = dry_devices.report(fields, net, space, (1, 4), compiled=False)
    assert (
        "1 x 4" in text
        and "4 x 1" in text
        and text.count("lowered for cpu") == 2
        and "compiled" not in text
    )
