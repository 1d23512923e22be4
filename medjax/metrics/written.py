"""The names of an evaluation's files, and the check that they may be written.

In: corpora with their classes, and cases. Out: names relative to the output folder, known before
anything is scored; `UsageError` if a file of another program has one of the names.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medjax.infer import owned
from medjax.infer.names import file_stems

NUMBERS = ("summary.json", "cases.csv", "table.md")
COMPARISON = ("comparison.json", "comparison.md", *(f"compared/{name}" for name in NUMBERS))
PAGE = "report.html"
PLOTTED = ("Dice", "NSD", "HD95")


def plots(classes: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Name of a figure -> its file, for all figures of an evaluation of these classes."""
    names = [
        name
        for corpus, own in classes.items()
        for name in (
            *(f"{corpus}_{metric}" for metric in PLOTTED),
            *(f"{corpus}_{c}_volume" for c in own),
        )
    ]
    return {name: f"plots/{stem}.svg" for name, stem in zip(names, file_stems(names), strict=True)}


def montages(cases: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """(corpus, case) -> the file of its picture."""
    stems = file_stems([f"{corpus}_{case}" for corpus, case in cases])
    return {case: f"montages/{stem}.png" for case, stem in zip(cases, stems, strict=True)}


def planned(
    classes: Mapping[str, Sequence[str]],
    cases: Sequence[tuple[str, str]],
    *,
    compared: bool = False,
    page: bool = True,
) -> list[str]:
    """Every file that an evaluation may write.

    Args:
      classes: corpus -> classes. cases: (corpus, case). compared: with a second model. page: with
        plots, pictures and report.html.
    """
    names = [*NUMBERS, *(COMPARISON if compared else ())]
    return [*names, PAGE, *plots(classes).values(), *montages(cases).values()] if page else names


def check(folder: Path, names: Sequence[str], *, overwrite: bool = False) -> None:
    """`UsageError` if one of the names is taken by a file that medjax did not write."""
    owned.refuse_foreign(
        folder,
        names,
        lambda name: is_ours(folder, name),
        overwrite=overwrite,
        what="the evaluation",
    )


def is_ours(folder: Path, name: str) -> bool:
    """Whether medjax wrote a file of an evaluation's folder.

    The file has medjax' mark, or the summary of its folder lists it.
    """
    path = folder / name
    if path.suffix == ".json":
        return (
            owned.document(path, "comparison" if path.stem == "comparison" else "evaluation")
            is not None
        )
    if owned.is_marked(path):
        return True
    inside = path.parent if path.parent.name not in ("plots", "montages") else path.parent.parent
    return path.relative_to(inside).as_posix() in listed(inside)


def listed(folder: Path) -> list[str]:
    """Files without a mark that the summary of a folder lists as written by medjax.

    For a summary of medjax 0.1: all files that it may have written.
    """
    summary = owned.document(folder / "summary.json", "evaluation")
    if summary is None:
        return []
    if isinstance(summary.get("files"), list):
        return [name for name in summary["files"] if isinstance(name, str)]
    drawn = [
        f"{p.parent.name}/{p.name}"
        for part, end in (("plots", "svg"), ("montages", "png"))
        for p in (folder / part).glob(f"*.{end}")
    ]
    return [*NUMBERS, "comparison.md", *sorted(drawn)]
