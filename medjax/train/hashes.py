"""Hashes of a checkpoint's files, compared when it is read.

    <step>/hashes.json  {"files": {"params/d/1f...": [bytes, "xxh3:..."], ...},
                         "facts": "xxh3:..."}

The folder of frozen parameters (`base/N`) has them too. They are written before a folder gets its
name, so a checkpoint is hashed or absent, also after a kill. Checkpoints of earlier versions have
no hashes, which is reported once per run folder. The hashes detect damage; they do not protect
against forgery.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from medjax import files
from medjax.errors import TrainError, shown

NAME = "hashes.json"
LATER = (
    "_CHECKPOINT_METADATA",
    "commit_success.txt",
)  # of the step folder itself: written again after the hashes
THREADS = 4  # files read at a time
AGAIN = "copy the run folder again, or use another checkpoint (`--checkpoint STEP`)"

_said: set[Path] = set()


def write(folder: Path, facts: Mapping[str, Any]) -> None:
    """Hashes all files of a step folder, and its facts, into `hashes.json`.

    Raises `OSError` or `WriteError` on failure.
    """
    names = sorted(_listed(folder))
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(
            pool.map(
                lambda name: [(folder / name).stat().st_size, files.checksum_of(folder / name)],
                names,
            )
        )
    files.write_json(
        folder / NAME,
        {"files": dict(zip(names, found, strict=True)), "facts": of_json(facts)},
        error=TrainError,
    )


def check(
    folder: Path, facts: Mapping[str, Any], part: str = "", share: tuple[int, int] = (0, 1)
) -> None:
    """Compares a step folder with its hashes.

    Args:
      facts: of the checkpoint, as read. part: only the files of this subfolder ("params"); empty:
        all.
      share: (i, n): every n-th file, from the i-th.

    Raises: `TrainError` naming the first file that is missing or differs.
    """
    path = folder / NAME
    if not path.is_file():
        if facts.get("hashed"):
            raise TrainError("a file of the checkpoint is missing", path=path, fix=AGAIN)
        unhashed(folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent)
        return
    stored = files.read_json(path, error=TrainError, fix=AGAIN)
    try:
        listed = {
            str(name): (int(size), str(digest)) for name, (size, digest) in stored["files"].items()
        }
        known = stored["facts"]
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in listed):
            raise ValueError("a path that leaves the folder")
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise TrainError("damaged list of hashes", path=path, fix=AGAIN) from error
    if of_json(facts) != known:
        raise TrainError(
            "the facts of the checkpoint differ from their hash", path=folder / LATER[0], fix=AGAIN
        )
    names = [name for name in sorted(listed) if not part or name.startswith(f"{part}/")][
        share[0] :: share[1]
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        for name, problem in zip(
            names, pool.map(lambda name: _problem(folder / name, *listed[name]), names), strict=True
        ):
            if problem:
                raise TrainError(
                    f"a damaged file of a checkpoint: {problem}", path=folder / name, fix=AGAIN
                )


def of_step(folder: Path) -> str:
    """The hash of a step's hashes, which identifies its content; empty where it has none."""
    path = folder / NAME
    try:
        return files.checksum_of(path) if path.is_file() else ""
    except OSError as error:
        raise TrainError(
            f"cannot be read ({error.strerror or error})", path=path, fix=AGAIN
        ) from error


def of_json(value: Any) -> str:
    """The hash of JSON values, whatever their layout in a file."""
    return files.checksum(
        json.dumps(value, sort_keys=True, separators=(",", ":")).encode("utf-8", "backslashreplace")
    )


def unhashed(run: Path) -> None:
    """Reports, once per run folder, that an earlier version made it without hashes."""
    run = Path(run).absolute()
    if run not in _said:
        _said.add(run)
        text = (
            f"medjax: {shown(run)}: made by an earlier version, without hashes: damage and "
            "edits cannot be noticed"
        )
        print(text, file=sys.stderr, flush=True)


def _problem(path: Path, size: int, digest: str) -> str:
    try:
        found = path.stat().st_size
        if found != size:
            return f"{found} bytes, {size} were written"
        return "" if files.checksum_of(path) == digest else "its content differs from its hash"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _listed(folder: Path) -> Iterator[str]:
    """Paths of the files inside, "/" between the names."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (*LATER, NAME):
            yield name
