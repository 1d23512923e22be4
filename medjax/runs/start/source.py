"""What a run takes over from the run it starts from, beside the parameters, and the scans that both
have.

In: `config.init`, with `init.source`, and the data of the run. Out: the CT statistics of the source
(`init.intensity`); scans that the source was trained on and this run holds out, by the corpora's
rules for twins, and what is done about them (`init.twins`).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax.corpora import twins
from medjax.corpora.inputs import Case
from medjax.corpora.splits import sides_of
from medjax.corpora.twins import Pair
from medjax.errors import MedjaxError, UsageError, did_you_mean
from medjax.runs import folder as runfolder
from medjax.runs import trained as models
from medjax.runs.open import Data
from medjax.runs.settings.schema import Config
from medjax.train import stepfolder
from medjax.weights.formats import archive as archives

SHARED = "shared_with_source.json"
INTENSITIES = ("", "source")
POLICIES = ("report", "refuse", "leave_out")
_OF_SOURCE = "{} (source)"


def check(config: Config) -> None:
    """`UsageError` for unknown words in `config.init`."""
    for name, known in (("intensity", INTENSITIES), ("twins", POLICIES)):
        word = getattr(config.init, name)
        if word not in known:
            raise UsageError(f"unknown config.init.{name} {word!r}", fix=did_you_mean(word, known))


def intensity(config: Config, channels: Iterable[str], workdir: Path) -> dict[str, dict]:
    """CT channel -> the statistics that the source was trained with, as `data.intensity` says them.

    A started run keeps those of its own plan. Empty unless `init.intensity` is "source", and
    without a source.

    Args:
      channels: names of the channels of this run.
    """
    given = config.init
    if given.intensity != "source" or not given.source:
        return {}
    begun = stepfolder.latest_step(workdir / "checkpoints") is not None
    if begun and (workdir / runfolder.PLAN).is_file():
        plan = runfolder.read_plan(workdir)
    else:
        plan = models.read_model(Path(given.source).expanduser()).plan
    known = {name.lower(): found for name, found in plan.intensity.items()}
    return {
        name: {"scheme": "ct", "clip": found.clip, "mean": found.mean, "std": found.std}
        for name in channels
        if (found := known.get(name.lower())) is not None and found.scheme == "ct"
    }


def shared(config: Config, data: Data, workdir: Path) -> tuple[Pair, ...]:
    """Scans that the source was trained on and this run has: (case of the source, case here).

    By name: the same public corpus and case, and the rules of the corpora of both runs. A started
    run keeps what it found first. An archive does not say what it was trained on.
    """
    if not config.init.source or not data.splits:
        return ()
    path = workdir / SHARED
    if stepfolder.latest_step(workdir / "checkpoints") is not None:
        if not path.is_file():
            return ()
        rows = dict(runfolder.read_json(workdir, SHARED)).get("pairs", ())
        return tuple(Pair(*map(str, row)) for row in rows)
    folder = Path(config.init.source).expanduser()
    if archives.is_archive(folder) or not (folder / runfolder.SPLITS).is_file():
        return ()
    other = runfolder.read_config(folder)
    learned = _trained_cases(folder, other)
    public = {name: data.public.get(name, name) for name in data.cases}
    theirs = {name: _public(other, name) for name in learned}
    found = {}
    for name, cases in learned.items():
        for mine in (mine for mine, title in public.items() if title == theirs[name]):
            own = {case.name for case in data.cases[mine]}
            for case in (case for case in cases if case in own):
                ends = (f"{name}/{case}", f"{mine}/{case}")
                found[ends] = Pair(*ends, "the same case")
    named = {_OF_SOURCE.format(name): name for name in learned}
    together = {tag: [Case(c, (c,)) for c in learned[name]] for tag, name in named.items()}
    rules: dict[str, Sequence[twins.Twin]] = {
        tag: _rules(other, name) for tag, name in named.items()
    }
    pairs = twins.by_name(
        {**data.cases, **together},
        {**data.rules, **rules},
        {**public, **{tag: theirs[name] for tag, name in named.items()}},
    )
    for pair in pairs:
        for first, second in ((pair.first, pair.second), (pair.second, pair.first)):
            tag, _, case = first.partition("/")
            if tag in named and second.partition("/")[0] not in named:
                ends = (f"{named[tag]}/{case}", second)
                found.setdefault(ends, Pair(*ends, pair.why))
    return tuple(found[ends] for ends in sorted(found))


def applied(config: Config, data: Data, pairs: Sequence[Pair]) -> tuple[Data, str]:
    """The data with what `init.twins` says about shared scans, and a sentence about them.

    "report" changes nothing; "leave_out" takes held-out cases that the source was trained on out of
    validation and test, and does not train on them in that fold either.

    Raises: `UsageError` with "refuse", if a held-out case of the chosen fold is known to the
      source.
    """
    known = {pair.second for pair in pairs}
    chosen = data.splits[data.fold] if data.splits else {"train": [], "val": []}
    held = [name for side in sides_of(chosen)[1:] for name in chosen[side]]
    seen = [name for name in held if name in known]
    if not seen:
        return data, ""
    first = next(pair for pair in pairs if pair.second == seen[0])
    text = (
        f"{len(seen)} of {len(held)} held-out cases were trained on by {config.init.source}, "
        f"first {first.second} as {first.first} ({first.why})"
    )
    if config.init.twins == "refuse":
        raise UsageError(
            text,
            fix="start from a run without these corpora, or give --config.init.twins=leave_out",
        )
    if config.init.twins == "leave_out":
        splits = tuple(
            {
                side: names if side == "train" else [name for name in names if name not in known]
                for side, names in split.items()
            }
            for split in data.splits
        )
        return dataclasses.replace(data, splits=splits), f"{text}: left out"
    return data, f"LEAK: {text}; --config.init.twins=leave_out leaves them out"


def to_json(config: Config, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Contents of `SHARED`."""
    rows = [[pair.first, pair.second, pair.why] for pair in pairs]
    return {"source": config.init.source, "pairs": rows}


