"""Entry point of the engine: `python -m medjax.main`.

    python -m medjax.main --config=configs/x.py[:variant] [--workdir=RUN]
                          [--mode=...] [--config.field=value ...]

The config is a file, or one that comes with medjax: without a folder `configs/` of your own, the
name `configs/x.py` means the shipped file. The run folder is runs/NAME unless --workdir is given.

Modes: `train` prepares missing cases, trains (resuming from the last checkpoint of RUN) and
evaluates; `evaluate` predicts and scores the validation cases of a trained RUN; `crossval` does
both for every fold (or those of --folds), in RUN/fold_K, and scores all cases together; `dry`
prints what a run would do, from shapes alone (--devices=1,8,64: for these numbers of devices;
--target=h200x8: compiled for cards that need not be there).
Several processes (docs/scaling.md) share one run: `./launch.sh local|slurm|tpu`. Exit codes: 0 ok,
1 error, 2 usage, 3 some cases failed, 4 verification failed, 75 preempted (run again to continue),
130 interrupted, 143 terminated.
"""

import contextlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medjax import recipes
from medjax.border import guarded
from medjax.errors import EXIT_OK, UsageError, did_you_mean
from medjax.registry import plain
from medjax.runs.settings import accepted, described, overrides, schema

SECTIONS = (
    "name",
    "seed",
    "data",
    "sampler",
    "augment",
    "model",
    "losses",
    "task",
    "optim",
    "train",
    "sharding",
    "init",
    "infer",
    "evaluate",
)
PHANTOMS = 12  # cases per corpus, where a recipe does not say how many
MODES = ("train", "evaluate", "crossval", "dry")


class Command(NamedTuple):
    """Parsed flags: config (ConfigDict), run folder, mode, folds, numbers of devices; raw flags."""

    config: Any
    workdir: Path
    mode: str
    folds: tuple[int, ...] = ()
    devices: tuple[int, ...] = ()
    compile: bool = True
    flags: tuple[str, ...] = ()
    recipe: str = ""
    target: str = ""


def parse(argv: Sequence[str]) -> Command:
    """Parses the flags; raises `UsageError` with a correction for wrong flags.

    Args:
      argv: the program's name, then flags. If a flag is repeated, the last value is used.
    """
    values = _flags()
    argv = [*argv[:1], *_last_of_each(values.read_flags_from_files(argv[1:], force_gnu=False))]
    config = next((a.split("=", 1)[1] for a in argv if a.startswith("--config=")), "")
    given = _load(config) if config else None
    fields = _plain(given) if given is not None else {}
    rest, changes = overrides.split(argv, lambda path: overrides.is_switch(fields, path))
    rest = [a for a in rest if not a.startswith("--config=")]
    try:
        rest = values(rest)
    except Exception as error:  # absl's own errors are several unrelated classes
        raise UsageError(_reason(error), fix=_hint(config)) from error
    if values["help"].value and given is None:
        print(f"{__doc__}\n{values.get_help()}")
        raise SystemExit(0)
    if len(rest) > 1:
        raise UsageError(f"unexpected arguments {rest[1:]}", fix="flags look like --name=value")
    if given is None:
        raise UsageError(
            "no config given",
            fix="add --config=configs/multitalent.py:demo (python -m medjax.main --help lists the "
            "flags)",
        )
    path = config.split(":")[0]
    for change in changes:
        _apply(given, change, path)
    _check_fields(given, path)
    if values["help"].value:
        print(described.text(_plain(given), config))
        raise SystemExit(0)
    if "\0" in values.workdir:
        raise UsageError(
            "unusable run folder: it contains a NUL character", fix="add --workdir=runs/NAME"
        )
    try:
        folds, devices = (
            tuple(int(v) for v in values[name].value) for name in ("folds", "devices")
        )
    except ValueError as error:
        raise UsageError(
            "--folds and --devices take numbers", found=str(error), expected="like --devices=1,8,64"
        ) from error
    if wrong := [n for n in devices if n < 1]:
        raise UsageError(
            "--devices takes numbers of devices",
            found=wrong[0],
            expected="1 or more, like --devices=1,8,64",
        )
    return Command(
        given,
        Path(values.workdir) if values.workdir else default_workdir(_plain(given)),
        values.mode,
        folds,
        devices,
        values["compile"].value,
        tuple(argv[1:]),
        config,
        _target(values.target, values.mode),
    )


def _target(word: str, mode: str) -> str:
    """The flag --target; `UsageError` for an unknown card, or another mode than dry."""
    if word and mode != "dry":
        raise UsageError(
            f"--target={word} is for a rehearsal", found=f"--mode={mode}", fix="add --mode=dry"
        )
    if word:
        from medjax.runs.ahead import cards

        cards.parse(word)
    return word


