"""Raw cases -> prepared cases in the store: canonical axes, crop, clip (CT), target spacing, int16.

In: a corpus, its cases and a plan. Out: one folder per case, see `prepare/store.py`.

A case appears under its name only when it is complete: it is written to a hidden sibling folder
that is then renamed. Its key is a hash of the source bytes, of the decisions of the plan that
concern it and of the declared label values; a case with another key is prepared again.
`prepare/targets.py` decides what may be replaced.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import random
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from medjax import files
from medjax.corpora.cases import (
    Progress,
    Stopped,
    bytes_needed,
    each,
    labelled,
    load,
    stamp,
    still_wanted,
    voxel_counts,
)
from medjax.corpora.inputs import Case
from medjax.errors import DataError, MedjaxError, WriteError, shown
from medjax.labels import Corpus
from medjax.prepare import normalise, store, targets
from medjax.prepare.grid import Grid
from medjax.prepare.plan import Plan
from medjax.prepare.targets import check_targets as check_targets
from medjax.prepare.targets import holding as holding
from medjax.scans import formats, records
from medjax.scans.nifti import DataWarning

SEED = 1234
MOST_LOCATIONS, LEAST_SHARE = 10_000, 0.01
LARGE_BOX = 1 << 24  # larger boxes of a structure are searched slice by slice, to bound the memory
DAMAGED = "files (damaged)"

log = logging.getLogger("medjax.prepare")


@dataclasses.dataclass(frozen=True)
class PrepareResult:
    """Result of a call to `prepare`.

    Attributes:
      ok: names prepared now, sorted. skipped: how many were up to date.
      failed: records with case, error, message, path, found, expected, fix.
      stale: name -> what had changed, for the cases that were prepared again.
      hashed: names of cases from a version without hashes, which now have hashes.
      cropped: name -> (labelled voxels outside the crop, which are lost, and labelled voxels in
        all), if there are any.
    """

    ok: list[str]
    failed: list[dict]
    skipped: int
    stale: dict[str, str]
    hashed: tuple[str, ...] = ()
    cropped: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def remarks(self) -> list[str]:
        """Further remarks for the user, as lines."""
        lines = []
        if self.hashed:
            lines.append(
                f"  {len(self.hashed)} cases were prepared by a version without hashes and have "
                "them from now on; earlier damage to their "
                "images would not have been noticed (--force makes them again)"
            )
        return lines + [
            f"  {shown(name)}: {lost} of {total} labelled voxels ({lost / total:.1%}) lie outside "
            "the image's non-zero part and are cut off"
            for name, (lost, total) in self.cropped.items()
        ]


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
    say: Callable[[str], None] = log.warning,
) -> PrepareResult:
    """Brings the store up to date: prepares missing and outdated cases.

    A case that fails never stops the others.

    Args:
      corpus: whose dense ids are written; a view shares the store, and the ids, of its corpus.
      root: the store; cases go to <root>/<corpus.store>/<case>.
      workers: threads; default one per core, fewer if the estimated memory does not suffice.
      progress: called after every case with (done, total, name, "prepared" | "up to date" |
        "failed").
      force: prepare all cases again.
      packed: write compressed chunks (see `prepare/store.py`); cases that are up to date keep their
        layout.
      locked: wait while another process prepares this corpus in the store. False: the caller, or
        another process of the same job, is inside `holding`.
      say: gets a line if there is something to wait for.

    Raises `UsageError` before anything is written for a plan that does not cover the corpus, and
    for a store that would overwrite files that medjax did not write (see `check_targets`).
    """
    check_plan(corpus, plan)
    cases = list(cases)
    check_targets(corpus.store, cases, root)
    with holding(root, corpus.store, say) if locked else contextlib.nullcontext():
        return _prepare(
            corpus, cases, plan, Path(root) / corpus.store, workers, progress, force, packed
        )


def check_plan(corpus: Corpus, plan: Plan) -> None:
    """`UsageError` for a plan that does not cover the corpus and its channels."""
    plan.spacing_of(corpus.store)
    for channel in corpus.channels:
        plan.intensity_of(channel)


@dataclasses.dataclass(frozen=True)
class _Done:
    """Result of one case."""

    status: str
    reason: str = ""
    hashed: bool = False
    cropped: tuple[int, int] = (0, 0)


def _prepare(
    corpus: Corpus,
    cases: list[Case],
    plan: Plan,
    folder: Path,
    workers: int | None,
    progress: Progress | None,
    force: bool,
    packed: bool,
) -> PrepareResult:
    intensities, grid = (
        tuple(plan.intensity_of(c) for c in corpus.channels),
        plan.grid_of(corpus.store),
    )
    folder.mkdir(parents=True, exist_ok=True)
    if targets.sweep(
        folder
    ):  # another process of this job is running: start at another case, to avoid conflicts
        random.Random(os.getpid()).shuffle(cases)

    def one(case: Case) -> _Done:
        final = folder / case.name
        found = targets.look(final, case.name, corpus.store)
        if found.state == "foreign":
            raise DataError(
                "is in the way of a prepared case",
                path=final,
                found=found.reason,
                fix=targets.ELSEWHERE,
            )
        old = None if force else found.meta
        sources, stat = _sources(case, old)
        inputs = {
            "version": store.VERSION,
            "plan": [
                grid.identity(),
                plan.orientation,
                plan.crop,
                list(plan.transpose),
                [i.to_json() for i in intensities],
            ],
            "labels": [
                list(corpus.values),
                corpus.ignore,
                *([corpus.labels] if case.masks else []),
            ],  # masks: a value is a set of classes
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
        identity = {
            "sources": sources,
            "stat": stat,
            "inputs": inputs,
            "key": key,
            "version": store.VERSION,
        }
        reason = ""
        if old is not None and old["key"] == key:
            try:
                return _kept(final, old, json.loads(json.dumps(described | identity)), described)
            except WriteError:
                raise
            except (
                MedjaxError,
                LookupError,
                TypeError,
                ValueError,
                AttributeError,
            ) as error:  # also a case.json with odd fields
                log.warning("%s: prepared again: %s", final, error)
                reason = DAMAGED
        elif old is not None:
            reason = (
                ", ".join(k for k in inputs if old.get("inputs", {}).get(k) != inputs[k]) or "key"
            )
            log.info("%s: prepared again, changed: %s", final, reason)
        try:
            lost = _make(
                case, corpus, plan, final, described, identity, force or reason == DAMAGED, packed
            )
        except Stopped:
            raise
        except BaseException:
            if (
                reason
            ):  # the existing case has another plan or other sources: it must not be trained on
                targets.discard(final, corpus.store)
            raise
        return _Done("prepared", reason, cropped=lost)

    outcomes = each(
        one,
        cases,
        workers=workers,
        progress=progress,
        status=lambda v: v.status,
        needs=lambda case: _bytes(case, grid),
    )
    good = {o.case.name: o.value for o in outcomes if o.failure is None}
    return PrepareResult(
        ok=sorted(name for name, done in good.items() if done.status == "prepared"),
        failed=sorted(
            (o.failure for o in outcomes if o.failure is not None), key=lambda f: f["case"]
        ),
        skipped=sum(done.status == "up to date" for done in good.values()),
        stale={name: done.reason for name, done in good.items() if done.reason},
        hashed=tuple(sorted(name for name, done in good.items() if done.hashed)),
        cropped={name: done.cropped for name, done in good.items() if done.cropped[0]},
    )


def _bytes(case: Case, grid: Grid) -> int:
    """Estimated memory of a case; the typical spacing says little of one that keeps its own."""
    needed = bytes_needed(case, grid.spacing_mm)
    return needed if grid.kind == "spacing" else max(needed, bytes_needed(case))


def _kept(final: Path, old: dict, fields: dict, described: dict) -> _Done:
    """Brings case.json of an up-to-date case up to date, and adds missing hashes.

    Versions before the hashes did not write them.

    Raises: `DataError` if the case is damaged, as far as the sizes of its files (or, without
      hashes, its label) show.
    """
    store.check_files(final)
    fresh = old | fields
    lost, total = fresh.get("cropped_labels", (0, 0))
    hashed = "hashes" not in old
    if hashed:
        fresh["hashes"] = store.hashes_of(final)
    fresh = store.sealed(fresh)
    if fresh != old:
        try:
            store.write_meta(final, fresh)
        except WriteError:
            if any(old.get(k) != fresh[k] for k in described):
                raise
            hashed = False  # a store that can only be read is as good as it was
    return _Done("up to date", hashed=hashed, cropped=(int(lost), int(total)))


def _make(
    case: Case,
    corpus: Corpus,
    plan: Plan,
    final: Path,
    described: dict,
    identity: dict,
    force: bool,
    packed: bool,
) -> tuple[int, int]:
    """Reads, transforms and writes one case, and gives it its name.

    Returns the labelled voxels outside the crop, and in all.
    """
    volume, ids = load(case, corpus, native=True)
    still_wanted()
    intensities = [plan.intensity_of(c) for c in corpus.channels]
    transform = plan.fit(volume, corpus.store, corpus.channels)
    masked = any(intensity.masked for intensity in intensities)
    image, numbers = normalise.stored_image(transform, volume.array, intensities, volume.path)
    outside = normalise.outside_mask(transform, volume.array, intensities) if masked else None
    del volume
    has_label, outside_id, lost = ids is not None, len(corpus.values), (0, 0)
    if ids is None:
        ids = np.zeros(transform.stored_shape, np.uint8)
    elif total := labelled(ids, corpus.ignore_id):
        lost = total - labelled(transform.image(ids), corpus.ignore_id), total
        _tell_lost(case, lost)
    if outside is not None:
        ids = ids.astype(np.uint8 if outside_id < 256 else np.uint16)
        view = transform.image(ids)
        view[outside & (view == 0)] = outside_id
    label = transform.label(ids)
    del ids, outside
    if masks := [c for c, found in enumerate(intensities) if found.role == "mask"]:
        numbers["masks"] = masks
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
        "labelled": has_label,
        "voxels": {str(i): int(n) for i, n in enumerate(counts) if n},
        "cropped_labels": list(lost),
    }
    locations = _locations(label, (corpus.ignore_id, outside_id))
    still_wanted()
    temporary = files.temporary(final)
    try:
        (temporary / case.name).mkdir(parents=True)
        store.write_case(
            temporary / case.name, image, label, locations, meta | identity, packed=packed
        )
        still_wanted()
        targets.publish(
            temporary / case.name, final, corpus.store, None if force else identity["key"]
        )
    except OSError as error:
        raise files.refused(final, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return lost


def _tell_lost(case: Case, lost: tuple[int, int]) -> None:
    if lost[0]:
        warnings.warn(
            f"{case.label_files[0]}: {lost[0]} of {lost[1]} labelled voxels "
            f"({lost[0] / lost[1]:.1%}) lie outside the non-zero part of the "
            "image and are cut off with it; is this the label of another image?",
            DataWarning,
            stacklevel=2,
        )


def _locations(label: np.ndarray, without: Sequence[int]) -> dict[str, np.ndarray]:
    """Up to max(10000, 1 %) voxels of every foreground id not in `without`, seeded, ascending."""
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
            np.arange(total)
            if wanted == total
            else np.random.default_rng([SEED, i]).choice(
                total, wanted, replace=False, shuffle=False
            )
        )
        flat = _nth_of(part, i, np.sort(ranks), counts)
        voxels = np.stack(np.unravel_index(flat, part.shape), 1) + [s.start for s in box]
        found[str(i)] = voxels.astype(np.int32)
    return found


def _nth_of(part: np.ndarray, i: int, ranks: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Flat indices of the voxels with value i that have these (sorted) ranks among them.

    Slice by slice if the counts are per slice.
    """
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
    """Path -> sha256, and path -> stamp.

    Files whose stamp (see `cases.stamp`) equals that of the stored case are not read again.
    """
    hashes, stats = {}, {}
    for path in case.files():
        try:
            record = formats.kind_of(path) == "record"
            stats[path] = records.stamp(path) if record else stamp(path)
            if (
                old is not None
                and path in old["sources"]
                and old.get("stat", {}).get(path) == stats[path]
            ):
                hashes[path] = old["sources"][path]
            elif record:
                hashes[path] = records.digest(path)
            else:
                with open(path, "rb") as file:
                    hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(
                f"cannot be read: {error.strerror}",
                path=path,
                fix="check the path and its permissions",
            ) from error
    return hashes, stats
