"""Sections of a config as frozen values: their fields with type, default and meaning.

In: plain values. Out: sections, and plain values again. The sections themselves are in
`runs/settings/schema.py`.
"""

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

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
    def from_fields(cls: type[S], fields: Mapping[str, Any]) -> S:
        """The section from plain values.

        Missing fields have their defaults, fields that are unknown are left out unless `OPEN`.
        """
        known = fields_of(cls)
        values = {k: _typed(known[k].type, v) for k, v in fields.items() if k in known}
        if cls.OPEN:
            values["options"] = {k: plain(v) for k, v in fields.items() if k not in known}
        return cls(**values, given=tuple(map(str, fields)))

    def to_json(self) -> dict[str, Any]:
        """The section as plain values, in the order they were given.

        Fields that are not listed appear only if they were given, or have another value than the
        default.
        """
        found = {}
        for one in fields_of(type(self)).values():
            value = getattr(self, one.name)
            if one.listed or one.name in self.given or value != one.default:
                found[one.name] = _plain(value)
        found |= dict(self.options)
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


def _typed(kind: Any, value: Any) -> Any:
    if is_section(kind):
        return kind.from_fields(value)
    if isinstance(value, Mapping) and len(typing.get_args(kind)) == 2:
        return {k: _typed(typing.get_args(kind)[1], v) for k, v in value.items()}
    return plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.to_json()
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value


def section(cls: type) -> Any:
    """Decorator of a section: a frozen dataclass whose fields are given by name."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)
