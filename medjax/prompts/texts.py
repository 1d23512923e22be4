"""Vectors of texts: a file of them, and a source that needs no network.

A file `NAME.text.npz` holds `names` (n,), `texts` (n,), `vectors` (n, width) float32 and `facts`,
JSON: {"kind": "clip-pooled" | "clip-projected" | "hash" | "learned", ...}. Nothing is pickled.

`hashed` tells texts apart and knows no anatomy: every word is a fixed random vector, a text is the
sum of its words, scaled to the length of CLIP's vectors.
"""

import dataclasses
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax import files
from medjax.errors import UsageError, did_you_mean, shown

KINDS = ("clip-pooled", "clip-projected", "hash", "learned")
LENGTH = 9.0  # CLIP's vectors are 8.1 to 9.6 long
WARNING = (
    "text vectors are hashes of words: they tell texts apart, they know nothing of their meaning"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    """Texts with their vectors.

    Attributes:
      names: what each stands for, such as a task or a class. texts: the sentences.
      vectors: (n, width) float32. facts: "kind" of the vectors, and what else is known of them.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    vectors: np.ndarray
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """A word of `KINDS`."""
        return str(self.facts.get("kind", ""))

    def rows(self, names: Sequence[str], where: object = None) -> np.ndarray:
        """(len(names), width) float32, the vectors of some names in their order.

        Raises: `UsageError` for a name without a vector; `where` is the file to name.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            raise UsageError(
                f"no text vector for {shown(missing[0])!r}",
                path=where,
                expected=", ".join(map(shown, self.names)),
                fix=did_you_mean(missing[0], self.names) or "add its sentence to the file",
            )
        return self.vectors[[self.names.index(name) for name in names]]


def hashed(texts: Mapping[str, str], width: int = 512) -> Texts:
    """Name -> text as deterministic vectors; equal on every machine and in every version of numpy.

    A word (lower-case letters and digits) is `width` numbers whose distribution is nearly normal:
    sums of bytes of SHA-256, scaled to mean 0 and deviation 1.
    """
    rows = [
        sum((_word(w, width) for w in _words(text)), np.zeros(width)) for text in texts.values()
    ]
    vectors = np.array(rows).reshape(len(rows), width)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled = LENGTH * vectors / np.maximum(norms, 1e-12)
    facts = {"kind": "hash"}
    return Texts(tuple(texts), tuple(texts.values()), scaled.astype(np.float32), facts)


def read(path: str | Path) -> Texts:
    """The texts of a file.

    Raises: `UsageError` for a file that is missing or holds something else.
    """
    path, fix = Path(path).expanduser(), "write it with `medjax text`"
    if not path.is_file():
        raise UsageError("no such file of text vectors", path=path, fix=fix)
    try:
        with np.load(path, allow_pickle=False) as file:
            found = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"cannot be read ({error})", path=path, fix=fix) from error
    try:
        names, texts = (tuple(map(str, found[key].tolist())) for key in ("names", "texts"))
        vectors, facts = np.asarray(found["vectors"], np.float32), json.loads(str(found["facts"]))
        kind = facts["kind"]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            "no file of text vectors",
            path=path,
            found=", ".join(sorted(found)),
            expected="names, texts, vectors, facts",
            fix=fix,
        ) from error
    if kind not in KINDS or len(set(names)) != len(names):
        raise UsageError(
            "unusable text vectors",
            path=path,
            found=f"kind {shown(kind)}, names {', '.join(map(shown, names))}",
            expected=f"one of {', '.join(KINDS)}, and every name once",
            fix=fix,
        )
    if vectors.shape[:1] != (len(names),) or vectors.ndim != 2 or len(texts) != len(names):
        raise UsageError(
            "names and vectors of a file do not fit together",
            path=path,
            found=f"{len(names)} names, {len(texts)} texts, vectors {vectors.shape}",
            fix=fix,
        )
    if not np.isfinite(vectors).all():
        raise UsageError("text vectors with numbers that are not finite", path=path, fix=fix)
    return Texts(names, texts, vectors, facts)


def write(path: str | Path, given: Texts) -> None:
    """Writes a file of text vectors atomically."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        names=np.array(given.names, np.str_),
        texts=np.array(given.texts, np.str_),
        vectors=np.asarray(given.vectors, np.float32),
        facts=np.array(json.dumps(dict(given.facts), sort_keys=True)),
    )
    files.write_bytes(Path(path), buffer.getvalue())


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _word(word: str, width: int) -> np.ndarray:
    """`width` numbers of mean 0 and deviation 1: each the sum of eight bytes of a hash."""
    blocks = -(-width // 4)  # 32 bytes are four numbers
    data = b"".join(hashlib.sha256(f"{word}\0{k}".encode()).digest() for k in range(blocks))
    sums = np.frombuffer(data, np.uint8).reshape(-1, 8)[:width].sum(1, dtype=np.float64)
    return (sums - 8 * 127.5) / (8 * (256**2 - 1) / 12) ** 0.5
