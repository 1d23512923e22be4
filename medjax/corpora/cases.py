"""Loads one case, and applies a function to many cases in threads.

In: `Case` records. Out: image (z, y, x, m) and dense ids (z, y, x) of one case; or the results of a
function over all cases, computed by threads that stay within the machine's memory. Each case fails
separately. Verification, fingerprint and preparation use this module.
"""

import _thread
import contextlib
import dataclasses
import math
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np

from medjax.corpora.inputs import Case
from medjax.corpora.labels_of_case import read_label, to_ids, undeclared, value_counts, voxel_counts
from medjax.errors import DataError, MedjaxError
from medjax.labels import Corpus
from medjax.scans import formats, nifti
from medjax.scans.content import free_memory

__all__ = [
    "Outcome",
    "each",
    "failure",
    "free_memory",
    "load",
    "to_ids",
    "undeclared",
    "value_counts",
    "voxel_counts",
]

Progress = Callable[[int, int, str, str], None]  # done, total, case name, status

MEMORY_SHARE = 0.6  # share of free memory; the rest is for results, page cache and other processes
BEGUN_AFTER_S = 5.0  # a new thread has run its first line by then
LOOKS_UP_AFTER_S = 0.1  # a waiting main thread looks this often whether a signal has come
_local = threading.local()


class Stopped(Exception):
    """Raised in the threads of `each` if their results are no longer needed."""


def still_wanted() -> None:
    """Raises `Stopped` in a thread of `each` whose caller was interrupted.

    Long work calls it between its steps, so that it ends soon.
    """
    stop = getattr(_local, "stop", None)
    if stop is not None and stop.is_set():
        raise Stopped


def stamp(path: str | os.PathLike) -> list[int]:
    """[size, modification time, change time, inode] of a file.

    Every rewrite of the content changes it, even if the times are set back.
    """
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def labelled(ids: np.ndarray, ignore_id: int | None = None) -> int:
    """Voxels above 0, those of `ignore_id` left out."""
    count = int(np.count_nonzero(ids))
    return count - int(np.count_nonzero(ids == ignore_id)) if ignore_id else count


def load(
    case: Case, corpus: Corpus, *, native: bool = False
) -> tuple[nifti.Volume, np.ndarray | None]:
    """Reads a case as stored: volume (z, y, x, m) float32 and dense ids (z, y, x).

    The ids are None without a label. `native` keeps the voxels of a single unscaled integer file in
    their type, which needs half the memory or less.

    Raises: `DataError` for unreadable files, another number of channels, or label and image on
      different grids; `LabelError` for values that the corpus does not declare.
    """
    volume = formats.read_case(case.images, native=native)
    check_channels(volume, corpus)
    return volume, read_label(case, corpus, volume)


def check_channels(volume: nifti.Volume, corpus: Corpus) -> None:
    """`DataError` if a volume has not exactly the corpus' channels."""
    if volume.array.shape[-1] != len(corpus.channels):
        expected = f"{len(corpus.channels)} ({', '.join(corpus.channels)})"
        several = volume.array.shape[-1] > 1 and len(corpus.channels) == 1
        fix = "a time series? predict with --frame N (from 0), or declare" if several else "correct"
        fix += " the channel names in dataset.json, or split the file"
        raise DataError(
            "wrong number of channels",
            path=volume.path,
            found=volume.array.shape[-1],
            expected=expected,
            fix=fix,
        )


