"""What every section of a config accepts: the fields of the schema, and those of what it names.

In: a config as plain values. Out: fields with type, default and meaning. The section `model` also
takes the arguments of the network's `make`, a loss those of the loss, `augment` the settings of its
kind, `task_options` those of the task; types and defaults come from the signature, the meaning from
the docstring.
"""

import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from medjax import plugins
from medjax.errors import UsageError, did_you_mean
from medjax.registry import known, maker
from medjax.runs.settings import schema, values
from medjax.runs.settings.schema import FROM_PLAN
from medjax.runs.settings.section import REQUIRED, Setting, fields_of, is_section

# arguments of a network that follow from the data; a config may overrule them
FROM_DATA = ("classes", "in_channels", "patch", "spacing_mm", "corpus_channels")
FROM_DATA += ("modalities", "corpora", "tasks")
PLANNED = ("unet", "resenc")  # the networks that a plan can choose


class Place(typing.NamedTuple):
    """A place in a config: its path, its type, and what it is called there (a loss, a task)."""

    path: str
    type: Any
    name: str = ""


def check(fields: Mapping[str, Any], source: str = "") -> None:
    """`UsageError` for a config with fields that nobody reads, or with values of a wrong type.

    Args:
      source: the file of the config, for the message.
    """
    found = list(_problems(fields, Place("", schema.Config), fields))
    if not found:
        return
    message, more = found[0]
    if further := [str(more["field"]) for _, more in found[1:]]:
        message += f" (also wrong: {', '.join(further[:8])})"
    facts = {k: v for k, v in more.items() if k != "field"}
    raise UsageError(message, path=source or None, **facts)


def find(fields: Mapping[str, Any], keys: Sequence[str]) -> Setting:
    """The field at a path, of a config with the given values.

    Raises: `UsageError` for a path that leads nowhere.
    """
    place, value, one = Place("", schema.Config), fields, None
    for key in keys:
        held = held_by(value, place.type)
        one = _step(place, held, key)
        value = held.get(key)
        path = f"{place.path}.{key}".lstrip(".")
        place = Place(path, one.type, _name(path, key, fields))
    return one


def held_by(value: Any, kind: Any) -> Mapping[str, Any]:
    """The present fields of a value: none if it has none, the kind of a socket that is a word."""
    if kind is schema.Socket and isinstance(value, str):
        return {"kind": value}
    return value if isinstance(value, Mapping) else {}


def members(place: Place, given: Mapping[str, Any]) -> dict[str, Setting]:
    """The fields that a section accepts, by name.

    Args:
      given: the section's present values.

    Raises: `UsageError` if it names something that does not exist.
    """
    found, kind = dict(fields_of(place.type)), place.type
    if kind is schema.Model:
        found |= _network(str(given.get("name", found["name"].default)))
    elif kind is schema.Socket:
        found |= socket(place.name, str(given["kind"])) if "kind" in given else {}
    elif kind is schema.Loss:
        found |= parameters("losses", place.name)
    elif kind is schema.TaskOptions:
        found |= _task(place.name)
    elif kind is schema.Augment:
        found |= augmentation(given.get("kind", found["kind"].default))
    elif kind is schema.Evaluate:
        for name in plugins.points(plugins.EVALUATIONS):
            found.setdefault(
                name, Setting(name, Any, "", "evaluation of an installed package", False)
            )
    elif kind is schema.Phase:
        common = fields_of(schema.Optimizer).items()
        found |= {k: s._replace(listed=False) for k, s in common}
    return found


def parameters(package: str, name: str) -> dict[str, Setting]:
    """The arguments of `medjax.<package>.<name>.make` as fields, by name."""
    make = maker(package, name)
    found, others = arguments(make), {}
    for module in re.findall(r"`(\w+)\.make`", inspect.getdoc(make) or ""):
        if module != name and module in known(package):  # "as in `unet.make`"
            others |= meanings(inspect.getdoc(maker(package, module)) or "", found)
    return {k: s if s.meaning else s._replace(meaning=others.get(k, "")) for k, s in found.items()}


