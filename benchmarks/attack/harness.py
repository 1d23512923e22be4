"""What every attack is made of: rows, verdicts, commands in this process or another, trees of
hashes, folders that many rows share.

A row is a generator that builds its fault in a folder of its own and yields one `Seen` per variant.
It passes if every variant that was judged is as expected, and is skipped if a variant says why it
cannot run here.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "PYTHONUNBUFFERED": "1",
}
DONE, SOME_FAILED, USAGE = 0, 3, 2
TRACEBACK = "Traceback (most recent call last)"
SENTENCE = re.compile(r"^medjax: ", re.MULTILINE)
OF_A_CASE = re.compile(
    r"^medjax: .* failed: \w+(Error|Exception|Exit|Interrupt): ", re.MULTILINE
)  # an error that is none of medjax'


@dataclasses.dataclass(frozen=True)
class Seen:
    """One variant of a row: whether its outcome is the expected one (None: cannot run here) and
    what was seen.
    """

    variant: str
    ok: bool | None
    seen: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """One fault. `limit`: seconds after which it counts as hanging; `before`: the verdict on the
    tree that was attacked first.
    """

    id: str
    surface: str
    what: str
    before: str
    run: Callable[["Site"], Iterator[Seen]]
    limit: float


ROWS: dict[str, Row] = {}


def row(id: str, what: str, before: str, limit: float = 90.0) -> Callable:
    """Registers a generator as a row; the surface is the name of its module."""

    def add(function: Callable) -> Callable:
        assert id not in ROWS, id
        ROWS[id] = Row(id, function.__module__.rsplit(".", 1)[-1], what, before, function, limit)
        return function

    return add


@dataclasses.dataclass(frozen=True)
class Said:
    """How a command ended: exit code (negative: killed by that signal; None: it ran too long),
    everything it printed, seconds.
    """

    code: int | None
    text: str
    seconds: float = 0.0

    @property
    def raw(self) -> bool:
        """Whether a killed process or a traceback is what the user sees: one that no sentence of
        ours follows, or one of a case.
        """
        killed = self.code is None or self.code < 0 or self.code in (134, 135, 136, 139)
        traced = TRACEBACK in self.text and not SENTENCE.search(self.text.rpartition(TRACEBACK)[2])
        return killed or traced or bool(OF_A_CASE.search(self.text))

    def has(self, *words: str) -> bool:
        """Whether all words occur, in whatever case."""
        return all(word.lower() in self.text.lower() for word in words)

    def __str__(self) -> str:
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        said = next(
            (line for line in lines if line.startswith("medjax:")),
            lines[-1] if lines else "no word",
        )
        return f"exit {self.code}{' with a traceback' if self.raw else ''}: {said[:260]!r}"


class Site:
    """The folder of one row, several levels deep so that an escape stays inside of what is watched;
    and the things all rows share.
    """

    def __init__(self, top: Path, shared: Path):
        self.top, self.shared = top, shared
        self.root = top / "one" / "two" / "three" / "four"
        self.root.mkdir(parents=True)

    def path(self, *parts: str) -> Path:
        """A path below the row's folder, whose parent exists."""
        path = self.root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def tree(self) -> dict[str, str]:
        """All files of the row."""
        return tree(self.top)

    def changed(self, before: dict[str, str], *allowed: Path) -> list[str]:
        """What is new, gone or different outside of the allowed folders."""
        now, inside = self.tree(), [os.path.relpath(p, self.top) for p in allowed]
        names = {n for n in set(before) | set(now) if before.get(n) != now.get(n)}
        return sorted(n for n in names if not any(n == p or n.startswith(p + "/") for p in inside))


