"""Vectors of texts: hashes, templates, files."""

import numpy as np
import pytest

from medjax.errors import ModelError, UsageError
from medjax.prompts import texts


def _cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_hashes_share_what_names_share():
    names = ("left kidney", "right kidney", "Left_Kidney", "spleen", "liver tumour")
    found = texts.hashed(names)
    assert found.vectors.shape == (5, 512) and found.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), texts.NORM, rtol=1e-5)
    left, right, same, spleen, tumour = found.vectors
    np.testing.assert_array_equal(left, same)  # case and underscores do not matter
    assert 0.4 < _cosine(left, right) < 0.6  # one of two pieces
    assert abs(_cosine(left, spleen)) < 0.15 and abs(_cosine(left, tumour)) < 0.15
    np.testing.assert_array_equal(texts.hashed(("spleen",)).vectors[0], spleen)
    # the same on every machine and with every version
    assert float(texts.hashed(("liver",), 4).vectors.sum()) == pytest.approx(
        HASH_OF_LIVER, rel=1e-5
    )
    with pytest.raises(UsageError, match="without any letter"):
        texts.hashed(("  ",))
    assert "know no anatomy" in texts.HASH_NOTE


HASH_OF_LIVER = -16.676788330078125


def test_a_template_has_one_place():
    assert texts.filled(texts.TEMPLATE, ["Parotid_R"]) == (
        "A computerized tomography of a Parotid_R.",
    )
    assert texts.filled("", ["liver"]) == ("liver",)
    with pytest.raises(UsageError, match="exactly one place for the name"):
        texts.filled("a liver", ["liver"])


def test_a_file_gives_back_what_was_written(tmp_path):
    vectors = texts.Vectors(
        ("liver", "Niere, links"),
        ("A liver.", "Eine Niere — links."),
        np.random.default_rng(0).normal(size=(2, 6)).astype(np.float32),
        {"kind": "clip-pooled", "template": "A {}.", "encoder": "ab12"},
    )
    path = tmp_path / "two.text.npz"
    texts.write(path, vectors)
    found = texts.read(path)
    assert (found.names, found.texts, dict(found.facts)) == (
        vectors.names,
        vectors.texts,
        dict(vectors.facts),
    )
    np.testing.assert_array_equal(found.vectors, vectors.vectors)
    np.testing.assert_array_equal(found.rows(["Niere, links"]), vectors.vectors[1:])
    with pytest.raises(UsageError, match=r"no text vector for 'livre'.*did you mean liver"):
        found.rows(["livre"], path)


@pytest.mark.parametrize(
    "change",
    [
        {"names": ("liver", "liver")},
        {"facts": {"kind": "clip"}},
        {"texts": ("A liver.",)},
        {"vectors": np.zeros(2, np.float32)},
    ],
)
def test_vectors_that_do_not_fit_are_refused(change):
    fields = {
        "names": ("liver", "spleen"),
        "texts": ("a", "b"),
        "vectors": np.zeros((2, 3), np.float32),
        "facts": {"kind": "hash"},
    }
    texts.Vectors(**fields)
    with pytest.raises(UsageError):
        texts.Vectors(**fields | change)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no such file.*medjax text"):
        texts.read(tmp_path / "none.text.npz")
    path = tmp_path / "other.text.npz"
    np.savez(path, vectors=np.zeros((2, 3)))
    with pytest.raises(ModelError, match="not a file of text vectors"):
        texts.read(path)
    good = texts.hashed(("liver",), 4)
    wrong = texts.Vectors(good.names, good.texts, good.vectors * np.nan, good.facts)
    texts.write(path, wrong)
    with pytest.raises(ModelError, match="not finite"):
        texts.read(path)
    with pytest.raises(UsageError, match=r"ends in \.text\.npz"):
        texts.write(tmp_path / "liver.npz", good)