def arguments(function: Callable[..., Any]) -> dict[str, Setting]:
    """The arguments of a function as fields, by name; sockets have the type `schema.Socket`."""
    signature = inspect.signature(function, eval_str=True).parameters
    words = meanings(inspect.getdoc(function) or "", signature)
    return {
        key: Setting(
            key,
            _type(p),
            REQUIRED if p.default is p.empty else p.default,
            words.get(key, ""),
            listed=False,
        )
        for key, p in signature.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def socket(name: str, kind: str) -> dict[str, Setting]:
    """The fields of a kind of socket; `UsageError` for an unknown one.

    Args:
      name: of the socket, e.g. "mlp".
    """
    sockets = importlib.import_module("medjax.models.parts.sockets")
    kinds = sockets.KINDS[name]
    if kind not in kinds:
        raise UsageError(f"unknown kind {kind!r} of model.{name}", fix=did_you_mean(kind, kinds))
    return {k: s for k, s in arguments(kinds[kind]).items() if k not in sockets.FACTS}


def augmentation(kind: Any) -> dict[str, Setting]:
    """The settings of a kind of augmentation."""
    kept = importlib.import_module("medjax.augment.kinds").find(kind).settings
    types = typing.get_type_hints(kept)
    words = meanings(inspect.getdoc(kept) or "", types)
    return {
        f.name: Setting(f.name, types[f.name], f.default, words.get(f.name, ""), listed=False)
        for f in dataclasses.fields(kept)
    }


def meanings(text: str, names: Any) -> dict[str, str]:
    """Name -> what a docstring in Google's style says of it.

    Several names may share a text ("width, depths: ..."), and a line may hold several entries.
    """
    block = re.search(r"^(?:Args|Attributes):\n((?:[ ]+.*\n|\n)*)", text + "\n", re.M)
    if not block:
        return {}
    flat = " ".join(block[1].split())
    start = re.compile(r"(?:^|(?<=[.;)\w`\"'] ))((?:\w+, )*\w+): ")
    found = [m for m in start.finditer(flat) if all(n in names for n in m[1].split(", "))]
    ends = [m.start() for m in found[1:]] + [len(flat)]
    return {
        name: flat[m.end() : end].strip()
        for m, end in zip(found, ends, strict=True)
        for name in m[1].split(", ")
    }


def _network(name: str) -> dict[str, Setting]:
    if name != FROM_PLAN:
        return parameters("models", name)
    found: dict[str, Setting] = {}
    for one in PLANNED:
        found |= {k: v for k, v in parameters("models", one).items() if k not in found}
    return found


def _task(name: str) -> dict[str, Setting]:
    """What only this task takes: what all tasks take, or need, comes from other sections."""
    common = parameters("tasks", "supervised")
    return {
        k: v
        for k, v in parameters("tasks", name).items()
        if k not in common and v.default is not REQUIRED
    }


def _type(parameter: inspect.Parameter) -> Any:
    if any(
        getattr(one, "__name__", "") == "Socket" for one in values.options(parameter.annotation)
    ):
        return schema.Socket
    if parameter.annotation is not parameter.empty:
        return parameter.annotation
    default = parameter.default
    return Any if default in (None, parameter.empty) else type(default)


def _name(path: str, key: str, fields: Mapping) -> str:
    return str(fields.get("task", "")) if path == "task_options" else key


def _step(place: Place, given: Mapping, key: str) -> Setting:
    """The field `key` of a place; `UsageError` if there is none."""
    if is_section(place.type):
        return _member(place, given, members(place, given), key)
    for kind in values.options(place.type):
        inner = typing.get_args(kind)
        if values.takes_mapping(kind):
            if place.path == "losses":
                maker("losses", key)  # the error names the known ones
            path = f"{place.path}.{key}"
            return Setting(key, inner[1] if len(inner) == 2 else Any, REQUIRED, path, False)
    raise UsageError(
        f"config.{place.path} has no fields",
        found=f"config.{place.path}.{key}",
        expected=values.describe(place.type),
    )


def _member(place: Place, given: Mapping, accepts: Mapping[str, Setting], key: str) -> Setting:
    if key in accepts:
        return accepts[key]
    owner = _owner(place, given)
    hidden = FROM_DATA if place.type is schema.Model else ()
    raise UsageError(
        f"config.{place.path}".rstrip(".")
        + f" has no field {key!r}"
        + (f" for {owner}" if owner else ""),
        fix=did_you_mean(key, [k for k in accepts if k not in hidden]),
    )


def _owner(place: Place, given: Mapping) -> str:
    """What the section names."""
    if place.type is schema.Model:
        return f"the network {given.get('name')}"
    if place.type is schema.Socket:
        return f"the kind {given.get('kind', '(none given)')}"
    if place.type is schema.Loss:
        return f"the loss {place.name}"
    if place.type is schema.TaskOptions:
        return f"the task {place.name}"
    if place.type is schema.Augment:
        return f"the augmentation {given.get('kind', 'nnunet')}"
    return ""


def _problems(value: Any, place: Place, fields: Mapping) -> Iterator[tuple[str, dict]]:
    """(message, facts) for every field below a place that is wrong."""
    path = f"config.{place.path}"
    section = is_section(place.type)
    if place.type is schema.Socket:
        if value is None:
            return
        value = held_by(value, place.type) or value
    if not isinstance(value, Mapping) or not (section or typing.get_args(place.type)):
        if section or not values.fits(value, place.type):
            expected = "a section" if section else values.describe(place.type)
            facts = {"found": repr(value)[:80], "expected": expected, "field": path}
            yield f"unusable {path}", facts
        return
    try:
        accepts = members(place, value) if section else {}
    except UsageError as error:  # what the section names does not exist
        yield error.message, _facts(error, path)
        return
    for key, held in value.items():
        below = f"{place.path}.{key}".lstrip(".")
        try:
            one = _member(place, value, accepts, str(key)) if section else _step(place, value, key)
        except UsageError as error:
            yield error.message, _facts(error, f"config.{below}")
            continue
        yield from _problems(held, Place(below, one.type, _name(below, str(key), fields)), fields)
    if section:
        own = fields_of(place.type)
        for name in own:
            if own[name].default is REQUIRED and name not in value:
                fix = f"--{path}.{name}=..., {own[name].meaning}"
                yield f"{path} needs {name}", {"fix": fix, "field": f"{path}.{name}"}


def _facts(error: UsageError, field: str) -> dict:
    return {"found": error.found, "expected": error.expected, "fix": error.fix, "field": field}
