"""The flags of the command line that set fields of a config.

In: arguments such as `--config.optim.lr=1e-3`, and a config as plain values. Out: paths and typed
values, in the order in which they are to be applied. `--config.model=unet` (likewise `augment` and
`losses`) replaces a whole section by the named thing with its defaults.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from medjax.errors import UsageError
from medjax.runs.settings import accepted, schema, values
from medjax.runs.settings.section import fields_of, is_section

PREFIX, NEGATIVE = "config.", "noconfig."
NAMING = ("model.name", "augment.kind", "task")  # what decides which other fields exist
WHOLE = {  # section -> the section that a text stands for
    "model": lambda text: {"name": text},
    "augment": lambda text: {"on": True, "kind": text},
    "losses": lambda text: {n.strip(): {"weight": 1.0} for n in text.split(",") if n.strip()},
}


class Override(NamedTuple):
    """A flag: path of the field, its text (None: a switch without a value), as it was written."""

    path: str
    text: str | None
    flag: str

    @property
    def keys(self) -> tuple[str, ...]:
        """The path, split."""
        return tuple(self.path.split("."))


def split(
    argv: Sequence[str], is_switch: Callable[[str], bool]
) -> tuple[list[str], list[Override]]:
    """The arguments that do not set a field, and those that do; the last of a repeated flag.

    Args:
      argv: the program's name, then flags.
      is_switch: path -> whether the field is True or False: its flag needs no value, and
        `--noconfig.path` sets it to False.

    Raises: `UsageError` for a flag without a value.
    """
    rest, found, k = list(argv[:1]), {}, 1
    while k < len(argv):
        argument, k = argv[k], k + 1
        if argument == "--":
            rest += [argument, *argv[k:]]
            break
        name, has_value, text = argument.lstrip("-").partition("=")
        negative = name.startswith(NEGATIVE)
        if not argument.startswith("-") or not (negative or name.startswith(PREFIX)):
            rest.append(argument)
            continue
        path, value = name.split(".", 1)[1], text if has_value else None
        if negative:
            value = "False"
        elif not has_value and not is_switch(path):
            if k == len(argv):
                raise UsageError(f"--{name} has no value", fix=f"write --{name}=VALUE")
            value, k = argv[k], k + 1
        if path == "train.steps" and (value or "").startswith("+"):
            path, value = "train.more", (value or "")[1:]
        found.pop(path, None)
        found[path] = Override(path, value, argument)
    return rest, sorted(found.values(), key=_rank)


def _rank(one: Override) -> int:
    if one.path in WHOLE or one.path in NAMING:
        return 0 if one.path in WHOLE else 1
    return 3 if len(one.keys) > 2 and one.keys[-1] != "kind" else 2  # a socket before its fields


def is_switch(fields: Mapping[str, Any], path: str) -> bool:
    """Whether a path leads to a field that is True or False."""
    try:
        return accepted.find(fields, path.split(".")).type is bool
    except UsageError:
        return False


def value_of(fields: Mapping[str, Any], one: Override) -> Any:
    """The typed value of a flag, for a config with these values.

    Raises: `UsageError` for a field that does not exist, or a text that is none of its values.
    """
    if one.path in WHOLE and one.text is not None and not one.text.lstrip().startswith("{"):
        return WHOLE[one.path](one.text)
    place = accepted.find(fields, one.keys)
    if place.type is schema.Socket and one.text and not one.text.lstrip().startswith("{"):
        return one.text
    if is_section(place.type):
        return _section(fields, one, place.type)
    if not values.is_writable(place.type):
        raise UsageError(f"config.{one.path} cannot be set in a config", found=one.text)
    try:
        value = values.parse("True" if one.text is None else one.text, place.type)
    except ValueError as error:
        raise UsageError(
            f"unusable --config.{one.path}", found=repr(one.text), expected=str(error)
        ) from error
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and isinstance(place.default, float) else value


def _section(fields: Mapping[str, Any], one: Override, kind: Any) -> dict[str, Any]:
    """Several fields of a section at once: `--config.data.split={"folds": 3, "fold": 1}`."""
    try:
        given = values.parse(one.text or "", Mapping[str, Any])
    except ValueError as error:
        names = ", ".join(fields_of(kind))
        raise UsageError(
            f"config.{one.path} is a section", fix=f"set one of its fields: {names}"
        ) from error
    present = {} if kind.OPEN else _at(fields, one.path)
    return (dict(present) if isinstance(present, Mapping) else {}) | dict(given)


def check_rest(
    before: Mapping[str, Any], after: Mapping[str, Any], path: str, source: str = ""
) -> None:
    """`UsageError` if a section holds fields that do not go with a name that a flag changed.

    Args:
      before, after: the config without and with the flag.
      path: of the name, one of `NAMING`.
      source: the file of the config, for the message.
    """
    section = "task_options" if path == "task" else path.split(".")[0]
    old, new = (_at(fields, path) for fields in (before, after))
    place = accepted.Place(section, fields_of(schema.Config)[section].type, str(new))
    given = after.get(section, {})
    if left := [key for key in given if key not in accepted.members(place, given)]:
        raise UsageError(
            f"{new} does not take what the config sets for {old}: {', '.join(left)}",
            path=source or None,
            fix=f"--config.{section}={new} replaces the section by the defaults of {new}"
            if section in WHOLE
            else f"begin with a config of {new}",
        )


def _at(fields: Mapping[str, Any], path: str) -> Any:
    value: Any = fields
    for key in path.split("."):
        value = value.get(key, "the default") if isinstance(value, Mapping) else value
    return value
