"""What scores mean: the same decision from probabilities, from logits and from a part of the
classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from medjax.errors import UsageError
from medjax.infer import step
from medjax.infer.model import Model
from medjax.infer.scores import ACTIVATIONS, AVERAGES, LOWEST, Decision
from medjax.labels import Corpus, merge
from medjax.prepare.plan import Intensity, Plan

LOGITS = np.random.default_rng(0).normal(0, 3, (3, 4, 5, 6)).astype(np.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_probabilities_and_logits_decide_alike(activation):
    by_logit, by_probability = (Decision(activation, average) for average in ("logit", "prob"))
    p = by_logit.probabilities(LOGITS)
    assert np.allclose(p, by_logit.activated(jnp.asarray(LOGITS)), atol=1e-6)
    if activation == "softmax":
        whole = special.softmax(np.concatenate([np.zeros_like(LOGITS[..., :1]), LOGITS], -1), -1)
        assert np.allclose(p, whole[..., 1:], atol=1e-6)
        expected = np.arange(1, 7) == whole.argmax(-1)[..., None]
    else:
        assert np.allclose(p, special.expit(LOGITS), atol=1e-6)
        expected = LOGITS > 0
    assert np.array_equal(by_logit.decide(LOGITS), expected)
    assert np.array_equal(by_probability.decide(p), expected)
    assert by_probability.probabilities(p) is p


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_candidates_decide_for_all_classes(activation, average):
    decision, logits = Decision(activation, average), LOGITS.copy()
    logits[..., 1], logits[..., 4] = -9.0, -7.0
    values = Decision(activation, "logit").probabilities(logits) if average == "prob" else logits
    kept = decision.candidates(values)
    assert kept.tolist() == [0, 2, 3, 5]
    narrow = decision.narrowed(values, kept)
    total = narrow[..., -1] if narrow.shape[-1] > len(kept) else None
    found = np.zeros(values.shape, bool)
    found[..., kept] = decision.decide(narrow[..., : len(kept)], total)
    assert np.array_equal(found, decision.decide(values))


def test_networks_weigh_as_many_members_as_they_have():
    a, b = (np.full((1, 1, 1, 2), v, np.float32) for v in (0.2, 0.8))
    spread = np.full((1, 1, 1, 1), 0.1, np.float32)
    decision = Decision()
    mean, deviation = decision.averaged([a, b], [3, 1], [False, False], 2)
    assert np.allclose(mean, 0.35) and deviation == 0.0
    given = [np.concatenate([x, spread], -1) for x in (a, b)]
    mean, deviation = decision.averaged(given, [3, 1], [True, True], 2)
    assert np.allclose(mean, 0.35)
    assert np.allclose(deviation, np.sqrt(0.75 * 0.15**2 + 0.25 * 0.45**2 + 0.1**2))


def test_masked_channels_become_finite_and_overflow_is_seen():
    logits = jnp.array([[-jnp.inf, jnp.inf, 2.0]])
    found = np.asarray(Decision().class_logits(logits, 3))[0]
    assert found[0] == LOWEST and np.isnan(found[1]) and found[2] == 2.0
    assert np.asarray(Decision("softmax").class_logits(logits[:, 2:] + jnp.arange(3.0), 2)).tolist()
    with pytest.raises(UsageError, match="not those of the label space"):
        Decision().class_logits(logits, 2)


def test_unknown_words():
    with pytest.raises(UsageError, match=r"unknown activation 'softmx'.*softmax"):
        Decision("softmx")
    with pytest.raises(UsageError, match=r"unknown average 'probs'.*prob"):
        Decision(average="probs")


def test_a_step_averages_mirrors_and_members():
    """The network looks left: its mirror image looks right; members add their parameter."""
    corpus = Corpus("Liver", ((1, ("liver",)), (2, ("liver", "tumour"))), channels=("CT",))
    plan = Plan({"Liver": (1.0, 1.0, 1.0)}, {"CT": Intensity("nonorm")})

    def apply(params, image, context):
        shifted = jnp.roll(image, 1, 3) + params + context["corpus"][:, None, None, None, None]
        return {"logits": jnp.concatenate([shifted, shifted * 2], -1)}

    model = Model(apply, jnp.float32(0), plan, merge([corpus]), (2, 2, 4))
    image = np.random.default_rng(1).normal(size=(2, 2, 2, 4, 1)).astype(np.float32)
    run = step.make(model, Decision("sigmoid", "logit"), mirror_axes=(2,), members=2)
    numbers = jnp.int32(3), jnp.int32(0), jnp.ones(3), jnp.array([1])
    found = jax.jit(run)(jnp.array([0.0, 1.0]), image, *numbers)
    expected = (np.roll(image, 1, 3) + np.roll(image, -1, 3)) + 2 * (0.5 + 3)
    assert np.allclose(found, expected, atol=1e-5)
    unsure = step.make(model, Decision(), members=2, uncertainty=True)
    found = jax.jit(unsure)(jnp.array([0.0, 1.0]), image, *numbers)
    p = special.expit(2 * (np.roll(image, 1, 3) + np.array([3.0, 4.0])))
    assert np.allclose(found[..., 0], p.mean(-1), atol=1e-5)
    assert np.allclose(found[..., 1], p.std(-1), atol=1e-3)