def _trained_cases(folder: Path, config: Config) -> dict[str, list[str]]:
    """Store -> the cases that a run was trained on."""
    splits = runfolder.read_json(folder, runfolder.SPLITS)
    fold = config.data.split.fold
    found: dict[str, list[str]] = {}
    if not isinstance(splits, Sequence) or not splits:
        return found
    for name in splits[min(fold, len(splits) - 1)]["train"]:  # -1: all cases, the last entry
        store, _, case = str(name).partition("/")
        found.setdefault(store, []).append(case)
    return found


def _public(config: Config, name: str) -> str:
    entry = config.data.declared.get(name)
    return (entry.source if entry else "") or name


def _rules(config: Config, name: str) -> tuple[twins.Twin, ...]:
    """The rules of a corpus of the source, as far as its config or its folder says them."""
    if name in config.data.declared:
        return twins.read_rules(config.data.declared[name].twins)
    found: Mapping[str, tuple] = _folder_rules(config.data)
    return found.get(name, ())


def _folder_rules(data: Any) -> dict[str, tuple[twins.Twin, ...]]:
    """Corpus -> rules of the folders and builds that are still there."""
    from medjax.corpora.sources import read_labels
    from medjax.scans import records

    found = {}
    named = [(part.strip(), False) for part in data.folders.split(",")]
    named += [(part.strip(), True) for part in data.tfds.split(",")]
    for text, built in named:
        if not text:
            continue
        try:
            text = records.find(text) if built else text
            found[read_labels(Path(text).expanduser()).name] = twins.rules_of(text)
        except (MedjaxError, OSError):
            continue  # moved since: its own rules are not known, those of this run's corpora are
    return found
