"""The attack: 93 faults that once lost data, let something in, or went wrong without a word, each
against medjax as it is now.

    python -m benchmarks.attack [--rows D1 S5 inputs ...] [--json OUT] [--keep FOLDER] [--workers 2]

Rows: D data loss, S security, M models and stores, P process, I inputs, A API and evaluation. A row
judges outcomes: exit code, files kept bit by bit, nothing written outside of the output folder, a
sentence in place of a traceback, the right mask. Exit code 1 if a row fails.
"""

import argparse
import json
import os
import queue
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.attack import surfaces
from benchmarks.attack.harness import ENVIRONMENT, REPOSITORY, Row, memory_of, signal_name
from benchmarks.attack.held_by import HELD_BY

MEMORY_GIB = 6.0  # of a worker: beyond it the row has failed


class Worker:
    """A process that runs rows one after the other, and is started again when one kills it."""

    def __init__(self, folder: Path, keep: bool):
        self.folder, self.keep, self.process = folder, keep, None

    def start(self) -> None:
        """A fresh process."""
        self.pipe, end = os.pipe()
        home = self.folder / "home"
        (self.folder / "cache").mkdir(parents=True, exist_ok=True)
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        paths = {
            "MEDJAX_HOME": str(home),
            "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
        }
        words = [
            sys.executable,
            "-m",
            "benchmarks.attack.worker",
            str(end),
            str(self.folder),
            "keep" if self.keep else "clean",
        ]
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(end,),
            cwd=REPOSITORY,
            text=True,
            env=os.environ | ENVIRONMENT | cache | paths,
            errors="replace",
        )
        os.close(end)
        self.words: list[str] = []
        threading.Thread(
            target=lambda p=self.process: self.words.extend(p.stderr), daemon=True
        ).start()
        self.rest = b""

    def run(self, row: Row) -> tuple[list[dict], float]:
        """What a row saw, and its seconds."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        self.process.stdin.write(f"{row.id}\n")
        self.process.stdin.flush()
        seen, started = [], time.perf_counter()
        with selectors.DefaultSelector() as selector:
            selector.register(self.pipe, selectors.EVENT_READ)
            while True:
                if selector.select(0.2):
                    content = os.read(self.pipe, 1 << 16)
                    if not content:
                        code = self.process.wait()
                        said = (
                            signal_name(-code)
                            if code < 0
                            else f"exit {code} {' '.join(self.words[-3:])}"
                        )
                        return self._end(seen, f"the process ended by {said}", started)
                    *lines, self.rest = (self.rest + content).split(b"\n")
                    for found in map(json.loads, lines):
                        if "done" in found:
                            return seen, found["done"]
                        seen.append(found)
                if time.perf_counter() - started > row.limit:
                    return self._end(seen, f"still running after {row.limit:.0f} s", started)
                if (used := memory_of(self.process.pid)) > MEMORY_GIB:
                    return self._end(seen, f"{used:.1f} GiB of memory", started)

    def _end(self, seen: list[dict], why: str, started: float) -> tuple[list[dict], float]:
        self.close()
        after = f"after {seen[-1]['variant']!r}" if seen else "at the first variant"
        return [
            *seen,
            {"variant": f"({after})", "ok": False, "seen": why},
        ], time.perf_counter() - started

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            os.close(self.pipe)
            self.process = None


def verdict(seen: Sequence[dict]) -> str:
    """pass, FAIL or skip."""
    judged = [s["ok"] for s in seen if s["ok"] is not None]
    return "FAIL" if not seen or not all(judged) else "pass" if judged else "skip"


def attack(
    rows: Sequence[Row], folder: Path, workers: int = 2, keep: bool = False, say=lambda result: None
) -> list[dict]:
    """Runs rows, the longest limits first; returns id, surface, what, verdict, seen, seconds of
    each, in the order given.
    """
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    for row in rows:
        waiting.put(row)
    results: dict[str, dict] = {}

    def work() -> None:
        worker = Worker(folder, keep)
        while not waiting.empty():
            try:
                row = waiting.get_nowait()
            except queue.Empty:
                break
            seen, seconds = worker.run(row)
            found = {
                "id": row.id,
                "surface": row.surface,
                "what": row.what,
                "before": row.before,
                "verdict": verdict(seen),
            }
            results[row.id] = found | {"seen": seen, "seconds": round(seconds, 1)}
            say(results[row.id])
        worker.close()

    threads = [threading.Thread(target=work) for _ in range(min(workers, len(rows)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[row.id] for row in rows]


def line(result: dict) -> str:
    """A row of the table; of a failure everything that was not as expected."""
    bad = [f"{s['variant']}: {s['seen']}" for s in result["seen"] if s["ok"] is False]
    skipped = [f"{s['variant']}: {s['seen']}" for s in result["seen"] if s["ok"] is None]
    judged = sum(s["ok"] is not None for s in result["seen"])
    head = (
        f"{result['id']:4} {result['verdict']:5} {result['seconds']:6.1f} s  "
        f"{judged - len(bad)}/{judged}  {result['what']}"
    )
    return "\n".join(
        [head, *(f"       {text}" for text in bad), *(f"       skipped {text}" for text in skipped)]
    )


def table(results: Sequence[dict]) -> str:
    """Markdown: every row, its outcome before the fixes and now, and the test that holds it."""
    lines = ["| row | fault | before | now | variants | test |", "|---|---|---|---|---|---|"]
    for result in results:
        judged = [s for s in result["seen"] if s["ok"] is not None]
        right = sum(bool(s["ok"]) for s in judged)
        cells = (
            result["id"],
            result["what"].replace("|", "\\|"),
            result["before"],
            result["verdict"],
            f"{right}/{len(judged)}",
            f"`tests/{HELD_BY[result['id']]}`",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the attack; 1 if a row fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", nargs="+", default=[], help="ids (D1) or surfaces (inputs); default all"
    )
    parser.add_argument(
        "--keep", default="", metavar="FOLDER", help="keep the files of every row there"
    )
    parser.add_argument(
        "--json", default="", metavar="OUT", help="write everything that was seen there"
    )
    parser.add_argument("--table", default="", metavar="OUT", help="write a Markdown table there")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    args = parser.parse_args(argv)
    known = surfaces.load()
    wanted = [
        r for r in known.values() if not args.rows or r.id in args.rows or r.surface in args.rows
    ]
    if unknown := [
        name
        for name in args.rows
        if name not in {w for r in known.values() for w in (r.id, r.surface)}
    ]:
        parser.error(f"unknown rows {unknown}")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        place = Path(args.keep or folder).resolve()
        results = attack(
            wanted,
            place,
            args.workers,
            bool(args.keep),
            lambda result: print(line(result), flush=True),
        )
    counts = {word: sum(r["verdict"] == word for r in results) for word in ("pass", "FAIL", "skip")}
    variants = sum(len(r["seen"]) for r in results)
    print(
        f"\n{len(results)} rows ({variants} variants): {counts['pass']} pass, {counts['FAIL']} "
        f"fail, {counts['skip']} skip; "
        f"{time.perf_counter() - started:.0f} s"
    )
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    if args.table:
        Path(args.table).write_text(table(results))
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
