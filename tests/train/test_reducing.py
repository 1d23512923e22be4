"""Gradients are added up in the type that the config says, over devices that the batch is split on.

The sums are counted in the program compiled for eight simulated CPU devices. A CPU adds bfloat16 in
float32 and names the function of such a sum "..._promoted"; sums are left apart, so that the name
is there to be read.
"""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.tsfm import get_config
from medjax.errors import TrainError, UsageError
from medjax.registry import plain
from medjax.runs import open as corpora
from medjax.runs import recipe
from medjax.runs.ahead import devices as on_devices
from medjax.runs.settings import schema
from medjax.train import accumulate, pinning, reducing, sharding
from tests.support.configs import typed
from tests.train import test_toy as toy

APART = {"xla_disable_hlo_passes": "all-reduce-combiner,cpu-all-reduce-combiner"}
SUM = re.compile(r" = (.*) (?:all-reduce|reduce-scatter)(?:-start)?\(.*to_apply=%?([\w.\-]+)")


def sums(text):
    """Type -> arrays of more than one number that devices add up in a compiled program."""
    found = Counter()
    for shapes, function in SUM.findall(text):
        for kind, sides in re.findall(r"\b(f32|bf16)\[([0-9,]+)\]", shapes):
            if np.prod([int(n) for n in sides.split(",")]) > 1:
                found["bf16" if function.endswith("_promoted") else kind] += 1
    return found


def step(kind, fsdp=1, parts=1, forward=toy.apply):
    """The gradient function of the toy task, and its arguments, on eight devices."""
    layout = sharding.layout(8 * parts, 8, fsdp, parts)
    mesh = layout.mesh()
    task = toy.task(reducing.reduced(forward, mesh, layout.batch_axes, kind))
    batch = sharding.put(toy.host_batch(0, batch=8 * parts), mesh, layout.batch_axes)
    params, key = toy.init(jax.random.key(3)), jax.random.key(5)
    shapes = {"params": params}
    where = sharding.of_state(shapes, mesh, ((".*", "fsdp"),), small=8)["params"]
    params = jax.device_put(params, where)
    run = accumulate.value_and_grad(task, parts, mesh, layout.batch_axes, where=where)
    jitted = jax.jit(run, out_shardings=((None, None), where))
    return jitted, (params, None, batch, key)


@pytest.fixture(scope="module")
def found():
    """kind -> (types of the sums, gradients)."""
    done = {}
    for kind in reducing.TYPES:
        jitted, given = step(kind)
        program = jitted.lower(*given).compile(APART)
        done[kind] = sums(program.as_text()), jax.device_get(program(*given))
    return done


def test_the_sums_over_devices_have_the_type(found):
    leaves = len(jax.tree.leaves(toy.init(jax.random.key(0))))
    counts = {kind: types for kind, (types, _) in found.items()}
    assert counts["auto"]["bf16"] == 0
    assert counts["bfloat16"]["bf16"] == leaves and counts["float32"]["bf16"] == 0
    assert counts["float32"]["f32"] == leaves + counts["bfloat16"]["f32"]


def test_the_numbers_are_near_those_of_float32(found):
    """To one rounding of eight bits for each of the eight terms, relative to the largest."""
    (loss, _), expected = found["auto"][1]
    for kind, tolerance in (("float32", 1e-5), ("bfloat16", 2**-7)):
        (value, _), gradients = found[kind][1]
        assert float(value) == pytest.approx(float(loss), rel=1e-5)
        for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())
    rounded = jax.tree.leaves(found["bfloat16"][1][1])
    assert any((a != b).any() for a, b in zip(rounded, jax.tree.leaves(expected), strict=True))
    assert all((a == a.astype(jnp.bfloat16)).all() for a in rounded)


