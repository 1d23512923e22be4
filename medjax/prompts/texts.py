"""Vectors of texts: files of them, and vectors without a text encoder.

In: names and texts. Out: `Vectors`, one row per name, and files `NAME.text.npz`. A network holds a
table of such rows and no text encoder; `medjax text` makes them, `medjax.runs.prompted.texts` puts
them into a network. Nothing in a file can be executed.
"""

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax.errors import ModelError, UsageError, did_you_mean
from medjax.files import write_bytes
from medjax.prompts import bpe
from medjax.scans import zipped

SUFFIX = ".text.npz"
KINDS = ("clip-pooled", "clip-projected", "hash", "learned")
WIDTH = 512  # of CLIP's vectors
NORM = 9.0  # those of CLIP's texts are 8.1 to 9.6
TEMPLATE = "A computerized tomography of a {}."  # SegVol's, for every modality
HASH_NOTE = "text vectors are hashes of word pieces: they tell names apart, they know no anatomy"


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """Rows of texts.

    Attributes:
      names: what the rows are called. texts: what was encoded.
      vectors: (n, width) float32.
      facts: "kind", one of `KINDS`, and for CLIP the template and the encoder's sha256.

    Raises: `UsageError` for repeated names, other kinds, and numbers of rows that differ.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    vectors: np.ndarray
    facts: Mapping[str, Any]

    def __post_init__(self):
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise UsageError("a name of a text comes twice", found=twice[0], fix="leave out one")
        if self.facts.get("kind") not in KINDS:
            raise UsageError(
                "unknown kind of text vectors",
                found=self.facts.get("kind"),
                fix=did_you_mean(str(self.facts.get("kind")), KINDS),
            )
        if not len(self.names) == len(self.texts) == len(self.vectors) or self.vectors.ndim != 2:
            raise UsageError(
                "names, texts and vectors do not fit",
                found=f"{len(self.names)}, {len(self.texts)}, {self.vectors.shape}",
            )

    def rows(self, names: Sequence[str], path: Path | None = None) -> np.ndarray:
        """The vectors of these names, in their order, (n, width).

        Raises: `UsageError` with the nearest names for one that has no row.
        """
        for name in names:
            if name not in self.names:
                raise UsageError(
                    f"no text vector for {name!r}",
                    path=path,
                    found=", ".join(self.names[:12]),
                    fix=did_you_mean(name, self.names),
                )
        return self.vectors[[self.names.index(name) for name in names]]


def filled(template: str, names: Sequence[str]) -> tuple[str, ...]:
    """Texts: the template with every name in the place of "{}"; without a template, the names.

    Underscores stay, as in SegVol's training.

    Raises: `UsageError` for a template without exactly one place.
    """
    if not template:
        return tuple(names)
    if template.count("{}") != 1:
        raise UsageError(
            "a template needs exactly one place for the name",
            found=template,
            expected='one "{}"',
        )
    return tuple(template.replace("{}", name) for name in names)


def hashed(
    names: Sequence[str], width: int = WIDTH, sentences: Sequence[str] | None = None
) -> Vectors:
    """Vectors that depend on word pieces alone: equal pieces make vectors alike.

    Args:
      sentences: of the names, whose pieces count in place of those of the names.

    The sum of one fixed normal vector per piece, scaled to `NORM`; a template would only make all
    of them alike, so names are taken as they are. `HASH_NOTE` says what they are good for.

    Raises: `UsageError` for a name without letters, digits or signs.
    """
    rows, said = [], [name.replace("_", " ") for name in names] if sentences is None else sentences
    for text in said:
        own = [piece for word in bpe.words(text) for piece in bpe.pieces(word)]
        if not own:
            raise UsageError("a name without any letter has no vector", found=repr(text))
        total = np.sum([_of_piece(piece, width) for piece in own], 0)
        rows.append(NORM * total / np.linalg.norm(total))
    vectors = np.asarray(rows, np.float32).reshape(len(names), width)
    given = names if sentences is None else sentences
    return Vectors(tuple(names), tuple(given), vectors, {"kind": "hash"})


@functools.lru_cache(maxsize=4096)
def _of_piece(piece: str, width: int) -> np.ndarray:
    digest = hashlib.sha256(piece.encode()).digest()
    seed = np.frombuffer(digest, np.uint32).tolist()
    return np.random.Generator(np.random.PCG64(seed)).normal(size=width)


def write(path: Path, vectors: Vectors) -> None:
    """Writes `NAME.text.npz`.

    Raises: `UsageError` for another name.
    """
    if not path.name.endswith(SUFFIX):
        raise UsageError("unusable name", path=path, expected=f"a name that ends in {SUFFIX}")
    buffer = io.BytesIO()
    np.savez(
        buffer,
        names=_encoded(vectors.names),
        texts=_encoded(vectors.texts),
        vectors=np.asarray(vectors.vectors, np.float32),
        facts=_encoded([json.dumps(dict(vectors.facts), sort_keys=True)]),
    )
    write_bytes(path, buffer.getvalue())


def read(path: Path) -> Vectors:
    """Reads `NAME.text.npz`.

    Raises: `ModelError` for a missing or damaged file, and for one without the arrays of `write`.
    """
    if not path.is_file():
        raise ModelError("no such file of text vectors", path=path, fix="make it: medjax text")
    found = zipped.read_npz(path, error=ModelError, strings=True)
    try:
        names, texts = (_decoded(found[name]) for name in ("names", "texts"))
        facts = json.loads(_decoded(found["facts"])[0])
        vectors = np.asarray(found["vectors"], np.float32)
        if not np.isfinite(vectors).all():
            raise ValueError("vectors that are not finite")
        return Vectors(names, texts, vectors, facts)
    except (KeyError, ValueError, IndexError, AttributeError, UsageError) as error:
        raise ModelError(
            "not a file of text vectors",
            path=path,
            found=f"{type(error).__name__}: {error}"[:200],
            fix="make it again: medjax text",
        ) from error


def _encoded(texts: Sequence[str]) -> np.ndarray:
    return np.array([text.encode() for text in texts], np.bytes_)


def _decoded(array: np.ndarray) -> tuple[str, ...]:
    return tuple(text.decode() for text in array.tolist())
