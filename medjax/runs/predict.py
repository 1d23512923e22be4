"""`medjax predict`: from models, scans, protocol and limits to masks in a folder.

In: paths and words. Out: `infer.cases.Result`. All errors of the request are reported before a
model is compiled.
"""

import dataclasses
import functools
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax.corpora.inputs import Case, find_inputs
from medjax.errors import UsageError, did_you_mean, shown
from medjax.labels import Corpus, LabelSpace
from medjax.prompts.request import Request
from medjax.runs.prompted import free, organs, prompting
from medjax.runs.trained import Trained, load_predictor, read_model
from medjax.scans.formats import Reading

GIB = 2**30


def predict(
    models: Sequence[Path | str],
    inputs: Sequence[str],
    out: Path,
    request: Request,
    *,
    part: tuple[int, int] = (0, 1),
    continue_: bool = False,
    one_file_per_class: bool = False,
    probabilities: bool = False,
    statistics: bool = False,
    preview: bool = False,
    report: Path | None = None,
    max_memory_gib: float | None = None,
    frame: int | None = None,
    replace_nan: float | str | None = None,
    overwrite: bool = False,
    page: bool = False,
    adapter: Path | str = "",
    expert: str = "",
    force_base: bool = False,
    organ: str = "",
    flags: Sequence[tuple[str, str]] = (),
    prompts: Sequence[Path | str] = (),
    space: str = "",
    encoder: Path | str = "",
    say: Callable[[str], None] = lambda line: None,
    progress: Any = None,
    warn: Callable[[str], None] | None = None,
    **options: Any,
) -> Any:
    """Predicts scans with one model or an ensemble.

    Args:
      models: run folders or archives. inputs: files, folders, globs or lists. out: folder for the
        masks.
      request: what to predict. Its corpus may be empty if the models have one, or if its classes
        determine it.
      part: (i, n): every n-th case, from the i-th.
      report: additional path of the manifest. max_memory_gib: memory limit of the process.
      frame, replace_nan: see `scans.formats.Reading`.
      overwrite: also replace files that medjax did not write. page: the caller will also write
        report.html.
      adapter, expert, force_base: an adapter file to join to the model, see
        `runs.exchange.adapters.attach`.
      organ: masks of the organ that the network reads as its last channel: a file for one scan, a
        folder with files called as the scans, or "none"; empty: further images of each case.
      flags, prompts, space: objects that a promptable model is asked for, see
        `runs.prompted.prompting.objects_of`.
      encoder: text encoder for texts that are no class, see `runs.prompted.free.opened`.
      say: called with progress lines. warn: called with warnings; default `say`. options: see
        `load_predictor`.

    Returns: see `infer.cases.predict_cases`. Raises: `UsageError` for an unknown corpus or class,
      no scan found, an output that must not or cannot be written, or a memory limit that the model
      alone exceeds.
    """
    given = dict(locals())
    with organs.temporary() as masks:
        return _predict(masks=Path(masks), **given.pop("options"), **given)


