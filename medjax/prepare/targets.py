"""Checks where prepared cases may be written, and what must never be overwritten.

A folder of the store is replaced or removed only if it is a prepared case: it holds only files that
medjax writes, and its case.json names this case and corpus. Anything else that exists under the
name of a case, links included, is refused.
"""

import contextlib
import dataclasses
import errno
import os
import re
import shutil
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from medjax import files, locks
from medjax.corpora.inputs import Case
from medjax.errors import DataError, UsageError, WriteError
from medjax.prepare import store
from medjax.scans import records

ELSEWHERE = (
    "give another store folder (-o; in a training --config.data.store), or move this one away"
)
_PART = re.compile(
    r"(case\.json(\.\d+-[0-9a-f]{8})?|locations\.npz|(image|label)\.zarr(/zarr\.json|/c(/\d+)*)?)|(.*/)?\.medjax-tmp\..+"
)
_FORMER = r"\.tmp-{host}-(?P<pid>\d+)-[0-9a-f]{{8}}-.+"  # temporary folders of earlier versions


@dataclasses.dataclass(frozen=True)
class Found:
    """What exists under the name of a case.

    `state` is "free", "ours" (with the fields of its case.json), "damaged" or "foreign" (with a
    `reason`).
    """

    state: str
    meta: dict | None = None
    reason: str = ""


def look(folder: str | os.PathLike, name: str, corpus: str) -> Found:
    """What exists in a folder, for the case `name` of the corpus with the store name `corpus`.

    Nothing is followed or changed. "damaged" is a prepared case whose case.json cannot be read: all
    four parts are there, and nothing else.
    """
    folder = Path(folder)
    try:
        mode = os.lstat(folder).st_mode
    except FileNotFoundError:
        return Found("free")
    except OSError as error:
        return Found("foreign", reason=f"what cannot be read ({error.strerror})")
    if stat.S_ISLNK(mode):
        return Found("foreign", reason=f"a link to {os.readlink(folder)}")
    if not stat.S_ISDIR(mode):
        return Found("foreign", reason="a file")
    described = folder / "case.json"
    if described.is_symlink() or not described.is_file():
        return Found("foreign", reason="a folder without a case.json of medjax")
    try:
        meta = files.read_json(described, error=DataError)
    except DataError:
        meta = None
    if isinstance(meta, dict):
        if (
            meta.get("name") == name
            and meta.get("corpus") == corpus
            and isinstance(meta.get("key"), str)
            and "version" in meta
        ):
            whole = all(
                isinstance(meta.get(field, {}), dict) for field in ("sources", "stat", "inputs")
            )
            return Found(
                "ours", meta if whole and "sources" in meta else {"key": "", "sources": {}}
            )
        if "name" in meta and "corpus" in meta and (meta["name"], meta["corpus"]) != (name, corpus):
            return Found(
                "foreign",
                reason=f"the prepared case {str(meta['name'])[:80]!r} of "
                f"{str(meta['corpus'])[:80]!r}",
            )
    whole = (
        set(os.listdir(folder)) >= set(store.FILES)
        and (folder / "image.zarr" / "zarr.json").is_file()
    )
    if whole and not foreign_entries(folder):
        return Found("damaged", {"key": "", "sources": {}})
    return Found("foreign", reason="a folder whose case.json is not of medjax, or damaged")


def foreign_entries(folder: str | os.PathLike) -> list[str]:
    """Entries of a folder that medjax does not write into a case's folder, as relative paths.

    Links always count.
    """
    found, todo = [], [""]
    while todo:
        part = todo.pop()
        for entry in os.scandir(os.path.join(folder, part)):
            name = f"{part}/{entry.name}" if part else entry.name
            if entry.is_symlink() or not _PART.fullmatch(name):
                found.append(name)
            elif entry.is_dir(follow_symlinks=False):
                todo.append(name)
    return sorted(found)


