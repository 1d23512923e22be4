"""Texts that are no class of a model: their vectors, made as those of its own table were.

In: a model (`runs.trained.Trained`) and phrases. Out: the model with an input for such vectors, and
a function from texts to vectors. A network holds no text encoder: hashes can always be made again,
vectors of CLIP where its file is at hand.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from medjax.errors import UsageError, did_you_mean, shown
from medjax.prompts import texts
from medjax.runs import build
from medjax.runs.prompted.texts import TABLE, by_encoder

Encoder = Callable[[Sequence[str]], np.ndarray]
CLOSE = 1e-2  # of the length of a vector, between two ways to compute it


def unknown(phrases: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """The phrases that are no class (upper and lower case are equal), each once."""
    lower = {name.lower() for name in classes}
    return tuple(dict.fromkeys(p for p in phrases if p and p.strip().lower() not in lower))


def opened(one: Any, phrases: Sequence[str], file: Path | str = "") -> tuple[Any, Encoder]:
    """A model that also reads texts as vectors, and the vectors of these phrases.

    Args:
      one: the model. phrases: texts that are no class. file: of the text encoder; default that of
        the model's config.

    A phrase takes the place of a class name in the template of the config. That the encoder is the
    one of the training is checked with the vector of a class.

    Raises: `UsageError` with the nearest class names where nothing can make the vectors, and for
      another encoder.
    """
    given = one.config.text
    file = str(file or (given.file if given.source == "clip" else ""))
    path = Path(file).expanduser() if file else None
    reason = ""
    if "free_text" not in build.accepted(one.config.model.name):
        reason = "its network reads the texts of its classes only"
    elif given.source == "hash" and path:
        reason = "its texts are hashes, not vectors of an encoder"
    elif given.source != "hash" and (path is None or not path.is_file()):
        reason = "the encoder of its texts is not at hand"
    if reason:
        raise UsageError(
            f"the model knows no text {shown(phrases[0])!r}: {reason}",
            path=file or one.path,
            fix=f"{did_you_mean(phrases[0], one.space.classes)}; or give a point or a box"
            + ("" if given.source == "hash" else ", or the text encoder (--encoder FILE)"),
        )
    table = np.asarray(traverse_util.flatten_dict(one.params(), sep="/")[TABLE])
    names = (one.space.classes[0], *phrases)
    found = _vectors(given, path, names, table.shape[1])
    if path is not None and np.linalg.norm(found[0] - table[0]) > CLOSE * np.linalg.norm(table[0]):
        raise UsageError(
            "this is not the text encoder that the model was trained with",
            path=path,
            found=f"another vector of {names[0]!r} than the model's own",
            fix="give the file of config.text.file",
        )
    made = dict(zip(names, found, strict=True))
    model = dataclasses.replace(
        one.config.model, options={**one.config.model.options, "free_text": True}
    )
    other = dataclasses.replace(one, config=dataclasses.replace(one.config, model=model))
    return other, lambda wanted: np.stack([made[text] for text in wanted])


def _vectors(given: Any, path: Path | None, names: Sequence[str], width: int) -> np.ndarray:
    if path is None:
        return texts.hashed(names, width).vectors
    said = [given.sentences.get(name, "") for name in names]
    filled = texts.filled(given.template, names)
    sentences = [own or other for own, other in zip(said, filled, strict=True)]
    pooled = given.pooled
    return by_encoder(path, names, sentences, pooled=pooled).vectors


def about(phrases: Sequence[str], one: Any) -> list[str]:
    """A sentence for every phrase, so that a misspelt class does not pass for a phrase."""
    classes, known = one.space.classes, one.config.text.source == "hash"
    doubt = f"; {texts.HASH_NOTE}" if known else ""
    return [
        f"text {shown(phrase)!r} is no class of the model ({did_you_mean(phrase, classes)}): "
        f"asked for as a phrase{doubt}"
        for phrase in phrases
    ]
