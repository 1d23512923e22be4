"""Typed configs for tests that write down plain values.

typed({"train": {"batch": 4}}).train.batch -> 4; all other fields have their defaults.
"""

from collections.abc import Mapping
from typing import Any

from medjax.runs.settings import schema


def typed(fields: Mapping[str, Any] | schema.Config = ()) -> schema.Config:
    """The config with these values, as a run resolves it."""
    return schema.resolve(dict(fields) if not isinstance(fields, schema.Config) else fields)
