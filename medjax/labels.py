"""The label space: the classes each corpus annotates, and the meaning of its voxel values.

Pure data. A label volume holds one *dense id* per voxel; a corpus maps every id to the *set* of
classes the voxel belongs to: nested regions and overlaps need no channel. Corpora, stacked:

  known  (corpus, class) bool       the class is annotated in the corpus: absence = "background"
  table  (corpus, id, class) bool   multi-hot target of a voxel; False for classes not known

A *view* treats only some classes of a corpus as annotated: the hidden ones leave `known` and
`table`, while the stored ids stay unchanged, and so does scoring with the full corpus.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from medjax import files
from medjax.errors import LabelError, did_you_mean

BACKGROUND = "background"
SHARE_RULES = ("by_name", "per_corpus")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One annotated collection of cases and the meaning of its label values.

    Attributes:
      name: unique name; a view has its own.
      labels: (raw value, names of all classes that contain it) in ascending raw value; starts with
        (0, ()).
      annotated: the classes whose absence means background; a subset of the named ones.
      modality: "CT", "MR", ... chooses expert, prior or prompt by name; never the normalisation
        (that is `channels`).
      channels: channel names; they choose the normalisation ("CT" clips and uses corpus statistics,
        most others z-score per case).
      ignore: raw value of voxels nobody annotated, or None.
      store: name of the corpus whose prepared volumes this one reads (differs from `name` only in a
        view); it becomes a folder.
      meanings: (class, what its annotators meant by it), where the name may mislead; `merge`
        refuses to share a name with two meanings.
    """

    name: str
    labels: tuple[tuple[int, tuple[str, ...]], ...]
    annotated: tuple[str, ...] = ()
    modality: str = "CT"
    channels: tuple[str, ...] = ("CT",)
    ignore: int | None = None
    store: str = ""
    meanings: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        labels = tuple(sorted((int(value), tuple(names)) for value, names in self.labels))
        if not labels or labels[0] != (0, ()):
            labels = ((0, ()), *(entry for entry in labels if entry[0] != 0))
        values = [value for value, _ in labels]
        if values[0] < 0 or len(set(values)) != len(values):
            raise LabelError(
                "label values must be unique and not negative", path=self.name, found=values
            )
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "annotated", tuple(self.annotated) or self.classes)
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(
            self,
            "store",
            files.check_name(self.store or self.name, "corpus name", error=LabelError),
        )
        object.__setattr__(
            self, "meanings", tuple((str(name), str(text)) for name, text in self.meanings)
        )
        for name in self.annotated:
            if name not in self.classes:
                raise LabelError(
                    f"annotated class {name!r} is not among the labels",
                    path=self.name,
                    fix=did_you_mean(name, self.classes),
                )
        for name, _ in self.meanings:
            if name not in self.classes:
                raise LabelError(
                    f"a meaning for the unknown class {name!r}",
                    path=self.name,
                    fix=did_you_mean(name, self.classes),
                )
        if self.ignore is not None and self.ignore in values:
            raise LabelError("the ignore value is also a label", path=self.name, found=self.ignore)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Every class named by the labels, in order of first appearance by raw value."""
        return tuple(dict.fromkeys(name for _, names in self.labels for name in names))

    @cached_property
    def values(self) -> tuple[int, ...]:
        """Raw label value of each dense id; the ignore value, if any, comes last."""
        return tuple(value for value, _ in self.labels) + (
            () if self.ignore is None else (self.ignore,)
        )

    @property
    def ignore_id(self) -> int:
        """Dense id of the ignore value, or -2 (never stored) without one."""
        return -2 if self.ignore is None else len(self.labels)

    @cached_property
    def foreground_ids(self) -> tuple[int, ...]:
        """Dense ids that belong to at least one annotated class: the ones worth sampling."""
        return tuple(
            i for i, (_, names) in enumerate(self.labels) if set(names) & set(self.annotated)
        )

    def ids_of(self, name: str) -> tuple[int, ...]:
        """Dense ids of the voxels that belong to class `name`."""
        if name not in self.classes:
            raise LabelError(
                f"unknown class {name!r}", path=self.name, fix=did_you_mean(name, self.classes)
            )
        return tuple(i for i, (_, names) in enumerate(self.labels) if name in names)

    def to_ids(self, raw: np.ndarray) -> np.ndarray:
        """Raw label values -> dense ids (uint8, or uint16 from 256 ids); undeclared values raise
        `LabelError` with counts.
        """
        found, inverse, counts = np.unique(raw, return_inverse=True, return_counts=True)
        lookup = {value: i for i, value in enumerate(self.values)}
        unknown = {
            float(v): int(n) for v, n in zip(found, counts, strict=True) if float(v) not in lookup
        }
        if unknown:
            listing = ", ".join(f"{value:g} ({n} voxels)" for value, n in list(unknown.items())[:8])
            raise LabelError(
                f"undeclared label values {listing}",
                path=self.name,
                expected=f"one of {list(self.values)}",
                fix=f'declare them in dataset.json, e.g. "labels": {{"name": '
                f"{next(iter(unknown)):g}}}",
            )
        dense = np.array(
            [lookup[float(v)] for v in found], np.uint8 if len(self.values) <= 256 else np.uint16
        )
        return dense[inverse].reshape(raw.shape)

    def to_raw(self, ids: np.ndarray) -> np.ndarray:
        """Dense ids -> the corpus' original label values, in the smallest unsigned type."""
        return np.asarray(self.values, np.min_scalar_type(max(self.values)))[ids]

    def view(self, annotated: Iterable[str], name: str = "") -> "Corpus":
        """The same cases, pretending that only `annotated` was marked by their annotators."""
        annotated = tuple(annotated)
        if not annotated:
            raise LabelError(
                "a view needs at least one annotated class",
                path=self.name,
                expected=f"some of {list(self.classes)}",
            )
        return dataclasses.replace(
            self, name=name or f"{self.name}[{','.join(annotated)}]", annotated=annotated
        )

    def to_json(self) -> dict:
        """JSON-ready fields; `from_json` inverts it."""
        return dataclasses.asdict(self) | {
            "labels": [[value, list(names)] for value, names in self.labels]
        }

    @classmethod
    def from_json(cls, fields: Any, path: object = None) -> "Corpus":
        """Inverse of `to_json`; `LabelError` naming `path` for fields that are missing, unknown or
        of another kind.
        """
        with _understood("corpus", path):
            name, rows, pairs = fields["name"], fields["labels"], fields.get("meanings", ())
            words = {key: _words(fields[key], key) for key in ("annotated", "channels")}
            if (
                not all(
                    isinstance(fields.get(key, ""), str) for key in ("name", "modality", "store")
                )
                or not name
                or not words["channels"]
            ):
                raise TypeError("name, modality and store are text, and there is a channel")
            numbers = [value for value, _ in rows] + [
                n for n in (fields.get("ignore"),) if n is not None
            ]
            if not all(type(value) is int and abs(value) < 1 << 32 for value in numbers):
                raise TypeError("label values are whole numbers")
            tuples = {
                "labels": tuple((v, _words(n, "labels")) for v, n in rows),
                "meanings": tuple((a, b) for a, b in pairs),
            }
            return cls(**{**fields, **tuples, **words})


