"""Raw cases -> prepared cases in the store: canonical axes, crop, clip (CT), target spacing, int16.

In: a corpus, its cases and a plan. Out: one folder per case, see `data/store.py`.

A case appears under its name complete or not at all: it is written to a hidden sibling folder that is then renamed. Its key is a hash of
the source bytes, of the decisions of the plan that concern it and of the declared label values; a case with another key is made again.
"""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import random
import shutil
import socket
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from medjax.data import formats, geometry, normalise, store, tfds_source
from medjax.data.cases import Progress, bytes_needed, each, load, voxel_counts
from medjax.data.inputs import Case
from medjax.data.plan import Plan, intensity_json
from medjax.errors import DataError, UsageError
from medjax.labels import Corpus

SEED = 1234
MOST_LOCATIONS, LEAST_SHARE = 10_000, 0.01
LARGE_BOX = 1 << 24  # voxels of a structure's box from which it is searched slice by slice, which bounds the memory
TEMPORARY = ".tmp-"

log = logging.getLogger("medjax.prepare")


@dataclasses.dataclass(frozen=True)
class PrepareResult:
    """What a call to `prepare` did.

    Attributes:
      ok: names prepared now, sorted. skipped: how many were up to date.
      failed: records with case, error, message, path, found, expected, fix.
      stale: name -> what had changed, for the cases that were made again.
    """

    ok: list[str]
    failed: list[dict]
    skipped: int
    stale: dict[str, str]


def prepare(
    corpus: Corpus,
    cases: Sequence[Case],
    plan: Plan,
    root: str | os.PathLike,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    force: bool = False,
    packed: bool = False,
    locked: bool = True,
) -> PrepareResult:
    """Brings the store up to date; only missing and outdated cases are made, and one bad case never stops the others.

    Args:
      corpus: whose dense ids are written; a view shares the store, and the ids, of the corpus it looks at.
      root: the store; cases go to <root>/<corpus.store>/<case>.
      workers: threads; default one per core, fewer while the estimated memory does not suffice.
      progress: called after every case with (done, total, name, "prepared" | "up to date" | "failed").
      force: make all cases again.
      packed: write compressed chunks (see `data/store.py`); cases that are up to date keep the layout they have.

    Several processes may prepare one store at once. Raises `UsageError` before any work for a plan that does not cover the corpus.
    """
    intensities, spacing = tuple(plan.intensity_of(c) for c in corpus.channels), plan.spacing_of(corpus.store)
    folder = Path(root) / corpus.store
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the store cannot be made: {error.strerror}", path=folder) from error
    cases = list(cases)
    for case in cases:
        if os.sep in case.name or case.name.startswith("."):
            raise UsageError("unusable case name", path=folder, found=case.name, expected="a name that can be a folder")
    if _sweep(folder):  # another process is at work: start somewhere else, so that the two meet late
        random.Random(os.getpid()).shuffle(cases)

    def one(case: Case) -> tuple[str, str]:
        final = folder / case.name
        old = None if force else _read_meta(final)
        sources, stat = _sources(case, old)
        inputs = {
            "version": store.VERSION,
            "plan": [spacing, plan.orientation, plan.crop, list(plan.transpose), [intensity_json(i) for i in intensities]],
            "labels": [list(corpus.values), corpus.ignore, *([corpus.labels] if case.masks else [])],  # masks: a value is a set of classes
            "sources": list(sources.values()),
        }
        inputs = json.loads(json.dumps(inputs))
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        described = {
            "name": case.name,
            "corpus": corpus.store,
            "modality": case.modality or corpus.modality,
            "patient": case.patient or case.name,
            "labels": [[value, list(names)] for value, names in corpus.labels],
        }
        identity = {"sources": sources, "stat": stat, "inputs": inputs, "key": key, "version": store.VERSION}
        if old is not None and old["key"] == key:
            fresh = old | described | identity
            if fresh != old:
                _rewrite_meta(final, fresh)
            return "up to date", ""
        reason = "" if old is None else ", ".join(k for k in inputs if old.get("inputs", {}).get(k) != inputs[k]) or "key"
        if reason:
            log.info("%s: made again, changed: %s", final, reason)
        try:
            _make(case, corpus, plan, final, described, identity, force, packed)
        except BaseException:
            if reason:  # what is there belongs to another plan or other sources: no one may train on it
                _discard(final)
            raise
        return "prepared", reason

    outcomes = each(one, cases, workers=workers, progress=progress, status=lambda v: v[0], needs=lambda case: bytes_needed(case, spacing))
    good = [(o.case.name, *o.value) for o in outcomes if o.failure is None]
    return PrepareResult(
        ok=sorted(name for name, status, _ in good if status == "prepared"),
        failed=sorted((o.failure for o in outcomes if o.failure is not None), key=lambda f: f["case"]),
        skipped=sum(status == "up to date" for _, status, _ in good),
        stale={name: reason for name, _, reason in good if reason},
    )


