"""Atomic writing, reading and names of files, shared by all packages that use the disk.

In: paths and contents. Out: files that appear under their name only when they are complete. A
temporary name holds host, process and random digits, so that neither a process on another host with
the same id nor a link planted by another user is written through.
"""

import collections
import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from medjax.errors import MedjaxError, UsageError, WriteError, shown

NAME_BYTES = 255  # of one path component on every usual file system
_TEMPORARY = re.compile(r"\.medjax-tmp\.(?P<host>[\w-]+)\.(?P<pid>\d+)\.[0-9a-f]{16}")
_FIX = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "raise the quota, then run the same command again",
}


def home() -> Path:
    """Where medjax keeps what it can make again: $MEDJAX_HOME, by default ~/.cache/medjax."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MEDJAX_HOME") or Path(cache) / "medjax")


# -- names -----------------------------------------------------------------------------------------


def unusable(name: object, *, suffix: str = "") -> str:
    """Why a name from a file cannot become one file or folder name; empty if it can.

    Allowed is text without `/`, `\\` and NUL that does not begin with a dot and fits, with
    `suffix`, into 255 bytes. Control characters are legal on disk and allowed; whoever prints them
    uses `errors.shown`.

    >>> unusable("../../x")
    'it contains a path separator'
    """
    if not isinstance(name, str) or not name:
        return "it is not text" if not isinstance(name, str) else "it is empty"
    if "/" in name or "\\" in name:
        return "it contains a path separator"
    if "\0" in name:
        return "it contains a NUL character"
    if name.startswith("."):
        return "it begins with a dot"
    if len(os.fsencode(name + suffix)) > NAME_BYTES:
        return f"it is longer than {NAME_BYTES - len(os.fsencode(suffix))} bytes"
    return ""


def check_name(
    name: object,
    what: str,
    *,
    path: object = None,
    suffix: str = "",
    error: Callable[..., MedjaxError] = UsageError,
) -> str:
    """The name, if it can be one file or folder name (see `unusable`).

    Args:
      what: what it names, e.g. "case name" or "corpus name". path: the file it was read from.
        suffix: what will be appended on disk.
      error: the class to raise.
    """
    if reason := unusable(name, suffix=suffix):
        raise error(
            f"unusable {what}: {reason}",
            path=path,
            found=repr(name)[:120],
            expected="a plain name, without folders",
            fix=f"change the {what}" + (" in that file" if path is not None else ""),
        )
    return str(name)


def is_within(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """Whether a path lies in (or is) a folder once every link is followed. Neither has to exist."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


# -- writing ---------------------------------------------------------------------------------------


