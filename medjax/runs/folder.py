"""The run folder: its documents, written and read. Enough to resume, to predict and to explain.

config.json (resolved), labels.json, plan.json, splits_final.json, environment.json, metrics.jsonl,
checkpoints/, predictions/, evaluation/, and hashes.json: the hashes of config, labels and plan,
which determine the meaning of the weights. An edited document is refused until it is restored or
accepted (`medjax info RUN --accept`).
"""

import functools
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medjax import files
from medjax.errors import UsageError
from medjax.labels import LabelSpace
from medjax.prepare.plan import Plan
from medjax.registry import plain
from medjax.runs.settings import schema
from medjax.runs.settings.schema import Config
from medjax.train import hashes, stepfolder

SPLITS_INFO = "splits_info.json"  # hashes, twins and settings of the splits
CONFIG, LABELS, PLAN, SPLITS, ENVIRONMENT = (
    "config.json",
    "labels.json",
    "plan.json",
    "splits_final.json",
    "environment.json",
)
SOURCES = "sources.json"  # case -> hash of the files it was prepared from
HASHES = "hashes.json"
HEAD_PRIOR = "head_prior.json"  # where the outputs of the heads started, and why
HASHED = (CONFIG, LABELS, PLAN)
NEEDED = {
    "model": ("name",),
    "train": ("patch",),
    "infer": ("checkpoint", "overlap", "mirror_axes", "average", "batch_windows"),
}


WRITTEN = (  # what a training writes into its folder, apart from predictions and scores
    CONFIG,
    LABELS,
    PLAN,
    SPLITS,
    SPLITS_INFO,
    ENVIRONMENT,
    SOURCES,
    HASHES,
    HEAD_PRIOR,
    "saved.json",
    "metrics.jsonl",
    "system.jsonl",
    "progress.png",
    "tensorboard",
    "trackers.json",
    "checkpoints",
)


def check_target(folder: Path) -> None:
    """`UsageError` if a training would overwrite files of somebody else.

    A folder may hold other files, but what a training writes only if its config.json is that of a
    run, or its hashes.json lists one.
    """
    folder = Path(folder)
    if not (there := [name for name in WRITTEN if os.path.lexists(folder / name)]):
        return
    found = [_found(folder / name) for name in (CONFIG, HASHES) if (folder / name).is_file()]
    for value in (v for values in found for v in values if isinstance(v, dict)):
        if all(isinstance(value.get(section), dict) for section in NEEDED):
            return
        listed = value.get(CONFIG)
        if isinstance(listed, list) and all(str(v).startswith("xxh3:") for v in listed):
            return
    raise UsageError(
        "the folder holds files that medjax did not write, under names of a run",
        path=folder,
        found=", ".join(there[:6]),
        expected="an empty or new folder, or a run",
        fix="give another --workdir",
    )