def bytes_needed(case: Case, target_spacing_mm: Sequence[float] | None = None) -> int:
    """Peak memory of handling a case, estimated from the header; 0 if the header cannot be read."""
    try:
        with contextlib.suppress(MedjaxError):
            volume = formats.read_geometry(case.images[0])
            itemsize = volume.header.get_data_dtype().itemsize
            values = math.prod(int(n) for n in volume.header.get_data_shape()) * len(case.images)
            channels, voxels = max(1, values // math.prod(volume.shape)), math.prod(volume.shape)
            unscaled = (
                itemsize <= 2
                and len(case.images) == 1
                and volume.header.get_slope_inter() in ((None, None), (1.0, 0.0))
            )
            total = (
                values * (itemsize * 3 // 2 + (0 if unscaled else 4)) + voxels * 4
            )  # file and its copy; label, ids and masks
            if target_spacing_mm is not None:
                fine = max(1.0, math.prod(volume.spacing_mm[1:]) / math.prod(target_spacing_mm[1:]))
                scale = math.prod(volume.spacing_mm) / math.prod(target_spacing_mm)
                total += int(voxels * fine) * 4 + int(voxels * scale) * (2 * channels + 3)
            else:
                total += voxels * 4
            return total
    except (OSError, ValueError, ArithmeticError):
        pass
    return 0


class MemoryGate:
    """Lets threads in while their estimates fit into a budget; one thread is always let in."""

    def __init__(self, budget: int):
        self.budget, self.used, self.changed = budget, 0, threading.Condition()

    @contextlib.contextmanager
    def __call__(self, amount: int) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: self.used == 0 or self.used + amount <= self.budget)
            self.used += amount
        try:
            yield
        finally:
            with self.changed:
                self.used -= amount
                self.changed.notify_all()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of one case: `value` of the function, or a `failure` record.

    The record has case, error, message and, if unexpected, traceback.
    """

    case: Case
    value: Any = None
    failure: dict | None = None


def failure(case: Case, error: BaseException) -> dict:
    """JSON-ready record of why a case failed."""
    if isinstance(error, MedjaxError):
        return {"case": case.name, **error.record()}
    message = str(error) or type(error).__name__
    return {
        "case": case.name,
        "error": type(error).__name__,
        "message": message,
        "traceback": "".join(traceback.format_exception(error)),
    }


def each(
    function: Callable[[Case], Any],
    cases: Sequence[Case],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    status: Callable[[Any], str] = lambda value: "ok",
    needs: Callable[[Case], int] = bytes_needed,
) -> list[Outcome]:
    """Runs `function` over all cases in threads; a case that raises fails alone.

    Args:
      workers: threads; default one per core (MEDJAX_NUM_WORKERS overrides).
      progress: called in this thread after every case with (done, total, name, status).
      status: status word for a value; a failure is "failed".
      needs: bytes a case needs; cases wait while running cases leave too little free memory.

    An interruption of this thread (SIGINT, SIGTERM) cancels the cases that have not started, ends
    running cases at their next step (see `still_wanted`), and is raised again after they have
    cleaned up.

    Returns: outcomes in the order of `cases`.
    """
    workers = workers or int(os.environ.get("MEDJAX_NUM_WORKERS", 0)) or os.cpu_count() or 1
    gate, stop = MemoryGate(int(free_memory() * MEMORY_SHARE)), threading.Event()

    def one(case: Case) -> Outcome:
        _local.stop = stop
        try:
            still_wanted()
            with gate(needs(case)):
                still_wanted()
                return Outcome(case, function(case))
        except Exception as error:
            return Outcome(case, failure=failure(case, error))

    # (index, outcome) of a case, an error of the pool, or None at the end
    told: queue.SimpleQueue = queue.SimpleQueue()
    states: list[str] = []

    def all_cases() -> None:
        states.append("begun")
        try:
            with ThreadPoolExecutor(
                max(1, min(workers, len(cases))), thread_name_prefix="medjax-case"
            ) as pool:
                futures = {pool.submit(one, case): i for i, case in enumerate(cases)}
                for future in as_completed(futures):
                    told.put((futures[future], future.result()))
        except BaseException as error:
            told.put(error)
        finally:
            states.append("ended")
            told.put(None)

    # A signal's exception may appear in this thread between any two instructions. Within
    # `threading.Condition.__enter__`, which pools, futures and `Thread.start` use, it leaves a lock
    # taken that nobody gives back, and the process never ends. This thread therefore only starts
    # another one and waits at a queue written in C. A signal that arrives just before such a wait
    # begins does not end it, so each wait is short.
    results: dict[int, Outcome] = {}
    try:
        _thread.start_new_thread(all_cases, ())
        while True:
            try:
                found = told.get(timeout=LOOKS_UP_AFTER_S)
            except queue.Empty:
                continue
            if found is None:
                break
            if isinstance(found, BaseException):
                raise found
            results[found[0]] = outcome = found[1]
            if progress is not None:
                word = "failed" if outcome.failure else status(outcome.value)
                progress(len(results), len(cases), outcome.case.name, word)
    except BaseException:
        stop.set()
        late = time.monotonic() + BEGUN_AFTER_S
        while "ended" not in states and (states or time.monotonic() < late):
            with contextlib.suppress(queue.Empty):
                told.get(timeout=LOOKS_UP_AFTER_S)
        raise
    return [results[i] for i in range(len(cases))]
