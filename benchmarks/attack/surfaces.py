"""All rows, by surface: importing a module registers its rows."""

import importlib

from benchmarks.attack.harness import ROWS

MODULES = (
    "data_loss",
    "security_names",
    "readers",
    "archives",
    "stores",
    "process",
    "signals",
    "inputs",
    "descriptions",
    "api",
)


def load() -> dict:
    """Registers every row; returns id -> row in the order of the surfaces."""
    for name in MODULES:
        importlib.import_module(f"benchmarks.attack.{name}")
    return ROWS