def write_json(path: Path, value: Any) -> None:
    """Writes one file of a run folder atomically; for config, labels and plan also its hash.

    The hash is written first, in addition to the previous one: if the process is killed between the
    two writes, the document still matches one of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=1) + "\n"
    if path.name not in HASHED:
        files.write_text(path, text)
        return
    known, digest = _hashes(path.parent), hashes.of_json(json.loads(text))
    if path.is_file():
        before = known.get(path.name, [hashes.of_json(found) for found in _found(path)])
        files.write_json(path.parent / HASHES, known | {path.name: sorted({digest, *before})})
    files.write_text(path, text)
    files.write_json(path.parent / HASHES, known | {path.name: [digest]})


def read_json(folder: Path, name: str) -> Any:
    """One file of a run folder; `UsageError` if it is missing, damaged, or edited since written."""
    folder = Path(folder)
    if not (folder / name).is_file():
        raise UsageError(
            "not a run folder",
            path=folder,
            expected=f"a file {name}",
            fix="name the --workdir of a training",
        )
    value = files.read_json(folder / name)
    if name in HASHED:
        _compare(folder, name, value)
    return value


def read_config(folder: Path) -> Config:
    """The config of a run; fields that an earlier version did not know have their defaults.

    Raises: what `read_fields` and `config_of` raise.
    """
    return config_of(read_fields(folder), Path(folder) / CONFIG)


def config_of(fields: Mapping[str, Any], path: Path) -> Config:
    """The config of a document. One line on stderr names the fields that this version lacks.

    Args:
      path: of the document, for messages.

    Raises: `UsageError` for a section that is none, or that lacks a field without a default.
    """
    try:
        config = schema.resolve(fields)
    except UsageError as error:
        raise UsageError(
            error.message, path=path, found=error.found, expected=error.expected, fix=error.fix
        ) from error
    if unknown := schema.unknown(fields):
        _report(f"{path}: ignored, as this version has no such field: {', '.join(unknown)}")
    return config


@functools.cache
def _report(text: str) -> None:
    """Prints a line on stderr, the first time that a process meets it."""
    print(f"medjax: {text}", file=sys.stderr, flush=True)


def read_fields(folder: Path) -> dict[str, Any]:
    """config.json as plain values (lists become tuples again).

    `UsageError` naming a missing section or field.
    """
    fields = read_json(folder, CONFIG)
    problem = "" if isinstance(fields, dict) else f"no fields: {str(fields)[:80]}"
    for section, keys in NEEDED.items() if not problem else ():
        held = fields.get(section)
        missing = (
            [section]
            if not isinstance(held, dict)
            else [f"{section}.{key}" for key in keys if key not in held]
        )
        problem = problem or (f"no {', '.join(missing)}" if missing else "")
    if problem:
        expected = f"the sections {', '.join(NEEDED)}"
        raise UsageError(
            "no config of a run",
            path=Path(folder) / CONFIG,
            found=problem,
            expected=expected,
            fix="restore the file",
        )
    return plain(fields)


def read_space(folder: Path) -> LabelSpace:
    """The label space the run was trained in."""
    return LabelSpace.from_json(read_json(folder, LABELS), Path(folder) / LABELS)


def read_plan(folder: Path) -> Plan:
    """Spacing and normalisation the run was trained with."""
    return Plan.from_json(read_json(folder, PLAN), Path(folder) / PLAN)


def check(folder: Path) -> None:
    """Reads config, labels and plan, if present, and raises what `read_json` raises."""
    for name in HASHED:
        if (folder / name).is_file():
            read_json(folder, name)


def edited(folder: Path) -> list[str]:
    """Which of config, labels and plan differ from what medjax wrote."""
    known, found = (
        _hashes(folder),
        {name: files.read_json(folder / name) for name in HASHED if (folder / name).is_file()},
    )
    return [
        name
        for name, value in found.items()
        if name in known and hashes.of_json(value) not in known[name]
    ]


def accept(folder: Path) -> list[str]:
    """Accepts config, labels and plan as they are.

    Returns the names of those whose hash was different or missing.
    """
    found = {name: files.read_json(folder / name) for name in HASHED if (folder / name).is_file()}
    config = found.get(CONFIG)
    # hashes in a folder of somebody else would make its files pass for those of a run
    if not isinstance(config, dict) or not all(isinstance(config.get(s), dict) for s in NEEDED):
        raise UsageError(
            "not a run folder",
            path=folder,
            expected=f"a file {CONFIG} with the sections {', '.join(NEEDED)}",
            fix="name the --workdir of a training",
        )
    known = _hashes(folder)
    digests = {name: [hashes.of_json(value)] for name, value in found.items()}
    files.write_json(folder / HASHES, digests)
    return [name for name, digest in digests.items() if known.get(name) != digest]


def require_checkpoint(folder: Path) -> None:
    """`UsageError` for an untrained run, `TrainError` for damaged or missing checkpoints."""
    stepfolder.require_readable(folder / "checkpoints")
    if stepfolder.latest_step(folder / "checkpoints") is None:
        raise UsageError(
            "the run has no checkpoint",
            path=folder,
            fix="train it first: the same command with --mode=train",
        )


def differences(old: Mapping, new: Mapping, prefix: str = "") -> list[str]:
    """The fields in which two configs differ, as "a.b: was 1, is 2"."""
    found = []
    for key in sorted({*old, *new}):
        was, now = old.get(key, "nothing"), new.get(key, "nothing")
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found += differences(was, now, f"{prefix}{key}.")
        elif was != now:
            found.append(f"{prefix}{key}: was {was}, is {now}")
    return found


def _compare(folder: Path, name: str, value: Any) -> None:
    known = _hashes(folder)
    if name not in known:
        hashes.unhashed(folder)
    elif hashes.of_json(value) not in known[name]:
        raise UsageError(
            "edited since medjax wrote it: what the weights mean depends on it",
            path=folder / name,
            fix=f"restore the file; to use it as it is, `medjax info {folder} --accept`",
        )


def _hashes(folder: Path) -> dict[str, list[str]]:
    """Document -> its accepted hashes; empty for a run of an earlier version."""
    path = folder / HASHES
    if not path.is_file():
        return {}
    found = files.read_json(path)
    if not isinstance(found, dict) or not all(isinstance(v, list) for v in found.values()):
        raise UsageError(
            "a damaged list of hashes",
            path=path,
            fix=f"restore the file; to use the run as it is, delete {path}",
        )
    return found


def _found(path: Path) -> list[Any]:
    """The current content of a document; nothing if it is damaged."""
    try:
        return [files.read_json(path)]
    except UsageError:
        return []
