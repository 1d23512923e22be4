"""Activations stay where the batch lies, at no more communication and with the same numbers.

At the size of TSFM t, eight cards need 13 communications: tests/runs/ahead/test_compiled.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs.tsfm import get_config
from medjax.registry import plain
from medjax.runs import build
from medjax.runs import open as corpora
from medjax.runs.ahead import devices as on_devices
from medjax.runs.ahead import hlo
from medjax.train import pinning, sharding
from tests.support.configs import typed


class Net(nn.Module):
    """Two maps, and a table whose first axis is not the batch."""

    @nn.compact
    def __call__(self, x, context=None, train=False):
        table = nn.Embed(3, 8, name="table")(jnp.arange(3))
        return {"logits": nn.Dense(8, name="map")(x) + table.sum(0), "kept": x.sum()}


def test_outputs_of_modules_are_split_as_the_batch_and_nothing_else():
    net, image = Net(), jax.random.normal(jax.random.key(0), (8, 4, 2))
    params = net.init(jax.random.key(1), image)
    layout = sharding.layout(8, 8, 8)
    pinned = pinning.pinned(net.apply, layout.mesh(), layout.batch_axes)

    def count(f, image):
        return str(jax.make_jaxpr(f)(params, image)).count("sharding_constraint[")

    assert count(net.apply, image) == 0
    assert count(pinned, image) == 3  # the image, the map's output, the logits
    assert count(pinned, image[:3]) == 0  # does not divide
    found = [jax.tree.leaves(jax.jit(f)(params, image)) for f in (net.apply, pinned)]
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    apply, alone = net.apply, sharding.layout(8, 1).mesh(jax.devices()[:1])
    assert pinning.pinned(apply, alone) is apply and pinning.pinned(apply, None) is apply


@pytest.mark.slow
def test_pinning_adds_no_communication_where_samples_are_split_already(tmp_path, monkeypatch):
    c = get_config("t").unlock()
    c.model.update(dict(dtype="float32", channels=(4, 8, 8), strides=((2, 2, 2), (1, 2, 2))))
    c.model.update(dict(vit_width=32, vit_layers=3, vit_heads=4, scan="none"))
    c.train.update(dict(patch=(16, 32, 32), batch=8))
    c.sharding.fsdp, c.augment.on = 8, False
    config = typed(plain(c))
    space = corpora.open_data(config.data, tmp_path, files=False).space
    layout = on_devices.layout_of(config, 8, 8)

    def count():
        step = on_devices.traced(config, space, layout, layout.mesh(), (1.0, 1.0, 1.0))
        return hlo.collectives(step.lower().compile().as_text())

    after = count()
    monkeypatch.setattr(build.reducing.pinning, "pinned", lambda apply, *_: apply)
    before = count()
    assert set(after) <= {"all-reduce", "all-gather", "reduce-scatter"} and after
    assert sum(after.values()) <= sum(before.values())
