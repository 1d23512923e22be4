"""Locks of folders: only one process, or one multi-process job, works in a run folder or store.

A lock is a file that names its holder. Stale locks are recognised by host, boot, process id and
start time of the process.
"""

import contextlib
import dataclasses
import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from medjax import files
from medjax.errors import UsageError, shown

LOCK = ".medjax-lock"


@dataclasses.dataclass(frozen=True)
class Holder:
    """The holder of a lock.

    Host, process id, boot of the machine, pid namespace, start of the process, and its work.
    """

    host: str
    pid: int
    boot: str
    namespace: str
    started: str
    what: str
    since: str

    def __str__(self) -> str:
        return (
            f"process {self.pid} on {shown(self.host)} ({shown(self.what)}, since "
            f"{shown(self.since)})"
        )


@contextlib.contextmanager
def lock(
    folder: str | os.PathLike,
    what: str,
    *,
    wait: bool = False,
    say: Callable[[str], None] = lambda line: None,
    every: float = 1.0,
) -> Iterator[None]:
    """Holds a lock of `folder`, which must exist, during the block.

    The lock is a file. A lock whose process has ended (another boot of this machine, or no such
    process) is taken over. A lock of another host, or of another container on this host, cannot be
    judged and is respected.

    Args:
      what: the holder's work, e.g. "training". wait: wait until the lock is free instead of
        raising; `say` gets one line then.
      every: seconds between two checks.

    Raises: `UsageError` naming the holder, unless `wait`; `WriteError` if the lock cannot be
      written.
    """
    path, me, waiting = Path(folder) / LOCK, _me(what), False
    while not _take(path, me):
        holder = _holder(path)
        if holder is not None and _has_ended(holder):
            _steal(path, holder)
            continue
        if not wait:
            raise UsageError(
                "the folder is in use",
                path=folder,
                found=str(holder or "an unreadable lock"),
                fix=f"wait for it; if it no longer runs, delete {path}",
            )
        if not waiting:
            say(
                f"{folder}: waiting for {holder or 'another process'}; if it no longer runs, "
                f"delete {path}"
            )
            waiting = True
        time.sleep(every)
    try:
        yield
    finally:
        if _holder(path) == me:
            with contextlib.suppress(OSError):
                path.unlink()


def _take(path: Path, me: Holder) -> bool:
    """Whether the lock file could be created.

    Its content is complete from the first moment: the file is linked into place, not written.
    """
    name = files.temporary(path)
    try:
        with files.create(name) as file:
            file.write(json.dumps(dataclasses.asdict(me)).encode())
        try:
            os.link(name, path)
        except FileExistsError:
            return False
        except OSError as reason:  # a file system without hard links
            if reason.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            try:
                with files.create(path) as file:
                    file.write(json.dumps(dataclasses.asdict(me)).encode())
            except FileExistsError:
                return False
        return True
    except OSError as reason:
        raise files.refused(path, reason) from reason
    finally:
        with contextlib.suppress(OSError):
            name.unlink(missing_ok=True)


def _steal(path: Path, holder: Holder) -> None:
    """Removes the lock of an ended process; if several processes try, exactly one succeeds."""
    aside = files.temporary(path)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if _holder(aside) != holder:  # a running process took it between check and move: it is put back
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _holder(path: Path) -> Holder | None:
    try:
        found = json.loads(path.read_bytes()[:4096])
        return Holder(**{f.name: f.type(found[f.name]) for f in dataclasses.fields(Holder)})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _has_ended(holder: Holder) -> bool:
    here = _me("")
    if holder.host != here.host:
        return False
    if holder.boot != here.boot:
        return True
    if holder.namespace != here.namespace:
        return False
    return not files.is_alive(holder.pid) or _started(holder.pid) != holder.started


def _me(what: str) -> Holder:
    boot = namespace = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    pid = os.getpid()
    return Holder(
        socket.gethostname(),
        pid,
        boot,
        namespace,
        _started(pid),
        what,
        time.strftime("%Y-%m-%d %H:%M:%S%z"),
    )


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot.

    Distinguishes a process from a later one with the same id.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""
