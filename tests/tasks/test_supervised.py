"""What a task adds to a prepared batch reaches the network, in training and in validation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.losses import cross_entropy
from medjax.models.context import Entry
from medjax.tasks import supervised
from tests.train import test_toy as toy


class Pointed(supervised.Supervised):
    """Gives the network the first voxel of each sample's foreground, as a prompt would."""

    def prepare(self, batch, key):
        prepared = super().prepare(batch, key)
        flat = (prepared["label"] > 0).reshape(prepared["label"].shape[0], -1)
        at = jnp.unravel_index(jnp.argmax(flat, 1), self.patch)
        return prepared | {"point": jnp.stack(at, -1).astype(jnp.float32)}


def test_the_augmentation_gets_what_the_sampler_drew():
    seen = []

    def augment(key, image, label, **more):
        seen.append(more)
        return image, label

    made = supervised.make(
        lambda *args: {"logits": args[1]},
        [("ce", 1.0, cross_entropy.make())],
        table=toy.TABLE,
        known=toy.KNOWN,
        ignore_ids=toy.IGNORE,
        patch=toy.PATCH,
        augment=augment,
    )
    batch = toy.host_batch(0)
    moved = {"angles": np.ones((len(batch["case"]), 3), np.float32)}
    moved["scale"] = np.ones(len(batch["case"]), np.float32)
    made.prepare(batch, jax.random.key(0))
    prepared = made.prepare(batch | moved, jax.random.key(0))
    made.prepare(batch | moved, None)  # validation does not augment
    first, second = seen
    assert first == {} and list(second) == ["moved"]
    np.testing.assert_array_equal(second["moved"][0], moved["angles"])
    assert not {"angles", "scale"} & set(prepared)  # nothing that a network could read


@pytest.mark.slow
def test_what_a_task_prepares_is_an_input_of_the_network():
    seen = []

    def apply(params, image, context, train, key=None):
        seen.append((train, {name: value.shape for name, value in context.items()}))
        shift = context["point"].sum(-1).reshape(-1, *(1,) * (image.ndim - 1))
        return {"logits": image * params + shift - 4}

    made = supervised.make(
        apply,
        [("ce", 1.0, cross_entropy.make())],
        table=toy.TABLE,
        known=toy.KNOWN,
        ignore_ids=toy.IGNORE,
        patch=toy.PATCH,
        augment=toy.augment,
        reads={"point": Entry((len(toy.PATCH),), "float32", "window")},
    )
    task = Pointed(**vars(made))
    batch = {name: jnp.asarray(value) for name, value in toy.host_batch(0).items()}
    value, slope = jax.value_and_grad(lambda p: task.loss(p, batch, jax.random.key(0))[0])(
        jnp.ones(toy.KNOWN.shape[1])
    )
    assert np.isfinite(value) and np.any(slope)
    found = task.validate(jnp.ones(toy.KNOWN.shape[1]), batch)
    shape = (batch["corpus"].shape[0], len(toy.PATCH))
    assert seen == [(True, {"point": shape}), (False, {"point": shape})]
    assert sum(int(v.sum()) for v in found.values()) > 0


def test_validation_counts_for_every_corpus():
    """The counts of the corpora add up to those of all, and are those of its samples alone."""
    made = supervised.make(
        lambda params, image, *_: {"logits": image * params - 0.5},
        [("ce", 1.0, cross_entropy.make())],
        table=toy.TABLE,
        known=toy.KNOWN,
        ignore_ids=toy.IGNORE,
        patch=toy.PATCH,
        corpora=tuple(f"corpus {k}" for k in range(len(toy.KNOWN))),
    )
    params = jnp.ones(toy.KNOWN.shape[1])
    batch = {name: jnp.asarray(value) for name, value in toy.host_batch(0).items()}
    found = {k: np.asarray(v) for k, v in jax.jit(made.validate)(params, batch).items()}
    for kind in ("tp", "fp", "fn"):
        assert (found[f"corpus_{kind}"].sum(0) == found[kind]).all()
    first = int(batch["corpus"][0])
    own = {name: value[batch["corpus"] == first] for name, value in batch.items()}
    alone = jax.jit(made.validate)(params, own)
    for kind in ("tp", "fp", "fn"):
        assert (found[f"corpus_{kind}"][first] == np.asarray(alone[kind])).all()
    assert found["fp"].sum() > 0
