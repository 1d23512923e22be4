"""Text of a flag -> a value of the type that a field has, and whether a value has that type.

In: annotations (`int`, `float | None`, `Sequence[Sequence[int]]`, `Mapping[str, str]`, ...). Out:
values, or `ValueError` with what is expected in words.
"""

import ast
import inspect
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

TRUE, FALSE = ("true", "t", "1", "yes"), ("false", "f", "0", "no")
WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    types.NoneType: "None",
}
LARGEST_WHOLE = 2**63


def parse(text: str, kind: Any) -> Any:
    """The value that a text stands for.

    Lists are written `1,2`, `(1,2)`, `a,b` or `("a","b")`; an empty text is an empty list.

    >>> parse("1,2", tuple[int, ...]), parse("none", int | None), parse("2", float | None)
    ((1, 2), None, 2.0)

    Raises: `ValueError` whose text says what is expected.
    """
    for candidate in _narrowest_first(kind):
        try:
            return _parse(text, candidate)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise ValueError(describe(kind))


def fits(value: Any, kind: Any) -> bool:
    """Whether a value of a config has a type; numbers, lists and None are taken generously."""
    if value is None:
        return True
    return any(_fits(value, candidate) for candidate in options(kind))


def options(kind: Any) -> tuple:
    """The types that a union consists of; (kind,) for anything else."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return tuple(one for part in typing.get_args(kind) for one in options(part))
    return (kind,)


def takes_mapping(kind: Any) -> bool:
    """Whether a value with fields of its own has this type."""
    return any(one is Any or _origin(one) is Mapping for one in options(kind))


def is_writable(kind: Any) -> bool:
    """Whether a config can hold a value of this type; functions and modules cannot be written."""
    return any(
        one is Any or (one in WORDS and one is not types.NoneType) or _origin(one) is not None
        for one in options(kind)
    )


def describe(kind: Any) -> str:
    """A type in words.

    >>> describe(tuple[int, ...] | None)
    'a list of whole numbers like 1,2, or None'
    """
    words = dict.fromkeys(
        _describe(one) for one in options(kind) if not (one is int and float in options(kind))
    )
    return ", or ".join(words)


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    if _origin(kind) is Mapping:
        return 'fields like {"name": value}'
    if _origin(kind) is Sequence:
        item = _item(kind)
        if _origin(item) is Sequence:
            inner = "1,2,2" if _numeric(_item(item)) else '"a","b"'
            return f"a list of lists like ({inner}),({inner})"
        if _numeric(item):
            return (
                "a list of whole numbers like 1,2" if item is int else "a list of numbers like 1,2"
            )
        return "a list like a,b"
    return WORDS.get(kind, "a value")


def _numeric(kind: Any) -> bool:
    return set(options(kind)) <= {int, float}


def _origin(kind: Any) -> Any:
    """Mapping, Sequence or None."""
    origin = typing.get_origin(kind) or kind
    if origin in (typing.Callable, typing.Literal) or not inspect.isclass(origin):
        return None
    if issubclass(origin, Mapping):
        return Mapping
    if issubclass(origin, Sequence) and origin not in (str, bytes):
        return Sequence
    return None


def _item(kind: Any) -> Any:
    """The type of the items of a list; of (str, Any) pairs the union."""
    items = [one for one in typing.get_args(kind) if one is not ...]
    return items[0] if len(set(items)) == 1 else Any


def _narrowest_first(kind: Any) -> list:
    order = (types.NoneType, bool, int, float, Sequence, Mapping, Any, str)
    found = options(kind)
    return sorted(
        found, key=lambda one: order.index(o) if (o := _origin(one) or one) in order else 9
    )


def _parse(text: str, kind: Any) -> Any:
    if kind is types.NoneType:
        if text.lower() != "none":
            raise ValueError
        return None
    if kind is bool:
        if (low := text.lower()) not in (*TRUE, *FALSE):
            raise ValueError
        return low in TRUE
    if kind is int:
        return int(text, 0) if text[:2].lower() == "0x" else int(text)
    if kind is float:
        if not math.isfinite(value := float(text)):
            raise ValueError
        return value
    if kind is str:
        return text
    if kind is Any:
        return _literal(text)
    if typing.get_origin(kind) is typing.Literal:
        words = {str(one): one for one in typing.get_args(kind)}
        if text not in words:
            raise ValueError
        return words[text]
    if _origin(kind) is Sequence:
        return _parse_list(text, kind)
    if _origin(kind) is Mapping:
        value = ast.literal_eval(text)
        if not isinstance(value, Mapping) or not fits(value, kind):
            raise ValueError
        return value
    raise ValueError


def _literal(text: str) -> Any:
    """A number, list, ... in Python's notation, otherwise the text itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return _tuples(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text


def _parse_list(text: str, kind: Any) -> tuple:
    if not text.strip():
        return ()
    item = _item(kind)
    try:
        value = _tuples(ast.literal_eval(text.strip()))
    except (ValueError, SyntaxError):
        value = None
    for candidate in (value, (value,)):
        if isinstance(candidate, tuple) and value is not None and _fits(candidate, kind):
            return candidate
    if _origin(item) is not None:
        raise ValueError
    inner = text.strip()
    if inner[0] + inner[-1] in ("()", "[]"):
        inner = inner[1:-1]
    parts = [part.strip() for part in inner.split(",")]
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
    return tuple(parse(part, item) for part in parts)


def _tuples(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_tuples(one) for one in value)
    return value


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if kind is bool:
        return value in (0, 1) and not isinstance(value, str)
    if kind in (int, float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (kind is float or float(value).is_integer())
    if kind is str:
        return isinstance(value, str)
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if _origin(kind) is Sequence:
        if not isinstance(value, list | tuple):
            return False
        items = typing.get_args(kind)
        if items and ... not in items and len(items) > 1:
            return len(items) == len(value) and all(map(fits, value, items))
        return all(fits(one, _item(kind) if items else Any) for one in value)
    if _origin(kind) is Mapping:
        items = typing.get_args(kind)
        return isinstance(value, Mapping) and (
            len(items) < 2 or all(fits(one, items[1]) for one in value.values())
        )
    return not isinstance(value, str | int | float | Sequence)
