"""What scores mean: the same decision from probabilities, from logits and from a part of the
classes, in numpy and in jax.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats

from medjax import decision
from medjax.decision import ACTIVATIONS, AVERAGES, LOWEST, Sigmoid, Softmax
from medjax.errors import UsageError
from medjax.losses.parts import exclusive

LOGITS = np.random.default_rng(0).normal(0, 3, (3, 4, 5, 6)).astype(np.float32)
BLOCKS = hnp.arrays(  # of logits (rows, y, x, c)
    np.float32,
    hnp.array_shapes(min_dims=4, max_dims=4, max_side=5),
    elements=st.floats(-30, 30, width=32, allow_subnormal=False),
)
KINDS = st.builds(decision.make, st.sampled_from(ACTIVATIONS), st.sampled_from(AVERAGES))


def whole_softmax(logits):
    """(..., 1 + c) with the background first, by scipy."""
    return special.softmax(np.concatenate([np.zeros_like(logits[..., :1]), logits], -1), -1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_probabilities_and_logits_decide_alike(activation):
    by_logit, by_probability = (decision.make(activation, a) for a in ("logit", "prob"))
    p = by_logit.probabilities(LOGITS)
    assert np.array_equal(p, by_probability.values(LOGITS)) and by_logit.values(LOGITS) is LOGITS
    if activation == "softmax":
        whole = whole_softmax(LOGITS)
        assert np.allclose(p, whole[..., 1:], atol=1e-6)
        expected = np.arange(1, 7) == whole.argmax(-1)[..., None]
    else:
        assert np.allclose(p, special.expit(LOGITS), atol=1e-6)
        expected = LOGITS > 0
    assert np.array_equal(by_logit.decide(LOGITS), expected)
    assert np.array_equal(by_probability.decide(p), expected)
    assert by_probability.probabilities(p) is p


@settings(max_examples=40, deadline=None)
@given(KINDS, st.integers(0, 1 << 30), st.sampled_from([1, 5]), st.sampled_from([0.1, 4.0, 20.0]))
def test_both_libraries_agree(kind, seed, classes, scale):
    """The library of what comes in is that of what comes out. (Two shapes: each is compiled.)"""
    logits = np.random.default_rng(seed).normal(0, scale, (3, 2, 2, classes)).astype(np.float32)
    device = jnp.asarray(logits)
    values = kind.values(logits)
    pairs = [
        (kind.class_logits(logits, classes), kind.class_logits(device, classes)),
        (kind.activated(logits), kind.activated(device)),
        (values, kind.values(device)),
        (kind.probabilities(values), kind.probabilities(jnp.asarray(values))),
        (kind.entropy(kind.activated(logits)), kind.entropy(jnp.asarray(kind.activated(logits)))),
        (kind.narrowed(values, np.array([0])), kind.narrowed(jnp.asarray(values), np.array([0]))),
    ]
    for host, there in pairs:
        assert isinstance(host, np.ndarray) and isinstance(there, jax.Array)
        np.testing.assert_allclose(host, there, rtol=2e-5, atol=2e-6)
    mask = kind.decide(values)
    assert mask.dtype == bool and mask.shape == values.shape
    assert np.array_equal(mask, kind.decide(jnp.asarray(values)))
    assert np.array_equal(kind.candidates(values), kind.candidates(jnp.asarray(values)))


@settings(max_examples=150, deadline=None)
@given(KINDS, BLOCKS)
def test_narrowing_never_changes_a_decision(kind, logits):
    values = kind.values(logits)
    kept = kind.candidates(values)
    narrow = kind.narrowed(values, kept)
    total = narrow[..., -1] if narrow.shape[-1] > len(kept) else None
    found = np.zeros(values.shape, bool)
    found[..., kept] = kind.decide(narrow[..., : len(kept)], total)
    assert np.array_equal(found, kind.decide(values))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(AVERAGES), BLOCKS)
def test_a_softmax_is_exclusive_and_a_sigmoid_needs_no_rival(average, logits):
    softmax, sigmoid = Softmax(average), Sigmoid(average)
    assert softmax.decide(softmax.values(logits)).sum(-1).max() <= 1
    values = sigmoid.values(logits)
    alone = [sigmoid.decide(values[..., k : k + 1]) for k in range(values.shape[-1])]
    assert np.array_equal(sigmoid.decide(values), np.concatenate(alone, -1))


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_candidates_leave_out_what_cannot_win(activation, average):
    logits = LOGITS.copy()
    logits[..., 1], logits[..., 4] = -9.0, -7.0
    kind = decision.make(activation, average)
    assert kind.candidates(kind.values(logits)).tolist() == [0, 2, 3, 5]


def test_classes_that_compete_are_all_asked_for():
    assert Sigmoid().asked(["b"], ("a", "b")) == ("b",)
    assert Softmax().asked(["b"], ("a", "b")) == ("a", "b")


def test_entropy_in_bits():
    p = np.array([[0.5, 0.01], [0.25, 0.75], [0.0, 1.0]], np.float32)
    expected = [1.0, stats.entropy([0.25, 0.75], base=2), 0.0]
    assert np.allclose(Sigmoid().entropy(p), expected, atol=1e-5)
    q = np.array([[0.25, 0.25], [1.0, 0.0], [0.5, 0.5]], np.float32)  # background 1/2, 0, 0
    assert np.allclose(Softmax().entropy(q), [1.5, 0.0, 1.0], atol=1e-5)
    whole = whole_softmax(LOGITS.astype(np.float64))
    assert np.allclose(
        Softmax().entropy(whole[..., 1:]), stats.entropy(whole, base=2, axis=-1), atol=1e-6
    )


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_networks_weigh_as_many_members_as_they_have(asarray):
    a, b = (asarray(np.full((1, 1, 1, 2), v, np.float32)) for v in (0.2, 0.8))
    spread = asarray(np.full((1, 1, 1, 1), 0.1, np.float32))
    kind = decision.make()
    mean, deviation = kind.averaged([a, b], [3, 1], [False, False], 2)
    assert np.allclose(mean, 0.35) and deviation == 0.0
    given_ = [np.concatenate([x, spread], -1) for x in (a, b)]
    mean, deviation = kind.averaged([asarray(x) for x in given_], [3, 1], [True, True], 2)
    assert np.allclose(mean, 0.35)
    assert np.allclose(deviation, np.sqrt(0.75 * 0.15**2 + 0.25 * 0.45**2 + 0.1**2))
    alone, deviation = kind.averaged([asarray(given_[0])], [3], [True], 2)
    assert np.allclose(alone, 0.2) and np.allclose(deviation, 0.1)


def test_masked_channels_become_finite_and_overflow_is_seen():
    logits = jnp.array([[-jnp.inf, jnp.inf, 2.0]])
    found = np.asarray(Sigmoid().class_logits(logits, 3))[0]
    assert found[0] == LOWEST and np.isnan(found[1]) and found[2] == 2.0
    with pytest.raises(UsageError, match=r"not those of the label space.*3.*expected 2"):
        Sigmoid().class_logits(logits, 2)


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_a_softmax_may_have_a_background_channel(asarray):
    logits = asarray(LOGITS)
    found = Softmax().class_logits(logits, 5)
    assert np.allclose(found, LOGITS[..., 1:] - LOGITS[..., :1])
    assert np.allclose(Softmax().activated(found), special.softmax(LOGITS, -1)[..., 1:], atol=1e-6)
    with pytest.raises(UsageError, match="not those of the label space"):
        Sigmoid().class_logits(logits, 5)


@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_a_class_of_a_softmax_implies_the_regions_that_hold_it(asarray):
    """Sample 0: ids 1 liver, 2 liver with tumour; sample 1: only id 1, the tumour, by itself."""
    table = jnp.asarray([[[0, 0], [1, 0], [1, 1]], [[0, 0], [0, 1], [0, 0]]], bool)
    mask = asarray(np.array([[[1, 0], [0, 1], [0, 0]]] * 2, bool))
    implied = asarray(np.asarray(exclusive.implied(table)))
    found = np.asarray(Softmax().completed(mask, implied)).astype(int).tolist()
    assert found == [[[1, 0], [1, 1], [0, 0]], [[0, 0], [0, 1], [0, 0]]]
    assert Sigmoid().completed(mask, implied) is mask


def test_no_class_is_decided_without_classes():
    for average in AVERAGES:
        assert Softmax(average).decide(np.zeros((2, 3, 0), np.float32)).shape == (2, 3, 0)


def test_words_and_equality():
    assert decision.make() == Sigmoid("prob") != Softmax("prob")
    assert decision.make("softmax", "logit") == Softmax("logit") != Softmax("prob")
    assert [decision.make(name).name for name in ACTIVATIONS] == list(ACTIVATIONS)
    with pytest.raises(UsageError, match=r"unknown activation 'softmx'.*softmax"):
        decision.make("softmx")
    with pytest.raises(UsageError, match=r"unknown average 'probs'.*prob"):
        decision.make(average="probs")


def test_only_the_decision_looks_at_the_words(repository):
    """No other module takes the rule apart."""
    found = [
        str(path.relative_to(repository))
        for path in sorted((repository / "medjax").rglob("*.py"))
        if path.name != "decision.py"
        and any(
            word in path.read_text()
            for word in ("activation ==", "activation !=", "activation in", ".exclusive")
        )
    ]
    assert [name for name in found if not name.startswith("medjax/losses/")] == []


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_temperature_divides_logits_and_changes_no_decision(activation):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (50, 4))
    chosen = decision.make(activation)
    probabilities = chosen.activated(logits)
    found = chosen.tempered(probabilities, 2.5)
    np.testing.assert_allclose(found, chosen.activated(logits / 2.5), atol=1e-4)
    np.testing.assert_array_equal(chosen.decide(found), chosen.decide(probabilities))
    np.testing.assert_allclose(chosen.tempered(probabilities, 1.0), probabilities, atol=1e-6)


@pytest.mark.parametrize("average", ["prob", "logit"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_certainty_sums_the_probabilities_of_what_is_decided_for(activation, average):
    rng = np.random.default_rng(1)
    chosen = decision.make(activation, average)
    values = chosen.values(rng.normal(0, 2, (3, 4, 5, 3)))
    mask = chosen.decide(values)
    mask[1] = False  # a row without anything
    expected = np.where(mask, chosen.probabilities(values), 0).sum((0, 1, 2))
    np.testing.assert_allclose(chosen.certainty(values, mask), expected)
    np.testing.assert_array_equal(chosen.certainty(values[..., :0], mask[..., :0]), [])
