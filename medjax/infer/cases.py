"""Many scans through one segmenter: each case on its own, resumable, with a manifest.

In: a `Segmenter`, cases (see `corpora/inputs.find_inputs`) and an output folder. Out: the files of
`infer/write.py`, and which cases went well. Three stages work side by side, each on one case at a
time: reading and preparing, windows on the device, writing; if the memory allowed does not hold
two cases, they run one after another. A case that fails at any stage is recorded with its reason
and the others go on.
"""

import contextlib
import dataclasses
import functools
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax.corpora.cases import failure
from medjax.corpora.inputs import Case
from medjax.errors import MedjaxError, PredictError, shown
from medjax.infer import guard, outputs, owned, pipeline, write
from medjax.infer.memory import GIB, Forecast
from medjax.infer.model import Prepared, Segmentation
from medjax.infer.prompted import PromptedSegmenter
from medjax.infer.segmenter import Segmenter
from medjax.labels import LabelSpace
from medjax.prompts.read import Prompt
from medjax.prompts.request import Request
from medjax.scans import formats, nifti, records

AnySegmenter = Segmenter | PromptedSegmenter  # both have the same face
Progress = Callable[[int, int, str, str], None]  # done, total, case name, status
Extra = Callable[
    [Case, nifti.Volume, Segmentation, Path], list[str]
]  # further files of a case; returns their names
Facts = Callable[[Case, nifti.Volume, Segmentation], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Files:
    """What is written of every case beside the label map and its sidecar.

    Attributes:
      one_file_per_class, probabilities: see `infer/write.py`. statistics: mean intensities in the
        sidecar and statistics.csv.
      extra: makes further files of a case, e.g. a picture; gets (case, volume, segmentation,
        folder), returns their names.
      endings: what the names of these files add to that of the case, so that they can be checked
        beforehand.
      facts: makes further fields of the sidecar from (case, volume, segmentation).
      suffix: distinguishes run.json and statistics.csv of parallel calls on one folder.
    """

    one_file_per_class: bool = False
    probabilities: bool = False
    statistics: bool = False
    extra: Extra | None = None
    suffix: str = ""
    endings: tuple[str, ...] = ()
    facts: Facts | None = None

    @property
    def manifest(self) -> str:
        """Name of the file that describes the whole call."""
        return f"run{self.suffix}.json"

    @property
    def table(self) -> str:
        """Name of the table of volumes."""
        return f"statistics{self.suffix}.csv"

    def settled(self, request: Request, classes: Sequence[str]) -> Request:
        """With the classes chosen: all of the label space (`classes`) for files per class and
        probabilities, where none are named.
        """
        if request.classes is None and (self.one_file_per_class or self.probabilities):
            return dataclasses.replace(request, classes=tuple(classes))
        return request

    def settings(self, request: Request) -> dict:
        """JSON-ready; what a finished case must agree with to be left alone."""
        plain = {
            name: getattr(self, name)
            for name in ("one_file_per_class", "probabilities", "statistics")
        }
        plain["extra"] = self.extra is not None
        return plain | {"classes": list(request.classes or ())}


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
    segmenter: AnySegmenter,
    cases: Sequence[Case],
    out_folder: str | os.PathLike,
    request: Request,
    *,
    files: Files = Files(),
    continue_: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    notes: dict | None = None,
    warn: Callable[[str], None] | None = None,
    reading: formats.Reading = formats.AS_STORED,
    checked: outputs.Checked | None = None,
    ahead: Mapping[str, Forecast] | None = None,
    objects: Mapping[str, tuple[Prompt, ...]] = {},
) -> Result:
    """Predicts every case and writes its files.

    Args:
      request: the corpus whose plan to follow and whose label values to write, and the classes;
        default those that the corpus annotates, or all for files per class and probabilities.
      files: what to write.
      continue_: skip cases that an earlier call with the same settings completed from the same
        inputs; cases with missing or changed files are predicted again.
      overwrite: also replace files that medjax did not write.
      progress: called after every case with (done, total, name, "predicted" | "complete" |
        "failed").
      notes: further fields of the manifest. reading: how the scans are read.
      warn: receives what a user should know of a prediction; default Python's warnings.
      checked: what `outputs.check` returned for these cases, if it was called before.
      ahead: what `forecasts` returned for these cases, if it was called before.
      objects: case -> what a promptable network is asked for, in place of the request's objects.

    Returns: `Result`.
    Raises: `UsageError` before any work: unknown corpus or class, no cases, names that clash,
      outputs that would overwrite inputs or files that medjax did not write, a folder that cannot
      be written to.
    """
    folder, space = Path(out_folder), segmenter.model.space
    described = space.corpora[space.corpus_index(request.corpus)]
    if not (objects or request.objects):
        request = files.settled(request, space.classes)
    named = [one.name for found in (request.objects, *objects.values()) for one in found]
    classes = tuple(dict.fromkeys(named)) or request.wanted(space)
    segmenter.warn = warn = warn or segmenter.warn
    maps = segmenter.maps
    fine, too_long = checked or outputs.check(
        cases, folder, files, classes, maps, overwrite=overwrite
    )
    settings = segmenter.settings() | files.settings(request) | reading.settings()
    wanted = {"settings": settings} | request.settings()

    def of(case: Case) -> Request:
        given = objects.get(case.name, request.objects)
        return dataclasses.replace(request, objects=given)

    manifest = (
        _manifest(folder, files, notes)
        | {"versions": write.versions(), "device": _device(segmenter)}
        | wanted
    )

    @functools.cache
    def old() -> dict:
        """The settings as version 0.1 recorded them."""
        return {"settings": settings | segmenter.settings(earlier=True)}

    def expected(case: Case, as_now: bool = True) -> dict:
        own = wanted | of(case).settings()
        return own if as_now else own | old()

    kept = _complete(folder, fine, expected, manifest["cases"], warn) if continue_ else []
    todo = [case for case in fine if case.name not in set(kept)]
    result = Result([], list(too_long), kept, manifest)
    manifest["failed"] = result.failed
    skipped = [(name, "complete") for name in kept] + [
        (record["case"], "failed") for record in too_long
    ]
    for i, (name, status) in enumerate(skipped if progress else ()):
        progress(i + 1, len(cases), name, status)
    if ahead is None:
        ahead = forecasts(segmenter, todo, request)
    stop, gathering = pipeline.Stop(), []

    def load(case: Case) -> dict:
        started = time.perf_counter()
        if case.name not in ahead or ahead[case.name].bytes > segmenter.budget:
            # says what is wrong with it, before its voxels are read
            segmenter.forecast(formats.read_geometry(case.images[0]), request)
        volume = formats.read_case(case.images, reading, hashed=True)
        stop.check()
        prepared = segmenter.prepare_all(volume, of(case))
        doubts = guard.doubts(segmenter.model.plan, described.channels, volume, prepared[0])
        if not (files.statistics or files.extra):
            volume = dataclasses.replace(
                volume, array=None
            )  # only its geometry is needed from here on
        stop.check()
        inputs = {
            path: volume.hashes.get(path) or records.sha256(path)
            for path in case.files(labels=False)
        }
        return {
            "volume": volume,
            "prepared": prepared,
            "inputs": inputs,
            "doubts": doubts,
            "seconds": {"load": _since(started)},
        }

    def windows(case: Case, given: dict) -> dict:
        started = time.perf_counter()
        gathered = write.Probabilities(folder, case.name) if files.probabilities else None
        if gathered:
            gathering.append(gathered)
        try:
            prepared: tuple[Prepared, ...] = given.pop("prepared")
            found = segmenter.segment(
                given["volume"], of(case), prepared=prepared, on_scores=gathered
            )
        except BaseException:
            if gathered:
                gathered.discard()
            raise
        seconds = given["seconds"] | {"predict": _since(started)}
        return given | {"segmentation": found, "probabilities": gathered, "seconds": seconds}

    def export(case: Case, given: dict) -> None:
        started = time.perf_counter()
        volume, segmentation = given["volume"], given["segmentation"]
        said = guard.warnings(segmentation.masks.voxels, given["doubts"])
        said += segmentation.notes
        try:
            written = write.write_case(
                folder,
                case.name,
                segmentation,
                volume,
                segmentation.corpus or described,
                files=files,
                probabilities=given["probabilities"],
                notes={
                    **(files.facts(case, volume, segmentation) if files.facts else {}),
                    "images": list(case.images),
                    "inputs": given["inputs"],
                    "warnings": said,
                    **_confidence(segmentation.masks.confidence, space, request.corpus),
                    **expected(case),
                },
                step=stop.check,
                extra=lambda: (
                    files.extra(case, volume, segmentation, folder) if files.extra else []
                ),
            )
        finally:
            if given["probabilities"]:
                given["probabilities"].discard()
        manifest["cases"][case.name] = {
            "inputs": given["inputs"],
            "outputs": written,
            "seconds": given["seconds"] | {"write": _since(started)},
            "warnings": said,
        }
        for text in said:
            warn(f"{shown(case.name)}: {text}")

    def finish() -> None:
        """The manifest as it stands."""
        manifest.update(
            seconds=_since(started),
            peak_memory_gib=round(_peak() / GIB, 3),
            programs=segmenter.compiled,
        )
        write.write_json(folder / files.manifest, manifest)

    started = time.perf_counter()
    work = pipeline.run(todo, load, windows, export, _ahead(segmenter, todo, ahead), stop)
    try:
        with contextlib.closing(work):
            for case, error in work:
                if error is None:
                    result.ok.append(case.name)
                else:
                    result.failed.append(failure(case, _in_words(case, error)))
                with contextlib.suppress(
                    PredictError
                ):  # a full disk must not cost the remaining cases; the last attempt reports it
                    finish()
                if progress:
                    status = "predicted" if error is None else "failed"
                    progress(
                        len(skipped) + len(result.ok) + len(result.failed) - len(too_long),
                        len(cases),
                        case.name,
                        status,
                    )
    except BaseException:
        with contextlib.suppress(PredictError):
            finish()
        raise
    else:
        finish()
    finally:
        for gathered in gathering:
            gathered.discard()
    if files.statistics:
        write.write_statistics(folder / files.table, list(manifest["cases"]))
    return result