def temporary(path: str | os.PathLike) -> Path:
    """A hidden sibling name of `path` that no other process has.

    `.medjax-tmp.HOST.PID.RANDOM`, at most 100 bytes.
    """
    host = re.sub(r"[^\w-]", "-", socket.gethostname())[:50] or "host"
    return Path(path).parent / f".medjax-tmp.{host}.{os.getpid()}.{secrets.token_hex(8)}"


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike,
    *,
    error: Callable[..., MedjaxError] = WriteError,
    exclusive: bool = False,
) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` if the block ends without an exception.

    After an exception, nothing is left.

    Args:
      error: class of the error that replaces an `OSError`. exclusive: never replace an existing
        file (`FileExistsError` as `error`).

    The folder must exist. A link at `path` is replaced, not followed.
    """
    path, name = Path(path), temporary(path)
    try:
        with create(name) as file:
            yield file
        if exclusive:
            os.link(name, path)
        else:
            os.replace(name, path)
    except OSError as reason:
        raise refused(path, reason, error=error) from reason
    finally:
        with contextlib.suppress(OSError):
            name.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_path(
    path: str | os.PathLike, *, error: Callable[..., MedjaxError] = WriteError
) -> Iterator[Path]:
    """Like `replacing`, for libraries that need a path: yields the path of an empty file.

    Its content takes the name `path` at the end. The temporary path keeps the ending of `path`,
    from which some libraries determine the format.
    """
    path = Path(path)
    name = temporary(path)
    name = name.with_name(name.name + "".join(path.suffixes[-2:]))
    try:
        create(name).close()
        yield name
        os.replace(name, path)
    except OSError as reason:
        raise refused(path, reason, error=error) from reason
    finally:
        with contextlib.suppress(OSError):
            name.unlink(missing_ok=True)


def write_bytes(
    path: str | os.PathLike, content: bytes, *, error: Callable[..., MedjaxError] = WriteError
) -> None:
    """Writes a file atomically."""
    with replacing(path, error=error) as file:
        file.write(content)


def write_text(
    path: str | os.PathLike, text: str, *, error: Callable[..., MedjaxError] = WriteError
) -> None:
    """Writes UTF-8 text atomically; characters that UTF-8 cannot encode become escapes.

    File names may contain such characters.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"), error=error)


def write_json(
    path: str | os.PathLike, value: Any, *, error: Callable[..., MedjaxError] = WriteError
) -> None:
    """Writes JSON atomically; creates the folder if it is missing.

    Non-finite numbers raise `ValueError`.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", error=error)


def refused(
    path: str | os.PathLike, reason: OSError, *, error: Callable[..., MedjaxError] = WriteError
) -> MedjaxError:
    """The error for a file that cannot be written: the system's reason, the path and a fix."""
    fix = _FIX.get(reason.errno or 0, "check folder, permissions and free space")
    return error(f"cannot write ({reason.strerror or reason})", path=path, fix=fix)


def reserve(file: BinaryIO, size: int) -> None:
    """Allocates `size` bytes of disk blocks for a file.

    Writing through a memory map then never meets a full disk (which would be a signal, not an
    error). On file systems without reservation, zeros are written. Raises `OSError` if there is not
    enough space.
    """
    try:
        os.posix_fallocate(file.fileno(), 0, size)
        return
    except AttributeError:
        pass  # macOS
    except OSError as reason:
        if reason.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
    block = bytes(1 << 20)
    file.seek(0)
    for start in range(0, size, len(block)):
        file.write(block[: min(len(block), size - start)])
    file.flush()


def sweep(folder: str | os.PathLike) -> list[Path]:
    """Removes what ended processes of this host left under `temporary` names; returns it."""
    import shutil

    gone = []
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return gone
    here = re.sub(r"[^\w-]", "-", socket.gethostname())[:50]
    for entry in entries:
        found = _TEMPORARY.match(entry.name)
        if found and found["host"] == here and not is_alive(int(found["pid"])):
            with contextlib.suppress(OSError):
                shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(
                    entry.path
                )
                gone.append(Path(entry.path))
    return gone


def is_alive(pid: int) -> bool:
    """Whether a process of this machine (and pid namespace) runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def create(name: str | os.PathLike) -> BinaryIO:
    """A new file, open for reading and writing: never an existing one, never through a link.

    Raises `OSError`.
    """
    return os.fdopen(
        os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666),
        "w+b",
    )


# -- digests ---------------------------------------------------------------------------------------


def sha256(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file's bytes; "unhashed" for what is no file (a record of a data
    set).
    """
    if not os.path.isfile(path):
        return "unhashed"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- reading ---------------------------------------------------------------------------------------


def read_json(
    path: str | os.PathLike,
    *,
    error: Callable[..., MedjaxError] = UsageError,
    limit: int = 1 << 28,
    fix: str = "",
    unique: bool = False,
) -> Any:
    """The value of a JSON file.

    Args:
      error: the class to raise. limit: bytes that are read at most. fix: of the message. unique:
        see `parse_json`.

    Raises: `error` for a file that is missing, not UTF-8 (a byte-order mark is fine), too large,
      too deeply nested or no JSON.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise error("not a file", path=path, fix=fix)
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as reason:
        raise error(
            f"cannot be read ({reason.strerror or reason})",
            path=path,
            fix=fix or "check the path and its permissions",
        ) from reason
    if len(content) > limit:
        raise error(
            "a JSON file that is too large", path=path, expected=f"at most {limit:,} bytes", fix=fix
        )
    return parse_json(content, path, error=error, fix=fix, unique=unique)


def parse_json(
    content: bytes,
    path: object,
    *,
    error: Callable[..., MedjaxError] = UsageError,
    fix: str = "",
    unique: bool = False,
) -> Any:
    """The value of JSON bytes.

    Raises `error` naming `path` for other encodings, deep nesting, damage and, if `unique`,
    repeated keys.
    """

    def distinct(pairs: list[tuple]) -> dict:
        if len(found := dict(pairs)) < len(pairs):
            twice = collections.Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise error(f"key {twice!r} appears twice", path=path, fix="keep one of them")
        return found

    try:
        return json.loads(
            content.decode("utf-8-sig"), object_pairs_hook=distinct if unique else None
        )
    except UnicodeDecodeError as reason:
        found = (
            "UTF-16 or UTF-32"
            if content[:2] in (b"\xff\xfe", b"\xfe\xff")
            else "Latin-1 or another"
        )
        raise error(
            "text in another encoding than UTF-8",
            path=path,
            found=found,
            fix=fix or "save the file as UTF-8",
        ) from reason
    except RecursionError as reason:
        raise error("JSON that is nested too deeply", path=path, fix=fix) from reason
    except ValueError as reason:
        raise error(
            f"damaged JSON ({shown(str(reason))})", path=path, fix=fix or "correct the file"
        ) from reason


# -- hashes ----------------------------------------------------------------------------------------


def checksum(content: Any) -> str:
    """`xxh3:` and 32 hexadecimal digits of bytes or a C-contiguous array.

    Detects damage; does not protect against forgery.
    """
    import xxhash

    return f"xxh3:{xxhash.xxh3_128_hexdigest(content)}"


def checksum_of(path: str | os.PathLike) -> str:
    """`checksum` of a file's bytes, read in pieces.

    Raises `OSError` for a file that cannot be read.
    """
    import xxhash

    digest, piece = xxhash.xxh3_128(), bytearray(1 << 22)
    view = memoryview(piece)
    with open(path, "rb", buffering=0) as file:
        while n := file.readinto(piece):
            digest.update(view[:n])
    return f"xxh3:{digest.hexdigest()}"
