"""The published schema of medjax.json and of the "medjax" block of a dataset.json, as data.

In: `assets/medjax.schema.json`, which editors can use as well (`"$schema"`). Out: the known keys,
and the check of the plain texts among them. What has a structure of its own (labels, regions,
patients, twins) is checked by the code that reads it, with messages of its own.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from medjax.errors import UsageError

FILE = Path(__file__).parent / "assets" / "medjax.schema.json"
PLAIN = ("select", "layout", "description", "absent", "license", "licence", "citation", "$schema")


@cache
def schema() -> dict[str, Any]:
    """The JSON schema."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def keys(block: bool = False) -> tuple[str, ...]:
    """The keys of medjax.json; of the `block` in a dataset.json."""
    return tuple((schema()["$defs"]["block"] if block else schema())["properties"])


def check(fields: Mapping[str, Any], path: object) -> None:
    """`UsageError` for a field of text that is none, or a word that is not known."""
    for key in PLAIN:
        if key not in fields:
            continue
        known = schema()["properties"][key]
        if "enum" in known and fields[key] not in known["enum"]:
            words = " or ".join(f'"{word}"' for word in known["enum"])
            raise UsageError(f'unusable "{key}"', path=path, found=fields[key], expected=words)
        if known.get("type") == "string" and not isinstance(fields[key], str):
            raise UsageError(
                f'"{key}" is not text', path=path, found=repr(fields[key])[:60], expected="text"
            )
