"""Parameters of a test that run with the slow tests only."""

from typing import Any

import pytest


def slow(*values: Any, id: str | None = None) -> Any:
    """`pytest.param(*values)` with the mark `slow`."""
    return pytest.param(*values, marks=pytest.mark.slow, id=id)
