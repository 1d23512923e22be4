"""Objects from a config: the precision of products."""

import jax
import jax.numpy as jnp
import pytest

from configs.base import base_config
from medjax.errors import ModelError, UsageError
from medjax.labels import merge
from medjax.registry import plain
from medjax.runs import build, recipe, stages
from medjax.runs.config import with_field
from medjax.runs.open import open_data
from tests.support.configs import typed
from tests.support.raw import write_corpus
from tests.support.run import ORGANS, small_unet


def _fields(precision="", **model):
    fields = plain(base_config())
    fields["model"] = {"name": "unet", **small_unet(3), **model}
    fields["train"] |= {"patch": (8, 8, 8), "precision": precision}
    return fields


def _network(fields):
    return build.make_network(typed(fields), merge([ORGANS]), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("word", ["", "highest"])
def test_training_uses_the_precision_of_the_config_and_prediction_its_own(word):
    fields = _fields(word)
    net = _network(fields)
    params, image = net.abstract(), jax.ShapeDtypeStruct((1, 8, 8, 8, 1), jnp.float32)

    def text(train):
        return str(jax.make_jaxpr(lambda p, x: net.apply(p, x, {}, train))(params, image))

    assert ("HIGHEST" in text(True)) == bool(word) and "HIGHEST" not in text(False)

    def gradient(p, x):
        with build.precision(word):
            return jax.grad(lambda p: net.apply(p, x, {}, True)["logits"].sum())(p)

    products = str(jax.make_jaxpr(gradient)(params, image)).split("precision=")[1:]
    assert products and all(p.startswith("None") != bool(word) for p in products)


def test_a_training_runs_under_its_precision(monkeypatch, tmp_path):
    raw = write_corpus(tmp_path / "Task01_Blobs", n=5, shape=(6, 6, 6))
    seen = []
    monkeypatch.setattr(
        stages, "_train", lambda *_: seen.append(jax.config.jax_default_matmul_precision)
    )
    for word in ("high", ""):
        config = with_field(typed(_fields(word)), "data.folders", str(raw))
        stages.train(stages.Run(config, tmp_path, open_data(config.data, tmp_path)))
    assert seen == ["high", None] and jax.config.jax_default_matmul_precision is None
    with pytest.raises(UsageError, match=r"unknown train\.precision 'higest'.*highest"):
        build.precision("higest")


def test_the_precision_and_the_tasks_are_part_of_what_decides_the_weights():
    plain_run, exact = (recipe.fields(typed(_fields(word))) for word in ("", "highest"))
    assert exact == plain_run | {"precision": "highest"}
    fields = _fields()
    fields["data"] |= {"tasks": {"Organs": "organs"}}
    assert recipe.fields(typed(fields)) == plain_run | {"tasks": {"Organs": "organs"}}


def test_words_of_a_config_become_sockets_with_the_facts_of_the_data():
    net = _network(_fields(context={"kind": "embedding", "of": "corpus"}))
    assert net.abstract()["context"]["table"].shape == (1, 3) and list(net.reads) == ["corpus"]
    assert _network(_fields()).reads == {}
    with pytest.raises(ModelError, match="has no field 'values'"):
        _network(_fields(context={"kind": "embedding", "values": 3}))
