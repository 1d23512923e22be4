"""Which vectors a network's table of texts is filled with."""

import dataclasses

import numpy as np
import pytest

from configs.mast_pro import get_config
from medjax.errors import UsageError
from medjax.labels import Corpus, merge
from medjax.prompts import texts
from medjax.prompts.texts import Vectors
from medjax.registry import plain
from medjax.runs.build import Network
from medjax.runs.prompted.texts import filling, of_config
from tests.support.configs import typed

NAMES = ("PhantomMR_tumour", "PhantomCE_tumour")
SPACE = merge([Corpus("A", ((1, ("tumour",)),))])
NET = Network(lambda *_: {}, lambda _: {}, (32, 64, 64), 1, texts=NAMES)


def _config(**text):
    fields = plain(get_config("demo"))
    return typed(fields | {"text": fields["text"] | text})


def _fresh(width=512):
    return {"text": {"table": np.zeros((2, width), np.float32)}, "out": {"bias": np.ones(3)}}


def _filled(config, tmp_path, fresh=None, net=NET):
    fill = filling(config, SPACE, net, tmp_path)
    return (_fresh() if fresh is None else fresh) if fill is None else fill(fresh or _fresh())


def test_hashes_of_the_sentences_of_the_tasks(tmp_path, capsys):
    found = _filled(_config(), tmp_path)
    sentences = plain(get_config("demo").text.sentences)
    expected = texts.hashed(NAMES, sentences=[sentences[name] for name in NAMES])
    assert expected.texts == tuple(sentences[name] for name in NAMES)
    np.testing.assert_array_equal(found["text"]["table"], expected.vectors)
    assert np.abs(expected.vectors - texts.hashed(NAMES).vectors).max() > 0.1
    np.testing.assert_array_equal(found["out"]["bias"], np.ones(3))
    assert texts.HASH_NOTE in capsys.readouterr().out
    turned = dataclasses.replace(NET, texts=NAMES[::-1])
    swapped = _filled(_config(), tmp_path, net=turned)["text"]["table"]
    np.testing.assert_array_equal(swapped, expected.vectors[::-1])


def test_vectors_of_a_file_by_the_names_of_the_tasks(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(3, 512)).astype(np.float32)
    path, names = tmp_path / "a.text.npz", ("other", *NAMES[::-1])
    texts.write(path, Vectors(names, names, vectors, {"kind": "clip-projected"}))
    config = _config(source="file", file=str(path), sentences={})
    found = _filled(config, tmp_path)["text"]["table"]
    np.testing.assert_array_equal(found, vectors[[2, 1]])
    with pytest.raises(UsageError, match="no text vector for 'third'") as error:
        of_config(config, ("third",), 512)
    assert str(error.value.path) == str(path) and NAMES[0] in error.value.found and error.value.fix
    with pytest.raises(UsageError, match="width"):
        of_config(config, NAMES, 256)
    texts.write(path, Vectors(names, names, vectors, {"kind": "clip-pooled"}))
    with pytest.raises(UsageError, match="not of the kind"):
        of_config(config, NAMES, 512)


def test_what_fills_nothing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="says nothing"):
        _filled(_config(source=""), tmp_path)
    with pytest.raises(UsageError, match="no sentence for 'third'"):
        of_config(_config(), (*NAMES, "third"), 512)
    with pytest.raises(UsageError, match="clipp"):
        of_config(_config(source="clipp"), NAMES, 512)
    learned = _fresh()
    assert _filled(_config(source="learned"), tmp_path, learned) is learned