def _predict(
    models: Sequence[Path | str],
    inputs: Sequence[str],
    out: Path,
    request: Request,
    *,
    masks: Path,
    part: tuple[int, int],
    continue_: bool,
    one_file_per_class: bool,
    probabilities: bool,
    statistics: bool,
    preview: bool,
    report: Path | None,
    max_memory_gib: float | None,
    frame: int | None,
    replace_nan: float | str | None,
    overwrite: bool,
    page: bool,
    adapter: Path | str,
    expert: str,
    force_base: bool,
    organ: str,
    flags: Sequence[tuple[str, str]],
    prompts: Sequence[Path | str],
    space: str,
    encoder: Path | str,
    say: Callable[[str], None],
    progress: Any,
    warn: Callable[[str], None] | None,
    **options: Any,
) -> Any:
    """See `predict`; `masks` is a folder for organ masks on the grids of the scans."""
    from medjax.infer import guard, outputs, write
    from medjax.infer.cases import Files, Result, forecasts, predict_cases
    from medjax.infer.model import UNCERTAINTIES
    from medjax.infer.tasks import ALL
    from medjax.runs import options as known

    reading = Reading(frame, replace_nan)
    if request.task == ALL:
        options["every_task"] = True
    known.check(options)
    trained = adapted([read_model(model) for model in models], adapter, expert, force_base)
    labels = trained[0].space.unveiled()
    request = protocol(labels, request, one_file_per_class)
    described = labels.corpora[labels.corpus_index(request.corpus)]
    if organ:
        require_organ(trained[0], described)
    cases = find_inputs(inputs, channels=len(described.channels) - bool(organ), say=say)
    names = [case.name for case in cases]
    objects = prompting.asked(trained[0], request, names, flags, prompts, space)
    if phrases := free.unknown(prompting.texts_of(objects), labels.classes):
        trained[0], options["vectors"] = free.opened(trained[0], phrases, encoder)
        for line in free.about(phrases, trained[0]):
            (warn or say)(line)
    mine = share(cases, *part)
    if not mine:
        say(f"nothing to do: part {part[0]} of {part[1]} has none of the {len(cases)} cases")
        return Result([], [], [])
    if organ:
        mine = organs.with_masks(mine, organ, masks, warn or say)
    suffix = f"_part{part[0]}of{part[1]}" if part[1] > 1 else ""
    picture = functools.partial(draw_preview, write.label_names(described)) if preview else None
    endings = ("_preview.png",) if preview else ()
    files = Files(one_file_per_class, probabilities, statistics, picture, suffix, endings)
    if not objects:
        request = files.settled(request, labels.classes)
    written = prompting.names_of(objects) if objects else request.wanted(labels)
    maps = tuple(UNCERTAINTIES) if options.get("uncertainty") else ()
    checked = outputs.check(
        cases, out, files, written, maps, mine=mine, overwrite=overwrite, page=page
    )
    if report:
        outputs.check_report(report, out, cases, overwrite=overwrite)
    segmenter, warn = load_predictor(trained, **options), warn or say
    require_task(request.task, segmenter.model.tasks, trained[0].path)
    if maps and len(segmenter.maps) < len(maps):
        say(
            "no map of disagreement: one model without mirrors has nothing to compare "
            "(--tta mirror gives it)"
        )
    segmenter.name, segmenter.warn = ", ".join(str(model.path) for model in trained), warn
    if left := guard.unchecked(segmenter.model.plan, described.channels):
        say(f"{shown(segmenter.name)}: {left} are not compared with the scans")
    if max_memory_gib is not None:
        segmenter.compile(written)  # part of what is resident
        left = int(max_memory_gib * GIB) - resident()
        if left <= 0:
            raise UsageError(
                "the model alone takes more than --max-memory",
                found=f"{resident() / GIB:.1f} GiB",
                expected=f"{max_memory_gib}",
            )
        segmenter.limit = left
    ahead = forecasts(segmenter, mine, request)
    say(outlook(ahead, len(mine), segmenter, max_memory_gib))
    notes = {"models": [{"path": str(model.path), **origin(model)} for model in trained]}
    result = predict_cases(
        segmenter,
        mine,
        out,
        request,
        files=files,
        continue_=continue_,
        overwrite=overwrite,
        progress=progress,
        notes=notes,
        warn=warn,
        reading=reading,
        checked=checked,
        ahead=ahead,
        objects=objects,
    )
    if report:
        write.write_json(report, result.manifest)
    say(
        f"{len(result.ok)} predicted, {len(result.skipped)} complete before, {len(result.failed)} "
        f"failed; masks in {shown(out)}"
    )
    return result


def require_organ(model: Trained, described: Corpus) -> None:
    """`UsageError` unless the last of several channels of a corpus is a mask."""
    roles = [model.plan.intensity_of(name).role for name in described.channels]
    if roles[-1] != "mask" or len(roles) < 2:
        raise UsageError(
            "this model reads no organ mask",
            path=model.path,
            found=f"channels {', '.join(described.channels)}",
            fix="leave --organ out, or train with the corpus that `medjax organs` describes",
        )


def adapted(
    trained: Sequence[Trained], file: Path | str, expert: str = "", force: bool = False
) -> list[Trained]:
    """The models, the only one of which is joined to an adapter file if one is given.

    Raises: `UsageError` for several models with an adapter, or an expert without one.
    """
    if not file:
        if expert or force:
            raise UsageError("an expert or another base belong to an adapter", fix="add --adapter")
        return list(trained)
    if len(trained) != 1:
        raise UsageError(
            "an adapter belongs to one model", found=f"{len(trained)} models", fix="give its base"
        )
    from medjax.runs.exchange import adapters

    return [adapters.attach(trained[0], file, expert=expert, force=force)]


