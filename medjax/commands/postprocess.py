"""`medjax postprocess`: chooses largest-component filtering per class on validation masks."""

from pathlib import Path


def add(verbs) -> None:
    """Adds the verb's parser."""
    p = verbs.add_parser(
        "postprocess",
        help="choose largest-component filtering per class on validation masks, and record it",
    )
    p.add_argument("--reference", required=True, help="folder of reference masks")
    p.add_argument(
        "--prediction",
        required=True,
        help="folder of predicted masks with the same names, made without postprocessing",
    )
    p.add_argument(
        "--labels",
        default="",
        help="dataset.json that names the labels; default: beside the reference folder",
    )
    p.add_argument(
        "-m",
        "--model",
        default="",
        help="run folder that keeps the choice, for `medjax predict --postprocess chosen`",
    )
    p.add_argument(
        "-o", "--output", default="", help="or a JSON file, for `medjax predict --postprocess FILE`"
    )
    p.add_argument(
        "--overwrite", action="store_true", help="also replace a file that medjax did not write"
    )
    p.set_defaults(run=_postprocess)


def _postprocess(args) -> int:
    from medjax.errors import UsageError
    from medjax.infer import outputs, owned
    from medjax.runs import postprocess

    if bool(args.model) == bool(args.output):
        raise UsageError(
            "no place for the choice", expected="either --model RUN or --output FILE.json"
        )
    labels = Path(args.labels) if args.labels else Path(args.reference).parent / "dataset.json"
    out = postprocess.place(Path(args.model)) if args.model else Path(args.output)
    outputs.make_folder(out.parent)
    owned.refuse_document(out, "postprocessing", overwrite=args.overwrite, what="the choice")
    print(
        postprocess.choose(
            args.reference, args.prediction, labels, out, Path(args.model) if args.model else None
        )
    )
    return 0
