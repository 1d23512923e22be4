"""Paired organs that are one class, as two: a left and a right one.

In: a corpus with a class such as "kidney", and its cases. Out: a described corpus (`corpus.json`)
with label maps of its own in which "right kidney" and "left kidney" take its place; the scans are
not copied, the labels of the corpus are not changed.

Source: the Universal Model splits by the two largest 26-connected components. There, a single one
is always the right organ; here it takes the side of the body on which it lies. Cases where the rule
had to guess are named: joined organs, and two components on one side of the body.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped
from scipy import ndimage

from medjax.corpora.inputs import Case
from medjax.corpora.labels_of_case import read_label
from medjax.corpora.layouts import corpus_json
from medjax.corpora.words import some
from medjax.errors import UsageError, did_you_mean
from medjax.labels import Corpus
from medjax.scans import formats, grid, nifti

FOLDER = "labels"  # of the written label maps, beside the description
SIDES = ("right", "left")
SECOND = 0.05  # a component is the other organ if it has that share of the largest one's voxels
JOINED = 0.25  # one component is both organs, joined, if that share lies beyond the middle
WORDS = {  # state of a case -> what to say of it
    "single": "have an organ on one side only",
    "joined": "have joined organs, cut in the middle of the body",
    "beside": "have two parts on one side of the body, told apart by their order: look at them",
}
STATES = ("two", *WORDS)


@dataclasses.dataclass(frozen=True)
class Written:
    """What `write` made.

    Attributes:
      path: of the description. cases: how many there are.
      single: names of cases with one component, of one side. joined: of those cut in the middle.
      beside: of those whose two components lie on one side of the body.
      new: how many label maps were written; the others were there. described: the cases with them.
    """

    path: Path
    cases: int
    single: tuple[str, ...]
    joined: tuple[str, ...]
    beside: tuple[str, ...]
    new: int
    described: tuple[Case, ...]

    def sentence(self) -> str:
        """One line for people."""
        found = f"{self.cases} cases described in {self.path}"
        for state, what in WORDS.items():
            names = getattr(self, state)
            found += f"; {len(names)} {what} ({some(names)})" if names else ""
        return found


def left_of(
    mask: Bool[np.ndarray, "z y x"], middle: float
) -> tuple[Bool[np.ndarray, "z y x"], str]:
    """The voxels of a mask that belong to the left organ.

    Args:
      mask: in RAS order: x grows towards the patient's right.
      middle: x index of the middle of the body.

    Returns: a mask, and one of `STATES`: with two components, the one with the lower mean x is the
      left one, and smaller ones go to the nearer of both ("beside" if both lie on one side).
    """
    components, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if not count:
        return mask, "two"
    sizes = np.bincount(components.ravel())[1:]
    ones = np.ones_like(components)
    means = np.array(ndimage.center_of_mass(ones, components, range(1, count + 1)))[:, 2]
    order = np.argsort(-sizes, kind="stable")
    if count > 1 and sizes[order[1]] >= SECOND * sizes[order[0]]:
        low, high = sorted(means[order[:2]])
        is_left = np.abs(means - low) < np.abs(means - high)
        apart = low < middle < high
        return np.concatenate([[False], is_left])[components], "two" if apart else "beside"
    beyond = mask & (np.arange(mask.shape[2]) < middle)
    share = np.count_nonzero(beyond) / np.count_nonzero(mask)
    if JOINED <= share <= 1 - JOINED:
        return beyond, "joined"
    return (mask if share > 0.5 else np.zeros_like(mask)), "single"


def middle_of(image: Shaped[np.ndarray, "z y x"]) -> float:
    """x index of the middle of the body: the median of the voxels that are brighter than average.

    The middle of the image where nothing is.
    """
    bright = (image > image.mean()).sum((0, 1))
    total = np.cumsum(bright)
    return float(np.searchsorted(total, total[-1] / 2)) if total[-1] else image.shape[2] / 2


def split(corpus: Corpus, classes: Sequence[str]) -> tuple[Corpus, tuple[int, ...]]:
    """The corpus with sides in place of classes, and which of its dense ids have a left one.

    Ids keep their number for the right side; those of the left side follow, in that order. Values
    of the new label maps are these ids.

    Raises: `UsageError` for an unknown class, or a name that is already there.
    """
    for name in classes:
        if name not in corpus.classes:
            raise UsageError(
                f"corpus {corpus.name!r} has no class {name!r}",
                fix=did_you_mean(name, corpus.classes),
            )
        for side in SIDES:
            if f"{side} {name}" in corpus.classes:
                raise UsageError(f"corpus {corpus.name!r} has a class '{side} {name}' already")

    def told(names: Sequence[str], side: str) -> tuple[str, ...]:
        return tuple(f"{side} {one}" if one in classes else one for one in names)

    paired = tuple(i for i, (_, names) in enumerate(corpus.labels) if set(names) & set(classes))
    first = len(corpus.values)  # the ignore value, if any, is the last id
    labels = [(i, told(names, "right")) for i, (_, names) in enumerate(corpus.labels)]
    labels += [(first + k, told(corpus.labels[i][1], "left")) for k, i in enumerate(paired)]
    annotated = [
        word
        for name in corpus.annotated
        for word in ([f"{side} {name}" for side in SIDES] if name in classes else [name])
    ]
    changed = dataclasses.replace(
        corpus,
        labels=tuple(labels),
        annotated=tuple(annotated),
        ignore=None if corpus.ignore is None else corpus.ignore_id,
        meanings=tuple(pair for pair in corpus.meanings if pair[0] not in classes),
    )
    return changed, paired


def write(
    folder: str | os.PathLike,
    corpus: Corpus,
    cases: Sequence[Case],
    classes: Sequence[str],
    facts: Mapping | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Written:
    """Writes label maps with sides and the description of the corpus with them.

    Args:
      folder: of the description. corpus, cases: as scanned. classes: that come in pairs.
      facts: further fields of the description. say: called before the first label map is written.

    Label maps that are there stay, if neither the files of the case nor the classes have changed.

    Raises: `UsageError`, see `split`; `MedjaxError` for a case that cannot be read.
    """
    folder = Path(folder)
    changed, _ = split(corpus, classes)
    made, described = corpus_json.facts(folder).get("sides_made", {}), []
    states: dict[str, dict] = {}
    new = 0
    for case in cases:
        if not case.labelled:
            described.append(case)
            continue
        path = folder / FOLDER / f"{case.name}.nii.gz"
        key, before = _key(case, corpus, classes), made.get(case.name, {})
        if before.get("key") != key or not path.is_file():
            if not new:
                say(f"{corpus.name}: left and right of {', '.join(classes)} ...")
            before = {"key": key, "state": _write_case(path, case, corpus, classes)}
            new += 1
        states[case.name] = before
        described.append(dataclasses.replace(case, label=str(path), masks=()))
    more = {**(facts or {}), "sides": list(classes), "sides_made": states}
    path = corpus_json.write(folder, changed, described, more)
    found = {
        state: tuple(name for name, entry in states.items() if state in entry["state"])
        for state in WORDS
    }
    return Written(path, len(described), **found, new=new, described=tuple(described))


def _key(case: Case, corpus: Corpus, classes: Sequence[str]) -> str:
    """Changes with the files of a case, the meaning of their values, and the classes."""
    facts = []
    for path in (*case.images[:1], *case.label_files):
        found = os.stat(path) if os.path.exists(path) else None  # else a part of a record
        facts.append([path, found and found.st_size, found and found.st_mtime_ns])
    known = [corpus.labels, corpus.ignore, [(m.name, m.path, m.pick) for m in case.masks]]
    return hashlib.sha256(json.dumps([facts, known, list(classes)]).encode()).hexdigest()[:16]


def _write_case(path: Path, case: Case, corpus: Corpus, classes: Sequence[str]) -> list[str]:
    """Writes a label map with sides; returns what was found, in the order of the classes that the
    case has.
    """
    changed, paired = split(corpus, classes)
    like = formats.read_geometry(case.images[0])
    ids = read_label(case, corpus, like)
    axes, flips = grid.canonical_axes(like.affine)
    image = formats.read_case(case.images[:1], native=True).array[..., 0]
    middle = middle_of(grid.canonical(image, axes, flips))
    top = max(*(value for value, _ in changed.labels), changed.ignore or 0)
    out = ids.astype(np.min_scalar_type(top))
    states = []
    for name in classes:
        mask = np.isin(ids, corpus.ids_of(name))
        left, state = left_of(grid.canonical(mask, axes, flips), middle)
        states += [state] if mask.any() else []
        left = grid.stored(left, axes, flips)
        for k, i in enumerate(paired):
            if name in corpus.labels[i][1]:
                out[left & (ids == i)] = len(corpus.values) + k
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {value: " + ".join(names) for value, names in changed.labels if value}
    nifti.write(path, out, like, labels=names)
    return states
