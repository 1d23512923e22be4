"""Many scans through one predictor: each case on its own, resumable, with a manifest.

In: a `Predictor`, cases (see `data/inputs.find_inputs`) and an output folder. Out: the files of `infer/write.py`, and which cases went
well. Three stages work side by side, each on one case at a time: reading and preparing, windows on the device, writing; where the memory
allowed does not hold two cases, they take turns. A case that fails at any stage is recorded with its reason and the others go on.
"""

import dataclasses
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from medjax.data import formats, nifti
from medjax.data.cases import failure, free_memory
from medjax.data.inputs import Case, read_json
from medjax.errors import MedjaxError, UsageError
from medjax.infer import segment, write
from medjax.infer.memory import GIB, Forecast
from medjax.infer.predictor import Model, Predictor, Prepared, Segmentation

__all__ = ["Files", "Model", "Predictor", "Result", "Segmentation", "forecasts", "predict_cases"]

Progress = Callable[[int, int, str, str], None]  # done, total, case name, status
Extra = Callable[[Case, nifti.Volume, Segmentation, Path], list[str]]  # further files of a case; returns their names


@dataclasses.dataclass(frozen=True)
class Files:
    """What is written of every case beside the label map and its sidecar.

    Attributes:
      classes: which to predict and write; None: those that the corpus annotates, or all for files per class and probabilities.
      one_file_per_class, probabilities: see `infer/write.py`. statistics: mean intensities in the sidecar and statistics.csv.
      extra: makes further files of a case, e.g. a picture; gets (case, volume, segmentation, folder), returns their names.
      suffix: tells the run.json and statistics.csv of parallel calls on one folder apart.
    """

    classes: tuple[str, ...] | None = None
    one_file_per_class: bool = False
    probabilities: bool = False
    statistics: bool = False
    extra: Extra | None = None
    suffix: str = ""

    @property
    def manifest(self) -> str:
        """Name of the file that tells of the whole call."""
        return f"run{self.suffix}.json"

    def settings(self) -> dict:
        """JSON-ready; what a finished case must agree with to be left alone."""
        plain = {name: getattr(self, name) for name in ("one_file_per_class", "probabilities", "statistics")}
        plain["extra"] = self.extra is not None
        return plain | {"classes": list(self.classes or ())}


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of the cases.

    Attributes:
      ok: names predicted now. skipped: names that were complete already.
      failed: records with case, error, message and, if known, path, found, expected, fix.
      manifest: what run.json holds.
    """

    ok: list[str]
    failed: list[dict]
    skipped: list[str]
    manifest: dict = dataclasses.field(default_factory=dict)


def predict_cases(
    predictor: Predictor,
    cases: Sequence[Case],
    out_folder: str | os.PathLike,
    corpus: str,
    *,
    files: Files = Files(),
    continue_: bool = False,
    progress: Progress | None = None,
    notes: dict | None = None,
    reading: formats.Reading = formats.AS_STORED,
) -> Result:
    """Predicts every case and writes its files.

    Args:
      corpus: the corpus of the label space whose plan to follow and whose label values to write.
      files: what to write.
      continue_: leave cases alone that an earlier call with the same settings completed; partial files are never trusted.
      progress: called after every case with (done, total, name, "predicted" | "complete" | "failed").
      notes: further fields of the manifest. reading: how the scans are read.

    Returns: `Result`.
    Raises: `UsageError` before any work: unknown corpus or class, no cases, one name twice, outputs that would overwrite inputs.
    """
    folder, space = Path(out_folder), predictor.model.space
    described = space.corpora[space.corpus_index(corpus)]
    if files.classes is None and (files.one_file_per_class or files.probabilities):
        files = dataclasses.replace(files, classes=space.classes)
    for name in files.classes or ():
        space.class_index(name)
    check_cases(cases, folder)
    wanted = {"settings": predictor.settings() | files.settings() | reading.settings(), "corpus": corpus}
    kept = [case.name for case in cases if continue_ and write.is_complete(folder, case.name, wanted)]
    todo = [case for case in cases if case.name not in set(kept)]
    manifest = (
        _manifest(folder / files.manifest, kept) | (notes or {}) | {"versions": write.versions(), "device": _device(predictor)} | wanted
    )
    result = Result([], [], kept, manifest)
    manifest["failed"] = result.failed
    for i, name in enumerate(kept if progress else ()):
        progress(i + 1, len(cases), name, "complete")

    def load(case: Case) -> dict:
        started = time.perf_counter()
        predictor.forecast(formats.read_geometry(case.images[0]), corpus, files.classes)  # refuses what cannot fit before it is read
        volume = formats.read_case(case.images, reading)
        prepared = predictor.prepare_all(volume, corpus)
        if not (files.statistics or files.extra):
            volume = dataclasses.replace(volume, array=None)  # only its geometry is needed from here on
        inputs = {path: write.sha256(path) for path in formats.files_of(case, labels=False)}
        return {"volume": volume, "prepared": prepared, "inputs": inputs, "seconds": {"load": _since(started)}}

    def windows(case: Case, given: dict) -> dict:
        started = time.perf_counter()
        gathered = write.Probabilities(folder, case.name) if files.probabilities else None
        try:
            prepared: tuple[Prepared, ...] = given.pop("prepared")
            found = segment.segment(predictor.parts, prepared, corpus, files.classes, gathered, predictor.limit)
        except BaseException:
            if gathered:
                gathered.discard()
            raise
        seconds = given["seconds"] | {"predict": _since(started)}
        return given | {"segmentation": found, "probabilities": gathered, "seconds": seconds}

    def export(case: Case, given: dict) -> None:
        started = time.perf_counter()
        try:
            outputs = write.write_case(
                folder, case.name, given["segmentation"], given["volume"], described, files=files,
                probabilities=given["probabilities"], notes={"images": list(case.images)} | wanted,
                extra=lambda: files.extra(case, given["volume"], given["segmentation"], folder) if files.extra else [],
            )  # fmt: skip
        finally:
            if given["probabilities"]:
                given["probabilities"].discard()
        manifest["cases"][case.name] = {
            "inputs": given["inputs"], "outputs": outputs, "seconds": given["seconds"] | {"write": _since(started)},
        }  # fmt: skip

    started = time.perf_counter()
    for case, error in _pipeline(todo, load, windows, export, _fit_together(predictor, todo, corpus, files)):
        if error is None:
            result.ok.append(case.name)
        else:
            result.failed.append(failure(case, error))
        manifest |= {"seconds": _since(started), "peak_memory_gib": round(_peak() / GIB, 3), "programs": predictor.compiled}
        write.write_json(folder / files.manifest, manifest)
        if progress:
            status = "predicted" if error is None else "failed"
            progress(len(kept) + len(result.ok) + len(result.failed), len(cases), case.name, status)
    write.write_json(folder / files.manifest, manifest)
    if files.statistics:
        write.write_statistics(folder / f"statistics{files.suffix}.csv", [case.name for case in cases])
    return result


def forecasts(predictor: Predictor, cases: Sequence[Case], corpus: str, classes: Sequence[str] | None = None) -> dict[str, Forecast]:
    """Case name -> what it will take, from the headers; cases that cannot be read or will not fit are left out: they fail later."""
    found = {}
    for case in cases:
        try:
            found[case.name] = predictor.forecast(formats.read_geometry(case.images[0]), corpus, classes)
        except MedjaxError:
            continue
    return found


def check_cases(cases: Sequence[Case], folder: Path) -> None:
    """Everything that would spoil the whole call, as `UsageError`."""
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
        if os.path.basename(case.name) != case.name or case.name.startswith(".") or case.name.split("_part")[0] in ("run", "statistics"):
            raise UsageError("unusable case name", found=case.name, expected="a name that can be a file")
        for image in case.images:
            if Path(image).resolve() == (folder / f"{case.name}.nii.gz").resolve():
                raise UsageError("the prediction would overwrite its input", path=image, fix="choose another output folder")


def _pipeline(
    cases: Sequence[Case], load: Callable, work: Callable, export: Callable, together: bool
) -> Iterator[tuple[Case, Exception | None]]:
    """Each case with the error that ended it, or None, in order. `together`: the stages of neighbouring cases run at the same time."""
    reader, writer = (ThreadPoolExecutor(1, thread_name_prefix=f"medjax-{name}") for name in ("load", "write"))
    upcoming: Future | None = None
    leaving: tuple[Case, Future] | None = None

    def outcome(case: Case, future: Future) -> tuple[Case, Exception | None]:
        try:
            future.result()
        except Exception as error:
            return case, error
        return case, None

    try:
        for i, case in enumerate(cases):
            current = upcoming or reader.submit(load, case)
            upcoming = None
            given: Any = None
            error: Exception | None = None
            try:
                given = current.result()
                del current
                if together and i + 1 < len(cases):
                    upcoming = reader.submit(load, cases[i + 1])
                given = work(case, given)
            except Exception as reason:
                given, error = None, reason
                if together and upcoming is None and i + 1 < len(cases):
                    upcoming = reader.submit(load, cases[i + 1])
            if leaving:
                yield outcome(*leaving)
                leaving = None
            if error is not None:
                yield case, error
                continue
            leaving = case, writer.submit(export, case, given)
            del given
            if not together:
                yield outcome(*leaving)
                leaving = None
        if leaving:
            yield outcome(*leaving)
    finally:
        for pool in (reader, writer):
            pool.shutdown(wait=True, cancel_futures=True)


def _fit_together(predictor: Predictor, cases: Sequence[Case], corpus: str, files: Files) -> bool:
    """Whether the memory holds what three neighbouring cases need at a time: one being read, one predicted, one written."""
    if len(cases) < 2:
        return False
    needs = [found.bytes for found in forecasts(predictor, cases, corpus, files.classes).values()]
    return 2 * max(needs, default=0) <= (predictor.limit or free_memory() // 2)


def _manifest(path: Path, kept: Sequence[str]) -> dict:
    """A manifest that still tells of the cases an earlier call completed."""
    try:
        earlier = read_json(path)["cases"]
    except (MedjaxError, KeyError, TypeError):
        earlier = {}
    return {"cases": {name: earlier[name] for name in kept if name in earlier}}


def _device(predictor: Predictor) -> str:
    return f"{predictor.device.platform}:{predictor.device.id} {predictor.device.device_kind}"


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)


def _peak() -> int:
    """Bytes this process had resident at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
