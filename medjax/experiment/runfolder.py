"""The run folder: what it holds, how it is written and read. Enough to resume, to predict and to explain.

config.json (resolved), labels.json, plan.json, splits_final.json, environment.json, metrics.jsonl, checkpoints/, predictions/, evaluation/.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medjax.build import plain
from medjax.data.plan import Plan
from medjax.errors import UsageError
from medjax.labels import LabelSpace

SPLITS_INFO = "splits_info.json"  # hashes, twins and settings of the splits
CONFIG, LABELS, PLAN, SPLITS, ENVIRONMENT = "config.json", "labels.json", "plan.json", "splits_final.json", "environment.json"


def write_json(path: Path, value: Any) -> None:
    """JSON under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def read_json(folder: Path, name: str) -> Any:
    """One file of a run folder; `UsageError` where it is missing or damaged."""
    try:
        return json.loads((folder / name).read_text())
    except OSError as error:
        raise UsageError("not a run folder", path=folder, expected=f"a file {name}", fix="name the --workdir of a training") from error
    except ValueError as error:
        raise UsageError(f"damaged file: {error}", path=folder / name) from error


def read_config(folder: Path) -> dict:
    """The resolved config as plain values (lists become tuples again)."""
    return plain(read_json(folder, CONFIG))


def read_space(folder: Path) -> LabelSpace:
    """The label space the run was trained in."""
    return LabelSpace.from_json(read_json(folder, LABELS))


def read_plan(folder: Path) -> Plan:
    """Spacing and normalisation the run was trained with."""
    return Plan.from_json(read_json(folder, PLAN))


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
