"""Facts about the installation and about run folders, for users and programs.

Imports jax only to list the devices.
"""

import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from medjax import __version__, recipes
from medjax.errors import MedjaxError, UsageError, shown
from medjax.files import read_json
from medjax.labels import LabelSpace
from medjax.runs import folder as runfolder

TESTED_JAX = "0.10"  # the versions of jax that all tests passed on
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorstore",
    "nibabel",
    "ml_collections",
    "numpy",
    "scipy",
)


def versions() -> dict[str, str]:
    """Name -> installed version of everything a result can depend on."""
    found = {"medjax": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def git_state() -> dict:
    """Commit and uncommitted files of the checkout this package runs from; empty without one."""
    here = Path(__file__).resolve().parent

    def ask(*command: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *command],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = ask("rev-parse", "HEAD")
        return (
            {"commit": commit, "changed": ask("status", "--porcelain").splitlines()}
            if commit
            else {}
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}


def environment() -> dict:
    """The environment of a run: versions, machine, devices, git state, command line."""
    import jax

    return {
        "versions": versions(),
        "platform": platform.platform(),
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()],
        "processes": jax.process_count(),
        "git": git_state(),
        "command": sys.argv,
    }


def about() -> dict:
    """What this installation offers."""
    from medjax.registry import PACKAGES, known

    available = {package: known(package) for package in PACKAGES}
    texts = {"docs": str(recipes.root() / "docs"), "tested with jax": TESTED_JAX}
    return environment() | texts | {"available": available}


def about_run(folder: Path) -> dict:
    """What a run folder can predict and its origin; `UsageError` for another folder."""
    for name in (runfolder.CONFIG, runfolder.LABELS):
        if not (folder / name).is_file():
            raise UsageError(
                "not a run folder", path=folder, fix="name the --workdir of a training"
            )
    config = read_json(
        folder / runfolder.CONFIG
    )  # as they are: an edited document is listed, not refused
    space = LabelSpace.from_json(read_json(folder / runfolder.LABELS), folder / runfolder.LABELS)
    if not isinstance(config, dict):
        raise UsageError("unusable config: it is no object", path=folder / runfolder.CONFIG)
    for name in ("name", "model", "train"):
        if name not in config:
            raise UsageError(
                f"unusable config: the field {name!r} is missing",
                path=folder / runfolder.CONFIG,
                found=sorted(config)[:8],
            )
    corpora = [corpus.to_json() for corpus in space.corpora]
    steps = config["train"].get("steps") if isinstance(config["train"], dict) else None
    facts = {
        "name": config["name"],
        "model": config["model"],
        "classes": list(space.classes),
        "corpora": [
            {k: c[k] for k in ("name", "modality", "channels", "annotated")} for c in corpora
        ],
        "steps": steps,
    }
    if changed := runfolder.edited(folder):
        facts["edited"] = changed
    for name, key in (("environment.json", "environment"), ("plan.json", "plan")):
        if (folder / name).is_file():
            facts[key] = read_json(folder / name)
    summary = folder / "evaluation" / "summary.json"
    if summary.is_file():
        found = read_json(summary)
        facts["foreground_mean"] = found.get("foreground_mean") if isinstance(found, dict) else None
    return facts | {"state": _state(folder, steps)}


def _state(folder: Path, steps: Any) -> str:
    """How far a run has come, in words."""
    from medjax.train import stepfolder

    try:
        latest = stepfolder.latest_step(folder / "checkpoints")
    except MedjaxError as error:
        return f"damaged: {error.message}"
    if latest is None:
        return "not trained yet"
    if isinstance(steps, int) and latest < steps:
        return f"stopped at step {latest} of {steps}; the same command continues it"
    scored = (folder / "evaluation" / "summary.json").is_file()
    return f"trained to step {latest}, " + ("evaluated" if scored else "not evaluated")


def about_parameters(folder: Path) -> dict:
    """{"parameters": how many are trained and frozen} of a run that trains a part of its network;
    {} of others, and where no network can be built.
    """
    from medjax.runs import footprint
    from medjax.runs.trained import read_model

    try:
        trained = read_model(folder)
        rules = trained.config.optim.trainable, trained.config.adapters.kernels
        if rules == (((".*", True),), "") and not trained.config.adapters.rules:
            return {}
        found = footprint.budget(trained.config, trained.network)
        return {"parameters": footprint.budget_sentence(found)}
    except MedjaxError:
        return {}


def as_text(facts: dict, indent: int = 0) -> str:
    """Nested facts as indented lines; control characters of names become escapes."""
    lines = []
    for name, value in facts.items():
        key = shown(name)
        if isinstance(value, dict):
            lines += [" " * indent + f"{key}:", as_text(value, indent + 2)]
        elif isinstance(value, list | tuple):
            lines.append(
                " " * indent
                + f"{key}: "
                + ", ".join(json.dumps(v) if isinstance(v, dict) else shown(v) for v in value)
            )
        else:
            lines.append(" " * indent + f"{key}: {shown(value)}")
    return "\n".join(line for line in lines if line)
