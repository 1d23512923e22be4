"""One generic builder with a configuration per corpus: raw download -> ArrayRecord volumes.

    builder = Corpora(config="AMOS22_CT", data_dir="/data/tfds", file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir="/downloads/amos22"))

An example is a whole case as stored: image (z, y, x, m) float32, label (z, y, x) uint16 of the
corpus' values, the affine of both (nibabel's, (x, y, z) voxels -> RAS+ mm), spacing (z, y, x) mm,
and the names of case, patient and corpus. `corpus.json` beside the records says what the values
mean. `medjax.corpora.layouts.records` reads all of it back.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.catalogue import corpora
from data_pipelines.find import Found, find_cases
from medjax.corpora.cases import check_channels
from medjax.corpora.inputs import Case
from medjax.corpora.labels_of_case import read_label
from medjax.corpora.layouts import corpus_json
from medjax.corpora.sources import scan_corpus
from medjax.corpora.survey import mask_sets
from medjax.corpora.twins import rules_of
from medjax.errors import DataError, MedjaxError, UsageError, did_you_mean
from medjax.labels import Corpus
from medjax.scans import formats

VERSION = "1.0.0"


class Corpora(tfds.core.GeneratorBasedBuilder):
    """Public corpora as volumes, one configuration each; cases that cannot be read are left out and
    listed in `failed`.

    `how` are the options of `data_pipelines.find.find_cases`: where, keep_suspects,
    allow_missing_masks.
    """

    VERSION = tfds.core.Version(VERSION)
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Obtain the corpus as `python -m data_pipelines.FILE "
        "--describe` says and name its folder as manual_dir."
    )
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=name, description=corpus.title)
        for name, corpus in corpora().items()
    ]

    def __init__(self, *, how: Mapping[str, Any] | None = None, **arguments: Any):
        self.how, self.failed = dict(how or {}), []
        self.described_as = (
            None  # the corpus with every combination of masks that occurs; known once built
        )
        super().__init__(**arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        corpus = corpora()[self.builder_config.name]
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{corpus.title}. Licence: {corpus.licence}.",
            homepage=corpus.url,
            citation=corpus.citation,
            features=_features(len(corpus.channels)),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        public = corpora()[self.builder_config.name]
        found, corpus = find_cases(public, dl_manager.manual_dir, **self.how), public.corpus()
        self.failed += [{"case": str(e.path)} | e.record() for e in found.problems]
        if len(corpus.classes) > 1:
            sets, _ = mask_sets([case for case in found.cases if case.masks])
            corpus = corpus_json.replaced_labels(corpus, sets)
        self.described_as = corpus
        return {"train": self._generate_examples(found, corpus)}

    def _generate_examples(self, found: Found, corpus: Corpus) -> Iterator[tuple[str, dict]]:
        for case in found.cases:
            try:
                yield case.name, example(case, corpus)
            except MedjaxError as error:
                self.failed.append({"case": case.name} | error.record())


class Folders(tfds.core.GeneratorBasedBuilder):
    """The data set of a folder in any layout that medjax reads, one configuration each.

    `corpus`, `cases` are what `medjax.corpora.sources.scan_corpus` finds in it.
    """

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, corpus: Corpus, cases: Sequence[Case], **arguments: Any):
        self.corpus, self.cases, self.failed = corpus, tuple(cases), []
        config = tfds.core.BuilderConfig(name=corpus.name, description=f"{corpus.name}, by medjax")
        super().__init__(config=config, **arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=_features(len(self.corpus.channels)))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        for case in self.cases:
            try:
                yield case.name, example(case, self.corpus)
            except MedjaxError as error:
                self.failed.append({"case": case.name} | error.record())


def _features(channels: int) -> tfds.features.FeaturesDict:
    feature = tfds.features
    return feature.FeaturesDict(
        {
            "image": feature.Tensor(
                shape=(None, None, None, channels), dtype=np.float32, encoding="zlib"
            ),
            "label": feature.Tensor(shape=(None, None, None), dtype=np.uint16, encoding="zlib"),
            "spacing": feature.Tensor(shape=(3,), dtype=np.float64),
            "affine": feature.Tensor(shape=(4, 4), dtype=np.float64),
            "case": feature.Text(),
            "patient": feature.Text(),
            "corpus": feature.Text(),
        }
    )


def example(case: Case, corpus: Corpus) -> dict[str, Any]:
    """The features of one case; `DataError` or `LabelError` if it cannot be used."""
    volume = formats.read_case(case.images)
    check_channels(volume, corpus)
    ids = read_label(case, corpus, volume)
    if ids is None:
        raise DataError("a case without a label", path=case.images[0])
    return {
        "image": np.ascontiguousarray(volume.array, np.float32),
        "label": np.ascontiguousarray(corpus.to_raw(ids), np.uint16),
        "spacing": np.array(volume.spacing_mm, np.float64),
        "affine": np.asarray(volume.affine, np.float64),
        "case": case.name,
        "patient": case.patient,
        "corpus": corpus.name,
    }


def build(name: str, raw: str, out: str, **options: Any) -> Corpora:
    """Builds one corpus below `out` and writes its description beside the records; returns the
    builder, whose `failed` lists bad cases.
    """
    if name not in corpora():
        raise UsageError(f"no corpus {name!r}", fix=did_you_mean(name, corpora()))
    public = corpora()[name]
    builder = Corpora(config=name, data_dir=out, file_format="array_record", how=options)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=raw, register_checksums=False)
    )
    facts = {
        "format": corpus_json.FORMAT,
        "corpus": (builder.described_as or public.corpus()).to_json(),
        "twins": [twin.to_json() for twin in public.twins if twin.cases],
        "licence": public.licence,
        "citation": public.citation,
    }
    (builder.data_path / corpus_json.FILE).write_text(json.dumps(facts, indent=1))
    return builder


def build_folder(folder: str, out: str) -> Folders:
    """Builds the data set of a folder below `out` (folders/NAME/1.0.0); returns the builder, whose
    `failed` lists bad cases.

    Raises: `UsageError` or `DataError` for a folder that is no labelled data set.
    """
    corpus, cases, problems = scan_corpus(folder)
    labelled = [case for case in cases if case.labelled]
    if not labelled:
        raise problems[0] if problems else UsageError("no labelled cases", path=folder)
    builder = Folders(corpus=corpus, cases=labelled, data_dir=out, file_format="array_record")
    builder.failed += [{"case": str(e.path)} | e.record() for e in problems]
    builder.download_and_prepare()
    facts = {"format": corpus_json.FORMAT, "corpus": corpus.to_json()}
    facts["twins"] = [twin.to_json() for twin in rules_of(folder)]
    (builder.data_path / corpus_json.FILE).write_text(json.dumps(facts, indent=1))
    return builder
