"""Compiled programs kept between runs, so that the second start of a network needs no compilation.

In: the environment. Out: jax' compilation cache, switched on. The folder is

  $MEDJAX_COMPILE_CACHE   if it is set; "off" keeps nothing
  jax' own setting        if there is one (JAX_COMPILATION_CACHE_DIR)
  $MEDJAX_HOME/programs   otherwise (default ~/.cache/medjax/programs), in a folder per kind of
                          processor; the programs used longest ago are removed above 4 GiB
"""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

from medjax import files

VARIABLE, OFF = "MEDJAX_COMPILE_CACHE", ("off", "0", "no", "none")
MOST_BYTES = 4 << 30


def keep() -> Path | None:
    """Switches the cache on; returns its folder, None without one. Starts no device."""
    import jax

    given = os.environ.get(VARIABLE, "")
    if given.lower() in OFF:
        return None
    if not given and (chosen := jax.config.jax_compilation_cache_dir):
        return Path(chosen)
    folder = Path(given).expanduser() if given else files.home() / "programs" / processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to: compiled again
        return None
    if not given:
        prune(folder.parent, MOST_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # what XLA measured to choose its kernels; only GPUs have such caches
    jax.config.update("jax_persistent_cache_enable_xla_caches", "all")
    return folder


def processor() -> str:
    """A name of this kind of processor: a home folder may be shared by different machines."""
    facts = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts += sorted({line for line in lines if line.startswith(("model name", "flags"))})
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def prune(folder: Path, most: int) -> None:
    """Removes the files used longest ago until the rest has at most `most` bytes."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process may remove it meanwhile
            if path.is_file():
                state = path.stat()
                found.append((max(state.st_atime, state.st_mtime), state.st_size, path))
    excess = sum(size for _, size, _ in found) - most
    for _, size, path in sorted(found):
        if excess <= 0:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        excess -= size
