"""Rule lists, schedules and optimizers: published numbers, torch's formulas, frozen leaves,
clipping over what is trained.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medjax.errors import TrainError, UsageError
from medjax.train import optim, rules

PARAMS = {
    "encoder": {"kernel": jnp.asarray([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.asarray([0.1, -0.2])},
    "head": {"kernel": jnp.asarray([4.0])},
}


def gradient(step):
    """Some gradient that changes from step to step."""
    return jax.tree.map(lambda p: jnp.sin(p * (step + 1)) + 0.3, PARAMS)


def descend(optimizer, steps):
    """Parameters after some updates, as numpy."""
    params, state = PARAMS, optimizer.tx.init(PARAMS)
    for step in range(steps):
        updates, state = optimizer.tx.update(gradient(step), state, params)
        params = optax.apply_updates(params, updates)
    return jax.tree.map(np.asarray, params)


def test_first_rule_wins_and_paths_are_names():
    tree = {"a": {"kernel": 1, "bias": 2}, "b": [3, (4,)]}
    assert rules.paths(tree) == ["a/bias", "a/kernel", "b/0", "b/1/0"]
    assigned = rules.assign(tree, (("bias$", "x"), ("^a/", "y"), (".*", "z")))
    assert assigned == {"a": {"kernel": "y", "bias": "x"}, "b": ["z", ("z",)]}


def test_rules_that_do_not_fit_are_errors_naming_paths():
    with pytest.raises(
        TrainError, match=r"decay: no rule matches head/kernel; found \['\^encoder/'\]"
    ):
        rules.assign(PARAMS, (("^encoder/", 1.0),), "decay")
    with pytest.raises(TrainError, match=r"no parameter is left for \^encodr/.*encoder/bias"):
        rules.assign(PARAMS, (("^encodr/", False), (".*", True)))
    with pytest.raises(TrainError, match="invalid pattern"):
        rules.assign(PARAMS, (("(", 1),))
    assert rules.assign(PARAMS, (("^encodr/", 0), ("", 1)), all_used=False)["head"]["kernel"] == 1


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (
            ("poly", 0.01, 2000),
            {0: 1e-2, 1: 9.995499887e-3, 1000: 5.358867313e-3, 1999: 1.069234600e-5},
        ),
        (("poly", 5e-4, 2000), {1000: 2.679433656e-4}),
        (("constant", 0.1, 10), {0: 0.1, 9: 0.1, 20: 0.1}),
        (("cosine", 0.2, 100), {0: 0.2, 50: 0.1, 100: 0.0, 150: 0.0}),
    ],
)
def test_schedules(arguments, numbers):
    schedule = optim.make_schedule(*arguments)
    for step, expected in numbers.items():
        assert float(schedule(step)) == pytest.approx(expected, rel=2e-6, abs=1e-9)


def test_warm_up_then_poly_and_the_staircase():
    clean = optim.make_schedule(
        "poly", 0.01, 1050, warmup_steps=50
    )  # the second phase of MultiTalent's fine-tuning
    for epoch, expected in {
        0: 2e-4,
        49: 1e-2,
        50: 1e-2,
        51: 9.990999550e-3,
        490: 5.934296265e-3,
        1049: 1.995262315e-5,
    }.items():
        assert float(clean(epoch)) == pytest.approx(expected, rel=2e-5), epoch
    stairs = optim.make_schedule("poly", 0.01, 1050 * 25, warmup_steps=50 * 25, steps_per_epoch=25)
    for step in (0, 24, 25, 50 * 25 - 1, 50 * 25, 51 * 25 + 7, 1049 * 25):
        assert float(stairs(step)) == pytest.approx(float(clean(step // 25)), rel=1e-6), step
    half = optim.make_schedule("cosine", 1.0, 10, final=0.1)
    assert float(half(10)) == pytest.approx(0.1) and float(half(5)) == pytest.approx(0.55)
    for wrong in (dict(warmup_steps=10), dict(warmup_steps=3, steps_per_epoch=2)):
        with pytest.raises(UsageError, match="warm-up"):
            optim.make_schedule("poly", 0.1, 10, **wrong)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_is_torch_sgd(nesterov):
    """g += wd p; m = mu m + g; p -= lr (g + mu m) with Nesterov, lr m without (torch.optim.SGD)."""
    optimizer = optim.make(
        lr=0.1, steps=5, momentum=0.9, nesterov=nesterov, weight_decay=0.01, clip_norm=0.0
    )
    expected, momentum = (
        jax.tree.map(np.float64, PARAMS),
        jax.tree.map(lambda p: np.zeros(p.shape), PARAMS),
    )
    for step in range(5):
        rate = 0.1 * (1 - step / 5) ** 0.9
        g = jax.tree.map(lambda g, p: np.float64(g) + 0.01 * p, gradient(step), expected)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, g)
        change = jax.tree.map(lambda m, g: g + 0.9 * m, momentum, g) if nesterov else momentum
        expected = jax.tree.map(lambda p, c, rate=rate: p - rate * c, expected, change)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), descend(optimizer, 5), expected
    )


def test_adamw_is_torch_adamw_with_rules():
    """p -= lr s (mhat / (sqrt(vhat) + eps) + wd d p), s and d by rule."""
    scale, decay = (("^head/", 10.0), (".*", 1.0)), (("bias$", False), (".*", True))
    arguments = dict(
        lr=0.01,
        steps=4,
        schedule="constant",
        weight_decay=0.1,
        eps=1e-4,
        clip_norm=0.0,
        lr_scale=scale,
        decay=decay,
    )
    result = descend(optim.make(name="adamw", **arguments), 4)
    for path, s, d in (
        (("encoder", "kernel"), 1, 1),
        (("encoder", "bias"), 1, 0),
        (("head", "kernel"), 10, 1),
    ):
        p = np.float64(PARAMS[path[0]][path[1]])
        m = v = np.zeros_like(p)
        for step in range(4):
            g = np.float64(gradient(step)[path[0]][path[1]])
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            mhat, vhat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            p = p - 0.01 * s * (mhat / (np.sqrt(vhat) + 1e-4) + 0.1 * d * p)
        np.testing.assert_allclose(result[path[0]][path[1]], p, rtol=5e-6)


def lamb_by_hand(steps, rate, decay, eps, scale=lambda path: 1.0, decays=lambda path: 1.0):
    """Algorithm 2 of arXiv 1904.00962 in float64: (path -> parameters) after some updates."""
    found = {}
    for path in (("encoder", "kernel"), ("encoder", "bias"), ("head", "kernel")):
        p = np.float64(PARAMS[path[0]][path[1]])
        m = v = np.zeros_like(p)
        for step in range(steps):
            g = np.float64(gradient(step)[path[0]][path[1]])
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            mhat, vhat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            r = mhat / (np.sqrt(vhat) + eps) + decay * decays(path) * p
            p = p - rate * scale(path) * np.linalg.norm(p) / np.linalg.norm(r) * r
        found[path] = p
    return found


LAMB = dict(name="lamb", lr=0.02, steps=5, schedule="constant", clip_norm=0.0, eps=1e-6)


def test_lamb_is_algorithm_2_with_rules():
    """`lr_scale` multiplies the step after the trust ratio, `decay` the weight decay within it."""
    rules_of = dict(lr_scale=(("^head/", 10.0), (".*", 1.0)), decay=(("bias$", 0.0), (".*", 1.0)))
    result = descend(optim.make(**LAMB, weight_decay=0.1, **rules_of), 5)
    expected = lamb_by_hand(
        5,
        0.02,
        0.1,
        1e-6,
        scale=lambda path: 10.0 if path[0] == "head" else 1.0,
        decays=lambda path: path[1] != "bias",
    )
    for path, p in expected.items():
        np.testing.assert_allclose(result[path[0]][path[1]], p, rtol=1e-5)
        assert np.abs(p - np.asarray(PARAMS[path[0]][path[1]])).max() > 1e-3


def test_lamb_is_optax_lamb_and_keeps_its_step_for_leaves_of_zeros():
    made = optim.make(**LAMB, weight_decay=0.01)
    reference = optax.lamb(0.02, weight_decay=0.01)
    params = {**PARAMS, "zero": jnp.zeros(3)}
    grads = {**gradient(0), "zero": jnp.asarray([1.0, -2.0, 0.0])}
    updates, _ = made.tx.update(grads, made.tx.init(params), params)
    expected, _ = reference.update(grads, reference.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)
    np.testing.assert_allclose(updates["zero"], [-0.02, 0.02, 0.0], rtol=1e-5)
    params, state = PARAMS, reference.init(PARAMS)
    for step in range(4):
        changes, state = reference.update(gradient(step), state, params)
        params = optax.apply_updates(params, changes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), descend(made, 4), params)


def test_lamb_clips_first_and_slices_have_the_ratio_of_their_own():
    """Adam's direction does not depend on the length of the first gradient, its second moment does:
    after clipping, moments are those of the clipped gradient.
    """
    clipped = optim.make(**LAMB | dict(clip_norm=0.5), weight_decay=0.0)
    _, state = clipped.tx.update(gradient(0), clipped.tx.init(PARAMS), PARAMS)
    norm = float(optax.global_norm(gradient(0)))
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2, 2)]
    assert norm > 0.5
    np.testing.assert_allclose(moments[0], 0.1 * gradient(0)["encoder"]["kernel"] * 0.5 / norm)
    part = optim.make(**LAMB, weight_decay=0.0, only=(("^encoder/kernel", (0, [1])),))
    updates, _ = part.tx.update(gradient(0), part.tx.init(PARAMS), PARAMS)
    change = np.asarray(updates["encoder"]["kernel"])
    assert (change[0] == 0).all()
    length = np.linalg.norm(np.asarray(PARAMS["encoder"]["kernel"])[1])
    assert np.linalg.norm(change[1]) == pytest.approx(0.02 * length, rel=1e-5)


def test_the_transformation_takes_all_leaves_or_the_trained_ones():
    """Rules of frozen leaves match nothing in the trained part; they are checked on the whole."""
    given = dict(
        name="adamw",
        steps=3,
        trainable=(("^encoder/", False), (".*", True)),
        decay=(("bias$", 0.0), (".*", 1.0)),
        lr_scale=(("^encoder/", 0.1), (".*", 1.0)),
    )
    made = optim.make(**given)
    whole, _ = made.tx.update(gradient(0), made.tx.init(PARAMS), PARAMS)
    head, grads = {"head": PARAMS["head"]}, {"head": gradient(0)["head"]}
    alone, state = made.tx.update(grads, made.tx.init(head), head)
    np.testing.assert_array_equal(alone["head"]["kernel"], whole["head"]["kernel"])
    names = [rules.path_name(k) for k, _ in jax.tree_util.tree_leaves_with_path(state)]
    both = jax.tree_util.tree_leaves_with_path(made.tx.init(PARAMS))
    assert names == [rules.path_name(k) for k, _ in both], "checkpoints of either form have them"
    assert float(made.norm(grads, 0)) == float(made.norm(gradient(0), 0))


def test_clipping_counts_trained_leaves_only_and_frozen_ones_have_no_state():
    only_head = (("^head/", True), (".*", False))
    optimizer = optim.make(
        lr=1.0,
        steps=2,
        schedule="constant",
        momentum=0.0,
        weight_decay=0.0,
        clip_norm=0.5,
        trainable=only_head,
    )
    state = optimizer.tx.init(PARAMS)
    gradients = {
        "encoder": jax.tree.map(lambda p: 1e6 * jnp.ones_like(p), PARAMS["encoder"]),
        "head": {"kernel": jnp.asarray([0.4])},
    }
    updates, _ = optimizer.tx.update(gradients, state, PARAMS)
    assert float(updates["head"]["kernel"][0]) == pytest.approx(-0.4), (
        "a huge frozen gradient does not shrink the others"
    )
    assert all((np.asarray(u) == 0).all() for u in jax.tree.leaves(updates["encoder"]))
    updates, _ = optimizer.tx.update(
        {**gradients, "head": {"kernel": jnp.asarray([2.0])}}, state, PARAMS
    )
    assert float(updates["head"]["kernel"][0]) == pytest.approx(-0.5)
    assert optimizer.trained(PARAMS) == {
        "encoder": {"kernel": False, "bias": False},
        "head": {"kernel": True},
    }
    heavy = optim.make(steps=2, trainable=only_head).tx.init(PARAMS)
    assert sum(leaf.size for leaf in jax.tree.leaves(heavy) if leaf.ndim) == 1


def test_unknown_names_and_rules_are_refused():
    with pytest.raises(UsageError, match=r"moving average; found optim.ema=1.0"):
        optim.make(steps=1, ema=1.0)
    with pytest.raises(UsageError, match="sgd"):
        optim.make(name="sgdm", steps=1)
    with pytest.raises(UsageError, match="cosine"):
        optim.make(schedule="cosin", steps=1)
    with pytest.raises(TrainError, match="weight decay rules: no parameter is left for nothing"):
        optim.make(steps=1, decay=(("nothing", 0.0), (".*", 1.0))).trained(PARAMS)
    with pytest.raises(TrainError, match="trainable rules: no rule matches head/kernel"):
        optim.make(steps=1, trainable=(("^encoder/", True),)).trained(PARAMS)