@dataclasses.dataclass(frozen=True)
class LabelSpace:
    """All classes and corpora of one model. Class order is channel order.

    Attributes:
      classes: global class names, one sigmoid channel each.
      corpora: the corpora, in the order of the batch's `corpus` index.
      names: per corpus, local class name -> global class name (annotated classes only).
      precedence: global classes from weakest to strongest for the export to one label map; a later
        class overwrites.
    """

    classes: tuple[str, ...]
    corpora: tuple[Corpus, ...]
    names: tuple[tuple[tuple[str, str], ...], ...]
    precedence: tuple[str, ...]

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """Modality names in the order of the batch's `modality` index."""
        return tuple(dict.fromkeys(corpus.modality for corpus in self.corpora))

    @cached_property
    def known(self) -> np.ndarray:
        """(corpus, class) bool: the corpus annotates the class."""
        known = np.zeros((len(self.corpora), len(self.classes)), bool)
        for k, names in enumerate(self.names):
            known[k, [self.classes.index(g) for _, g in names]] = True
        return known

    @cached_property
    def table(self) -> np.ndarray:
        """(corpus, id, class) bool: the classes of a voxel with that dense id; rows beyond a
        corpus' ids are all False.
        """
        table = np.zeros(
            (len(self.corpora), max(len(c.values) for c in self.corpora), len(self.classes)), bool
        )
        for k, (corpus, names) in enumerate(zip(self.corpora, self.names, strict=True)):
            for local, target in names:
                table[k, list(corpus.ids_of(local)), self.classes.index(target)] = True
        return table

    @cached_property
    def ignore_ids(self) -> np.ndarray:
        """(corpus,) int32: dense id of the ignore value, -2 where a corpus has none."""
        return np.array([corpus.ignore_id for corpus in self.corpora], np.int32)

    def corpus_index(self, name: str) -> int:
        """Position of a corpus; unknown names raise with the nearest ones."""
        for k, corpus in enumerate(self.corpora):
            if corpus.name == name:
                return k
        raise LabelError(
            f"unknown corpus {name!r}", fix=did_you_mean(name, [c.name for c in self.corpora])
        )

    def class_index(self, name: str) -> int:
        """Channel of a class; unknown names raise with the nearest ones."""
        if name not in self.classes:
            raise LabelError(f"unknown class {name!r}", fix=did_you_mean(name, self.classes))
        return self.classes.index(name)

    def unveiled(self) -> "LabelSpace":
        """The same classes with the full annotations of every corpus.

        Views of one store become one corpus again; a class that any of them annotates counts as
        annotated. Prediction and scoring use this: a model trained on partial views is evaluated on
        all labels.
        """
        merged: dict[str, tuple[Corpus, dict[str, str]]] = {}
        for corpus, names in zip(self.corpora, self.names, strict=True):
            whole, channel_of = merged.get(corpus.store, (corpus, {}))
            merged[corpus.store] = (whole, channel_of | dict(names))
        corpora = tuple(
            dataclasses.replace(
                corpus, name=store, annotated=tuple(c for c in corpus.classes if c in channel_of)
            )
            for store, (corpus, channel_of) in merged.items()
        )
        names = tuple(
            tuple((n, channel_of[n]) for n in c.annotated)
            for c, (_, channel_of) in zip(corpora, merged.values(), strict=True)
        )
        return dataclasses.replace(self, corpora=corpora, names=names)

    def conditions(self) -> dict[str, tuple[int, int]]:
        """Store name -> (corpus index, modality index) for conditioned networks.

        Of several views of one store, the one that annotates the most classes is used; of equal
        ones, the first.
        """
        best: dict[str, int] = {}
        for k, corpus in enumerate(self.corpora):
            if (
                corpus.store not in best
                or self.known[k].sum() > self.known[best[corpus.store]].sum()
            ):
                best[corpus.store] = k
        return {
            store: (k, self.modalities.index(self.corpora[k].modality)) for store, k in best.items()
        }

    def export(
        self, mask: np.ndarray, corpus: str, names: Sequence[str] | None = None
    ) -> np.ndarray:
        """Thresholded channels -> the corpus' original label values (the MultiTalent rule: later in
        `precedence` overwrites).

        Args:
          mask: (*vol, class) bool over all global classes, or those in `names`.
          corpus: whose annotation protocol (classes and values) to write.
          names: the classes of the mask's channels; the others count as predicted nowhere.

        Each class paints the value whose class set is the smallest that contains it (tumour, not
        liver-or-tumour); a value that only stands for a combination of classes is painted last,
        where all of them are predicted.

        Returns: (*vol) unsigned integers, raw label values.
        """
        k = self.corpus_index(corpus)
        described, channel_of = self.corpora[k], dict(self.names[k])
        sets = {
            i: frozenset(channel_of[n] for n in names if n in channel_of)
            for i, (_, names) in enumerate(described.labels)
        }
        own = {}
        for name in channel_of.values():
            holders = [i for i, members in sets.items() if name in members]
            own[name] = min(holders, key=lambda i: (len(sets[i]), i)) if holders else 0
        ids, channel = (
            np.zeros(mask.shape[:-1], np.uint16),
            {name: k for k, name in enumerate(self.classes if names is None else names)},
        )
        for name in self.precedence:
            if name in own and name in channel:
                ids[mask[..., channel[name]]] = own[name]
        for i, members in sets.items():
            if len(members) > 1 and i not in own.values() and all(n in channel for n in members):
                ids[mask[..., [channel[n] for n in members]].all(-1)] = i
        return described.to_raw(ids)

    def to_json(self) -> dict:
        """JSON-ready fields; `from_json` inverts it."""
        return {
            "classes": list(self.classes),
            "corpora": [corpus.to_json() for corpus in self.corpora],
            "names": [dict(names) for names in self.names],
            "precedence": list(self.precedence),
        }

    @classmethod
    def from_json(cls, fields: Any, path: object = None) -> "LabelSpace":
        """Inverse of `to_json`; `LabelError` naming `path` and the invalid field."""
        with _understood("label space", path):
            classes, order = (_words(fields[key], key) for key in ("classes", "precedence"))
            corpora = tuple(Corpus.from_json(c) for c in fields["corpora"])
            names = tuple(tuple(n.items()) for n in fields["names"])
            if not classes or not corpora or len(names) != len(corpora):
                raise ValueError("classes, corpora and a table of names for each corpus are needed")
            if (
                len({c.name for c in corpora}) != len(corpora)
                or len(set(classes)) != len(classes)
                or sorted(order) != sorted(classes)
            ):
                raise ValueError("names occur once, and precedence lists every class")
            for corpus, table in zip(corpora, names, strict=True):
                if unknown := [
                    pair
                    for pair in table
                    if pair[0] not in corpus.classes or pair[1] not in classes
                ]:
                    raise ValueError(
                        f"corpus {corpus.name!r} maps the unknown classes {unknown[:4]}"
                    )
            return cls(classes, corpora, names, order)


