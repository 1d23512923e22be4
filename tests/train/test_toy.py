"""The supervised task on a toy network, and the toy run that the other training tests share (also
as a program, to be killed).

The run may train TSFM's network as well, at its smallest: `run(net="tsfm")`.
"""

import argparse
import functools
import itertools
import json
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from medjax.errors import Preempted, UsageError
from medjax.losses import cross_entropy, dice
from medjax.losses.parts import exclusive, targets
from medjax.models import tsfm
from medjax.tasks import supervised
from medjax.train import loop, optim, sharding
from medjax.train import state as states
from medjax.weights import adapters

PATCH, CUT, BATCH = (4, 6, 6), (6, 8, 8), 8
CLASSES = ("liver", "tumour", "kidney")
# corpus 0 annotates liver and tumour (id 2 is both), corpus 1 kidney with id 2 ignored
TABLE = np.zeros((2, 3, 3), bool)
TABLE[0, 1, 0] = TABLE[0, 2, :2] = TABLE[1, 1, 2] = True
KNOWN = np.array([[True, True, False], [False, False, True]])
IGNORE = np.array([-2, 2])


def init(key):
    """Two 3x3x3 convolutions, 1 -> 16 -> 3 channels; irregular numbers that depend on the key and
    compile fast.
    """

    def kernel(*shape):
        return jnp.sin(
            7.0 * jnp.arange(np.prod(shape)) ** 1.5 + jax.random.key_data(key).sum()
        ).reshape(shape)

    return {
        "encoder": {"kernel": 0.3 * kernel(3, 3, 3, 1, 16), "bias": jnp.zeros(16)},
        "head": {"kernel": 0.07 * kernel(3, 3, 3, 16, 3), "bias": -jnp.ones(3)},
    }


