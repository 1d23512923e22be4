"""The reference pages of the web site, made from the code: Python interface, commands, settings.

In: docstrings of `medjax.__all__`, the argument parsers of `medjax.commands`, the fields of
`medjax.runs.settings.schema`. Out: Markdown. `docs/conf.py` adds it to docs/api.md,
docs/commands.md and docs/settings.md when the site is built; nothing of it is kept in files.
"""

import argparse
import contextlib
import inspect
import io
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import medjax
from medjax import commands, main
from medjax.registry import known
from medjax.runs.settings import accepted, schema
from medjax.runs.settings.section import REQUIRED, Setting, fields_of, is_section

SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")
OPEN = {"model": "models", "losses": "losses", "task_options": "tasks"}  # what fills a section


def python() -> str:
    """The names of `medjax.__all__` with signature and docstring, in the order of a user's work."""
    names = [name for name in ("config", "train", "load", "predict", "Predictor", "stream")]
    parts = []
    for name in [*names, *(n for n in medjax.__all__ if n not in names)]:
        found = getattr(medjax, name)
        found = getattr(found, name, found) if inspect.ismodule(found) else found
        if name == "train":  # the package of the loop, which can be called
            from medjax.experiment import train as found
        parts += [f"## medjax.{name}", *_described(f"medjax.{name}", found)]
        if inspect.isclass(found):
            for method, value in vars(found).items():
                if inspect.isfunction(value) and not method.startswith("_"):
                    parts += [f"### {name}.{method}", *_described(method, value, method=True)]
    from medjax.experiment import Loaded, Run

    for one, made in ((Run, "`medjax.train` returns"), (Loaded, "`medjax.load` returns")):
        parts += [f"## {one.__name__}", f"What {made}.", *_text(inspect.getdoc(one) or "")]
        for method, value in vars(one).items():
            inner = value.fget if isinstance(value, property) else getattr(value, "func", value)
            if inspect.isfunction(inner) and not method.startswith("_"):
                parts += [f"### {one.__name__}.{method}"]
                parts += _described(method, inner, method=True, called=inner is value)
    return "\n\n".join(parts) + "\n"


def _described(
    name: str, found: Any, *, method: bool = False, called: bool = True
) -> Iterator[str]:
    """Signature and docstring of a function or class; of a property the docstring only."""
    if called:
        signature = inspect.signature(found)
        if method:  # without self
            kept = list(signature.parameters.values())[1:]
            signature = signature.replace(parameters=kept)
        shown = re.sub(r"'([A-Z]\w+)'", r"\1", str(signature))  # names of classes as texts
        shown = re.sub(r"\b(pathlib|typing|collections\.abc|numpy)\.", "", shown)
        yield f"```python\n{name}{shown}\n```"
    yield from _text(inspect.getdoc(found) or "")


def _text(docstring: str) -> Iterator[str]:
    """A docstring in the style of this repository as Markdown blocks."""
    for block in re.split(r"\n\s*\n", docstring):
        lines = block.splitlines()
        while lines:
            head = re.match(rf"({'|'.join(SECTIONS)}):\s*(.*)", lines[0])
            if not head and lines[0].startswith("    "):
                yield "```text\n" + textwrap.dedent("\n".join(lines)) + "\n```"
                lines = []
                continue
            end = next(
                (k for k, s in enumerate(lines[1:], 1) if re.match(rf"({'|'.join(SECTIONS)}):", s)),
                len(lines),
            )
            inside, lines = lines[:end], lines[end:]
            if not head:
                yield escaped(" ".join(s.strip() for s in inside))
            elif head[2]:
                rest = " ".join([head[2], *(s.strip() for s in inside[1:])])
                yield f"**{head[1]}:** {escaped(rest)}"
            else:
                yield f"**{head[1]}:**\n\n" + "\n".join(_entries(inside[1:]))


def _entries(lines: Iterable[str]) -> Iterator[str]:
    """The entries of `Args:`, a bullet each; a line may hold several."""
    whole: list[str] = []
    for line in lines:  # lines that are indented further belong to the one before
        if line.startswith("   ") and whole:
            whole[-1] += " " + line.strip()
        else:
            whole.append(line.strip())
    name = r"((?:\*{0,2}\w+, )*\*{0,2}[a-zA-Z]\w*): "
    for line in whole:
        found = list(re.finditer(rf"(?:^|(?<=[.;)] )){name}", line))
        if not found:
            yield f"- {escaped(line)}"
        ends = [m.start() for m in found[1:]] + [len(line)]
        for match, end in zip(found, ends[: len(found)], strict=True):
            yield f"- **{escaped(match[1])}**: {escaped(line[match.end() : end].strip())}"


