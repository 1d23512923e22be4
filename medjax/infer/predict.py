"""Many scans through one predictor: each case on its own, resumable, with a manifest.

In: a `Predictor`, cases (see `data/sources.find_inputs`) and an output folder. Out: the files of `infer/write.py`, and which cases went
well. The next case is read and prepared by a second thread while the device works on this one. A case that fails is recorded with its
reason and the others go on.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from medjax.data import formats, nifti
from medjax.data.cases import failure
from medjax.data.inputs import Case, read_json
from medjax.errors import MedjaxError, UsageError
from medjax.infer import write
from medjax.infer.predictor import Model, Predictor, Prepared, Segmentation

__all__ = ["Model", "Predictor", "Result", "Segmentation", "predict_cases"]

Progress = Callable[[int, int, str, str], None]  # done, total, case name, status


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of the cases.

    Attributes:
      ok: names predicted now. skipped: names that were complete already.
      failed: records with case, error, message and, if known, path, found, expected, fix.
    """

    ok: list[str]
    failed: list[dict]
    skipped: list[str]


def predict_cases(
    predictor: Predictor,
    cases: Sequence[Case],
    out_folder: str | os.PathLike,
    corpus: str,
    *,
    continue_: bool = False,
    probabilities: bool = False,
    one_file_per_class: bool = False,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Predicts every case and writes its files.

    Args:
      corpus: the corpus of the label space whose plan to follow and whose label values to write.
      continue_: leave cases alone that an earlier call with the same settings completed; partial files are never trusted.
      probabilities: also write `<case>_prob.npz`.
      one_file_per_class: also write `<case>/<class>.nii.gz`, by default for all classes of the label space.
      classes: the classes of those files, beside those that `corpus` annotates.
      progress: called after every case with (done, total, name, "predicted" | "complete" | "failed").

    Returns: `Result`.
    Raises: `UsageError` before any work: unknown corpus or class, no cases, one name twice, outputs that would overwrite inputs.
    """
    folder, space = Path(out_folder), predictor.model.space
    described = space.corpora[space.corpus_index(corpus)]
    if classes is None and (one_file_per_class or probabilities):
        classes = space.classes
    for name in classes or ():
        space.class_index(name)
    _check(cases, folder)
    files = {"classes": list(classes or ()), "probabilities": probabilities, "one_file_per_class": one_file_per_class}
    wanted = {"settings": predictor.settings() | files, "corpus": corpus}
    kept = [case.name for case in cases if continue_ and write.is_complete(folder, case.name, wanted)]
    todo = [case for case in cases if case.name not in set(kept)]
    manifest = _manifest(folder, kept) | {"versions": write.versions(), "device": jax.devices()[0].device_kind} | wanted
    result = Result([], [], kept)
    for i, name in enumerate(kept if progress else ()):
        progress(i + 1, len(cases), name, "complete")

    def load(case: Case) -> tuple[nifti.Volume, Prepared, dict[str, str], float]:
        started = time.perf_counter()
        volume = formats.read_case(case.images)
        prepared = predictor.prepare(volume, corpus)
        return volume, prepared, {path: write.sha256(path) for path in formats.files_of(case, labels=False)}, time.perf_counter() - started

    def finish(case: Case, volume: nifti.Volume, prepared: Prepared, inputs: dict[str, str], loading: float) -> None:
        started = time.perf_counter()
        gathered = write.Probabilities() if probabilities else None
        segmentation = predictor.segment(volume, corpus, classes=classes, prepared=prepared, on_scores=gathered)
        outputs = write.write_case(
            folder, case.name, segmentation, volume, described,
            one_file_per_class=one_file_per_class, probabilities=gathered, notes={"images": list(case.images)} | wanted,
        )  # fmt: skip
        seconds = {"load": round(loading, 3), "predict": round(time.perf_counter() - started, 3)}
        manifest["cases"][case.name] = {"inputs": inputs, "outputs": outputs, "seconds": seconds}

    with ThreadPoolExecutor(1, thread_name_prefix="medjax-load") as pool:
        upcoming = pool.submit(load, todo[0]) if todo else None
        for i, case in enumerate(todo):
            current, upcoming = upcoming, pool.submit(load, todo[i + 1]) if i + 1 < len(todo) else None
            try:
                finish(case, *current.result())
            except Exception as error:
                result.failed.append(failure(case, error))
            else:
                result.ok.append(case.name)
            write.write_json(folder / "run.json", manifest | {"failed": result.failed})
            if progress:
                progress(len(kept) + i + 1, len(cases), case.name, "predicted" if case.name in result.ok[-1:] else "failed")
    return result


def _check(cases: Sequence[Case], folder: Path) -> None:
    """Everything that would spoil the whole call."""
    if not cases:
        raise UsageError("no cases to predict", path=folder)
    names = [case.name for case in cases]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"case name {min(twice)!r} occurs twice", fix="rename the scans, or name the cases in a .csv")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the output folder cannot be made ({error.strerror})", path=folder) from error
    for case in cases:
        if os.path.basename(case.name) != case.name or case.name.startswith(".") or case.name == "run":
            raise UsageError("unusable case name", found=case.name, expected="a name that can be a file")
        for image in case.images:
            if Path(image).resolve() == (folder / f"{case.name}.nii.gz").resolve():
                raise UsageError("the prediction would overwrite its input", path=image, fix="choose another output folder")


def _manifest(folder: Path, kept: Sequence[str]) -> dict:
    """A manifest that still tells of the cases an earlier call completed."""
    try:
        earlier = read_json(folder / "run.json")["cases"]
    except (MedjaxError, KeyError, TypeError):
        earlier = {}
    return {"cases": {name: earlier[name] for name in kept if name in earlier}, "failed": []}
