"""Validates the options of a predictor before anything is loaded.

In: names and values from the Python interface or the command. Out: nothing, or `UsageError`.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medjax.errors import UsageError, did_you_mean
from medjax.infer.conflicts import RULES
from medjax.runs.trained import load_predictor


def check(options: Mapping[str, Any]) -> None:
    """`UsageError` for a name that `load_predictor` does not have, or a value it cannot use."""
    known = [name for name in inspect.signature(load_predictor).parameters if name != "models"]
    for name, value in options.items():
        if name not in known:
            raise UsageError(f"unknown option {name!r}", fix=did_you_mean(name, known))
        will_do, expected = _KNOWN.get(name, (lambda v: True, ""))
        if not will_do(value):
            raise UsageError(f"unusable option {name}", found=repr(value)[:80], expected=expected)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float | np.integer | np.floating)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


_KNOWN = {  # option -> whether a value is valid, and a description of valid values
    "tta": (lambda v: v in ("", None, "none", "mirror"), '"none" or "mirror"'),
    "overlap": (
        lambda v: v is None or (_is_number(v) and 0 <= v < 1),
        "a number from 0 to below 1, or None",
    ),
    "window": (
        lambda v: (
            isinstance(v, Sequence | np.ndarray)
            and not isinstance(v, str)
            and all(map(_is_count, v))
        ),
        "2 or 3 whole numbers >= 1",
    ),
    "batch_windows": (lambda v: v is None or _is_count(v), "a whole number >= 1, or None"),
    "memory_gib": (lambda v: v is None or (_is_number(v) and v > 0), "a number > 0, or None"),
    "device": (lambda v: v is None or isinstance(v, str), '"cpu", "gpu", "gpu:1", ...'),
    "backend": (lambda v: v in ("", None, "auto", "host", "device"), '"auto", "host" or "device"'),
    "checkpoint": (lambda v: v is None or isinstance(v, str), '"last", "best" or a step'),
    "postprocess": (
        lambda v: v is None or isinstance(v, str),
        '"none", "chosen" or the path of a JSON file',
    ),
    "conflicts": (lambda v: v in ("", None, *RULES), '"ordered", "argmax" or "calibrated"'),
    "zoom": (lambda v: v in ("", None, "in", "out"), '"in" or "out"'),
    "uncertainty": (lambda v: isinstance(v, bool), "True or False"),
    "fast": (lambda v: isinstance(v, bool), "True or False"),
    "vectors": (lambda v: v is None or callable(v), "a function from texts to vectors, or None"),
    "every_task": (lambda v: isinstance(v, bool), "True or False"),
}
