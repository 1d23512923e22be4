"""Predicted label maps against reference ones: per-case scores, tables, and the files that carry them.

In: pairs of label files on one grid and the corpus that says what their values mean. Out: a `Result` (see `report`). A class is scored as
the region of all label values that contain it, so nested classes need no special care. A case that cannot be scored is recorded and the
others go on.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from medjax.data import formats, nifti
from medjax.data.annotation import read_label_volume, to_ids
from medjax.data.cases import failure
from medjax.data.inputs import Case, nifti_files, stem
from medjax.errors import MetricError, UsageError, did_you_mean
from medjax.labels import Corpus
from medjax.metrics import overlap
from medjax.metrics.aggregate import ABSENT, Row, score_masks
from medjax.metrics.report import Pair, Result, build_result, join
from medjax.metrics.surface import DEFINITION

__all__ = ["Pair", "Result", "evaluate", "find_pairs", "join"]


def find_pairs(
    references: str | os.PathLike | Mapping[str, str],
    predictions: str | os.PathLike | Mapping[str, str],
    patients: Mapping[str, str] | None = None,
) -> tuple[list[Pair], list[str]]:
    """Pairs of like-named label files.

    Args:
      references, predictions: a folder of `<case>.nii[.gz]` files, or case name -> path.
      patients: case -> patient; the others are their own patient.

    Returns: the pairs, in order of case name (prediction None where there is none), and the predictions without a reference.
    Raises: `UsageError` if a folder is missing or no name occurs on both sides.
    """
    wanted, found = _label_files(references), _label_files(predictions)
    if not set(wanted) & set(found):
        hint = did_you_mean(next(iter(wanted)), found) if wanted and found else "both sides need <case>.nii.gz files"
        raise UsageError("no prediction has the name of a reference", path=predictions, found=f"{len(found)} files", fix=hint)
    patients = patients or {}
    pairs = [Pair(case, wanted[case], found.get(case), patients.get(case, case)) for case in sorted(wanted)]
    return pairs, [found[case] for case in sorted(set(found) - set(wanted))]


def evaluate(
    pairs: Sequence[Pair],
    corpus: Corpus,
    *,
    classes: Sequence[str] | None = None,
    surface: bool = False,
    tolerance_mm: float | Mapping[str, float] = 1.0,
    groups: Mapping[str, Iterable[str]] | None = None,
    unmatched: Sequence[str] = (),
    resamples: int = 10_000,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Scores every pair, case by case.

    Args:
      pairs: from `find_pairs`, or made by hand.
      corpus: the meaning of the label values, in references and predictions alike. Reference voxels with its ignore value are left out.
      classes: the classes to score; default the annotated ones. Give a view's full corpus to score what the view hides.
      surface: also NSD, HD95 and ASSD (slower).
      tolerance_mm: of the NSD, for all classes or by class (others 1 mm).
      groups: group name -> classes, for one more table.
      unmatched: passed on to the result.
      workers: threads; default up to eight.
      progress: called with each finished case name.

    Returns: the `Result`. Cases fail in isolation (missing prediction, other grid, undeclared values, damaged file).
    Raises: `LabelError` for an unknown class, `UsageError` without pairs.
    """
    names = tuple(corpus.annotated if classes is None else classes)
    for name in names:
        corpus.ids_of(name)
    if not pairs:
        raise UsageError("nothing to evaluate: no pairs of files", path=corpus.name)
    tolerances = (
        {n: float(tolerance_mm.get(n, 1.0) if isinstance(tolerance_mm, Mapping) else tolerance_mm) for n in names} if surface else {}
    )
    members = np.zeros((len(corpus.values), len(names)), bool)
    for c, name in enumerate(names):
        members[list(corpus.ids_of(name)), c] = True

    def attempt(pair: Pair) -> list[Row] | dict:
        try:
            return _score(pair, corpus, names, members, tolerances)
        except Exception as error:
            return {"corpus": corpus.name} | failure(Case(pair.case, (pair.reference,)), error)
        finally:
            if progress:
                progress(pair.case)

    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        outcomes = list(pool.map(attempt, pairs))
    rows = [row for outcome in outcomes if isinstance(outcome, list) for row in outcome]
    settings = {"surface": surface, "tolerance_mm": _shortest(tolerances), "definition": DEFINITION if surface else None}
    scored = [(corpus.name, pair) for pair, outcome in zip(pairs, outcomes, strict=True) if isinstance(outcome, list)]
    failed = [outcome for outcome in outcomes if isinstance(outcome, dict)]
    return build_result({corpus.name: corpus}, {corpus.name: names}, rows, scored, failed, unmatched, settings, groups, resamples, seed)


def _score(pair: Pair, corpus: Corpus, names: Sequence[str], members: np.ndarray, tolerances: Mapping[str, float]) -> list[Row]:
    """All rows of one case."""
    if pair.prediction is None:
        raise MetricError("no prediction for this case", path=pair.reference, fix="predict it, or leave it out of the references")
    reference = read_label_volume(pair.source or Case(pair.case, (), label=pair.reference), corpus)
    prediction = formats.read(pair.prediction, "label")
    nifti.check_same_geometry(reference, prediction)
    ids, predicted = reference.array, to_ids(prediction.array, corpus, prediction.path)
    counts = overlap.count_classes(overlap.confusion(ids, predicted, len(corpus.values)), members, corpus.ignore_id)
    valid = None if corpus.ignore is None else ids != corpus.ignore_id
    rows = []
    for c, name in enumerate(names):
        masks = [members[:, c][volume] for volume in (ids, predicted)] if tolerances else [ids, predicted]
        if valid is not None and tolerances:
            masks = [mask & valid for mask in masks]
        status, scores = score_masks(*masks, counts[c], reference.spacing_mm, tolerances.get(name))
        if status != ABSENT:
            volumes = [overlap.volume_ml(n, reference.spacing_mm) for n in (counts[c].n_reference, counts[c].n_prediction)]
            scores["volume_error_ml"] = volumes[1] - volumes[0]
        rows.append(Row(pair.case, pair.patient or pair.case, corpus.name, name, status, scores, counts[c]))
    return rows


def _label_files(source: str | os.PathLike | Mapping[str, str]) -> dict[str, str]:
    if isinstance(source, Mapping):
        return {str(case): str(path) for case, path in source.items()}
    folder = Path(source)
    if not folder.is_dir():
        raise UsageError("no such folder", path=folder, fix="give the folder that holds the <case>.nii.gz label files")
    return {stem(p): str(p) for p in nifti_files(folder)}


def _shortest(tolerances: Mapping[str, float]) -> float | dict | None:
    """One number if all classes share it."""
    return None if not tolerances else next(iter(tolerances.values())) if len(set(tolerances.values())) == 1 else dict(tolerances)