def forecasts(
    segmenter: AnySegmenter, cases: Sequence[Case], request: Request
) -> dict[str, Forecast]:
    """Case name -> what it will take, from the headers; cases that cannot be read or will not fit
    are left out: they fail later.
    """
    found = {}
    for case in cases:
        with contextlib.suppress(Exception):
            found[case.name] = segmenter.forecast(formats.read_geometry(case.images[0]), request)
    return found


def _confidence(found: Mapping[str, float | None], space: LabelSpace, corpus: str) -> dict:
    """The sidecar's field of `Masks.confidence`; classes of the corpus under its own names."""
    found = {name: value and round(value, 6) for name, value in found.items()}
    channel_of = dict(space.names[space.corpus_index(corpus)])
    named = {n: found.pop(c) for n, c in channel_of.items() if c in found} if found else {}
    return {"confidence": found | named} if found or named else {}


def _complete(
    folder: Path,
    cases: Sequence[Case],
    wanted: Callable[[Case, bool], dict],
    listed: dict,
    warn: Callable[[str], None],
) -> list[str]:
    """Names of the cases that are finished, as `wanted` of (case, now or as version 0.1)."""
    kept, unhashed = [], 0
    for case in cases:

        def inputs(case: Case = case) -> list[str]:
            return [records.sha256(path) for path in case.files(labels=False)]

        recorded = ((owned.sidecar(folder, case.name) or {}).get("settings") or {}).get("weights")
        as_now = ":" in str(recorded)  # the hash is named before a colon, e.g. xxh3:
        state = write.is_complete(
            folder, case.name, wanted(case, as_now), inputs, listed.get(case.name)
        )
        kept += [case.name] if state else []
        unhashed += state == "unhashed"
    if unhashed:
        warn(
            f"{folder}: {unhashed} complete cases of an earlier version carry no hashes of their "
            "masks; only the sizes were compared"
        )
    return kept


