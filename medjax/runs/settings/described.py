"""The fields of a config with their values and meanings, as text for `--help`.

In: a config as plain values. Out: one line per field, `--config.train.steps=500  number of
updates`; the fields that a network, a loss, an augmentation or a task takes follow those of its
section.
"""

import importlib
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from medjax.registry import known
from medjax.runs.settings import accepted, schema, values
from medjax.runs.settings.accepted import FROM_DATA, Place
from medjax.runs.settings.section import REQUIRED, Section, Setting, fields_of, is_section

WIDTH, LEFT, LONGEST = 100, 46, 60
HEAD = """The fields of {config}. Each is a flag; the values are those of the config, or defaults.
Lists are written 1,2 or (1,2) or a,b. --config.model=NAME, --config.augment=KIND and
--config.losses=NAME,NAME replace a section by the defaults of what they name.
"""


def text(fields: Mapping[str, Any], config: str) -> str:
    """Every field that a config accepts, a line each, with value and meaning.

    Args:
      config: what the user named, for the heading.
    """
    lines = [HEAD.format(config=config)]
    single, sections = [], []
    for one in fields_of(schema.Config).values():
        value = fields.get(one.name, one.default)
        if is_section(one.type) or values.takes_mapping(one.type):
            sections += ["", f"{one.name}: {one.meaning}"]
            sections += _lines(Place(one.name, one.type, _name(one.name, fields)), value)
        else:
            single += _line(one.name, value, one.meaning)
    return "\n".join([*lines, *single, *sections])


def _name(section: str, fields: Mapping) -> str:
    return str(fields.get("task", "")) if section == "task_options" else section


def _lines(place: Place, value: Any, meaning: str = "") -> Iterator[str]:
    """The lines of a section, or of a mapping from names."""
    if isinstance(value, Section):
        value = value.to_json()
    if place.type is schema.Socket and not isinstance(value, Mapping):
        kinds = ", ".join(importlib.import_module("medjax.models.parts.sockets").KINDS[place.name])
        yield from _line(place.path, value, f"{meaning} [{kinds}]")
        return
    if not is_section(place.type):
        yield from _named(place, value or {})
        return
    accepts, first = accepted.members(place, value), {}
    hidden = FROM_DATA if place.type is schema.Model else ()
    for name, one in accepts.items():
        path = f"{place.path}.{name}"
        if is_section(one.type) or _entries(one):
            inner = Place(path, one.type, name)
            yield from _lines(inner, value.get(name, one.default), one.meaning)
        elif name in value or (name not in hidden and values.is_writable(one.type)):
            same = first.setdefault(one.meaning, name)  # several names may share a text
            meaning = one.meaning if same == name else f"see {same}"
            yield from _line(path, value.get(name, one.default), meaning)


def _entries(one: Setting) -> bool:
    """Whether a field maps names to values or sections."""
    return all(values.takes_mapping(kind) and kind is not Any for kind in values.options(one.type))


def _named(place: Place, value: Mapping) -> Iterator[str]:
    """The lines of a mapping: its entries, and how an entry is added."""
    inner = accepted.find({}, [*place.path.split("."), "NAME"]) if place.path != "losses" else None
    if place.path == "losses":
        for name, held in value.items():
            yield from _lines(Place(f"losses.{name}", schema.Loss, name), held)
        if others := [name for name in known("losses") if name not in value]:
            yield from _line("losses.NAME.weight", REQUIRED, f"adds a loss: {', '.join(others)}")
        return
    meaning = _meaning(place)
    if is_section(inner.type):
        for name, held in value.items():
            yield from _line(f"{place.path}.{name}", held, "")
        for name, one in fields_of(inner.type).items():
            of = f"{meaning}: {one.meaning}" if meaning else one.meaning
            yield from _line(f"{place.path}.NAME.{name}", REQUIRED, of)
            meaning = ""
    else:
        for name, held in value.items():
            yield from _line(f"{place.path}.{name}", held, "")
        yield from _line(f"{place.path}.NAME", REQUIRED, meaning)


def _meaning(place: Place) -> str:
    *_, name = place.path.split(".")
    above = accepted.find({}, place.path.split("."))
    return above.meaning if above.name == name else ""


def _line(path: str, value: Any, meaning: str) -> Iterator[str]:
    """One field; the meaning beside it, or below if the value is long."""
    flag = f"  --config.{path}=" + ("..." if value is REQUIRED else _shown(value))
    wrapped = textwrap.wrap(meaning, WIDTH - LEFT) or [""]
    if len(flag) < LEFT - 1:
        yield f"{flag:<{LEFT}}{wrapped[0]}".rstrip()
        wrapped = wrapped[1:]
    else:
        yield flag
    yield from (" " * LEFT + line for line in wrapped if line)


def _shown(value: Any) -> str:
    """A value as it is written on the command line; long ones are cut."""
    if isinstance(value, Mapping):
        return f"{{{len(value)} fields: {', '.join(map(str, value))}"[:LONGEST] + " ...}"
    if isinstance(value, tuple | list):
        shown = repr(tuple(value)).replace(" ", "") if value else ""
    else:
        shown = str(value)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 4] + " ..."