def command_line() -> str:
    """The flags of `python -m medjax.main`, and every verb of `medjax` with its arguments."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main.parse(["medjax.main", "--help"])
    own = said.getvalue().split("\nabsl.flags:")[0].split("\nmedjax.main:")
    flags = re.sub(r"^  ", "", own[1], flags=re.M).strip("\n")
    parts = ["## python -m medjax.main", *_text(inspect.cleandoc(own[0]))]
    parts.append(f"```text\n{flags}\n```")
    for verb, (parser, summary) in verbs().items():
        parts += [f"## medjax {verb}", escaped(summary)]
        parts += _arguments(f"medjax {verb}", parser)
    return "\n\n".join(parts) + "\n"


def verbs() -> dict[str, tuple[argparse.ArgumentParser, str]]:
    """Verb -> (its parser, what it is for), in the order of `medjax --help`."""
    holder = argparse.ArgumentParser("medjax").add_subparsers()
    for module in commands.modules():
        module.add(holder)
    summaries = {action.dest: action.help or "" for action in holder._choices_actions}
    return {name: (parser, summaries.get(name, "")) for name, parser in holder.choices.items()}


def _arguments(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """Description, usage and a table of arguments; those of inner verbs follow."""
    if parser.description:
        yield escaped(parser.description)
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    yield f"```text\n{usage}\n```"
    rows, inner = [], {}
    for action in parser._actions:
        if hasattr(action, "add_parser"):
            inner = action.choices
        elif action.dest != "help":
            rows.append((_names(action), _meaning(action, parser)))
    if rows:
        yield table(("argument", "meaning"), rows)
    for verb, one in inner.items():
        yield f"### {name} {verb}"
        yield from _arguments(f"{name} {verb}", one)


def _names(action: argparse.Action) -> str:
    value = action.metavar or action.dest.upper()
    value = " ".join(value) if isinstance(value, tuple) else value
    value = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else value
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    words = ", ".join(f"`{option}`" for option in action.option_strings)
    return words if action.nargs == 0 else f"{words} `{value}`"


def _meaning(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    plain = action.default in (None, False, "", ()) or action.default == argparse.SUPPRESS
    known_default = plain or "default" in text or action.nargs == 0
    said = escaped(text)
    return said if known_default else f"{said}{'; ' if said else ''}default `{action.default}`"


def settings() -> str:
    """Every field of a config with default and meaning, section by section."""
    parts, single = [], []
    for one in fields_of(schema.Config).values():
        if is_section(one.type) or one.name == "losses":
            parts += _section(one)
        else:
            single.append(_row(one.name, one))
    heads = ("field", "default", "meaning")
    return "\n\n".join(["## The experiment", table(heads, single), *parts]) + "\n"


def _section(one: Setting) -> Iterator[str]:
    """A section, the sections within it, and what the named thing takes."""
    heads = ("field", "default", "meaning")
    yield f"## {one.name}"
    yield escaped(one.meaning)
    if one.name == "losses":
        weight = fields_of(schema.Loss)["weight"]
        yield table(heads, [_row("losses.NAME.weight", weight)])
    else:
        yield table(heads, list(_rows(one.name, one.type)))
    for name in known(OPEN[one.name]) if one.name in OPEN else ():
        place = {"model": "model", "losses": f"losses.{name}", "task_options": "task_options"}
        fields = [
            _row(f"{place[one.name]}.{key}", field)
            for key, field in _taken(OPEN[one.name], name).items()
        ]
        if fields:
            yield f"### {one.name}: {name}"
            yield table(heads, fields)
    if one.name == "model":
        from medjax.models.parts import sockets

        for socket, kinds in sockets.KINDS.items():
            words = ", ".join(f"`{kind}`" for kind in kinds)
            yield f"### model.{socket}"
            yield f"A socket of the network; kinds: {words}."
            fields = {k: s for kind in kinds for k, s in accepted.socket(socket, kind).items()}
            if fields:
                yield table(heads, [_row(f"model.{socket}.{k}", s) for k, s in fields.items()])
    if one.name == "augment":
        from medjax.augment import kinds

        for kind in kinds.KINDS:
            fields = [_row(f"augment.{k}", s) for k, s in accepted.augmentation(kind).items()]
            yield f"### augment: {kind}"
            yield table(heads, fields)


def _taken(package: str, name: str) -> Mapping[str, Setting]:
    """What a config may give to a network, loss or task; the rest follows from data and recipe."""
    if package == "tasks":
        section = accepted.Place("task_options", schema.TaskOptions, name)
        return accepted.members(section, {})
    hidden = accepted.FROM_DATA if package == "models" else ()
    return {k: s for k, s in accepted.parameters(package, name).items() if k not in hidden}


def _rows(path: str, kind: Any) -> Iterator[tuple[str, str, str]]:
    """The fields of a section, and of the sections within it."""
    for one in fields_of(kind).values():
        inner = (getattr(one.type, "__args__", None) or (None,))[-1]
        if is_section(one.type):
            yield from _rows(f"{path}.{one.name}", one.type)
        elif is_section(inner):  # a mapping from names to sections
            yield _row(f"{path}.{one.name}", one)
            yield from _rows(f"{path}.{one.name}.NAME", inner)
        else:
            yield _row(f"{path}.{one.name}", one)


def _row(path: str, one: Setting) -> tuple[str, str, str]:
    """A field; a default that needs lines of its own is left to `--help`."""
    value = one.default
    if value is REQUIRED:
        shown = "to be given"
    elif value is None or (not isinstance(value, bool | int | float) and not value):
        shown = "empty"
    else:
        text = str(value)
        shown = f"`{text}`" if len(text) <= 60 else "see `--help`"
    return f"`{path}`", shown, escaped(one.meaning)


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(heads)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def escaped(text: str) -> str:
    """Plain text for Markdown; what stands between backticks stays as it is."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick without a partner
        return re.sub(r"([\\`*_<>\[\]{}#|$])", r"\\\1", text)
    for k in range(0, len(parts), 2):
        parts[k] = re.sub(r"([\\*_<>\[\]{}#|$])", r"\\\1", parts[k])
    return "`".join(parts)


PAGES = {"docs/api": python, "docs/commands": command_line, "docs/settings": settings}
