"""What the benchmarks share: arguments, calls timed in turns, memory of processes, results as JSON
and as tables.

A benchmark declares its flags with `parser`, hands its contenders to `in_turns`, and passes a
dictionary to `show`. Timings are noisy and machines differ, so contenders always alternate within
one process (or one script) and the ratio is the median over neighbouring runs.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
NNUNET = {f"nnUNet_{name}": "/tmp" for name in ("raw", "preprocessed", "results")}


# -- arguments -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag with more than a default: what argparse takes beside it (help, choices, type, ...)."""

    default: Any = None
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def flag(default: Any = None, **more: Any) -> Flag:
    """A flag with a help text, choices, a type, ...; `help=None` hides it."""
    if "help" in more and more["help"] is None:
        more["help"] = argparse.SUPPRESS
    return Flag(default, more)


class _Tuples(argparse.Action):
    """Several values as a tuple, as defaults are."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, tuple(values))


def parser(text: str, **flags: Any) -> argparse.ArgumentParser:
    """A parser of flags `--name`, each with the type of its default.

    Args:
      text: docstring of the module; its first paragraph is the description.
      flags: name -> default, or `flag(default, ...)`. True and False are switches, a tuple takes as
        many values (`flag((), nargs="*")` any number), a `Path` and None (with `type`) one.
    """
    made = argparse.ArgumentParser(description=" ".join(text.split("\n\n")[0].split()))
    for name, given in flags.items():
        default, more = (
            (given.default, dict(given.more)) if isinstance(given, Flag) else (given, {})
        )
        if isinstance(default, bool):
            more.setdefault("action", "store_true")
        elif isinstance(default, tuple):
            kind = type(default[0]) if default else str
            several = {"type": kind, "nargs": len(default) or "*", "action": _Tuples}
            more = several | more
        elif default is not None:
            more.setdefault("type", type(default))
        made.add_argument(f"--{name.replace('_', '-')}", default=default, **more)
    return made


def script(module: str, *arguments: object) -> list[str]:
    """The words that run a module with this interpreter."""
    return [sys.executable, "-m", module, *map(str, arguments)]


# -- timing ----------------------------------------------------------------------------------------


def clock() -> tuple[float, float]:
    """Wall seconds, and CPU seconds of this process, which other jobs disturb less."""
    return time.perf_counter(), time.process_time()


@dataclasses.dataclass
class Turns:
    """What `in_turns` saw.

    Attributes:
      seconds: "wall" or "cpu" -> contender -> seconds per round. first: contender -> wall seconds
        of its first call (0 without a warm-up). results: contender -> what its last call returned.
    """

    seconds: dict[str, dict[str, list[float]]]
    first: dict[str, float]
    results: dict[str, Any]

    def median(self, kind: str = "wall", digits: int = 4) -> dict[str, float]:
        """Contender -> median seconds."""
        return {n: round(statistics.median(v), digits) for n, v in self.seconds[kind].items()}

    def ratio(self, one: str, other: str, kind: str = "wall", digits: int = 2) -> float:
        """The median over rounds of the seconds of one contender by those of another."""
        return ratio(self.seconds[kind][one], self.seconds[kind][other], digits)


def ratio(ones: Sequence[float], others: Sequence[float], digits: int = 2) -> float:
    """The median of the ratios of pairs, which noise that both share does not move."""
    pairs = zip(ones, others, strict=True)
    return round(statistics.median(a / b for a, b in pairs), digits)


def in_turns(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    warm: int = 1,
    clock: Callable[[], tuple[float, float]] = clock,
) -> Turns:
    """Calls every contender once per round, in the reverse order in every second round.

    Args:
      calls: contender -> work that returns when it is complete. warm: rounds before the clock
        counts (compilation, caches). clock: () -> (wall, CPU) seconds.
    """
    found = Turns({"wall": {n: [] for n in calls}, "cpu": {n: [] for n in calls}}, {}, {})
    for turn in range(-warm, rounds):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            before = clock()
            found.results[name] = calls[name]()
            wall, cpu = (b - a for a, b in zip(before, clock(), strict=True))
            found.first.setdefault(name, round(wall, 4) if warm else 0.0)
            if turn >= 0:
                found.seconds["wall"][name].append(wall)
                found.seconds["cpu"][name].append(cpu)
    return found


# -- processes and memory --------------------------------------------------------------------------


def tree(root: int | None = None) -> list[int]:
    """A process (default this one) and all that descend from it."""
    found = [root or os.getpid()]
    for pid in found:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:  # ended since it was listed
            continue
    return found


def memory_of(pid: int) -> int:
    """Bytes that a process holds, pages shared with others counted by their share."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


def tree_clock() -> tuple[float, float]:
    """Wall seconds, and CPU seconds of this process and its living children."""
    ticks = 0
    for pid in tree():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # ended since it was listed
            continue
        ticks += int(fields[11]) + int(fields[12])
    return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass
class Memory:
    """Bytes of a process and its children: at the start, and at most."""

    base: int = 0
    peak: int = 0


@contextmanager
def watched(root: int | None = None, every: float = 0.02) -> Iterator[Memory]:
    """Polls the memory of a process (default this one) and its children within the block."""
    over = threading.Event()

    def now() -> int:
        return sum(memory_of(pid) for pid in tree(root))

    start = now()
    found = Memory(start, start)

    def watch() -> None:
        while not over.wait(every):
            found.peak = max(found.peak, now())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


def run(
    command: Sequence[object], log: Path | None = None, cwd: Path = ROOT, **environment: str
) -> dict:
    """Runs a command: {"exit", "seconds", "cpu_s", "peak_gib"}, children included.

    Args:
      log: where its output goes; default nowhere. environment: added to this process'.
    """
    before, started = os.times(), time.perf_counter()
    with open(log or os.devnull, "w") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=os.environ | environment,
        )
        with watched(process.pid, 0.2) as memory:
            code = process.wait()
    seconds, after = time.perf_counter() - started, os.times()
    cpu = sum(getattr(after, k) - getattr(before, k) for k in ("children_user", "children_system"))
    return {
        "exit": code,
        "seconds": round(seconds, 2),
        "cpu_s": round(cpu, 2),
        "peak_gib": round(memory.peak / GIB, 2),
    }


def run_json(command: Sequence[object], **options: Any) -> Any:
    """Runs a command whose last line of output is JSON; returns that."""
    words = [str(word) for word in command]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, **options)
    return json.loads(done.stdout.splitlines()[-1])


# -- results ---------------------------------------------------------------------------------------


def machine() -> dict:
    """Number of cores and the load, which explain a timing."""
    return {"cpus": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}


def show(found: Any, out: str | Path = "", indent: int | None = 1) -> None:
    """Prints a result as JSON; with `out` also writes it there."""
    if out:
        Path(out).write_text(json.dumps(found, indent=1, default=str) + "\n")
    print(json.dumps(found, indent=indent, default=str), flush=True)


def table(
    head: Sequence[object], rows: Sequence[Sequence[object]], right: Sequence[int] = ()
) -> str:
    """A Markdown table; `right`: columns of numbers."""
    rule = ["---:" if i in right else "---" for i in range(len(head))]
    lines = [head, rule, *rows]
    body = ["| " + " | ".join(map(str, cells)) + " |" for cells in lines]
    body[1] = "|" + "|".join(rule) + "|"
    return "\n".join(body)
