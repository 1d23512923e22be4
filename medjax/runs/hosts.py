"""Several processes as one run, configured by the environment that `launch.sh` sets.

  MEDJAX_COORDINATOR=HOST:PORT  explicitly described processes (CPU, or one per GPU group);
  MEDJAX_PROCESSES=N            all three variables are needed
  MEDJAX_PROCESS=I
  MEDJAX_DISTRIBUTED=auto       SLURM or a TPU pod slice, detected by jax

Without them the process runs alone. No other module of medjax reads these variables.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax import files, locks
from medjax.errors import MedjaxError, TrainError, UsageError, WriteError
from medjax.runs.settings.schema import Config

NAMES = ("MEDJAX_COORDINATOR", "MEDJAX_PROCESSES", "MEDJAX_PROCESS")


def settings(environment: Mapping[str, str]) -> dict | None:
    """Arguments for `jax.distributed.initialize`, or None for a single process.

    `UsageError` for an incomplete description.
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
            "the processes could not connect to each other",
            found=reason,
            fix="check address, port and number of processes",
        ) from error


def layout(config: Config) -> Any:
    """How a config's batch lies on the devices of all processes: a `train.sharding.Layout`.

    Raises: `UsageError` for a batch that they cannot share.
    """
    import jax

    from medjax.train import sharding

    return sharding.layout(
        config.train.batch,
        len(jax.devices()),
        config.sharding.fsdp,
        config.train.accumulate,
        jax.process_count(),
    )


def first(work: Callable[[], object] = lambda: None) -> None:
    """Runs `work` in the first process only; all continue when it is done (also a barrier).

    Its `MedjaxError` is raised in the first process, and a `TrainError` that refers to it in the
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
            problem = TrainError("the first process cannot continue", fix="see its message")
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
    """Locks a folder during the block, for all processes of this run; the first holds the lock.

    Args:
      folder: created if missing, and removed again if nothing was written into it. what, wait, say:
        see `locks.lock`.
      needed: whether a folder that cannot be written to is an error; else it is used without a
        lock.

    Raises: what `locks.lock` raises, and `WriteError` if the folder cannot be created.
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
            say(f"cannot be locked, continuing without a lock: {error}")

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
    """Leaves the distributed run after training. True if this run had a single process.

    Args:
      flags: of this program.

    Otherwise the other processes are done (False), and the first one re-executes as a single
    process (see `restart`), because checkpoint readers would wait for the others in a process that
    was part of a distributed run.
    """
    import jax

    if jax.process_count() == 1:
        return True
    first = jax.process_index() == 0
    jax.distributed.shutdown()
    if first:
        restart([*flags, "--mode=evaluate"])  # of a repeated flag the last value is used
    return False


def restart(flags: Sequence[str]) -> None:
    """Re-executes medjax as a single process, which frees the devices."""
    environment = {k: v for k, v in os.environ.items() if k not in (*NAMES, "MEDJAX_DISTRIBUTED")}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "medjax.main", *flags], environment)