def check_targets(corpus: str, cases: Sequence[Case], root: str | os.PathLike) -> None:
    """Refuses a store that would overwrite anything except prepared cases of this corpus.

    Nothing is written.

    Args:
      corpus: the store name of the corpus. cases: all that may be written. root: the store.

    Raises: `UsageError` for names that cannot be folders, two cases of one name, existing targets
      that medjax did not write, links in the store, raw files inside the store's folder for the
      corpus, and a store inside the folder of a case.
    """
    files.check_name(corpus, "corpus name")
    names = [
        files.check_name(case.name, "case name", path=case.images[0] if case.images else None)
        for case in cases
    ]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise UsageError(
            "two cases with one name", path=corpus, found=twice, fix="rename one of them"
        )
    folder = Path(root) / corpus
    try:
        os.lstat(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError(
            f"the store cannot be made: {error.strerror}",
            path=folder,
            fix="check the path and its permissions",
        ) from error
    if folder.is_symlink() or (os.path.lexists(folder) and not folder.is_dir()):
        kind = f"a link to {os.readlink(folder)}" if folder.is_symlink() else "a file"
        raise UsageError(
            "the store's folder for this corpus is no folder",
            path=folder,
            found=kind,
            fix=ELSEWHERE,
        )
    _check_sources(cases, folder)
    foreign = [
        (name, found)
        for name in names
        if (found := look(folder / name, name, corpus)).state == "foreign"
    ]
    if foreign:
        name, found = foreign[0]
        rest = f" (and {len(foreign) - 1} more cases)" if len(foreign) > 1 else ""
        raise UsageError(
            f"is in the way of a prepared case, and medjax did not write it{rest}",
            path=folder / name,
            found=found.reason,
            expected="nothing, or this very case as prepared by medjax",
            fix=ELSEWHERE,
        )


def _check_sources(cases: Sequence[Case], folder: Path) -> None:
    """Refuses raw files inside the store's folder, and a store inside one case's folder."""
    real = os.path.realpath(folder)
    for case in cases:
        for path in (*case.images, *case.label_files):
            if any(Path(place).is_relative_to(real) for place in _places(path)):
                raise UsageError(
                    "the store would lie among the raw files: its folder for this corpus holds "
                    "some",
                    path=folder,
                    found=path,
                    fix="give another store folder (-o; in a training --config.data.store)",
                )
    check_outside(
        cases,
        folder,
        "the store",
        "give another store folder (-o; in a training --config.data.store)",
    )


def check_outside(cases: Sequence[Case], folder: str | os.PathLike, what: str, fix: str) -> None:
    """Refuses a folder of medjax inside the folder of one case or of a DICOM series.

    Args:
      what: the folder's purpose, e.g. "the store". fix: of the message.
    """
    users: dict[str, set] = {}
    for number, case in enumerate(cases):
        for path in (*case.images, *case.label_files):
            for place in _places(path):
                # A DICOM folder is a case's folder by itself. The one above counts as well: BIDS
                # has sub-01/anat.
                own = place if os.path.isdir(place) else os.path.dirname(place)
                for parent in (own, os.path.dirname(own)):
                    users.setdefault(parent, set()).add(number)
                if os.path.isdir(place):
                    users.setdefault(own, set()).add("series")
    real = os.path.realpath(folder)
    for parent in (real, *map(str, Path(real).parents)):
        owners = users.get(parent, set())
        of_one = len(owners) == 1 and (len(cases) > 1 or os.path.basename(parent) == cases[0].name)
        if "series" in owners or of_one:
            raise UsageError(
                f"{what} would lie in a folder with the raw files of a case",
                path=folder,
                found=parent,
                fix=fix,
            )


def _places(path: str) -> set[str]:
    """Where a file of a case lies: followed to the end, and with a link as its last part."""
    if (local := _local(path)) is None:
        return set()
    return {
        os.path.realpath(local),
        os.path.join(os.path.realpath(os.path.dirname(local)), os.path.basename(local)),
    }


def _local(path: str) -> str | None:
    """The file or folder of a path of a case; None for one in a bucket."""
    if not records.is_record(path):
        return os.path.abspath(path)
    location = os.fspath(path).removeprefix(records.SCHEME).rpartition("#")[0]
    return (
        None if "://" in location else os.path.join(os.path.abspath(location), "dataset_info.json")
    )


@contextlib.contextmanager
def holding(root: str | os.PathLike, corpus: str, say: Callable[[str], None]) -> Iterator[None]:
    """Locks the store's folder of a corpus, which is created if missing.

    Waits, after a line to `say`, while another process holds it. If the folder is read-only or the
    disk is full, no lock is taken: what is prepared there can still be used.
    """
    folder = Path(root) / corpus
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the store cannot be made: {error.strerror}",
            path=folder,
            fix="check the path and its permissions",
        ) from error
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.lock(folder, "preparing", wait=True, say=say))
        except WriteError as error:
            if os.access(folder, os.W_OK):
                say(f"the store cannot be locked, continuing without a lock: {error}")
        yield


