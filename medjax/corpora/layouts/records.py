"""Corpora of tensorflow-datasets (see `scans/records.py`), with cases as in a raw folder."""

import os

from medjax import files
from medjax.corpora.inputs import Case
from medjax.errors import LabelError, MedjaxError, UsageError
from medjax.labels import Corpus
from medjax.scans import records

NAMES = ("case", "patient")


def scan(path: str | os.PathLike) -> tuple[Corpus, tuple[Case, ...], list[MedjaxError]]:
    """Corpus and cases of a data set; no problems: the records were checked when written."""
    location = records.location_of(path)
    folder = records.local_folder(location)
    try:
        described = folder / records.DESCRIPTION
        corpus = Corpus.from_json(files.read_json(described)["corpus"], described)
    except LabelError:
        raise
    except (MedjaxError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"not a corpus in tensorflow-datasets' form ({error})",
            path=location,
            expected=f"{records.DESCRIPTION} beside the records",
            fix="build it with `medjax ingest tfds`",
        ) from error
    cases = []
    for index in range(len(records.source(location, NAMES))):
        found = records.example(location, index, NAMES)
        name = f"{records.SCHEME}{location}#{index}"
        cases.append(
            Case(
                _text(found["case"]),
                (name,),
                name,
                corpus.name,
                corpus.modality,
                _text(found["patient"]),
            )
        )
    return corpus, tuple(sorted(cases, key=lambda case: case.name)), []


def facts(path: str | os.PathLike) -> dict:
    """The further fields of the description: twins, licence, citation."""
    said = files.read_json(records.local_folder(records.location_of(path)) / records.DESCRIPTION)
    return {k: v for k, v in said.items() if k not in ("format", "corpus")}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
