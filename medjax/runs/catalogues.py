"""Catalogues of public corpora that installed packages offer, found by their entry points.

medjax itself contains no catalogue. A package registers a function without arguments that returns
{"corpora": {name: facts}, "pools": {name: [names]}}:

    [project.entry-points."medjax.corpora"]
    public = "data_pipelines.catalogue:catalogue"
"""

from importlib.metadata import EntryPoint

from medjax import plugins, recipes
from medjax.errors import UsageError

GROUP = "medjax.corpora"


def registered(reference: str = "") -> dict:
    """All catalogues joined: {"corpora": {name: facts}, "pools": {name: names}}.

    Args:
      reference: "module:function" of a catalogue that is not registered; then only it is read.

    Raises: `UsageError` without any catalogue, or for one that cannot be loaded.
    """
    points = (
        [EntryPoint("given", reference, GROUP)]
        if reference
        else list(plugins.points(GROUP).values())
    )
    if not points:
        raise UsageError(
            f'no catalogue is registered in the entry points "{GROUP}"',
            fix="install the checkout again (pip install -e .), or name one with --catalogue "
            "data_pipelines.catalogue:catalogue",
        )
    merged: dict = {"corpora": {}, "pools": {}}
    for point in points:
        try:
            with recipes.importable():
                found = point.load()()
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(
                f"the catalogue cannot be loaded: {error}",
                found=point.value,
                expected="module:function",
            ) from error
        for part, entries in merged.items():
            entries.update(found.get(part, {}))
    return merged


def as_table(facts: dict) -> str:
    """One line per corpus (name, cases, modality, classes, command, licence); then pools."""
    rows = [("corpus", "cases", "modality", "classes", "ingest with", "licence")]
    for name, row in facts["corpora"].items():
        cases = str(row["cases"]) if isinstance(row["cases"], int) else "?"
        rows.append(
            (
                name,
                cases,
                row["modality"],
                str(len(row["annotated"])),
                row["command"],
                row["licence"],
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(
            [cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[5][:60]]
        )
        for row in rows
    ]
    lines += ["", *(f"pool {name}: {', '.join(names)}" for name, names in facts["pools"].items())]
    return "\n".join(lines)
