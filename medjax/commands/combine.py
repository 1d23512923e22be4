"""`medjax combine`: evaluations of several data sets in one table, classes averaged over the sets that have them."""

import json
from pathlib import Path

from medjax.errors import EXIT_OK, UsageError


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser("combine", help="one table from several evaluations: every class over the data sets that have it")
    p.add_argument("evaluations", nargs="+", metavar="FOLDER[=CORPUS,CORPUS]", help="runs or evaluations, and what to take of them")
    p.add_argument("--metric", default="Dice", help="Dice, IoU, NSD, HD95, ASSD")
    p.add_argument("--classes", nargs="+", default=[], help="the rows; default all classes")
    p.add_argument("--pool", action="append", default=[], metavar="NAME=CORPUS,CORPUS", help="corpora whose cases count as one; repeatable")
    p.add_argument("-o", "--output", default="", help="JSON file for the numbers")
    p.set_defaults(run=_combine)


def _combine(args) -> int:
    from medjax.metrics import combine

    columns = combine.read(dict(map(_folder, args.evaluations)), args.metric, args.classes, dict(map(_pool, args.pool)))
    means, overall = combine.over_sets(columns)
    print(combine.markdown(columns, args.metric))
    if args.output:
        found = {"metric": args.metric, "sets": columns, "classes": means, "mean": overall}
        Path(args.output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return EXIT_OK


def _folder(text: str) -> tuple[Path, list[str]]:
    folder, sign, corpora = text.partition("=")
    return (Path(folder), corpora.split(",")) if sign and not Path(text).exists() else (Path(text), [])


def _pool(text: str) -> tuple[str, list[str]]:
    name, sign, corpora = text.partition("=")
    if not sign or not name or not corpora:
        raise UsageError("not a pool", found=text, expected="NAME=CORPUS,CORPUS")
    return name, corpora.split(",")
