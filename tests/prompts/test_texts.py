"""Vectors of texts: files, and hashes of words."""

import json

import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.prompts import texts
from medjax.prompts.texts import Texts

SENTENCES = {"left": "The left kidney.", "right": "the right Kidney", "lung": "a lung tumour"}


def _cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_hashes_share_words_and_nothing_else():
    found = texts.hashed(SENTENCES)
    assert found.vectors.shape == (3, 512) and found.vectors.dtype == np.float32
    assert found.kind == "hash" and found.names == tuple(SENTENCES)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 9, rtol=1e-6)
    left, right, lung = found.vectors
    assert _cosine(left, right) == pytest.approx(2 / 3, abs=0.12)  # two of three words
    assert abs(_cosine(left, lung)) < 0.2
    again = texts.hashed({"x": "the LEFT kidney"}).vectors[0]
    np.testing.assert_array_equal(again, left)


def test_the_numbers_of_a_word_are_those_of_every_machine():
    """First numbers of "kidney": sums of bytes of sha256("kidney\\0" "0"), standardised."""
    found = texts.hashed({"k": "kidney"}, width=4).vectors[0]
    import hashlib

    data = np.frombuffer(hashlib.sha256(b"kidney\x000").digest(), np.uint8).reshape(4, 8)
    raw = data.sum(1) - 8 * 127.5
    np.testing.assert_allclose(found, 9 * raw / np.linalg.norm(raw), rtol=1e-6)
    many = texts.hashed({"k": "kidney"}, width=4096).vectors[0]
    many = many / many.std()
    assert abs(many.mean()) < 0.05 and np.mean(many**4) == pytest.approx(2.85, abs=0.3)


def test_a_file_holds_what_was_written(tmp_path):
    given = texts.hashed(SENTENCES, width=16)
    given = Texts(given.names, given.texts, given.vectors, {"kind": "clip-projected", "n": 1})
    path = tmp_path / "a.text.npz"
    texts.write(path, given)
    found = texts.read(path)
    assert (found.names, found.texts, dict(found.facts)) == (given.names, given.texts, given.facts)
    np.testing.assert_array_equal(found.vectors, given.vectors)
    np.testing.assert_array_equal(found.rows(("lung", "left")), given.vectors[[2, 0]])
    with pytest.raises(UsageError, match="no text vector for 'lun'"):
        found.rows(("lun",), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": np.zeros((2, 4))}, "do not fit together"),
        ({"vectors": np.full((3, 4), np.nan)}, "not finite"),
        ({"names": np.array(["a", "a", "b"])}, "every name once"),
        ({"facts": np.array(json.dumps({"kind": "glove"}))}, "clip-projected"),
        ({"facts": np.array("no json")}, "no file of text vectors"),
    ],
)
def test_a_damaged_file_is_refused(change, message, tmp_path):
    path = tmp_path / "a.text.npz"
    given = {"names": np.array(list("abc")), "texts": np.array(list("abc"))}
    given |= {"vectors": np.zeros((3, 4)), "facts": np.array(json.dumps({"kind": "hash"}))}
    np.savez(path, **(given | change))
    with pytest.raises(UsageError, match=message):
        texts.read(path)


def test_what_is_no_file_of_texts_is_refused(tmp_path):
    with pytest.raises(UsageError, match="medjax text"):
        texts.read(tmp_path / "none.npz")
    (tmp_path / "x.npz").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="cannot be read"):
        texts.read(tmp_path / "x.npz")
