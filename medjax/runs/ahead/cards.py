"""Cards that a step can be compiled for without having one, from `cards.json`.

An entry of the file holds `name`, `backend` (platform of jax), `memory_bytes`, `flops_per_s` and
`bytes_per_s` for the floor (`rates` says where these two come from), and `target`: the compiler's
description of the card, the fields of XLA's GpuTargetConfigProto (`{"word": X}` is an enum's name).
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medjax.errors import UsageError, did_you_mean

FILE = Path(__file__).with_name("cards.json")
PLUGINS = {"cuda": ("jax_plugins.xla_cuda13", "jax-cuda13-plugin")}  # module, distribution
FIX = 'pip install "medjax[aot]" (4.5 GB of wheels; no card and no driver is needed)'


@dataclasses.dataclass(frozen=True)
class Card:
    """One entry of `cards.json`; see the module."""

    name: str
    backend: str
    memory_bytes: int
    flops_per_s: float
    bytes_per_s: float
    rates: str
    target: Mapping[str, Any]

    def description(self) -> str:
        """`target` as a text proto."""
        return "\n".join(_lines(self.target))


@functools.cache
def known() -> dict[str, Card]:
    """All cards of the file, by the word that chooses them."""
    return {word: Card(**fields) for word, fields in json.loads(FILE.read_text()).items()}


def parse(target: str) -> tuple[Card, int]:
    """(card, how many) of "h200" or "h200x8".

    Raises: `UsageError` for another card, or a number below 1.
    """
    word, count = target.lower(), 1
    if word not in known() and (found := re.fullmatch(r"(.+)x(\d+)", word)):
        word, count = found[1], int(found[2])
    if word not in known() or count < 1:
        raise UsageError(
            f"unknown --target {target!r}",
            expected=f"{' or '.join(known())}, or several as in {next(iter(known()))}x8",
            fix=did_you_mean(word, known()),
        )
    return known()[word], count


def check(card: Card) -> None:
    """Raises `UsageError` unless the compiler for the card is installed in jaxlib's version."""
    module, name = PLUGINS[card.backend]
    if not _installed(module):
        raise UsageError(f"the compiler for {card.name} is not installed", fix=FIX)
    versions = [importlib.metadata.version(one) for one in (name, "jaxlib")]
    if versions[0] != versions[1]:
        raise UsageError(
            f"{name} and jaxlib have different versions, and only the same ones work together",
            found=f"{name} {versions[0]}, jaxlib {versions[1]}",
            fix=f"pip install {name}=={versions[1]}",
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that would hold it
        return False


def _lines(fields: Mapping[str, Any]) -> Iterator[str]:
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping) and set(one) != {"word"}:
                yield f"{name} {{"
                yield from _lines(one)
                yield "}"
            else:
                yield f"{name}: {one['word'] if isinstance(one, Mapping) else json.dumps(one)}"
