"""One scan with its reference, asked in every way of a prompted evaluation.

In: a `PromptedSegmenter`, a scan and its dense ids. Out: a `metrics.prompting.Record` of the scan.
The scan is encoded once, and asked for all of its objects by all rows; masks are compared on the
grid of the scan. Voxels that the preparation crops away count as missed.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from medjax.corpora.cases import voxel_counts
from medjax.infer.scene import Found, Prompter
from medjax.infer.zoom import Asked
from medjax.labels import Corpus
from medjax.metrics import prompting
from medjax.metrics.counts import volume_ml
from medjax.metrics.prompting import Absent, Clicked, Confused, Key, Measured, Record
from medjax.prompts import draw
from medjax.prompts.read import Placed
from medjax.prompts.request import Request
from medjax.prompts.rows import Drawn, Object, Row
from medjax.runs.settings.use import Prompted
from medjax.scans.nifti import Volume


class Scan:
    """An open scan with its reference.

    Args:
      segmenter: an `infer.prompted.PromptedSegmenter`. ids: (z, y, x) dense ids of the corpus on
        the stored grid. texts: class of the corpus -> the text that asks for it.
    """

    def __init__(
        self,
        segmenter: Any,
        volume: Volume,
        ids: np.ndarray,
        corpus: Corpus,
        request: Request,
        texts: Mapping[str, str],
    ):
        (prepared,) = segmenter.prepare_all(volume, request)
        self.segmenter, self.corpus, self.texts = segmenter, corpus, dict(texts)
        self.scene = segmenter.open(prepared, request)
        self.transform = prepared.transform
        self.spacing_mm = self.transform.spacing_mm  # of the canonical axes
        self.ids = np.ascontiguousarray(self.transform.image(ids))
        self._voxels = self._counted(voxel_counts(ids, len(corpus.values)))

    def voxels(self, name: str) -> int:
        """Of a class, in the whole scan."""
        return self.of(self._voxels, name)

    def of(self, counts: Int[np.ndarray, " ids"], name: str) -> int:
        """Those of a class among voxel counts per id."""
        return int(counts[list(self.corpus.ids_of(name))].sum())

    def mask(self, name: str) -> Bool[np.ndarray, "z y x"]:
        """A class on the cropped canonical grid."""
        table = np.zeros(len(self.corpus.values), bool)
        table[list(self.corpus.ids_of(name))] = True
        return table[self.ids]

    def shared(self, one: str, other: str) -> bool:
        """Whether two classes have voxels of the scan in common."""
        both = set(self.corpus.ids_of(one)) & set(self.corpus.ids_of(other))
        return bool(self._voxels[list(both)].sum())

    def found(self, found: Found) -> Bool[np.ndarray, "z y x"]:
        """What was predicted, where the reference says something."""
        mask = self.segmenter.mask(self.scene, found)
        return mask if self.corpus.ignore is None else mask & (self.ids != self.corpus.ignore_id)

    def counts(self, mask: Bool[np.ndarray, "z y x"]) -> Int[np.ndarray, " ids"]:
        """Voxels of every id inside a mask."""
        return np.bincount(self.ids[mask], minlength=len(self.corpus.values))

    def dice(self, counts: Int[np.ndarray, " ids"], name: str) -> float:
        """Dice with a class, of a prediction with these voxels per id."""
        return prompting.dice(self.of(counts, name), int(counts.sum()), self.voxels(name))

    def asked(self, drawn: Drawn, text: str = "") -> Asked:
        """Prompts of the canonical grid as the network is asked for them."""
        last, box = np.array(self.transform.shape, float) - 1, None
        points = np.clip(self.transform.to_resampled(drawn.points), 0, last)
        if drawn.box is not None:
            ends = self.transform.to_resampled(drawn.box.reshape(2, 3))
            box = np.clip(ends, 0, last).reshape(6)
        return self.segmenter.asked(Placed("", text, points, drawn.kinds, box))

    def _counted(self, counts: Int[np.ndarray, " ids"]) -> Int[np.ndarray, " ids"]:
        if self.corpus.ignore is not None:
            counts[self.corpus.ignore_id] = 0
        return counts


@dataclasses.dataclass(frozen=True)
class _Job:
    """One question: an object under a row."""

    row: Row
    name: str
    drawn: Drawn
    asked: Asked


def measure(
    scan: Scan, key: Key, names: Sequence[str], rows: Sequence[Row], given: Prompted
) -> Record:
    """All rows of a scan.

    Args:
      key: without a class. names: the classes to ask for. given: numbers of draws and clicks.
    """
    record = Record()
    present = [name for name in names if scan.voxels(name)]
    if given.largest:
        present = sorted(present, key=scan.voxels, reverse=True)[: given.largest]
    texts = _texts(scan, key, rows, names, present, record)
    for name in present:
        thing = Object(scan.mask(name), scan.spacing_mm)
        jobs = [
            _Job(row, name, drawn, scan.asked(drawn, scan.texts[name] if row.text else ""))
            for row in rows
            if not row.clicks and row.name not in texts and _possible(scan, thing, row, name)
            for drawn in _draws(thing, row, key, name, given)
        ]
        for prompter, part in _batches(scan, jobs):
            found = prompter.find(scan.scene, [job.asked for job in part])
            for job, one in zip(part, found, strict=True):
                counts = scan.counts(scan.found(one))
                record.measured.append(_measured(scan, thing, key, job, counts))
    for row in rows:
        if row.clicks:
            record.clicked += _clicked(scan, key, present, row, given)
    return record


def _possible(scan: Scan, thing: Object, row: Row, name: str) -> bool:
    """Whether an object can be asked for by a row: its text is known, and a part of it is left by
    the preparation.
    """
    return not (row.text and name not in scan.texts) and (thing.voxels > 0 or not _spatial(row))


def _spatial(row: Row) -> bool:
    return row.box or row.positives > 0


def _draws(thing: Object, row: Row, key: Key, name: str, given: Prompted) -> Iterator[Drawn]:
    own = zlib.crc32("/".join((key.corpus, key.case, name)).encode())
    for number in range(given.draws if row.drawn and not row.clicks else 1):
        yield thing.asked(row, np.random.default_rng([given.seed, own, number]))


def _batches(scan: Scan, jobs: Sequence[_Job]) -> Iterator[tuple[Prompter, Sequence[_Job]]]:
    """At most as many questions as the network answers at a time, with equal settings."""
    plain = scan.segmenter.prompter
    for changes in dict.fromkeys(tuple(job.row.changes.items()) for job in jobs):
        prompter = plain.varied(**dict(changes)) if changes else plain
        own = [job for job in jobs if tuple(job.row.changes.items()) == changes]
        for first in range(0, len(own), prompter.queries):
            yield prompter, own[first : first + prompter.queries]


def _measured(
    scan: Scan, thing: Object, key: Key, job: _Job, counts: Int[np.ndarray, " ids"]
) -> Measured:
    box, of_box = job.drawn.box, {}
    if box is not None:
        filled, ellipsoid = prompting.floors(box, thing.mask, scan.voxels(job.name))
        of_box = {
            "iou": draw.iou(box, thing.tight),
            "filled_box": filled,
            "ellipsoid": ellipsoid,
            "inverted": bool(np.any(box[:3] > box[3:])),
        }
    dice, empty = scan.dice(counts, job.name), not counts.any()
    return Measured(key._replace(name=job.name), job.row.name, dice, **of_box, empty=empty)


def _texts(
    scan: Scan,
    key: Key,
    rows: Sequence[Row],
    names: Sequence[str],
    present: Sequence[str],
    record: Record,
) -> set[str]:
    """Rows of texts alone, for all classes together: those that are there, those that are not, and
    what is taken for what. Returns the names of these rows.
    """
    own = [row for row in rows if row.text and not _spatial(row) and not row.clicks]
    nothing = Drawn(np.zeros((0, 3)), np.zeros(0, np.int64), None)
    missing = [name for name in names if not scan.voxels(name)]
    known = [name for name in (*present, *missing) if name in scan.texts]
    counts: dict[str, np.ndarray] = {}
    for row in own:
        wanted = [name for name in known if name in present or not row.changes]
        jobs = [_Job(row, name, nothing, scan.asked(nothing, scan.texts[name])) for name in wanted]
        for prompter, part in _batches(scan, jobs):
            found = prompter.find(scan.scene, [job.asked for job in part])
            for job, one in zip(part, found, strict=True):
                inside = scan.counts(scan.found(one))
                if not row.changes:
                    counts[job.name] = inside
                if job.name in present:
                    dice, empty = scan.dice(inside, job.name), not inside.any()
                    measured = Measured(key._replace(name=job.name), row.name, dice, empty=empty)
                    record.measured.append(measured)
                else:
                    ml = volume_ml(int(inside.sum()), scan.spacing_mm)
                    record.absent.append(Absent(key._replace(name=job.name), ml))
    there = tuple(name for name in present if name in counts)
    if there:
        dice = np.array([[scan.dice(counts[i], j) for j in there] for i in there])
        shared = np.array([[scan.shared(i, j) for j in there] for i in there])
        record.confused.append(Confused(key, there, dice, shared))
    return {row.name for row in own}


def _clicked(
    scan: Scan, key: Key, present: Sequence[str], row: Row, given: Prompted
) -> list[Clicked]:
    """A first prompt and corrections, for as many objects at a time as the network answers."""
    jobs, things = [], {}
    for name in present:
        thing = Object(scan.mask(name), scan.spacing_mm)
        if _possible(scan, thing, row, name):
            (drawn,) = _draws(thing, row, key, name, given)
            asked = scan.asked(drawn, scan.texts[name] if row.text else "")
            asked = dataclasses.replace(asked, own=True)
            jobs.append(_Job(row, name, drawn, asked))
            things[name] = thing
    found = []
    for prompter, part in _batches(scan, jobs):
        curves = _corrected(scan, prompter, part, things, given.clicks)
        found += [
            Clicked(key._replace(name=job.name), row.name, curve)
            for job, curve in zip(part, curves, strict=True)
        ]
    return found


def _corrected(
    scan: Scan,
    prompter: Prompter,
    jobs: Sequence[_Job],
    things: Mapping[str, Object],
    clicks: int,
) -> list[tuple[float, ...]]:
    """Dice after 0 ... n clicks, each at the centre of the largest error, as a careful user makes
    them (`draw.centre_of_error`). Who sees no error stops: the Dice stays.
    """
    asked = [job.asked for job in jobs]
    before: list[Found | None] = [None] * len(jobs)
    curves: list[list[float]] = [[] for _ in jobs]
    going = list(range(len(jobs)))
    for step in range(clicks + 1):
        found = prompter.find(scan.scene, [asked[k] for k in going], [before[k] for k in going])
        done = []
        for k, one in zip(going, found, strict=True):
            name, before[k] = jobs[k].name, one
            mask = scan.found(one)
            curves[k].append(scan.dice(scan.counts(mask), name))
            error = draw.centre_of_error(things[name].mask, mask, scan.spacing_mm)
            if error is None:
                done.append(k)
                continue
            click = Drawn(np.array([error[0]], float), np.array([error[1]]), None)
            one_more = scan.asked(click)
            asked[k] = dataclasses.replace(
                asked[k],
                points=np.concatenate([asked[k].points, one_more.points]),
                kinds=np.concatenate([asked[k].kinds, one_more.kinds]),
            )
        going = [k for k in going if k not in done]
        if not going or step == clicks:
            break
    return [tuple(curve + curve[-1:] * (clicks + 1 - len(curve))) for curve in curves]
