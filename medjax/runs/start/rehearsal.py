"""The rehearsal of a recipe, and what to do if its corpora are not on disk.

In: a config. Out: the text of `--mode=dry`, followed by the corpora that are missing, where to get
them, and the commands that run without them. A training without its corpora prints the same and
ends as a usage error.
"""

import dataclasses
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

from medjax.errors import MedjaxError, UsageError
from medjax.runs import dry, footprint
from medjax.runs import open as corpora
from medjax.runs.catalogues import registered
from medjax.runs.settings.schema import Config

COMMAND = "python -m medjax.main"


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the user gave on the command line.

    Attributes:
      workdir: run folder.
      recipe: the config as it was named, e.g. "configs/tsfm.py:h"; empty if it was no file.
      devices, compiled: see `dry.dry`.
      target: card to compile the training step for, see `ahead.cards.parse`.
      ways: commands that run without the corpora, with what each is for.
    """

    workdir: Path
    recipe: str = ""
    devices: Sequence[int] = ()
    compiled: bool = True
    ways: Sequence[tuple[str, str]] = ()
    target: str = ""


def missing(config: Config) -> list[str]:
    """Names of the declared corpora that are not on disk."""
    data = config.data
    return [
        name
        for name, given in data.declared.items()
        if corpora.folder_of(name, given, data.root) is None
    ]


def text(config: Config, asked: Asked) -> str:
    """The rehearsal (see `dry.dry`), and what is missing."""
    found = dry.dry(
        config, asked.workdir, asked.devices, compiled=asked.compiled, target=asked.target
    )
    if absent := missing(config):
        found += "\n\n" + about_missing(config, absent, asked)
    return found


def refuse_without_data(config: Config, asked: Asked) -> None:
    """Prints the rehearsal and raises `UsageError` if declared corpora are not on disk."""
    absent = missing(config)
    if not absent:
        return
    process = os.environ.get("MEDJAX_PROCESS") or os.environ.get("SLURM_PROCID") or "0"
    if process == "0":  # of several processes, one prints
        print(text(config, asked), flush=True)
    many = len(absent) > 1
    raise UsageError(
        f"{len(absent)} corpora of the config are not on disk, see above"
        if many
        else f"the corpus {absent[0]} of the config is not on disk, see above",
        path=config.data.root or Path.cwd(),
        fix="set --config.data.root to the folder that holds "
        + ("them" if many else "it")
        + ", such as the --out of `medjax ingest`",
    )


def about_missing(config: Config, absent: Sequence[str], asked: Asked) -> str:
    """The missing corpora with licence, source and command, and the commands that run now."""
    try:
        facts = registered()["corpora"]
    except MedjaxError:  # without a catalogue only the names are known
        facts = {}
    looked = config.data.root or "the working folder (--config.data.root is not set)"
    lines = [
        f"NOT ON DISK: {len(absent)} of {len(config.data.declared)} corpora, looked for in {looked}"
    ]
    sources, guides = {}, {}
    for name in absent:
        source = config.data.declared[name].source or name
        if source in facts:
            sources[name] = facts[source]
            row = facts[source]
            guides.setdefault((row["obtain"], row["url"]), []).append(name)
    rows = [("corpus", "cases", "then", "licence")]
    for name in absent:
        row = sources.get(name, {})
        command = f"{row['command']} --raw DOWNLOAD --out STORE" if row else ""
        rows.append((name, str(row.get("cases", "?")), command, str(row.get("licence", "?"))))
    lines.append(footprint.table(rows))
    if guides:
        lines += ["", "where to get them (medjax downloads nothing):"]
        for (obtain, url), names in guides.items():
            words = f"{', '.join(names)}: {obtain}, {url}"
            lines += textwrap.wrap(
                words, 110, initial_indent="  ", subsequent_indent="      ", break_long_words=False
            )
    if asked.recipe:
        lines += ["", "with the corpora in STORE:"]
        lines.append(f"  {COMMAND} --config={asked.recipe} --config.data.root=STORE")
    if asked.ways:
        lines += ["", "what runs now:"]
        lines += [f"  {command}   # {purpose}" for command, purpose in asked.ways]
    return "\n".join(lines)