def _in_words(case: Case, error: Exception) -> Exception:
    """Memory and file errors as sentences with the scan's path; others as they are."""
    if isinstance(error, MemoryError):
        return PredictError(
            "not enough memory",
            path=case.images[0],
            found=str(error) or None,
            fix="free some, or set --max-memory GIB",
        )
    if isinstance(error, OSError) and not isinstance(error, MedjaxError):
        return PredictError(
            f"cannot read or write ({error.strerror or error})",
            path=error.filename or case.images[0],
            fix="check it",
        )
    return error


def _ahead(
    segmenter: AnySegmenter, cases: Sequence[Case], forecasts: Mapping[str, Forecast]
) -> int:
    """How many cases are read, and written, while one is predicted: one for every four cores, as
    far as the memory holds them; 0 if it holds one case only.
    """
    needs = [forecasts[case.name].bytes for case in cases if case.name in forecasts]
    most = segmenter.budget // max(needs, default=1) - 1
    return max(0, min(len(cases) - 1, max(1, (os.cpu_count() or 1) // 4), most))


def _manifest(folder: Path, files: Files, notes: dict | None) -> dict:
    """A manifest that keeps the cases of earlier calls whose files exist, and their tables."""
    earlier = outputs.manifests(folder).get(files.manifest, {})
    cases = {
        name: entry
        for name, entry in (earlier.get("cases") or {}).items()
        if isinstance(entry, dict) and _is_there(folder, name)
    }
    tables = {name for name in earlier.get("files") or () if isinstance(name, str)}
    if files.statistics or (earlier.get("settings") or {}).get("statistics"):
        tables.add(files.table)
    return owned.mark("predictions") | {"cases": cases, "files": sorted(tables)} | (notes or {})


def _is_there(folder: Path, case: str) -> bool:
    side = owned.sidecar(folder, case)
    return (
        side is not None
        and side.get("complete") is not False
        and all(os.path.isfile(folder / name) for name in side["files"])
    )


def _device(segmenter: AnySegmenter) -> str:
    return f"{segmenter.device.platform}:{segmenter.device.id} {segmenter.device.device_kind}"


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)


def _peak() -> int:
    """Bytes this process had resident at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