def apply(params, image, context, train, key=None):
    """The toy network."""

    def conv(x, p):
        return (
            jax.lax.conv_general_dilated(
                x, p["kernel"], (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
            )
            + p["bias"]
        )

    return {"logits": conv(jax.nn.leaky_relu(conv(image, params["encoder"])), params["head"])}


def host_batch(seed, batch=BATCH, vol=CUT):
    """A sampler batch: id 1 is bright, id 2 brighter, a slab outside the image."""
    rng = np.random.default_rng([7, seed])
    label = rng.integers(0, 3, (batch, *vol)).astype(np.int16)
    image = (label[..., None] * 400 + rng.normal(0, 150, (batch, *vol, 1))).astype(np.int16)
    label[:, :2] = -1
    return {
        "image": image,
        "gain": np.full((batch, 1), 0.002, np.float32),
        "bias": np.full((batch, 1), -0.8, np.float32),
        "label": label,
        "corpus": rng.integers(0, 2, batch).astype(np.int32),
        "modality": np.zeros(batch, np.int32),
        "spacing_mm": np.ones((batch, 3), np.float32),
        "case": np.arange(batch, dtype=np.int32),
    }


def augment(key, image, label):
    """Noise that depends on the step's key only."""
    return image + 0.1 * jax.random.normal(key, image.shape), label


def task(forward=apply, **changes):
    """The toy task, of another network if one is given; `changes` replace arguments of
    `supervised.make`.
    """
    losses = (("cross_entropy", 1.0, cross_entropy.make()), ("dice", 1.0, dice.make()))
    arguments = dict(table=TABLE, known=KNOWN, ignore_ids=IGNORE, patch=PATCH, augment=augment)
    return supervised.make(forward, losses, **(arguments | changes))


def tsfm_init_and_apply():
    """TSFM with every kind of its blocks, recomputed in the backward pass, and a scanned
    transformer of two layers with dropout.
    """
    net = tsfm.make(
        len(CLASSES),
        variant="t",
        channels=(8, 16),
        strides=((1, 2, 2),),
        vit_width=24,
        vit_layers=2,
        vit_heads=2,
        remat="block",
    )

    def apply(params, image, context, train, key=None, **collections):
        return net.apply(
            {"params": params} | collections,
            image,
            context,
            train,
            rngs=None if key is None else {"dropout": key},
        )

    return lambda key: net.init(key, jnp.zeros((1, *PATCH, 1)))["params"], apply


def adapted(fresh, forward, steps):
    """TSFM with adapters beside every kernel, a trained head, and everything else frozen."""
    rules = (("^head", adapters.WHOLE), (r"kernel$", 2), (".*", 0))
    settings = adapters.Adapters(rules, alpha=2.0)

    def init(key):
        return adapters.graft(fresh(key), settings, jax.random.fold_in(key, 1))

    def apply(params, image, context, train, key=None):
        variables = adapters.variables(params, settings, image, context or {})
        return forward(variables.pop("params"), image, context, train, key, **variables)

    trained = adapters.trainable(settings)
    return init, task(apply), optim.make(name="adamw", lr=0.01, steps=steps, trainable=trained)


def network(net, steps):
    """(init, task, optimizer) of "toy", of "partly": the toy with a frozen head and a moving
    average, of "adapted": TSFM with adapters and a trained head, or of "tsfm" with its own recipe
    at ten times the rate.
    """
    if net == "toy":
        return init, task(), optim.make(lr=0.05, momentum=0.9, steps=steps)
    if net == "partly":
        part = (("^encoder/", True), (".*", False))
        plain = dict(name="adamw", lr=0.01, steps=steps)
        return init, task(), optim.make(**plain, trainable=part, ema=0.5)
    fresh, forward = tsfm_init_and_apply()
    if net == "adapted":
        return adapted(fresh, forward, steps)
    return fresh, task(forward), optim.make(lr=1e-2, weight_decay=1e-3, steps=steps)


def run(
    workdir,
    *,
    net="toy",
    steps=12,
    until=0,
    devices=None,
    fsdp=1,
    delay=0.0,
    optimizer=None,
    stream=None,
    hosts=1,
    host=0,
    borrow=None,
    **settings,
):
    """Trains the toy, `until` a step if it is given; `settings` are fields of `loop.Settings` or
    arguments of `loop.fit`.
    """
    share = BATCH // hosts

    def local(batch):
        return {name: value[host * share : (host + 1) * share] for name, value in batch.items()}

    def endless(start):
        for i in itertools.count(start):
            time.sleep(delay)
            yield local(host_batch(i))

    def validation():
        return (local(host_batch(10**6 + i)) for i in itertools.count())

    fields = set(loop.Settings.__dataclass_fields__)
    plain = dict(
        validate_every=0 if net in ("tsfm", "adapted") else 4,
        validation_batches=2,
        checkpoint_every=4,
        log_every=3,
        print_seconds=0.0,
        picture=False,
    )
    fresh, plain_task, plain_optimizer = network(net, steps)
    arguments = dict(
        names=CLASSES, recipe={"net": net}, borrow=borrow, validation_stream=validation
    )
    arguments |= {k: v for k, v in settings.items() if k not in fields}
    return loop.fit(
        task=arguments.pop("task", None) or plain_task,
        init=fresh,
        optimizer=optimizer or plain_optimizer,
        stream=stream or endless,
        settings=loop.Settings(
            steps=until or steps, **(plain | {k: v for k, v in settings.items() if k in fields})
        ),
        workdir=workdir,
        mesh=sharding.make_mesh(fsdp, jax.devices()[:devices] if devices else None),
        **arguments,
    )


def placed(batch):
    """A host batch as device arrays."""
    return jax.tree.map(jnp.asarray, batch)


def test_prepare_normalises_crops_and_masks():
    batch = host_batch(0)
    prepared = task(mask_padding=True).prepare(placed(batch), None)
    inner = (slice(None), slice(1, 5), slice(1, 7), slice(1, 7))
    np.testing.assert_allclose(prepared["image"], batch["image"][inner] * 0.002 - 0.8, atol=1e-6)
    label = batch["label"][inner]
    np.testing.assert_array_equal(prepared["label"], np.maximum(label, 0))
    ignored = (label == 2) & (batch["corpus"] == 1)[:, None, None, None]
    assert ignored.any() and (label < 0).any()
    np.testing.assert_array_equal(prepared["weight"], ~(ignored | (label < 0)))
    np.testing.assert_array_equal(task().prepare(placed(batch), None)["weight"], ~ignored)
    np.testing.assert_array_equal(prepared["known"], KNOWN[batch["corpus"]])
    np.testing.assert_array_equal(prepared["table"], TABLE[batch["corpus"]])
    assert "weight" not in task(ignore_ids=[-2, -2]).prepare(placed(batch), None), (
        "nothing to mask costs nothing"
    )
    assert set(task().context(batch)) == {"corpus", "modality", "spacing_mm"}


def test_loss_is_the_weighted_sum_of_its_parts():
    params, batch, key = init(jax.random.key(0)), placed(host_batch(0)), jax.random.key(1)
    parts = (("a", 0.5, cross_entropy.make()), ("b", 2.0, dice.make("sample")))

    def deep(params, image, context, train, key=None):
        logits = apply(params, image, context, train)["logits"]
        return {"logits": logits, "deep": [logits[:, ::2, ::2, ::2], logits[:, :1, ::3, ::3]]}

    made = supervised.make(
        deep,
        parts,
        table=TABLE,
        known=KNOWN,
        ignore_ids=IGNORE,
        patch=PATCH,
        deep_weights=(1.0, 0.5, 0.0),
    )
    value, scalars = jax.jit(made.loss)(params, batch, key)
    assert float(value) == pytest.approx(
        0.5 * float(scalars["loss/a"]) + 2 * float(scalars["loss/b"]), rel=1e-6
    )
    prepared = jax.jit(made.prepare)(batch, key)
    whole = jax.jit(apply)(params, prepared["image"], {}, True)["logits"]
    half = {**prepared, **{k: prepared[k][:, 1::2, 1::2, 1::2] for k in ("label", "weight")}}
    alone = [
        float(jax.jit(cross_entropy.make())(*args))
        for args in (({"logits": whole}, prepared), ({"logits": whole[:, ::2, ::2, ::2]}, half))
    ]
    assert float(scalars["loss/a"]) == pytest.approx(alone[0] + 0.5 * alone[1], rel=1e-5)
    with pytest.raises(UsageError, match="unique"):
        supervised.make(
            apply, parts + parts, table=TABLE, known=KNOWN, ignore_ids=IGNORE, patch=PATCH
        )


def test_validation_counts_equal_numpy_and_see_known_classes_only():
    params, batch = init(jax.random.key(0)), host_batch(3)
    params["head"]["bias"] += 1
    found = {name: np.asarray(v) for name, v in task().validate(params, placed(batch)).items()}
    prepared = task().prepare(placed(batch), None)
    mask = np.asarray(apply(params, prepared["image"], {}, False)["logits"]) > 0
    truth = np.stack(
        [
            TABLE[c][label]
            for c, label in zip(batch["corpus"], np.asarray(prepared["label"]), strict=True)
        ]
    )
    valid = (
        np.asarray(prepared["known"])[:, None, None, None]
        & (np.asarray(prepared["weight"]) > 0)[..., None]
    )
    axes = (0, 1, 2, 3)
    np.testing.assert_array_equal(found["tp"], (mask & truth & valid).sum(axes))
    np.testing.assert_array_equal(found["fp"], (mask & ~truth & valid).sum(axes))
    np.testing.assert_array_equal(found["fn"], (~mask & truth & valid).sum(axes))
    assert found["tp"].dtype == np.int32 and (found["tp"] + found["fn"] > 0).all()
    one_corpus = {**batch, "corpus": np.zeros(BATCH, np.int32)}
    counts = task().validate(params, placed(one_corpus))
    assert [int(counts[k][2]) for k in ("tp", "fp", "fn")] == [0, 0, 0]


def test_a_softmax_is_validated_as_it_is_predicted_with_and_without_a_background_channel():
    """The same counts from logits relative to the background's; a class counts for its regions."""
    params, batch = init(jax.random.key(0)), placed(host_batch(3))
    params["head"]["bias"] += 1

    def explicit(params, image, context, train, key=None):
        logits = apply(params, image, context, train)["logits"]
        return {"logits": jnp.concatenate([0 * logits[..., :1], logits], -1) + 5.0}

    relative, whole = task(activation="softmax"), task(explicit, activation="softmax")
    found, again = relative.validate(params, batch), whole.validate(params, batch)
    assert all(np.array_equal(found[name], again[name]) for name in ("tp", "fp", "fn"))
    prepared = relative.prepare(batch, None)
    logits = np.asarray(apply(params, prepared["image"], {}, False)["logits"])
    best = np.where(logits.max(-1) > 0, 1 + logits.argmax(-1), 0)
    implied = np.asarray(exclusive.implied(prepared["table"]))
    rows = np.concatenate([np.zeros_like(implied[:, :1]), implied], 1)
    mask = np.stack([row[b] for row, b in zip(rows, best, strict=True)])
    truth = np.asarray(targets.multi_hot(prepared["label"], prepared["table"])) > 0
    valid = (
        np.asarray(prepared["known"])[:, None, None, None]
        & (np.asarray(prepared["weight"]) > 0)[..., None]
    )
    axes = (0, 1, 2, 3)
    np.testing.assert_array_equal(found["tp"], (mask & truth & valid).sum(axes))
    np.testing.assert_array_equal(found["fp"], (mask & ~truth & valid).sum(axes))
    assert found["tp"].sum() > 0 and found["fp"].sum() > 0


def test_two_dimensional_patches():
    batch = host_batch(0)
    flat = {**batch, "image": batch["image"][:, 3], "label": batch["label"][:, 3]}
    made = supervised.make(
        lambda p, image, context, train, key: {"logits": image * p["w"]},
        [("ce", 1.0, cross_entropy.make())],
        table=TABLE,
        known=KNOWN,
        ignore_ids=IGNORE,
        patch=(6, 6),
    )
    value, _ = jax.jit(made.loss)({"w": jnp.ones(3)}, placed(flat), jax.random.key(0))
    assert made.prepare(placed(flat), None)["image"].shape == (BATCH, 6, 6, 1) and np.isfinite(
        float(value)
    )


def weights_of(state):
    """Trained and frozen parameters, and the average if one is kept, as one tree."""
    whole = states.weights(state, average=False)
    return {**whole, "average": state["ema"]} if "ema" in state else whole


def main():
    """The toy run as a program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument(
        "--host", type=int, default=-1, help=">= 0: one of two processes that meet at --port"
    )
    parser.add_argument("--port", default="")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update(
        "jax_num_cpu_devices", 4 if args.host >= 0 else 8
    )  # 8 as in the test process: same threads, same bits
    if args.host >= 0:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{args.port}", 2, args.host)
    hosts = dict(host=max(args.host, 0), hosts=2 if args.host >= 0 else 1)
    try:
        state = run(args.workdir, delay=args.delay, **hosts, **args.settings)
    except Preempted as error:
        raise SystemExit(error.exit_code) from error
    whole = jax.tree.map(
        functools.partial(multihost_utils.process_allgather, tiled=True), weights_of(state)
    )
    if jax.process_index() == 0:
        flat = {
            jax.tree_util.keystr(k): np.asarray(v)
            for k, v in jax.tree_util.tree_leaves_with_path(whole)
        }
        np.savez(args.workdir / "final.npz", **flat)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
