"""Heads by corpus: every sample through its own softmax, exact sizes, absent classes out of the
game, in two and three axes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.models.parts import heads
from medjax.models.parts.attention import call
from tests.support.networks import fresh

WIDTH, CLASSES = 6, 5
CHANNELS = ((0, 1, 2), (3,), (4, 1))  # the third corpus shares class 1 with the first


def _net(share="corpus", channels=CHANNELS, **more):
    return heads.socket("corpus_softmax", channels, share)(CLASSES, name=None, **more)


def _features(key, vol, b=3):
    return jax.random.normal(jax.random.key(key), (b, *vol, WIDTH))


@pytest.mark.parametrize("vol", [(4, 3), (2, 3, 4)])
def test_every_sample_goes_through_the_columns_of_its_corpus(vol):
    net, x = _net(use_bias=True), _features(0, vol)
    params = jax.jit(fresh(net))(jax.random.key(1), x)["params"]
    params["bias"] = jnp.arange(9.0)
    corpus = jnp.array([2, 0, 1])
    logits = jax.jit(lambda p: call(net.bind({"params": p}), x, {"corpus": corpus}))(params)
    kernel, bias = np.asarray(params["kernel"]), np.asarray(params["bias"])
    assert kernel.shape == (WIDTH, 4 + 2 + 3)  # 1 + channels of each corpus: no dead column
    first, own = [0, 4, 6], [(0, 1, 2), (3,), (1, 4)]
    for i, c in enumerate(corpus):
        part = slice(first[c], first[c] + 1 + len(own[c]))
        raw = np.asarray(x[i]) @ kernel[:, part] + bias[part]
        np.testing.assert_allclose(
            logits[i][..., list(own[c])], raw[..., 1:] - raw[..., :1], atol=1e-5
        )
        assert np.isneginf(np.delete(np.asarray(logits[i]), own[c], -1)).all()


def test_permuting_the_batch_permutes_the_logits_and_absent_classes_never_win():
    net, x, corpus = _net(), _features(2, (3, 3)), jnp.array([0, 1, 2])
    variables = jax.jit(fresh(net))(jax.random.key(0), x)
    run = jax.jit(lambda x, corpus: net.apply(variables, x, {"corpus": corpus}))
    logits, turned = run(x, corpus), run(x[::-1], corpus[::-1])
    np.testing.assert_array_equal(turned, logits[::-1])
    for i in range(3):
        assert set(np.unique(np.argmax(logits[i], -1))) <= set(CHANNELS[i])


def test_gradients_are_finite_and_reach_only_the_heads_that_were_used():
    net, x = _net(), _features(3, (3, 3))
    params = jax.jit(fresh(net))(jax.random.key(0), x)["params"]

    def loss(p):
        y = net.apply({"params": p}, x, {"corpus": jnp.zeros(3, jnp.int32)})
        return jax.nn.logsumexp(y, -1).sum()

    gradient = np.asarray(jax.jit(jax.grad(loss))(params)["kernel"])
    assert (
        np.isfinite(gradient).all()
        and (gradient[:, :4] != 0).all()
        and (gradient[:, 4:] == 0).all()
    )


def test_m4oes_heads_hold_3168_numbers_and_amos_ct_and_mri_share_one():
    """14 FLARE22, 3 ATLAS23 and 16 AMOS22 classes with background: 96 x 33; the padded stack would
    hold 4,608 (spec 3.4).
    """
    channels = (tuple(range(13)), (13, 14), tuple(range(15)), tuple(range(15)))
    assert heads.numbered("channels", channels) == (0, 1, 2, 2)
    assert heads.numbered("corpus", channels) == (0, 1, 2, 3)
    fewer = heads.columns(
        15, (*channels[:3], tuple(range(13))), (0, 1, 2, 2)
    )  # AMOS MRI annotates 13 of the head's 15
    assert (
        fewer.max() == 32
        and fewer[3, :14].tolist() == fewer[2, :14].tolist()
        and (fewer[3, 14:] == -1).all()
    )
    net = heads.socket("corpus_softmax", channels, "channels")(15)
    x = jnp.zeros((2, 1, 1, 96))
    params = jax.jit(fresh(net))(jax.random.key(0), x)["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == 3168
    same = jax.jit(lambda p: net.apply({"params": p}, x + 1, {"corpus": jnp.array([2, 3])}))(params)
    np.testing.assert_array_equal(same[0], same[1])


def test_a_sigmoid_head_is_one_linear_map():
    net, x = heads.socket("sigmoid")(CLASSES), _features(5, (2, 2, 2))
    params = jax.jit(net.init)(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(
        call(net.bind({"params": params}), x, None),
        x @ params["kernel"] + params["bias"],
        atol=1e-6,
    )
    half = heads.DenseHead(CLASSES, dtype=jnp.bfloat16).apply({"params": params}, x)
    assert half.dtype == jnp.float32 and params["kernel"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: heads.socket("softmax"), "did you mean"),
        (lambda: heads.socket("corpus_softmax"), "corpus_channels"),
        (lambda: heads.columns(3, ((0,), (1,)), (0, 2)), "without gaps"),
        (lambda: heads.columns(3, ((0, 3),), (0,)), "usable channels"),
        (lambda: heads.numbered("chanels", CHANNELS), "channels"),
    ],
)
def test_what_describes_no_heads_is_refused(make, message):
    with pytest.raises(ModelError, match=message):
        make()


def test_a_missing_corpus_is_an_error_once_the_network_is_made():
    net, x = _net(), _features(0, (2, 2))
    variables = jax.jit(fresh(net))(jax.random.key(0), x)
    with pytest.raises(ModelError, match="corpus of every sample"):
        net.apply(variables, x)
