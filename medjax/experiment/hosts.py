"""Several processes as one run: who they are, from the environment that `launch.sh` sets.

  MEDJAX_COORDINATOR=HOST:PORT, MEDJAX_PROCESSES=N, MEDJAX_PROCESS=I     processes that name each other (CPU, or one per GPU group)
  MEDJAX_DISTRIBUTED=auto                                                SLURM or a TPU pod slice, which jax recognises by itself

Without them the process is alone. Nothing else in medjax asks where it runs.
"""

import os
import sys
from collections.abc import Mapping, Sequence

from medjax.errors import TrainError, UsageError

NAMES = ("MEDJAX_COORDINATOR", "MEDJAX_PROCESSES", "MEDJAX_PROCESS")


def settings(environment: Mapping[str, str]) -> dict | None:
    """Arguments for `jax.distributed.initialize`, or None for a process that is alone; `UsageError` for half a description."""
    given = {name: environment[name] for name in NAMES if environment.get(name)}
    if len(given) not in (0, len(NAMES)):
        raise UsageError("the processes are not fully described", found=given, expected=f"all of {', '.join(NAMES)}, or none")
    if given:
        address, count, index = given.values()
        if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
            raise UsageError("processes are numbered from 0", found=f"process {index} of {count}")
        return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    return {} if environment.get("MEDJAX_DISTRIBUTED") == "auto" else None


def connect() -> None:
    """Joins the other processes of this run, if the environment names any. Before the first use of a device."""
    import jax

    arguments = settings(os.environ)
    if arguments is None:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TrainError("the processes did not meet", found=reason, fix="check address, port and number of processes") from error


def part(flags: Sequence[str]) -> bool:
    """Ends the company after training: True for a process that was alone all the time.

    Args:
      flags: of this program.

    Otherwise the others are done (False), and the first one starts again by itself (see `restart`): readers of checkpoints would go on
    waiting for the others in a process that once had company.
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
