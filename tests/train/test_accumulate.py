"""Micro-batches: the same samples, the same augmentation, and for losses over samples the same
gradient as the undivided batch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.losses import (
    cross_entropy,
    dice,
    masked_pixels,
    softmax_cross_entropy,
    softmax_dice,
)
from medjax.losses.parts import separable
from medjax.tasks import masked_image, supervised
from medjax.train import accumulate, optim, sharding, update
from medjax.train import state as states
from tests.support.marks import slow
from tests.train import test_toy as toy

COMPLETE = np.ones_like(toy.KNOWN)
KEY = jax.random.key(5)
LOSSES = {  # arguments of the loss -> what it is over samples, if (not) every class is annotated
    "ce": (cross_entropy.make(), "mean", "mean"),
    "ce sum": (cross_entropy.make("sum", ranks=2), "sum", "sum"),
    "ce annotating": (cross_entropy.make("per_annotating"), "mean", "batch"),
    "ce mean": (cross_entropy.make(reduction="mean"), "mean", "batch"),
    "dice": (dice.make(), "batch", "batch"),
    "dice sample": (dice.make("sample"), "sum", "sum"),
    "dice rank": (dice.make("rank_index", ranks=1), "sum", "sum"),
    "dice ranks": (dice.make("rank_index", ranks=2), "batch", "batch"),
    "dice sample mean": (dice.make("sample", reduction="mean"), "mean", "batch"),
    "softmax ce": (softmax_cross_entropy.make(), "mean", "mean"),
    "softmax ce sum": (softmax_cross_entropy.make(reduction="sum"), "sum", "sum"),
    "softmax dice": (softmax_dice.make(), "mean", "mean"),
    "softmax dice sum": (softmax_dice.make(reduction="sum"), "sum", "sum"),
    "softmax dice corpus": (softmax_dice.make("corpus"), "batch", "batch"),
}


def init(key):
    """One weight and one bias per class."""
    return {"body": {"w": jnp.array([0.5, -0.3, 0.8])}, "head": {"b": jnp.array([0.1, 0.2, -0.4])}}


def apply(params, image, context, train, key=None):
    """Logits that are linear in the image: compiles at once."""
    return {"logits": image * params["body"]["w"] + params["head"]["b"]}


def task_of(loss, known=toy.KNOWN, forward=apply, **changes):
    """A task with one loss."""
    arguments = dict(table=toy.TABLE, ignore_ids=toy.IGNORE, patch=toy.PATCH, augment=toy.augment)
    return supervised.make(forward, [("a", 0.7, loss)], known=known, **(arguments | changes))


def host_batch():
    """A toy batch whose first half is of one corpus, the second of both."""
    return toy.host_batch(2) | {"corpus": np.repeat([0, 1], (5, 3)).astype(np.int32)}


def gradients(task, parts, mesh=None, axes=sharding.AXES, batch=None):
    """((loss, scalars), gradients) of a batch in micro-batches."""
    mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
    found = accumulate.value_and_grad(task, parts, mesh, axes)
    batch = sharding.put(batch or host_batch(), mesh, axes)
    return jax.jit(found)(init(KEY), None, batch, KEY)


def close(found, expected, tolerance=1e-6):
    """All leaves agree to a share of the largest gradient."""
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    return all(
        np.allclose(a, b, rtol=0, atol=tolerance * max(1.0, largest))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    )


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    "name", [n if n in ("ce annotating", "softmax dice") else slow(n) for n in LOSSES]
)
def test_gradients_over_samples_equal_those_of_the_whole_batch(name, complete):
    loss, kind = LOSSES[name][0], LOSSES[name][1 if complete else 2]
    assert separable.over_samples(loss, complete=complete, weighted=True) == kind
    task = task_of(loss, COMPLETE if complete else toy.KNOWN)
    assert task.batch_losses() == (("a",) if kind == "batch" else ())
    whole = gradients(task, 1)
    for parts in (2,) if complete or name == "dice ranks" else (2, 4):
        assert close(gradients(task, parts), whole) == (kind != "batch"), parts
    assert bool(accumulate.sentence(task, 2)) == (kind == "batch")
    assert accumulate.sentence(task, 1) == ""


def test_masked_voxels_make_the_voxel_mean_depend_on_the_batch():
    loss = softmax_cross_entropy.make(pool="batch")
    masked, plain = task_of(loss), task_of(loss, ignore_ids=[-2, -2])
    assert masked.batch_losses() == ("a",) and plain.batch_losses() == ()
    assert close(gradients(plain, 4), gradients(plain, 1))
    assert not close(gradients(masked, 4), gradients(masked, 1))


def test_batch_dice_is_the_mean_of_its_micro_batches():
    task, batch = task_of(dice.make(), augment=None), host_batch()
    found = gradients(task, 2)
    halves = [{k: v[s] for k, v in batch.items()} for s in (slice(0, 4), slice(4, 8))]
    each = [gradients(task, 1, batch=half) for half in halves]
    assert close(found, jax.tree.map(lambda a, b: (a + b) / 2, *each))
    said = accumulate.sentence(task, 2)
    assert said.startswith("train.accumulate=2: a are no sums over samples") and "mean of 2" in said


def test_a_loss_that_says_nothing_counts_as_one_of_the_batch():
    assert separable.over_samples(lambda o, b: 0.0, complete=True, weighted=False) == "batch"


@pytest.mark.slow
def test_hidden_tokens_and_pixels_are_those_of_the_whole_batch():
    def apply(params, image, context, train, key=None):
        rows = image.reshape(image.shape[0], 4, 2, 4, 2).transpose(0, 1, 3, 2, 4)
        patches = rows.reshape(image.shape[0], 4, 4, 4)
        return {"pixels": params * patches, "patches": patches, "masked": context["masked"]}

    task = masked_image.make(
        apply,
        [("pixels", 2.0, masked_pixels.make())],
        patch=(8, 8),
        modalities=("CT", "MR"),
        patch_size=2,
        block=2,
        table=toy.TABLE,
        known=toy.KNOWN,
        ignore_ids=toy.IGNORE,
        augment=toy.augment,
    )
    rng, batch = np.random.default_rng(0), toy.host_batch(0)
    batch |= {"image": rng.integers(-500, 500, (8, 8, 8, 1)).astype(np.int16)}
    batch |= {"label": np.zeros((8, 8, 8), np.int16)}
    mesh, params = sharding.make_mesh(devices=jax.devices()[:1]), jnp.asarray(0.3)
    whole, parts = (
        accumulate.value_and_grad(task, n, mesh)(params, None, toy.placed(batch), KEY)
        for n in (1, 4)
    )
    assert task.batch_losses() == () and close(parts, whole)
    assert float(whole[1]) != 0


@pytest.mark.parametrize(
    ("fsdp", "axes"), [(1, ("data", "fsdp")), (2, ("data", "fsdp")), (4, ("data",))]
)
def test_micro_batches_on_a_mesh(fsdp, axes):
    task = task_of(cross_entropy.make())
    mesh = sharding.make_mesh(fsdp, jax.devices()[:4])
    assert close(gradients(task, 2, mesh, axes), gradients(task, 1))
    x = jnp.arange(8)
    apart = jax.jit(lambda x: accumulate.divided(x, 2, mesh, axes))(
        sharding.put({"x": x}, mesh, axes)["x"]
    )
    n = sharding.shards(mesh, axes)
    np.testing.assert_array_equal(
        apart, np.arange(8).reshape(n, 2, -1).swapaxes(0, 1).reshape(2, -1)
    )
    for shard in apart.addressable_shards:  # no sample has moved
        device = list(mesh.devices.flat).index(shard.device)
        own = range(8 // n * (device // (4 // n)), 8 // n * (device // (4 // n) + 1))
        assert set(np.asarray(shard.data).ravel().tolist()) == set(own)


@pytest.mark.slow
def test_dropout_differs_between_micro_batches_and_not_between_runs():
    """A task without `prepared_loss` gets the key folded by the number of the micro-batch."""

    class Task:
        def loss(self, params, batch, key):
            drawn = jax.random.uniform(key)
            return params * drawn * batch["x"].mean(), {"drawn": drawn}

    mesh, batch = sharding.make_mesh(devices=jax.devices()[:1]), {"x": jnp.ones(4)}
    run = accumulate.value_and_grad(Task(), 4, mesh)
    (_, scalars), gradient = run(jnp.asarray(2.0), None, batch, KEY)
    each = [float(jax.random.uniform(jax.random.fold_in(KEY, i))) for i in range(4)]
    assert len(set(each)) == 4
    assert float(scalars["drawn"]) == float(gradient) == pytest.approx(np.mean(each), rel=1e-6)

    def noisy(params, image, context, train, key=None):
        return apply(params, image * jax.random.uniform(key), context, train)

    task, same = (task_of(cross_entropy.make(), forward=f) for f in (noisy, apply))
    first, second = (gradients(task, 4) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    key = jax.random.fold_in(KEY, 1)
    scales = [float(jax.random.uniform(jax.random.fold_in(key, i))) for i in range(4)]
    prepared = same.prepare(toy.placed(host_batch()), KEY)
    factor = jnp.repeat(jnp.array(scales), 2).reshape(8, 1, 1, 1, 1)
    scaled = prepared | {"image": prepared["image"] * factor}
    assert float(same.prepared_loss(init(KEY), scaled, KEY)[0]) == pytest.approx(
        float(first[0][0]), rel=1e-5
    )


@pytest.mark.slow
def test_only_the_chosen_tree_is_differentiated():
    task, whole = task_of(cross_entropy.make()), init(KEY)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    split = ({"head": whole["head"]}, {"body": whole["body"]})
    for parts in (1, 2):
        run = accumulate.value_and_grad(task, parts, mesh, join=lambda p, frozen: p | frozen)
        _, found = run(*split, toy.placed(host_batch()), KEY)
        assert set(found) == {"head"} and close(found, {"head": gradients(task, 1)[1]["head"]})


def test_a_step_and_its_validation_in_micro_batches():
    optimizer = optim.make(lr=0.05, momentum=0.9, steps=5)
    mesh = sharding.make_mesh(1, jax.devices()[:2])
    task = task_of(cross_entropy.make(), classes=toy.CLASSES)
    target = states.abstract(init, optimizer, mesh, sharding.REPLICATE)
    batch = sharding.put(host_batch(), mesh)
    request = sharding.put({"r": np.array([0, 1], np.int32)}, mesh)["r"]
    found = []
    for parts in (1, 2, 4):
        step, validate = update.make(task, optimizer, 3, mesh, target, accumulate=parts)
        state = states.born(init, optimizer, target, 0)
        counts = validate(state["params"], batch, request)
        state, scalars = step(state, batch, request)
        found.append((jax.device_get(counts), jax.device_get(state["params"]), scalars["loss"]))
    for counts, params, loss in found[1:]:
        losses = [{k: v for k, v in c.items() if k == "class_loss"} for c in (counts, found[0][0])]
        assert close(*losses) and losses[0]
        exact = [{k: v for k, v in c.items() if k != "class_loss"} for c in (counts, found[0][0])]
        jax.tree.map(np.testing.assert_array_equal, *exact)
        assert close(params, found[0][1]) and float(loss) == pytest.approx(float(found[0][2]))


def test_activations_are_those_of_one_micro_batch():
    """The compiler's temporaries stay well under those of the undivided batch."""
    task = task_of(cross_entropy.make(), forward=toy.apply, augment=None, patch=(24, 24, 24))
    mesh = sharding.make_mesh(1, jax.devices()[:1])
    batch = {
        k: jax.ShapeDtypeStruct(v.shape, v.dtype)
        for k, v in toy.host_batch(0, batch=16, vol=(24, 24, 24)).items()
    }
    params = jax.eval_shape(toy.init, jax.random.key(0))
    sizes = {}
    for parts in (1, 8):
        run = jax.jit(accumulate.value_and_grad(task, parts, mesh))
        memory = run.lower(params, None, batch, KEY).compile().memory_analysis()
        sizes[parts] = memory.temp_size_in_bytes
    assert sizes[8] < 0.5 * sizes[1]
