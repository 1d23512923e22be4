"""`medjax organs`: gives every case of a corpus the mask of an organ as a further channel."""

from pathlib import Path


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "organs", help="describe a corpus whose cases have an organ mask as a further channel"
    )
    p.add_argument("corpus", help="folder of the corpus, in any layout")
    p.add_argument(
        "-o",
        "--output",
        required=True,
        help="folder for corpus.json and the masks; give it to a run",
    )
    source = p.add_mutually_exclusive_group(required=True)
    source.add_argument("--files", metavar="DIR", help="masks in files called as the cases")
    source.add_argument(
        "--from-run", metavar="RUN", help="masks that another run predicts, out of fold if it can"
    )
    source.add_argument(
        "--from-labels",
        nargs="+",
        metavar="CLASS",
        help="the union of classes of the corpus itself: an upper bound",
    )
    p.add_argument(
        "--values", default="", metavar="V,W", help="with --files: values that count; default: all"
    )
    p.add_argument(
        "--classes", nargs="+", default=(), metavar="CLASS", help="with --from-run: which count"
    )
    p.add_argument("--closing-mm", type=float, default=0.0, help="close gaps up to twice that size")
    p.add_argument("--dilate-mm", type=float, default=0.0, help="grow the mask by that much")
    p.set_defaults(run=_organs)


def _organs(args) -> int:
    from medjax.corpora import organs
    from medjax.corpora.layouts import corpus_json
    from medjax.corpora.sources import read_corpus
    from medjax.errors import UsageError

    if bool(args.classes) != bool(args.from_run) or (args.values and not args.files):
        raise UsageError(
            "--classes belongs to --from-run, and --values to --files",
            fix="give the classes that the other run predicts, or the values in the files",
        )
    corpus, cases = read_corpus(args.corpus)
    if args.files:
        try:
            values = tuple(int(v) for v in args.values.split(",") if v)
        except ValueError as error:
            raise UsageError("unusable --values", found=args.values, expected="2,3") from error
        mask_of, source = organs.from_files(args.files, values), "files"
    elif args.from_run:
        from medjax.runs.prompted.organs import from_run

        out = Path(args.output) / "predicted"
        mask_of = from_run(Path(args.from_run), args.classes, cases, out, print)
        source = "run"
    else:
        mask_of, source = organs.from_labels(corpus, args.from_labels), organs.REFERENCE
        print("masks are the reference labels: scores with them are an upper bound")
    written = organs.write(
        args.output,
        corpus,
        cases,
        mask_of,
        source,
        closing_mm=args.closing_mm,
        dilate_mm=args.dilate_mm,
        facts=corpus_json.facts(args.corpus),
    )
    print(written.sentence())
    return 0
