"""`medjax text` and `config.text`: vectors of names by CLIP, as hashes, from files and runs."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from medjax.cli import main
from medjax.commands import text
from medjax.errors import ModelError, UsageError
from medjax.prompts import texts
from medjax.runs.prompted import texts as of_runs
from medjax.runs.settings import schema
from medjax.runs.settings.text import Text
from medjax.weights.families import clip
from tests.support import published_segvol as published


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small text tower inside a SegVol file, as all SegVol files have."""
    path = tmp_path_factory.mktemp("clip") / "model.safetensors"
    save_file(
        published.tensors(
            published.Sizes(
                24,
                1,
                8,
                text=8,
                text_hidden=8,
                text_layers=1,
                patch=(1, 4, 4),
                grid=(2, 4, 4),
                decoder_hidden=8,
                rating=8,
            )
        ),
        path,
    )
    return path


def _medjax(*words):
    return main([str(word) for word in words])


def test_vectors_by_an_encoder(encoder, tmp_path, capsys):
    out = tmp_path / "two.text.npz"
    assert _medjax("text", "--names", "liver", "spleen", "--encoder", encoder, "-o", out) == 0
    said = capsys.readouterr().out
    assert "out of scope" in said and "2 vectors of width 8 (clip-pooled)" in said
    found = texts.read(out)
    assert found.texts[0] == "A computerized tomography of a liver."
    assert found.facts["template"] == texts.TEMPLATE and len(found.facts["encoder"]) == 64
    sentences = tmp_path / "tasks.json"
    sentences.write_text(json.dumps({"liver": "A computerized tomography of a liver."}))
    again = tmp_path / "one.text.npz"
    assert _medjax("text", "--sentences", sentences, "--encoder", encoder, "-o", again) == 0
    np.testing.assert_allclose(texts.read(again).vectors[0], found.vectors[0], atol=1e-6)
    assert text.add is not None and clip.PREFIX


def test_hashes_say_what_they_are(tmp_path, capsys):
    out = tmp_path / "names.text.npz"
    assert _medjax("text", "--names", "left kidney", "liver", "--hash", "-o", out) == 0
    assert texts.HASH_NOTE in capsys.readouterr().out
    np.testing.assert_array_equal(
        texts.read(out).vectors, texts.hashed(("left kidney", "liver")).vectors
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--hash",), "no texts"),
        (("--names", "liver", "--hash", "--projected"), "choice of --encoder"),
        (("--names", "liver", "--template", "a", "--hash"), "exactly one place"),
        (("--names", "liver", "--encoder", "none.safetensors"), "no such weight file"),
        (("--sentences", "wrong.json", "--hash"), "not a file of sentences"),
    ],
)
def test_calls_that_cannot_be_meant(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.json").write_text('["liver"]')
    assert _medjax("text", *words, "-o", "x.text.npz") in (1, 2)
    assert message in capsys.readouterr().err
    assert _medjax("text", "--names", "liver", "--hash", "-o", "x.npz") == 2
    assert not list(tmp_path.glob("x.*"))


def test_a_projection_that_is_not_there(encoder, tmp_path, capsys):
    out = tmp_path / "x.text.npz"
    words = ("--names", "liver", "--encoder", encoder, "--projected", "-o", out)
    assert _medjax("text", *words) == 2
    assert "has no projection" in capsys.readouterr().err
    with pytest.raises(ModelError, match=r"no segmentation network.*medjax text"):
        clip.architecture({})
    with pytest.raises(ModelError, match="no text tower of CLIP"):
        clip.tower({"visual.conv1.weight": np.zeros((2, 2))})


def _config(**fields):
    return schema.resolve({"text": fields})


def test_the_table_of_a_run_is_filled_from_its_config(encoder, tmp_path):
    names, params = ("liver", "spleen"), {"text": {"table": jnp.zeros((2, 8))}}
    found = of_runs.of_config(_config(source="hash"), names, 8)
    np.testing.assert_array_equal(found.vectors, texts.hashed(names, 8).vectors)
    filled = of_runs.with_table(params, found.vectors)
    np.testing.assert_array_equal(filled["text"]["table"], found.vectors)
    by_clip = of_runs.of_config(_config(source="clip", file=str(encoder)), names, 8)
    path = tmp_path / "more.text.npz"
    texts.write(path, of_runs.by_encoder(encoder, ("a", *names), ("x", *by_clip_texts(names))))
    from_file = of_runs.of_config(_config(source="file", file=str(path)), names, 8)
    np.testing.assert_allclose(from_file.vectors, by_clip.vectors, atol=1e-6)
    assert of_runs.of_config(_config(source="learned"), names, 8) is None
    for fields, message in (
        ({"source": "hsah"}, r"unknown source 'hsah'.*did you mean hash"),
        ({"source": "file"}, "needs a file"),
        ({"source": "file", "file": str(path), "pooled": False}, "clip-pooled.*clip-projected"),
    ):
        with pytest.raises(UsageError, match=message):
            of_runs.of_config(_config(**fields), names, 8)
    with pytest.raises(UsageError, match=r"no text vector for 'livre'"):
        of_runs.of_config(_config(source="file", file=str(path)), ("livre",), 8)
    with pytest.raises(UsageError, match="width of the network's table"):
        of_runs.of_config(_config(source="file", file=str(path)), names, 9)
    with pytest.raises(UsageError, match="reads no texts"):
        of_runs.with_table({"head": {"kernel": jnp.zeros((2, 2))}}, found.vectors)
    with pytest.raises(UsageError, match="do not fit the network's table"):
        of_runs.with_table(params, found.vectors[:1])


def by_clip_texts(names):
    return texts.filled(texts.TEMPLATE, names)


def test_configs_without_texts_stay_as_they_are():
    assert "text" not in schema.listed() and schema.resolve({}).text == Text()
    given = schema.resolve({"text": {"source": "hash"}})
    assert given.text.source == "hash" and given.text.template == texts.TEMPLATE
