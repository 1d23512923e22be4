"""Sections of a config as frozen values: their fields with type, default and meaning.

In: plain values. Out: sections, and plain values again. The sections themselves are in
`runs/settings/schema.py`.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

from medjax.errors import UsageError
from medjax.registry import plain

S = TypeVar("S", bound="Section")


class Setting(NamedTuple):
    """One field: name, type (an annotation), default (`REQUIRED` without one), meaning, listed."""

    name: str
    type: Any
    default: Any
    meaning: str
    listed: bool = True


REQUIRED = dataclasses.MISSING


def setting(default: Any, meaning: str, *, listed: bool = True) -> Any:
    """A field of a section; `default` may be a function that makes it."""
    kind = {"default_factory" if callable(default) else "default": default}
    if default is REQUIRED:
        kind = {}
    return dataclasses.field(**kind, metadata={"meaning": meaning, "listed": listed})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Fields of a config that stand together.

    Attributes:
      options: further fields, which the object that the section names takes (a network, a loss, an
        augmentation, a task), if `OPEN`.
      given: names of the fields that were given, in their order.
    """

    OPEN: ClassVar[bool] = False

    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    given: tuple[str, ...] = dataclasses.field(default=(), repr=False, compare=False)

    @classmethod
    def from_fields(cls: type[S], fields: Any, where: str = "config") -> S:
        """The section from plain values; None has the defaults.

        Missing fields have their defaults, fields that are unknown are left out unless `OPEN`.

        Args:
          where: the path of the section, for messages.

        Raises: `UsageError` for what is no section, and for a missing field without a default.
        """
        fields = {} if fields is None else fields
        if not isinstance(fields, Mapping):
            raise UsageError(f"unusable {where}", found=repr(fields)[:80], expected="a section")
        known = fields_of(cls)
        values = {
            k: typed(known[k].type, v, f"{where}.{k}") for k, v in fields.items() if k in known
        }
        for one in known.values():
            if one.default is REQUIRED and one.name not in values:
                raise UsageError(f"{where} needs {one.name}", fix=one.meaning)
        if cls.OPEN:
            values["options"] = {k: plain(v) for k, v in fields.items() if k not in known}
        return cls(**values, given=tuple(map(str, fields)))

    def to_json(self) -> dict[str, Any]:
        """The section as plain values, in the order they were given.

        Fields that are not listed appear only if they were given, or have another value than the
        default.
        """
        return self._plain_values(lambda one: one.listed, Section.to_json)

    def as_given(self) -> dict[str, Any]:
        """The section as plain values, without the defaults that nobody gave.

        For documents: a config that is read and written again stays the same, also one of an
        earlier version that lacks fields.
        """
        return self._plain_values(lambda one: False, Section.as_given)

    def _plain_values(
        self, always: Callable[[Setting], bool], inner: Callable[[Any], dict]
    ) -> dict[str, Any]:
        found = {}
        for one in fields_of(type(self)).values():
            value = getattr(self, one.name)
            if always(one) or one.name in self.given or value != one.default:
                found[one.name] = _plain(value, inner)
        found |= {name: _plain(value, inner) for name, value in self.options.items()}
        return {k: found[k] for k in (*self.given, *found) if k in found}


@functools.cache
def fields_of(section: type) -> dict[str, Setting]:
    """Name -> field, of a section's own fields in their order."""
    types = typing.get_type_hints(section)
    return {
        f.name: Setting(
            f.name,
            types[f.name],
            f.default_factory() if callable(f.default_factory) else f.default,
            f.metadata["meaning"],
            f.metadata["listed"],
        )
        for f in dataclasses.fields(section)
        if f.metadata
    }


def is_section(kind: Any) -> bool:
    """Whether a type is a section."""
    return isinstance(kind, type) and issubclass(kind, Section)


def unknown(kind: Any, fields: Any, where: str = "") -> Iterator[str]:
    """Paths of the given fields that no section below `kind` has."""
    if not isinstance(fields, Mapping):
        return
    if is_section(kind):
        known = fields_of(kind)
        for name, value in fields.items():
            path = f"{where}.{name}".lstrip(".")
            if name in known:
                yield from unknown(known[name].type, value, path)
            elif not kind.OPEN:
                yield path
    elif len(inner := typing.get_args(kind)) == 2:
        for name, value in fields.items():
            yield from unknown(inner[1], value, f"{where}.{name}")


def typed(kind: Any, value: Any, where: str) -> Any:
    """A plain value as a field of this type holds it: sections become sections, lists tuples, and
    a whole number that is written as 5.0 an integer where one is needed.
    """
    if is_section(kind):
        return kind.from_fields(value, where)
    inner = typing.get_args(kind) if typing.get_origin(kind) is Mapping else ()
    if inner and value is None:
        return {}
    if inner and isinstance(value, Mapping):
        return {str(k): typed(inner[1], v, f"{where}.{k}") for k, v in value.items()}
    if inner:
        raise UsageError(f"unusable {where}", found=repr(value)[:80], expected="fields by name")
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return plain(value)


def _plain(value: Any, inner: Callable[[Section], dict]) -> Any:
    if isinstance(value, Section):
        return inner(value)
    if isinstance(value, Mapping):
        return {k: _plain(v, inner) for k, v in value.items()}
    return value


def section(cls: type) -> Any:
    """Decorator of a section: a frozen dataclass whose fields are given by name."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)
