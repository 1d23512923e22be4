"""The page docs/reproduce.md: every table and figure of the papers, and the commands of its rows.

In: configs/reproduce.toml, whose first lines say what it holds. Out: the page, and the commands one
by one for the tests that read and build them.

    python -m data_pipelines.reproduce > docs/reproduce.md
"""

import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).resolve().parent.parent / "configs" / "reproduce.toml"
ROOT = "data.root=DATA"
HEAD = """# Reproducing the papers

Generated from configs/reproduce.toml by `python -m data_pipelines.reproduce > docs/reproduce.md`; a test keeps both together and builds
the config of every command. `$DATA` is the folder with the corpora ([ingest.md](ingest.md)); `${SET}` and other variables stand for the values
listed above a command. Every row needs its data and, at the papers' sizes, GPUs: `--mode=dry` prints parameters and memory without either.
Published scores are not promised: splits and weights of most papers were never released. What cannot be reproduced is said in place.
"""  # noqa: E501


class Run(NamedTuple):
    """A training: the config as file:variant, the run folder, the mode and the flags."""

    config: str
    to: str
    mode: str
    flags: tuple[str, ...]

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of `python -m medjax.main`."""
        file, _, variant = self.config.partition(":")
        mode = (f"--mode={self.mode}",) if self.mode else ()
        flags = tuple(f"--config.{flag}" for flag in self.flags)
        return (
            f"--config=configs/{file}.py:{variant}",
            f"--workdir=runs/{self.to}",
            *mode,
            *flags,
        )

    @property
    def command(self) -> str:
        """The command as a line of a shell."""
        return " ".join(["python -m medjax.main", *map(_quoted, self.arguments)])


def papers() -> list[dict[str, Any]]:
    """The table as it is written."""
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))["paper"]


def rows() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(paper and item, row) of every row."""
    for paper in papers():
        for item in paper["item"]:
            for row in item.get("row", ()):
                yield f"{paper['name']}, {item['name']}", row


def runs(row: Mapping[str, Any], filled: bool = True) -> list[Run]:
    """The trainings of a row, each once.

    Args:
      filled: one for each combination of the placeholders; False: with the placeholders.
    """
    found: dict[Run, None] = {}
    for values in _combinations(row) if filled else [{}]:
        for run in row.get("runs", ()):
            flags = list(run.get("flags", ()))
            if not any(flag.startswith("data.folders=") for flag in flags):
                flags = [ROOT, *flags]
            texts = [_filled(flag, values) for flag in flags]
            config, to = _filled(run["config"], values), _filled(run["to"], values)
            found[Run(config, to, run.get("mode", ""), tuple(texts))] = None
    return list(found)


def commands(entry: Mapping[str, Any]) -> list[str]:
    """The `medjax` commands of a row or an item, for each combination of its placeholders."""
    lines = [*entry.get("before", ()), *entry.get("then", ())]
    return list(
        dict.fromkeys(_filled(line, values) for values in _combinations(entry) for line in lines)
    )


def markdown() -> str:
    """The page."""
    lines = [HEAD]
    for paper in papers():
        lines += [f"## {paper['name']}", "", f"{paper['title']}.", "", _flowing(paper["note"]), ""]
        for item in paper["item"]:
            lines += [f"### {item['name']}: {item['what']}", ""]
            for row in item.get("row", ()):
                lines += _row(row)
            if item.get("then"):
                lines += ["The table:", "", *_block(item["then"])]
            if item.get("gap"):
                lines += [_flowing(item["gap"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _row(row: Mapping[str, Any]) -> list[str]:
    count = f" ({row['parameters']:,} parameters)" if "parameters" in row else ""
    lines = [f"**{row['name'][0].upper()}{row['name'][1:]}**{count}", ""]
    for name, values in row.get("each", {}).items():
        lines += [f"`{name}`: {', '.join(values)}", ""]
    own = [run.command for run in runs(row, filled=False)]
    if shown := [*row.get("before", ()), *own, *row.get("then", ())]:
        lines += _block(shown)
    if row.get("gap"):
        lines += [_flowing(row["gap"]), ""]
    return lines


def _block(lines: list[str]) -> list[str]:
    return ["```bash", *map(_for_a_shell, lines), "```", ""]


def _for_a_shell(line: str) -> str:
    """Placeholders and DATA as variables."""
    return re.sub(r"\bDATA\b", "$DATA", re.sub(r"<(\w+)>", r"${\1}", line))


def _flowing(text: str) -> str:
    return " ".join(text.split())


def _combinations(entry: Mapping[str, Any]) -> list[dict[str, str]]:
    each = entry.get("each", {})
    return [dict(zip(each, values, strict=True)) for values in itertools.product(*each.values())]


def _filled(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"<(\w+)>", lambda m: values.get(m[1], m[0]), text)


def _quoted(text: str) -> str:
    return f"'{text}'" if re.search(r"[()]", text) else text


if __name__ == "__main__":
    print(markdown(), end="")
