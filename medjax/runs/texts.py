"""Fills the table of text vectors of a network from what the config says.

In: `config.text`, the names of the rows, fresh parameters. Out: parameters whose leaf `text/table`
holds a vector per row. The table is a parameter like any other; whether it is trained is decided by
the rules of the optimizer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from medjax.errors import UsageError, did_you_mean, shown
from medjax.prompts import texts
from medjax.runs.settings.schema import Config

TABLE = "text/table"
SOURCES = ("file", "hash", "learned")
KIND = "clip-projected"  # of the vectors that a network with a text table is made for


def filler(
    config: Config, names: Sequence[str], say: Callable[[str], None] = print
) -> Callable[[Any], Any]:
    """fresh parameters -> the same with `text/table` filled; others pass unchanged.

    Args:
      names: of the rows of the table, in order.

    Raises: `UsageError` now for an unknown source, and from the function for a table that nothing
      fills, a name without a sentence or vector, vectors of another width or kind.
    """
    given = config.text
    if given.source and given.source not in SOURCES:
        raise UsageError(
            f"unknown config.text.source {given.source!r}", fix=did_you_mean(given.source, SOURCES)
        )

    def fill(params: Any) -> Any:
        leaves = traverse_util.flatten_dict(params, sep="/")
        if TABLE not in leaves or given.source == "learned":
            return params
        rows = vectors(config, names)
        if rows.shape != leaves[TABLE].shape:
            raise UsageError(
                "text vectors of another width",
                path=given.file or None,
                found=rows.shape,
                expected=tuple(leaves[TABLE].shape),
            )
        if given.source == "hash":
            say(texts.WARNING)
        return traverse_util.unflatten_dict(leaves | {TABLE: rows}, sep="/")

    return fill


def vectors(config: Config, names: Sequence[str]) -> np.ndarray:
    """(rows, width) float32 by the config's source; see `filler` for the errors."""
    given = config.text
    if not given.source:
        raise UsageError(
            "this network reads texts, and config.text says nothing about their vectors",
            expected=f"config.text.source: {', '.join(SOURCES)}",
            fix="give --config.text.source=file --config.text.file=NAME.text.npz, or hash",
        )
    if given.source == "file":
        found = texts.read(given.file)
        if found.kind not in (KIND, "hash", "learned"):
            raise UsageError(
                "these text vectors are not of the kind that the network reads",
                path=given.file,
                found=found.kind,
                expected=KIND,
                fix="write them with `medjax text --projected`",
            )
        return found.rows(names, given.file)
    missing = [name for name in names if name not in given.sentences]
    if missing:
        raise UsageError(
            f"config.text.sentences has no sentence for the task {shown(missing[0])!r}",
            expected=", ".join(given.sentences) or None,
            fix="add it, or name the task as there: config.data.tasks",
        )
    return texts.hashed({name: given.sentences[name] for name in names}).vectors