def test_the_default_is_the_compilers_choice():
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    assert "reduce" not in schema.listed()["train"]
    old, same, other = (
        schema.resolve({"train": {"batch": 2, **more}})
        for more in ({}, {"reduce": "auto"}, {"reduce": "bfloat16"})
    )
    assert old.train.reduce == "auto" and recipe.fields(old) == recipe.fields(same)
    assert recipe.fields(other) == recipe.fields(old) | {"reduce": "bfloat16"}
    assert reducing.reduced(toy.apply, mesh, kind="bfloat16") is toy.apply
    assert reducing.reduced(toy.apply, None, kind="bfloat16") is toy.apply
    eight, params = sharding.make_mesh(), toy.init(jax.random.key(0))
    image = jnp.zeros((8, *toy.PATCH, 1))
    pinned = pinning.pinned(toy.apply, eight)

    def traced(f, train):
        return str(jax.make_jaxpr(f, static_argnums=3)(params, image, None, train))

    for kind, train in (("auto", True), ("bfloat16", False)):  # validation is as it was
        assert traced(reducing.reduced(toy.apply, eight, kind=kind), train) == traced(pinned, train)


def test_bad_words_and_shared_samples_are_refused():
    with pytest.raises(UsageError, match=r"train.reduce 'bfloat61'") as error:
        reducing.reduced(toy.apply, None, kind="bfloat61")
    assert "bfloat16" in str(error.value)
    layout = sharding.layout(2, 8, 4)
    assert layout.batch_axes == ("data",)
    with pytest.raises(UsageError, match="8 devices, 2 parts"):
        reducing.reduced(toy.apply, layout.mesh(), layout.batch_axes, "float32")


def test_a_network_that_computes_over_the_batch_is_refused():
    def forward(params, image, context, train, key=None):
        return toy.apply(params, image, context, train) | {"balance": {"gate": image.mean()}}

    jitted, given = step("bfloat16", forward=forward)
    with pytest.raises(TrainError, match=r"'balance/gate' over the batch"):
        jitted.lower(*given)


def test_dropout_differs_between_devices_and_not_between_runs():
    def forward(params, image, context, train, key=None):
        return {"logits": params["w"] * jax.random.uniform(key, (len(image), 1))}

    own = reducing.reduced(forward, sharding.make_mesh(), kind="float32")

    @jax.jit
    def call(params, key):
        return own(params, jnp.zeros((8, 2)), None, True, key)["logits"]

    drawn, again = (np.asarray(call({"w": jnp.ones(())}, jax.random.key(1))) for _ in range(2))
    assert len(np.unique(drawn)) == 8
    np.testing.assert_array_equal(drawn, again)


@pytest.mark.slow
@pytest.mark.parametrize(("fsdp", "parts"), [(8, 1), (2, 2)])
def test_with_split_parameters_and_micro_batches(fsdp, parts):
    results = {}
    for kind in reducing.TYPES:
        jitted, given = step(kind, fsdp, parts)
        program = jitted.lower(*given).compile(APART)
        results[kind] = jax.device_get(program(*given)[1])
        assert (sums(program.as_text())["bf16"] > 0) == (kind == "bfloat16")
    for kind, tolerance in (("float32", 1e-5), ("bfloat16", 2**-7)):
        pairs = zip(*(jax.tree.leaves(results[k]) for k in (kind, "auto")), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 8])
def test_a_network_of_a_recipe(fsdp, tmp_path):
    """TSFM, recomputed blocks, a scanned transformer, bfloat16: the whole training step."""
    c = get_config("t").unlock()
    c.model.update(dict(channels=(4, 8), strides=((2, 2, 2),), blocks=1, remat="block"))
    c.model.update(dict(vit_width=32, vit_layers=2, vit_heads=4))
    c.train.update(dict(patch=(8, 16, 16), batch=8))
    c.sharding.fsdp, c.augment.on = fsdp, False
    counts = {}
    for kind in reducing.TYPES:
        c.train.reduce = kind
        config = typed(plain(c))
        space = corpora.open_data(config.data, tmp_path, files=False).space
        layout = on_devices.layout_of(config, 8, fsdp)
        traced = on_devices.traced(config, space, layout, layout.mesh(), (1.0, 1.0, 1.0))
        program = traced.lower().compile({**on_devices.OPTIONS, **APART})
        counts[kind] = sums(program.as_text())
    leaves, of_losses = counts["bfloat16"]["bf16"], counts["bfloat16"]["f32"]
    assert leaves > 50 and of_losses < 10
    assert counts["float32"] == {"f32": leaves + of_losses}
    # the compiler's choice: kernels in the type of the network, biases and norms in float32
    assert counts["auto"]["bf16"] > 10 and counts["auto"]["f32"] > 10 + of_losses
