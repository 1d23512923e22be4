r"""Feeds damaged and hostile model files to the readers and counts the outcomes.

    python -m benchmarks.fuzz [--count 2400] [--seed 0] [--kinds torch,npz,archive,stablehlo] \
      [--out FOLDER] [--workers 2]

Long-lived processes read the mutants one after the other, so that a crash is a counted outcome. A
mutant may be refused with a `MedjaxError` or read; a raw traceback, a signal, more than `SECONDS`
or more than `MEMORY` is a failure: the bytes that did it are kept in the folder, and the exit code
is 1. "Crashes caught" are refusals as well: damaged code ended the process that verifies functions.
The same seed gives the same mutants. `--replay FILE` reads one kept file in this process.
"""

import collections
import contextlib
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from benchmarks import harness, mutant_files, mutants

SECONDS = 120.0  # for one mutant
MEMORY = 6 << 30  # of the process that reads it
FAILURES = ("traceback", "signal", "timeout", "memory", "unreadable message")
SHARES = {
    "torch": 0.45,
    "npz": 0.25,
    "archive": 0.2,
    "stablehlo": 0.1,
}  # of the count, by what one costs


class Reader:
    """A process that reads mutants of one kind; a new one is started where it has ended."""

    def __init__(self, folder: Path):
        self.folder, self.process = folder, None

    def outcome(self, kind: str, data: bytes, index: int) -> tuple[str, str]:
        """(what became of the bytes, detail)."""
        if self.process is None:
            self._start()
        path = self.folder / mutant_files.name_of(kind, index)
        path.write_bytes(data)
        try:
            self.process.stdin.write(f"{kind} {path}\n".encode())
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], SECONDS)[0]:
                self.close()
                return "timeout", f"more than {SECONDS:g} s"
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            path.unlink(missing_ok=True)
        if line:
            return tuple(json.loads(line))
        code = self.process.wait()
        self.close()
        return ("signal", f"signal {-code}") if code < 0 else ("memory", f"exit code {code}")

    def _start(self) -> None:
        self.process = subprocess.Popen(
            harness.script("benchmarks.fuzz", "--serve"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=harness.ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()
            self.process = None


def counts(total: int, kinds: list[str]) -> dict[str, int]:
    """How many mutants of each kind."""
    weight = sum(SHARES[kind] for kind in kinds)
    return {kind: max(1, round(total * SHARES[kind] / weight)) for kind in kinds}


def fuzz(
    total: int, seed: int, kinds: list[str], out: Path, workers: int = 2, show: bool = False
) -> dict[str, collections.Counter]:
    """Reads `total` mutants; returns kind -> outcome -> count and keeps the failures in `out`."""
    import concurrent.futures

    found = {kind: collections.Counter() for kind in kinds}
    with tempfile.TemporaryDirectory() as scratch:
        seeds = mutant_files.seeds(Path(scratch) / "seeds", kinds)
        work = [(kind, k) for kind, count in counts(total, kinds).items() for k in range(count)]
        random.Random(seed).shuffle(work)
        readers = []

        def several(part: list[tuple[str, int]], reader: Reader) -> Iterator[tuple]:
            results = []
            for kind, k in part:
                data = mutants.mutant(kind, seeds[kind], random.Random(f"{seed} {kind} {k}"))
                begin = time.monotonic()
                outcome, detail = reader.outcome(kind, data, k)
                results.append((kind, k, outcome, detail, time.monotonic() - begin))
                if outcome in FAILURES:
                    out.mkdir(parents=True, exist_ok=True)
                    (
                        out / f"{outcome.replace(' ', '-')}-{seed}-{mutant_files.name_of(kind, k)}"
                    ).write_bytes(data)
                    print(f"{outcome}: {kind} {k}: {detail}", flush=True)
            return results

        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            jobs = []
            for w in range(workers):
                folder = Path(scratch) / f"worker{w}"
                folder.mkdir()
                readers.append(Reader(folder))
                jobs.append(pool.submit(several, work[w::workers], readers[-1]))
            for job in jobs:
                for kind, _, outcome, detail, seconds in job.result():
                    found[kind][outcome] += 1
                    found[kind]["seconds"] += seconds
                    found[kind]["crashes caught"] += (
                        outcome == "refused" and "ended with signal" in detail
                    )
        for reader in readers:
            reader.close()
    if show:
        print(table(found))
    return found


def table(found: dict[str, collections.Counter]) -> str:
    """The counts as lines."""
    names = ("refused", "read", "crashes caught", *FAILURES)
    rows = [("kind", *names, "seconds")]
    rows += [
        (kind, *(str(count[name]) for name in names), f"{count['seconds']:.0f}")
        for kind, count in found.items()
    ]
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def read(kind: str, path: Path) -> tuple[str, str]:
    """What becomes of one file in this process: "read", "refused", or what went wrong."""
    from medjax.errors import MedjaxError

    try:
        mutant_files.read(kind, path)
        return "read", ""
    except MedjaxError as error:
        text = str(error)
        if path.name not in text or "\n" in text or len(text) > 4000 or not text.isprintable():
            return "unreadable message", text[:1000]
        return "refused", text[:600]
    except MemoryError as error:
        return "memory", repr(error)
    except Exception:
        return "traceback", traceback.format_exc()[-1500:]


def serve() -> None:
    """Reads the files whose names come on stdin; one answer per line."""
    import resource

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        kind, path = line.decode().strip().split(" ", 1)
        outcome = read(kind, Path(path))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answers.write(
            json.dumps(("memory", f"{peak / 2**30:.1f} GiB") if peak > MEMORY else outcome).encode()
            + b"\n"
        )
        answers.flush()
        if peak > MEMORY:
            return


def main() -> int:
    """The command."""
    given = harness.parser(
        __doc__,
        count=2400,
        seed=0,
        kinds=",".join(SHARES),
        out=Path("fuzz-failures"),
        workers=min(4, os.cpu_count() or 1),
        serve=harness.flag(False, help=None),
        replay=harness.flag(type=Path, help="a kept file to read in this process"),
    ).parse_args()
    if given.serve:
        serve()
        return 0
    if given.replay:
        print(*read(mutant_files.kind_of(given.replay), given.replay), sep=": ")
        return 0
    begin = time.monotonic()
    found = fuzz(
        given.count,
        given.seed,
        [kind for kind in given.kinds.split(",") if kind],
        given.out,
        given.workers,
        show=True,
    )
    failures = sum(count[name] for count in found.values() for name in FAILURES)
    total = sum(count[name] for count in found.values() for name in ("refused", "read", *FAILURES))
    print(
        f"{total} mutants in {time.monotonic() - begin:.0f} s, {failures} failures"
        + (f", kept in {given.out}" if failures else "")
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