def _make(case: Case, corpus: Corpus, plan: Plan, final: Path, described: dict, identity: dict, force: bool, packed: bool) -> None:
    """Reads, transforms and writes one case, and gives it its name."""
    volume, ids = load(case, corpus, native=True)
    spacing, intensities = plan.spacing_of(corpus.store), [plan.intensity_of(c) for c in corpus.channels]
    transform = geometry.fit(volume, spacing, orientation=plan.orientation, crop=plan.crop, transpose=plan.transpose)
    masked = any(intensity.masked for intensity in intensities)
    image, numbers = normalise.stored_image(transform, volume.array, intensities, volume.path)
    outside = normalise.outside_mask(transform, volume.array) if masked else None
    del volume
    labelled, outside_id = ids is not None, len(corpus.values)
    if ids is None:
        ids = np.zeros(transform.stored_shape, np.uint8)
    if outside is not None:
        ids = ids.astype(np.uint8 if outside_id < 256 else np.uint16)
        view = transform.image(ids)
        view[outside & (view == 0)] = outside_id
    label = transform.label(ids)
    del ids, outside
    counts = voxel_counts(label, outside_id + 1)
    if masked:
        numbers["outside_id"] = outside_id
        counts[0] += counts[outside_id]
        counts[outside_id] = 0
    meta = described | {
        "shape": list(transform.shape),
        "spacing_mm": list(transform.target_spacing_mm),
        "transform": transform.to_json(),
        **numbers,
        "labelled": labelled,
        "voxels": {str(i): int(n) for i, n in enumerate(counts) if n},
    }
    temporary = final.parent / f"{TEMPORARY}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}-{case.name}"
    temporary.mkdir()
    try:
        store.write_case(temporary, image, label, _locations(label, (corpus.ignore_id, outside_id)), meta | identity, packed=packed)
        _publish(temporary, final, None if force else identity["key"])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _locations(label: np.ndarray, without: Sequence[int]) -> dict[str, np.ndarray]:
    """Up to max(10000, 1 %) voxels of every foreground id but those in `without`, seeded, in ascending order."""
    found = {}
    for i, box in enumerate(ndimage.find_objects(label), 1):
        if box is None or i in without:
            continue
        part = label[box]
        pieces = part if part.size > LARGE_BOX else [part]
        counts = [int(np.count_nonzero(piece == i)) for piece in pieces]
        total = int(sum(counts))
        wanted = max(min(MOST_LOCATIONS, total), -(-total // round(1 / LEAST_SHARE)))
        ranks = (
            np.arange(total) if wanted == total else np.random.default_rng([SEED, i]).choice(total, wanted, replace=False, shuffle=False)
        )
        flat = _nth_of(part, i, np.sort(ranks), counts)
        voxels = np.stack(np.unravel_index(flat, part.shape), 1) + [s.start for s in box]
        found[str(i)] = voxels.astype(np.int32)
    return found


def _nth_of(part: np.ndarray, i: int, ranks: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Flat indices of the voxels with value i that have these (sorted) ranks among them; slice by slice if the counts are per slice."""
    if len(counts) == 1:
        return np.flatnonzero(part == i)[ranks]
    ends = np.cumsum(counts)
    slices, size = np.searchsorted(ends, ranks, side="right"), part[0].size
    flat = np.empty(len(ranks), np.int64)
    for z in np.unique(slices):
        here = slices == z
        flat[here] = z * size + np.flatnonzero(part[z] == i)[ranks[here] - (ends[z] - counts[z])]
    return flat


def _sources(case: Case, old: dict | None) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Path -> sha256, and path -> [size, modification time]; files whose size and time are those of the stored case are not read again."""
    hashes, stats = {}, {}
    for path in formats.files_of(case):
        try:
            record = formats.kind_of(path) == "record"
            stats[path] = tfds_source.stamp(path) if record else [os.stat(path).st_size, os.stat(path).st_mtime_ns]
            if old is not None and old.get("stat", {}).get(path) == stats[path]:
                hashes[path] = old["sources"][path]
            elif record:
                hashes[path] = tfds_source.digest(path)
            else:
                with open(path, "rb") as file:
                    hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", path=path, fix="check the path and its permissions") from error
    return hashes, stats


def _read_meta(final: Path) -> dict | None:
    """case.json of a prepared case, None if there is none; one that cannot be understood counts as outdated."""
    try:
        meta = json.loads((final / "case.json").read_text())
        return meta if isinstance(meta, dict) and {"key", "sources"} <= set(meta) else {"key": "", "sources": {}}
    except FileNotFoundError:
        return {"key": "", "sources": {}} if final.exists() else None
    except ValueError:
        return {"key": "", "sources": {}}


def _rewrite_meta(final: Path, meta: dict) -> None:
    temporary = final / f"case.json.{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary.write_text(json.dumps(meta, indent=1))
    os.replace(temporary, final / "case.json")


def _publish(temporary: Path, final: Path, key: str | None) -> None:
    """Gives a finished folder its name; if another process was first with the same key, its folder stays."""
    for _ in range(20):
        try:
            os.rename(temporary, final)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        current = _read_meta(final)
        if current is not None and current["key"] == key:
            return
        _discard(final)
    raise DataError("another process keeps writing this case differently", path=final, fix="use one plan per store")


def _discard(folder: Path) -> None:
    """Takes a folder away in one step, then deletes it."""
    trash = folder.parent / f"{TEMPORARY}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}-old"
    try:
        os.rename(folder, trash)
    except FileNotFoundError:
        return
    shutil.rmtree(trash, ignore_errors=True)


def _sweep(folder: Path) -> bool:
    """Deletes what killed processes of this machine left; True if another process is at work here."""
    busy = False
    for leftover in folder.glob(f"{TEMPORARY}{socket.gethostname()}-*"):
        pid = leftover.name.removeprefix(f"{TEMPORARY}{socket.gethostname()}-").split("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            busy = True
    return busy


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