def protocol(space: LabelSpace, request: Request, one_file_per_class: bool = False) -> Request:
    """The request with the corpus whose values are written.

    The one named, the only one, or the only one that annotates all classes of the request.

    Raises: `LabelError` for unknown names; `UsageError` if several fit, or a class has no value in
      the protocol and no file.
    """
    corpus, classes = request.corpus, request.classes
    for name in classes or ():
        space.class_index(name)
    known = {
        c.name: {g for g, yes in zip(space.classes, row, strict=True) if yes}
        for c, row in zip(space.corpora, space.known, strict=True)
    }
    fitting = [name for name in known if classes and set(classes) <= known[name]]
    if not corpus and len(known) > 1 and len(fitting) != 1:
        raise UsageError(
            "the model knows several annotation protocols",
            expected=", ".join(fitting or known),
            fix="choose one with --corpus",
        )
    chosen = corpus or (fitting[0] if len(fitting) == 1 else next(iter(known)))
    space.corpus_index(chosen)
    strange = sorted(set(classes or ()) - known[chosen])
    if strange and not one_file_per_class:
        raise UsageError(
            f"corpus {chosen!r} has no label value for {', '.join(strange)}",
            expected=", ".join(sorted(known[chosen])),
            fix="choose another --corpus, or add --one-file-per-class",
        )
    return dataclasses.replace(request, corpus=chosen)


def require_task(task: str, known: Mapping[str, int], path: Path) -> None:
    """`UsageError` for a task that the model does not know; "" and `ALL` are none of its names."""
    from medjax.infer.tasks import ALL

    if task not in ("", ALL, *known):
        raise UsageError(
            f"the model knows no task {task!r}",
            path=path,
            fix=did_you_mean(task, known),
        )


def share(cases: Sequence[Case], i: int, n: int) -> list[Case]:
    """Every n-th case from the i-th; `UsageError` for a part that does not exist."""
    if n < 1 or not 0 <= i < n:
        raise UsageError(
            "no such part",
            found=f"part {i} of {n}",
            expected=f"0 to {max(n, 1) - 1}",
            fix="--part-id counts from 0",
        )
    return list(cases[i::n])


def outlook(found: dict, cases: int, segmenter: Any, max_memory_gib: float | None) -> str:
    """One line with the work ahead, from the headers of the scans."""
    limit = f" of {max_memory_gib:g} GiB allowed" if max_memory_gib else ""
    if not found:
        return f"{cases} cases; none whose header can be read and that fits into the memory{limit}"
    windows = sum(f.windows for f in found.values())
    largest = max(found, key=lambda name: found[name].bytes)
    size = "x".join(map(str, segmenter.model.window))
    strips = f" in {found[largest].strips} strips" if found[largest].strips > 1 else ""
    base = resident()
    unknown = (
        f"; {cases - len(found)} that cannot be predicted as they are" if cases > len(found) else ""
    )
    shape = "x".join(map(str, found[largest].shape))
    return (
        f"{cases} cases{unknown}, at most {windows:,} windows of {size} on "
        f"{segmenter.device.platform}:{segmenter.device.id}; largest "
        f"{shown(largest)}: {shape}{strips}, about {(base + found[largest].bytes) / GIB:.1f} "
        f"GiB{limit}"
    )


def resident() -> int:
    """Bytes of this process that are in memory now (its peak if the system only reports that)."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def origin(model: Trained) -> dict:
    """Fields that identify a model in a manifest."""
    return {
        "name": model.config.name,
        **({"sha256": model.archive.sha256} if model.archive else {}),
        **({"adapter": model.adapted.identity} if model.adapted else {}),
    }


def draw_preview(
    names: Mapping[int, str], case: Case, volume: Any, segmentation: Any, folder: Path
) -> list[str]:
    """`<case>_preview.png`: the scan with the contours of the label map in three planes."""
    from medjax.prepare import geometry
    from medjax.report.montage import montage

    name = f"{case.name}_preview.png"
    canonical = geometry.fit(volume, None, crop="none")
    image = volume.array if volume.array.ndim == 4 else volume.array[..., None]
    grey, labels = canonical.image(image)[..., 0], canonical.image(segmentation.label_map)
    montage(grey, None, labels, folder / name, canonical.spacing_mm, names=names, title=case.name)
    return [name]