def tree(folder: Path) -> dict[str, str]:
    """Relative path -> digest of every file, link and folder below."""
    found = {}
    for base, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(base, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                kind = "link " + os.readlink(path)
            elif stat.S_ISREG(mode):
                kind = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            else:
                kind = "folder" if stat.S_ISDIR(mode) else "other"
            found[os.path.relpath(path, folder)] = kind
    return found


def medjax(*arguments: object, entry: str = "medjax.cli") -> Said:
    """A command of medjax in this process, with everything it prints."""
    import importlib

    out, started = io.StringIO(), time.perf_counter()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        try:
            code = importlib.import_module(entry).main([str(a) for a in arguments])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc(file=out)
            code = 1
    return Said(code, out.getvalue(), time.perf_counter() - started)


def train(*arguments: object) -> Said:
    """`python -m medjax.main` in this process."""
    return medjax(*arguments, entry="medjax.main")


def start(
    *arguments: object,
    entry: str = "medjax.cli",
    prefix: Sequence[str] = (),
    log: Path,
    **environment: str,
) -> subprocess.Popen:
    """A command of medjax in a process of its own; what it prints goes to `log`."""
    with open(log, "wb") as out:
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", entry, *map(str, arguments)],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env=os.environ | environment,
        )


def wait(process: subprocess.Popen, log: Path, limit: float = 60.0) -> Said:
    """Waits for a process; one that takes longer is killed and has no exit code."""
    started = time.perf_counter()
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = None
    return Said(code, log.read_text(errors="replace"), time.perf_counter() - started)


def alone(site: Site, *arguments: object, limit: float = 60.0, **options) -> Said:
    """A command of medjax in a process of its own, waited for."""
    log = site.path(f"log-{time.monotonic_ns()}.txt")
    return wait(start(*arguments, log=log, **options), log, limit)


def told(
    process: subprocess.Popen, log: Path, when: Callable[[], bool], number: int, limit: float = 45.0
) -> Said:
    """Sends a signal as soon as `when` holds, then waits."""
    ends = time.perf_counter() + limit
    while not when() and process.poll() is None and time.perf_counter() < ends:
        time.sleep(0.02)
    if process.poll() is None:
        process.send_signal(number)
    return wait(process, log, limit)


def mounted(
    folder: Path, options: str, after: str = "", *, readonly: bool = False
) -> list[str] | None:
    """The words before a command that see a small file system of their own at `folder`; None where
    mounting is not possible.

    Args:
      options: of tmpfs. after: shell words run when the command has ended. readonly: nothing can be
        written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script = f'mount -t tmpfs -o {options} none "{folder}" || exit 99; '
    script += f'mount -o remount,ro "{folder}" || exit 99; ' if readonly else ""
    script += f'"$@"; code=$?; {after or ":"}; exit $code'
    words = ["unshare", "-m", *([] if os.geteuid() == 0 else ["-r"]), "sh", "-c", script, "sh"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*words, "true"], capture_output=True, check=False).returncode
    ):
        return None
    return words


def refused(
    variant: str,
    said: Said,
    *words: str,
    codes: Sequence[int] = (1, 2, 3, 4),
    also: bool = True,
    seen: str = "",
) -> Seen:
    """As expected if the command ended by itself with one of the codes and a sentence that holds
    the words, and `also` holds.
    """
    missing = [word for word in words if not said.has(word)]
    ok = said.code in codes and not said.raw and not missing and also
    return Seen(
        variant,
        ok,
        f"{said}{f'; without {missing}' if missing else ''}{f'; {seen}' if seen else ''}",
    )


def fine(variant: str, said: Said, *words: str, also: bool = True, seen: str = "") -> Seen:
    """As expected if the command succeeded, said the words and `also` holds."""
    return refused(variant, said, *words, codes=(DONE,), also=also, seen=seen)


@contextlib.contextmanager
def peak() -> Iterator[Callable[[], float]]:
    """Yields a function: GiB by which this process' memory rose at most since the block began."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    start = _memory("VmHWM")
    yield lambda: (_memory("VmHWM") - start) / 2**20


def _memory(field: str, pid: object = "self") -> int:
    """KiB of a field of /proc/PID/status."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def memory_of(pid: int) -> float:
    """GiB of a process now."""
    return _memory("VmRSS", pid) / 2**20


def shared(site: Site, name: str, build: Callable[[Path], object]) -> Path:
    """A folder or file that rows of all workers share and none changes; the first that needs it
    builds it.
    """
    path = site.shared / name
    with open(site.shared / f".{name}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = site.shared / f"unfinished-{name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            build(unfinished)
            unfinished.rename(path)
    return path


def signal_name(number: int) -> str:
    """SIGSEGV of 11."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
