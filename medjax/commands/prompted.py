"""`medjax prompted`: how a promptable model answers texts, boxes, points and corrections."""

from pathlib import Path

from medjax.commands import progress, report_failures


def add(verbs) -> None:
    """Adds the verb's parser."""
    from medjax.runs.settings.use import Prompted

    given = Prompted()
    p = verbs.add_parser(
        "prompted",
        help="score a promptable model on its held-out scans, or others with labels: texts, boxes, "
        "points, corrective clicks, against what the prompts alone would score",
    )
    p.add_argument("-m", "--model", required=True, metavar="RUN", help="run folder or archive")
    p.add_argument(
        "-o",
        "--output",
        default="",
        help="folder for prompted.json, prompted.md and the plot; default RUN/evaluation",
    )
    p.add_argument(
        "--data",
        nargs="+",
        default=(),
        metavar="FOLDER",
        help="data sets with labels in place of the held-out scans of the run; their classes need "
        "not be those of the model",
    )
    p.add_argument(
        "--corpus",
        default="",
        help="whose preparation --data follows; default: the corpus of that name, or the only one",
    )
    p.add_argument("--rows", nargs="+", default=given.rows, help="default: %(default)s")
    for name, text in (
        ("draws", "of prompts that depend on random numbers"),
        ("cases", "of each corpus; 0: all"),
        ("clicks", "corrections after the first prompt"),
        ("largest", "> 0: only so many of a scan's classes, the largest ones"),
        ("seed", "of the random numbers"),
    ):
        p.add_argument(
            f"--{name}", type=int, default=getattr(given, name), help=f"{text}; default %(default)s"
        )
    p.add_argument("--classes", nargs="+", default=(), metavar="CLASS", help="default: all")
    p.add_argument("--adapter", default="", metavar="FILE", help="as for medjax predict")
    p.add_argument("--expert", default="", help="of an adapter with several: the one to use")
    p.add_argument("--checkpoint", default="", help="last, best or a step; default: the config's")
    p.add_argument("--zoom", choices=("in", "out"), default="", help="default: the config's")
    p.add_argument("--device", default="", help="cpu, gpu, ...; default: the best")
    p.add_argument(
        "--compare",
        default="",
        metavar="FOLDER",
        help="another prompted evaluation of the same scans: paired differences of every row",
    )
    p.add_argument(
        "--overwrite", action="store_true", help="also replace files that medjax did not write"
    )
    p.add_argument("--quiet", action="store_true", help="print problems only")
    p.set_defaults(run=_prompted)


def _prompted(args) -> int:
    from medjax.runs.prompted import evaluation
    from medjax.runs.settings.use import Prompted

    names = ("draws", "cases", "clicks", "largest", "seed")
    given = Prompted(
        on=True,
        rows=tuple(args.rows),
        classes=tuple(args.classes),
        **{name: getattr(args, name) for name in names},
    )
    compared = evaluation.earlier(args.compare) if args.compare else None
    found = evaluation.of_model(
        args.model,
        given,
        data=args.data,
        corpus=args.corpus,
        adapter=args.adapter,
        expert=args.expert,
        progress=progress(args.quiet, "ask"),
        checkpoint=args.checkpoint,
        zoom=args.zoom,
        device=args.device,
    )
    if compared:
        found |= {"compared": evaluation.compared(compared, found, args.compare)}
    out = Path(args.output) if args.output else Path(args.model) / "evaluation"
    for line in evaluation.write(found, out, overwrite=args.overwrite):
        if not args.quiet:
            print(line)
    return report_failures(found["failed"])
