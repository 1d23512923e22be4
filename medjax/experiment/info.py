"""Facts for people and programs: what is installed here, and what a run folder knows. Imports jax only to list the devices."""

import importlib.metadata
import json
import platform
import subprocess
import sys
from pathlib import Path

from medjax import __version__, files
from medjax.errors import UsageError
from medjax.experiment import runfolder

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorstore", "nibabel", "ml_collections", "numpy", "scipy")


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
    """Commit and uncommitted files of the checkout this package runs from; empty outside a checkout."""
    here = Path(__file__).resolve().parent

    def ask(*command: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *command], capture_output=True, text=True, timeout=20, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = ask("rev-parse", "HEAD")
        return {"commit": commit, "changed": ask("status", "--porcelain").splitlines()} if commit else {}
    except (OSError, subprocess.TimeoutExpired):
        return {}


def environment() -> dict:
    """What a run was made with: versions, machine, devices, git state, command line."""
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
    from medjax.build import ROOMS, known

    return environment() | {"available": {room: known(room) for room in ROOMS}}


def about_run(folder: Path) -> dict:
    """What a run folder can predict and how it came about; a folder that is no run raises `UsageError`."""
    for name in (runfolder.CONFIG, runfolder.LABELS):
        if not (folder / name).is_file():
            raise UsageError("not a run folder", path=folder, fix="name the --workdir of a training")
    config, labels = (files.read_json(folder / name) for name in (runfolder.CONFIG, runfolder.LABELS))
    try:
        facts = {
            "name": config["name"],
            "model": config["model"],
            "classes": labels["classes"],
            "corpora": [{k: c[k] for k in ("name", "modality", "channels", "annotated")} for c in labels["corpora"]],
            "steps": config["train"]["steps"],
        }
    except (KeyError, TypeError) as error:
        files_read = f"{runfolder.CONFIG} and {runfolder.LABELS}"
        raise UsageError(f"{files_read} do not describe a run", path=folder, found=f"no {error}", fix="restore the files") from error
    if changed := runfolder.edited(folder):
        facts["edited"] = changed
    for name, key in (("environment.json", "environment"), ("plan.json", "plan")):
        if (folder / name).is_file():
            facts[key] = files.read_json(folder / name)
    summary = folder / "evaluation" / "summary.json"
    if summary.is_file():
        facts["foreground_mean"] = dict(files.read_json(summary)).get("foreground_mean")
    return facts


def as_text(facts: dict, indent: int = 0) -> str:
    """Nested facts as indented lines."""
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines += [" " * indent + f"{key}:", as_text(value, indent + 2)]
        elif isinstance(value, list | tuple):
            lines.append(" " * indent + f"{key}: " + ", ".join(json.dumps(v) if isinstance(v, dict) else str(v) for v in value))
        else:
            lines.append(" " * indent + f"{key}: {value}")
    return "\n".join(line for line in lines if line)
