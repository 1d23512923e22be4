"""Texts that are no class: vectors by the encoder of the own texts, or a sentence why not."""

import dataclasses

import jax
import numpy as np
import pytest

from configs.segvol import get_config
from medjax.errors import UsageError
from medjax.labels import Corpus, merge
from medjax.prepare.plan import Intensity, Plan
from medjax.prompts import texts, types
from medjax.registry import plain
from medjax.runs.prompted import free
from medjax.runs.prompted.texts import by_encoder
from medjax.runs.trained import Trained
from tests.commands.test_text import encoder  # noqa: F401 - a fixture
from tests.models.test_segvol import TINY
from tests.support.configs import typed

BODY = Corpus("Body", ((1, ("liver",)), (2, ("left kidney",))), channels=("CT",))
SIZES = {k: v for k, v in TINY.items() if k != "frame"}


def trained(table, tmp_path, model=None, **text):
    """A model in memory, of which only the table of texts matters here."""
    fields = plain(get_config("demo"))
    fields["model"] = {"name": "segvol", **SIZES, "text_width": table.shape[1], **(model or {})}
    fields["train"]["patch"] = TINY["frame"]
    fields["text"] |= text
    plan = Plan({"Body": (1.0, 1.0, 1.0)}, {"CT": Intensity("ct", (-1.0, 1.0), 0.0, 1.0)})
    params = {"text": {"table": table}}
    return Trained(tmp_path, typed(fields), merge([BODY]), plan, current=params)


def test_phrases_are_what_is_no_class():
    found = free.unknown(("Liver", "", "a cyst", "left kidney ", "a cyst"), BODY.classes)
    assert found == ("a cyst",)


def test_hashes_can_always_be_made_again(tmp_path):
    one = trained(texts.hashed(BODY.classes, 10).vectors, tmp_path)
    assert types.VECTOR not in one.network.reads
    other, vectors = free.opened(one, ("a cyst", "right kidney"))
    np.testing.assert_array_equal(
        vectors(["right kidney"]), texts.hashed(("right kidney",), 10).vectors
    )
    assert types.of_spec(other.network.reads)[types.VECTOR].shape[-1] == 10
    before, after = (jax.tree.structure(m.network.abstract()) for m in (one, other))
    assert before == after  # the parameters stay
    (said,) = free.about(("livr",), one)
    assert "'livr' is no class" in said and "did you mean liver" in said
    assert texts.HASH_NOTE in said
    with pytest.raises(UsageError, match="hashes, not vectors of an encoder"):
        free.opened(one, ("a cyst",), tmp_path / "clip.safetensors")


def test_an_encoder_at_hand_is_used_and_compared_with_the_table(encoder, tmp_path):  # noqa: F811
    sentences = texts.filled(texts.TEMPLATE, BODY.classes)
    table = by_encoder(encoder, BODY.classes, sentences).vectors
    text = {"source": "clip", "file": str(encoder), "template": texts.TEMPLATE}
    one = trained(table, tmp_path, **text)
    _, vectors = free.opened(one, ("a cyst",))
    said = texts.filled(texts.TEMPLATE, ("a cyst",))
    expected = by_encoder(encoder, ("a cyst",), said).vectors
    np.testing.assert_allclose(vectors(["a cyst"]), expected, atol=1e-5)
    moved = trained(table, tmp_path, **text | {"file": str(tmp_path / "gone.safetensors")})
    with pytest.raises(UsageError, match=r"no text 'a livr'.*not at hand.*did you mean liver"):
        free.opened(moved, ("a livr",))
    _, again = free.opened(moved, ("a cyst",), encoder)
    np.testing.assert_array_equal(again(["a cyst"]), vectors(["a cyst"]))
    with pytest.raises(UsageError, match="not the text encoder"):
        free.opened(trained(table[::-1].copy(), tmp_path, **text), ("a cyst",))


def test_without_an_encoder_the_nearest_names_are_listed(tmp_path):
    table = texts.hashed(BODY.classes, 10).vectors
    for source in ("learned", "file"):
        one = trained(table, tmp_path, source=source)
        with pytest.raises(UsageError, match=r"Known: left kidney, liver.*--encoder FILE"):
            free.opened(one, ("a cyst",))
    one = trained(table, tmp_path)
    plain_one = dataclasses.replace(
        one,
        config=dataclasses.replace(
            one.config, model=dataclasses.replace(one.config.model, name="unet")
        ),
    )
    with pytest.raises(UsageError, match="texts of its classes only"):
        free.opened(plain_one, ("a cyst",))