def default_workdir(fields: Mapping[str, Any]) -> Path:
    """runs/NAME for a config of this name."""
    name = fields["name"]
    if not isinstance(name, str) or not re.fullmatch(r"[\w][\w.+-]*", name):
        raise UsageError(
            "no run folder given, and the config's name is not the name of a folder",
            found=repr(name)[:80],
            fix="add --workdir=runs/NAME",
        )
    return Path("runs") / name


def _flags() -> Any:
    """The flags beside those of the config."""
    from absl import flags

    values = flags.FlagValues()
    flags.DEFINE_string("config", "", "experiment, e.g. configs/multitalent.py:demo", values)
    flags.DEFINE_string(
        "workdir",
        "",
        "run folder: checkpoints, logs, predictions, numbers; default: runs/NAME",
        values,
    )
    flags.DEFINE_enum("mode", "train", MODES, "what to do", values)
    flags.DEFINE_list(
        "folds", [], "with --mode=crossval: folds of this call, e.g. 0,1; default: all", values
    )
    flags.DEFINE_list(
        "devices",
        [],
        "with --mode=dry: memory per device for these numbers of devices, e.g. 1,8,64",
        values,
    )
    flags.DEFINE_string(
        "target",
        "",
        "with --mode=dry: compile the training step for a card that need not be there, e.g. h200, "
        "or h200x8 for eight (needs the extra `aot`)",
        values,
    )
    flags.DEFINE_boolean(
        "compile",
        True,
        "with --devices: also compile the training step for each (it is lowered in any case)",
        values,
    )
    flags.DEFINE_boolean(
        "help",
        False,
        "show this text; with --config: the fields of that config",
        values,
        short_name="h",
    )
    return values


def _load(config: str) -> Any:
    """What `get_config` of a file returns, "FILE" or "FILE:ARGUMENT"."""
    from absl import flags
    from ml_collections import config_flags

    named, mark, argument = config.partition(":")
    if (path := recipes.find(named)) is None:
        raise UsageError("no such config file", path=named, fix=_hint(config))
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", values, lock_config=True)
    sys.modules.pop(
        "config_config", None
    )  # ml_collections loads a config into the module of the previous one, with its definitions
    argv = ["medjax.main", f"--config={path}{mark}{argument}"]
    before, sys.argv = sys.argv, argv  # ml_collections looks for flags there
    try:
        with recipes.importable(path):
            values(argv)
            given = values.config
            hasattr(given, "keys")  # a config that could not be loaded raises when it is accessed
    except Exception as error:  # a config file may raise anything
        raise UsageError(_reason(error), fix=_hint(config)) from error
    except SystemExit as error:
        raise UsageError(
            "the config ended the program",
            found=f"exit {error.code}",
            fix="let get_config() return a ConfigDict",
        ) from error
    finally:
        sys.argv = before
    if given is None:
        raise UsageError(
            "the config is empty", fix="let get_config() of the file return a ConfigDict"
        )
    return given


def load(config: str) -> Any:
    """The config of a recipe "FILE[:ARGUMENT]", a ConfigDict; `UsageError` if there is none."""
    return _load(config)


def change(config: Any, changes: Mapping[str, Any], path: str) -> None:
    """Sets fields, dotted path -> value, and checks the config; `UsageError` names what is wrong.

    Args:
      path: where the config comes from, for messages.
    """
    for name, value in changes.items():
        try:
            _set(config, name.split("."), value)
        except (TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"cannot set {name}", path=path, found=_reason(error)) from error
    _check_fields(config, path)


def _plain(config: Any) -> dict[str, Any]:
    """A config as plain values; {} for what is no config."""
    try:
        return plain(config) if hasattr(config, "keys") else {}
    except Exception as error:  # a required placeholder without a value, for example
        raise UsageError(_reason(error), fix="give every field of the config a value") from error


def _apply(config: Any, change: overrides.Override, path: str) -> None:
    """Sets one field of a ConfigDict, and makes the sections above it."""
    before = _plain(config)
    value = overrides.value_of(before, change)
    try:
        _set(config, change.keys, value)
    except (TypeError, ValueError) as error:  # a name with a dot, for example
        raise UsageError(f"cannot set --config.{change.path}", found=_reason(error)) from error
    if change.path in overrides.NAMING:
        overrides.check_rest(before, _plain(config), change.path, path)


def _set(config: Any, keys: Sequence[str], value: Any) -> None:
    """Sets a field of a ConfigDict (or of a plain dictionary) and makes the sections above it."""
    from ml_collections import ConfigDict

    def section(fields: Mapping) -> Any:
        pairs = {k: section(v) if isinstance(v, Mapping) else v for k, v in fields.items()}
        return pairs if isinstance(config, dict) else ConfigDict(pairs, sort_keys=False)

    with contextlib.ExitStack() as stack:
        if not isinstance(config, dict):
            stack.enter_context(config.unlocked())
            stack.enter_context(config.ignore_type())
        node = config
        for key in keys[:-1]:
            if not hasattr(held := node.get(key), "keys"):
                node[key] = section({"kind": held} if isinstance(held, str) else {})
            node = node[key]
        node[keys[-1]] = section(value) if isinstance(value, Mapping) else value


