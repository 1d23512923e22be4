"""What a file of this package states about one public corpus, and what that means to medjax.

    CORPUS = PublicCorpus(
        name="SegTHOR",
        ...,
        layouts=(
            Layout(images=("train/{case}/{case}.nii.gz",), label="train/{case}/GT.nii.gz"),
        ),
        labels={1: "oesophagus", 2: "heart", 3: "trachea", 4: "aorta"},
        cases=40,
    )

What could not be checked is marked: `UNKNOWN` for a licence, a `Twin` without a rule for an overlap
whose case names were never published.
"""

import dataclasses
import re
from collections.abc import Mapping

from medjax.errors import LabelError, UsageError, did_you_mean
from medjax.labels import Corpus

UNKNOWN = "not known to this project: read the terms where the data is offered"
Names = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Published file names below the raw folder: `{case}` and other placeholders are (part of) a
    path component, `*` is anything in one.

    Attributes:
      images: one template per channel; a series of DICOM slices is named as its folder.
      label: template of a label map with the values of `PublicCorpus.labels`.
      masks: instead of a label map, class -> template(s) of its binary masks, "|" and what to pick
        of the file ("value:1,2", "frame:0"; see `medjax.corpora.inputs.Mask`); all files that fit
        are united.
      index: template of a JSON file whose "labels" (value -> name) say which frame of a mask is
        which class (value - 1): M3D-Seg's way.
      aliases: names in that file -> classes, if they differ by more than spelling.
      optional: classes whose missing mask means that there is none of it in the case; for others a
        missing mask is a problem.
      fields: placeholder -> regular expression, default [^/]+.
      name: how a case is called, from the placeholders. patient: what groups cases; default the
        name.
      note: what a user should know, e.g. that an arrangement of files is ours.
    """

    images: tuple[str, ...]
    label: str = ""
    masks: Mapping[str, Names] = dataclasses.field(default_factory=dict)
    index: str = ""
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    optional: tuple[str, ...] = ()
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    name: str = "{case}"
    patient: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Twin:
    """The same scans, or patients, in another corpus.

    Attributes:
      corpus: name of the other corpus.
      cases: regular expression (whole name) of the cases concerned, "" if the names were never
        matched up.
      other: the other corpus' case name, with groups of `cases` as \\1, \\g<name>.
      offset: added to the number in group 1 before it goes into `other`.
      note: how far the overlap goes and how it is known.
    """

    corpus: str
    cases: str = ""
    other: str = ""
    offset: int = 0
    note: str = ""

    def to_json(self) -> dict:
        """Plain fields, as configs and dataset.json carry them (`medjax.corpora.twins.Twin` reads
        them).
        """
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicCorpus:
    """One public corpus.

    Attributes:
      name: identifier, also the folder in a store. title, citation, licence, url, obtain: for
        people.
      layouts: how the published files are laid out; cases of all layouts belong to the corpus.
      labels: value -> class, or all classes the voxel belongs to.
      regions: more classes, each a set of those values.
      cases: published number of labelled cases.
      annotated: the classes whose absence means background; default all.
      meanings: class -> what the annotators meant, where the name alone may mislead; merging by
        name compares these texts.
      modality: coarse ("CT", "MR", "CE-MR"). channels: names that choose the normalisation, see
        docs/data.md.
      defects: what is known to be wrong. suspects: case -> reason; left out unless asked for.
        twins: overlaps with other corpora.
      ignore: value of voxels that were not annotated.
    """

    name: str
    title: str
    citation: str
    licence: str
    url: str
    obtain: str
    layouts: tuple[Layout, ...]
    labels: Mapping[int, Names]
    cases: int
    regions: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    annotated: tuple[str, ...] = ()
    meanings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    modality: str = "CT"
    channels: tuple[str, ...] = ("CT",)
    defects: tuple[str, ...] = ()
    suspects: Mapping[str, str] = dataclasses.field(default_factory=dict)
    twins: tuple[Twin, ...] = ()
    ignore: int | None = None

    def __post_init__(self):
        for region, values in self.regions.items():
            if unknown := sorted(set(values) - set(self.labels)):
                raise LabelError(
                    f"region {region!r} names unknown labels",
                    path=self.name,
                    found=unknown,
                    expected=f"some of {list(self.labels)}",
                )
        for layout in self.layouts:
            if len(layout.images) not in (1, len(self.channels)):
                raise UsageError(
                    "one image template per channel",
                    path=self.name,
                    found=len(layout.images),
                    expected=len(self.channels),
                )
            if bool(layout.label) == bool(layout.masks):
                raise UsageError("a layout names either a label map or masks", path=self.name)
        classes = self.corpus().classes
        for what, names in (
            ("meaning", self.meanings),
            *(("mask", layout.masks) for layout in self.layouts),
        ):
            for name in names:
                if name not in classes:
                    raise LabelError(
                        f"a {what} for the unknown class {name!r}",
                        path=self.name,
                        fix=did_you_mean(name, classes),
                    )

    @property
    def sets(self) -> dict[int, tuple[str, ...]]:
        """Label value -> every class its voxels belong to, regions included."""
        plain = {
            value: (names,) if isinstance(names, str) else tuple(names)
            for value, names in self.labels.items()
        }
        return {
            v: tuple(
                dict.fromkeys((*names, *(r for r, values in self.regions.items() if v in values)))
            )
            for v, names in plain.items()
        }

    def corpus(self, name: str = "") -> Corpus:
        """What the label space, preparation and training see."""
        return Corpus(
            name or self.name,
            tuple(self.sets.items()),
            self.annotated,
            self.modality,
            self.channels,
            self.ignore,
            meanings=tuple(self.meanings.items()),
        )

    def declared(
        self, *, annotated: tuple[str, ...] = (), modality: str = "", cases: int = 0
    ) -> dict:
        """The entry of `config.data.declared`; arguments replace what a paper does otherwise."""
        corpus = self.corpus()
        return {
            "source": self.name,
            "cases": cases or self.cases,
            "modality": modality or self.modality,
            "channels": self.channels,
            "labels": {str(value): names for value, names in self.sets.items()},
            "annotated": annotated or corpus.annotated,
            "meanings": dict(self.meanings),
            "twins": [twin.to_json() for twin in self.twins if twin.cases],
        }


def numbered(*names: Names, first: int = 1) -> dict[int, Names]:
    """Values first, first + 1, ... for the names in order."""
    return {first + i: name for i, name in enumerate(names)}


def pattern(template: str, fields: Mapping[str, str]) -> re.Pattern:
    """The expression that a path below the raw folder must match as a whole.

    >>> found = pattern("train/{case}/{case}.nii.gz", {"case": r"Patient_\\d+"})
    >>> found.fullmatch("train/Patient_01/Patient_01.nii.gz")["case"]
    'Patient_01'
    """
    seen, parts = set(), []
    for literal, name in re.findall(r"([^{}]*)(?:\{(\w+)\})?", template):
        parts.append(re.escape(literal).replace(r"\*", "[^/]*"))
        if name:
            parts.append(
                f"(?P={name})" if name in seen else f"(?P<{name}>{fields.get(name, '[^/]+')})"
            )
            seen.add(name)
    return re.compile("".join(parts))


def filled(template: str, groups: Mapping[str, str]) -> str:
    """The template with its placeholders filled in; `*` stays."""
    return re.sub(r"\{(\w+)\}", lambda m: groups[m[1]], template)


def first_template(entry: Names) -> str:
    """The (first) file template of a mask, without what is picked from it."""
    return (entry if isinstance(entry, str) else entry[0]).partition("|")[0]