def _words(values: object, what: str) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) and v for v in values):
        raise TypeError(f"{what!r} is a list of names")
    return tuple(values)


@contextlib.contextmanager
def _understood(what: str, path: object = None) -> Iterator[None]:
    """Converts any error about a value from a file to a `LabelError` naming the file."""
    try:
        yield
    except LabelError as error:
        if path is None or (error.path is not None and error.path == path):
            raise
        where = f"{error.path}: " if error.path is not None else ""
        raise LabelError(
            f"{where}{error.message}",
            path=path,
            found=error.found,
            expected=error.expected,
            fix=error.fix,
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = (
            f"the field {error} is missing" if isinstance(error, KeyError) else str(error)[:200]
        )
        raise LabelError(
            f"no usable {what}: {reason}",
            path=path,
            fix="give a labels.json that medjax wrote, or correct the field",
        ) from error


def merge(
    corpora: Sequence[Corpus],
    share: str = "by_name",
    rename: Mapping[str, str] | None = None,
    precedence: Sequence[str] = (),
) -> LabelSpace:
    """Builds the label space of several corpora.

    Args:
      corpora: in batch order; names must be unique.
      share: "by_name" gives like-named classes of different corpora one channel; "per_corpus" keeps
        them apart as "corpus/class" (MultiTalent: protocols differ, so liver of one corpus is not
        liver of another).
      rename: "corpus/class" or "class" -> global name, applied before sharing; merges synonyms or
        splits a shared name.
      precedence: global classes that are painted last, weakest first; the others come before,
        larger regions first.

    Returns: the `LabelSpace`; classes in order of first appearance.
    """
    if share not in SHARE_RULES:
        raise LabelError(f"unknown merging rule {share!r}", fix=did_you_mean(share, SHARE_RULES))
    seen = [corpus.name for corpus in corpora]
    if not seen or len(set(seen)) != len(seen):
        raise LabelError(
            "corpora need unique names and there must be at least one",
            found=seen,
            fix="rename the folders or the views",
        )
    rename, used = dict(rename or {}), set()

    def target(corpus: Corpus, name: str) -> str:
        for key in (f"{corpus.name}/{name}", f"{corpus.store}/{name}", name):
            if key in rename:
                used.add(key)
                return rename[key]
        return name if share == "by_name" else f"{corpus.name}/{name}"

    names = tuple(
        tuple((local, target(corpus, local)) for local in corpus.annotated) for corpus in corpora
    )
    _check_meanings(corpora, names, rename)
    if unused := set(rename) - used:
        known = [f"{c.name}/{n}" for c in corpora for n in c.annotated]
        raise LabelError(
            f"rename entries that match nothing: {sorted(unused)}",
            fix=did_you_mean(min(unused), known),
        )
    classes = tuple(dict.fromkeys(g for table in names for _, g in table))
    if unknown := [name for name in precedence if name not in classes]:
        raise LabelError(
            f"precedence names unknown classes {unknown}", fix=did_you_mean(unknown[0], classes)
        )
    breadth = {
        g: 0 for g in classes
    }  # label values per class: a region covers more values than the classes nested in it
    for corpus, table in zip(corpora, names, strict=True):
        for local, g in table:
            breadth[g] = max(breadth[g], len(corpus.ids_of(local)))
    weak = sorted((g for g in classes if g not in precedence), key=lambda g: -breadth[g])
    return LabelSpace(classes, tuple(corpora), names, (*weak, *precedence))


def _check_meanings(
    corpora: Sequence[Corpus], names: Sequence[Sequence[tuple[str, str]]], rename: Mapping[str, str]
) -> None:
    """`LabelError` if two corpora give one channel different meanings without a rename rule.

    A rename "corpus/class" -> channel for one of them is accepted.
    """
    claims: dict[str, tuple[Corpus, str]] = {}
    for corpus, table in zip(corpora, names, strict=True):
        meanings = dict(corpus.meanings)
        for local, g in table:
            if local not in meanings or rename.keys() & {
                f"{corpus.name}/{local}",
                f"{corpus.store}/{local}",
            }:
                continue
            other, text = claims.setdefault(g, (corpus, meanings[local]))
            if text != meanings[local]:
                raise LabelError(
                    f"two corpora mean different things by {g!r}",
                    path=corpus.name,
                    found=f"{meanings[local]!r}",
                    expected=f"{text!r}, as in {other.name}",
                    fix=f'rename one: data.rename["{corpus.name}/{local}"] = "..." (the same name '
                    "declares them equal), or "
                    f'share="per_corpus"',
                )
