"""The checkpoint folders of a run: which steps exist, which are damaged, which one a word names.

Reads JSON, never an array. In: a run folder or its `checkpoints` folder. Out: steps, facts, and
errors that distinguish a run without checkpoints from one whose checkpoints are damaged, partly
copied or missing.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medjax import files
from medjax.errors import TrainError

FACTS = "_CHECKPOINT_METADATA"  # orbax' own JSON file of a step; ours are its custom metadata
TEMPORARY = ".orbax-checkpoint-tmp"  # ends the name of a step that is being written
SAVED = "saved.json"  # beside the folder of the checkpoints: the newest step that was saved
BASE = "base"  # subfolder of the checkpoints: frozen parameters, which all steps share
_STEP, _ASIDE = re.compile(r"0|[1-9][0-9]*"), re.compile(r"[0-9]+\.unreadable(-[0-9]+)?")

log = logging.getLogger("medjax.checkpoint")


def steps(folder: str | Path) -> list[int]:
    """The complete checkpoints of a folder, ascending; empty for a missing folder.

    Reads no arrays.
    """
    return _survey(Path(folder))[0]


def damaged(folder: str | Path) -> list[str]:
    """Names of step folders that cannot be read: partial copies, and those that were set aside."""
    return _survey(Path(folder))[1]


def require_readable(folder: str | Path) -> None:
    """Raises `TrainError` if checkpoints were saved in a folder but none is complete.

    A folder that never had one passes.
    """
    folder = Path(folder)
    found, broken = _survey(folder)
    if found:
        return
    if broken:
        raise TrainError(
            "no checkpoint can be read: the step folders are damaged or partly copied",
            path=folder,
            found=", ".join(broken[:12]),
            expected=f"step folders with a file {FACTS}",
            fix="copy the whole folder again; to start from the first step, use another --workdir",
        )
    if (step := newest_saved(folder)) is not None:
        raise TrainError(
            "the checkpoints of this run are missing",
            path=folder,
            expected=f"the checkpoint of step {step}",
            fix="copy the folder again; to start from the first step, use another --workdir, or "
            f"delete {saved_path(folder)}",
        )


def newest_saved(folder: str | Path) -> int | None:
    """The newest step that was saved in a folder named `checkpoints`, as noted beside it.

    None without a note.
    """
    path = saved_path(Path(folder))
    if path is None or not path.is_file():
        return None
    found = files.read_json(
        path, error=TrainError, fix="delete the file if the checkpoints are complete"
    )
    step = found.get("step") if isinstance(found, dict) else None
    if not isinstance(step, int):
        raise TrainError(
            "no step is noted",
            path=path,
            found=str(found)[:80],
            fix="delete the file if the checkpoints are complete",
        )
    return step


def latest_step(folder: str | Path) -> int | None:
    """The newest complete checkpoint, or None."""
    return max(steps(folder), default=None)


def best_step(folder: str | Path) -> int | None:
    """The checkpoint with the highest metric (the newest among equals), or None if none has one."""
    rated = [
        (facts["metric"], step)
        for step in steps(folder)
        if (facts := read_facts(folder, step)).get("metric") is not None
    ]
    return max(rated)[1] if rated else None


def read_facts(folder: str | Path, step: int) -> dict:
    """The JSON facts of one checkpoint: step, metric, recipe, progress, shapes of all arrays.

    `TrainError` if they cannot be read.
    """
    return facts_of(Path(folder) / str(step))


def find(path: str | Path, which: str = "last") -> Path:
    """The folder of one checkpoint.

    Args:
      path: a run folder, its `checkpoints` folder, or the folder of one step.
      which: "last", "best" (highest metric, else the last), or a step as text.

    Raises: `TrainError` naming the folders that were searched.
    """
    path = Path(path)
    if (path / FACTS).is_file():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    require_readable(folder)
    known, broken = _survey(folder)
    newest = max(known, default=None)
    if which == "best":
        step, name = best_step(folder) or newest, ""
        if partial := [n for n in broken if n.isdecimal()]:
            log.warning("%s: %s cannot be read and are not compared", folder, ", ".join(partial))
    elif which == "last":
        step, name = (
            newest,
            max(
                (n for n in broken if n.isdecimal() and int(n) > (newest or 0)), key=int, default=""
            ),
        )
        if (saved := newest_saved(folder) or 0) > (newest or 0):
            log.warning(
                "%s: step %d was saved here, but the newest that is left is %s",
                folder,
                saved,
                newest,
            )
    else:
        step, name = int(which) if which.isdecimal() else None, which if which in broken else ""
    if name:
        fix = f"copy it again, or use another one: --checkpoint {newest}"
        raise TrainError(
            "a damaged or partly copied checkpoint",
            path=folder / name,
            expected=f"a file {FACTS}",
            fix=fix,
        )
    if step is None or step not in known:
        raise TrainError(
            f"no checkpoint {which!r}",
            path=folder,
            found=known or "no complete checkpoint",
            fix="train first, or name another step",
        )
    return folder / str(step)


def saved_path(folder: Path) -> Path | None:
    """Where the newest step of a folder named `checkpoints` is noted; None for other folders."""
    return folder.parent / SAVED if folder.name == "checkpoints" else None


def facts_of(folder: Path) -> dict:
    """`read_facts` of the folder of one step."""
    fix = "copy the checkpoint again, or use another one"
    found = files.read_json(folder / FACTS, error=TrainError, fix=fix)
    facts = found.get("custom_metadata") if isinstance(found, dict) else None
    if not isinstance(facts, dict):
        raise TrainError("no readable checkpoint facts", path=folder / FACTS, fix=fix)
    return facts


def base_of(folder: Path, facts: Mapping[str, Any]) -> Path | None:
    """The folder of the frozen parameters that a step refers to; None if it holds all parameters.

    Args:
      folder, facts: of the step.

    Raises: `TrainError` if it is missing or holds other parameters.
    """
    given = facts.get("base")
    if given is None:
        return None
    fix = f"copy the folder {folder.parent.name} as a whole, with {BASE}"
    try:
        path, digest = folder.parent / BASE / str(int(given["number"])), str(given["hash"])
    except (TypeError, KeyError, ValueError) as error:
        raise TrainError("no readable checkpoint facts", path=folder / FACTS, fix=fix) from error
    if not (path / FACTS).is_file():
        raise TrainError(
            f"the frozen parameters of checkpoint {folder.name} are missing",
            path=path,
            expected=f"a file {FACTS}",
            fix=fix,
        )
    if (found := facts_of(path).get("hash")) != digest:
        raise TrainError(
            f"the frozen parameters are not those of checkpoint {folder.name}",
            path=path,
            found=found,
            expected=digest,
            fix=fix,
        )
    return path


def _survey(folder: Path) -> tuple[list[int], list[str]]:
    """(complete steps, names of incomplete or set-aside step folders), ascending.

    From one listing of the folder.
    """
    try:
        names = [p.name for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
        complete = sorted(
            int(name)
            for name in names
            if _STEP.fullmatch(name) and (folder / name / FACTS).is_file()
        )
    except OSError as error:
        raise TrainError(
            f"cannot be read ({error.strerror or error})",
            path=folder,
            fix="check the path and its permissions",
        ) from error
    known = {str(step) for step in complete}
    broken = [
        name
        for name in names
        if (_STEP.fullmatch(name) and name not in known) or _ASIDE.fullmatch(name)
    ]
    return complete, sorted(broken, key=lambda name: (int(name.split(".")[0]), name))
