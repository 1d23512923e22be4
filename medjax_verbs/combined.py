"""One table from evaluations of several data sets: class means over the sets that have the class.

In: folders with summary.json. Out: one column per data set, one row per class, and the means. The
rule is that of M4oE (Jiang and Shen, 2024), by which its Table 4 follows from Tables 2 and 3: every
class is the mean over the sets that annotate it, each set with the same weight whatever its number
of cases, and the last number is the mean over the classes, each with the same weight.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medjax.errors import UsageError, did_you_mean
from medjax.metrics.result import Result
from medjax.metrics.tables import escaped, table

Column = Mapping[str, float]


def over_sets(columns: Mapping[str, Column]) -> tuple[dict[str, float], float]:
    """The mean of every class over the data sets that have it, and the mean over the classes.

    Args:
      columns: data set -> class -> score.

    Raises: `UsageError` where there is no score.
    """
    classes = dict.fromkeys(name for column in columns.values() for name in column)
    if not classes:
        raise UsageError(
            "no score to average",
            found=list(columns),
            fix="name evaluations and classes that have scored cases",
        )
    means = {}
    for name in classes:
        found = [column[name] for column in columns.values() if name in column]
        means[name] = sum(found) / len(found)
    return means, sum(means.values()) / len(means)


def of_sets(columns: Mapping[str, Column]) -> float:
    """The mean over the data sets of their means over classes (MultiTalent's headline)."""
    means = [sum(column.values()) / len(column) for column in columns.values() if column]
    return sum(means) / len(means)


def read(
    folders: Mapping[Path, Sequence[str]],
    metric: str = "Dice",
    classes: Sequence[str] = (),
    pools: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, dict[str, float]]:
    """Data set -> class -> mean over its cases, from evaluations.

    Args:
      folders: run folder or evaluation -> the corpora taken from it, none for all. A set that is
        taken from several has a column for each, named by its folder as well.
      classes: rows of the table; default all.
      pools: name -> corpora of one evaluation whose cases count as one set (AMOS-CT and AMOS-MR as
        AMOS).

    Raises: `UsageError` for what is no evaluation, or names that no evaluation has.
    """
    sets: dict[tuple[str, str], dict[str, tuple[float, int]]] = {}
    for folder, only in folders.items():
        place = (
            folder / "evaluation" if (folder / "evaluation" / "summary.json").is_file() else folder
        )
        found = Result.load(place).tables
        if metric not in found["metrics"]:
            raise UsageError(
                f"this evaluation has no {metric!r}",
                path=place,
                fix=did_you_mean(metric, found["metrics"]),
            )
        for corpus in only:
            if corpus not in found["cells"]:
                raise UsageError(
                    f"this evaluation has no corpus {corpus!r}",
                    path=place,
                    fix=did_you_mean(corpus, found["cells"]),
                )
        cells = {
            corpus: {
                name: (cell[metric]["mean"], cell[metric]["n"])
                for name, cell in found["cells"][corpus].items()
                if cell[metric]["n"]
            }
            for corpus in only or found["cells"]
        }
        for corpus, row in _pooled(cells, pools or {}).items():
            sets[str(folder), corpus] = row
    known = {name for row in sets.values() for name in row}
    if unknown := [name for name in classes if name not in known]:
        raise UsageError(
            f"no evaluation has the class {unknown[0]!r}",
            fix=did_you_mean(unknown[0], sorted(known)),
        )
    if missing := [name for name in pools or {} if not any(corpus == name for _, corpus in sets)]:
        raise UsageError(
            f"no evaluation has all corpora of {missing[0]!r}",
            found=sorted({corpus for _, corpus in sets}),
        )
    named = [corpus for _, corpus in sets]
    return {
        corpus if named.count(corpus) == 1 else f"{folder}: {corpus}": {
            c: row[c][0] for c in (classes or row) if c in row
        }
        for (folder, corpus), row in sets.items()
    }


def markdown(columns: Mapping[str, Column], metric: str = "Dice") -> str:
    """The table for a reader."""
    means, overall = over_sets(columns)

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    rows = [
        [escaped(name), *(number(c.get(name)) for c in columns.values()), number(mean)]
        for name, mean in means.items()
    ]
    rows.append(
        [
            "**mean over classes**",
            *(number(sum(c.values()) / len(c)) if c else "" for c in columns.values()),
            number(overall),
        ]
    )
    lines = table([metric, *map(escaped, columns), "mean over data sets"], rows)
    return "\n".join([*lines, f"Mean of the data sets' means: {number(of_sets(columns))}", ""])


def _pooled(
    cells: Mapping[str, Mapping[str, tuple[float, int]]], pools: Mapping[str, Sequence[str]]
) -> dict[str, Mapping[str, tuple[float, int]]]:
    """(mean, cases) with the corpora of a pool joined, as if their cases were one corpus.

    Only if all corpora of the pool are present.
    """
    out = dict(cells)
    for name, members in pools.items():
        if not all(member in out for member in members):
            continue
        rows = [out.pop(member) for member in members]
        together = {}
        for label in dict.fromkeys(c for row in rows for c in row):
            found = [row[label] for row in rows if label in row]
            count = sum(n for _, n in found)
            together[label] = (sum(mean * n for mean, n in found) / count, count)
        out[name] = together
    return out
