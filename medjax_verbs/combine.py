"""`medjax combine`: one table from evaluations of several data sets, averaged per class."""

from pathlib import Path

from medjax import files
from medjax.errors import EXIT_OK, UsageError


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "combine",
        help="one table from several evaluations: every class over the data sets that have it",
    )
    p.add_argument(
        "evaluations",
        nargs="+",
        metavar="FOLDER[=CORPUS,CORPUS]",
        help="runs or evaluations, and which cases to take from them",
    )
    p.add_argument("--metric", default="Dice", help="Dice, IoU, NSD, HD95, ASSD")
    p.add_argument("--classes", nargs="+", default=[], help="the rows; default all classes")
    p.add_argument(
        "--pool",
        action="append",
        default=[],
        metavar="NAME=CORPUS,CORPUS",
        help="corpora whose cases count as one; repeatable",
    )
    p.add_argument("-o", "--output", default="", help="JSON file for the numbers")
    p.add_argument(
        "--overwrite", action="store_true", help="also replace a file that medjax did not write"
    )
    p.set_defaults(run=_combine)


def _combine(args) -> int:
    from medjax.infer import outputs, owned
    from medjax_verbs import combined as combine

    if args.output:
        outputs.make_folder(Path(args.output).parent)
        owned.refuse_document(
            args.output, "combination", overwrite=args.overwrite, what="the table"
        )
    columns = combine.read(
        dict(map(_folder, args.evaluations)), args.metric, args.classes, dict(map(_pool, args.pool))
    )
    means, overall = combine.over_sets(columns)
    print(combine.markdown(columns, args.metric))
    if args.output:
        found = {"metric": args.metric, "sets": columns, "classes": means, "mean": overall}
        found["mean_of_sets"] = combine.of_sets(columns)
        files.write_json(args.output, found | owned.mark("combination"))
    return EXIT_OK


def _folder(text: str) -> tuple[Path, list[str]]:
    folder, sign, corpora = text.partition("=")
    return (
        (Path(folder), corpora.split(",")) if sign and not Path(text).exists() else (Path(text), [])
    )


def _pool(text: str) -> tuple[str, list[str]]:
    name, sign, corpora = text.partition("=")
    if not sign or not name or not corpora:
        raise UsageError("not a pool", found=text, expected="NAME=CORPUS,CORPUS")
    return name, corpora.split(",")
