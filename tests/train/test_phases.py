"""Phases: MultiTalent's heads-first schedule with its exact learning rates, frozen leaves, fresh
and continued states, resume.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.multitalent import FINETUNE, FINETUNE_RELEASE
from medjax.errors import UsageError
from medjax.train import optim, phases, sharding
from medjax.train import state as states
from tests.train import test_toy as toy
from tests.train.test_optim import PARAMS, gradient

HEADS = (("^head", True), (".*", False))
SGD = dict(name="sgd", momentum=0.9, weight_decay=1e-3, clip_norm=0.5)


def run(optimizer, start, steps, params=PARAMS, state=None):
    """(params, state) after updates `start` to `steps`, one compiled function."""
    state = optimizer.tx.init(params) if state is None else state

    @jax.jit
    def update(params, state, step):
        changes, state = optimizer.tx.update(gradient(step), state, params)
        return optax.apply_updates(params, changes), state

    for step in range(start, steps):
        params, state = update(params, state, step)
    return params, state


def same(left, right, **tolerance):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize(
    ("given", "expected"),
    # epoch -> rate; MultiTalent specification: what was meant, and what the released code executes
    [
        (
            FINETUNE,
            {
                0: 5e-5,
                9: 5e-4,
                10: 2e-4,
                59: 1e-2,
                60: 1e-2,
                61: 9.990999550e-3,
                500: 5.934296265e-3,
                1059: 1.995262315e-5,
            },
        ),
        (
            FINETUNE_RELEASE,
            {
                0: 5e-5,
                1: 5e-5,
                9: 4.5e-4,
                10: 5e-4,
                11: 2e-4,
                59: 9.8e-3,
                60: 1e-2,
                61: 9.990999550e-3,
                1059: 1.995262315e-5,
            },
        ),
    ],
)
def test_the_three_phases_have_the_papers_learning_rates(given, expected):
    made = phases.make(tuple(given.values()), dict(steps_per_epoch=250), 1060 * 250)
    rate = jax.jit(made.schedule)
    for epoch, value in expected.items():
        for step in (250 * epoch, 250 * epoch + 249):
            assert float(rate(step)) == pytest.approx(value, rel=2e-6), epoch


def test_phases_train_their_leaves_with_their_own_or_the_continued_state():
    given = (
        dict(steps=3, name="adamw", lr=0.1, schedule="linear", trainable=HEADS),
        dict(steps=2, lr=0.05, schedule="linear"),
        dict(steps=4, lr=0.05, schedule="poly", continues=True),
    )
    made = phases.make(given, SGD, 9)
    heads, state = run(made, 0, 3)
    np.testing.assert_array_equal(heads["encoder"]["kernel"], PARAMS["encoder"]["kernel"])
    alone = optim.make(
        **(SGD | dict(name="adamw", lr=0.1, schedule="linear", trainable=HEADS)), steps=3
    )
    same(heads, run(alone, 0, 3)[0], rtol=1e-6)
    # the second and third phase are one SGD with its momentum, under the rates 0.025, 0.05, then
    # poly
    rates = jnp.asarray([0.025, 0.05, *(0.05 * (1 - k / 4) ** 0.9 for k in range(4))])
    reference = optim.make(**SGD, lr=1.0, schedule="constant", steps=9)
    params, sgd = heads, reference.tx.init(heads)
    for step in range(3, 9):
        changes, sgd = reference.tx.update(gradient(step), sgd, params)
        params = jax.tree.map(lambda p, c, r=rates[step - 3]: p + r * c, params, changes)
    same(run(made, 3, 9, heads, state)[0], params, rtol=1e-5)
    assert made.trained(PARAMS) == jax.tree.map(lambda _: True, PARAMS)
    norms = [float(made.norm(gradient(0), step)) for step in (2, 3)]
    assert norms == pytest.approx(
        [float(optax.global_norm(gradient(0)["head"])), float(optax.global_norm(gradient(0)))]
    )


def test_a_run_stopped_inside_a_phase_goes_on_there(tmp_path):
    given = (
        dict(steps=4, lr=0.01, trainable=HEADS, name="adamw", amsgrad=True),
        dict(steps=4, lr=0.02),
    )
    common = dict(SGD, schedule="constant")
    whole = toy.run(
        tmp_path / "whole", steps=8, optimizer=phases.make(given, common, 8), validate_every=0
    )
    toy.run(
        tmp_path / "parts", steps=3, optimizer=phases.make(given, common, 8), validate_every=0
    )  # what a signal leaves behind
    parts = toy.run(
        tmp_path / "parts", steps=8, optimizer=phases.make(given, common, 8), validate_every=0
    )
    same(whole["params"], parts["params"], rtol=0, atol=0)
    assert not np.array_equal(
        whole["params"]["encoder"]["kernel"], toy.init(jax.random.key(0))["encoder"]["kernel"]
    )


def test_the_states_of_all_phases_are_sharded_like_their_parameters():
    given = (
        dict(steps=1, lr=0.1, name="adamw", trainable=(("^encoder", True), (".*", False))),
        dict(steps=1, lr=0.1),
    )
    target = states.abstract(
        toy.init, phases.make(given, SGD, 2), sharding.make_mesh(8), ((".*", "fsdp"),)
    )
    spread = [
        leaf.shape
        for leaf in jax.tree.leaves(target["opt"])
        if not leaf.sharding.is_fully_replicated
    ]
    # head kernels (27 x 16 x 3 elements) of the second phase's momentum; the encoder kernels are
    # too small to be split
    assert spread == [(3, 3, 3, 16, 3)]


def test_phases_that_do_not_fit_are_refused():
    with pytest.raises(
        UsageError, match=r"do not fill the run.*\[3, 4\], together 7.*train.steps = 8"
    ):
        phases.make((dict(steps=3), dict(steps=4)), {}, 8)
    with pytest.raises(UsageError, match=r"no field 'stps'.*did you mean steps"):
        phases.make((dict(stps=3),), {}, 3)
    with pytest.raises(UsageError, match=r"no field 'ema'.*set config.optim.ema"):
        phases.make((dict(steps=3, ema=0.9),), {}, 3)
    assert phases.make((dict(steps=3),), dict(ema=0.9), 3).ema == 0.9
    with pytest.raises(UsageError, match="phase 1 cannot continue phase 0: name, trainable differ"):
        phases.make(
            (dict(steps=3, name="adamw", trainable=HEADS), dict(steps=1, continues=True)), SGD, 4
        )
    with pytest.raises(UsageError, match="nothing to continue"):
        phases.make((dict(steps=3, continues=True),), SGD, 3)


def test_amsgrad_is_torchs():
    """torch.optim.AdamW(amsgrad=True) by its documented formula, in float64 numpy."""
    made = optim.make(
        name="adamw",
        amsgrad=True,
        lr=0.1,
        schedule="constant",
        steps=4,
        weight_decay=0.01,
        clip_norm=0.0,
        b2=0.9,
    )
    found, _ = run(made, 0, 4)
    for path in (("encoder", "kernel"), ("encoder", "bias"), ("head", "kernel")):
        p = np.asarray(PARAMS[path[0]][path[1]], np.float64)
        m = v = largest = np.zeros_like(p)
        for step in range(4):
            g = np.asarray(gradient(step)[path[0]][path[1]], np.float64)
            p = p - 0.1 * 0.01 * p
            m, v = 0.9 * m + 0.1 * g, 0.9 * v + 0.1 * g**2
            largest = np.maximum(largest, v)
            p = p - 0.1 * (m / (1 - 0.9 ** (step + 1))) / (
                np.sqrt(largest / (1 - 0.9 ** (step + 1))) + 1e-8
            )
        np.testing.assert_allclose(found[path[0]][path[1]], p, rtol=1e-5)
