"""Fresh parameters of networks and of parts that read a context."""

from collections.abc import Callable
from typing import Any

from medjax.models import context


def fresh(module: Any) -> Callable[[Any, Any], dict[str, Any]]:
    """(key, image) -> variables of a module, initialised with a context of zeros."""
    return lambda key, image: {"params": context.initialise(module, key, image)}
