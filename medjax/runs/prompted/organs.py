"""Organ masks from another run, and organ masks of scans that are to be predicted.

In: a run (or the folds of a cross-validation) and cases. Out: a mask per case, made by a network
that was not trained on it wherever there is one; the other cases are named.
"""

import dataclasses
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from medjax.corpora import organs
from medjax.corpora.inputs import Case
from medjax.errors import DataError, MedjaxError, UsageError, shown
from medjax.labels import LabelSpace
from medjax.prompts.request import Request
from medjax.runs import folder as runfolder
from medjax.runs import open as corpora
from medjax.scans import formats, nifti
from medjax.scans.nifti import Volume

NO_ORGAN = "none"


@dataclasses.dataclass(frozen=True)
class _Known:
    """A scan as a run knows it: its folder, corpus, name, and whether the run trained on it."""

    folder: Path
    corpus: str
    name: str
    trained: bool


def from_run(
    run: Path, classes: Sequence[str], cases: Sequence[Case], out: Path, say: Callable[[str], None]
) -> organs.MaskOf:
    """Masks that a run predicts, the union of some classes.

    A scan is recognised by its file. Of a cross-validated run every scan has the mask of the fold
    that held it out, as the evaluation of that fold wrote it; scans that no fold knows are
    predicted with the first.

    Args:
      run: a run folder, or one with fold_0, fold_1, ... out: folder for new predictions.

    Raises: `UsageError` for a folder without a run, or classes that it does not predict.
    """
    folders = sorted(p for p in run.glob("fold_*") if (p / runfolder.CONFIG).is_file()) or [run]
    for folder in folders:
        if not (folder / runfolder.CONFIG).is_file():
            raise UsageError(
                "not a run folder", path=folder, fix="name the --workdir of a training"
            )
    space = runfolder.read_space(folders[0]).unveiled()
    protocol = _protocol(space, classes, run)
    values = organs.values_of(space.corpora[space.corpus_index(protocol)], classes)
    known = _scans_of(folders)
    files, left, seen = {}, [], []
    for case in cases:
        found = known.get(_identity(case), ())
        held = next((k for k in found if not k.trained and _written(k).is_file()), None)
        if held is not None and held.corpus == protocol:
            files[case.name] = _written(held)
        else:
            left.append(case)
            seen += [case.name] if found and all(k.trained for k in found) else []
    if seen:
        say(
            f"{len(seen)} masks are of networks that were trained on these scans, and better than "
            f"masks of new ones: {', '.join(map(shown, seen[:8]))}"
        )
    say(f"{len(files)} masks of networks that did not see the scan, {len(left)} to predict")
    if left:
        _predict(folders[0], left, out, Request(protocol, tuple(classes)), say)
        files |= {case.name: out / f"{case.name}.nii.gz" for case in left}

    def mask_of(case: Case, like: Volume) -> np.ndarray | None:
        path = files[case.name]
        return organs.on_scan(path, like, values) if path.is_file() else None

    return mask_of


def _protocol(space: LabelSpace, classes: Sequence[str], run: Path) -> str:
    """The corpus of a run that annotates all of some classes."""
    fitting = [c.name for c in space.corpora if set(classes) <= set(c.annotated)]
    if not classes or not fitting:
        raise UsageError(
            f"this run does not predict {', '.join(classes) or 'a class that was named'} together",
            path=run,
            expected="; ".join(f"{c.name}: {', '.join(c.annotated)}" for c in space.corpora),
            fix="give --classes",
        )
    return fitting[0]


def _identity(case: Case) -> str:
    return os.path.realpath(case.images[0])


def _written(known: _Known) -> Path:
    return known.folder / "predictions" / known.corpus / f"{known.name}.nii.gz"


def _scans_of(folders: Sequence[Path]) -> dict[str, list[_Known]]:
    """Path of a scan -> how each of the runs knows it."""
    found: dict[str, list[_Known]] = {}
    for folder in folders:
        config = runfolder.read_config(folder)
        data = corpora.open_data(config.data, folder)
        for corpus, members in data.cases.items():
            trained = set(data.side(corpus, "train")) if data.splits else set()
            for case in members:
                entry = _Known(folder, corpus, case.name, case.name in trained)
                found.setdefault(_identity(case), []).append(entry)
    return found


def _predict(
    run: Path, cases: Sequence[Case], out: Path, request: Request, say: Callable[[str], None]
) -> None:
    from medjax.infer.cases import predict_cases
    from medjax.runs.trained import load_predictor

    predict_cases(load_predictor([run]), cases, out, request, continue_=True, warn=say)


def with_masks(
    cases: Sequence[Case], given: str, folder: Path, say: Callable[[str], None]
) -> list[Case]:
    """The cases with an organ mask as their last image, on the grid of the scan.

    A mask that has this grid already is read where it is; any other is written to `folder`.

    Args:
      given: a file for the only case, a folder with files called as the cases, or "none".

    Raises: `UsageError` for one file and several cases, for a missing file, and for a mask of
      another scan.
    """
    path = Path(given).expanduser()
    if given == NO_ORGAN:
        files = {}
    elif path.is_dir():
        files = organs.by_name(path)
    elif path.is_file():
        if len(cases) != 1:
            raise UsageError(
                "one organ mask and several scans",
                path=path,
                found=f"{len(cases)} scans",
                fix="give a folder of masks called as the scans",
            )
        files = {cases[0].name: str(path)}
    else:
        raise UsageError(
            "no such organ mask", path=path, expected=f"a file, a folder, or {NO_ORGAN}"
        )
    found, missing = [], []
    for case in cases:
        own = files.get(case.name)
        try:
            like = formats.read_geometry(case.images[0])
        except MedjaxError:  # reported when the case is read
            found.append(case)
            continue
        if own is None or not _same_grid(own, like):
            missing += [case.name] if own is None else []
            mask = np.zeros(like.shape, bool) if own is None else organs.on_scan(own, like)
            own = str(folder / f"{case.name}.nii.gz")
            nifti.write(own, mask, like)
        found.append(dataclasses.replace(case, images=(*case.images, own)))
    if missing:
        names = ", ".join(map(shown, missing[:5]))
        say(
            f"{len(missing)} of {len(cases)} scans have no organ mask ({names}): it counts as empty"
        )
    return found


def _same_grid(path: str, like: Volume) -> bool:
    """Whether a mask has the grid of a scan, to a thousandth of a voxel."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            nifti.check_same_geometry(like, formats.read_geometry(path))
        except (DataError, Warning):
            return False
    return True


def temporary() -> tempfile.TemporaryDirectory:
    """A folder for masks on the grids of scans, which is removed with the call that needs it."""
    return tempfile.TemporaryDirectory(prefix="medjax_organs_")
