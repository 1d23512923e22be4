"""Several processes as one run: who they are, from the environment that `launch.sh` sets.

  MEDJAX_COORDINATOR=HOST:PORT, MEDJAX_PROCESSES=N, MEDJAX_PROCESS=I     processes that name each other (CPU, or one per GPU group)
  MEDJAX_DISTRIBUTED=auto                                                SLURM or a TPU pod slice, which jax recognises by itself

Without them the process is alone. Nothing else in medjax asks where it runs.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from medjax import files, locks
from medjax.errors import MedjaxError, TrainError, UsageError, WriteError

NAMES = ("MEDJAX_COORDINATOR", "MEDJAX_PROCESSES", "MEDJAX_PROCESS")


def settings(environment: Mapping[str, str]) -> dict | None:
    """Arguments for `jax.distributed.initialize`, or None for a process that is alone; `UsageError`
    for half a description.
    """
    given = {name: environment[name] for name in NAMES if environment.get(name)}
    if len(given) not in (0, len(NAMES)):
        raise UsageError(
            "the processes are not fully described",
            found=given,
            expected=f"all of {', '.join(NAMES)}, or none",
        )
    if given:
        address, count, index = given.values()
        if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
            raise UsageError("processes are numbered from 0", found=f"process {index} of {count}")
        return {
            "coordinator_address": address,
            "num_processes": int(count),
            "process_id": int(index),
        }
    return {} if environment.get("MEDJAX_DISTRIBUTED") == "auto" else None


def connect() -> None:
    """Joins the other processes of this run, if the environment names any.

    Before the first use of a device.
    """
    import jax

    arguments = settings(os.environ)
    if arguments is None:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TrainError(
            "the processes did not meet",
            found=reason,
            fix="check address, port and number of processes",
        ) from error


def first(work: Callable[[], object] = lambda: None) -> None:
    """Runs `work` in the first process only; all go on when it is done (also a barrier).

    Its `MedjaxError` is raised in the first process, and a `TrainError` that points there in the
    others.
    """
    import jax

    problem = None
    if jax.process_index() == 0:
        try:
            work()
        except MedjaxError as error:
            problem = error
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        if (
            not multihost_utils.process_allgather(np.asarray(problem is None)).all()
            and problem is None
        ):
            problem = TrainError("the first process cannot go on", fix="see its message")
    if problem is not None:
        raise problem


@contextlib.contextmanager
def holding(
    folder: Path,
    what: str,
    *,
    wait: bool = False,
    needed: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[None]:
    """Locks a folder for the length of the block, for all processes of this run: the first one
    holds the lock.

    Args:
      folder: is made if missing, and removed again if nothing was written into it. what, wait, say:
        see `locks.lock`.
      needed: whether a folder that cannot be written to is an error; else it is used without a
        lock.

    Raises: what `locks.lock` raises, and `WriteError` if the folder cannot be made.
    """
    made = []

    def take() -> None:
        if not folder.exists():
            made.append(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.refused(folder, error, error=WriteError) from error
        try:
            stack.enter_context(locks.lock(folder, what, wait=wait, say=say))
        except WriteError as error:
            if needed:
                raise
            say(f"cannot be locked, going on without: {error}")

    try:
        with contextlib.ExitStack() as stack:
            first(take)
            yield
            first()
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def alone() -> bool:
    """Whether this process is the whole run."""
    import jax

    return jax.process_count() == 1


def part(flags: Sequence[str]) -> bool:
    """Ends the company after training: True for a process that was alone all the time.

    Args:
      flags: of this program.

    Otherwise the others are done (False), and the first one starts again by itself (see `restart`):
    readers of checkpoints would go on waiting for the others in a process that once had company.
    """
    import jax

    if jax.process_count() == 1:
        return True
    first = jax.process_index() == 0
    jax.distributed.shutdown()
    if first:
        restart([*flags, "--mode=evaluate"])  # of a flag that comes twice the last one counts
    return False


def restart(flags: Sequence[str]) -> None:
    """Becomes `python -m medjax.main FLAGS` without company; the devices are free again for it."""
    environment = {k: v for k, v in os.environ.items() if k not in (*NAMES, "MEDJAX_DISTRIBUTED")}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "medjax.main", *flags], environment)
