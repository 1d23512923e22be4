"""Losses against the double-precision oracle of the MultiTalent formulation, and the laws they must
keep.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from medjax.errors import UsageError
from medjax.losses import cross_entropy, dice
from medjax.losses.parts import deep, targets, voxelwise

BATCH, CLASSES, VOXELS = 4, 5, 60
CE_PER_CLASS = (2.835701826, 2.707880987, 0.935050029, 1.000074448, 0.0)
DICE_PER_CLASS = (0.371048539, 0.360351977, 0.365801222, 0.0, 0.0)


def oracle_batch(vol=(VOXELS,), dtype=np.float64):
    """x[b,c,i] = 2 sin(.37 i + 1.3 c + .7 b), g = ((i + 3c + 5b) mod 7 < 2) with g[3,3] = 0;
    annotated {0,1} (3 x), {2,3}; 4 by nobody.

    A voxel's id is the bit pattern of its classes, unknown ones included: the loss itself must
    ignore them.
    """
    b, c, i = np.meshgrid(np.arange(BATCH), np.arange(CLASSES), np.arange(VOXELS), indexing="ij")
    x, g = 2 * np.sin(0.37 * i + 1.3 * c + 0.7 * b), (i + 3 * c + 5 * b) % 7 < 2
    g[3, 3] = False
    ids = (g << np.arange(CLASSES)[None, :, None]).sum(1)
    table = (np.arange(2**CLASSES)[:, None] >> np.arange(CLASSES)) & 1
    known = np.zeros((BATCH, CLASSES), bool)
    known[:3, :2] = known[3, 2:4] = True
    logits = np.moveaxis(x, 1, -1).reshape(BATCH, *vol, CLASSES)
    batch = {
        "label": jnp.asarray(ids.reshape(BATCH, *vol), jnp.int32),
        "table": jnp.asarray(np.broadcast_to(table, (BATCH, *table.shape)).astype(bool)),
        "known": jnp.asarray(known),
    }
    return {"logits": jnp.asarray(logits, dtype)}, batch


def default_loss(outputs, batch):
    return cross_entropy.make()(outputs, batch) + dice.make()(outputs, batch)


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (cross_entropy.make("sum"), 7.478707289542),
        (cross_entropy.make("batch"), 1.869676822386),
        (cross_entropy.make("per_annotating"), 3.782985414620),
        (cross_entropy.make("sum", ranks=2), 7.478707289542 / 2),
        (cross_entropy.make("sum", reduction="mean"), 7.478707289542 / 4),
        (dice.make("global"), -1.097201737514),
        (dice.make("sample"), -2.558886536777),
        (dice.make("rank_index", ranks=1), -2.558886536777),
        (dice.make("rank_index", ranks=2), -1.830292337426),
        (dice.make("rank_index", ranks=4), -1.097201737514),
        (dice.make("global", reduction="mean"), -1.097201737514 / 4),
        (dice.make("sample", reduction="mean"), -2.558886536777 / 8),
        (default_loss, 0.772475084872),
        (lambda o, b: cross_entropy.make("sum")(o, b) + dice.make("sample")(o, b), 4.919820752765),
        (
            lambda o, b: (
                cross_entropy.make("sum", ranks=2)(o, b) + dice.make("rank_index", ranks=2)(o, b)
            ),
            1.909061307345,
        ),
        (
            lambda o, b: (
                cross_entropy.make("sum", ranks=4)(o, b) + dice.make("rank_index", ranks=4)(o, b)
            ),
            0.772475084872,
        ),
    ],
)
@pytest.mark.parametrize("vol", [(60,), (3, 4, 5)])
def test_oracle_in_double_precision(f, expected, vol):
    with jax.enable_x64(True):
        outputs, batch = oracle_batch(vol)
        assert float(jax.jit(f)(outputs, batch)) == pytest.approx(expected, abs=1e-11)
    outputs, batch = oracle_batch(vol, np.float32)
    assert float(jax.jit(f)(outputs, batch)) == pytest.approx(expected, abs=2e-6)


def test_oracle_per_class():
    with jax.enable_x64(True):
        outputs, batch = oracle_batch()
        for c in range(CLASSES):
            only = batch | {"known": batch["known"] & (np.arange(CLASSES) == c)}
            assert float(jax.jit(cross_entropy.make("sum"))(outputs, only)) == pytest.approx(
                CE_PER_CLASS[c], abs=1e-9
            )
            assert -float(jax.jit(dice.make())(outputs, only)) == pytest.approx(
                DICE_PER_CLASS[c], abs=1e-9
            )


def test_unknown_classes_have_exactly_zero_gradient():
    outputs, batch = oracle_batch((3, 4, 5), np.float32)
    unknown = ~np.asarray(batch["known"])
    for f in (
        default_loss,
        dice.make("sample", smooth=1e-5),
        cross_entropy.make("per_annotating", "mean"),
    ):
        gradient = np.moveaxis(
            np.asarray(
                jax.jit(jax.grad(lambda z, f=f: f({"logits": z}, batch)))(outputs["logits"])
            ),
            -1,
            1,
        )
        assert (gradient[unknown] == 0).all()
        assert (gradient[~unknown] != 0).any()
    absent = np.asarray(
        jax.jit(jax.grad(lambda z: dice.make()({"logits": z}, batch)))(outputs["logits"])
    )[..., 3:]
    assert (absent == 0).all(), "an annotated class without a voxel has no Dice gradient (s = 0)"
    smoothed = np.asarray(
        jax.jit(jax.grad(lambda z: dice.make(smooth=1e-5)({"logits": z}, batch)))(outputs["logits"])
    )
    assert (smoothed[3, ..., 3] > 0).all(), "with smoothing false positives are pushed down"


def test_minus_infinity_in_unknown_channels_is_harmless():
    outputs, batch = oracle_batch((60,), np.float32)
    masked = jnp.where(batch["known"][:, None], outputs["logits"], -jnp.inf)
    value, gradient = jax.jit(jax.value_and_grad(lambda z: default_loss({"logits": z}, batch)))(
        masked
    )
    assert float(value) == pytest.approx(0.772475084872, abs=2e-6)
    assert np.isfinite(gradient).all()


def test_large_logits_are_stable():
    outputs, batch = oracle_batch((60,), np.float32)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda z: default_loss({"logits": 1e4 * z}, batch))
    )(outputs["logits"])
    assert np.isfinite(float(value)) and np.isfinite(gradient).all()
    with jax.enable_x64(True):
        x = jnp.linspace(-40, 40, 401)
        np.testing.assert_allclose(voxelwise.softplus(x), jnp.logaddexp(x, 0), rtol=1e-14)
        np.testing.assert_allclose(
            jax.vmap(jax.grad(voxelwise.softplus))(x), jax.nn.sigmoid(x), rtol=1e-14
        )


def test_weight_drops_voxels_as_if_they_were_not_there():
    with jax.enable_x64(True):
        outputs, batch = oracle_batch()
        cut = {"logits": outputs["logits"][:, :40]}, batch | {"label": batch["label"][:, :40]}
        weight = jnp.broadcast_to(jnp.arange(VOXELS) < 40, (BATCH, VOXELS)).astype(jnp.float64)
        for f in map(
            jax.jit, (cross_entropy.make(), dice.make(), dice.make("sample", 1e-5, "mean"))
        ):
            assert float(f(outputs, batch | {"weight": weight})) == pytest.approx(
                float(f(*cut)), abs=1e-12
            )
            assert float(
                f(outputs, batch | {"weight": jnp.ones((BATCH, VOXELS))})
            ) == pytest.approx(float(f(outputs, batch)), abs=1e-12)
    outputs, batch = oracle_batch((60,), np.float32)
    nothing = batch | {"weight": jnp.zeros((BATCH, VOXELS), jnp.float32)}
    value, gradient = jax.jit(jax.value_and_grad(lambda z: default_loss({"logits": z}, nothing)))(
        outputs["logits"]
    )
    assert float(value) == 0 and (np.asarray(gradient) == 0).all(), (
        "a wholly ignored batch teaches nothing"
    )


@pytest.mark.parametrize("pool", ["global", "sample"])
def test_loss_and_gradient_do_not_depend_on_the_device_count(pool):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(8, 4, 5, 6, 3)), jnp.float32)
    batch = {
        "label": jnp.asarray(rng.integers(0, 4, (8, 4, 5, 6)), jnp.int32),
        "table": jnp.asarray(rng.random((8, 4, 3)) < 0.4),
        "known": jnp.asarray(rng.random((8, 3)) < 0.7),
        "weight": jnp.asarray(rng.random((8, 4, 5, 6)) < 0.9, jnp.float32),
    }

    def f(z, batch):
        return cross_entropy.make()({"logits": z}, batch) + dice.make(pool)({"logits": z}, batch)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put((logits, batch), NamedSharding(mesh, P("data")))
    assert len(spread[0].addressable_shards) == 8
    one, eight = (jax.jit(jax.value_and_grad(f))(*args) for args in ((logits, batch), spread))
    np.testing.assert_allclose(one[0], eight[0], rtol=1e-6)
    np.testing.assert_allclose(one[1], eight[1], atol=1e-7)


@given(st.integers(1, 70), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=8, deadline=None)
def test_multi_hot_equals_the_table_lookup(classes, ids, seed):
    rng = np.random.default_rng(seed)
    table, label = (
        rng.random((2, ids, classes)) < 0.5,
        rng.integers(0, ids, (2, 3, 4)).astype(np.int32),
    )
    expected = np.stack([table[k][label[k]] for k in range(2)]).astype(np.float32)
    np.testing.assert_array_equal(
        targets.multi_hot(jnp.asarray(label), jnp.asarray(table)), expected
    )


def test_downsample_reads_the_nearest_exact_voxel():
    volume = jnp.arange(2 * 4 * 6 * 5).reshape(2, 4, 6, 5)
    low = np.asarray(targets.downsample(volume, (2, 2, 5)))
    np.testing.assert_array_equal(low, np.asarray(volume)[:, [1, 3]][:, :, [1, 4]])
    np.testing.assert_array_equal(
        targets.downsample(jnp.arange(7)[None], (3,)), [[1, 3, 5]]
    )  # floor((i + .5) 7/3) = 1.17, 3.5, 5.8


def test_deep_supervision_weights():
    assert deep.weights(5) == pytest.approx((8 / 15, 4 / 15, 2 / 15, 1 / 15, 0))
    assert deep.weights(3) == pytest.approx((2 / 3, 1 / 3, 0))
    assert deep.weights(5, "halving_all") == pytest.approx(
        (16 / 31, 8 / 31, 4 / 31, 2 / 31, 1 / 31)
    )
    assert deep.weights(1) == (1.0,)
    assert deep.weights(2, (1, 0.25)) == (1.0, 0.25)
    with pytest.raises(UsageError, match="found 2; expected 3"):
        deep.weights(3, (1.0, 0.5))
    with pytest.raises(UsageError, match="halving"):
        deep.weights(3, "halfing")


def test_deep_total_is_the_weighted_sum_and_skips_zero_weights():
    outputs, batch = oracle_batch((3, 4, 5), np.float32)
    batch["weight"] = jnp.ones((BATCH, 3, 4, 5))
    low = jnp.sin(jnp.arange(BATCH * 3 * 2 * 5 * CLASSES, dtype=jnp.float32)).reshape(
        BATCH, 3, 2, 5, CLASSES
    )
    seen = []

    def spy(o, b):
        seen.append(b["label"].shape[1:])
        return cross_entropy.make()(o, b)

    value, parts = deep.total([("ce", 2.0, spy)], outputs | {"deep": [low, low[:, :, :1]]}, batch)
    low_batch = batch | {"label": batch["label"][:, :, 1::2], "weight": batch["weight"][:, :, 1::2]}
    expected = 2 / 3 * cross_entropy.make()(outputs, batch) + 1 / 3 * cross_entropy.make()(
        {"logits": low}, low_batch
    )
    assert float(parts["ce"]) == pytest.approx(float(expected), rel=1e-6)
    assert float(value) == pytest.approx(2 * float(expected), rel=1e-6)
    assert seen == [(3, 4, 5), (3, 2, 5)]


@pytest.mark.parametrize(
    ("make", "arguments", "hint"),
    [
        (dice.make, {"pool": "globl"}, "global"),
        (dice.make, {"reduction": "average"}, "mean"),
        (cross_entropy.make, {"normalise": "per_anotating"}, "per_annotating"),
    ],
)
def test_unknown_options_name_the_known_ones(make, arguments, hint):
    with pytest.raises(UsageError, match=hint):
        make(**arguments)
    with pytest.raises(UsageError, match="multiple of 3"):
        dice.make("rank_index", ranks=3)(*oracle_batch((60,), np.float32))