def _check_fields(config: Any, path: str) -> None:
    """`UsageError` for a config without a required section, or with unknown or unusable fields."""
    fields = _plain(config)
    if missing := [name for name in SECTIONS if name not in fields]:
        fix = "begin with base_config() of configs/base.py"
        raise UsageError(
            "the config lacks sections", path=path, found=f"no {', '.join(missing)}", fix=fix
        )
    accepted.check(fields, path)
    train = fields["train"]
    patch = train.get("patch", (0, 0, 0))
    if len(patch) not in (2, 3):
        raise UsageError(
            "unusable config.train.patch",
            path=path,
            found=patch,
            expected="3 sizes (z, y, x), like 48,96,96, or 2 (y, x) for a 2D network",
        )
    for name in ("steps", "batch"):
        if name not in train or not isinstance(train[name], int) or train[name] < 1:
            found = train[name] if name in train else "nothing"
            raise UsageError(
                f"unusable config.train.{name}",
                path=path,
                found=found,
                expected="a whole number from 1",
            )


def _last_of_each(argv: Sequence[str]) -> list[str]:
    """The arguments with --config written with "=", and only the last of repeated flags."""
    words, found = list(argv), []
    while words:
        word = words.pop(0)
        if word in ("--config", "-config") and words:
            word = f"--config={words.pop(0)}"
        found.append(word)
    names = [a.split("=", 1)[0] if a.startswith("--") and "=" in a else "" for a in found]
    return [a for i, a in enumerate(found) if not names[i] or names[i] not in names[i + 1 :]]


def _reason(error: Exception) -> str:
    """The reason of an error in one line; for an error inside a config file its last line only."""
    text = str(error).replace("\\n", "\n").replace("\\'", "'")
    if text[:1] == text[-1:] and text[:1] in ("'", '"'):  # ml_collections quotes its messages
        text = text.strip("\"'")
    if isinstance(error, KeyError):
        text = f"no field {text}"
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if "Traceback" in text else " ".join(lines)


def _hint(config: str) -> str:
    path = config.split(":")[0]
    if path and recipes.find(path) is None:
        return did_you_mean(path, recipes.known())
    return f"see `python -m medjax.main --config={config or 'FILE'} --help`"


def _ways(recipe: str) -> list[tuple[str, str]]:
    """Commands of a recipe's file that need none of its corpora, and what each is for.

    A recipe names the variants in `TRY`: the one for phantoms, and the one for folders.
    """
    path = recipe.split(":")[0]
    if not path or "config_config" not in sys.modules:
        return []
    found = []
    for variant, purpose in zip(
        getattr(sys.modules["config_config"], "TRY", ()),
        ("synthetic scans", "scans of your own"),
        strict=False,
    ):
        fields = _plain(_load(f"{path}:{variant}"))["data"]
        command = f"python -m medjax.main --config={path}:{variant}"
        if purpose == "scans of your own":
            command += " --config.data.folders=/your/folder"
        elif not fields["phantom_cases"]:
            command += f" --config.data.phantom_cases={PHANTOMS}"
        found.append((command, purpose))
    return found


def run(command: Command) -> int:
    """Runs one mode; returns the exit code."""
    from medjax.runs import crossval, hosts, stages
    from medjax.runs.start import programs, rehearsal, tracked

    programs.keep()
    config = schema.resolve(plain(command.config))
    asked = rehearsal.Asked(
        command.workdir,
        command.recipe,
        command.devices,
        command.compile,
        _ways(command.recipe) if config.data.declared else (),
        command.target,
    )
    if command.mode == "dry":
        print(rehearsal.text(config, asked))
        return EXIT_OK
    rehearsal.refuse_without_data(config, asked)
    hosts.connect()
    if command.mode != "evaluate":
        tracked.check(config)
    if command.mode == "crossval":
        return crossval.run(config, command.workdir, command.folds)
    with hosts.holding(command.workdir, "training" if command.mode == "train" else "evaluation"):
        experiment = stages.open_run(config, command.workdir)
        if command.mode == "train":
            stages.train(experiment)
        if hosts.alone():
            return stages.evaluate(experiment)
    hosts.part(command.flags)  # the first process re-executes alone, and takes the lock then
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command line; turns errors into one message and an exit code."""
    return guarded(lambda: run(parse(sys.argv if argv is None else ["medjax.main", *argv])))


if __name__ == "__main__":
    sys.exit(main())
