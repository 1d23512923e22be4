"""Entry point of the engine: `python -m medjax.main`.

    python -m medjax.main --config=configs/x.py[:variant] --workdir=RUN
                          [--mode=...] [--config.field=value ...]

Modes: `train` prepares missing cases, trains (resuming from the last checkpoint of RUN) and
evaluates; `evaluate` predicts and scores the validation cases of a trained RUN; `crossval` does
both for every fold (or those of --folds), in RUN/fold_K, and scores all cases together; `dry`
prints what a run would do, from shapes alone (--devices=1,8,64: for these numbers of devices).
Several processes (docs/scaling.md) share one run: `./launch.sh local|slurm|tpu`. Exit codes: 0 ok,
1 error, 2 usage, 3 some cases failed, 4 verification failed, 75 preempted (run again to continue),
130 interrupted, 143 terminated.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medjax.border import guarded
from medjax.errors import EXIT_OK, UsageError, did_you_mean

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


def parse(argv: Sequence[str]) -> Command:
    """Parses the flags; raises `UsageError` with a correction for wrong flags.

    Args:
      argv: the program's name, then flags. If a flag is repeated, the last value is used.
    """
    argv = _last_of_each(argv)
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "experiment, e.g. configs/multitalent.py:demo", values, lock_config=True
    )
    flags.DEFINE_string(
        "workdir", "", "run folder: checkpoints, logs, predictions, numbers", values
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
    flags.DEFINE_boolean(
        "compile",
        True,
        "with --devices: also compile the training step for each (it is lowered in any case)",
        values,
    )
    flags.DEFINE_boolean("help", False, "show this text", values, short_name="h")
    sys.modules.pop(
        "config_config", None
    )  # ml_collections loads a config into the module of the previous one, with its definitions
    before, sys.argv = sys.argv, list(argv)  # ml_collections reads the overrides there
    try:
        rest = values(list(argv))
        given = values.config
        hasattr(given, "keys")  # a config that could not be loaded raises when it is accessed
    except (
        Exception
    ) as error:  # a config file may raise anything; absl's own errors are several unrelated classes
        raise UsageError(_reason(error), fix=_hint(argv)) from error
    except SystemExit as error:
        raise UsageError(
            "the config ended the program",
            found=f"exit {error.code}",
            fix="let get_config() return a ConfigDict",
        ) from error
    finally:
        sys.argv = before
    if values["help"].value:
        print(f"{__doc__}\n{values.get_help()}")
        raise SystemExit(0)
    if len(rest) > 1:
        raise UsageError(f"unexpected arguments {rest[1:]}", fix="flags look like --name=value")
    if given is None and any(a.startswith("--config=") and len(a) > len("--config=") for a in argv):
        raise UsageError(
            "the config is empty", fix="let get_config() of the file return a ConfigDict"
        )
    if given is None:
        raise UsageError(
            "no config given",
            fix="add --config=configs/multitalent.py:demo (python -m medjax.main --help lists the "
            "flags)",
        )
    config = next((a.split("=", 1)[1] for a in argv if a.startswith("--config=")), "").split(":")[0]
    if not Path(config).is_file():
        raise UsageError("no such config file", path=config, fix=_hint(argv))
    _check_fields(given, config)
    if "\0" in values.workdir:
        raise UsageError(
            "unusable run folder: it contains a NUL character", fix="add --workdir=runs/NAME"
        )
    if not values.workdir and values.mode != "dry":
        raise UsageError("no run folder given", fix="add --workdir=runs/NAME")
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
        Path(values.workdir or "."),
        values.mode,
        folds,
        devices,
        values["compile"].value,
        tuple(argv[1:]),
    )


def _check_fields(config: Any, path: str) -> None:
    """`UsageError` for a config without a required section, or with invalid numbers."""
    fields = config if hasattr(config, "keys") else {}
    if missing := [name for name in SECTIONS if name not in fields]:
        fix = "begin with base_config() of configs/base.py"
        raise UsageError(
            "the config lacks sections", path=path, found=f"no {', '.join(missing)}", fix=fix
        )
    train = fields["train"]
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
    """The arguments with only the last of repeated --name=value flags.

    ml_collections would join the values of a tuple.
    """
    names = [a.split("=", 1)[0] if a.startswith("--") and "=" in a else "" for a in argv]
    return [a for i, a in enumerate(argv) if not names[i] or names[i] not in names[i + 1 :]]


def _reason(error: Exception) -> str:
    """The reason of an error in one line; for an error inside a config file its last line only."""
    text = str(error).replace("\\n", "\n").replace("\\'", "'")
    if text[:1] == text[-1:] and text[:1] in ("'", '"'):  # ml_collections quotes its messages
        text = text.strip("\"'")
    if isinstance(error, KeyError):
        text = f"no field {text}"
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if "Traceback" in text else " ".join(lines)


def _hint(argv: Sequence[str]) -> str:
    config = next((a.split("=", 1)[1] for a in argv if a.startswith("--config=")), "")
    path = config.split(":")[0]
    if path and not Path(path).is_file():
        return did_you_mean(
            path,
            [str(p) for p in Path("configs").glob("*.py") if p.stem not in ("__init__", "base")],
        )
    return "see the fields in configs/base.py and the named config"


def run(command: Command) -> int:
    """Runs one mode; returns the exit code."""
    import jax

    from medjax.registry import plain
    from medjax.runs import crossval, dry, hosts, stages

    if cache := os.environ.get("MEDJAX_COMPILE_CACHE"):
        jax.config.update("jax_compilation_cache_dir", cache)
    fields = plain(command.config)
    if command.mode == "dry":
        print(dry.dry(fields, command.workdir, command.devices, compiled=command.compile))
        return EXIT_OK
    hosts.connect()
    if command.mode == "crossval":
        return crossval.run(fields, command.workdir, command.folds)
    with hosts.holding(command.workdir, "training" if command.mode == "train" else "evaluation"):
        experiment = stages.open_run(fields, command.workdir)
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
