"""Scores predicted masks against references, per case and in tables.

In: pairs of label files (or folders of masks per class) on one grid and the corpus that defines
their values. Out: a `Result`. A class is scored as the region of all label values that contain it,
which covers nested classes. A case that cannot be scored is recorded and the others continue; cases
run in parallel as far as memory allows.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from medjax.corpora.cases import Progress, each
from medjax.corpora.inputs import Case
from medjax.errors import MetricError, UsageError
from medjax.infer.model import UNCERTAINTIES
from medjax.labels import Corpus
from medjax.metrics import channels, confidence, side
from medjax.metrics import counts as overlap
from medjax.metrics.aggregate import ABSENT, Row, score_masks
from medjax.metrics.result import Pair, Result, build_result, join
from medjax.metrics.surface import DEFINITION
from medjax.scans import nifti
from medjax.scans.paths import image_files, stem

__all__ = ["Pair", "Result", "evaluate", "find_pairs", "join"]

TOLERANCE_MM = 1.0  # default NSD tolerance


def find_pairs(
    references: str | os.PathLike | Mapping[str, str],
    predictions: str | os.PathLike | Mapping[str, str],
    sources: Mapping[str, Case] | None = None,
    *,
    per_class: bool = False,
) -> tuple[list[Pair], list[str]]:
    """Pairs of like-named label files, or of like-named folders with one mask per class.

    Args:
      references, predictions: a folder of `<case>.nii[.gz]` files or `<case>/` folders, or case
        name -> path.
      sources: case name -> the case, for its patient and its scan; the others are their own
        patient.
      per_class: of a file and a folder of one name among the predictions, take the folder (its
        masks may overlap).

    Returns: the pairs, in order of case name (prediction None where there is none), and the
      predictions without a reference.
    Raises: `UsageError` if a folder is missing or no name occurs on both sides.
    """
    known = sources or {}
    wanted = _label_files(references)
    found = _renamed(_label_files(predictions, per_class), wanted, known)
    if not set(wanted) & set(found):
        hint = (
            f"call them as the references: {', '.join(sorted(wanted)[:3])}"
            if wanted and found
            else "both sides need <case>.nii.gz files"
        )
        raise UsageError(
            "no prediction has the name of a reference",
            path=predictions,
            found=", ".join(sorted(found)[:3]) + f" ({len(found)} in all)" if found else "no files",
            fix=hint,
        )
    pairs = [
        Pair(
            case,
            wanted[case],
            found.get(case),
            known[case].patient or case if case in known else case,
            known.get(case),
        )
        for case in sorted(wanted)
    ]
    return pairs, [found[case] for case in sorted(set(found) - set(wanted))]


def evaluate(
    pairs: Sequence[Pair],
    corpus: Corpus,
    *,
    classes: Sequence[str] | None = None,
    apart: Sequence[str] = (),
    surface: bool = False,
    tolerance_mm: float | Mapping[str, float] = TOLERANCE_MM,
    groups: Mapping[str, Iterable[str]] | None = None,
    unmatched: Sequence[str] = (),
    resamples: int = 10_000,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Result:
    """Scores every pair, case by case.

    Args:
      pairs: from `find_pairs`, or made by hand; one per case name.
      corpus: the meaning of the label values, in references and predictions alike. Reference voxels
        with its ignore value are left out.
      classes: the classes to score; default the annotated ones. Give a view's full corpus to score
        what the view hides.
      apart: further classes that are scored, but count in no mean over classes (`metrics.regions`).
      surface: also NSD, HD95 and ASSD (slower).
      tolerance_mm: of the NSD, for all classes or by class (others 1 mm).
      groups: group name -> classes, for one more table.
      unmatched: passed on to the result.
      workers: threads; default one per core. Cases wait while those at work leave too little
        memory.
      progress: called after every case with (done, total, name, status).

    Returns: the `Result`. Cases fail in isolation (missing prediction, other grid, undeclared
      values, damaged file).
    Raises: `LabelError` for an unknown class, `UsageError` without pairs or for a case that comes
      twice.
    """
    names = (*(corpus.annotated if classes is None else classes), *apart)
    for name in {*names, *(tolerance_mm if isinstance(tolerance_mm, Mapping) else ())}:
        corpus.ids_of(name)
    if not pairs:
        raise UsageError("nothing to evaluate: no pairs of files", path=corpus.name)
    by_case = {pair.case: pair for pair in pairs}
    if len(by_case) < len(pairs):
        raise UsageError("a case is repeated", path=corpus.name, fix="give every case its own name")
    chosen = (
        tolerance_mm if isinstance(tolerance_mm, Mapping) else dict.fromkeys(names, tolerance_mm)
    )
    tolerances = {name: float(chosen.get(name, TOLERANCE_MM)) for name in names} if surface else {}
    outcomes = each(
        lambda case: _score(by_case[case.name], corpus, names, tolerances),
        [Case(pair.case, (_sample_file(pair.reference),)) for pair in pairs],
        workers=workers,
        progress=progress,
        status=lambda rows: "scored",
    )
    rows = [row for outcome in outcomes if outcome.failure is None for row in outcome.value]
    settings = {
        "surface": surface,
        "tolerance_mm": _shortest(tolerances),
        "definition": DEFINITION if surface else None,
    }
    scored = [
        (corpus.name, pair)
        for pair, outcome in zip(pairs, outcomes, strict=True)
        if outcome.failure is None
    ]
    failed = [
        {"corpus": corpus.name} | outcome.failure
        for outcome in outcomes
        if outcome.failure is not None
    ]
    return build_result(
        {corpus.name: corpus},
        {corpus.name: names},
        rows,
        scored,
        failed,
        unmatched,
        settings,
        groups,
        resamples,
        seed,
        [(corpus.name, name) for name in apart],
    )


def _score(
    pair: Pair, corpus: Corpus, names: Sequence[str], tolerances: Mapping[str, float]
) -> list[Row]:
    """All rows of one case; every class is evaluated within the box that holds both its masks."""
    if pair.prediction is None:
        raise MetricError(
            "no prediction for this case",
            path=pair.reference,
            fix="predict it, or leave it out of the references",
        )
    reference = side.open_masks(pair.reference, corpus, pair.source)
    prediction = side.open_masks(pair.prediction, corpus, like=reference.volume)
    nifti.check_same_geometry(reference.volume, prediction.volume)
    shape, spacing = reference.volume.shape, reference.volume.spacing_mm
    whole = tuple(slice(0, n) for n in shape)
    valid = reference.valid(whole)
    voxels = int(np.prod(shape)) if valid is None else int(np.count_nonzero(valid))
    rows, told = [], confidence.read(pair.prediction)
    for name in names:
        box = side.join(reference.box(name), prediction.box(name)) or (slice(0, 0),) * 3
        a, b = reference.mask(name, box), prediction.mask(name, box)
        if valid is not None:
            a, b = a & valid[box], b & valid[box]
        counts = overlap.count(a, b)
        counts = counts._replace(tn=voxels - counts.tp - counts.fp - counts.fn)
        status, scores = score_masks(a, b, counts, spacing, tolerances.get(name), shape)
        if status != ABSENT:
            scores["volume_error_ml"] = overlap.volume_ml(
                counts.n_prediction - counts.n_reference, spacing
            )
        scores |= channels.scores((pair.channels or {}).get(name))
        rows.append(
            Row(
                pair.case,
                pair.patient or pair.case,
                corpus.name,
                name,
                status,
                scores,
                counts,
                overlap.volume_ml(1, spacing),
                told.get(name),
            )
        )
    return rows


def _label_files(
    source: str | os.PathLike | Mapping[str, str], per_class: bool = False
) -> dict[str, str]:
    """Case -> label file, or folder of masks if there is no file (or folders are preferred)."""
    if isinstance(source, Mapping):
        return {str(case): str(path) for case, path in source.items()}
    folder = Path(source)
    if not folder.is_dir():
        raise UsageError(
            "no such folder",
            path=folder,
            fix="give the folder that holds the <case>.nii.gz label files",
        )
    folders = {
        p.name: str(p)
        for p in sorted(folder.iterdir())
        if p.is_dir() and not p.name.startswith(".") and image_files(p)
    }
    files = {stem(p): str(p) for p in image_files(folder)}
    return files | folders if per_class else folders | files


def _renamed(
    found: Mapping[str, str], wanted: Mapping[str, str], sources: Mapping[str, Case]
) -> dict[str, str]:
    """Predictions by the name of their case, where they are called as its image file.

    A data set may call the image liver_01_ct.nii.gz the case liver_01. Maps that lie beside a mask
    (entropy, ...) are left out.
    """
    case_of = {
        re.sub(r"_0000$", "", stem(case.images[0])): name
        for name, case in sources.items()
        if case.images
    }
    kept = {
        name: path
        for name, path in found.items()
        if name in wanted or not any(name.endswith(f"_{m}") for m in UNCERTAINTIES)
    }
    other = {
        name: case_of[name]
        for name in kept
        if name not in wanted and case_of.get(name, name) not in kept and name in case_of
    }
    return {other.get(name, name): path for name, path in kept.items()}


def _sample_file(path: str) -> str:
    """A file whose header gives the size of the case."""
    return str(next(iter(image_files(Path(path))), path)) if os.path.isdir(path) else path


def _shortest(tolerances: Mapping[str, float]) -> float | dict | None:
    """One number if all classes share it."""
    return (
        None
        if not tolerances
        else next(iter(tolerances.values()))
        if len(set(tolerances.values())) == 1
        else dict(tolerances)
    )
