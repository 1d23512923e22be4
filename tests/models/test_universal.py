"""The Universal Model: its size, and the outputs of one class by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import ModelError
from medjax.models import context, universal
from medjax.models.parts.texts import TextTable

KEY = jax.random.key(0)
TINY = {"feature_size": 6, "depths": (1,) * 4, "heads": (1,) * 4, "window": 2, "dims": 2}


def _shapes(net, *sides):
    return jax.eval_shape(lambda k: context.initialise(net, k, jnp.zeros((1, *sides, 1))), KEY)


@pytest.mark.parametrize(("encoding", "count"), [("word", 62_595_315), ("rand", 62_472_179)])
def test_it_has_the_published_size(encoding, count):
    """Spec 3.6; the stored vectors of "word" are no parameters there."""
    shapes = _shapes(universal.make(32, encoding=encoding), 64, 64, 64)
    sums = {name: sum(a.size for a in jax.tree.leaves(part)) for name, part in shapes.items()}
    fixed = sums["text"] if encoding == "word" else 0
    assert sum(sums.values()) - fixed == count
    assert sums["backbone"] == 62_186_610 and sums["precls"] == 488
    assert sums["gap_norm"] + sums["gap"] == 198_400 and sums["controller"] == 78_489
    assert sums.get("text_to_vision", 131_328) == 131_328
    assert shapes["text"]["table"].shape == ((32, 512) if encoding == "word" else (32, 256))


def _norm(x, p, groups):
    """GroupNorm over (voxels, channels of a group) of one sample, then ReLU."""
    split = x.reshape(-1, groups, x.shape[-1] // groups)
    mean, var = split.mean((0, 2), keepdims=True), split.var((0, 2), keepdims=True)
    y = ((split - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    return np.maximum(y * np.asarray(p["scale"]) + np.asarray(p["bias"]), 0)


def _linear(x, p):
    return x @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"], np.float64)


@pytest.mark.slow
def test_a_class_is_three_maps_of_its_text():
    net = universal.make(3, **TINY)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 32, 1)), jnp.float32)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda a: jnp.asarray(0.4 * rng.normal(size=a.shape), jnp.float32), _shapes(net, 64, 32)
    )

    def run(p):
        maps = net.backbone.apply({"params": p["backbone"]}, image, method="encode")
        decoded = net.backbone.apply({"params": p["backbone"]}, maps, method="decode")
        return net.apply({"params": p}, image)["logits"], maps["deepest"], decoded

    logits, deepest, decoded = (np.asarray(a, np.float64) for a in jax.jit(run)(params))
    text = np.maximum(_linear(np.asarray(params["text"]["table"]), params["text_to_vision"]), 0)
    for n in range(2):
        x = _norm(deepest[n], params["gap_norm"], 16)
        seen = _linear(x.reshape(-1, 96).mean(0), params["gap"])
        features = _linear(_norm(decoded[n], params["precls"]["norm"], 6), params["precls"]["conv"])
        for c in range(3):
            w = _linear(np.concatenate([seen, text[c]]), params["controller"])
            y = np.maximum(features @ w[:64].reshape(8, 8).T + w[136:144], 0)
            y = np.maximum(y @ w[64:128].reshape(8, 8).T + w[144:152], 0) @ w[128:136] + w[152]
            np.testing.assert_allclose(logits[n, ..., c], y, atol=2e-4 * y.std())


def test_what_describes_no_network_is_refused():
    with pytest.raises(ModelError, match="encoding"):
        universal.make(3, encoding="words")
    with pytest.raises(ModelError, match="1 channels"):
        jax.eval_shape(universal.make(3, **TINY).init, KEY, jnp.zeros((1, 64, 32, 2)))
    table = TextTable(3).init(KEY)["params"]["table"]
    assert table.shape == (3, 512) and float(table.std()) == pytest.approx(1, abs=0.1)
