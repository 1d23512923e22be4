"""CLIP's tokenizer: text to the numbers of word pieces, by byte-pair encoding.

In: text. Out: numbers below 49,408, between a start and an end token. The vocabulary follows from
the merges in `assets/clip_merges.txt.gz` (LICENSES.txt is beside it): 256 bytes, the same at the
end of a word, one piece per merge, start and end. Sources: Sennrich et al. (arXiv 1508.07909); CLIP
(arXiv 2103.00020).
"""

import functools
import gzip
import html
import itertools
from collections.abc import Sequence
from importlib import resources

import numpy as np
import regex

from medjax.errors import UsageError

START, END = 49_406, 49_407
LENGTH = 77  # of CLIP's position table
WORD_END = "</w>"
# contractions, runs of letters, single digits, runs of anything else but spaces
WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE)


def tokens(text: str) -> list[int]:
    """Numbers of a text's pieces between `START` and `END`; its case does not matter."""
    ranks = _numbers()
    return [START, *(ranks[piece] for word in words(text) for piece in pieces(word)), END]


def padded(texts: Sequence[str], length: int = LENGTH) -> np.ndarray:
    """Tokens of texts, (n, length) int32, filled up with `END`.

    Raises: `UsageError` for a text with more tokens than `length`.
    """
    found = np.full((len(texts), length), END, np.int32)
    for row, text in zip(found, texts, strict=True):
        own = tokens(text)
        if len(own) > length:
            raise UsageError(
                f"the text {text[:40]!r} is too long for the text encoder",
                found=f"{len(own)} tokens",
                expected=f"at most {length}",
                fix="shorten it",
            )
        row[: len(own)] = own
    return found


def words(text: str) -> list[str]:
    """The words of a text in lower case, punctuation apart."""
    clean = " ".join(html.unescape(html.unescape(text)).split()).lower()
    return WORDS.findall(clean)


@functools.lru_cache(maxsize=4096)
def pieces(word: str) -> tuple[str, ...]:
    """The pieces of one word, in the alphabet of `byte_letters`; the last ends in "</w>"."""
    letters = [byte_letters()[byte] for byte in word.encode()]
    letters[-1] += WORD_END
    ranks = _merges()
    while len(letters) > 1:
        pairs = list(itertools.pairwise(letters))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        joined, i = [], 0
        while i < len(letters):
            if i < len(pairs) and pairs[i] == best:
                joined.append(letters[i] + letters[i + 1])
                i += 2
            else:
                joined.append(letters[i])
                i += 1
        letters = joined
    return tuple(letters)


@functools.cache
def byte_letters() -> dict[int, str]:
    """A printable letter for every byte: itself, or one beyond 255 for spaces and controls."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    own += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {b: chr(256 + i) for i, b in enumerate(others)}


@functools.cache
def _merges() -> dict[tuple[str, str], int]:
    """Pair of pieces -> rank; the lowest is joined first."""
    asset = resources.files("medjax.prompts") / "assets" / "clip_merges.txt.gz"
    lines = gzip.decompress(asset.read_bytes()).decode().splitlines()
    pairs = (tuple(line.split(" ")) for line in lines)
    return {(left, right): rank for rank, (left, right) in enumerate(pairs)}


@functools.cache
def _numbers() -> dict[str, int]:
    """Piece -> number."""
    letters = list(byte_letters().values())
    names = letters + [letter + WORD_END for letter in letters]
    names += [left + right for left, right in _merges()]
    return {name: number for number, name in enumerate(names)}
