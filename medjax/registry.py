"""The registry: a name in a config becomes `medjax.<package>.<name>.make(**arguments)`.

The module path is the registry. Config objects stop here: `plain` turns them into dictionaries,
tuples and numbers; all other code takes plain arguments.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from medjax.errors import UsageError, did_you_mean, shown

PACKAGES = ("models", "losses", "tasks")


def known(package: str) -> list[str]:
    """Names of the modules of a package that offer `make`.

    All modules are imported: only called for error messages and tests.
    """
    path = importlib.import_module(f"medjax.{package}").__path__
    names = [m.name for m in pkgutil.iter_modules(path) if not m.ispkg]
    return [
        name
        for name in names
        if hasattr(importlib.import_module(f"medjax.{package}.{name}"), "make")
    ]


def maker(package: str, name: Any) -> Callable[..., Any]:
    """`medjax.<package>.<name>.make`; `UsageError` with the known names if there is none."""
    if package not in PACKAGES:
        raise UsageError(f"unknown package {package!r}", fix=did_you_mean(package, PACKAGES))
    path = f"medjax.{package}.{name}"
    if not isinstance(name, str) or not name.isidentifier():
        text = shown(name)[:80]
        raise UsageError(f"no {package} called {text!r}", fix=did_you_mean(text, known(package)))
    try:
        return importlib.import_module(path).make
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != path:
            raise  # the module exists, something it needs does not
        raise UsageError(
            f"no {package} called {name!r}", fix=did_you_mean(name, known(package))
        ) from error


def build(package: str, name: Any, **arguments: Any) -> Any:
    """The result of `medjax.<package>.<name>.make(**arguments)`.

    Unknown names and arguments raise `UsageError` with the known ones.
    """
    make, path = maker(package, name), f"medjax.{package}.{name}"
    signature = inspect.signature(make)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for key in arguments:
        if key not in signature.parameters and not takes_any:
            raise UsageError(
                f"{path} takes no argument {key!r}", fix=did_you_mean(key, signature.parameters)
            )
    missing = [
        n
        for n, p in signature.parameters.items()
        if p.default is p.empty and p.kind is p.KEYWORD_ONLY and n not in arguments
    ]
    if missing:
        raise UsageError(
            f"{path} needs {missing}",
            fix=f"give them; all arguments: {', '.join(signature.parameters)}",
        )
    return make(**arguments)


def plain(value: Any) -> Any:
    """ConfigDicts, lists and references -> dict, tuple and scalars, recursively."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(v) for v in value)
    return value


def fill(settings: type, fields: Mapping, where: str) -> Any:
    """A frozen settings dataclass from a part of the config; unknown keys raise `UsageError`."""
    names = [f for f in settings.__dataclass_fields__]
    for key in fields:
        if key not in names:
            raise UsageError(f"{where} has no field {key!r}", fix=did_you_mean(key, names))
    return settings(**fields)
