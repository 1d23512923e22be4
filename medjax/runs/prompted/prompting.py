"""Promptable models among finished ones: which they are, and their segmenter.

In: a `runs.trained.Trained`, and a config's section `infer`. Out: an
`infer.prompted.PromptedSegmenter`; the objects of every case of a call.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax.errors import UsageError
from medjax.prompts import read, types
from medjax.prompts.read import Prompt
from medjax.prompts.request import Request
from medjax.runs.settings.use import Infer


def promptable(one: Any) -> bool:
    """Whether a model (`runs.trained.Trained`) is asked by prompts."""
    if one.archive and one.archive.kind != "weights":
        return False
    return bool(types.of_spec(one.network.reads))


def check(trained: Sequence[Any], options: Sequence[str]) -> None:
    """`UsageError` for several models, or options that a promptable one does not take."""
    if len(trained) > 1:
        raise UsageError(
            "promptable models are not averaged",
            found=f"{len(trained)} models",
            fix="give one of them",
        )
    if options:
        raise UsageError(
            "a promptable model does not take these options",
            path=trained[0].path,
            found=", ".join(options),
            fix="leave them out",
        )


def segmenter(
    model: Any, given: Infer, *, zoom: str = "", overlap: float | None = None, **options: Any
) -> Any:
    """The `PromptedSegmenter` of a model.

    Args:
      given: the config's settings. zoom, overlap: in place of the config's; empty, None: as it
        says. options: see `PromptedSegmenter`.
    """
    from medjax.infer import prompted
    from medjax.infer import zoom as zooms

    fields = given.zoom.to_json() | ({"zoom": zoom} if zoom else {})
    fields |= {} if overlap is None else {"overlap": overlap}
    settings = zooms.Settings(**fields)
    return prompted.PromptedSegmenter(model, zoom=settings, precision=given.precision, **options)


def objects_of(
    cases: Sequence[str],
    flags: Sequence[tuple[str, str]],
    files: Sequence[Path | str],
    space: str = "",
) -> dict[str, tuple[Prompt, ...]]:
    """Case -> what it is asked for; empty without any prompt.

    Args:
      cases: names. flags: see `prompts.read.of_flags`. files: see `prompts.read.of_file`.
      space: of the coordinates on the command line, and of files that say none.

    Raises: `UsageError`, see these functions.
    """
    given = read.of_flags(flags, space or "ras")
    found = {name: given for name in cases} if given else {}
    for path in files:
        for name, more in read.by_case(read.of_file(path, space), cases, path).items():
            found[name] = read.distinct([*found.get(name, ()), *more])
    return found


def asked(
    one: Any,
    request: Request,
    cases: Sequence[str],
    flags: Sequence[tuple[str, str]],
    files: Sequence[Path | str],
    space: str = "",
) -> dict[str, tuple[Prompt, ...]]:
    """`objects_of` for a model (`runs.trained.Trained`).

    Raises: `UsageError` also for a model that reads no prompts, and classes beside prompts.
    """
    if not (flags or files or space):
        return {}
    if not promptable(one):
        raise UsageError(
            "the model reads no prompts",
            path=one.path,
            fix="leave them out, or use a promptable model (docs/segvol.md)",
        )
    if request.classes is not None and (flags or files):
        raise UsageError("classes and prompts exclude each other", fix="use --text CLASS")
    return objects_of(cases, flags, files, space)


def texts_of(objects: Mapping[str, Sequence[Prompt]]) -> tuple[str, ...]:
    """The texts of all objects, each once."""
    return tuple(dict.fromkeys(one.text for found in objects.values() for one in found))


def names_of(objects: Mapping[str, Sequence[Prompt]]) -> tuple[str, ...]:
    """The names of all objects, in the order of their first appearance."""
    return tuple(dict.fromkeys(one.name for found in objects.values() for one in found))
