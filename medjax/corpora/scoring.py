"""How a data set is scored: classes, tolerance per class, patient and scan of each case.

In: a dataset.json, or the folder of a data set in any layout. Out: a `Protocol`. Only names and
JSON are read.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from medjax.corpora.dataset_json import hints, patient_pattern
from medjax.corpora.inputs import Case, find_inputs, read_json
from medjax.corpora.sources import read_labels, scan_corpus
from medjax.errors import MedjaxError, UsageError, did_you_mean
from medjax.labels import Corpus
from medjax.scans.paths import image_files


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What scoring needs in addition to the masks.

    Attributes:
      corpus: meaning of the label values.
      tolerance_mm: tolerance of the surface metrics by class, if the data set declares one.
      sources: case name -> patient and scan (and label), as far as they are found.
    """

    corpus: Corpus
    tolerance_mm: dict[str, float]
    sources: dict[str, Case]


def read_protocol(path: str | os.PathLike, images: str | os.PathLike = "") -> Protocol:
    """Reads the scoring protocol of a dataset.json.

    Args:
      path: dataset.json, or the folder of a data set in any layout.
      images: folder (or pattern, or list) with the scans; default imagesTr and imagesTs of the data
        set.

    Raises: `UsageError` for an unusable tolerance, or if `images` holds no scan; see also
      `sources.read_labels`.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    corpus = read_labels(path)
    block, stated = hints(folder) if path.is_dir() else (read_json(path).get("medjax", {}), path)
    try:
        sources = {case.name: case for case in scan_corpus(folder)[1]}
    except MedjaxError:
        sources = {}  # a description without its data set: names and values are enough to score
    others = images or (folder / "imagesTs" if image_files(folder / "imagesTs") else "")
    if others:
        patient_of = _patients(block.get("patients", {}), stated)
        for case in find_inputs(others, channels=len(corpus.channels)):
            known = sources.get(case.name) or dataclasses.replace(
                case, patient=patient_of(case.name)
            )
            sources[case.name] = dataclasses.replace(known, images=case.images)
    return Protocol(corpus, _tolerances(block.get("tolerance_mm", {}), corpus, stated), sources)


def _patients(rule: Mapping | str, path: Path) -> Callable[[str], str]:
    """Name -> patient for cases that are not in the training list."""
    pattern = patient_pattern(rule, path)

    def patient_of(name: str) -> str:
        if pattern is None:
            return str(rule.get(name, name))
        found = pattern.search(name)
        return (found and (found[1] if pattern.groups else found[0])) or name

    return patient_of


def _tolerances(stated: object, corpus: Corpus, path: Path) -> dict[str, float]:
    by_class = stated if isinstance(stated, dict) else dict.fromkeys(corpus.classes, stated)
    for name, value in by_class.items():
        if name not in corpus.classes:
            raise UsageError(
                f'"tolerance_mm" names the unknown class {name!r}',
                path=path,
                fix=did_you_mean(name, corpus.classes),
            )
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not (math.isfinite(value) and value >= 0)
        ):
            raise UsageError(
                "not a tolerance", path=path, found=value, expected="a number of mm, not negative"
            )
    return {name: float(value) for name, value in by_class.items()}
