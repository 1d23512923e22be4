"""Options of a predictor: what will do, and what is said about the rest."""

import inspect

import numpy as np
import pytest

from medjax.errors import UsageError
from medjax.runs import options
from medjax.runs.trained import load_predictor


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("tta", ["", None, "none", "mirror"], ["flip", True, 1]),
        ("overlap", [None, 0, 0.5, np.float32(0.9)], [1.0, -0.1, "0.5", True, float("nan")]),
        ("window", [(), (8, 8), [8, 8, 8], np.array([8, 8])], ["888", (8, 0), (8.0, 8), 8]),
        ("batch_windows", [None, 1, np.int64(4)], [0, 1.0, True, "2"]),
        ("memory_gib", [None, 0.5, 8], [0, -1, "8", float("inf")]),
        ("device", [None, "", "gpu:1"], [1]),
        ("checkpoint", [None, "", "best", "100"], [100]),
        ("postprocess", [None, "none", "rules.json"], [True, {}]),
        ("uncertainty", [True, False], [1, None, "yes"]),
        ("fast", [True, False], [0, None]),
    ],
)
def test_values(name, good, bad):
    for value in good:
        assert options.check({name: value}) is None
    for value in bad:
        with pytest.raises(UsageError, match=f"unusable option {name}; found") as caught:
            options.check({name: value})
        assert caught.value.expected


def test_every_option_of_the_loader_is_checked():
    known = set(inspect.signature(load_predictor).parameters) - {"models"}
    for name in known:
        with pytest.raises(UsageError, match=f"unusable option {name}"):
            options.check({name: object()})


def test_defaults_of_the_loader_will_do():
    parameters = inspect.signature(load_predictor).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.name != "models"}
    refused = []
    for name, value in defaults.items():
        try:
            options.check({name: value})
        except UsageError as error:
            refused.append(str(error))
    assert refused == [] and len(defaults) > 5


@pytest.mark.parametrize("name", ["overlp", "models"])
def test_unknown_options_are_refused_with_the_known_ones(name):
    with pytest.raises(UsageError, match=f"unknown option '{name}'.*overlap"):
        options.check({name: 0.5})
