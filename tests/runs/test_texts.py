"""Which vectors a network's table of texts is filled with."""

import numpy as np
import pytest

from configs.mast_pro import get_config
from medjax.errors import UsageError
from medjax.prompts import texts
from medjax.prompts.texts import Texts
from medjax.registry import plain
from medjax.runs.texts import filler
from tests.support.configs import typed

NAMES = ("PhantomMR_tumour", "PhantomCE_tumour")


def _config(**text):
    fields = plain(get_config("demo"))
    return typed(fields | {"text": fields["text"] | text})


def _fresh(width=512):
    return {"text": {"table": np.zeros((2, width), np.float32)}, "out": {"bias": np.ones(3)}}


def test_hashes_of_the_sentences_of_a_config():
    said = []
    found = filler(_config(), NAMES, said.append)(_fresh())
    sentences = plain(get_config("demo").text.sentences)
    expected = texts.hashed({name: sentences[name] for name in NAMES}).vectors
    np.testing.assert_array_equal(found["text"]["table"], expected)
    np.testing.assert_array_equal(found["out"]["bias"], np.ones(3))
    assert said == [texts.WARNING]
    swapped = filler(_config(), NAMES[::-1], said.append)(_fresh())["text"]["table"]
    np.testing.assert_array_equal(swapped, expected[::-1])


def test_vectors_of_a_file_by_the_names_of_the_tasks(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(3, 512)).astype(np.float32)
    path, names = tmp_path / "a.text.npz", ("other", *NAMES[::-1])
    texts.write(path, Texts(names, names, vectors, {"kind": "clip-projected"}))
    config = _config(source="file", file=str(path))
    found = filler(config, NAMES)(_fresh())["text"]["table"]
    np.testing.assert_array_equal(found, vectors[[2, 1]])
    with pytest.raises(UsageError, match="no text vector for 'third'"):
        filler(config, ("third",))(_fresh())
    with pytest.raises(UsageError, match="another width"):
        filler(config, NAMES)(_fresh(256))
    texts.write(path, Texts(names, names, vectors, {"kind": "clip-pooled"}))
    with pytest.raises(UsageError, match="not of the kind"):
        filler(config, NAMES)(_fresh())


def test_learned_vectors_and_networks_without_texts_are_left_alone():
    fresh = _fresh()
    assert filler(_config(source="learned"), NAMES)(fresh) is fresh
    other = {"out": fresh["out"]}
    assert filler(_config(source=""), ())(other) is other


def test_what_fills_nothing_is_refused():
    with pytest.raises(UsageError, match="says nothing"):
        filler(_config(source=""), NAMES)(_fresh())
    with pytest.raises(UsageError, match="no sentence for the task 'third'"):
        filler(_config(), (*NAMES, "third"))(_fresh())
    with pytest.raises(UsageError, match="clipp"):
        filler(_config(source="clipp"), NAMES)