def publish(temporary: Path, final: Path, corpus: str, key: str | None) -> None:
    """Gives a finished folder its name.

    If another process was first with the same key, its folder is kept.

    Raises: `DataError` if another case, or files that medjax did not write, have the name.
    """
    for _ in range(20):
        if look(final, final.name, corpus).state == "free":
            try:
                os.rename(temporary, final)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
        current = look(final, final.name, corpus)
        if current.meta is not None and current.meta["key"] == key:
            return
        discard(final, corpus)
    raise DataError(
        "another process keeps writing this case differently",
        path=final,
        fix="use one plan per store",
    )


def discard(folder: Path, corpus: str) -> None:
    """Removes a prepared case in one step, then deletes it.

    `DataError` for a folder that contains other files.
    """
    _check_own(folder, folder.name, corpus, folder)
    trash = files.temporary(folder)
    try:
        os.rename(folder, trash)
    except FileNotFoundError:
        return
    try:
        _check_own(
            trash, folder.name, corpus, folder
        )  # another process may have replaced it between the check and the move
    except DataError:
        os.rename(trash, folder)
        raise
    shutil.rmtree(trash, ignore_errors=True)


def _check_own(folder: Path, name: str, corpus: str, shown: Path) -> None:
    found = look(folder, name, corpus)
    if found.state == "foreign":
        raise DataError(
            "is in the way of a prepared case, and medjax did not write it",
            path=shown,
            found=found.reason,
            fix=ELSEWHERE,
        )
    if found.state != "free" and (others := foreign_entries(folder)):
        raise DataError(
            "a prepared case that has to be replaced holds files that medjax did not write",
            path=shown,
            found=", ".join(others[:4]),
            fix="move them away, then run the same command again",
        )


def sweep(folder: Path) -> bool:
    """Deletes leftovers of killed processes of this machine; True if another process is running."""
    files.sweep(folder)
    former = re.compile(_FORMER.format(host=re.escape(socket.gethostname())))
    busy = False
    for entry in os.scandir(folder):
        found = former.fullmatch(entry.name)
        if found is None:
            busy = busy or entry.name.startswith(".medjax-tmp.")
        elif files.is_alive(int(found["pid"])):
            busy = True
        elif entry.is_dir(follow_symlinks=False) and not foreign_entries(entry.path):
            shutil.rmtree(entry.path, ignore_errors=True)
    return busy


def check_plan_file(path: str | os.PathLike) -> None:
    """`UsageError` if a file under the name of a plan was not written by medjax."""
    from medjax.prepare.plan import Plan

    if not os.path.lexists(path):
        return
    try:
        Plan.from_json(files.read_json(path))
    except Exception as error:
        raise UsageError(
            "is in the way of the store's plan, and medjax did not write it",
            path=path,
            fix="move it away, or give another store folder",
        ) from error
